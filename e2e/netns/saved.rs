//! Saved rules, made comparable across namespaces.

use std::collections::BTreeSet;

use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::proxy::{Flavor, save};

/// Every rule and chain of ours in a namespace. A rule carries its place in its chain, but for the
/// chains that dispatch to Services, where only the order within one Service counts.
pub(crate) fn rules(namespace: &Namespace, flavor: Flavor, v6: bool) -> BTreeSet<String> {
    let saved = save(flavor, namespace, v6).unwrap();
    let mut found = BTreeSet::new();
    let (mut table, mut last, mut place) = ("", "", 0);
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(declaration) = line.strip_prefix(":KUBE-") {
            found.insert(format!("{table} :KUBE-{}", declaration.split(' ').next().unwrap_or_default()));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split(' ').next().unwrap_or_default();
            place = if chain == last { place + 1 } else { 0 };
            last = chain;
            let place = if dispatches(chain) { 0 } else { place };
            found.insert(format!("{table} {place} {rule}"));
        }
    }
    found
}

fn dispatches(chain: &str) -> bool {
    ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"].contains(&chain)
}
