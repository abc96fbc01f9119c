//! Against the stub server, in the place of a foreign API server.

use super::*;
use crate::testing::proxy::Folder;
use crate::testing::stub_api::{Fault, Resource, Rule, StubApi, Verb, load_service, load_slice};
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use serde_json::json;
use std::sync::Arc;

/// A server with its kubeconfig.
fn server() -> (Arc<StubApi>, Folder, PathBuf) {
    let (server, folder) = (StubApi::start_on_a_thread().unwrap(), Folder::create().unwrap());
    let kubeconfig = server.kubeconfig(folder.path()).unwrap();
    (server, folder, kubeconfig)
}

fn open(kubeconfig: &Path) -> Result<RemoteApi> {
    RemoteApi::open(kubeconfig, Duration::ZERO)
}

fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bench-node"}})
}

fn fill(remote: &RemoteApi, services: u32) -> Result<()> {
    remote.create(node())?;
    for number in 0..services {
        remote.create(load_service(number))?;
        remote.create(load_slice(number, 2, "elsewhere"))?;
    }
    remote.finish()
}

fn slice(server: &StubApi, number: u32) -> Value {
    server.object(Resource::EndpointSlices, &format!("{NAMESPACE}/s-{number}-x"))
}

#[test]
fn everything_is_made_changed_and_removed_and_nothing_else_is_touched() {
    let (server, _folder, kubeconfig) = server();
    server.put(load_service(0));
    let remote = open(&kubeconfig).unwrap();
    fill(&remote, 40).unwrap();
    for number in 0..40 {
        let service = server.object(Resource::Services, &format!("{NAMESPACE}/s-{number}"));
        assert_eq!(service["spec"], load_service(number)["spec"]);
        assert!(is_ours(&service) && is_ours(&slice(&server, number)));
    }
    assert!(is_ours(&server.object(Resource::Nodes, "bench-node")));
    remote.replace(load_slice(7, 1, "elsewhere")).unwrap();
    remote.finish().unwrap();
    assert_eq!(slice(&server, 7)["endpoints"].as_array().unwrap().len(), 1);
    drop(remote);
    for number in 0..40 {
        assert_eq!(server.object(Resource::Services, &format!("{NAMESPACE}/s-{number}")), Value::Null);
        assert_eq!(slice(&server, number), Value::Null);
    }
    assert_eq!(server.object(Resource::Nodes, "bench-node"), Value::Null);
    assert_eq!(server.object(Resource::Namespaces, NAMESPACE), Value::Null);
    assert_ne!(server.object(Resource::Services, "load/s-0"), Value::Null);
}

#[test]
fn writes_of_one_object_stay_in_order() {
    let (server, _folder, kubeconfig) = server();
    let remote = open(&kubeconfig).unwrap();
    fill(&remote, 2).unwrap();
    for endpoints in 1..100 {
        remote.replace(load_slice(0, endpoints, "elsewhere")).unwrap();
        remote.replace(load_slice(1, endpoints, "elsewhere")).unwrap();
    }
    remote.finish().unwrap();
    for number in 0..2 {
        assert_eq!(slice(&server, number)["endpoints"].as_array().unwrap().len(), 99);
    }
}

#[test]
fn a_namespace_of_somebody_else_is_left_alone() {
    let (server, _folder, kubeconfig) = server();
    let theirs = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    server.put(theirs);
    let error = format!("{:#}", open(&kubeconfig).err().unwrap());
    assert!(error.contains("namespace kube-proxy-rs-bench belongs to another program"), "{error}");
    assert!(server.seen().iter().all(|seen| seen.verb == Verb::Get), "{:?}", server.seen());
}

#[test]
fn a_node_of_somebody_else_is_left_alone() {
    let (server, _folder, kubeconfig) = server();
    server.put(node());
    let remote = open(&kubeconfig).unwrap();
    let error = format!("{:#}", fill(&remote, 1).unwrap_err());
    assert!(error.starts_with("creating Node bench-node: ") && error.contains("already exists"), "{error}");
    drop(remote);
    assert_ne!(server.object(Resource::Nodes, "bench-node"), Value::Null);
}

#[test]
fn what_a_killed_run_has_left_goes_first() {
    let (server, _folder, kubeconfig) = server();
    let killed = open(&kubeconfig).unwrap();
    fill(&killed, 3).unwrap();
    std::mem::forget(killed);
    let _remote = open(&kubeconfig).unwrap();
    assert_eq!(slice(&server, 2), Value::Null);
    assert!(server.object(Resource::Namespaces, NAMESPACE)["metadata"]["deletionTimestamp"].is_null());
}

#[rstest::rstest]
#[case::range(
    "the provided network does not match the current range",
    "--service-cluster-ip-range=10.96.0.0/12"
)]
#[case::taken("provided IP is already allocated", "another Service of this cluster has 10.96.1.1")]
fn a_refused_address_is_told_once_with_what_helps(#[case] reason: &str, #[case] advice: &str) {
    let (server, _folder, kubeconfig) = server();
    let message = format!(
        "Service \"s-0\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.1.1\"]: \
         failed to allocate IP 10.96.1.1: {reason}"
    );
    let rule = Rule::always(Fault::Invalid(message)).on(Resource::Services).verb(Verb::Create);
    server.behave(|behaviour| behaviour.rules.push(rule));
    let remote = open(&kubeconfig).unwrap();
    let error = format!("{:#}", fill(&remote, 1).unwrap_err());
    assert!(error.starts_with("creating Service kube-proxy-rs-bench/s-0: "), "{error}");
    assert!(error.contains(advice) && error.contains(reason), "{error}");
    drop(remote);
    assert_eq!(server.object(Resource::Namespaces, NAMESPACE), Value::Null, "cleaned up after a failure");
}

#[test]
fn a_namespace_is_left_to_its_controller_for_as_long_as_it_takes() {
    let (server, _folder, kubeconfig) = server();
    let remote = RemoteApi::open(&kubeconfig, Duration::from_secs(60)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(remote));
        let terminating = || {
            let namespace = server.object(Resource::Namespaces, NAMESPACE);
            !namespace["metadata"]["deletionTimestamp"].is_null()
        };
        let limit = Duration::from_secs(30);
        crate::testing::proxy::wait_until("the namespace is deleted", limit, terminating).unwrap();
        server.delete(Resource::Namespaces, NAMESPACE);
    });
    assert!(server.seen().iter().all(|seen| seen.verb != Verb::Update), "it was finalized");
}

#[test]
fn a_program_gets_through_the_relay() {
    let (_server, _folder, kubeconfig) = server();
    let remote = open(&kubeconfig).unwrap();
    fill(&remote, 3).unwrap();
    let folder = Folder::create().unwrap();
    let relayed = remote.kubeconfig(folder.path()).unwrap();
    assert_ne!(std::fs::read_to_string(&relayed).unwrap(), std::fs::read_to_string(&kubeconfig).unwrap());
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let options = ClientOptions { kubeconfig: Some(relayed), master: None };
    let services = runtime.block_on(async {
        let client = client(&options).await.unwrap();
        kube::Api::<Service>::all(client).list(&ListParams::default()).await.unwrap()
    });
    assert_eq!(services.items.len(), 3);
}

fn rewritten(cluster: Value) -> (Value, relay::Target) {
    let kubeconfig = json!({
        "current-context": "here", "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "other", "cluster": {"server": "https://other"}}, {"name": "one", "cluster": cluster}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
    });
    let kubeconfig = serde_json::from_value(kubeconfig).unwrap();
    let (kubeconfig, target) = relay::rewrite(kubeconfig, "127.0.0.1:7".parse().unwrap()).unwrap();
    let kubeconfig = serde_json::to_value(kubeconfig).unwrap();
    assert_eq!(kubeconfig["users"][0]["user"], json!({"token": "secret"}));
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://other");
    (kubeconfig["clusters"][1]["cluster"].clone(), target)
}

#[test]
fn the_relayed_kubeconfig_names_the_relay_and_whom_its_certificate_is_for() {
    let (cluster, target) =
        rewritten(json!({"server": "https://api.example:6443/k8s/one/", "proxy-url": "http://x"}));
    assert_eq!(cluster, json!({"server": "https://127.0.0.1:7/k8s/one", "tls-server-name": "api.example"}));
    assert_eq!(target, ("api.example".to_owned(), 6443));
    let (cluster, target) = rewritten(json!({"server": "https://[2001:db8::1]", "tls-server-name": "named"}));
    assert_eq!(cluster, json!({"server": "https://127.0.0.1:7", "tls-server-name": "named"}));
    assert_eq!(target, ("2001:db8::1".to_owned(), 443));
    let (cluster, target) = rewritten(json!({"server": "http://192.0.2.1"}));
    assert_eq!(cluster, json!({"server": "http://127.0.0.1:7"}));
    assert_eq!(target, ("192.0.2.1".to_owned(), 80));
}
