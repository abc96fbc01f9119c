//! Reading back what is in the table.

use super::baseline::{Baseline, Shared, Structure, hairpin_of};
use super::element::{self, Endpoint};
use super::found::{Found, Print, Strange};
use super::layout::{Layout, is_compatible};
use super::names::{Class, Kind, SetId, table};
use super::ownership::{self, Standing};
use crate::kernel::nftables::Ruleset;
use crate::kernel::sockets::netfilter_program;
use crate::model::{IpFamily, Protocol};
use anyhow::{Result, bail};
use nftables_rs::{
    Batch, Chain, Element, Expression, ListedRule, Part, SetFlags, SetRef, Table, TableName, Value,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How often reading starts over because others change the ruleset meanwhile.
const ATTEMPTS: usize = 10;

/// How the table stands to the wanted one; `None` if it is not there.
fn standing(kernel: &mut impl Ruleset, wanted: &Table<'_>) -> Result<Option<Standing>> {
    let (mut found, us) = (None, (wanted.flags, kernel.port()));
    kernel.tables(&mut |part| match part {
        Part::Start => found = None,
        Part::Item(listed) if listed.table.name == wanted.name => {
            found = Some(Standing::of(listed.table.flags, listed.owner, us));
        }
        Part::Item(_) => {}
    })?;
    Ok(found)
}

/// Why this process cannot change the table, if another one owns it.
pub(super) fn foreign_owner(kernel: &mut impl Ruleset, table: TableName<'_>) -> Result<Option<String>> {
    match standing(kernel, &Table::new(table))? {
        Some(Standing::OfAnother(owner)) => Ok(Some(refusal(table, owner))),
        _ => Ok(None),
    }
}

fn refusal(table: TableName<'_>, owner: u32) -> String {
    ownership::refusal(table, owner, netfilter_program(owner).as_deref())
}

/// Everything that is there.
pub(super) fn all(kernel: &mut impl Ruleset, layout: &Layout) -> Result<Baseline> {
    for _ in 0..ATTEMPTS {
        let before = kernel.generation()?;
        let structure = structure(kernel, layout)?;
        if let Some(owner) = structure.owner {
            bail!("{}", refusal(layout.table, owner));
        }
        let mut baseline = Baseline::default();
        baseline.structure = structure;
        if baseline.structure.is_there && !baseline.structure.is_unfit {
            let read = elements(kernel, layout.settings.family, &baseline.structure.sets)?;
            baseline.elements = read.found.len() + read.hairpins.len();
            baseline.found = read.found;
            let there = Shared { users: 0, is_there: true };
            baseline.hairpins = read.hairpins.into_iter().map(|key| (key, there)).collect();
        }
        if kernel.generation()? == before {
            return Ok(baseline);
        }
    }
    bail!("the nf_tables ruleset was changed {ATTEMPTS} times while it was read")
}

/// Which sets and chains are there, whatever they hold.
pub(super) fn structure(kernel: &mut impl Ruleset, layout: &Layout) -> Result<Structure> {
    let mut structure = Structure::default();
    let Some(standing) = standing(kernel, &layout.table())? else { return Ok(structure) };
    structure.is_there = true;
    match standing {
        Standing::Fit => {}
        Standing::Orphan => structure.is_orphan = true,
        Standing::Unfit => structure.is_unfit = true,
        Standing::OfAnother(owner) => (structure.is_unfit, structure.owner) = (true, Some(owner)),
    }
    let ids: HashMap<String, SetId> = SetId::all(Class::LARGEST, &[])
        .chain(SetId::COUNTED)
        .map(|id| (id.name().into_owned(), id))
        .collect();
    let id_of = |name: &str| ids.get(name).copied().or_else(|| SetId::of_timeout(name));
    kernel.sets(layout.table, &mut |part| {
        let listed = match part {
            Part::Start => {
                structure.sets.clear();
                structure.surplus_sets.clear();
                return;
            }
            Part::Item(listed) if listed.flags.contains(SetFlags::ANONYMOUS) => return,
            Part::Item(listed) => listed,
        };
        match id_of(listed.name) {
            None => _ = structure.surplus_sets.insert(listed.name.to_owned()),
            Some(id) if layout.with_set(id, |set| is_compatible(&listed, set)) => {
                structure.sets.insert(id);
            }
            Some(_) => structure.is_unfit = true,
        }
    })?;
    chains(kernel, layout, &mut structure)?;
    if structure.is_unfit {
        structure.sets.clear();
    }
    Ok(structure)
}

fn chains(kernel: &mut impl Ruleset, layout: &Layout, structure: &mut Structure) -> Result<()> {
    let picks =
        Kind::ALL.into_iter().flat_map(|kind| Class::LARGEST.up_to().map(move |class| kind.chain(class)));
    let ours: BTreeSet<String> = picks.chain(layout.fixed_chains().map(str::to_owned)).collect();
    kernel.chains(layout.table, &mut |part| {
        let chain: Chain<'_> = match part {
            Part::Start => return structure.surplus_chains.clear(),
            Part::Item(listed) => listed.chain,
        };
        let base = layout.base_chains().find(|(name, ..)| *name == chain.name);
        let found = chain.base.map(|it| (it.kind, it.hook, it.priority));
        match base {
            Some((_, kind, hook, priority)) => {
                structure.is_unfit |= found != Some((kind, hook, priority));
            }
            None if ours.contains(chain.name) => structure.is_unfit |= found.is_some(),
            None => _ = structure.surplus_chains.insert(chain.name.to_owned()),
        }
    })?;
    Ok(())
}

/// Elements that are there.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) found: Found,
    pub(super) hairpins: BTreeSet<(Protocol, Endpoint)>,
}

/// The elements of sets, but for clients.
pub(super) fn elements(kernel: &mut impl Ruleset, family: IpFamily, sets: &BTreeSet<SetId>) -> Result<Read> {
    let mut read = Read::default();
    for id in sets.iter().copied().filter(|id| !matches!(id, SetId::Clients(_))) {
        let mut of_set = Read::default();
        kernel.elements(table(family), &id.name(), &mut |part| match part {
            Part::Start => of_set = Read::default(),
            Part::Item(listed) => of_set.take(family, id, &listed.element),
        })?;
        read.found.absorb(of_set.found);
        read.hairpins.extend(of_set.hairpins);
    }
    Ok(read)
}

impl Read {
    fn take(&mut self, family: IpFamily, set: SetId, element: &Element<'_>) {
        match element::read(family, set, element) {
            Some((id, to)) => match hairpin_of(&id) {
                Some(key) => _ = self.hairpins.insert(key),
                None => self.found.insert(id, Print::new(to, element.comment)),
            },
            None => self.found.insert_strange(Strange {
                set,
                key: Value::new(element.key),
                key_end: element.key_end.map(Value::new),
            }),
        }
    }
}

/// The rules of chains, each as text that is equal if the rule is.
type Rules = BTreeMap<String, Vec<String>>;

fn push(rules: &mut Rules, rule: &ListedRule<'_>) {
    let anonymous = |set: SetRef<'_>| set.name.starts_with("__set");
    let steps: Vec<String> = rule
        .expressions()
        .map(|expression| match expression {
            Ok(Expression::Lookup { set, key, to, inverse }) if anonymous(set) => {
                let set = SetRef::from("__set%d");
                format!("{:?}", Expression::Lookup { set, key, to, inverse })
            }
            Ok(Expression::Lookup { set, key, to, inverse }) => {
                let set = SetRef::from(set.name);
                format!("{:?}", Expression::Lookup { set, key, to, inverse })
            }
            Ok(expression) => format!("{expression:?}"),
            Err(error) => format!("{error:?}"),
        })
        .collect();
    let text = format!("{:?} {}", rule.comment, steps.join(" "));
    rules.entry(rule.chain.to_owned()).or_default().push(text);
}

/// Chains whose rules are not as they should be.
pub(super) fn differing_chains(
    kernel: &mut impl Ruleset,
    layout: &Layout,
    expected: &Batch,
) -> Result<BTreeSet<String>> {
    let (mut wanted, mut there) = (Rules::new(), Rules::new());
    expected.rules().for_each(|rule| push(&mut wanted, &rule));
    kernel.rules(layout.table, &mut |part| match part {
        Part::Start => there.clear(),
        Part::Item(rule) => push(&mut there, &rule),
    })?;
    let differs = |chain: &&String| wanted.get(*chain) != there.get(*chain);
    let all: BTreeSet<&String> = wanted.keys().chain(there.keys()).collect();
    Ok(all.into_iter().filter(differs).cloned().collect())
}
