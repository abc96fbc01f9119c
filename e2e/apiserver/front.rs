//! A front end of the stub server that ends TLS.

use crate::certificates::Identity;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Certificates of clients, by how they came.
type Clients = Arc<Mutex<Vec<Vec<u8>>>>;

/// Ends TLS and passes on what is inside.
pub(crate) struct TlsFront {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    clients: Clients,
    accepting: JoinHandle<()>,
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
        let clients = Clients::default();
        let accepting = tokio::spawn(accept(listener, config.clone(), clients.clone(), behind));
        TlsFront { address, config, clients, accepting }
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
        self.clients.lock().unwrap().iter().any(|shown| shown[..] == client.certificate.der()[..])
    }
}

async fn accept(
    listener: TcpListener,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    clients: Clients,
    behind: SocketAddr,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = TlsAcceptor::from(config.lock().unwrap().clone());
        let clients = clients.clone();
        tokio::spawn(async move {
            // Clients that do not trust us hang up.
            let Ok(mut outside) = acceptor.accept(stream).await else { return };
            let shown = outside.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
            clients.lock().unwrap().extend(shown.map(|client| client.to_vec()));
            let mut inside = TcpStream::connect(behind).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
        });
    }
}
