//! kube-proxy itself, in the place of a stub API server's node.

use std::env;
use std::fs::{self, File};
use std::sync::Arc;

use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{CLUSTER_CIDR, NODE_NAME, node_object};
use kube_proxy_rs::testing::proxy::{Folder, wait_until};
use kube_proxy_rs::testing::stub_api::StubApi;
use serde_json::Value;
use std::time::Duration;

use crate::running::Running;

const PATIENCE: Duration = Duration::from_secs(120);

/// kube-proxy, killed when this is dropped.
pub(crate) struct KubeProxy {
    _program: Running,
    _server: Arc<StubApi>,
    _folder: Folder,
}

impl KubeProxy {
    /// Starts the program that the variable PEER names, and waits until it is ready; `None` without the variable.
    pub(crate) fn start(
        lab: &Lab,
        flags: &[&str],
        objects: &[Value],
        is_ready: impl Fn() -> bool,
    ) -> Option<KubeProxy> {
        let peer = env::var("PEER").ok()?;
        let server = lab.node().run(StubApi::start_on_a_thread).unwrap().unwrap();
        objects.iter().cloned().chain([node_object()]).for_each(|object| _ = server.put(object));
        let folder = Folder::create().unwrap();
        let kubeconfig = server.kubeconfig(folder.path()).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = lab.node().command(&peer);
        command.arg("--kubeconfig").arg(kubeconfig).args(flags);
        command.args(["--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDR]);
        // Settings of the whole machine, which a namespace cannot make.
        command.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut program = Running::start(&mut command);
        let waited = wait_until("kube-proxy has programmed the Services", PATIENCE, || {
            program.has_ended() || is_ready()
        });
        let said = fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(waited.is_ok() && !program.has_ended(), "{said}");
        Some(KubeProxy { _program: program, _server: server, _folder: folder })
    }
}
