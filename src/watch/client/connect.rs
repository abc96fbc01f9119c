//! Dialling the API server, or the proxy in front of it: names are resolved here, so that the addresses are known
//! before they are used.

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceExt};

/// A node has to give up a dead API server quickly, as a load balancer may know a live one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is probed after this time, then every `KEEPALIVE_INTERVAL` ...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(8);
/// ... and it is dead when `KEEPALIVE_PROBES` went unanswered: 14 s in all.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 2;
/// The same limit for data that is not acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(14);

/// Told of all addresses of a host before one of them is dialled; the dialling waits for it.
pub type Dialling = Arc<dyn Fn(Vec<SocketAddr>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Opens TCP connections.
#[derive(Clone)]
pub(super) struct Connector {
    dialling: Dialling,
}

impl Connector {
    pub(super) fn new(dialling: Dialling) -> Self {
        Connector { dialling }
    }

    async fn dial(self, uri: Uri) -> Result<TokioIo<TcpStream>, BoxError> {
        let addresses = resolve(&uri).await?;
        (self.dialling)(addresses.clone()).await;
        connect(addresses, uri).await
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _context: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().dial(uri))
    }
}

/// All addresses of a URL's host, with its port.
async fn resolve(uri: &Uri) -> Result<Vec<SocketAddr>, BoxError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let of_scheme = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(of_scheme);
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.map_err(|error| format!("cannot resolve {host}: {error}"))?.collect())
}

/// Connects to one of a host's addresses.
async fn connect(addresses: Vec<SocketAddr>, uri: Uri) -> Result<TokioIo<TcpStream>, BoxError> {
    let known = move |_: Name| std::future::ready(Ok::<_, Infallible>(addresses.clone().into_iter()));
    let mut connector = HttpConnector::new_with_resolver(tower::service_fn(known));
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    Ok(connector.oneshot(uri).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn all_addresses_are_told_before_one_is_dialled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&told);
        let dialling: Dialling = Arc::new(move |addresses| {
            note.lock().unwrap().push(addresses);
            Box::pin(std::future::ready(()))
        });
        for host in ["127.0.0.1", "localhost"] {
            let uri = format!("https://{host}:{port}/").parse().unwrap();
            Connector::new(dialling.clone()).oneshot(uri).await.unwrap();
            let told = std::mem::take(&mut *told.lock().unwrap());
            assert!(matches!(&told[..], [all] if all.contains(&listener.local_addr().unwrap())), "{told:?}");
        }
    }

    #[tokio::test]
    async fn the_port_of_a_url_without_one_is_its_schemes() {
        for (url, wanted) in [
            ("https://192.0.2.1/", "192.0.2.1:443"),
            ("http://192.0.2.1", "192.0.2.1:80"),
            ("https://[2001:db8::1]:6443/", "[2001:db8::1]:6443"),
        ] {
            assert_eq!(resolve(&url.parse().unwrap()).await.unwrap(), [wanted.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_is_named() {
        let error = resolve(&"https://no.such.name.invalid:6443/".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot resolve no.such.name.invalid: "), "{error}");
    }
}
