//! A lock that one process of a network namespace can have.
//!
//! It is an abstract Unix socket: the kernel keeps such names per network namespace, whatever file systems and
//! processes two containers see of each other; it needs no file, and it goes with its process, also with a killed one.

use std::convert::Infallible;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

/// A holder that is busy answers later; then only its process is known.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest description of a holder.
const MOST_BYTES: u64 = 1024;
/// The root user.
const ROOT: u32 = 0;

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct NetnsLock(UnixListener);

/// Who has the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; none if it is of another PID namespace, where we cannot see it.
    pub pid: Option<i32>,
    /// Its user.
    pub user: u32,
    /// What it says of itself; empty if it does not answer.
    pub says: String,
}

impl Holder {
    /// Whether it could do what we do: whatever other users bind is no lock.
    #[must_use]
    pub fn is_root_or_us(&self) -> bool {
        [ROOT, nix::unistd::geteuid().as_raw()].contains(&self.user)
    }
}

fn address(name: &str) -> String {
    format!("\0{name}")
}

impl NetnsLock {
    /// Takes the lock of this name in the calling thread's network namespace; `None` if another process has it.
    ///
    /// # Errors
    /// If this process may not have sockets of this kind.
    pub fn take(name: &str) -> io::Result<Option<NetnsLock>> {
        match UnixListener::bind(address(name)) {
            Ok(listener) => Ok(Some(NetnsLock(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Describes the holder to each process that connects. Never ends.
    pub async fn describe(&self, says: &str) -> Infallible {
        loop {
            match self.0.accept().await {
                // It fits into the socket's buffer, so this does not wait. A peer that has gone misses it.
                Ok((mut stream, _)) => _ = stream.write_all(says.as_bytes()).await,
                Err(_) => sleep(PATIENCE).await,
            }
        }
    }
}

/// Asks who has the lock of this name in the calling thread's network namespace.
///
/// # Errors
/// If no process has it, or the holder cannot be asked.
pub async fn holder(name: &str) -> io::Result<Holder> {
    let stream = UnixStream::connect(address(name)).await?;
    let peer = stream.peer_cred()?;
    let mut says = Vec::new();
    // Whatever came until then counts.
    let _ = timeout(PATIENCE, stream.take(MOST_BYTES).read_to_end(&mut says)).await;
    let says = String::from_utf8_lossy(&says).escape_debug().to_string();
    Ok(Holder { pid: peer.pid().filter(|pid| *pid > 0), user: peer.uid(), says })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(test: &str) -> String {
        format!("kube-proxy-rs-test-{test}-{}", std::process::id())
    }

    #[tokio::test]
    async fn one_has_the_lock_until_it_goes_and_says_who_it_is() {
        let name = name("one");
        let lock = NetnsLock::take(&name).unwrap().unwrap();
        assert!(NetnsLock::take(&name).unwrap().is_none());
        let holder = tokio::select! {
            holder = holder(&name) => holder.unwrap(),
            never = lock.describe("mode iptables") => match never {},
        };
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!((holder.pid, holder.says.as_str()), (Some(pid), "mode iptables"));
        assert!(holder.is_root_or_us());
        drop(lock);
        assert!(super::holder(&name).await.is_err());
        assert!(NetnsLock::take(&name).unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_does_not_answer_is_known_by_its_process() {
        let name = name("busy");
        let _lock = NetnsLock::take(&name).unwrap().unwrap();
        let holder = holder(&name).await.unwrap();
        assert!(holder.pid.is_some() && holder.says.is_empty(), "{holder:?}");
    }
}
