//! A place for a server that starts later.

use super::{StubApi, write_kubeconfig};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use tokio::net::TcpSocket;

/// An address at which no server is listening yet.
pub struct Absent {
    socket: TcpSocket,
    address: SocketAddr,
}

impl Absent {
    /// Reserves an address; connections to it are refused.
    ///
    /// # Errors
    /// Fails when the loopback interface has no free port.
    pub fn reserve() -> std::io::Result<Self> {
        Absent::reserve_on(Ipv4Addr::LOCALHOST)
    }

    pub(super) fn reserve_on(address: Ipv4Addr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((address, 0).into())?;
        let address = socket.local_addr()?;
        Ok(Absent { socket, address })
    }

    /// Where it will listen.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for this address into a folder and returns its path.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> std::io::Result<PathBuf> {
        write_kubeconfig(folder, &self.url())
    }

    /// Starts the server there.
    ///
    /// # Errors
    /// Fails when the socket cannot listen.
    pub fn appear(self) -> std::io::Result<StubApi> {
        Ok(StubApi::serve(self.socket.listen(1024)?, self.address))
    }
}
