//! The same answers without a running proxy: the source is read once, and nothing is programmed.

use super::dataplanes::{self, Dataplanes};
use super::output::complain;
use super::source;
use crate::config::Config;
use crate::model::{NodeFacts, ObjectKind};
use crate::state::Tracker;
use crate::sync::{FamilySync, Identity, LoopState};
use crate::watch::api;
use crate::watch::client::{ClientOptions, Connection, Observers};
use crate::watch::manifests;
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::sync::mpsc;

/// For the first lists.
const PATIENCE: Duration = Duration::from_secs(60);

/// A picture, and the families that it would be programmed for.
pub(super) struct Offline {
    tracker: Tracker,
    identity: Identity,
    families: Vec<FamilySync>,
}

impl Offline {
    /// Reads the source and looks at the node.
    pub(super) async fn read(config: &Config) -> Result<Offline> {
        let mut tracker = picture(config).await?;
        tracker.settle();
        let node = tracker.snapshot().node.clone();
        let mut planes = Dataplanes::open_to_look(config, &node).await?;
        for family in &mut planes.families {
            family.look().await?;
        }
        Ok(Offline { tracker, identity: planes.identity(config), families: planes.families })
    }

    /// What the loop would know.
    pub(super) fn state(&self) -> LoopState<'_> {
        LoopState { identity: &self.identity, tracker: &self.tracker, families: &self.families }
    }
}

async fn picture(config: &Config) -> Result<Tracker> {
    let node = NodeFacts { name: config.node_name.as_str().into(), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, i64::MAX)
        .reserving(dataplanes::reserved(config))
        .limiting(dataplanes::limits(config));
    if !config.sources.manifests.is_empty() {
        let (events, errors) = manifests::load(&config.sources.manifests, &source::manifest_options(config))?;
        for error in errors {
            complain(format_args!("Warning: {error}"));
        }
        events.into_iter().for_each(|event| tracker.fold(event));
        return Ok(tracker);
    }
    let options = ClientOptions {
        kubeconfig: config.sources.kubeconfig.clone(),
        master: config.sources.master.clone(),
    };
    let (sender, mut events) = mpsc::channel(64);
    let observers = Observers { dialling: source::dialling(&sender), ..Observers::default() };
    let connection = Connection::observed(&options, observers).await?;
    let options = source::watch_options(config);
    let lists = async {
        while !(tracker.is_complete() && tracker.has_listed(ObjectKind::Node)) {
            let Some(event) = events.recv().await else { break };
            tracker.fold(event);
        }
    };
    tokio::select! {
        read = tokio::time::timeout(PATIENCE, lists) => {
            read.with_context(|| format!("the API server did not list everything within {PATIENCE:?}"))?;
        }
        () = api::run(connection, &config.node_name, sender, options) => {}
    }
    Ok(tracker)
}
