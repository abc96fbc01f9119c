//! Whether somebody has used the legacy tools.
//!
//! The kernel tells nobody of changes to a legacy table, but the tools take turns by a lock on a file,
//! and inotify tells of each use of that. Programs that write to the tables without this lock are not seen,
//! among them those in containers that do not have the node's file.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// The tools' own default.
const LOCK_FILE: &str = "/run/xtables.lock";

/// Watches the lock file. Its clones watch the same, and each tells for itself.
#[derive(Clone, Debug)]
pub(super) struct LockWatch {
    heard: Arc<Mutex<Heard>>,
    /// Uses by others that have been told.
    told: u32,
}

#[derive(Debug)]
struct Heard {
    file: PathBuf,
    /// Made when it is first needed, and again when the file is another one.
    inotify: Option<Inotify>,
    /// It was said that there is none.
    is_deaf: bool,
    uses: u32,
}

/// There is one lock, and each use of it by this process is to be known as its own.
static OF_THIS_PROCESS: LazyLock<LockWatch> = LazyLock::new(|| LockWatch::on(LOCK_FILE.into()));

impl LockWatch {
    pub(super) fn of_this_process() -> Self {
        OF_THIS_PROCESS.clone()
    }

    fn on(file: PathBuf) -> Self {
        LockWatch {
            heard: Arc::new(Mutex::new(Heard { file, inotify: None, is_deaf: false, uses: 0 })),
            told: 0,
        }
    }

    /// Whether others have let go of the lock since this was last asked, or may have: the first answer is
    /// yes, and each as long as the lock cannot be watched.
    pub(super) fn was_used(&mut self) -> bool {
        self.begin_own_use();
        let uses = self.with(|heard| heard.uses);
        std::mem::replace(&mut self.told, uses) != uses
    }

    /// What comes between these two is this process's own use of the lock. A program that waits for it at
    /// the same time, and is done before this is over, is not seen.
    pub(super) fn begin_own_use(&self) {
        self.with(|heard| {
            let is_news = heard.hear();
            heard.uses = heard.uses.wrapping_add(is_news.into());
        });
    }

    /// See [`LockWatch::begin_own_use`].
    pub(super) fn end_own_use(&self) {
        let _: bool = self.with(Heard::hear);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Heard) -> T) -> T {
        act(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Heard {
    /// Whether there is news. Without a watch there may have been, by others.
    fn hear(&mut self) -> bool {
        if let Some(Ok(is_news)) = self.inotify.as_ref().map(read) {
            return is_news;
        }
        self.uses = self.uses.wrapping_add(1);
        self.inotify = match watch(&self.file) {
            Ok(inotify) => Some(inotify),
            Err(error) => {
                if !std::mem::replace(&mut self.is_deaf, true) {
                    let file = self.file.display();
                    tracing::warn!(%error, %file, "who uses legacy iptables is not seen: large tables are read in each sync period");
                }
                None
            }
        };
        false
    }
}

/// Watches a lock file; one that is not there is made, as the tools make it.
fn watch(file: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    // Who writes closes the file, and with it lets go of the lock, when all is written.
    inotify.add_watch(file, AddWatchFlags::IN_CLOSE)?;
    Ok(inotify)
}

/// Whether the file was closed. An error if it is another one now.
fn read(inotify: &Inotify) -> nix::Result<bool> {
    let mut is_news = false;
    loop {
        match inotify.read_events() {
            Ok(events) if events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)) => {
                return Err(Errno::ENOENT);
            }
            Ok(_) => is_news = true,
            Err(Errno::EAGAIN) => return Ok(is_news),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    #[test]
    fn the_tools_let_go_of_the_lock_when_they_have_written_and_listing_needs_none() {
        in_fresh_netns(|| {
            let folder = tempfile::tempdir().unwrap();
            let mut watch = LockWatch::on(folder.path().join("lock"));
            watch.was_used();
            for (command, uses) in
                [("iptables-legacy -w -t nat -N A", true), ("iptables-legacy-save -t nat > /dev/null", false)]
            {
                let file = folder.path().join("lock");
                run(&format!("XTABLES_LOCKFILE={} {command}", file.display()));
                assert_eq!(watch.was_used(), uses, "{command}");
            }
        });
    }

    /// Another process uses it: what this one opens, the children of other tests may hold for a while.
    fn use_it(file: &Path) {
        run(&format!(": < {}", file.display()));
    }

    #[test]
    fn each_use_by_others_is_told_once_to_each_who_asks() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lock");
        let mut first = LockWatch::on(file.clone());
        assert!(first.was_used(), "nothing is known yet");
        let mut second = first.clone();
        assert!(!first.was_used());
        use_it(&file);
        for watch in [&mut first, &mut second] {
            assert!(watch.was_used());
            assert!(!watch.was_used());
        }
        std::fs::remove_file(&file).unwrap();
        assert!(first.was_used(), "the next lock file is another one");
        assert!(!first.was_used());
        use_it(&file);
        assert!(first.was_used());
    }

    #[test]
    fn our_own_use_is_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lock");
        let mut watch = LockWatch::on(file.clone());
        watch.was_used();
        let other = watch.clone();
        for others_come_first in [true, false] {
            if others_come_first {
                use_it(&file);
            }
            other.begin_own_use();
            use_it(&file);
            other.end_own_use();
            assert_eq!(watch.was_used(), others_come_first);
        }
    }

    #[test]
    fn a_lock_that_cannot_be_watched_may_be_used_all_the_time() {
        let mut watch = LockWatch::on("/proc/no-such-folder/lock".into());
        assert!(watch.was_used() && watch.was_used());
    }
}
