//! The networks that the cluster gives out cluster IPs from, by the objects that name them.

use crate::model::Cidr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All ServiceCIDRs that are known.
#[derive(Debug, Default)]
pub(super) struct ServiceCidrs {
    known: BTreeMap<Arc<str>, Box<[Cidr]>>,
    /// While a list runs: those that it has not named yet.
    unlisted: Option<BTreeSet<Arc<str>>>,
}

impl ServiceCidrs {
    pub(super) fn begin_list(&mut self) {
        self.unlisted = Some(self.known.keys().cloned().collect());
    }

    pub(super) fn end_list(&mut self) {
        for name in self.unlisted.take().unwrap_or_default() {
            self.known.remove(&name);
        }
    }

    pub(super) fn fold(&mut self, name: Arc<str>, cidrs: Box<[Cidr]>) {
        if let Some(unlisted) = &mut self.unlisted {
            unlisted.remove(&name);
        }
        self.known.insert(name, cidrs);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// All networks, each once.
    pub(super) fn all(&self) -> BTreeSet<Cidr> {
        self.known.values().flatten().copied().collect()
    }
}
