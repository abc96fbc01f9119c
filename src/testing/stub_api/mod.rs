//! An API server in this process: Services, EndpointSlices and Nodes in memory, behind a real
//! socket, with lists in pages, watches, bookmarks, and every misbehaviour we must survive.
//!
//! It serves what a proxy reads, and takes its Events, the way a real server does as far as a client can
//! tell; it validates nothing and fills in no defaults. Tests write objects with `put` and `delete`, or
//! over HTTP as they would to a real server, and set faults with `behave`.

mod absent;
mod answer;
mod load;
mod patch;
mod place;
mod protobuf;
mod selector;
mod store;
mod write;

pub use absent::Absent;
use answer::Command;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
pub use load::{load_address, load_service, load_slice};
pub use protobuf::in_protobuf;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// What the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// core/v1 Services.
    Services,
    /// discovery.k8s.io/v1 EndpointSlices.
    EndpointSlices,
    /// core/v1 Nodes.
    Nodes,
    /// core/v1 Namespaces. Only what is written over HTTP needs one.
    Namespaces,
    /// networking.k8s.io/v1 ServiceCIDRs.
    ServiceCidrs,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 5] = [
        Resource::Services,
        Resource::EndpointSlices,
        Resource::Nodes,
        Resource::Namespaces,
        Resource::ServiceCidrs,
    ];

    pub(super) fn of(object: &Value) -> Option<Resource> {
        Resource::ALL.into_iter().find(|resource| object["kind"] == resource.kind())
    }

    /// `kind` of its objects.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::EndpointSlices => "EndpointSlice",
            Resource::Nodes => "Node",
            Resource::Namespaces => "Namespace",
            Resource::ServiceCidrs => "ServiceCIDR",
        }
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes | Resource::Namespaces => "v1",
            Resource::EndpointSlices => "discovery.k8s.io/v1",
            Resource::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    /// Where all of its objects are listed.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Resource::Services => "/api/v1/services",
            Resource::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
            Resource::Nodes => "/api/v1/nodes",
            Resource::Namespaces => "/api/v1/namespaces",
            Resource::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    /// Its name in paths and messages.
    #[must_use]
    pub fn plural(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }
}

/// What is done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// GET of the collection.
    List,
    /// GET of the collection with `watch=true`.
    Watch,
    /// PATCH of one Node.
    Patch,
    /// GET of one object.
    Get,
    /// POST to the collection.
    Create,
    /// PUT of one object.
    Update,
    /// DELETE of one object.
    Delete,
}

/// What the server makes of `sendInitialEvents`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitialEvents {
    /// Objects first, then a bookmark that marks their end.
    #[default]
    Supported,
    /// Objects first, and never a mark: a server that does not know the parameter.
    Ignored,
    /// An error with this status code: a server that has it turned off says 422.
    Rejected(u16),
    /// Status 200, and an ERROR event with this status code inside of the stream: kube-apiserver says 500 so
    /// where its etcd has no progress notifications.
    Failed(u16),
    /// Objects first, then the end of the stream.
    Ended,
    /// Objects first, then the connection is cut.
    Cut,
}

/// How a watch from a forgotten version fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expired {
    /// Status 200, then an ERROR event with code 410.
    #[default]
    InStream,
    /// Status 410.
    Http,
}

/// What the server makes of a wish for protobuf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protobuf {
    /// It answers in it.
    #[default]
    Spoken,
    /// It answers in JSON.
    Unknown,
    /// It refuses with this status code.
    Refused(u16),
}

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status code.
    Status(u16),
    /// It is never answered.
    Hang,
    /// The connection is closed without an answer.
    Drop,
    /// It is answered with status 200 and this text.
    Garbage(String),
    /// It is answered with status 200 and this text, again and again without an end.
    Endless(String),
    /// It is answered with status 200, and then nothing comes.
    Silence,
    /// It is answered with status 500 and text without an end.
    EndlessRefusal,
    /// It is answered with status 422 and this message.
    Invalid(String),
}

/// Which requests a fault is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None` for all.
    pub resource: Option<Resource>,
    /// `None` for all.
    pub verb: Option<Verb>,
    /// How often; `None` for ever.
    pub times: Option<u32>,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// Every request fails like this from now on.
    #[must_use]
    pub fn always(fault: Fault) -> Self {
        Rule { resource: None, verb: None, times: None, fault }
    }

    /// For one resource only.
    #[must_use]
    pub fn on(self, resource: Resource) -> Self {
        Rule { resource: Some(resource), ..self }
    }

    /// For one verb only.
    #[must_use]
    pub fn verb(self, verb: Verb) -> Self {
        Rule { verb: Some(verb), ..self }
    }

    /// A number of times only.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Rule { times: Some(times), ..self }
    }
}

/// How the server behaves; the default is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Streaming lists.
    pub initial_events: InitialEvents,
    /// The encoding of answers.
    pub protobuf: Protobuf,
    /// Forgotten versions.
    pub expired: Expired,
    /// Faults; the first that fits a request is used.
    pub rules: Vec<Rule>,
    /// Watches are sent byte by byte, with this pause after every eight of them.
    pub dribble: Option<Duration>,
    /// The interval of bookmarks, for watches that allow them.
    pub bookmark_every: Option<Duration>,
    /// The only bearer token that is let in; without it, every request is.
    pub token: Option<String>,
}

/// A request the server has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which objects.
    pub resource: Resource,
    /// What is done with them.
    pub verb: Verb,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// The media types that it accepts.
    pub accept: String,
}

impl Seen {
    /// A parameter of the query.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        answer::parameter(&self.query, name)
    }
}

/// What all connections share.
struct Shared {
    store: Mutex<Store>,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    /// Events that were posted, in order.
    events: Mutex<Vec<Value>>,
    /// The newest version; wakes the watches.
    version: watch::Sender<u64>,
    commands: broadcast::Sender<Command>,
    /// How many watches of each resource are open.
    open: Mutex<[usize; Resource::ALL.len()]>,
}

/// A test that panicked while it held a lock has failed anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server; it ends when this is dropped.
pub struct StubApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for StubApi {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = self.shared.commands.send(Command::Disconnect);
    }
}

impl StubApi {
    /// Starts a server without objects on a free port.
    ///
    /// # Errors
    /// Fails when the loopback interface has no free port.
    pub fn start() -> std::io::Result<Self> {
        Absent::reserve()?.appear()
    }

    /// Starts a server on a thread of its own, in the calling thread's network namespace, for callers
    /// without a runtime. The thread lasts as long as the process.
    ///
    /// # Errors
    /// Fails when the loopback interface has no free port.
    pub fn start_on_a_thread() -> std::io::Result<Arc<Self>> {
        StubApi::start_on_a_thread_at(Ipv4Addr::LOCALHOST)
    }

    /// The same on an address of one's choice.
    ///
    /// # Errors
    /// Fails when the namespace does not have the address.
    pub fn start_on_a_thread_at(address: Ipv4Addr) -> std::io::Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let server = runtime.block_on(async { Absent::reserve_on(address)?.appear() })?;
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Ok(Arc::new(server))
    }

    fn serve(listener: TcpListener, address: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            behaviour: Mutex::default(),
            seen: Mutex::default(),
            events: Mutex::default(),
            version: watch::Sender::new(0),
            commands: broadcast::Sender::new(64),
            open: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        StubApi { shared, address, accepting }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same, without a scheme.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a kubeconfig for this server into a folder and returns its path.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> std::io::Result<PathBuf> {
        write_kubeconfig(folder, &self.url())
    }

    /// Creates or replaces an object; its `kind`, `namespace` and `name` say which. Returns its
    /// version.
    ///
    /// # Panics
    /// When the object is of a kind the server does not have.
    #[track_caller]
    pub fn put(&self, object: Value) -> u64 {
        let Some(resource) = Resource::of(&object) else { panic!("no resource for {object}") };
        let key = key_of(&object);
        let version = lock(&self.shared.store).put(resource, key, object);
        self.shared.version.send_replace(version);
        version
    }

    /// Deletes an object by `namespace/name`, or `name` for a Node. Says whether it was there.
    pub fn delete(&self, resource: Resource, key: &str) -> bool {
        let mut store = lock(&self.shared.store);
        let deleted = store.delete(resource, key);
        self.shared.version.send_replace(store.version);
        deleted
    }

    /// An object by the same key as for `delete`; null if it is not there.
    #[must_use]
    pub fn object(&self, resource: Resource, key: &str) -> Value {
        lock(&self.shared.store).object(resource, key)
    }

    /// Changes how the server behaves towards the next requests.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.shared.behaviour));
    }

    /// Forgets all history, so that only watches from the newest version on are possible.
    pub fn compact(&self) {
        let mut store = lock(&self.shared.store);
        store.compact();
        self.shared.version.send_replace(store.version);
    }

    /// Cuts all open watches in the middle of whatever they are doing.
    pub fn disconnect(&self) {
        self.command(Command::Disconnect);
    }

    /// Ends all open watches as a server does when their time is up.
    pub fn end_watches(&self) {
        self.command(Command::End);
    }

    /// Sends an ERROR event with code 410 to all open watches, and ends them.
    pub fn expire_watches(&self) {
        self.command(Command::Expire);
    }

    /// Sends a bookmark to all open watches that allow it.
    pub fn bookmark(&self) {
        self.command(Command::Bookmark);
    }

    /// Puts text of any kind into the open watches of a resource.
    pub fn say(&self, resource: Resource, text: &str) {
        self.command(Command::Say(resource, text.into()));
    }

    fn command(&self, command: Command) {
        // There is no receiver when no watch is open.
        let _ = self.shared.commands.send(command);
    }

    /// How many watches of a resource are open.
    #[must_use]
    pub fn open_watches(&self, resource: Resource) -> usize {
        lock(&self.shared.open)[resource as usize]
    }

    /// All requests so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// All Events that were posted so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.events).clone()
    }

    /// Fills the server with `services` Services named `load/s-N`, each with one EndpointSlice of
    /// `endpoints` endpoints on node `node`.
    pub fn fill(&self, services: u32, endpoints: u32, node: &str) {
        for number in 0..services {
            self.put(load_service(number));
            self.put(load_slice(number, endpoints, node));
        }
    }
}

fn write_kubeconfig(folder: &Path, url: &str) -> std::io::Result<PathBuf> {
    let path = folder.join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "stub",
        "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        "clusters": [{"name": "stub", "cluster": {"server": url}}],
        "users": [{"name": "stub", "user": {"token": "stub"}}],
    });
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

fn key_of(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match (text("namespace"), text("name")) {
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The connections live in here, so that they end with the server.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // Small writes are common in watches; without this they wait for each other.
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| answer::answer(shared.clone(), request));
            // Clients hang up whenever they like.
            let mut first = [0; 3];
            // HTTP/2 begins with the method PRI.
            if stream.peek(&mut first).await.is_ok_and(|_| &first == b"PRI") {
                let connection = http2::Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
