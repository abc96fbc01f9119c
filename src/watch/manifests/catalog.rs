//! All files together: which objects are in force, and what a look at the files changes of that.
//!
//! An object may be in several files; the first one counts. The catalog remembers the names that
//! each file holds, never the objects.

use super::file::{self, Key, MAX_ERRORS, Object};
use super::folder::{self, Fingerprint, Reading};
use super::{ManifestError, ManifestOptions};
use crate::model::WatchEvent;
use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a look at the files brought.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// What has changed, or may have.
    pub(super) events: Vec<WatchEvent>,
    /// What is wrong with the files that have changed.
    pub(super) errors: Vec<ManifestError>,
    /// Kinds that we do not read, when they are met for the first time.
    pub(super) skipped: Vec<String>,
    /// A file is still being written; look again soon.
    pub(super) unsettled: bool,
}

/// What is known of a file.
#[derive(Clone, Debug)]
struct Known {
    path: Arc<Path>,
    /// Its state when it was read; `None` if it must be read again.
    fingerprint: Option<Fingerprint>,
    /// The objects of it that are in force, or would be if no other file had them.
    keys: Arc<BTreeSet<Key>>,
    /// Whether there has been a time when nothing was wrong with it.
    was_good: bool,
}

/// All files.
#[derive(Debug)]
pub(super) struct Catalog {
    paths: Vec<PathBuf>,
    options: ManifestOptions,
    files: Vec<Known>,
    skipped: BTreeSet<String>,
    /// What was wrong with the folders when they were last listed.
    folder_errors: Vec<ManifestError>,
}

/// The objects of the files that have been read this time, by path.
type Fresh = BTreeMap<Arc<Path>, Vec<Object>>;
/// The file that each object is in force from.
type Owners = BTreeMap<Key, Arc<Path>>;

impl Catalog {
    /// A catalog of files none of which has been read.
    pub(super) fn new(paths: Vec<PathBuf>, options: ManifestOptions) -> Self {
        Catalog { paths, options, files: Vec::new(), skipped: BTreeSet::new(), folder_errors: Vec::new() }
    }

    /// Looks at all files and reads those that have changed, or that are `touched`: a file that is
    /// written twice within a tick of the clock shows no difference.
    pub(super) fn update(&mut self, touched: &BTreeSet<PathBuf>) -> Update {
        let mut update = Update::default();
        let files = self.list(&mut update);
        let is_changed = |file: &Known| {
            file.fingerprint.is_none()
                || touched.contains(&*file.path)
                || file.fingerprint != Fingerprint::take(&file.path)
        };
        let same_files = files.iter().map(|file| &file.path).eq(self.files.iter().map(|file| &file.path));
        if same_files && !files.iter().any(is_changed) {
            return update;
        }
        let (before, _) = owners(&self.files);
        let mut fresh = Fresh::new();
        self.files = Vec::with_capacity(files.len());
        for file in files {
            let file =
                if is_changed(&file) { self.reread(file, &mut fresh, &mut update) } else { Some(file) };
            self.files.extend(file);
        }
        self.inherit(&before, &mut fresh, &mut update);
        self.settle(before, fresh, &mut update);
        update
    }

    /// The files that there are now, with what is known of them.
    fn list(&mut self, update: &mut Update) -> Vec<Known> {
        let listing = folder::list(&self.paths);
        if listing.errors != self.folder_errors {
            update.errors.extend(listing.errors.iter().cloned());
            self.folder_errors = listing.errors;
        }
        let mut known: BTreeMap<&Path, &Known> = self.files.iter().map(|file| (&*file.path, file)).collect();
        let mut files = Vec::with_capacity(listing.files.len());
        for path in &listing.files {
            files.push(known.remove(path.as_path()).cloned().unwrap_or_else(|| Known {
                path: path.as_path().into(),
                fingerprint: None,
                keys: Arc::default(),
                was_good: false,
            }));
        }
        // The files of a folder that cannot be listed may still be there.
        let hidden =
            |file: &&&Known| listing.unreadable.iter().any(|f| file.path.parent() == Some(f.as_path()));
        files.extend(known.values().filter(hidden).map(|file| (*file).clone()));
        files
    }

    /// Reads a file; `None` if it is gone.
    fn reread(&mut self, mut file: Known, fresh: &mut Fresh, update: &mut Update) -> Option<Known> {
        let (text, fingerprint) = match folder::read(&file.path) {
            Reading::Text(text, fingerprint) => (text, Some(fingerprint)),
            Reading::Unsettled(text) => {
                update.unsettled = true;
                if !file.keys.is_empty() {
                    file.fingerprint = None;
                    return Some(file);
                }
                (text, None)
            }
            Reading::Gone => return None,
            Reading::Failed(problem) => {
                update.errors.push(ManifestError::of_file(&file.path, problem));
                file.fingerprint = Fingerprint::take(&file.path);
                return Some(file);
            }
        };
        let content = file::parse(&file.path, &text, &self.options);
        file.fingerprint = fingerprint;
        update.errors.extend(content.errors);
        let unknown = content.skipped.into_iter().filter(|kind| self.skipped.insert(kind.clone()));
        update.skipped.extend(unknown);
        if content.good || !file.was_good {
            file.was_good = content.good;
            file.keys = Arc::new(content.objects.iter().map(|object| object.key.clone()).collect());
            fresh.insert(file.path.clone(), content.objects);
        }
        Some(file)
    }

    /// Where a file has lost an object, or is gone, another file that has not changed may hold the
    /// object too. It is read again, since its objects were not kept.
    fn inherit(&mut self, before: &Owners, fresh: &mut Fresh, update: &mut Update) {
        loop {
            let (owners, _) = owners(&self.files);
            let is_heir =
                |key: &Key, owner: &Arc<Path>| !fresh.contains_key(owner) && before.get(key) != Some(owner);
            let heir = owners.iter().find(|(key, owner)| is_heir(key, owner)).map(|(_, owner)| owner.clone());
            let Some(index) = heir.and_then(|heir| self.files.iter().position(|file| file.path == heir))
            else {
                return;
            };
            let heir = self.files.remove(index);
            let Some(mut heir) = self.reread(heir, fresh, update) else { continue };
            if !fresh.contains_key(&heir.path) {
                // It has become bad meanwhile: what is in force from it stays, and no more than that.
                let was_in_force = |key: &&Key| before.get(*key) == Some(&heir.path);
                heir.keys = Arc::new(heir.keys.iter().filter(was_in_force).cloned().collect());
            }
            self.files.insert(index, heir);
        }
    }

    /// Turns what was read into events: the first file that has an object wins.
    fn settle(&self, before: Owners, fresh: Fresh, update: &mut Update) {
        let (owners, mut duplicates) = owners(&self.files);
        duplicates.retain(|(key, path)| fresh.contains_key(path) || fresh.contains_key(&owners[key]));
        for (key, path) in duplicates.iter().take(MAX_ERRORS) {
            let objects = fresh.get(path).map_or(&[][..], Vec::as_slice);
            let place = objects.iter().find(|object| object.key == *key).map(|object| object.place);
            update.errors.push(ManifestError {
                place: place.unwrap_or_default(),
                object: Some(key.description(&self.options.node_name)),
                ..ManifestError::of_file(path, already_in(&owners[key]))
            });
        }
        if let Some((_, path)) = duplicates.get(MAX_ERRORS) {
            let message = format!("{} more objects are in other files", duplicates.len() - MAX_ERRORS);
            update.errors.push(ManifestError::of_file(path, message));
        }
        for (path, objects) in fresh {
            let ours = objects.into_iter().filter(|object| owners.get(&object.key) == Some(&path));
            update.events.extend(ours.map(|object| object.event));
        }
        update.events.extend(before.into_keys().filter(|key| !owners.contains_key(key)).map(Key::gone));
    }
}

fn already_in(owner: &Path) -> String {
    format!("is already in {}, which comes first", owner.display())
}

/// The first file of each object, and the other files that have it too.
fn owners(files: &[Known]) -> (Owners, Vec<(Key, Arc<Path>)>) {
    let mut owners = Owners::new();
    let mut duplicates = Vec::new();
    for file in files {
        for key in &*file.keys {
            match owners.entry(key.clone()) {
                MapEntry::Vacant(entry) => _ = entry.insert(file.path.clone()),
                MapEntry::Occupied(entry) => duplicates.push((entry.key().clone(), file.path.clone())),
            }
        }
    }
    (owners, duplicates)
}
