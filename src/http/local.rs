//! The same over a Unix socket that only root can open: for questions of people on the node.

use super::{ACCEPT_RETRY, Answering, converse_by};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Conversations at a time; more have to wait.
const MAX_CONNECTIONS: usize = 8;
/// An answer is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nor is one read that is larger.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;
/// The mode of a folder that only its owner may enter.
const OWNER_ONLY: u32 = 0o700;
/// The root user.
const ROOT: u32 = 0;

/// Answers to paths and queries.
pub type LocalRoutes = Arc<dyn Fn(&str, &str) -> Answering + Send + Sync>;

/// A socket that is listened on. Its file goes with it.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: another process may have put its own in the place.
    file: (u64, u64),
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        if file(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(socket = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Makes the socket, in a folder that only its owner may enter. What a killed process left of it
/// is removed; a socket on which a process answers stays.
///
/// # Errors
/// If the folder cannot be written to, or another process listens there.
pub async fn bind_local(path: &Path) -> io::Result<LocalListener> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(OWNER_ONLY).create(folder)?;
        close_to_others(folder, path)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let listener = LocalListener { listener, path: path.to_owned(), file: file(path)? };
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Closes a folder to other users if it is ours and has nothing else in it: container runtimes mount empty ones that
/// every user may write to. `/run` itself, for example, stays as it is.
fn close_to_others(folder: &Path, socket: &Path) -> io::Result<()> {
    let found = fs::metadata(folder)?;
    if found.uid() != own_user() || found.mode() & 0o077 == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        if entry?.path() != socket {
            return Ok(());
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(OWNER_ONLY))
}

fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Serves the socket until dropped. A user other than root and our own gets no answer.
pub async fn serve_local(listener: LocalListener, routes: LocalRoutes) -> Infallible {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // The semaphore is never closed, so an error cannot come up; waiting again is harmless.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { continue };
        while connections.try_join_next().is_some() {}
        if let Some(stream) = accept(&listener.listener).await {
            connections.spawn(converse(stream, Arc::clone(&routes), permit));
        }
    }
}

/// The next client that may ask; `None` for one that may not, and after an error.
async fn accept(listener: &UnixListener) -> Option<UnixStream> {
    match listener.accept().await {
        Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| is_trusted(peer.uid())) => {
            return Some(stream);
        }
        Ok(_) => warn!("a user who is not root opened the control socket; no answer was given"),
        Err(error) => {
            debug!(%error, "cannot accept a connection");
            sleep(ACCEPT_RETRY).await;
        }
    }
    None
}

async fn converse(stream: UnixStream, routes: LocalRoutes, _permit: OwnedSemaphorePermit) {
    let answer = |request: hyper::Request<hyper::body::Incoming>| {
        routes(request.uri().path(), request.uri().query().unwrap_or(""))
    };
    converse_by(stream, PATIENCE, answer).await;
}

fn is_trusted(user: u32) -> bool {
    [ROOT, own_user()].contains(&user)
}

/// Asks a socket for a path; returns status and body. The answer of another user's process would prove nothing, so that
/// is not asked.
///
/// # Errors
/// When no process answers there, or not in time, or another user's process would.
pub async fn ask_local(socket: &Path, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let stream = UnixStream::connect(socket).await?;
    let (user, process) = stream.peer_cred().map(|peer| (peer.uid(), peer.pid().unwrap_or_default()))?;
    if !is_trusted(user) {
        return Err(io::Error::other(format!(
            "process {process} of user {user} listens there, and is not asked: it could say anything. If it is the proxy, \
             ask as its user (setpriv --reuid={user} --regid={user} --clear-groups kube-proxy-rs …)"
        )));
    }
    let exchange = async {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = hyper::Request::get(path).header("host", "control").body(Empty::<Bytes>::new());
        let ask = async {
            let response = sender.send_request(request.map_err(io::Error::other)?);
            let response = response.await.map_err(io::Error::other)?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            Ok((status, body.map_err(io::Error::other)?.to_bytes().to_vec()))
        };
        let mut ask = std::pin::pin!(ask);
        tokio::select! {
            answer = ask.as_mut() => answer,
            ended = connection => {
                ended.map_err(io::Error::other)?;
                // What came before the end still counts.
                ask.await
            }
        }
    };
    timeout(PATIENCE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Reply;

    fn echo() -> LocalRoutes {
        Arc::new(|path, query| {
            let text = format!("{path} {query}");
            Box::pin(async move { Reply::text(200, text) })
        })
    }

    #[tokio::test]
    async fn a_question_gets_its_answer_and_nobody_else_may_open_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let listener = bind_local(&path).await.unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, OWNER_ONLY));
        let _server = tokio::spawn(serve_local(listener, echo()));
        assert_eq!(ask_local(&path, "/a?b=c").await.unwrap(), (200, b"/a b=c".to_vec()));
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_folder_that_is_ours_alone_is_closed_to_others_and_one_that_is_shared_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let open_to_all = || fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        let path = folder.path().join("control.sock");
        open_to_all();
        drop(UnixListener::bind(&path).unwrap());
        let listener = bind_local(&path).await.unwrap();
        assert_eq!(mode(folder.path()), OWNER_ONLY, "only a socket that was left behind is in it");
        drop(listener);
        open_to_all();
        fs::write(folder.path().join("lock"), "of another program").unwrap();
        let _listener = bind_local(&path).await.unwrap();
        assert_eq!((mode(folder.path()), mode(&path)), (0o1777, 0o600));
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        let _live = bind_local(&path).await.unwrap();
        assert_eq!(bind_local(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn its_file_goes_with_it_and_another_ones_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = bind_local(&path).await.unwrap();
        assert!(timeout(Duration::ZERO, serve_local(listener, echo())).await.is_err());
        assert!(!path.exists());

        let first = bind_local(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind_local(&path).await.unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(bind_local(&path).await.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
