//! Another program deletes, replaces and adds to our objects: the proxy finds, names and heals every act.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube_proxy_rs::testing::generate::Generator;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::cases;
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, metric_sum, metrics, save, wait_until};
use kube_proxy_rs::testing::stub_api::{load_service, load_slice};
use rstest::rstest;

use crate::BINARY;
use crate::saved;

/// Acts in all, and at once.
const ACTS: usize = 200;
const AT_ONCE: usize = 14;
/// Every look is a thorough one.
const FLAGS: &[&str] = &["--iptables-sync-period=2s", "--iptables-min-sync-period=50ms"];
const HEALED: Duration = Duration::from_secs(120);

/// The rules of a table by chain, each as iptables-save prints it, without `-A CHAIN`.
pub(crate) type Chains = BTreeMap<String, Vec<String>>;

pub(crate) fn chains(node: &Namespace, flavor: Flavor, table: &str) -> Chains {
    let saved = save(flavor, node, false).unwrap();
    let section = saved.split('*').find(|section| section.starts_with(table)).unwrap();
    let mut chains = Chains::new();
    for line in section.lines() {
        if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
        }
    }
    chains
}

/// The rules, without their places in built-in chains, where foreign rules stand, too.
fn rules(node: &Namespace, flavor: Flavor) -> BTreeSet<String> {
    let without_place = |line: String| {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(table), Some(_), Some(chain), Some(rule)) if !chain.starts_with("KUBE-") => {
                format!("{table} {chain} {rule}")
            }
            _ => line,
        }
    };
    saved::rules(node, flavor, false).into_iter().map(without_place).collect()
}

/// The chain that leads to another, if no other does.
fn only_holder<'a>(chain: &str, all: &'a Chains) -> Option<&'a str> {
    let leads = |rules: &[String]| rules.iter().any(|rule| rule.ends_with(&format!("-j {chain}")));
    let mut holders = all.iter().filter(|(_, rules)| leads(rules)).map(|(holder, _)| holder.as_str());
    holders.next().filter(|_| holders.next().is_none())
}

/// Acts on one table, all of which take effect together.
pub(crate) struct Sabotage {
    table: &'static str,
    commands: Vec<String>,
    /// What has to be named.
    pub(crate) names: BTreeSet<String>,
}

impl Sabotage {
    /// At most `most` random acts.
    pub(crate) fn plan(table: &'static str, all: &Chains, most: usize, random: &mut Generator) -> Sabotage {
        let mut chains = all.clone();
        let mut sabotage = Sabotage { table, commands: Vec::new(), names: BTreeSet::new() };
        chains.remove("KUBE-FIREWALL");
        let mut pick = |count: usize| usize::try_from(random.below(count as u64)).unwrap();
        for _ in 0..most {
            // Each chain is harmed once, or one act might undo another.
            let names: Vec<String> = chains.keys().cloned().collect();
            let Some(chain) = (!names.is_empty()).then(|| &names[pick(names.len())]) else { break };
            let rules = chains.remove(chain).unwrap();
            let rule = pick(rules.len());
            if chain.starts_with("KUBE-") {
                let holder = only_holder(chain, all).filter(|holder| chains.contains_key(*holder));
                if let Some(holder) = holder.filter(|_| chain.starts_with("KUBE-SEP-") && pick(4) == 0) {
                    sabotage.delete(chain, holder, &all[holder]);
                    chains.remove(holder);
                } else {
                    sabotage.harm(chain, rule, rules.len(), pick(4));
                }
            } else if let Some(to) = rules[rule].rsplit_once("-j KUBE-").map(|(_, to)| format!("KUBE-{to}"))
                && to != "KUBE-FIREWALL"
            {
                sabotage.commands.push(format!("-D {chain} {}", rules[rule]));
                sabotage.names.insert(format!("jump {chain} to {to} in table {table} "));
            }
        }
        sabotage
    }

    fn harm(&mut self, chain: &str, rule: usize, count: usize, kind: usize) {
        let number = rule + 1;
        self.commands.push(match kind {
            0 => format!("-D {chain} {number}"),
            1 => format!("-I {chain} {number} -s 192.0.2.1/32 -j ACCEPT"),
            2 if count > 1 => format!("-R {chain} {number} -s 192.0.2.1/32 -j RETURN"),
            _ => format!("-F {chain}"),
        });
        self.names.insert(format!("chain {chain} of table {} ", self.table));
    }

    /// Deletes a chain, and what leads to it.
    fn delete(&mut self, chain: &str, holder: &str, rules: &[String]) {
        let leads = |(_, rule): &(usize, &String)| rule.ends_with(&format!("-j {chain}"));
        // The last one first: numbers move up.
        let led = rules.iter().enumerate().filter(leads).map(|(place, _)| place + 1);
        self.commands.extend(led.rev().map(|number| format!("-D {holder} {number}")));
        self.commands.extend([format!("-F {chain}"), format!("-X {chain}")]);
        self.names.extend([chain, holder].map(|chain| format!("chain {chain} of table {} ", self.table)));
    }

    /// What is done while the program writes is mended, and may go unnamed.
    fn commit_between_passes(&self, node: &Namespace, flavor: Flavor, proxy: &Proxy) {
        proxy.pause(HEALED).unwrap();
        self.commit(node, flavor);
        proxy.resume().unwrap();
    }

    pub(crate) fn commit(&self, node: &Namespace, flavor: Flavor) {
        self.commit_under("/run/xtables.lock", node, flavor);
    }

    /// Programs that have another lock file do not wait for ours.
    fn commit_under(&self, lock: &str, node: &Namespace, flavor: Flavor) {
        let input = format!("*{}\n{}\nCOMMIT\n", self.table, self.commands.join("\n"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, &input).unwrap();
        let path = file.path().to_str().unwrap();
        let shell = format!("XTABLES_LOCKFILE={lock} iptables-{flavor}-restore -w 30 --noflush < {path}");
        node.output("sh", &["-c", &shell]).unwrap_or_else(|error| panic!("{error:#}\n{input}"));
    }
}

/// Drift that the program in a namespace has counted.
pub(crate) fn drift(node: &Namespace) -> f64 {
    let mut text = String::new();
    let is_read = || metrics(node).map(|read| text = read).is_ok();
    wait_until("its metrics are read", HEALED, is_read).unwrap();
    metric_sum(&text, "kubeproxy_rs_drift_total")
}

/// Waits until all is as it was, and says what was not named.
fn expect_healed(node: &Namespace, flavor: Flavor, proxy: &Proxy, good: &BTreeSet<String>) {
    wait_until("all is as it was", HEALED, || rules(node, flavor) == *good).unwrap_or_else(|error| {
        let now = rules(node, flavor);
        panic!(
            "{error}: {:?}\nlog:\n{}",
            now.symmetric_difference(good).collect::<Vec<_>>(),
            proxy.log_tail()
        )
    });
}

/// Services of a large table.
const MANY: u32 = 330;

fn many() -> impl Iterator<Item = serde_json::Value> {
    (0..MANY).flat_map(|number| [load_service(number), load_slice(number, 5, "elsewhere")])
}

/// Puts another rule in the place of a chain's last one: it is used as often as before, and takes as much room,
/// so that only what it says tells.
fn replace_last(chain: &str, all: &Chains) -> Sabotage {
    let (number, rule) = (all[chain].len(), all[chain].last().unwrap());
    let command = format!("-R {chain} {number} ! -s 192.0.2.1/32 {}", without_source(rule));
    Sabotage { table: "nat", commands: vec![command], names: BTreeSet::new() }
}

#[rstest]
#[case::nft(Flavor::Nft, false)]
#[case::legacy(Flavor::Legacy, false)]
#[case::large_legacy(Flavor::Legacy, true)]
fn two_hundred_acts_of_sabotage_are_found_named_and_healed(#[case] flavor: Flavor, #[case] is_large: bool) {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let objects = cases().into_iter().flat_map(|case| case.objects());
    let objects: Vec<_> = objects.chain(many().filter(|_| is_large)).collect();
    let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: FLAGS };
    let mut proxy = launch.start(&objects).unwrap();
    proxy.wait_for_sync(&node, flavor, HEALED).unwrap();
    let good = rules(&node, flavor);
    let mut random = Generator::new(2026);
    let mut acts = 0;
    while acts < ACTS {
        let table = if acts % 60 < 40 { "nat" } else { "filter" };
        let sabotage = Sabotage::plan(table, &chains(&node, flavor, table), AT_ONCE, &mut random);
        acts += sabotage.names.len();
        let before = drift(&node);
        sabotage.commit_between_passes(&node, flavor, &proxy);
        expect_healed(&node, flavor, &proxy, &good);
        let unnamed = || {
            let log = proxy.log_tail();
            sabotage.names.iter().filter(|name| !log.contains(*name)).cloned().collect::<Vec<_>>()
        };
        wait_until("each is named", HEALED, || unnamed().is_empty())
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", unnamed(), proxy.log_tail()));
        let counted = drift(&node) - before;
        assert!(counted >= sabotage.names.len() as f64, "{counted} of {:?}", sabotage.names);
    }

    // A canary goes with nothing else, and a policy is not ours.
    let tool = format!("iptables-{flavor}");
    node.output(&tool, &["-w", "-t", "mangle", "-X", "KUBE-PROXY-CANARY"]).unwrap();
    node.output(&tool, &["-w", "-P", "FORWARD", "DROP"]).unwrap();
    expect_healed(&node, flavor, &proxy, &good);
    assert!(save(flavor, &node, false).unwrap().contains(":FORWARD DROP"));

    let twin_node = lone_node().unwrap();
    give_idle_uplink(&twin_node).unwrap();
    let twin = Launch { binary: BINARY, namespace: &twin_node, flavor, flags: FLAGS };
    let mut twin = twin.start_on(proxy.manifests()).unwrap();
    let equal = || rules(&node, flavor) == rules(&twin_node, flavor);
    wait_until("an undisturbed twin has the same", HEALED, equal).unwrap();
    assert!(twin.is_running() && proxy.is_running());
}

#[rstest]
#[case::nft(Flavor::Nft, "1h", "was changed by iptables-nft-re")]
#[case::legacy(Flavor::Legacy, "2s", "has other rules than were written")]
fn a_rule_in_anothers_place_is_found_named_and_healed_in_a_large_table_too(
    #[case] flavor: Flavor,
    // Quick looks find it on nft, and thorough ones in legacy tables.
    #[case] thorough_looks: &str,
    #[case] what: &str,
) {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let sync_period = format!("--iptables-sync-period={thorough_looks}");
    let flags =
        [sync_period.as_str(), "--iptables-min-sync-period=50ms", "--iptables-dispatch-tree-threshold=100"];
    let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: &flags };
    let mut proxy = launch.start(&many().collect::<Vec<_>>()).unwrap();
    proxy.wait_for_sync(&node, flavor, HEALED).unwrap();
    let good = rules(&node, flavor);
    let all = chains(&node, flavor, "nat");
    let last = |prefix: &str| all.keys().rfind(|name| name.starts_with(prefix)).unwrap();
    for chain in [last("KUBE-SVC-AAAAA"), last("KUBE-SVC-"), last("KUBE-SEP-")] {
        replace_last(chain, &all).commit_between_passes(&node, flavor, &proxy);
        expect_healed(&node, flavor, &proxy, &good);
        expect_named(&proxy, &format!("chain {chain} of table nat {what}"));
    }
    assert!(proxy.is_running());
}

fn expect_named(proxy: &Proxy, what: &str) {
    wait_until("it is named, and who did it if that is known", HEALED, || proxy.log_tail().contains(what))
        .unwrap_or_else(|error| panic!("{error}: {}", proxy.log_tail()));
}

#[test]
fn a_program_without_the_lock_is_found_out_in_a_chain_that_we_have_just_written() {
    let (node, flavor) = (lone_node().unwrap(), Flavor::Legacy);
    give_idle_uplink(&node).unwrap();
    let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: FLAGS };
    let mut proxy = launch.start(&many().collect::<Vec<_>>()).unwrap();
    proxy.wait_for_sync(&node, flavor, HEALED).unwrap();
    for endpoints in [4, 5] {
        let before = chains(&node, flavor, "nat");
        let changed = [load_service(0), load_slice(0, endpoints, "elsewhere")];
        proxy.rewrite(&changed.into_iter().chain(many().skip(2)).collect::<Vec<_>>()).unwrap();
        let written = || {
            let now = chains(&node, flavor, "nat");
            let is_written =
                |name: &&String| name.starts_with("KUBE-SVC-") && now.get(*name) != before.get(*name);
            now.keys().find(is_written).cloned().map(|name| (name, now))
        };
        wait_until("the change is written", HEALED, || written().is_some()).unwrap();
        let (chain, now) = written().unwrap();
        let good = rules(&node, flavor);
        proxy.pause(HEALED).unwrap();
        replace_last(&chain, &now).commit_under("/dev/null", &node, flavor);
        assert_ne!(rules(&node, flavor), good);
        proxy.resume().unwrap();
        expect_healed(&node, flavor, &proxy, &good);
        expect_named(&proxy, &format!("chain {chain} of table nat has other rules than were written"));
    }
}

fn without_source(rule: &str) -> String {
    let mut words = rule.split(' ').collect::<Vec<_>>();
    if let Some(at) = words.iter().position(|word| *word == "-s") {
        words.drain(at..at + 2);
    }
    words.join(" ")
}
