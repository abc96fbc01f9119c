//! The connection to the API server.
//!
//! kube's own stack retries silently for minutes, notices a dead server after five and reads a
//! kubeconfig's files only once, so the stack is put together here from its parts. Whatever goes
//! wrong is told to the caller at once; when to try again is the caller's business.

mod kubeconfig;
mod pace;

use anyhow::Context;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kubeconfig::load;
use pace::Pace;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tower::{BoxError, ServiceBuilder};

/// A node has to give up a dead API server quickly, as a load balancer may know a live one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From sending a request to the first line of the answer. The server itself gives up after 60 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle connection is probed after this time, then every `KEEPALIVE_INTERVAL` ...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(8);
/// ... and it is dead when `KEEPALIVE_PROBES` went unanswered: 14 s in all.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 2;
/// The same limit for data that is not acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(14);
/// Watches may start in bursts, but in the long run no faster than one in `WATCH_PACE`.
const WATCH_BURST: u64 = 30;
const WATCH_PACE: Duration = Duration::from_secs(1);

/// Where the API server is, and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientOptions {
    /// `clientConnection.kubeconfig`; without it the service account of the pod counts.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: replaces the server's address.
    pub master: Option<String>,
}

/// One request to the API server, from sending it to the head of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The method: `GET`, `POST`, …
    pub method: http::Method,
    /// Host and port of the server.
    pub host: String,
    /// The status; `None` when there was no answer.
    pub status: Option<u16>,
    /// How long the answer took.
    pub elapsed: Duration,
}

/// Told of every exchange.
pub type Observer = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// Connects to the API server; nothing is sent before the first request.
///
/// # Errors
/// Fails when the configuration cannot be read or makes no sense, naming the file.
pub async fn client(options: &ClientOptions) -> anyhow::Result<kube::Client> {
    Ok(Connection::open(options).await?.client())
}

/// A client that can be made anew when the files it was made from have changed.
#[derive(Clone)]
pub struct Connection {
    options: ClientOptions,
    observer: Observer,
    client: kube::Client,
    url: Arc<str>,
    stamps: Vec<Stamp>,
}

impl Connection {
    /// Reads the configuration and builds a client from it.
    ///
    /// # Errors
    /// Fails when the configuration cannot be read or makes no sense, naming the file.
    pub async fn open(options: &ClientOptions) -> anyhow::Result<Self> {
        Connection::observed(options, Arc::new(|_| {})).await
    }

    /// The same, telling somebody of every exchange.
    ///
    /// # Errors
    /// As [`open`](Connection::open).
    pub async fn observed(options: &ClientOptions, observer: Observer) -> anyhow::Result<Self> {
        // Refused when a provider is installed already, which is what we want to be the case.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (config, files) = load(options).await?;
        let url: Arc<str> = config.cluster_url.to_string().into();
        let stamps = files.into_iter().map(Stamp::take).collect();
        let client = build(&config, observer.clone())
            .with_context(|| format!("setting up the connection to {url}"))?;
        Ok(Connection { options: options.clone(), observer, client, url, stamps })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The server's address, for messages.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Builds the client again if the kubeconfig or a client certificate has changed on disk.
    /// Tokens and CA files need none of this: they are read again once a minute.
    ///
    /// # Errors
    /// Fails when the new files are no good; the old client stays then, and so does the wish for
    /// a new one.
    pub async fn reopen_if_changed(&mut self) -> anyhow::Result<bool> {
        if self.stamps.iter().all(Stamp::holds) {
            return Ok(false);
        }
        *self = Connection::observed(&self.options, self.observer.clone()).await?;
        Ok(true)
    }
}

/// A file as it was when we read it.
#[derive(Clone)]
struct Stamp {
    path: PathBuf,
    seen: Option<(SystemTime, u64)>,
}

impl Stamp {
    fn take(path: PathBuf) -> Self {
        let seen = Self::look(&path);
        Stamp { path, seen }
    }

    fn look(path: &Path) -> Option<(SystemTime, u64)> {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    fn holds(&self) -> bool {
        Self::look(&self.path) == self.seen
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    connector
}

/// Puts the stack together. What kube's own has on top, retries and a span for each request, is
/// left out on purpose: the first hides outages, the second is of no use to anybody.
fn build(config: &kube::Config, observer: Observer) -> anyhow::Result<kube::Client> {
    let https = config.rustls_https_connector_with_connector(connector())?;
    let dialler = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https);
    let pace = Arc::new(Pace::new(WATCH_PACE, WATCH_BURST));
    let send = tower::service_fn(move |request: Request<Body>| {
        let (dialler, pace, observer) = (dialler.clone(), pace.clone(), observer.clone());
        async move {
            if is_watch(&request) {
                pace.wait().await;
            }
            let host = request.uri().authority().map_or_else(String::new, ToString::to_string);
            let (method, start) = (request.method().clone(), Instant::now());
            let answered = answer(dialler.request(request)).await;
            let status = answered.as_ref().ok().map(|response| response.status().as_u16());
            observer(&Exchange { method, host, status, elapsed: start.elapsed() });
            answered
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(send);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// Waits for the head of an answer; how long its body takes is for the reader to judge.
async fn answer<E: Into<BoxError>>(
    response: impl Future<Output = Result<Response<Incoming>, E>>,
) -> Result<Response<Incoming>, BoxError> {
    match tokio::time::timeout(RESPONSE_TIMEOUT, response).await {
        Ok(response) => response.map_err(Into::into),
        Err(_) => Err(format!("no answer within {RESPONSE_TIMEOUT:?}").into()),
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: main
contexts: [{name: main, context: {cluster: one, user: me}}]
clusters: [{name: one, cluster: {server: "http://192.0.2.1:6443"}}]
users: [{name: me, user: {token: secret}}]
"#;

    async fn open(text: &str, master: Option<&str>) -> anyhow::Result<Connection> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let kubeconfig = Some(file.path().to_owned());
        Connection::open(&ClientOptions { kubeconfig, master: master.map(str::to_owned) }).await
    }

    async fn complaint(text: &str) -> String {
        format!("{:#}", open(text, None).await.err().expect("this kubeconfig must be refused"))
    }

    #[tokio::test]
    async fn a_kubeconfig_names_the_server() {
        assert_eq!(open(KUBECONFIG, None).await.unwrap().url(), "http://192.0.2.1:6443/");
    }

    #[tokio::test]
    async fn master_replaces_the_server_of_the_kubeconfig() {
        let connection = open(KUBECONFIG, Some("https://198.51.100.7")).await.unwrap();
        assert_eq!(connection.url(), "https://198.51.100.7/");
    }

    #[tokio::test]
    async fn master_alone_is_enough_and_needs_no_scheme() {
        let options = ClientOptions { kubeconfig: None, master: Some("198.51.100.7:8080".into()) };
        assert_eq!(Connection::open(&options).await.unwrap().url(), "http://198.51.100.7:8080/");
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named_once() {
        let options = ClientOptions { kubeconfig: Some("/nonexistent/kubeconfig".into()), master: None };
        let error = format!("{:#}", Connection::open(&options).await.err().unwrap());
        assert_eq!(error, "kubeconfig /nonexistent/kubeconfig: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn what_a_kubeconfig_lacks_is_named() {
        assert!(complaint("{}").await.contains("current-context is not set"));
        let error = complaint(&KUBECONFIG.replace("current-context: main", "current-context: other")).await;
        assert!(error.contains("current-context is \"other\""), "{error}");
        let error = complaint(&KUBECONFIG.replace("cluster: one", "cluster: two")).await;
        assert!(error.contains("names cluster \"two\""), "{error}");
        let error = complaint(&KUBECONFIG.replace("{server: \"http://192.0.2.1:6443\"}", "{}")).await;
        assert!(error.contains("cluster \"one\" has no server"), "{error}");
        let error = complaint("contexts: 7").await;
        assert!(error.contains("YAML"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_client_certificate_is_named() {
        let error = complaint(&KUBECONFIG.replace(
            "{token: secret}",
            "{client-certificate: /nonexistent/crt, client-key: /nonexistent/key}",
        ))
        .await;
        assert!(error.contains("/nonexistent/"), "{error}");
    }

    #[tokio::test]
    async fn a_changed_kubeconfig_gives_a_new_client() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let options = ClientOptions { kubeconfig: Some(file.path().to_owned()), master: None };
        let mut connection = Connection::open(&options).await.unwrap();
        assert!(!connection.reopen_if_changed().await.unwrap());
        std::fs::write(file.path(), KUBECONFIG.replace("192.0.2.1:6443", "192.0.2.200:6443")).unwrap();
        assert!(connection.reopen_if_changed().await.unwrap());
        assert_eq!(connection.url(), "http://192.0.2.200:6443/");
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_leaves_the_old_client_and_is_looked_at_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let options = ClientOptions { kubeconfig: Some(file.path().to_owned()), master: None };
        let mut connection = Connection::open(&options).await.unwrap();
        std::fs::write(file.path(), "half a fi").unwrap();
        assert!(connection.reopen_if_changed().await.is_err());
        std::fs::write(file.path(), KUBECONFIG.replace("secret", "another")).unwrap();
        assert!(connection.reopen_if_changed().await.unwrap());
    }
}
