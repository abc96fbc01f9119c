//! What the loop does with one family, without the loop: for tests of a dataplane alone.

use crate::backend::{Applied, Dataplane};
use crate::model::{Cidr, IpFamily, NodeFacts, WatchEvent};
use crate::plan::{FamilySettings, LocalDetector, Plan, Scope};
use crate::state::Tracker;
use anyhow::Result;

/// An empty snapshot of our node, and settings that tell its pods by their network.
#[must_use]
pub fn start(family: IpFamily) -> (Tracker, FamilySettings) {
    let node = NodeFacts { name: "node-0".into(), zone: Some("z0".into()), ..NodeFacts::default() };
    let pods = match family {
        IpFamily::V4 => Cidr::new_assert([10, 128, 0, 0].into(), 16),
        IpFamily::V6 => Cidr::new_assert([0xfd00, 0x128, 0, 0, 0, 0, 0, 0].into(), 32),
    };
    let detector = Some(LocalDetector::Cidr(pods));
    (Tracker::new(node, 0), FamilySettings { detector, ..FamilySettings::new(family) })
}

/// Tells a tracker all Services and slices that another one knows.
pub fn copy_snapshot(from: &Tracker, to: &mut Tracker) {
    for record in from.snapshot().services.values() {
        let service = record.service.iter().cloned().map(WatchEvent::Service);
        let slices = record.slices.iter().cloned().map(|slice| WatchEvent::Slice(Box::new(slice)));
        service.chain(slices).for_each(|event| to.fold(event));
    }
}

/// One pass: full if the dataplane knows nothing, else partial.
///
/// # Errors
/// As the dataplane's.
pub async fn run(
    tracker: &mut Tracker,
    settings: &FamilySettings,
    dataplane: &mut dyn Dataplane,
) -> Result<Applied> {
    let changes = tracker.take_changes(settings.family);
    let scope = match dataplane.needs_all() {
        true => Scope::All,
        false => Scope::Only(&changes.services),
    };
    let plan = Plan::new(settings, tracker.snapshot(), scope)
        .with_endpoint_count(tracker.endpoints(settings.family));
    dataplane.sync(&plan).await
}
