//! The layers between a request and the network.

use super::connect::Connector;
use super::kubeconfig::Settings;
use super::pace::Pace;
use super::proxy::{Dialler, Proxy};
use super::transport::{PROTOCOLS, Transport};
use super::trust::{Verifier, explain};
use super::{Exchange, Observers};
use crate::watch::failure::chain;
use anyhow::{Context, anyhow};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName};
use kube::client::{Body, ConfigExt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tower::util::BoxCloneService;
use tower::{BoxError, ServiceBuilder};

/// From sending a request to the first line of the answer. The server itself gives up after 60 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Watches may start in bursts, but in the long run no faster than one in `WATCH_PACE`.
const WATCH_BURST: u64 = 30;
const WATCH_PACE: Duration = Duration::from_secs(1);

/// Takes requests without an address.
pub(super) type Stack = BoxCloneService<Request<Body>, Response<Incoming>, BoxError>;

/// Puts the stack together. What kube's own has on top, retries and a span for each request, is
/// left out on purpose: the first hides outages, the second serves nothing here.
pub(super) fn build(settings: Settings, observers: Observers) -> anyhow::Result<Stack> {
    let mut tls = tls(&settings)?;
    let config = settings.config;
    let dialler = Dialler::new(settings.proxy, Connector::new(observers.dialling), tls.clone())?;
    tls.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    let transport = Arc::new(Transport::new(HttpsConnector::new(dialler, tls, false, server_name(&config)?)));
    let pace = Arc::new(Pace::new(WATCH_PACE, WATCH_BURST));
    let send = tower::service_fn(move |request: Request<Body>| {
        let (transport, pace, observer) = (transport.clone(), pace.clone(), observers.exchange.clone());
        async move {
            if is_watch(&request) {
                pace.wait().await;
            }
            let host = request.uri().authority().map_or_else(String::new, ToString::to_string);
            let (method, start) = (request.method().clone(), Instant::now());
            let answered = answer(transport.send(request)).await;
            let status = answered.as_ref().ok().map(|response| response.status().as_u16());
            observer(&Exchange { method, host, status, elapsed: start.elapsed() });
            answered
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(briefly)?)
        .layer(config.extra_headers_layer().map_err(briefly)?)
        .map_err(BoxError::from)
        .service(send);
    Ok(Stack::new(service))
}

/// Which certificates are trusted is decided here. kube would read the system's authorities even if no TLS is spoken.
fn tls(settings: &Settings) -> anyhow::Result<ClientConfig> {
    let mut config = settings.config.clone();
    config.root_cert = Some(Vec::new());
    let mut tls = config.rustls_client_config().map_err(briefly)?;
    let is_spoken = [Some(&config.cluster_url), settings.proxy.as_ref().map(Proxy::uri)];
    let mut is_spoken = is_spoken.into_iter().flatten().map(Uri::scheme);
    if is_spoken.any(|scheme| scheme == Some(&Scheme::HTTPS)) && !config.accept_invalid_certs {
        let verifier = Verifier::new(settings.authorities.clone())?;
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    }
    if let Some(identity) = &settings.identity {
        tls.client_auth_cert_resolver = identity.clone();
    }
    Ok(tls)
}

/// kube says the cause of an error in each of its causes.
fn briefly(error: kube::Error) -> anyhow::Error {
    anyhow!(chain(&error))
}

/// The name that the server's certificate has to be for.
fn server_name(config: &kube::Config) -> anyhow::Result<Arc<dyn ResolveServerName + Send + Sync>> {
    let Some(name) = config.tls_server_name.clone() else {
        return Ok(Arc::new(DefaultServerNameResolver::default()));
    };
    let name = ServerName::try_from(name).context("tls-server-name")?;
    Ok(Arc::new(FixedServerNameResolver::new(name)))
}

/// Waits for the head of an answer; how long its body takes is for the reader to judge.
async fn answer(
    response: impl Future<Output = Result<Response<Incoming>, BoxError>>,
) -> Result<Response<Incoming>, BoxError> {
    match tokio::time::timeout(RESPONSE_TIMEOUT, response).await {
        Ok(response) => response.map_err(explain),
        Err(_) => Err(format!("no answer within {RESPONSE_TIMEOUT:?}").into()),
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"))
}
