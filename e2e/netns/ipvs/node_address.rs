//! The Node object gets another address: virtual servers and sets follow.

use kube_proxy_rs::testing::proxy::Flavor;

use crate::node_address::expect_move;

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn node_ports_and_health_checks_move_to_the_new_primary_address() {
    expect_move(Flavor::Nft, &["--nodeport-addresses=primary", "--proxy-mode=ipvs"]);
}
