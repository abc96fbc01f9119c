//! The same answers without a running proxy: the source is read once, and nothing is programmed.

use super::dataplanes::{self, Dataplanes};
use super::output::complain;
use super::read_api::read_api;
use super::source;
use crate::config::Config;
use crate::model::{NodeFacts, ObjectKind};
use crate::state::Tracker;
use crate::sync::{FamilySync, Identity, LoopState};
use crate::watch::manifests;
use anyhow::Result;

/// A snapshot, and the families that it would be programmed for.
pub(super) struct Offline {
    tracker: Tracker,
    identity: Identity,
    families: Vec<FamilySync>,
}

impl Offline {
    /// Reads the source and looks at the node.
    pub(super) async fn read(config: &Config) -> Result<Offline> {
        let mut tracker = read_source(config).await?;
        tracker.allot();
        let node = tracker.snapshot().node.clone();
        let mut planes = Dataplanes::open_to_inspect(config, &node).await?;
        for family in &mut planes.families {
            family.learn().await?;
        }
        Ok(Offline { tracker, identity: planes.identity(config), families: planes.families })
    }

    /// What the loop would know.
    pub(super) fn state(&self) -> LoopState<'_> {
        LoopState { identity: &self.identity, tracker: &self.tracker, families: &self.families }
    }
}

async fn read_source(config: &Config) -> Result<Tracker> {
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
    let has_all = |tracker: &Tracker| tracker.is_complete() && tracker.has_listed(ObjectKind::Node);
    read_api(config, tracker, has_all).await
}
