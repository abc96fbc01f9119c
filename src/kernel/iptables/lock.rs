//! The lock that the legacy tools of all programs take in turns, and who has it.

use crate::model::word;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// Its file.
const PATH: &str = "/run/xtables.lock";

/// Another program has the lock, for longer than a tool waits for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock {PATH}, which legacy iptables needs, is held by {holder}")]
pub struct LockHeld {
    /// Who.
    pub holder: LockHolder,
}

/// Who has the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockHolder(Option<(u32, String)>);

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, name)) => write!(f, "process {pid} ({})", word(name)),
            None => f.write_str("a process that cannot be seen from here, or that has just let it go"),
        }
    }
}

impl LockHeld {
    /// Whether that is what a tool says; then who it is.
    pub(super) fn said(words: &str) -> Option<LockHeld> {
        words.contains("xtables lock").then(|| LockHeld { holder: LockHolder::find() })
    }
}

impl LockHolder {
    fn find() -> LockHolder {
        let found = || {
            let file = locked_file(PATH)?;
            let named = |pid: u32| {
                Some((pid, fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned()))
            };
            let taker = taker(&fs::read_to_string("/proc/locks").ok()?, &file).and_then(named);
            taker.or_else(|| named(heir(&file)?))
        };
        LockHolder(found())
    }
}

/// A file as the kernel names it in lists of locks: device and inode.
fn locked_file(path: &str) -> Option<String> {
    let file = fs::metadata(path).ok()?;
    Some(format!("{:02x}:{:02x}:{}", libc::major(file.dev()), libc::minor(file.dev()), file.ino()))
}

/// The process that took a lock on a file, in `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 00:17:123 0 EOF`. A process
/// that waits for it has `->` after the number.
fn taker(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, of, ..] if *of == file => pid.parse().ok(),
            _ => None,
        }
    })
}

/// The process that has the lock because it inherited the descriptor, as far as we may look: shell scripts have a tool take
/// it, which ends.
fn heir(file: &str) -> Option<u32> {
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        let mut about = descriptors.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        about.any(|text| {
            text.lines()
                .any(|line| line.starts_with("lock:") && line.split_whitespace().any(|word| word == file))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "1: POSIX  ADVISORY  WRITE 10 00:17:123 0 EOF\n\
        2: FLOCK  ADVISORY  WRITE 11 00:17:124 0 EOF\n\
        3: FLOCK  ADVISORY  WRITE 12 00:17:123 0 EOF\n\
        3: -> FLOCK  ADVISORY  WRITE 13 00:17:123 0 EOF\n\
        4: OFDLCK ADVISORY  WRITE -1 00:17:123 0 EOF\n";

    #[test]
    fn the_process_that_has_the_lock_is_found_and_not_one_that_waits_for_it() {
        assert_eq!(taker(LOCKS, "00:17:123"), Some(12));
        assert_eq!(taker(LOCKS, "00:17:124"), Some(11));
        assert_eq!(taker(LOCKS, "08:17:124"), None);
        assert_eq!(taker("3: FLOCK", "00:17:123"), None);
    }

    #[test]
    fn our_own_lock_is_found_in_the_kernels_lists() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        let name = locked_file(file.path().to_str().unwrap()).unwrap();
        let own = Some(std::process::id());
        assert_eq!((taker(&fs::read_to_string("/proc/locks").unwrap(), &name), heir(&name)), (own, own));
    }

    #[test]
    fn only_the_tools_own_words_mean_that_the_lock_is_held() {
        let words = "Another app is currently holding the xtables lock. Stopped waiting after 5s.";
        assert!(LockHeld::said(words).is_some());
        assert_eq!(LockHeld::said("iptables: No chain/target/match by that name."), None);
        let holder = LockHolder(Some((7, "a\u{1b}b".to_owned())));
        assert!(LockHeld { holder }.to_string().ends_with("is held by process 7 (\"a\\u{1b}b\")"));
    }
}
