//! What a receiver of the events knows, kept by the protocol of `WatchEvent`.

use kube_proxy_rs::model::{ObjectKind, WatchEvent};
use kube_proxy_rs::watch::api::{self, WatchOptions};
use kube_proxy_rs::watch::client::{ClientOptions, Connection};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Options for tests, which cannot wait.
pub(crate) fn hurried() -> WatchOptions {
    WatchOptions {
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        ..WatchOptions::default()
    }
}

/// The watches of node `here`, and what they have told so far of namespace `shop`.
pub(crate) struct Picture {
    events: mpsc::Receiver<WatchEvent>,
    running: JoinHandle<()>,
    known: BTreeMap<(ObjectKind, String), String>,
    /// Objects of a list under way.
    named: BTreeMap<ObjectKind, BTreeSet<String>>,
    /// How often each kind has been listed.
    pub(crate) lists: BTreeMap<ObjectKind, usize>,
    /// How often each object has been sent.
    pub(crate) sent: BTreeMap<String, usize>,
}

impl Drop for Picture {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Picture {
    /// Starts the watches.
    pub(crate) async fn watch(kubeconfig: &Path, options: WatchOptions) -> Self {
        let client = ClientOptions { kubeconfig: Some(kubeconfig.to_owned()), master: None };
        let connection = Connection::open(&client).await.unwrap();
        let (sender, events) = mpsc::channel(16);
        let running = tokio::spawn(async move { api::run(connection, "here", sender, options).await });
        Picture {
            events,
            running,
            known: BTreeMap::new(),
            named: BTreeMap::new(),
            lists: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Stops listening, and waits for the watches to notice.
    pub(crate) async fn close(mut self) {
        self.events.close();
        while self.events.recv().await.is_some() {}
        let running = &mut self.running;
        tokio::time::timeout(LIMIT, running).await.expect("the watches must end").unwrap();
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> WatchEvent {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await;
        let event = event.unwrap_or_else(|_| panic!("nothing more came; so far:\n{}", self.describe()));
        let event = event.expect("the watches must not end");
        self.fold(&event);
        event
    }

    /// Reads events until something is true of the picture.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let reading = async {
            while !holds(self) {
                let event = self.events.recv().await.expect("the watches must not end");
                self.fold(&event);
            }
        };
        let done = tokio::time::timeout(LIMIT, reading).await;
        assert!(done.is_ok(), "waited in vain for: {what}; the picture:\n{}", self.describe());
    }

    /// Reads events until all three kinds have been listed `times` times.
    pub(crate) async fn until_listed(&mut self, times: usize) {
        let kinds = [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node];
        self.until("all kinds to be listed", |picture| {
            kinds.iter().all(|kind| picture.lists.get(kind).is_some_and(|lists| *lists >= times))
        })
        .await;
    }

    /// Reads events until the picture is exactly this, one line for each object.
    pub(crate) async fn until_it_shows(&mut self, expected: &[&str]) {
        let wanted = expected.iter().fold(String::new(), |text, line| text + line + "\n");
        self.until(&wanted, |picture| picture.describe() == wanted).await;
    }

    /// One line for each object.
    pub(crate) fn describe(&self) -> String {
        self.known.values().fold(String::new(), |mut text, line| {
            writeln!(text, "{line}").unwrap();
            text
        })
    }

    fn fold(&mut self, event: &WatchEvent) {
        match event {
            WatchEvent::Listing(kind) => {
                self.named.insert(*kind, BTreeSet::new());
            }
            WatchEvent::Listed(kind) => {
                let named = self.named.remove(kind).expect("a list ends that has not begun");
                self.known.retain(|(known, name), _| known != kind || named.contains(name));
                *self.lists.entry(*kind).or_default() += 1;
            }
            WatchEvent::Service(service) => {
                let addresses = service.cluster_ips.v4.map(|ip| ip.to_string()).unwrap_or_default();
                let line = format!("service {} {addresses}", service.name);
                self.put(ObjectKind::Service, service.name.as_str(), line);
            }
            WatchEvent::Slice(slice) => {
                let addresses: Vec<_> = slice.endpoints.iter().map(|e| e.address.to_string()).collect();
                let line = format!("slice {} {}", slice.name, addresses.join(","));
                self.put(ObjectKind::EndpointSlice, &slice.name, line);
            }
            WatchEvent::Node(node) => {
                let line = format!("node {} in zone {}", node.name, node.zone.as_deref().unwrap_or("-"));
                self.put(ObjectKind::Node, "", line);
            }
            WatchEvent::ServiceCidr(name, cidrs) => {
                let cidrs: Vec<_> = cidrs.iter().map(ToString::to_string).collect();
                self.put(ObjectKind::ServiceCidr, name, format!("servicecidr {name} {}", cidrs.join(",")));
            }
            WatchEvent::ServiceCidrGone(name) => self.remove(ObjectKind::ServiceCidr, name),
            WatchEvent::ServiceGone(name) => self.remove(ObjectKind::Service, name.as_str()),
            WatchEvent::SliceGone(name) => self.remove(ObjectKind::EndpointSlice, name),
            WatchEvent::NodeGone => self.remove(ObjectKind::Node, ""),
            WatchEvent::Problems(problems) => panic!("{problems:?}"),
            WatchEvent::ApiServer(_) => {}
        }
    }

    fn put(&mut self, kind: ObjectKind, name: &str, line: String) {
        if let Some(named) = self.named.get_mut(&kind) {
            named.insert(name.to_owned());
        }
        // A real server has objects of its own in other namespaces.
        if matches!(kind, ObjectKind::Node | ObjectKind::ServiceCidr) || name.starts_with("shop/") {
            *self.sent.entry(name.to_owned()).or_default() += 1;
            self.known.insert((kind, name.to_owned()), line);
        }
    }

    fn remove(&mut self, kind: ObjectKind, name: &str) {
        self.known.remove(&(kind, name.to_owned()));
    }
}
