//! The monitor on a real kernel, each test in a network namespace of its own.

use super::*;
use crate::kernel::fresh_netns::{in_fresh_netns, run};
use crate::kernel::nft::Nft;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use std::fmt::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

fn everything() -> Concerns {
    Rc::new(|_, _, _| true)
}

/// One line for each write.
fn heard(subscription: &Subscription) -> Vec<String> {
    let heard = subscription.hear();
    assert!(!heard.is_incomplete);
    let words = |act| match act {
        Act::RuleAdded => "add",
        Act::RuleDeleted => "delete",
        Act::Altered => "now",
        Act::Deleted => "gone",
    };
    let line = |it: &ForeignWrite| format!("{} {} {} by {}", words(it.act), it.table, it.chain, it.by);
    heard.writes.iter().map(line).collect()
}

#[test]
fn what_is_done_to_chains_is_heard_with_who_did_it() {
    in_fresh_netns(|| {
        run("iptables-nft -t nat -N A; iptables-nft -t nat -N B; ip6tables-nft -t nat -N A");
        let monitor = Monitor::open().unwrap();
        let subscription = monitor.subscribe(IpFamily::V4, everything());
        assert_eq!(heard(&subscription), [""; 0]);
        run("iptables-nft -t nat -A A -s 192.0.2.1 -m comment --comment x -j B");
        assert_eq!(heard(&subscription), ["add nat A by iptables-nft"]);
        run("iptables-nft -t nat -R A 1 -j RETURN");
        assert_eq!(heard(&subscription), ["add nat A by iptables-nft", "delete nat A by iptables-nft"]);
        run("iptables-nft -t nat -F A; iptables-nft -t nat -X A");
        assert_eq!(heard(&subscription), ["delete nat A by iptables-nft", "gone nat A by iptables-nft"]);
        run("iptables-nft -t nat -N C; iptables-nft -t nat -E C D; nft rename chain ip nat D E");
        assert_eq!(heard(&subscription), ["now nat D by iptables-nft", "now nat E by nft"]);
        run("ip6tables-nft -t nat -A A -j RETURN");
        assert_eq!(heard(&subscription), [""; 0], "the other family's rules are not");
        run("nft flush ruleset");
        assert_eq!(heard(&subscription), ["gone nat B by nft", "gone nat E by nft"]);
    });
}

#[test]
fn each_family_hears_what_concerns_it() {
    in_fresh_netns(|| {
        let monitor = Monitor::open().unwrap();
        let v4 =
            monitor.subscribe(IpFamily::V4, Rc::new(|table, _, act| table == "nat" && act == Act::RuleAdded));
        let v6 = monitor.subscribe(IpFamily::V6, everything());
        run("iptables-nft -t nat -A OUTPUT -j RETURN; iptables-nft -t filter -A OUTPUT -j RETURN");
        run("ip6tables-nft -t filter -A OUTPUT -j RETURN; iptables-nft -t nat -F OUTPUT");
        assert_eq!(heard(&v4), ["add nat OUTPUT by iptables-nft"]);
        assert_eq!(heard(&v6), ["add filter OUTPUT by ip6tables-nft"]);
    });
}

#[test]
fn zeroed_counters_are_no_change_and_everything_else_is() {
    in_fresh_netns(|| {
        run("iptables-nft -t filter -N A; iptables-nft -t filter -A A -j RETURN -c 7 420
             iptables-nft -t filter -A A -j ACCEPT");
        let monitor = Monitor::open().unwrap();
        let subscription = monitor.subscribe(IpFamily::V4, everything());
        run("iptables-nft -t filter -Z A");
        assert_eq!(heard(&subscription), [""; 0]);
        run("iptables-nft -t filter -D A 1; iptables-nft -t filter -A A -j RETURN");
        assert_eq!(heard(&subscription).len(), 2);
        run("iptables-nft -t filter -D A 1");
        assert_eq!(heard(&subscription), ["delete filter A by iptables-nft"]);
    });
}

/// A large transaction: rules with these numbers in chain A of table nat.
fn nft_script(numbers: std::ops::Range<u32>) -> tempfile::NamedTempFile {
    let mut rules = String::from("add table ip nat\nadd chain ip nat A\n");
    for number in numbers {
        writeln!(rules, "add rule ip nat A ip saddr 192.0.2.1 meta mark {number} counter").unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, rules).unwrap();
    file
}

#[test]
fn too_much_at_once_is_lost_and_said_to_be_and_then_listening_goes_on() {
    in_fresh_netns(|| {
        let script = nft_script(0..60_000);
        let monitor = Monitor::open().unwrap();
        monitor.0.borrow().notices.let_wait(1 << 20).unwrap();
        let subscription = monitor.subscribe(IpFamily::V4, everything());
        run(&format!("nft -f {}", script.path().display()));
        assert!(subscription.hear().is_incomplete);
        run("nft add rule ip nat A drop");
        assert_eq!(heard(&subscription), ["add nat A by nft"]);
    });
}

/// Runs a child of ours with this input, and `beside` before the child reads it; what is heard then.
async fn follow(input: &str, shell: &str, beside: impl FnOnce(u32)) -> Vec<String> {
    let monitor = Monitor::open().unwrap();
    let subscription = monitor.subscribe(IpFamily::V4, everything());
    let shell = format!("read begin; {shell}");
    let mut child = Command::new("sh").args(["-c", &shell]).stdin(Stdio::piped()).spawn().unwrap();
    let (pid, mut stdin) = (child.id(), child.stdin.take().unwrap());
    let work = async {
        beside(pid.unwrap());
        stdin.write_all(format!("begin\n{input}").as_bytes()).await.unwrap();
        drop(stdin);
        child.wait().await.unwrap().success()
    };
    assert!(monitor.follow((pid, "iptables-nft-restore"), work, |is_success| *is_success).await);
    heard(&subscription)
}

fn in_runtime(test: impl AsyncFnOnce() + Send) {
    in_fresh_netns(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
}

const INPUT: &str = "*nat\n:OURS - [0:0]\n-A OURS -j RETURN\nCOMMIT\n";
const RESTORE: &str = "exec iptables-nft-restore --noflush";

#[test]
fn what_a_child_of_ours_writes_is_not_told_and_what_others_write_meanwhile_is() {
    in_runtime(async || {
        assert_eq!(follow(INPUT, RESTORE, |_| ()).await, [""; 0]);
        let others = |_| run("iptables-nft -t nat -A OUTPUT -j RETURN");
        assert_eq!(follow(INPUT, RESTORE, others).await, ["add nat OUTPUT by iptables-nft"]);
    });
}

#[test]
fn a_child_that_has_another_port_id_than_its_number_is_known_by_its_name() {
    in_runtime(async || {
        // A process of another container can have the same number there, and a socket here.
        let hold = |pid: u32| {
            let protocol = SockProtocol::NetlinkNetFilter;
            let held = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), protocol).unwrap();
            bind(held.as_raw_fd(), &NetlinkAddr::new(pid, 0)).unwrap();
            std::mem::forget(held);
            run("iptables-nft -t nat -A OUTPUT -j RETURN");
        };
        assert_eq!(follow(INPUT, RESTORE, hold).await, ["add nat OUTPUT by iptables-nft"]);
    });
}

#[test]
fn a_child_that_has_its_work_done_by_another_process_is_no_other() {
    in_runtime(async || {
        let wrapper = "iptables-nft-restore --noflush; exit $?";
        assert_eq!(follow(INPUT, wrapper, |_| ()).await, [""; 0]);
        let renamed = "bash -c 'exec -a x xtables-nft-multi iptables-restore --noflush'; exit $?";
        assert_eq!(follow(INPUT, renamed, |_| ()).await, [""; 0]);
    });
}

#[test]
fn what_a_child_writes_at_length_leaves_room_for_what_others_write() {
    in_runtime(async || {
        // More in each transaction than any input of ours has, and more in all than the socket holds.
        let mut input = String::new();
        for chain in ["A", "B", "C", "D", "E"] {
            let rules = (0..12_000).map(|mark| format!("-A {chain} -m mark --mark {mark} -j RETURN\n"));
            write!(input, "*nat\n:{chain} - [0:0]\n{}COMMIT\n", rules.collect::<String>()).unwrap();
        }
        let others = |_| run("iptables-nft -t nat -A OUTPUT -j RETURN");
        assert_eq!(follow(&input, RESTORE, others).await, ["add nat OUTPUT by iptables-nft"]);
        let mut chains = 0;
        let mut count =
            |part: netlink::Part<&str>| chains += usize::from(matches!(part, netlink::Part::Item(_)));
        Nft::open().unwrap().chains(IpFamily::V4, "nat", &mut count).unwrap();
        assert_eq!(chains, 5);
    });
}
