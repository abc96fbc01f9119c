//! Another program deletes, changes and adds to our objects: the proxy finds, names and mends every act.

use kube_proxy_rs::testing::generate::Generator;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{PacketCase, cases};
use kube_proxy_rs::testing::proxy::Proxy;

use super::{BTreeMap, BTreeSet, Flavor, LIMIT, Namespace, addresses, launch, state};
use super::{wait_for_markers, wait_until};
use crate::sabotage::{Sabotage, chains, drift};

/// Acts in all. The machine is slow: two hundred are done to the node in memory.
const ACTS: usize = 40;
/// Every look is a thorough one.
const FLAGS: [&str; 3] = ["--proxy-mode=ipvs", "--ipvs-sync-period=2s", "--ipvs-min-sync-period=50ms"];
/// A foreign address, by family.
const FOREIGN: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

/// A virtual server, in the words of `ipvsadm`.
#[derive(Clone)]
struct Server {
    /// `-t` or `-u`.
    protocol: String,
    at: String,
    reals: Vec<String>,
}

/// What there is to harm.
struct Targets {
    servers: Vec<Server>,
    /// Type and entries by name.
    sets: BTreeMap<String, (String, Vec<String>)>,
    addresses: Vec<String>,
}

impl Targets {
    fn of(node: &Namespace) -> Targets {
        let mut targets = Targets { servers: Vec::new(), sets: BTreeMap::new(), addresses: Vec::new() };
        for line in node.output("ipvsadm", &["-Sn"]).unwrap().lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["-A", protocol, at, ..] => targets.servers.push(Server {
                    protocol: protocol.to_owned(),
                    at: at.to_owned(),
                    reals: Vec::new(),
                }),
                ["-a", _, at, "-r", real, ..] => {
                    let server = targets.servers.iter_mut().find(|server| server.at == at);
                    server.unwrap().reals.push(real.to_owned());
                }
                _ => panic!("{line}"),
            }
        }
        for line in node.output("ipset", &["save"]).unwrap().lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["create", name, kind, ..] => {
                    targets.sets.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
                }
                ["add", name, entry] => targets.sets.get_mut(name).unwrap().1.push(entry.to_owned()),
                _ => panic!("{line}"),
            }
        }
        let bound = addresses(&node.output("ip", &["-o", "address", "show", "kube-ipvs0"]).unwrap());
        targets.addresses = bound.iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
        targets
    }
}

/// Acts that take effect together, each on an object of its own.
#[derive(Default)]
struct Round {
    commands: Vec<String>,
    names: BTreeSet<String>,
}

impl Round {
    fn plan(targets: &Targets, random: &mut Generator) -> Round {
        let mut round = Round::default();
        let mut pick = |count: usize| usize::try_from(random.below(count as u64)).unwrap();
        let mut servers = targets.servers.clone();
        for _ in 0..3 {
            let server = servers.swap_remove(pick(servers.len()));
            round.harm_server(&server, pick(6));
        }
        let mut sets: Vec<_> = targets.sets.iter().collect();
        for _ in 0..2 {
            let (name, (kind, entries)) = sets.swap_remove(pick(sets.len()));
            let entry = (!entries.is_empty()).then(|| entries[pick(entries.len())].as_str());
            round.harm_set((name, kind), entry, pick(4));
        }
        match pick(4) {
            0 => round.act("ip link delete kube-ipvs0", "interface kube-ipvs0 has 0 addresses"),
            _ => {
                let address = &targets.addresses[pick(targets.addresses.len())];
                round.act(format!("ip address delete {address} dev kube-ipvs0"), "interface kube-ipvs0 has ");
            }
        }
        round
    }

    fn act(&mut self, command: impl Into<String>, name: impl Into<String>) {
        self.commands.push(command.into());
        self.names.insert(name.into());
    }

    fn harm_server(&mut self, server: &Server, kind: usize) {
        let Server { protocol, at, reals } = server;
        let name = format!("{at}/{}", if protocol == "-u" { "udp" } else { "tcp" });
        let changed = |what: &str| format!("real servers of {name} were changed: {what}");
        match (kind, reals.first()) {
            (0, _) => {
                self.act(format!("ipvsadm -D {protocol} {at}"), format!("virtual server {name} is gone"))
            }
            (1 | 2, _) => {
                let switches = if kind == 1 { "-s lc" } else { "-s rr -p 77" };
                let name = format!("virtual server {name} was changed");
                self.act(format!("ipvsadm -E {protocol} {at} {switches}"), name);
            }
            (3, Some(real)) => {
                let name = changed(&format!("{real} is gone"));
                self.act(format!("ipvsadm -d {protocol} {at} -r {real}"), name);
            }
            (4, Some(real)) => {
                let name = changed(&format!("{real} has another weight"));
                self.act(format!("ipvsadm -e {protocol} {at} -r {real} -m -w 5"), name);
            }
            _ => {
                let foreign = FOREIGN[usize::from(at.starts_with('['))];
                let real =
                    if at.starts_with('[') { format!("[{foreign}]:9") } else { format!("{foreign}:9") };
                let name = changed(&format!("{real} is not ours"));
                self.act(format!("ipvsadm -a {protocol} {at} -r {real} -m"), name);
            }
        }
    }

    fn harm_set(&mut self, (name, kind): (&str, &str), entry: Option<&str>, harm: usize) {
        let ip = FOREIGN[usize::from(name.starts_with("KUBE-6-"))];
        let foreign = match kind {
            "bitmap:port" => "9".to_owned(),
            "hash:ip" => ip.to_owned(),
            "hash:ip,port" => format!("{ip},tcp:9"),
            _ => format!("{ip},tcp:9,{ip}"),
        };
        let add = format!("ipset add {name} {foreign}");
        let command = match (harm, entry) {
            (0, Some(_)) => format!("ipset flush {name}"),
            (1, Some(entry)) => format!("ipset del {name} {entry}"),
            // As many entries as before.
            (2, Some(entry)) => format!("ipset del {name} {entry}; {add}"),
            // No rule names it, so it can be destroyed.
            (3, None) if name.contains("SCTP") => format!("ipset destroy {name}"),
            _ => add,
        };
        self.act(command, format!("ipset {name} "));
    }
}

/// Whether the log names each, and a pass of its family after it.
pub(super) fn is_told_and_over(log: &str, names: &BTreeSet<String>) -> bool {
    names.iter().all(|name| {
        let Some((before, after)) = log.rsplit_once(name.as_str()) else { return false };
        let family =
            if before.rfind("family=\"IPv6\"") > before.rfind("family=\"IPv4\"") { "IPv6" } else { "IPv4" };
        after.contains(&format!("\"synced\" family=\"{family}\""))
    })
}

/// What is in the kernel; the order of jumps in built-in chains is that of their mending.
fn unordered(node: &Namespace) -> BTreeSet<String> {
    let sorted = |line: String| match line.split_once(") [") {
        Some((place, rules)) if !place.contains("\"KUBE-") => {
            let mut rules: Vec<&str> = rules.trim_end_matches(']').split(", ").collect();
            rules.sort_unstable();
            format!("{place}) {rules:?}")
        }
        _ => line,
    };
    state(node, Flavor::Nft).into_iter().map(sorted).collect()
}

fn expect_mended(node: &Namespace, proxy: &Proxy, good: &BTreeSet<String>) {
    let mended = wait_until("all is as it was", LIMIT, || unordered(node) == *good);
    let now = unordered(node);
    let differences: Vec<_> = now.symmetric_difference(good).collect();
    assert!(mended.is_ok(), "{differences:#?}\nits log:\n{}", proxy.log_tail());
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn forty_acts_of_sabotage_are_found_named_and_mended() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let objects: Vec<_> = cases().iter().step_by(4).flat_map(PacketCase::objects).collect();
    let mut proxy = launch(&node, &FLAGS).start(&objects).unwrap();
    wait_for_markers(&mut proxy, &node);
    let (good, targets) = (unordered(&node), Targets::of(&node));
    let (mut random, mut acts) = (Generator::new(2026), 0);
    for table in ["nat", "filter", "mangle"].into_iter().cycle() {
        // All at once and at rest: what is done during a look or a pass may be mended unnamed.
        let rules = Sabotage::plan(table, &chains(&node, Flavor::Nft, table), 2, &mut random);
        let mut round = Round::plan(&targets, &mut random);
        round.names.extend(rules.names.iter().cloned());
        acts += round.commands.len() + rules.names.len();
        let (counted, told) = (drift(&node), round.names.len() as f64);
        proxy.pause(LIMIT).unwrap();
        let before = proxy.log().len();
        node.output("sh", &["-ec", &round.commands.join("\n")]).unwrap();
        rules.commit(&node, Flavor::Nft);
        proxy.resume().unwrap();
        let is_over = || is_told_and_over(&proxy.log()[before..], &round.names);
        let told_of = wait_until("all is told and mended", LIMIT, is_over);
        assert!(told_of.is_ok(), "{:#?}\n{:#?}\n{}", round.commands, round.names, &proxy.log()[before..]);
        expect_mended(&node, &proxy, &good);
        assert!(drift(&node) - counted >= told, "{:#?}", round.names);
        if acts >= ACTS {
            break;
        }
    }
    assert!(proxy.is_running(), "{}", proxy.log_tail());
}
