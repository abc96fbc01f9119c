//! What rules need of tools and kernel, and what becomes of rules of which a part is refused.

use super::chains::JUMPS;
use super::tests::Bench;
use super::*;
use crate::backend::kinds::{golden_rules, needs};
use crate::backend::options::OptionsRefused;
use crate::backend::packet_tests::{settings, snapshot};
use crate::model::IpFamily;
use crate::plan::Scope;
use crate::testing::generate::Generator;
use crate::testing::packets::cases;
use rstest::rstest;

/// Everything that render writes, with all counters: rules of golden files, of the packet table, and jumps.
fn all_rules(family: IpFamily) -> Vec<String> {
    let features = Features { counts_invalid: true, counts_localhost: true, ..Features::default() };
    let mut rules = golden_rules("iptables");
    for case in cases() {
        let (snapshot, settings) = (snapshot(&case), settings(&case, family));
        let plan = Plan::new(&settings, &snapshot, Scope::All);
        let inputs = render_inputs(&plan, &features, Flavor::Nft).concat();
        rules.extend(inputs.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned));
    }
    rules.extend(JUMPS.iter().map(|jump| jump.arguments()));
    rules
}

#[rstest]
fn exactly_what_rules_are_made_of_is_tried_on_a_node(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    let written = all_rules(family);
    let kinds = kinds::rule_kinds(family);
    let tried = kinds.iter().flat_map(|kind| kind.rules).copied();
    assert_eq!(needs(tried), needs(written.iter().map(String::as_str)));
}

/// Without options, but with all Services.
async fn expect_plain(bench: &mut Bench, option: &str) {
    let mut fresh = bench.afresh(Flavor::Nft);
    fresh.backend.tools().refused = vec![option.to_owned()];
    // What is taken by itself is found out by the first failure only.
    if fresh.sync().await.is_err() {
        fresh.backend.forget();
        fresh.sync().await.unwrap();
    }
    let tables = bench.tables().clone();
    assert_eq!(*fresh.tables(), tables);
    let mut rules = tables.values().flat_map(|table| table.values().flatten());
    assert!(rules.clone().any(|rule| rule.contains("-j DNAT")), "Services are served");
    assert!(!rules.any(|rule| rule.contains(option)), "{option}");
}

fn bench(events: usize) -> Bench {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, usize::MAX);
    let mut generator = Generator::new(11);
    (0..events).for_each(|_| bench.tracker.fold(generator.event()));
    bench
}

#[rstest]
#[case::counters("--nfacct-name")]
#[case::random_ports("--random-fully")]
#[tokio::test]
async fn an_option_that_is_refused_from_the_start_is_left_out_of_the_first_input(#[case] option: &str) {
    let mut bench = bench(80);
    bench.backend.tools().refused = vec![option.to_owned()];
    assert_eq!(bench.sync().await.unwrap().refused, []);
    let inputs = bench.backend.tools().inputs.len();
    assert_eq!(inputs, 1);
    expect_plain(&mut bench, option).await;
}

/// By then everything is known, so it comes out when everything is written again.
#[rstest]
#[case::counters("--nfacct-name")]
#[case::random_ports("--random-fully")]
#[case::only_in_our_chains("requiring SNAT\" -j MASQUERADE --random-fully")]
#[tokio::test]
async fn an_option_that_is_refused_later_is_left_out_before_a_service_is_suspected(#[case] option: &str) {
    let mut bench = bench(80);
    bench.sync().await.unwrap();
    bench.backend.tools().refused = vec![option.to_owned()];
    bench.forget_all();
    let error = bench.sync().await.unwrap_err();
    assert!(error.is::<OptionsRefused>() && crate::backend::is_tool_failure(&error), "{error:#}");
    bench.forget_all();
    assert_eq!(bench.sync().await.unwrap().refused, []);
    expect_plain(&mut bench, option).await;

    // Whatever it was, it has gone.
    bench.backend.tools().refused.clear();
    bench.backend.tools().failures = 2;
    bench.forget_all();
    bench.sync().await.unwrap_err();
    bench.forget_all();
    bench.sync().await.unwrap();
    let mut fresh = bench.afresh(Flavor::Nft);
    fresh.sync().await.unwrap();
    assert_eq!(bench.tables().clone(), *fresh.tables());
}

#[tokio::test]
async fn options_stay_when_it_is_a_service_that_is_refused() {
    let mut bench = bench(80);
    bench.backend.tools().refused = vec!["ns/svc-0:".to_owned()];
    assert_eq!(bench.sync().await.unwrap().refused.len(), 1);
    let rules = bench.tables()["nat"]["KUBE-POSTROUTING"].join("\n");
    assert!(rules.contains("--random-fully"), "{rules}");
}
