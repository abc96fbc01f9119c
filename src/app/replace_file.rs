//! Writing a file so that it is whole at any time: beside it first, then in its place.

use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a file, or leaves what was there. A link stays, and what it leads to is replaced; what is no
/// regular file, such as `/dev/stdout`, is written to.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    let before = fs::metadata(path).ok();
    if before.as_ref().is_some_and(|before| !before.is_file()) {
        let opened = OpenOptions::new().write(true).open(path);
        return opened
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("writing {}", path.display()));
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let beside = beside(&target);
    // The name can be guessed, so a file or a link that stands there is not followed.
    let mut file = File::create_new(&beside).with_context(|| format!("creating {}", beside.display()))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let replaced = written
        .and_then(|()| before.map_or(Ok(()), |before| file.set_permissions(before.permissions())))
        .and_then(|()| fs::rename(&beside, &target));
    if replaced.is_err() {
        // The error to report is the first one.
        let _ = fs::remove_file(&beside);
    }
    replaced.with_context(|| format!("writing {}", path.display()))
}

/// In the same folder, so that it can be renamed.
fn beside(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        replace(&path, "first").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        replace(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("config.yaml"), folder.path().join("link"));
        fs::write(&path, "first").unwrap();
        symlink("config.yaml", &link).unwrap();
        replace(&link, "second").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    }

    #[test]
    fn what_is_no_file_is_written_to() {
        replace(Path::new("/dev/null"), "text").unwrap();
        let error = replace(Path::new("/dev/full"), "text").unwrap_err();
        assert!(format!("{error:#}").starts_with("writing /dev/full: "), "{error:#}");
    }
}
