//! When what a connection was made from has changed.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Something that a connection was made from.
#[derive(Clone, Debug)]
pub(super) enum Stamp {
    /// A file as it was just before it was read: inode, seconds and nanoseconds of its last change, size.
    File { path: PathBuf, seen: Option<(u64, i64, i64, u64)> },
    /// An exec plugin, whose word counts until the server refuses it.
    Plugin { command: String, refused: bool },
}

impl Stamp {
    pub(super) fn of_file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let seen = read_stamp(&path);
        Stamp::File { path, seen }
    }

    pub(super) fn of_plugin(command: &str) -> Self {
        Stamp::Plugin { command: command.to_owned(), refused: false }
    }

    /// Notes that the server refuses who we say we are.
    pub(super) fn refuse(&mut self) {
        if let Stamp::Plugin { refused, .. } = self {
            *refused = true;
        }
    }

    /// Whether nothing has changed.
    pub(super) fn holds(&self) -> bool {
        match self {
            Stamp::File { path, seen } => read_stamp(path) == *seen,
            Stamp::Plugin { refused, .. } => !refused,
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stamp::File { path, .. } => write!(f, "{}", path.display()),
            Stamp::Plugin { command, .. } => write!(f, "plugin {command}"),
        }
    }
}

/// Links are followed: the kubelet turns one to replace files.
fn read_stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_changes_when_it_is_written_replaced_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let absent = Stamp::of_file(&file);
        assert!(absent.holds());
        std::fs::write(&file, "first").unwrap();
        assert!(!absent.holds());
        let written = Stamp::of_file(&file);
        assert!(written.holds());
        // As long, and as old: only the inode tells.
        let other = folder.path().join("other");
        std::fs::write(&other, "other").unwrap();
        let time = std::fs::metadata(&file).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &file).unwrap();
        assert!(!written.holds());
        let replaced = Stamp::of_file(&file);
        std::fs::remove_file(&file).unwrap();
        assert!(!replaced.holds());
    }

    #[test]
    fn a_plugin_counts_until_the_server_refuses_it() {
        let mut plugin = Stamp::of_plugin("log-in");
        assert!(plugin.holds());
        plugin.refuse();
        assert!(!plugin.holds());
        assert_eq!(plugin.to_string(), "plugin log-in");
    }
}
