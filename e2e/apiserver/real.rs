//! A real API server: `etcd` and `kube-apiserver` from a folder, on free ports, in a folder of
//! their own.
#![expect(clippy::disallowed_methods, reason = "starts the real servers")]

use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube_proxy_rs::testing::stub_api::Resource;
use kube_proxy_rs::watch::client::{ClientOptions, client};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// An API server takes some seconds to start, more on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);

/// Ends a child process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct RealServer {
    folder: TempDir,
    client: kube::Client,
    _etcd: Running,
    _apiserver: Running,
}

impl RealServer {
    pub(crate) async fn start(programs: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        let [etcd_port, peer_port, port] = free_ports();
        let etcd = run(&programs.join("etcd"), folder.path(), &etcd_arguments(etcd_port, peer_port));
        let key = folder.path().join("accounts.key");
        make_key(&key);
        std::fs::write(folder.path().join("tokens.csv"), "secret,admin,admin,system:masters\n").unwrap();
        let arguments = apiserver_arguments(folder.path(), etcd_port, port);
        let apiserver = run(&programs.join("kube-apiserver"), folder.path(), &arguments);
        let kubeconfig = folder.path().join("kubeconfig");
        write_kubeconfig(&kubeconfig, port);
        let options = ClientOptions { kubeconfig: Some(kubeconfig), master: None };
        let client = client(&options).await.unwrap();
        wait_until_ready(&client).await;
        let server = RealServer { folder, client, _etcd: etcd, _apiserver: apiserver };
        server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).await;
        server
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn api(&self, namespace: Option<&str>, api_version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: format!("{}s", kind.to_lowercase()),
        };
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Server-side apply, so that labels left out are removed.
    pub(crate) async fn put(&self, object: Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let api = self.api(text("/metadata/namespace"), text("/apiVersion").unwrap(), text("/kind").unwrap());
        let parameters = PatchParams::apply("e2e").force();
        api.patch(text("/metadata/name").unwrap(), &parameters, &Patch::Apply(&object)).await.unwrap();
    }

    pub(crate) async fn delete(&self, resource: Resource, key: &str) {
        let (namespace, name) = key.split_once('/').map_or((None, key), |(space, name)| (Some(space), name));
        let api = self.api(namespace, resource.api_version(), resource.kind());
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

fn free_ports() -> [u16; 3] {
    // Held together, so that they differ; etcd and the API server cannot take a socket over.
    let sockets = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn run(program: &Path, folder: &Path, arguments: &[String]) -> Running {
    let name = program.file_name().unwrap().to_string_lossy().into_owned();
    let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(log);
    Running(command.spawn().unwrap_or_else(|error| panic!("starting {}: {error}", program.display())))
}

fn make_key(path: &Path) {
    let mut command = Command::new("openssl");
    command.args(["genrsa", "-out"]).arg(path).arg("2048").stderr(Stdio::null());
    assert!(command.status().expect("openssl is needed to make a key").success());
}

fn etcd_arguments(port: u16, peer_port: u16) -> Vec<String> {
    vec![
        "--data-dir=etcd".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls=http://127.0.0.1:{port}"),
        format!("--advertise-client-urls=http://127.0.0.1:{port}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
    ]
}

fn apiserver_arguments(folder: &Path, etcd_port: u16, port: u16) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", path("certificates")),
        format!("--token-auth-file={}", path("tokens.csv")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/12".to_owned(),
        "--service-account-issuer=https://localhost".to_owned(),
        format!("--service-account-key-file={}", path("accounts.key")),
        format!("--service-account-signing-key-file={}", path("accounts.key")),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ]
}

/// The server signs its own certificate, for names of its own choice.
fn write_kubeconfig(path: &Path, port: u16) {
    let server = format!("https://127.0.0.1:{port}");
    let config = json!({
        "current-context": "real", "contexts": [{"name": "real", "context": {"cluster": "real", "user": "admin"}}],
        "clusters": [{"name": "real", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "admin", "user": {"token": "secret"}}],
    });
    std::fs::write(path, config.to_string()).unwrap();
}

async fn wait_until_ready(client: &kube::Client) {
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    let ready = || async {
        let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
        client.request_text(request).await
    };
    while let Err(error) = ready().await {
        assert!(tokio::time::Instant::now() < deadline, "the API server does not get ready: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
