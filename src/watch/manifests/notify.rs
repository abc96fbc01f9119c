//! Hearing of changes to files, through inotify.
//!
//! Folders are watched, never files: editors and ConfigMap volumes put a new file in the old one's
//! place, and a watch of the file would stay with the old one. Nothing depends on hearing of every
//! change, since the files are looked at from time to time as well.

use super::folder::is_manifest;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

/// Changes come in groups; this much silence ends one.
const QUIET: Duration = Duration::from_millis(50);
/// How long a file that is written in place may keep its writer waiting for its next words.
const WRITING: Duration = Duration::from_secs(2);
/// No group of changes is longer than this, however busy the folder.
const LONGEST: Duration = Duration::from_secs(5);

/// The link that ConfigMap volumes exchange to replace all of their files at once.
const CONFIG_MAP_DATA: &str = "..data";

/// Listens to the folders of manifests.
#[derive(Debug)]
pub(super) struct Notifier {
    /// What is watched: a folder, and the one file of it that counts if not all do.
    targets: Vec<Target>,
    /// `None` if the kernel grants no more instances; then only looking helps.
    inotify: Option<AsyncFd<Handle>>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    group: Option<Group>,
}

#[derive(Debug)]
struct Target {
    folder: PathBuf,
    file: Option<OsString>,
}

/// Changes that belong together.
#[derive(Debug)]
struct Group {
    touched: BTreeSet<PathBuf>,
    /// Files that somebody writes to and has not closed.
    open: BTreeSet<PathBuf>,
    started: Instant,
    latest: Instant,
}

impl Group {
    fn end(&self) -> Instant {
        let patience = if self.open.is_empty() { QUIET } else { WRITING };
        (self.latest + patience).min(self.started + LONGEST)
    }
}

/// tokio asks for a raw descriptor, nix gives a borrowed one.
#[derive(Debug)]
struct Handle(Inotify);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Notifier {
    /// Starts to listen. Without inotify, nothing will ever be heard.
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let inotify = open()
            .map_err(|error| warn!(%error, "no inotify: changes of manifests are noticed with a delay"))
            .ok();
        let targets = paths.iter().map(|path| Target::of(path)).collect();
        let mut notifier = Notifier { targets, inotify, folders: HashMap::new(), group: None };
        notifier.renew();
        notifier
    }

    /// Watches the folders that have come, or come back, since the last time.
    pub(super) fn renew(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        for target in &self.targets {
            // A folder that is not there now may be there the next time.
            if let Ok(watch) = inotify.get_ref().0.add_watch(&target.folder, events) {
                self.folders.insert(watch, target.folder.clone());
            }
        }
    }

    /// Waits for a group of changes to end, and tells which files they were about; or for nothing
    /// to happen for so long, and tells that. While somebody is writing it never gives up early: a
    /// look at the files just then would find half of what is being written.
    pub(super) async fn touched(&mut self, idle: Duration) -> BTreeSet<PathBuf> {
        let idle_until = Instant::now() + idle;
        loop {
            let end = self.group.as_ref().map_or(idle_until, Group::end);
            match timeout_at(end, self.events()).await {
                Ok(events) => self.note(events),
                Err(_) => return self.group.take().map(|group| group.touched).unwrap_or_default(),
            }
        }
    }

    /// What the kernel has to tell, once there is something.
    async fn events(&self) -> Vec<InotifyEvent> {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            match ready.get_inner().0.read_events() {
                Ok(events) => return events,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Nothing else can come from a good descriptor, and looking at the files goes on.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    fn note(&mut self, events: Vec<InotifyEvent>) {
        let now = Instant::now();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.folders.remove(&event.wd);
                continue;
            }
            let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let path = self.folders.get(&event.wd).zip(event.name.as_deref());
            let path = path.filter(|(folder, name)| self.counts(folder, name)).map(|(f, name)| f.join(name));
            if path.is_none() && !overflow {
                continue;
            }
            let group = self.group.get_or_insert_with(|| Group {
                touched: BTreeSet::new(),
                open: BTreeSet::new(),
                started: now,
                latest: now,
            });
            group.latest = now;
            let Some(path) = path else { continue };
            if event.mask.contains(AddWatchFlags::IN_MODIFY) {
                group.open.insert(path.clone());
            } else {
                group.open.remove(&path);
            }
            group.touched.insert(path);
        }
    }

    fn counts(&self, folder: &Path, name: &OsStr) -> bool {
        let is_for = |target: &Target| match &target.file {
            Some(file) => file == name,
            None => is_manifest(name),
        };
        name == CONFIG_MAP_DATA || self.targets.iter().any(|target| target.folder == folder && is_for(target))
    }
}

#[expect(
    deprecated,
    reason = "the successor is unsafe; this handle owns its descriptor and never changes it"
)]
fn open() -> io::Result<AsyncFd<Handle>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    AsyncFd::with_interest(Handle(inotify), Interest::READABLE)
}

impl Target {
    fn of(path: &Path) -> Self {
        if path.is_dir() {
            return Target { folder: path.to_owned(), file: None };
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Target { folder: folder.to_owned(), file: path.file_name().map(OsStr::to_owned) }
    }
}
