//! Manifests with mistakes.

use kube_proxy_rs::testing::lab::Lab;

use super::launch;
use crate::manifests::nothing_is_lost;

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_restart_on_a_broken_manifest_removes_nothing_of_it() {
    let lab = Lab::create().unwrap();
    nothing_is_lost(&lab, launch(lab.node(), &["--proxy-mode=ipvs"]));
}
