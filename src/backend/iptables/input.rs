//! The text of one input for iptables-restore, made piece by piece while it is sent.

use super::base;
use super::chains::{Chain, Fixed};
use super::desired::{Baseline, Desired, ServicePrint, destination};
use super::diff::{Changes, Step};
use super::names::{
    ChainId, EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, POSTROUTING, PROXY_FIREWALL,
    SERVICES,
};
use super::render;
use super::tree::{Content, Net, NetChain};
use crate::backend::lines::{Text, line};
use crate::backend::rule::{Match, Rule, Target};
use crate::model::ServiceName;
use crate::plan::ServicePlan;
use std::collections::BTreeSet;

/// Text is handed on in pieces of about this many bytes: as much as a pipe takes at once.
const PIECE: usize = 64 * 1024;

/// One input.
pub(super) struct Input<'a> {
    pub(super) desired: &'a Desired<'a>,
    pub(super) changes: &'a Changes,
    /// What was there before.
    pub(super) baseline: &'a Baseline,
    pub(super) step: &'a Step,
    /// Which of the step's Services to write, by index into `changes.services`.
    pub(super) services: &'a [usize],
    /// Which chains to delete.
    pub(super) delete: &'a [ChainId],
    /// Services that get no rules in shared chains.
    pub(super) excluded: &'a BTreeSet<ServiceName>,
}

/// A part of an input whose text is short; Services are the only thing there can be many of.
enum Part<'a> {
    Text(String),
    FilterDispatch(ServicePlan<'a>),
    NatDispatch(ServicePlan<'a>),
    NodePorts(ServicePlan<'a>),
    Net(&'a NetChain),
    Declare(usize),
    Chains(usize),
    Declaration(ChainId),
    Deletion(ChainId),
}

impl<'a> Input<'a> {
    /// The text, in pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = String> + use<'_, 'a> {
        let mut parts = self.filter_parts().chain(self.nat_parts());
        let writer = PartWriter { input: self };
        std::iter::from_fn(move || {
            let mut text = Text::default();
            for part in parts.by_ref() {
                writer.write(part, &mut text);
                if text.len() >= PIECE {
                    break;
                }
            }
            (text.len() > 0).then(|| text.into_string())
        })
    }

    fn filter_parts(&self) -> Box<dyn Iterator<Item = Part<'a>> + '_> {
        if !self.step.touches_filter() {
            return Box::new(std::iter::empty());
        }
        let plan = &self.desired.plan;
        let mut head = Text::default();
        line!(head, "*filter");
        let (fixed, dispatch) = (self.step.fixed, self.step.filter_dispatch);
        let declared = [
            (SERVICES, dispatch),
            (EXTERNAL_SERVICES, dispatch),
            (FORWARD, fixed),
            (NODE_PORTS, dispatch),
            (PROXY_FIREWALL, dispatch),
            (FIREWALL, fixed && base::keeps_firewall(plan.settings)),
        ];
        declare_fixed(&mut head, &declared);
        if fixed {
            self.write_fixed(&mut head, true);
        }
        let listed = || self.listed(&self.baseline.in_filter, |print| print.filter.count.rules > 0);
        let services = dispatch.then(|| listed().map(Part::FilterDispatch));
        Box::new(
            std::iter::once(Part::Text(head.into_string()))
                .chain(services.into_iter().flatten())
                .chain(std::iter::once(Part::Text("COMMIT\n".into()))),
        )
    }

    fn nat_parts(&self) -> Box<dyn Iterator<Item = Part<'a>> + '_> {
        let deletes = self.delete;
        let (fixed, dispatch, node_ports) = (self.step.fixed, self.step.nat_dispatch, self.step.node_ports);
        let nets = &self.changes.write_nets[self.step.nets.clone()];
        let chains = !(self.services.is_empty() && nets.is_empty() && deletes.is_empty());
        if !(fixed || dispatch || node_ports || chains) {
            return Box::new(std::iter::empty());
        }
        let mut head = Text::default();
        line!(head, "*nat");
        declare_fixed(
            &mut head,
            &[(SERVICES, dispatch), (NODE_PORTS, node_ports), (POSTROUTING, fixed), (MARK_MASQ, fixed)],
        );
        let mut rules = Text::default();
        if fixed {
            self.write_fixed(&mut rules, false);
        }
        let mut tail = Text::default();
        if dispatch {
            write_jumps(&mut rules, SERVICES, &self.changes.root);
            base::node_port_jumps(&self.desired.plan, &mut |chain, rule| write_rule(&mut tail, chain, &rule));
        }
        let linear = dispatch && self.changes.nets.is_none();
        let dispatched = linear.then(|| self.dispatched().map(Part::NatDispatch));
        let listed = || self.listed(&self.baseline.in_node_ports, |print| print.node_ports.count.rules > 0);
        let node_ports = node_ports.then(|| listed().map(Part::NodePorts));
        Box::new(
            std::iter::once(Part::Text(head.into_string()))
                .chain(self.services.iter().map(|index| Part::Declare(*index)))
                .chain(nets.iter().map(|chain| Part::Declaration(chain.net.chain())))
                .chain(deletes.iter().map(|id| Part::Declaration(*id)))
                .chain(std::iter::once(Part::Text(rules.into_string())))
                .chain(dispatched.into_iter().flatten())
                .chain(node_ports.into_iter().flatten())
                .chain(nets.iter().map(Part::Net))
                .chain(self.services.iter().map(|index| Part::Chains(*index)))
                .chain(deletes.iter().map(|id| Part::Deletion(*id)))
                .chain(std::iter::once(Part::Text(tail.into_string())))
                .chain(std::iter::once(Part::Text("COMMIT\n".into()))),
        )
    }

    /// Writes the rules of one table that depend on settings only.
    fn write_fixed(&self, text: &mut Text, is_filter: bool) {
        let (settings, features) = (self.desired.plan.settings, &self.desired.features);
        base::fixed_rules(settings, features, &mut |chain, rule| {
            if (chain.table() == "filter") == is_filter {
                write_rule(text, chain, &rule);
            }
        });
    }

    fn dispatched(&self) -> impl Iterator<Item = ServicePlan<'a>> + '_ {
        self.desired.plan.services().filter(|service| !self.excluded.contains(service.name))
    }

    /// The Services with rules in a shared chain that only few have rules in: those known to, and
    /// those that get some now.
    fn listed(
        &self,
        known: &BTreeSet<ServiceName>,
        has: fn(&ServicePrint) -> bool,
    ) -> impl Iterator<Item = ServicePlan<'a>> + use<'a> {
        let changed = self.changes.services.iter();
        let new =
            changed.filter(|change| change.print.as_deref().is_some_and(has)).map(|change| &change.name);
        let names: BTreeSet<&ServiceName> = known.iter().chain(new).collect();
        let plan = self.desired.plan;
        let wanted = names.into_iter().filter(|name| !self.excluded.contains(name)).cloned();
        wanted.collect::<Vec<_>>().into_iter().filter_map(move |name| plan.service(&name))
    }
}

fn write_rule(text: &mut Text, chain: impl std::fmt::Display, rule: &Rule<'_>) {
    line!(text, "-A {chain} {rule}");
}

fn write_jumps(text: &mut Text, chain: impl std::fmt::Display, nets: &[Net]) {
    for net in nets {
        let target = Target::Jump(net.chain().name());
        write_rule(text, &chain, &Rule::new(&[Match::destination(net.cidr())], target));
    }
}

fn declare_fixed(text: &mut Text, chains: &[(&str, bool)]) {
    for (chain, _) in chains.iter().filter(|(_, wanted)| *wanted) {
        line!(text, ":{chain} - [0:0]");
    }
}

/// Turns parts into text.
struct PartWriter<'i, 'a> {
    input: &'i Input<'a>,
}

impl<'a> PartWriter<'_, 'a> {
    fn write(&self, part: Part<'a>, text: &mut Text) {
        match part {
            Part::Text(lines) => text.push_str(&lines),
            Part::FilterDispatch(service) => {
                self.write_dispatch(&service, text, |chain| chain.table() == "filter");
            }
            Part::NatDispatch(service) => {
                self.write_dispatch(&service, text, |chain| chain == Chain::Fixed(Fixed::Services));
            }
            Part::NodePorts(service) => {
                self.write_dispatch(&service, text, |chain| chain == Chain::Fixed(Fixed::NodePorts));
            }
            Part::Net(chain) => self.write_net(chain, text),
            Part::Declare(index) => {
                for id in &self.input.changes.services[index].write {
                    line!(text, ":{id} - [0:0]");
                }
            }
            Part::Chains(index) => self.write_chains(index, text),
            Part::Declaration(id) => line!(text, ":{id} - [0:0]"),
            Part::Deletion(id) => line!(text, "-X {id}"),
        }
    }

    /// Writes a Service's rules in these shared chains.
    fn write_dispatch(&self, service: &ServicePlan<'_>, text: &mut Text, is_wanted: impl Fn(Chain) -> bool) {
        render::dispatch(service, self.input.desired.context(), &mut |chain, rule| {
            if is_wanted(chain) {
                write_rule(text, chain, &rule);
            }
        });
    }

    fn write_net(&self, chain: &NetChain, text: &mut Text) {
        let id = chain.net.chain();
        match &chain.content {
            Content::Jumps(nets) => write_jumps(text, id, nets),
            Content::Rules(rules) => {
                for (address, name) in rules {
                    let Some(service) = self.input.desired.plan.service(name) else { continue };
                    render::dispatch(&service, self.input.desired.context(), &mut |chain, rule| {
                        let leads = chain == Chain::Fixed(Fixed::Services);
                        if leads && destination(&rule) == Some(*address) {
                            write_rule(text, id, &rule);
                        }
                    });
                }
            }
        }
    }

    fn write_chains(&self, index: usize, text: &mut Text) {
        let change = &self.input.changes.services[index];
        let Some(service) = self.input.desired.plan.service(&change.name) else { return };
        let wanted: BTreeSet<ChainId> = change.write.iter().copied().collect();
        render::chains(&service, self.input.desired.context(), &mut |chain, rule| {
            if matches!(chain, Chain::Own(id) if wanted.contains(&id)) {
                write_rule(text, chain, &rule);
            }
        });
    }
}
