//! The text of one input for iptables-restore, made piece by piece while it is sent.

use super::base;
use super::baseline::Baseline;
use super::chains::{Chain, Fixed, Holds};
use super::desired::{Desired, destination};
use super::diff::{Changes, Step};
use super::dispatch_tree::{Content, Prefix, PrefixChain};
use super::names::ChainId;
use super::render;
use crate::backend::lines::{Text, line};
use crate::backend::rule::Rule;
use crate::model::ServiceName;
use crate::plan::ServicePlan;
use std::collections::BTreeSet;
use std::fmt;

/// Text is handed on in pieces of about this many bytes: as much as a pipe takes at once.
const PIECE: usize = 64 * 1024;

/// One input.
pub(super) struct RestoreInput<'a> {
    pub(super) desired: &'a Desired<'a>,
    pub(super) changes: &'a Changes,
    /// What was there before.
    pub(super) baseline: &'a Baseline,
    pub(super) step: &'a Step,
}

/// A fragment of an input whose text is short; Services are the only thing there can be many of.
enum Fragment<'a> {
    Text(String),
    /// A Service's rules in these dispatch chains.
    Dispatch(ServicePlan<'a>, Of),
    Prefix(&'a PrefixChain),
    Chains(usize),
    Declaration(ChainId),
    Deletion(ChainId),
}

/// Dispatch chains whose rules are written together, Service by Service.
#[derive(Clone, Copy)]
enum Of {
    /// Those of the filter table that are to be written.
    Filter,
    Chain(Fixed),
}

impl<'a> RestoreInput<'a> {
    /// The text, in pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = String> + use<'_, 'a> {
        let mut fragments = self.filter_fragments().chain(self.nat_fragments());
        std::iter::from_fn(move || {
            let mut text = Text::default();
            for fragment in fragments.by_ref() {
                self.write(fragment, &mut text);
                if text.len() >= PIECE {
                    break;
                }
            }
            (text.len() > 0).then(|| text.into_string())
        })
    }

    fn filter_fragments(&self) -> Box<dyn Iterator<Item = Fragment<'a>> + '_> {
        let chains = self.fixed_of("filter");
        if chains.is_empty() {
            return Box::new(std::iter::empty());
        }
        let mut head = Text::default();
        line!(head, "*filter");
        chains.iter().for_each(|chain| declare(&mut head, chain));
        self.write_fixed(&mut head, "filter");
        let dispatch = chains.into_iter().filter(|chain| chain.holds() == Holds::Dispatch);
        let services =
            self.members(dispatch.collect()).map(|service| Fragment::Dispatch(service, Of::Filter));
        Box::new(
            std::iter::once(Fragment::Text(head.into_string()))
                .chain(services)
                .chain(std::iter::once(Fragment::Text("COMMIT\n".into()))),
        )
    }

    fn nat_fragments(&self) -> Box<dyn Iterator<Item = Fragment<'a>> + '_> {
        let (chains, deletes) = (self.fixed_of("nat"), self.deleted());
        let prefixes = &self.changes.write_prefixes[self.step.prefixes.clone()];
        if chains.is_empty() && self.step.services.is_empty() && prefixes.is_empty() && deletes.is_empty() {
            return Box::new(std::iter::empty());
        }
        let (has_services, has_node_ports) =
            (chains.contains(&Fixed::Services), chains.contains(&Fixed::NodePorts));
        let (mut head, mut rules, mut tail) = (Text::default(), Text::default(), Text::default());
        line!(head, "*nat");
        chains.iter().for_each(|chain| declare(&mut head, chain));
        self.write_fixed(&mut rules, "nat");
        if has_services {
            write_jumps(&mut rules, Fixed::Services, &self.changes.root);
            base::node_port_jumps(&self.desired.plan, &mut |chain, rule| write_rule(&mut tail, chain, &rule));
        }
        let is_linear = has_services && self.changes.tree_chains.is_none();
        let dispatched = is_linear.then(|| self.dispatched()).into_iter().flatten();
        let node_ports =
            has_node_ports.then(|| self.members([Fixed::NodePorts].into())).into_iter().flatten();
        Box::new(
            std::iter::once(Fragment::Text(head.into_string()))
                .chain(self.declared(prefixes).into_iter().map(Fragment::Declaration))
                .chain(std::iter::once(Fragment::Text(rules.into_string())))
                .chain(dispatched.map(|service| Fragment::Dispatch(service, Of::Chain(Fixed::Services))))
                .chain(node_ports.map(|service| Fragment::Dispatch(service, Of::Chain(Fixed::NodePorts))))
                .chain(prefixes.iter().map(Fragment::Prefix))
                .chain(self.step.services.iter().map(|index| Fragment::Chains(*index)))
                .chain(deletes.iter().map(|id| Fragment::Deletion(*id)))
                .chain(std::iter::once(Fragment::Text(tail.into_string())))
                .chain(std::iter::once(Fragment::Text("COMMIT\n".into()))),
        )
    }

    fn deleted(&self) -> &'a [ChainId] {
        &self.changes.delete[self.step.delete.clone()]
    }

    /// The chains of a table that always stand and are to be written.
    fn fixed_of(&self, table: &str) -> Vec<Fixed> {
        self.step.fixed.iter().copied().filter(|chain| chain.table() == table).collect()
    }

    /// Writes the rules of a table's chains that depend on settings only.
    fn write_fixed(&self, text: &mut Text, table: &str) {
        let (settings, features) = (self.desired.plan.settings, &self.desired.features);
        base::fixed_rules(settings, features, &mut |chain, rule| {
            let is_wanted = matches!(chain, Chain::Fixed(chain) if self.step.fixed.contains(&chain));
            if is_wanted && chain.table() == table {
                write_rule(text, chain, &rule);
            }
        });
    }

    /// The chains to declare, in the order of their names. The nft flavour keeps them so, and finds the place of one that
    /// comes out of order by looking at all of them.
    fn declared(&self, prefixes: &[PrefixChain]) -> Vec<ChainId> {
        let own = self.step.services.iter().flat_map(|index| &self.changes.services[*index].write);
        let mut chains: Vec<ChainId> = own.chain(self.deleted()).copied().collect();
        chains.extend(prefixes.iter().map(|chain| chain.prefix.chain()));
        chains.sort_by_cached_key(ChainId::name);
        chains
    }

    fn dispatched(&self) -> impl Iterator<Item = ServicePlan<'a>> + '_ {
        self.desired.plan.services().filter(|service| self.leads_to(service.name))
    }

    /// Whether a Service has rules in dispatch chains.
    fn leads_to(&self, name: &ServiceName) -> bool {
        !self.changes.withheld.contains(name)
    }

    /// The Services with rules in dispatch chains that only few have rules in: those known to, and
    /// those that get some now.
    fn members(&self, chains: Vec<Fixed>) -> impl Iterator<Item = ServicePlan<'a>> + use<'a> {
        let known = chains.iter().filter_map(|chain| self.baseline.members.get(chain)).flatten();
        let has_some = |print: &super::desired::Fingerprint| {
            chains.iter().any(|chain| !print.in_chain(*chain).is_empty())
        };
        let changed = self.changes.services.iter();
        let new = changed.filter(|change| change.print.as_deref().is_some_and(has_some));
        let names: BTreeSet<&ServiceName> = known.chain(new.map(|change| &change.name)).collect();
        let plan = self.desired.plan;
        let wanted = names.into_iter().filter(|name| self.leads_to(name)).cloned();
        wanted.collect::<Vec<_>>().into_iter().filter_map(move |name| plan.service(&name))
    }

    fn write(&self, fragment: Fragment<'a>, text: &mut Text) {
        match fragment {
            Fragment::Text(lines) => text.push_str(&lines),
            Fragment::Dispatch(service, of) => self.write_dispatch(&service, of, text),
            Fragment::Prefix(chain) => self.write_prefix(chain, text),
            Fragment::Chains(index) => self.write_chains(index, text),
            Fragment::Declaration(id) => declare(text, id),
            Fragment::Deletion(id) => line!(text, "-X {id}"),
        }
    }

    fn write_dispatch(&self, service: &ServicePlan<'_>, of: Of, text: &mut Text) {
        render::dispatch(service, self.desired.context(), &mut |chain, rule| {
            let Chain::Fixed(fixed) = chain else { return };
            let is_wanted = match of {
                Of::Filter => fixed.is_filter() && self.step.fixed.contains(&fixed),
                Of::Chain(wanted) => fixed == wanted,
            };
            if is_wanted {
                write_rule(text, chain, &rule);
            }
        });
    }

    fn write_prefix(&self, chain: &PrefixChain, text: &mut Text) {
        let id = chain.prefix.chain();
        match &chain.content {
            Content::Jumps(prefixes) => write_jumps(text, id, prefixes),
            Content::Rules(rules) => {
                for (address, name) in rules {
                    let Some(service) = self.desired.plan.service(name) else { continue };
                    render::dispatch(&service, self.desired.context(), &mut |chain, rule| {
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
        let change = &self.changes.services[index];
        let Some(service) = self.desired.plan.service(&change.name) else { return };
        let wanted: BTreeSet<ChainId> = change.write.iter().copied().collect();
        render::chains(&service, self.desired.context(), &mut |chain, rule| {
            if matches!(chain, Chain::Own(id) if wanted.contains(&id)) {
                write_rule(text, chain, &rule);
            }
        });
    }
}

/// An input that writes the rules of dispatch chains of some Services into a chain that nothing leads to; of none, an
/// input that deletes the chain.
pub(super) fn trial(desired: &Desired<'_>, chain: &str, services: &[&ServiceName]) -> String {
    let mut tables = ["filter", "nat"].map(|table| {
        let mut text = Text::default();
        line!(text, "*{table}");
        declare(&mut text, chain);
        text
    });
    for service in services.iter().filter_map(|name| desired.plan.service(name)) {
        render::dispatch(&service, desired.context(), &mut |shared, rule| {
            let [filter, nat] = &mut tables;
            write_rule(if shared.table() == "nat" { nat } else { filter }, chain, &rule);
        });
    }
    let end = if services.is_empty() { format!("-X {chain}\nCOMMIT\n") } else { "COMMIT\n".to_owned() };
    tables.map(|text| text.into_string() + &end).concat()
}

fn declare(text: &mut Text, chain: impl fmt::Display) {
    line!(text, ":{chain} - [0:0]");
}

fn write_rule(text: &mut Text, chain: impl fmt::Display, rule: &Rule<'_>) {
    line!(text, "-A {chain} {rule}");
}

fn write_jumps(text: &mut Text, chain: impl fmt::Display, prefixes: &[Prefix]) {
    prefixes.iter().for_each(|prefix| prefix.with_jump(|rule| write_rule(text, &chain, rule)));
}
