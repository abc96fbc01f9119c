//! What separates the baseline from what is wanted, and the order in which to mend it.

use super::desired::{Baseline, Desired, ServicePrint};
use super::names::ChainId;
use crate::model::ServiceName;
use crate::plan::Scope;
use std::collections::BTreeSet;
use std::ops::Range;

/// What has to be done.
#[derive(Debug, Default)]
pub struct Changes {
    /// Make the jumps from the built-in chains and the canaries.
    pub(super) set_up: bool,
    /// Rewrite the fixed chains.
    pub(super) fixed: bool,
    /// Rewrite the shared chains of the filter table that hold Services' rules.
    pub(super) filter_dispatch: bool,
    /// The same for the nat table.
    pub(super) nat_dispatch: bool,
    /// Services of which something changed.
    pub(super) services: Vec<ServiceChange>,
    /// Chains that nothing will use any more.
    pub(super) delete: Vec<ChainId>,
}

/// What changes of one Service.
#[derive(Debug)]
pub(super) struct ServiceChange {
    pub(super) name: ServiceName,
    /// What it is then; `None` when it is gone.
    pub(super) print: Option<ServicePrint>,
    /// Chains to write anew.
    pub(super) write: Vec<ChainId>,
    /// Its rules in shared chains change.
    pub(super) dispatch: bool,
}

/// One input for iptables-restore; each table of it takes effect as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) fixed: bool,
    pub(super) filter_dispatch: bool,
    pub(super) nat_dispatch: bool,
    /// Which of `Changes::services` to write.
    pub(super) services: Range<usize>,
    /// Which of `Changes::delete` to delete.
    pub(super) delete: Range<usize>,
}

impl Changes {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Changes { set_up, fixed, filter_dispatch, nat_dispatch, services, delete } = self;
        !(*set_up || *fixed || *filter_dispatch || *nat_dispatch) && services.is_empty() && delete.is_empty()
    }

    pub(super) fn between(baseline: &Baseline, desired: &Desired<'_>) -> Self {
        let known = baseline.fixed.as_ref();
        let mut changes = Changes {
            set_up: !baseline.set_up,
            fixed: known.is_none_or(|it| (it.filter, it.nat) != (desired.fixed.filter, desired.fixed.nat)),
            filter_dispatch: known.is_none(),
            nat_dispatch: known.is_none_or(|it| it.node_port_jump != desired.fixed.node_port_jump),
            ..Changes::default()
        };
        for (name, print) in &desired.services {
            changes.compare(name, baseline.services.get(name), print.as_ref());
        }
        if matches!(desired.plan.scope(), Scope::All) {
            changes.remove_missing(baseline, desired);
            changes.delete_strays(baseline, desired);
        }
        // What jumps goes before what is jumped to.
        changes.delete.sort_unstable();
        changes
    }

    fn compare(&mut self, name: &ServiceName, old: Option<&ServicePrint>, new: Option<&ServicePrint>) {
        if old == new {
            return;
        }
        let nothing = ServicePrint::default();
        let (before, after) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        let (nat, filter) = (before.nat != after.nat, before.filter != after.filter);
        self.nat_dispatch |= nat;
        self.filter_dispatch |= filter;
        let kept: BTreeSet<ChainId> = after.ids().collect();
        self.delete.extend(before.ids().filter(|id| !kept.contains(id)));
        self.services.push(ServiceChange {
            name: name.clone(),
            write: after.chains_beyond(before),
            print: new.cloned(),
            dispatch: nat || filter,
        });
    }

    fn remove_missing(&mut self, baseline: &Baseline, desired: &Desired<'_>) {
        let wanted: BTreeSet<&ServiceName> = desired.services.iter().map(|(name, _)| name).collect();
        for (name, print) in baseline.services.iter().filter(|(name, _)| !wanted.contains(name)) {
            self.compare(name, Some(print), None);
        }
    }

    fn delete_strays(&mut self, baseline: &Baseline, desired: &Desired<'_>) {
        let prints = desired.services.iter().filter_map(|(_, print)| print.as_ref());
        let mut strays = baseline.strays.clone();
        for id in prints.flat_map(ServicePrint::ids) {
            strays.remove(&id);
        }
        self.delete.extend(strays);
    }

    /// The inputs, in an order that is safe at every step: what marks and masquerades first,
    /// then the Services' chains, then what leads into them, and only then what is left over
    /// goes. `most_chains` is how many chains one input may hold; a Service is never split.
    pub(super) fn steps(&self, most_chains: usize) -> Vec<Step> {
        let chains: usize = self.services.iter().map(|it| it.write.len()).sum();
        let all = Step {
            fixed: self.fixed,
            filter_dispatch: self.filter_dispatch,
            nat_dispatch: self.nat_dispatch,
            services: 0..self.services.len(),
            delete: 0..self.delete.len(),
        };
        if chains + self.delete.len() <= most_chains {
            return if all.is_empty(self) { Vec::new() } else { vec![all] };
        }
        let mut steps = vec![Step { fixed: self.fixed, ..Step::default() }];
        steps.extend(self.service_steps(most_chains));
        steps.push(Step {
            filter_dispatch: self.filter_dispatch,
            nat_dispatch: self.nat_dispatch,
            ..Step::default()
        });
        let deletes = (0..self.delete.len()).step_by(most_chains);
        steps.extend(deletes.map(|start| Step {
            delete: start..(start + most_chains).min(self.delete.len()),
            ..Step::default()
        }));
        steps.retain(|step| !step.is_empty(self));
        steps
    }

    fn service_steps(&self, most_chains: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        let (mut start, mut chains) = (0, 0);
        for (index, service) in self.services.iter().enumerate() {
            if chains > 0 && chains + service.write.len() > most_chains {
                steps.push(Step { services: start..index, ..Step::default() });
                (start, chains) = (index, 0);
            }
            chains += service.write.len();
        }
        steps.push(Step { services: start..self.services.len(), ..Step::default() });
        steps
    }
}

impl Step {
    pub(super) fn touches_filter(&self) -> bool {
        self.fixed || self.filter_dispatch
    }

    pub(super) fn is_empty(&self, changes: &Changes) -> bool {
        let writes = changes.services[self.services.clone()].iter().any(|it| !it.write.is_empty());
        !(self.touches_filter() || self.nat_dispatch || writes) && self.delete.is_empty()
    }
}
