//! Which files there are, whether they have changed, and what is in them.

use super::ManifestError;
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The largest file that is read.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The path that stands for standard input.
const STDIN: &str = "-";

/// Standard input, which can be read once only.
static INPUT: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();

fn is_input(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// All of standard input, or why it cannot be read.
fn input() -> &'static Result<Vec<u8>, String> {
    INPUT.get_or_init(|| {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| error.to_string())?;
        if bytes.len() as u64 > MAX_BYTES { Err(too_large()) } else { Ok(bytes) }
    })
}

fn too_large() -> String {
    format!("is larger than {MAX_BYTES} bytes, the most that is read of one file")
}

/// A file's identity and state; equal before and after only if nothing has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Fingerprint {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The fingerprint of the file that a path leads to.
    pub(super) fn take(path: &Path) -> Option<Self> {
        match is_input(path) {
            true => Some(Fingerprint::default()),
            false => fs::metadata(path).ok().as_ref().map(Self::of),
        }
    }
}

/// What reading a file came to.
#[derive(Debug)]
pub(super) enum Reading {
    /// All of its text.
    Text(String),
    /// It changed while it was read, so the text may be half of one thing and half of another.
    Unsettled(String),
    /// It is not there any more.
    Gone,
    /// It is nothing that can be read, and why.
    Unfit(String),
    /// It cannot be read now, and why.
    Failed(String),
}

/// The files that a set of paths stands for.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files, in order: by path as given, within a folder by name.
    pub(super) files: Vec<PathBuf>,
    /// Folders whose files are not known.
    pub(super) unreadable: Vec<PathBuf>,
    /// What is wrong.
    pub(super) errors: Vec<ManifestError>,
}

/// Makes sure that every path leads to a file or a folder.
///
/// # Errors
/// Names all that do not.
pub fn check_paths(paths: &[PathBuf]) -> Result<()> {
    let problem = |path: &PathBuf| match fs::metadata(path) {
        _ if is_input(path) => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
        Ok(found) if !found.is_dir() && !found.is_file() => {
            Some(format!("{}: is neither a file nor a folder", path.display()))
        }
        Ok(_) => None,
    };
    let problems: Vec<String> = paths.iter().filter_map(problem).collect();
    if !problems.is_empty() {
        bail!("manifests cannot be read: {}", problems.join("; "));
    }
    Ok(())
}

/// Lists the files. Paths that are not there stand for nothing: their files are gone.
pub(super) fn list(paths: &[PathBuf]) -> Listing {
    let mut listing = Listing::default();
    let mut seen = BTreeSet::new();
    for path in paths {
        if is_input(path) {
            listing.files.push(path.clone());
            continue;
        }
        let files = fs::metadata(path)
            .and_then(|found| if found.is_dir() { files_in(path) } else { Ok(vec![path.clone()]) });
        match files {
            Ok(files) => listing.files.extend(files),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                listing.errors.push(ManifestError::of_file(&Arc::from(path.as_path()), error));
                listing.unreadable.push(path.clone());
            }
        }
    }
    listing.files.retain(|file| seen.insert(file.clone()));
    listing
}

fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_manifest(&entry.file_name()) && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file of a folder counts, by its name. Names with a leading dot do not: editors and
/// ConfigMap volumes use them for what is not there yet.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !name.as_encoded_bytes().starts_with(b".") && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads a file whole.
pub(super) fn read(path: &Path) -> Reading {
    if is_input(path) {
        return match input() {
            Ok(bytes) => text_of(bytes.clone(), true),
            Err(problem) => Reading::Unfit(problem.clone()),
        };
    }
    match read_bytes(path) {
        Ok((Err(problem), _)) => Reading::Unfit(problem),
        Ok((Ok(bytes), before)) => text_of(bytes, Fingerprint::take(path) == Some(before)),
        Err(error) if error.kind() == ErrorKind::NotFound => Reading::Gone,
        Err(error) => Reading::Failed(error.to_string()),
    }
}

fn text_of(bytes: Vec<u8>, is_settled: bool) -> Reading {
    match String::from_utf8(bytes) {
        Ok(text) if is_settled => Reading::Text(text),
        Ok(text) => Reading::Unsettled(text),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            Reading::Unfit(format!("line {line}: is not UTF-8 text"))
        }
    }
}

/// The bytes, or why they are not wanted, and the file's state before they were read.
fn read_bytes(path: &Path) -> io::Result<(Result<Vec<u8>, String>, Fingerprint)> {
    // Opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let before = Fingerprint::of(&metadata);
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(MAX_BYTES)).unwrap_or_default());
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Ok((Err(too_large()), before));
    }
    Ok((Ok(bytes), before))
}
