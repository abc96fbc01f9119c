//! A user of one namespace gives reason for very many log lines and Events.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ground::{Ground, Start, tail};

const OBJECTS: u32 = 500;
const ROUNDS: u32 = 10;
/// Endpoints of a slice, and external IPs of a Service, that are all refused.
const FINDINGS: u32 = 20;
const SYNC: Duration = Duration::from_secs(5);
/// Three kinds of lines (slices, Services, claims): 200 at once and one a second of each, and what the program says besides.
const LINES_AT_ONCE: usize = 3 * 200 + 150;
const EVENTS_AT_ONCE: usize = 25 + 5;
/// An object's name, three findings and the head of the line.
const LONGEST_LINE: usize = 3000;
const MEMORY_KB: u64 = 24 * 1024;

fn address(round: u32, number: u32) -> String {
    format!("239.{}.{}.{number}", round % 250, (round / 250) % 250)
}

/// A Service that claims loopback addresses and says nonsense, and a slice full of multicast addresses.
fn offensive(number: u32, round: u32) -> [Value; 2] {
    let name = format!("bad-{number}");
    let cluster_ip = format!("10.97.{}.{}", number / 200, number % 200 + 1);
    let claims: Vec<String> =
        (0..FINDINGS).map(|it| format!("127.{}.{}.{it}", round % 250, number % 250)).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "bad", "name": name},
        "spec": {
            "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"], "externalIPs": claims,
            "sessionAffinity": format!("{round}{}", "\u{1b}[2J\n".repeat(5000)), "ports": [{"name": "p", "port": 80}],
        },
    });
    let endpoint = |it| json!({"addresses": [address(round, it)], "conditions": {"ready": true}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "bad", "name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "p", "port": 8080}], "endpoints": (0..FINDINGS).map(endpoint).collect::<Vec<_>>(),
    });
    [service, slice]
}

/// Every object changes; how long until the program has seen it all and what comes after.
fn put_round(ground: &Ground, round: u32) -> Duration {
    for object in (0..OBJECTS).flat_map(|number| offensive(number, round)) {
        ground.server.put(object);
    }
    ground.sync_latency(u8::try_from(round).unwrap())
}

#[test]
fn neither_the_log_nor_the_cluster_is_flooded() {
    let ground = Ground::new(Start { flags: &["--strict-external-ips"], ..Start::default() });
    put_round(&ground, 1);
    let (before, start) = (ground.uses(), Instant::now());
    for round in 2..=ROUNDS {
        put_round(&ground, round);
    }
    let sync = ground.sync_latency(100);
    let (log, events, used) = (ground.log(), ground.server.events().len(), ground.uses());
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 60;
    let (lines, longest) = (log.lines().count(), log.lines().map(str::len).max().unwrap_or_default());
    println!(
        "{lines} lines, {longest} bytes at most, {events} Events; sync {sync:?}; {before:?}, then {used:?}"
    );
    assert!(lines <= LINES_AT_ONCE + 3 * seconds, "{lines} lines in {seconds} s");
    assert!(longest <= LONGEST_LINE, "{longest}");
    assert!(events <= EVENTS_AT_ONCE + seconds / 10, "{events} Events in {seconds} s");
    assert!(sync < SYNC, "{sync:?}");
    assert!(used.memory_kb <= before.memory_kb + MEMORY_KB, "{before:?}, then {used:?}");
    assert!(log.contains(" suppressed="), "it says that it does not say all:\n{}", tail(&log));
    for part in ["Service bad/bad-0: spec.sessionAffinity: ", "EndpointSlice bad/bad-0-x: ", " | and 17 more"]
    {
        assert!(log.contains(part), "no {part:?} in the log");
    }
}
