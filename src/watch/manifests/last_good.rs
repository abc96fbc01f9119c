//! What each file said when that was last known: the objects in force of it, as JSON, one a line, below
//! the file's name.
//!
//! Kept in a folder that lives as long as the kernel's rules do, so that a process that starts on a file
//! with a mistake goes on with what the rules were made of. Where there is no such folder, or it cannot be
//! written to, memory has to do until this process ends.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tracing::warn;

/// The texts.
#[derive(Debug)]
pub(super) struct LastGood {
    folder: Option<PathBuf>,
    /// Those that the folder did not take.
    memory: BTreeMap<PathBuf, String>,
}

impl LastGood {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        LastGood { folder, memory: BTreeMap::new() }
    }

    /// The objects that were last in force of a file; `None` if nothing is known of it.
    pub(super) fn get(&self, file: &Path) -> Option<String> {
        let file = absolute(file);
        if let Some(text) = self.memory.get(&file) {
            return Some(text.clone());
        }
        let (of, objects) = read(&self.folder.as_ref()?.join(name(&file)))?;
        (of == file).then_some(objects)
    }

    /// Notes what is in force of a file now.
    pub(super) fn put(&mut self, file: &Path, objects: String) {
        if self.get(file).as_ref() == Some(&objects) {
            return;
        }
        let file = absolute(file);
        self.memory.remove(&file);
        let Some(folder) = &self.folder else {
            self.memory.insert(file, objects);
            return;
        };
        if let Err(error) = write(folder, &file, &objects) {
            // What it said before would be worse than nothing.
            let _ = fs::remove_file(folder.join(name(&file)));
            let folder = folder.display();
            warn!(file = %file.display(), %folder, %error, "cannot save a manifest's content for the next start");
            self.memory.insert(file, objects);
        }
    }

    /// The files of which something is known that are at a path: in this folder, or it itself.
    pub(super) fn files_at(&self, path: &Path) -> Vec<PathBuf> {
        let path = absolute(path);
        let on_disk = self.texts().into_iter().filter_map(|text| Some(read(&text)?.0));
        let known = on_disk.chain(self.memory.keys().cloned());
        let mut files: Vec<PathBuf> =
            known.filter(|file| *file == path || file.parent() == Some(&path)).collect();
        files.sort();
        files
    }

    /// Forgets all files but these.
    pub(super) fn retain<'f>(&mut self, files: impl Iterator<Item = &'f Path>) {
        let files: BTreeSet<PathBuf> = files.map(absolute).collect();
        self.memory.retain(|file, _| files.contains(file));
        let names: BTreeSet<String> = files.iter().map(|file| name(file)).collect();
        let is_known =
            |text: &Path| text.file_name().and_then(OsStr::to_str).is_some_and(|it| names.contains(it));
        for text in self.texts().into_iter().filter(|text| !is_known(text)) {
            if let Err(error) = fs::remove_file(&text) {
                warn!(file = %text.display(), %error, "cannot remove the saved copy of a manifest");
            }
        }
    }

    /// The files in our folder.
    fn texts(&self) -> Vec<PathBuf> {
        let entries = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok());
        let paths = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(|path| path.extension() == Some(OsStr::new("json"))).collect()
    }
}

/// A file may be named from wherever the process was started.
fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

/// A name for what is known of a file.
fn name(file: &Path) -> String {
    let hash = Sha256::digest(file.as_os_str().as_bytes());
    format!("{}.json", data_encoding::HEXLOWER.encode(&hash[..16]))
}

/// The file that a text is about, and its objects.
fn read(text: &Path) -> Option<(PathBuf, String)> {
    let bytes = fs::read(text).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\0')?;
    let objects = String::from_utf8(bytes[end + 1..].to_vec()).ok()?;
    Some((OsStr::from_bytes(&bytes[..end]).into(), objects))
}

fn write(folder: &Path, file: &Path, objects: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (path, new) = (folder.join(name(file)), folder.join(format!(".{}", name(file))));
    fs::write(&new, [file.as_os_str().as_bytes(), b"\0", objects.as_bytes()].concat())?;
    fs::rename(new, path)
}
