//! Objects from files instead of an API server: for nodes without a cluster, and for trying things
//! out. Services, EndpointSlices and our Node are read from YAML or JSON files, and read again when the
//! files change. They become the model's as those of an API server do; what only the server would have
//! seen to is checked first.
//!
//! What is wrong takes nothing out of force. An object with a bad field stays as it was last good, and of
//! a file that cannot be read nothing is removed until it can be read again or is gone; `last_good` knows
//! what they said, across restarts. No object is kept in memory, for the receiver has it.

mod catalog;
mod defaults;
mod document;
mod fields;
mod file;
mod folder;
mod last_good;
mod raw;
mod validate;

pub use self::folder::check_paths;
pub use self::raw::raw;

use self::catalog::{Catalog, Update};
use super::convert::IssueSeverity;
use crate::model::{ObjectKind, ServiceName, SliceName, WatchEvent, word};
use anyhow::{Context, Result};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// How often the files are looked at.
const READ_PERIOD: Duration = Duration::from_millis(500);
/// For how long they have to stay as they are before they are read: a writer may pause.
const SETTLE: Duration = Duration::from_millis(250);

/// What reading manifests depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestOptions {
    /// Our node: endpoints on it are local, and no other Node counts.
    pub node_name: String,
    /// The node ports that Services are expected to have; other ports are used with a warning.
    pub node_port_range: RangeInclusive<u16>,
    /// The folder for what is in force of each file; without it, a restart has to do without.
    pub last_good: Option<PathBuf>,
}

impl Default for ManifestOptions {
    /// No node, and the API server's default range.
    fn default() -> Self {
        ManifestOptions { node_name: String::new(), node_port_range: 30_000..=32_767, last_good: None }
    }
}

/// Where in a file something is; all zero or `None` for the file as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// The number of the document, from 1.
    pub document: usize,
    /// The line, from 1.
    pub line: Option<u64>,
    /// Which of a list's `items`, from 0.
    pub item: Option<usize>,
}

/// Something that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The file or folder.
    pub file: Arc<Path>,
    /// Where in it.
    pub place: Location,
    /// Kind and name, as in `Service shop/web`.
    pub object: Option<String>,
    /// The field, as in `spec.externalIPs[0]`.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// An error if the API server would have refused the object.
    pub severity: IssueSeverity,
}

impl ManifestError {
    /// An error of the file as a whole.
    fn of_file(file: &Arc<Path>, message: impl fmt::Display) -> Self {
        ManifestError {
            file: file.clone(),
            place: Location::default(),
            object: None,
            field: None,
            message: message.to_string(),
            severity: IssueSeverity::Error,
        }
    }
}

impl ManifestError {
    /// What is wrong and where, for those who know the file.
    fn without_file(&self) -> String {
        Within(self).to_string()
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), Within(self))
    }
}

/// An error without the file's name.
struct Within<'a>(&'a ManifestError);

impl fmt::Display for Within<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Within(error) = self;
        if error.place.document > 0 {
            write!(f, "document {}: ", error.place.document)?;
        }
        if let Some(line) = error.place.line {
            write!(f, "line {line}: ")?;
        }
        if let Some(item) = error.place.item {
            write!(f, "items[{item}]: ")?;
        }
        for part in [&error.object, &error.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&error.message)
    }
}

/// What identifies an object among all files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    Slice(SliceName),
    /// A Node.
    Node(Arc<str>),
}

impl Key {
    /// The event that takes the object back.
    fn gone(self) -> WatchEvent {
        match self {
            Key::Service(name) => WatchEvent::ServiceGone(name),
            Key::Slice(name) => WatchEvent::SliceGone(name),
            Key::Node(_) => WatchEvent::NodeGone,
        }
    }

    /// Kind and name, as in messages.
    fn description(&self) -> String {
        let (kind, name) = match self {
            Key::Service(name) => ("Service", name.as_str()),
            Key::Slice(name) => ("EndpointSlice", &**name),
            Key::Node(name) => return description("Node", None, Some(name)),
        };
        let (namespace, name) = name.split_once('/').unwrap_or_default();
        description(kind, Some(namespace), Some(name))
    }
}

/// Kind, namespace and name as messages show them.
fn description(kind: &str, namespace: Option<&str>, name: Option<&str>) -> String {
    let kind = word(if kind.is_empty() { "object" } else { kind });
    let name = name.filter(|name| !name.is_empty()).map_or("(no name)".into(), word);
    match namespace {
        Some(namespace) => format!("{kind} {}/{name}", word(namespace)),
        None => format!("{kind} {name}"),
    }
}

/// Reads all files once. The events list each kind completely; beside them is all that is wrong.
///
/// # Errors
///
/// If one of the paths does not exist or cannot be looked at.
pub fn load(paths: &[PathBuf], options: &ManifestOptions) -> Result<(Vec<WatchEvent>, Vec<ManifestError>)> {
    folder::check_paths(paths)?;
    let update = Catalog::new(paths.to_vec(), options.clone()).update();
    report_skipped(&update);
    Ok((as_lists(update.events), update.errors))
}

/// What a file of this name and text holds, as complete lists.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn of_text(name: &str, text: &str, options: &ManifestOptions) -> Vec<WatchEvent> {
    let content = file::parse(&Path::new(name).into(), text, options);
    as_lists(content.objects.into_iter().map(|object| object.event).collect())
}

/// Reads all files, sends what they hold as complete lists, and then sends every change. Returns
/// when the receiver is gone.
///
/// # Errors
///
/// If one of the paths does not exist at the start or cannot be looked at.
pub async fn run(
    paths: Vec<PathBuf>,
    options: ManifestOptions,
    sender: mpsc::Sender<WatchEvent>,
) -> Result<()> {
    folder::check_paths(&paths)?;
    let catalog = Catalog::new(paths, options);
    let (mut catalog, update) = update_aside(catalog).await?;
    let mut unsettled = update.unsettled;
    report(&update);
    if !send(&sender, as_lists(update.events)).await {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(if unsettled { SETTLE } else { READ_PERIOD }) => {}
            () = sender.closed() => return Ok(()),
        }
        let (next, update) = update_aside(catalog).await?;
        catalog = next;
        unsettled = update.unsettled;
        report(&update);
        if !send(&sender, update.events).await {
            return Ok(());
        }
    }
}

/// Reads on another thread: large files take a while, and the runtime has other things to do.
async fn update_aside(mut catalog: Catalog) -> Result<(Catalog, Update)> {
    let reading = tokio::task::spawn_blocking(move || {
        let update = catalog.update();
        (catalog, update)
    });
    reading.await.context("reading manifests")
}

/// Sends in order; false if the receiver is gone.
async fn send(sender: &mpsc::Sender<WatchEvent>, events: Vec<WatchEvent>) -> bool {
    for event in events {
        if sender.send(event).await.is_err() {
            return false;
        }
    }
    true
}

fn report_skipped(update: &Update) {
    for kind in &update.skipped {
        info!(kind, "skipping objects of a kind that is not read");
    }
}

fn report(update: &Update) {
    report_skipped(update);
    for problem in &update.errors {
        match problem.severity {
            IssueSeverity::Error => error!(object = problem.object, "{problem}"),
            IssueSeverity::Warning => warn!(object = problem.object, "{problem}"),
        }
    }
    update.events.iter().for_each(report_problems);
}

fn report_problems(event: &WatchEvent) {
    match event {
        WatchEvent::Problems(problems) if problems.is_empty() => info!("all manifests are followed again"),
        WatchEvent::Problems(problems) => problems.iter().for_each(|problem| warn!("{problem}")),
        _ => {}
    }
}

/// The first events of a source: what it cannot tell, and each kind as a complete list.
fn as_lists(events: Vec<WatchEvent>) -> Vec<WatchEvent> {
    let mut problems = Vec::new();
    let kinds = [ObjectKind::Node, ObjectKind::Service, ObjectKind::EndpointSlice];
    let mut lists: [Vec<WatchEvent>; 3] = kinds.map(|kind| vec![WatchEvent::Listing(kind)]);
    for event in events {
        let list = match &event {
            WatchEvent::Node(_) => 0,
            WatchEvent::Service(_) => 1,
            WatchEvent::Slice(_) => 2,
            WatchEvent::Problems(_) => {
                problems.push(event);
                continue;
            }
            // A first reading has nothing to take back.
            _ => continue,
        };
        lists[list].push(event);
    }
    for (list, kind) in lists.iter_mut().zip(kinds) {
        list.push(WatchEvent::Listed(kind));
    }
    problems.into_iter().chain(lists.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests;
