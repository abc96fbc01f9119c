//! Reading an API server once, for commands that do without a running proxy.

use super::source;
use crate::config::Config;
use crate::model::WatchNews;
use crate::state::Tracker;
use crate::watch::api::{self, WatchObserver, WatchOptions};
use crate::watch::client::{ClientOptions, Connection, Observers};
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// For the first answer: a server that takes longer is out of reach, for the one who waits at a terminal.
pub(super) const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// For the lists: those of the largest clusters take half of it.
const LISTS: Duration = Duration::from_secs(60);

/// Where the configuration says that the API server is.
pub(super) fn client_options(config: &Config) -> ClientOptions {
    ClientOptions { kubeconfig: config.sources.kubeconfig.clone(), master: config.sources.master.clone() }
}

/// Folds what the API server lists into a tracker until that has all it needs.
///
/// # Errors
/// The first failure of a list, in the words of the server or the kernel; nothing is tried again.
pub(super) async fn read_api(
    config: &Config,
    mut tracker: Tracker,
    has_all: impl Fn(&Tracker) -> bool,
) -> Result<Tracker> {
    let (sender, mut events) = mpsc::channel(64);
    let observers = Observers { dialling: source::dialling(&sender), ..Observers::default() };
    let connection = Connection::observed(&client_options(config), observers).await?;
    let url = connection.url();
    let (news, mut failures) = failures();
    let options = WatchOptions { observer: news, ..source::watch_options(config) };
    let watching = api::run(connection, &config.node_name, sender, options);
    let listing = async {
        while !has_all(&tracker) {
            tracker.fold(events.recv().await.context("the watch ended")?);
        }
        Ok(tracker)
    };
    tokio::select! {
        listed = listing => listed,
        error = first_failure(&mut failures) => bail!("the API server {url} cannot be read: {error}"),
        () = watching => bail!("the watch ended"),
        () = tokio::time::sleep(LISTS) => bail!("the API server {url} did not list everything within {LISTS:?}"),
    }
}

/// What became of a request: `None` is an answer.
type Became = Option<String>;

fn failures() -> (WatchObserver, mpsc::UnboundedReceiver<Became>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let observer = WatchObserver(Arc::new(move |_, news| {
        let became = match news {
            WatchNews::Failed(error) => Some(error.to_owned()),
            WatchNews::Open | WatchNews::Event => None,
        };
        // The channel is not read any more once everything is listed.
        let _ = sender.send(became);
    }));
    (observer, receiver)
}

/// Waits for a failure: for any answer at all at first, and then for as long as it takes.
async fn first_failure(failures: &mut mpsc::UnboundedReceiver<Became>) -> String {
    let Ok(mut became) = tokio::time::timeout(FIRST_ANSWER, failures.recv()).await else {
        return format!("no answer within {FIRST_ANSWER:?}");
    };
    loop {
        match became {
            Some(Some(error)) => return error,
            Some(None) => became = failures.recv().await,
            None => std::future::pending().await,
        }
    }
}
