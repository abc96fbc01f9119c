//! Clients that affinity remembers. Packets make these elements, and time removes them, after hours. Until then they lead even
//! to endpoints that are gone, or of a Service that has no affinity any more.

use super::names::{Plane, SetId, table};
use super::watched::Watched;
use crate::kernel::nftables::Ruleset;
use crate::model::IpFamily;
use anyhow::Result;
use nftables_rs::{Batch, Data, Element, ListedElement, Part, Value};
use std::collections::BTreeSet;

/// Deleted in one transaction at most.
const AT_ONCE: usize = 3_500;

/// How many clients were read, and how many of them deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) seen: usize,
    pub(super) deleted: usize,
}

/// Deletes clients that lead where affinity does not lead any more. Costs 0.4 s for 100,000 clients, and twice that if some
/// are to be deleted.
///
/// # Errors
/// If the kernel cannot be read, or if a client went by itself meanwhile: then try again.
pub(super) fn sweep(kernel: &mut impl Ruleset, watched: &mut Watched, family: IpFamily) -> Result<Swept> {
    let mut swept = Swept::default();
    for plane in Plane::ALL {
        let (seen, stale) = stale_targets(kernel, family, plane)?;
        swept.seen += seen;
        if !stale.is_empty() {
            swept.deleted += delete((&mut *kernel, &mut *watched), (family, plane), &stale)?;
        }
    }
    Ok(swept)
}

/// A destination and an endpoint that clients of it are led to, as keys of [`SetId::AffinityEndpoints`].
type Target = Vec<u8>;

/// Where a client is led: what follows its address, and the endpoint.
fn target(family: IpFamily, listed: &ListedElement<'_>) -> Option<Target> {
    let Some(Data::Value(endpoint)) = listed.element.data else { return None };
    let client = if family == IpFamily::V4 { 4 } else { 16 };
    Some([listed.element.key.get(client..)?, endpoint].concat())
}

/// How many clients there are, and targets of theirs that affinity does not lead to any more.
fn stale_targets(
    kernel: &mut impl Ruleset,
    family: IpFamily,
    plane: Plane,
) -> Result<(usize, BTreeSet<Target>)> {
    let (mut seen, mut targets) = (0, BTreeSet::new());
    kernel.elements(table(family), &SetId::Clients(plane).name(), &mut |part| match part {
        Part::Start => {
            seen = 0;
            targets.clear();
        }
        Part::Item(listed) => {
            seen += 1;
            targets.extend(target(family, &listed));
        }
    })?;
    let mut stale = BTreeSet::new();
    let allowed = SetId::AffinityEndpoints(plane).name();
    for target in targets {
        if !kernel.element(table(family), &allowed, &Element::new(&target), &mut |_| ())? {
            stale.insert(target);
        }
    }
    Ok((seen, stale))
}

fn delete(
    (kernel, watched): (&mut impl Ruleset, &mut Watched),
    (family, plane): (IpFamily, Plane),
    stale: &BTreeSet<Target>,
) -> Result<usize> {
    let (table, set) = (table(family), SetId::Clients(plane).name());
    let mut keys: Vec<Value> = Vec::new();
    kernel.elements(table, &set, &mut |part| match part {
        Part::Start => keys.clear(),
        Part::Item(listed) if target(family, &listed).is_some_and(|it| stale.contains(&it)) => {
            keys.push(Value::new(listed.element.key));
        }
        Part::Item(_) => {}
    })?;
    let mut batch = Batch::new();
    for keys in keys.chunks(AT_ONCE) {
        batch.clear();
        let mut list = batch.delete_elements(table, &*set);
        keys.iter().for_each(|key| _ = list.push(&Element::new(key.as_bytes())));
        let before = kernel.generation()?;
        kernel.commit(&mut batch, Some(before))?;
        watched.committed_unseen(before, kernel.generation()?);
    }
    Ok(keys.len())
}
