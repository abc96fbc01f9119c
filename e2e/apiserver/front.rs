//! A front end of the stub server that ends TLS.

use crate::certificates::Identity;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Ends TLS and passes on what is inside.
pub(crate) struct TlsFront {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    seen: Arc<Seen>,
    accepting: JoinHandle<()>,
}

/// What has come from clients.
#[derive(Default)]
struct Seen {
    handshakes: AtomicUsize,
    /// Certificates of clients, by how they came.
    clients: Mutex<Vec<Vec<u8>>>,
    hang_up: Notify,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Shows a certificate whatever its key is.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A server that shows this certificate.
pub(crate) fn server(identity: &Identity) -> ServerConfig {
    server_with_key_of(identity, identity)
}

/// A server that shows one certificate and has the key of another.
pub(crate) fn server_with_key_of(shown: &Identity, owned: &Identity) -> ServerConfig {
    let key = rustls::crypto::ring::sign::any_supported_type(&owned.key()).unwrap();
    let resolver = Arc::new(Shown(Arc::new(CertifiedKey::new(shown.chain(), key))));
    ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver)
}

/// A server of HTTP/2.
pub(crate) fn server_of_http2(identity: &Identity) -> ServerConfig {
    let mut config = server(identity);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A server that lets in clients of one authority only.
pub(crate) fn server_for_clients_of(identity: &Identity, authority: &Identity) -> ServerConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).unwrap();
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let builder = ServerConfig::builder().with_client_cert_verifier(clients);
    builder.with_single_cert(identity.chain(), identity.key()).unwrap()
}

impl TlsFront {
    pub(crate) async fn start(config: ServerConfig, behind: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(Mutex::new(Arc::new(config)));
        let seen = Arc::<Seen>::default();
        let accepting = tokio::spawn(accept(listener, config.clone(), seen.clone(), behind));
        TlsFront { address, config, seen, accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// From the next connection on.
    pub(crate) fn become_server(&self, config: ServerConfig) {
        *self.config.lock().unwrap() = Arc::new(config);
    }

    /// Whether a client has shown this certificate.
    pub(crate) fn has_seen(&self, client: &Identity) -> bool {
        self.seen.clients.lock().unwrap().iter().any(|shown| shown[..] == client.certificate.der()[..])
    }

    /// How many connections there have been.
    pub(crate) fn handshakes(&self) -> usize {
        self.seen.handshakes.load(Ordering::Relaxed)
    }

    /// Ends all connections.
    pub(crate) fn hang_up(&self) {
        self.seen.hang_up.notify_waiters();
    }
}

async fn accept(
    listener: TcpListener,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    seen: Arc<Seen>,
    behind: SocketAddr,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = TlsAcceptor::from(config.lock().unwrap().clone());
        let seen = seen.clone();
        tokio::spawn(async move {
            // Clients that do not trust us hang up.
            let Ok(mut outside) = acceptor.accept(stream).await else { return };
            let shown = outside.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
            seen.clients.lock().unwrap().extend(shown.map(|client| client.to_vec()));
            seen.handshakes.fetch_add(1, Ordering::Relaxed);
            let mut inside = TcpStream::connect(behind).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut outside, &mut inside) => {}
                () = seen.hang_up.notified() => {}
            }
        });
    }
}
