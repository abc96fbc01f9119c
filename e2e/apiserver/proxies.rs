//! An API server behind a proxy, at a name that only the proxy knows.

use crate::certificates::{Identity, authority, called, with};
use crate::front::{TlsFront, server};
use crate::objects::service;
use crate::picture::{Picture, hurried};
use crate::server::Stub;
use kube_proxy_rs::watch::client::{ClientOptions, Connection};
use rcgen::SanType;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const WEB: &str = "service shop/web 10.96.0.10";
const NAME: &str = "api.invalid";

/// A proxy that connects every client to one address, and notes what it was asked for.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http,
    Socks5,
    /// It refuses every request.
    Refusing,
}

impl Proxy {
    async fn start(kind: Kind, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let notes = asked.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut outside, _)) = listener.accept().await {
                let notes = notes.clone();
                tokio::spawn(async move {
                    let asked = match kind {
                        Kind::Http => connect(&mut outside, "200 Connection established").await,
                        Kind::Refusing => connect(&mut outside, "403 Forbidden").await,
                        Kind::Socks5 => socks5(&mut outside).await,
                    };
                    notes.lock().unwrap().push(asked);
                    let mut inside = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Proxy { address, asked, accepting }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads a CONNECT and answers it; what it said, without the lines that tell nothing.
async fn connect(stream: &mut TcpStream, answer: &str) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
    let head = String::from_utf8(head).unwrap();
    let lines = head.lines().filter(|line| !line.is_empty() && !line.starts_with("Host:"));
    lines.collect::<Vec<_>>().join(", ")
}

/// A SOCKS5 server that takes any user and every password.
async fn socks5(stream: &mut TcpStream) -> String {
    let mut asked = String::from("SOCKS5");
    let offered = read(stream, 2).await[1];
    let methods = read(stream, offered.into()).await;
    let method = methods.into_iter().max().unwrap();
    stream.write_all(&[5, method]).await.unwrap();
    if method == 2 {
        let user = read(stream, 2).await[1];
        asked += &format!(" {}", text(read(stream, user.into()).await));
        let password = read(stream, 1).await[0];
        asked += &format!(":{}", text(read(stream, password.into()).await));
        stream.write_all(&[1, 0]).await.unwrap();
    }
    let kind = read(stream, 4).await[3];
    let host = match kind {
        1 => read(stream, 4).await.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        _ => {
            let length = read(stream, 1).await[0];
            text(read(stream, length.into()).await)
        }
    };
    let port = stream.read_u16().await.unwrap();
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    format!("{asked} {host}:{port}")
}

async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// The stub server behind TLS, under a name that does not resolve.
struct Hidden {
    server: Stub,
    front: TlsFront,
    root: Identity,
    folder: TempDir,
}

impl Hidden {
    async fn start() -> Self {
        let root = Identity::self_signed(authority("root"));
        let name = vec![SanType::DnsName(NAME.try_into().unwrap())];
        let own = with(called("server"), |params| params.subject_alt_names = name);
        let server_ = Stub::start();
        server_.put(service("web", 10));
        let front = TlsFront::start(server(&Identity::signed_by(own, &root)), server_.address()).await;
        Hidden { server: server_, front, root, folder: TempDir::new().unwrap() }
    }

    fn kubeconfig(&self, server: &str, proxy: &str) -> PathBuf {
        let authority = self.folder.path().join("ca.crt");
        std::fs::write(&authority, self.root.pem()).unwrap();
        let config = json!({
            "current-context": "stub",
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "me"}}],
            "clusters": [{"name": "stub", "cluster": {
                "server": server, "certificate-authority": authority, "proxy-url": proxy,
            }}],
            "users": [{"name": "me", "user": {"token": "secret"}}],
        });
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    async fn arrives_through(&self, server: &str, proxy: &str) {
        let mut picture = Picture::watch(&self.kubeconfig(server, proxy), hurried()).await;
        picture.until_it_shows(&[WEB]).await;
    }

    async fn complaint(&self, server: &str, proxy: &str) -> String {
        let options = ClientOptions { kubeconfig: Some(self.kubeconfig(server, proxy)), master: None };
        let connection = match Connection::open(&options).await {
            Ok(connection) => connection,
            Err(error) => return format!("{error:#}"),
        };
        let request = http::Request::get("/api/v1/services").body(Vec::new()).unwrap();
        let error = connection.client().request_text(request).await.unwrap_err();
        format!("{:#}", anyhow::Error::from(error))
    }
}

#[tokio::test]
async fn an_http_proxy_is_asked_for_a_tunnel() {
    let hidden = Hidden::start().await;
    let proxy = Proxy::start(Kind::Http, hidden.front.address()).await;
    hidden.arrives_through(&format!("https://{NAME}:6443"), &format!("http://{}", proxy.address)).await;
    let asked = proxy.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|asked| asked == "CONNECT api.invalid:6443 HTTP/1.1"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn ports_that_are_not_said_are_those_of_the_scheme() {
    let hidden = Hidden::start().await;
    let proxy = Proxy::start(Kind::Http, hidden.front.address()).await;
    hidden.arrives_through(&format!("https://{NAME}"), &format!("http://{}", proxy.address)).await;
    assert_eq!(proxy.asked()[0], "CONNECT api.invalid:443 HTTP/1.1");
    let proxy = Proxy::start(Kind::Http, hidden.server.address()).await;
    hidden.arrives_through(&format!("http://{NAME}"), &format!("http://{}", proxy.address)).await;
    assert_eq!(proxy.asked()[0], "CONNECT api.invalid:80 HTTP/1.1");
}

#[tokio::test]
async fn a_proxy_gets_the_user_and_the_password_of_its_url() {
    let hidden = Hidden::start().await;
    let server = format!("https://{NAME}:6443");
    let proxy = Proxy::start(Kind::Http, hidden.front.address()).await;
    hidden.arrives_through(&server, &format!("http://me:p%40ss@{}", proxy.address)).await;
    // base64 of me:p@ss
    let expected = "CONNECT api.invalid:6443 HTTP/1.1, Proxy-Authorization: Basic bWU6cEBzcw==";
    assert_eq!(proxy.asked()[0], expected);
    let proxy = Proxy::start(Kind::Socks5, hidden.front.address()).await;
    hidden.arrives_through(&server, &format!("socks5://me:p%40ss@{}", proxy.address)).await;
    assert_eq!(proxy.asked()[0], "SOCKS5 me:p@ss api.invalid:6443");
}

#[tokio::test]
async fn a_socks5_proxy_resolves_names() {
    let hidden = Hidden::start().await;
    let proxy = Proxy::start(Kind::Socks5, hidden.front.address()).await;
    hidden.arrives_through(&format!("https://{NAME}:6443"), &format!("socks5://{}", proxy.address)).await;
    assert_eq!(proxy.asked()[0], "SOCKS5 api.invalid:6443");
}

#[tokio::test]
async fn a_proxy_may_speak_tls_itself() {
    let hidden = Hidden::start().await;
    let proxy = Proxy::start(Kind::Http, hidden.front.address()).await;
    let identity = Identity::signed_by(called("proxy"), &hidden.root);
    let secured = TlsFront::start(server(&identity), proxy.address).await;
    let server_ = format!("https://{NAME}:6443");
    hidden.arrives_through(&server_, &secured.url()).await;
    assert_eq!(proxy.asked()[0], "CONNECT api.invalid:6443 HTTP/1.1");
    secured.become_server(server(&Identity::self_signed(called("thief"))));
    let error = hidden.complaint(&server_, &secured.url()).await;
    assert!(error.contains(&secured.url()) && error.contains("no authority that we trust"), "{error}");
}

#[tokio::test]
async fn a_proxy_that_does_not_connect_us_is_named() {
    let hidden = Hidden::start().await;
    let server = format!("https://{NAME}:6443");
    let proxy = Proxy::start(Kind::Refusing, hidden.front.address()).await;
    let error = hidden.complaint(&server, &format!("http://me:secret@{}", proxy.address)).await;
    assert!(error.contains(&format!("the proxy http://{}/", proxy.address)), "{error}");
    assert!(!error.contains("secret"), "{error}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for scheme in ["http", "https", "socks5"] {
        let error = hidden.complaint(&server, &format!("{scheme}://{closed}")).await;
        assert!(error.contains("the proxy") && error.contains("Connection refused"), "{error}");
    }
}

#[rstest::rstest]
#[case::scheme("ftp://proxy.example:21")]
#[case::no_scheme("proxy.example:3128")]
#[case::no_host("http://")]
#[case::nonsense("http://a b")]
#[case::socks4("socks4://proxy.example:1080")]
#[tokio::test]
async fn a_proxy_that_cannot_be_used_is_refused_at_the_start(#[case] proxy: &str) {
    let hidden = Hidden::start().await;
    let error = hidden.complaint(&format!("https://{NAME}:6443"), proxy).await;
    let words = "proxy-url: the URL of a proxy begins with http://, https:// or socks5://";
    assert!(error.contains(words) && error.contains("kubeconfig"), "{error}");
}
