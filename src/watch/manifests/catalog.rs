//! All files together: which objects are in force, and what a look at the files changes of that.
//!
//! When any file has changed, all are read again; what differs from what is in force becomes events. An object
//! may be in several files: the first one counts. No object is kept but by its name and a hash.

use super::file::{self, Content, MAX_ERRORS, Usable};
use super::folder::{self, Fingerprint, Reading};
use super::last_good::LastGood;
use super::{Key, ManifestError, ManifestOptions};
use crate::model::{SourceProblem, WatchEvent};
use std::collections::btree_map::Entry;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Looks at files that are being written all the time, before they are read all the same.
const MOST_WAITS: u32 = 40;
/// Looks after which what could not be read is tried again, though it shows no change.
const RETRY: u32 = 20;

/// What a look at the files brought.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// What has changed.
    pub(super) events: Vec<WatchEvent>,
    /// What is wrong with the files, as far as it was not told before.
    pub(super) errors: Vec<ManifestError>,
    /// Kinds that we do not read, when they are met for the first time.
    pub(super) skipped: Vec<String>,
    /// A file may still be in the middle of being written; look again soon.
    pub(super) unsettled: bool,
}

/// The files, and their state.
type Files = Vec<(PathBuf, Option<Fingerprint>)>;

/// All files.
#[derive(Debug)]
pub(super) struct Catalog {
    paths: Vec<PathBuf>,
    options: ManifestOptions,
    last_good: LastGood,
    /// The files when they were read; `None` before that.
    read: Option<Files>,
    /// The files at the last look.
    seen: Files,
    /// Looks since the files were read.
    rounds: u32,
    /// Looks in a row that found a file changed since the one before.
    waits: u32,
    /// A file or a folder could not be read then.
    failed: bool,
    /// The hash of every object that is in force.
    in_force: BTreeMap<Key, u64>,
    problems: Vec<SourceProblem>,
    told: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

impl Catalog {
    /// A catalog of files none of which has been read.
    pub(super) fn new(paths: Vec<PathBuf>, options: ManifestOptions) -> Self {
        Catalog {
            paths,
            last_good: LastGood::new(options.last_good.clone()),
            options,
            read: None,
            seen: Files::new(),
            rounds: 0,
            waits: 0,
            failed: false,
            in_force: BTreeMap::new(),
            problems: Vec::new(),
            told: BTreeSet::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Looks at the files, and reads them if any has changed since they were read and none since the last
    /// look: a program may still be writing one. At the start, nothing waits.
    pub(super) fn update(&mut self) -> Update {
        let (files, unlisted) = self.list();
        let has_settled = std::mem::replace(&mut self.seen, files.clone()) == files;
        self.rounds += 1;
        if let Some(read) = &self.read {
            let is_due = self.failed && self.rounds >= RETRY;
            if *read == files && !is_due {
                self.waits = 0;
                return Update::default();
            }
            if !has_settled && self.waits < MOST_WAITS {
                return self.wait();
            }
        }
        let Some(reading) = self.read_all(&files, &unlisted) else { return self.wait() };
        (self.rounds, self.waits, self.read) = (0, 0, Some(files));
        self.last_good.retain(self.seen.iter().map(|(path, _)| path.as_path()));
        self.compare(reading)
    }

    fn wait(&mut self) -> Update {
        self.waits += 1;
        Update { unsettled: true, ..Update::default() }
    }

    /// The files that there are, and what is wrong with the folders. The files of a folder that cannot be
    /// listed may still be there.
    fn list(&self) -> (Files, Vec<ManifestError>) {
        let mut listing = folder::list(&self.paths);
        for path in &listing.unreadable {
            listing.files.extend(self.last_good.files_at(path));
        }
        let state = |path: PathBuf| {
            let fingerprint = Fingerprint::take(&path);
            (path, fingerprint)
        };
        (listing.files.into_iter().map(state).collect(), listing.errors)
    }

    /// Reads all files; `None` if one of them changed meanwhile and can be waited for.
    fn read_all(&mut self, files: &Files, unlisted: &[ManifestError]) -> Option<Found> {
        let mut found = Found::default();
        self.failed = !unlisted.is_empty();
        for error in unlisted {
            let stands = !self.last_good.files_at(&error.file).is_empty();
            found.note_problem(&error.file, &error.message, true, stands);
            found.errors.push(error.clone());
        }
        let mut stand_ins = Vec::new();
        for (path, _) in files {
            let path: Arc<Path> = path.as_path().into();
            let content = match folder::read(&path) {
                Reading::Text(text) => file::parse(&path, &text, &self.options),
                Reading::Unsettled(_) if self.read.is_some() && self.waits < MOST_WAITS => return None,
                Reading::Unsettled(text) => file::parse(&path, &text, &self.options),
                Reading::Gone => continue,
                Reading::Unfit(problem) => Content::of_unreadable(ManifestError::of_file(&path, problem)),
                Reading::Failed(problem) => {
                    self.failed = true;
                    Content::of_unreadable(ManifestError::of_file(&path, problem))
                }
            };
            stand_ins.extend(self.take_file(&path, content, &mut found));
        }
        // What can be read goes before what was said last.
        stand_ins.into_iter().for_each(|object| found.take(object, &self.in_force));
        Some(found)
    }

    /// Takes what a file holds, and notes it for a time when the file cannot be read. Returns what it said
    /// last of the objects that it does not tell of now.
    fn take_file(&mut self, path: &Arc<Path>, content: Content, found: &mut Found) -> Vec<Usable> {
        let Content { objects, broken, unreadable, errors, skipped } = content;
        let mut text: String = objects.iter().flat_map(|object| [&object.text, "\n"]).collect();
        let named: BTreeSet<Key> = objects.iter().map(|object| object.key.clone()).collect();
        found.errors.extend(errors);
        found.skipped.extend(skipped);
        found.take_fresh(path, objects, &self.in_force);
        let mut stand_ins = Vec::new();
        let last = if broken.is_empty() && unreadable.is_none() { None } else { self.last_good.get(path) };
        if let Some(last) = &last {
            stand_ins = file::parse(&Path::new("last-good.json").into(), last, &self.options).objects;
            let stands = |object: &Usable| unreadable.is_some() || broken.contains_key(&object.key);
            stand_ins.retain(|object| !named.contains(&object.key) && stands(object));
            text.extend(stand_ins.iter().flat_map(|object| [&object.text, "\n"]));
        }
        for (key, reason) in &broken {
            found.note_problem(path, reason, false, stand_ins.iter().any(|object| object.key == *key));
        }
        if let Some(reason) = &unreadable {
            found.note_problem(path, reason, true, last.is_some());
        }
        // Of a file that was never read whole, it is not known that this is all.
        if unreadable.is_none() || last.is_some() {
            self.last_good.put(path, text);
        }
        stand_ins
    }

    /// What was found, as differences to what is in force.
    fn compare(&mut self, found: Found) -> Update {
        let mut update = Update { events: found.events, ..Update::default() };
        let gone = self.in_force.keys().filter(|key| !found.in_force.contains_key(key));
        update.events.extend(gone.cloned().map(Key::gone));
        self.in_force = found.in_force;
        if self.problems != found.problems {
            self.problems.clone_from(&found.problems);
            update.events.insert(0, WatchEvent::Problems(found.problems.into()));
        }
        let told: BTreeSet<String> = found.errors.iter().map(ToString::to_string).collect();
        update.errors = found.errors;
        update.errors.retain(|error| !self.told.contains(&error.to_string()));
        self.told = told;
        let unknown = found.skipped.into_iter().filter(|kind| self.skipped.insert(kind.clone()));
        update.skipped.extend(unknown);
        update
    }
}

/// What the files hold.
#[derive(Debug, Default)]
struct Found {
    in_force: BTreeMap<Key, u64>,
    /// The objects that are not in force just so.
    events: Vec<WatchEvent>,
    problems: Vec<SourceProblem>,
    errors: Vec<ManifestError>,
    skipped: BTreeSet<String>,
    /// The file that each object is in force from.
    owners: BTreeMap<Key, Arc<Path>>,
    duplicates: usize,
}

impl Found {
    /// Takes a file's objects, and tells of those that an earlier file has.
    fn take_fresh(&mut self, path: &Arc<Path>, objects: Vec<Usable>, in_force: &BTreeMap<Key, u64>) {
        let mut duplicates = 0;
        for object in objects {
            match self.owners.get(&object.key) {
                Some(owner) => {
                    duplicates += 1;
                    if self.duplicates + duplicates <= MAX_ERRORS {
                        let error = ManifestError {
                            place: object.place,
                            object: Some(object.key.description()),
                            ..ManifestError::of_file(path, already_in(owner))
                        };
                        self.errors.push(error);
                    }
                }
                None => {
                    self.owners.insert(object.key.clone(), path.clone());
                    self.take(object, in_force);
                }
            }
        }
        self.duplicates += duplicates;
        let more = self.duplicates.saturating_sub(MAX_ERRORS).min(duplicates);
        if more > 0 {
            let message = format!("{more} more objects are in other files");
            self.errors.push(ManifestError::of_file(path, message));
        }
    }

    /// Takes an object that nothing has been taken for yet.
    fn take(&mut self, object: Usable, in_force: &BTreeMap<Key, u64>) {
        let Entry::Vacant(entry) = self.in_force.entry(object.key) else { return };
        let mut hasher = DefaultHasher::new();
        object.text.hash(&mut hasher);
        let hash = hasher.finish();
        if in_force.get(entry.key()) != Some(&hash) {
            self.events.push(object.event);
        }
        entry.insert(hash);
    }

    fn note_problem(&mut self, file: &Path, reason: &str, hides_objects: bool, stands: bool) {
        let (source, reason) = (file.display().to_string(), reason.to_owned());
        self.problems.push(SourceProblem { source, reason, hides_objects, stands });
    }
}

fn already_in(owner: &Path) -> String {
    format!("is already in {}, which comes first", owner.display())
}
