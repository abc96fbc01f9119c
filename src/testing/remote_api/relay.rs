//! The way to the server from another network namespace: a port on that one's loopback. Bytes pass
//! as they are, so TLS stays between the program and the server.

use anyhow::{Context as _, Result};
use kube::config::{Cluster, Kubeconfig};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Host and port.
pub(super) type Target = (String, u16);

/// Carries the connections of a listener to the server, until the runtime ends. A socket belongs to
/// the network namespace in which it was opened: the listener to the program's, what is opened here
/// to that of the runtime's thread.
pub(super) async fn run(
    listener: std::net::TcpListener,
    target: Target,
    received: Arc<AtomicU64>,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (near, _) = listener.accept().await?;
        let (target, received) = (target.clone(), received.clone());
        tokio::spawn(async move {
            let far = TcpStream::connect((target.0.as_str(), target.1)).await?;
            // Changes are small, and their time is what is measured.
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            carry(near, far, &received).await
        });
    }
}

/// Carries bytes both ways, and counts those that the server sends.
async fn carry(mut near: TcpStream, mut far: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let (mut near_read, mut near_write) = near.split();
    let (mut far_read, mut far_write) = far.split();
    let down = async {
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = far_read.read(&mut piece).await?;
            if count == 0 {
                return near_write.shutdown().await;
            }
            received.fetch_add(count as u64, Ordering::Relaxed);
            near_write.write_all(&piece[..count]).await?;
        }
    };
    let up = async {
        tokio::io::copy(&mut near_read, &mut far_write).await?;
        far_write.shutdown().await
    };
    tokio::try_join!(down, up).map(|_| ())
}

/// The kubeconfig with the relay for a server, and where the server is.
pub(super) fn rewrite(mut kubeconfig: Kubeconfig, relay: SocketAddr) -> Result<(Kubeconfig, Target)> {
    let cluster = current(&mut kubeconfig)?;
    let server = cluster.server.clone().unwrap_or_default();
    let url: http::Uri = server.parse().with_context(|| format!("server {server:?}"))?;
    let scheme = url.scheme_str().with_context(|| format!("server {server:?} does not say https or http"))?;
    let secure = scheme == "https";
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    cluster.server = Some(format!("{scheme}://{relay}{}", url.path().trim_end_matches('/')));
    if secure {
        // The server's certificate is for the name by which it was called before.
        cluster.tls_server_name.get_or_insert_with(|| host.clone());
    }
    cluster.proxy_url = None;
    Ok((kubeconfig, (host, port)))
}

/// The cluster of the current context.
fn current(kubeconfig: &mut Kubeconfig) -> Result<&mut Cluster> {
    let name = kubeconfig.current_context.clone().context("the kubeconfig has no current-context")?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context.as_ref());
    let context = context.with_context(|| format!("the kubeconfig has no context {name:?}"))?;
    let cluster = kubeconfig.clusters.iter_mut().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|cluster| cluster.cluster.as_mut());
    cluster.with_context(|| format!("the kubeconfig has no cluster {:?}", context.cluster))
}

/// Writes a file that only its owner may read: a kubeconfig opens a cluster.
pub(super) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
