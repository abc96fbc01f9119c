//! Listening sockets, with upstream's idea of what an address means.

use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 1024;
/// A peer that acknowledges or takes nothing for so long is given up by the kernel, also after we have closed.
const USER_TIMEOUT_MS: u32 = 10_000;

/// Listens on an address. The unspecified address of either family means both families, where
/// the host has IPv6 (kube-proxy).
///
/// # Errors
/// Why the address cannot be listened on.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return bind_exclusive(address);
    }
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
    match listen(TcpSocket::new_v6(), both, Some(false)) {
        Err(error) if no_ipv6(&error) => {
            listen(TcpSocket::new_v4(), (Ipv4Addr::UNSPECIFIED, address.port()).into(), None)
        }
        outcome => outcome,
    }
}

/// Listens on an address of one family and leaves the other family alone.
///
/// # Errors
/// Why the address cannot be listened on.
pub fn bind_exclusive(address: SocketAddr) -> io::Result<TcpListener> {
    match address {
        SocketAddr::V4(_) => listen(TcpSocket::new_v4(), address, None),
        SocketAddr::V6(_) => listen(TcpSocket::new_v6(), address, Some(true)),
    }
}

fn listen(
    socket: io::Result<TcpSocket>,
    address: SocketAddr,
    v6_only: Option<bool>,
) -> io::Result<TcpListener> {
    let socket = socket?;
    socket.set_reuseaddr(true)?;
    if let Some(only) = v6_only {
        setsockopt(&socket, sockopt::Ipv6V6Only, &only)?;
    }
    // Connections inherit it.
    setsockopt(&socket, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The kernel was built or booted without IPv6, or it was turned off on the loopback device.
fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn either_wildcard_listens_on_both_families() {
        for wildcard in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let listener = bind((wildcard, 0).into()).unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            if listener.local_addr().unwrap().is_ipv6() {
                TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn an_exclusive_wildcard_leaves_the_port_to_the_other_family() {
        let Ok(six) = bind_exclusive((Ipv6Addr::UNSPECIFIED, 0).into()) else {
            eprintln!("skipped: this host has no IPv6");
            return;
        };
        let port = six.local_addr().unwrap().port();
        bind_exclusive((Ipv4Addr::UNSPECIFIED, port).into()).unwrap();
    }
}
