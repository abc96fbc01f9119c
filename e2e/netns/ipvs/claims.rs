//! Services that ask for what is another's: one virtual server is one Service's, and the interface of IPVS mode
//! does not take the API server's address.

use kube_proxy_rs::testing::proxy::Flavor;

use crate::bounds::expect_within_bounds;
use crate::claims::{expect_api_server_kept, expect_older_one_served};

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_service_gets_no_port_of_the_address_at_which_the_api_server_is_reached() {
    expect_api_server_kept(Flavor::Nft, &["--proxy-mode=ipvs"]).expect_whole_address_kept();
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn of_two_services_with_one_external_address_and_port_the_older_one_has_it() {
    expect_older_one_served(Flavor::Nft, &["--proxy-mode=ipvs"]);
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn what_of_a_service_is_over_a_bound_is_left_out_and_told() {
    expect_within_bounds(
        Flavor::Nft,
        &[
            "--proxy-mode=ipvs",
            "--max-service-ports=2",
            "--max-service-endpoints=4",
            "--max-service-external-ips=2",
            "--max-service-source-ranges=1",
        ],
    );
}
