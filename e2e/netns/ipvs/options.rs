//! The tools refuse `--random-fully`: the rules around IPVS do without.

use kube_proxy_rs::testing::proxy::Flavor;

use crate::options::expect_left_out;

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn random_source_ports_that_are_refused_are_left_out() {
    expect_left_out(Flavor::Nft, "--random-fully", &["--proxy-mode=ipvs"]);
}
