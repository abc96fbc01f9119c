//! The proxy between us and the API server, where there is one.
//!
//! As in client-go: `proxy-url` of the kubeconfig counts for every server; without it HTTPS_PROXY or HTTP_PROXY
//! counts, by the scheme of the server, unless the server is on this node or NO_PROXY names it.

use super::connect::Connector;
use super::trust::explain;
use anyhow::{Context, bail};
use http::Uri;
use http::uri::Scheme;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceExt};

/// Where a proxy is, and who we are to it.
pub(super) type Proxy = Intercept;

/// The proxy on the way to a server, where `configured` is that of the kubeconfig.
pub(super) fn towards(server: &Uri, configured: Option<&str>) -> anyhow::Result<Option<Proxy>> {
    match configured {
        Some(url) => parse(url).context("proxy-url").map(Some),
        None => of_environment(server, |name| std::env::var(name).ok()),
    }
}

/// The proxy that the environment has for a server. `variable` looks it up.
fn of_environment(server: &Uri, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Proxy>> {
    let first = |names: [&'static str; 2]| {
        names.into_iter().find_map(|name| Some((name, variable(name).filter(|value| !value.is_empty())?)))
    };
    let is_https = server.scheme() == Some(&Scheme::HTTPS);
    let names = if is_https { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let Some((name, url)) = first(names) else { return Ok(None) };
    let direct = first(["NO_PROXY", "no_proxy"]).map(|(_, list)| list).unwrap_or_default();
    if is_on_this_node(server) || is_named_in(&direct, server) {
        return Ok(None);
    }
    // In the environment, a mere host and port is enough.
    let complete = if url.contains("://") { url } else { format!("http://{url}") };
    parse(&complete).context(name).map(Some)
}

/// The URL stays out of the complaint: there may be a password in it.
fn parse(url: &str) -> anyhow::Result<Proxy> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    let proxy = Matcher::builder().all(url).build().intercept(&Uri::from_static("https://server"));
    match (scheme, proxy) {
        (Some("http" | "https" | "socks5"), Some(proxy)) => Ok(proxy),
        _ => bail!("the URL of a proxy begins with http://, https:// or socks5://, and a host follows"),
    }
}

fn is_on_this_node(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The library knows hosts, domains and networks, but no ports, and `*` not for addresses.
fn is_named_in(list: &str, server: &Uri) -> bool {
    let port = port_of(server).to_string();
    let entries = list.split(',').map(str::trim);
    if entries.clone().any(|entry| entry == "*") {
        return true;
    }
    let entries = entries.filter_map(|entry| match entry.rsplit_once(':') {
        Some((host, of)) if !host.contains(':') || host.ends_with(']') => (of == port).then_some(host),
        _ => Some(entry),
    });
    let entries = entries.map(|entry| entry.trim_start_matches("*.").trim_matches(['[', ']']));
    let entries = entries.collect::<Vec<_>>().join(",");
    Matcher::builder().all("http://proxy").no(entries).build().intercept(server).is_none()
}

fn port_of(uri: &Uri) -> u16 {
    let of_scheme = match uri.scheme_str() {
        Some("https") => 443,
        Some("socks5") => 1080,
        _ => 80,
    };
    uri.port_u16().unwrap_or(of_scheme)
}

/// Where to connect: all but TLS is plain TCP at first, and a port is not left to be guessed.
fn with_port(uri: &Uri) -> anyhow::Result<Uri> {
    let scheme = if uri.scheme() == Some(&Scheme::HTTPS) { Scheme::HTTPS } else { Scheme::HTTP };
    let authority = format!("{}:{}", uri.host().unwrap_or_default(), port_of(uri));
    Ok(Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build()?)
}

/// Connects to servers, through a proxy if there is one.
#[derive(Clone)]
pub(super) struct Dialler {
    connector: Connector,
    through: Option<Arc<Through>>,
}

struct Through {
    proxy: Proxy,
    address: Uri,
    connector: HttpsConnector<Connector>,
}

type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Dialler {
    /// A proxy that speaks TLS itself is reached with `tls`.
    pub(super) fn new(
        proxy: Option<Proxy>,
        connector: Connector,
        tls: rustls::ClientConfig,
    ) -> anyhow::Result<Self> {
        let through = |proxy: Proxy| {
            let address = with_port(proxy.uri())?;
            let connector = HttpsConnector::from((connector.clone(), tls));
            anyhow::Ok(Arc::new(Through { proxy, address, connector }))
        };
        Ok(Dialler { through: proxy.map(through).transpose()?, connector })
    }

    async fn dial(self, server: Uri) -> Result<Stream, BoxError> {
        let Some(through) = self.through else {
            return Ok(MaybeHttpsStream::Http(self.connector.oneshot(server).await?));
        };
        through.dial(with_port(&server)?).await.map_err(|error| {
            let error = anyhow::Error::from_boxed(explain(error));
            format!("the proxy {}: {error:#}", through.proxy.uri()).into()
        })
    }
}

impl Through {
    async fn dial(&self, server: Uri) -> Result<Stream, BoxError> {
        // Connected to first: what goes wrong in that is lost inside of the handshake.
        let mut stream = Some(self.connector.clone().oneshot(self.address.clone()).await?);
        let connected = tower::service_fn(move |_: Uri| {
            std::future::ready(stream.take().ok_or_else(|| std::io::Error::other("connected once")))
        });
        if self.is_socks() {
            let mut socks = SocksV5::new(self.address.clone(), connected);
            if let Some((user, password)) = self.proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            return Ok(socks.oneshot(server).await?);
        }
        let mut tunnel = Tunnel::new(self.address.clone(), connected);
        if let Some(header) = self.proxy.basic_auth() {
            tunnel = tunnel.with_auth(header.clone());
        }
        Ok(tunnel.oneshot(server).await?)
    }

    fn is_socks(&self) -> bool {
        self.proxy.uri().scheme_str() == Some("socks5")
    }
}

impl Service<Uri> for Dialler {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        Box::pin(self.clone().dial(server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which proxy is used for a server, in an environment.
    fn found(server: &str, environment: &[(&str, &str)]) -> String {
        let variable = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match of_environment(&server.parse().unwrap(), variable) {
            Ok(proxy) => proxy.map(|proxy| proxy.uri().to_string()).unwrap_or_default(),
            Err(error) => format!("{error:#}"),
        }
    }

    const SECURE: &str = "https://api.example:6443/";

    #[rstest::rstest]
    #[case::nothing(SECURE, &[], "")]
    #[case::of_the_scheme(SECURE, &[("HTTPS_PROXY", "http://a:3128"), ("HTTP_PROXY", "http://b")], "http://a:3128/")]
    #[case::of_the_other_scheme(SECURE, &[("HTTP_PROXY", "http://b")], "")]
    #[case::without_tls("http://api.example/", &[("HTTP_PROXY", "http://b:1")], "http://b:1/")]
    #[case::small_letters(SECURE, &[("https_proxy", "http://a:1")], "http://a:1/")]
    #[case::large_letters_first(SECURE, &[("https_proxy", "http://a:1"), ("HTTPS_PROXY", "http://b:1")], "http://b:1/")]
    #[case::empty(SECURE, &[("HTTPS_PROXY", ""), ("https_proxy", "socks5://a:1")], "socks5://a:1/")]
    #[case::no_scheme(SECURE, &[("HTTPS_PROXY", "a:3128")], "http://a:3128/")]
    #[case::all_proxy_is_not_known_to_go(SECURE, &[("ALL_PROXY", "http://a")], "")]
    #[case::not_for_localhost("https://localhost:6443", &[("HTTPS_PROXY", "http://a")], "")]
    #[case::not_for_loopback("https://127.0.0.2:6443", &[("HTTPS_PROXY", "http://a")], "")]
    #[case::not_for_loopback_v6("https://[::1]:6443", &[("HTTPS_PROXY", "http://a")], "")]
    #[case::unusable(SECURE, &[("HTTPS_PROXY", "ftp://a")],
        "HTTPS_PROXY: the URL of a proxy begins with http://, https:// or socks5://, and a host follows")]
    fn the_environment_names_a_proxy(
        #[case] server: &str,
        #[case] environment: &[(&str, &str)],
        #[case] expected: &str,
    ) {
        assert_eq!(found(server, environment), expected);
    }

    #[rstest::rstest]
    #[case::host("https://api.example:6443", "api.example", true)]
    #[case::another_host("https://api.example:6443", "pi.example,api.exampl", false)]
    #[case::subdomain("https://api.example:6443", "example", true)]
    #[case::subdomain_with_a_dot("https://api.example:6443", "a, .example ,b", true)]
    #[case::subdomain_with_a_star("https://api.example:6443", "*.example", true)]
    #[case::large_letters("https://api.example:6443", "API.Example", true)]
    #[case::all("https://api.example:6443", "*", true)]
    #[case::all_and_an_address("https://10.0.0.1:6443", "a, *", true)]
    #[case::port("https://api.example:6443", "api.example:6443", true)]
    #[case::another_port("https://api.example:6443", "api.example:443", false)]
    #[case::port_of_the_scheme("https://api.example", "api.example:443", true)]
    #[case::address("https://10.0.0.1:6443", "10.0.0.1", true)]
    #[case::address_and_port("https://10.0.0.1:6443", "10.0.0.1:6443", true)]
    #[case::network("https://10.96.0.1", "192.168.0.0/16,10.96.0.0/12", true)]
    #[case::another_network("https://10.96.0.1", "192.168.0.0/16", false)]
    #[case::v6("https://[fd00::1]:6443", "fd00::1", true)]
    #[case::v6_network("https://[fd00::1]:6443", "fd00::/64", true)]
    #[case::v6_and_port("https://[fd00::1]:6443", "[fd00::1]:6443", true)]
    #[case::v6_and_another_port("https://[fd00::1]:6443", "[fd00::1]:443", false)]
    fn no_proxy_names_servers(#[case] server: &str, #[case] list: &str, #[case] direct: bool) {
        let proxy = found(server, &[("HTTPS_PROXY", "http://a:1"), ("no_proxy", list)]);
        assert_eq!(proxy.is_empty(), direct, "{proxy}");
    }

    #[test]
    fn ports_follow_from_the_scheme() {
        for (url, port) in [("http://a", 80), ("https://a", 443), ("socks5://a", 1080), ("socks5://a:9", 9)] {
            let address = with_port(parse(url).unwrap().uri()).unwrap();
            assert_eq!(address.port_u16(), Some(port), "{address}");
        }
    }
}
