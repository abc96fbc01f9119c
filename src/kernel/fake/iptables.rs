//! iptables in memory: tables, chains and rules, with the kernel's strictness about jumps to
//! chains that do not exist and deletions of chains that are in use.

use crate::kernel::iptables::{
    CountedRule, Flavor, Place, RestoreError, RuleKind, Stamp, Trial, Version, Xtables, trial_inputs,
};
use crate::kernel::nft::{Act, Concerns, ForeignWrite, Heard, Part};
use crate::kernel::xtables_info::TableSize;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

const TOOL: &str = "fake-iptables-restore";
/// The name of another program.
const OTHERS: &str = "meddler";
const TARGETS: [&str; 6] = ["ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "DNAT"];

/// One table: chains by name, each a list of rules without `-A CHAIN`.
pub type Table = BTreeMap<String, Vec<String>>;

/// The tables of one family.
#[derive(Clone, Debug)]
pub struct FakeXtables {
    /// The flavour it pretends to be.
    pub flavor: Flavor,
    /// Tables by name.
    pub tables: BTreeMap<String, Table>,
    /// Inputs with a line that contains one of these are refused.
    pub refused: Vec<String>,
    /// Inputs with a line that contains one of these are not done in time; tables before that line take effect.
    pub too_slow: Vec<String>,
    /// How many were not.
    pub timeouts: usize,
    /// After this many restores …
    pub failures_after: usize,
    /// … this many fail for lack of the lock.
    pub failures: usize,
    /// Another program flushes the nat table right after the next restore.
    pub flushed_after_restore: bool,
    /// What rules have counted, by table, chain and rule; forgotten when the chain is written.
    pub packets: BTreeMap<(String, String, String), u64>,
    /// The tables are too large to be read, and have to be listed.
    pub is_too_large: bool,
    /// The next listing fails.
    pub listing_fails: bool,
    /// How often chains or rules were listed.
    pub readings: usize,
    /// Restores that took effect.
    pub inputs: Vec<String>,
    /// Some of the next notices are lost.
    pub loses: bool,
    generation: u32,
    listening: Listening,
    heard: Heard,
}

/// Which foreign writes are listened to.
#[derive(Clone, Default)]
struct Listening(Option<Concerns>);

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listening({})", self.0.is_some())
    }
}

impl Default for FakeXtables {
    fn default() -> Self {
        FakeXtables::new(Flavor::Nft)
    }
}

impl FakeXtables {
    /// Empty tables.
    #[must_use]
    pub fn new(flavor: Flavor) -> Self {
        let table = |chains: &[&str]| chains.iter().map(|chain| ((*chain).to_owned(), Vec::new())).collect();
        let all = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        FakeXtables {
            flavor,
            tables: BTreeMap::from([
                ("mangle".to_owned(), table(&all)),
                ("nat".to_owned(), table(&["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"])),
                ("filter".to_owned(), table(&["INPUT", "FORWARD", "OUTPUT"])),
            ]),
            refused: Vec::new(),
            too_slow: Vec::new(),
            timeouts: 0,
            failures_after: 0,
            failures: 0,
            flushed_after_restore: false,
            packets: BTreeMap::new(),
            is_too_large: false,
            listing_fails: false,
            readings: 0,
            inputs: Vec::new(),
            loses: false,
            generation: 0,
            listening: Listening::default(),
            heard: Heard::default(),
        }
    }

    /// Empties every chain of a table, as `iptables -F` does.
    pub fn flush(&mut self, table: &str) {
        self.meddle(table, |table| table.values_mut().for_each(Vec::clear));
    }

    /// Changes a table as another program would.
    pub fn meddle(&mut self, table: &str, with: impl FnOnce(&mut Table)) {
        let mut changed = self.tables.get(table).cloned().unwrap_or_default();
        with(&mut changed);
        self.tell(table, &changed);
        self.commit(table, changed);
    }

    /// Puts a table in the place of what it was.
    fn commit(&mut self, name: &str, table: Table) {
        self.generation += 1;
        self.tables.insert(name.to_owned(), table);
    }

    /// Tells what another program makes of a table.
    fn tell(&mut self, table: &str, new: &Table) {
        let Some(concerns) = &self.listening.0 else { return };
        if std::mem::take(&mut self.loses) {
            self.heard.is_incomplete = true;
            return;
        }
        let (none, nothing) = (Vec::new(), Table::new());
        let old = self.tables.get(table).unwrap_or(&nothing);
        for chain in old.keys().chain(new.keys().filter(|chain| !old.contains_key(*chain))) {
            let (before, after) = (old.get(chain).unwrap_or(&none), new.get(chain).unwrap_or(&none));
            // Those that stay in their places at the top are not told of.
            let same = before.iter().zip(after).take_while(|(before, after)| before == after).count();
            let acts = [
                (Act::RuleDeleted, before.len() > same),
                (Act::RuleAdded, after.len() > same),
                (Act::Deleted, !new.contains_key(chain)),
            ];
            for (act, _) in acts.into_iter().filter(|(act, is_so)| *is_so && concerns(table, chain, *act)) {
                let (table, chain, by) = (table.to_owned(), chain.clone(), OTHERS.to_owned());
                self.heard.writes.push(ForeignWrite { table, chain, act, by });
            }
        }
    }

    /// A chain's rules.
    #[must_use]
    pub fn rules(&self, table: &str, chain: &str) -> &[String] {
        self.tables.get(table).and_then(|table| table.get(chain)).map_or(&[], Vec::as_slice)
    }

    /// Makes the rules of a nat chain that end so count some packets.
    pub fn count(&mut self, chain: &str, ends: &str, packets: u64) {
        let counting: Vec<_> =
            self.rules("nat", chain).iter().filter(|it| it.ends_with(ends)).cloned().collect();
        for rule in counting {
            *self.packets.entry(("nat".to_owned(), chain.to_owned(), rule)).or_default() += packets;
        }
    }

    /// All rules that have been written so far.
    #[must_use]
    pub fn rules_written(&self) -> usize {
        self.inputs.iter().flat_map(|input| input.lines()).filter(|line| line.starts_with("-A ")).count()
    }

    fn take(&mut self, input: &str) -> Result<(), (usize, String)> {
        let mut open: Option<(String, Table)> = None;
        let mut declared: Vec<String> = Vec::new();
        for (index, line) in input.lines().enumerate() {
            let failed = |message: String| (index + 1, message);
            if self.refused.iter().any(|refused| line.contains(refused.as_str())) {
                return Err(failed("refused on request".to_owned()));
            }
            if let Some(name) = line.strip_prefix('*') {
                let table = self.tables.get(name).ok_or_else(|| failed(format!("no table {name}")))?;
                open = Some((name.to_owned(), table.clone()));
            } else if line == "COMMIT" {
                let (name, table) = open.take().ok_or_else(|| failed("no table is open".to_owned()))?;
                check_jumps(&table).map_err(failed)?;
                let written = |chain: &str| declared.iter().any(|it| it == chain);
                self.packets.retain(|(of, chain, _), _| *of != name || !written(chain));
                // To empty what is empty is nothing, and makes no generation.
                let does_nothing = self.tables.get(&name) == Some(&table)
                    && declared.iter().all(|chain| table.get(chain).is_none_or(Vec::is_empty));
                declared.clear();
                if !does_nothing {
                    self.commit(&name, table);
                }
            } else if !line.starts_with('#') && !line.is_empty() {
                let (_, table) = open.as_mut().ok_or_else(|| failed("no table is open".to_owned()))?;
                declared
                    .extend(line.strip_prefix(':').and_then(|it| it.split(' ').next()).map(str::to_owned));
                edit(table, line).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn each_rule(&self, table: &str, chain: Option<&str>, visit: &mut dyn FnMut(Part<CountedRule<'_>>)) {
        let place = |chain: &str, rule: &str| (table.to_owned(), chain.to_owned(), rule.to_owned());
        let Some(table) = self.tables.get(table) else { return };
        for (name, rules) in table.iter().filter(|(name, _)| chain.is_none_or(|chain| chain == *name)) {
            for rule in rules {
                let jumps_to = target(rule).filter(|target| table.contains_key(*target));
                let packets = self.packets.get(&place(name, rule)).copied().unwrap_or_default();
                visit(Part::Item(CountedRule { chain: name, jumps_to, packets }));
            }
        }
    }
}

fn refused((line, message): (usize, String)) -> RestoreError {
    RestoreError::Refused { tool: TOOL, line: Some(line), message }
}

fn edit(table: &mut Table, line: &str) -> Result<(), String> {
    if let Some(declared) = line.strip_prefix(':') {
        let chain = declared.split(' ').next().unwrap_or_default();
        if chain.len() > 28 {
            return Err(format!("chain name `{chain}' too long"));
        }
        table.insert(chain.to_owned(), Vec::new());
        return Ok(());
    }
    if let Some(chain) = line.strip_prefix("-X ") {
        return delete(table, chain);
    }
    let rule = line.strip_prefix("-A ").ok_or_else(|| format!("unknown command: {line}"))?;
    let (chain, rule) = rule.split_once(' ').ok_or("a rule without arguments")?;
    if let Some(target) = target(rule)
        && !table.contains_key(target)
        && !TARGETS.contains(&target)
        && target != "MASQUERADE"
    {
        return Err(format!("no chain/target by the name {target}"));
    }
    table.get_mut(chain).ok_or_else(|| format!("no chain {chain}"))?.push(rule.to_owned());
    Ok(())
}

fn delete(table: &mut Table, chain: &str) -> Result<(), String> {
    match table.get(chain) {
        None => return Err(format!("no chain {chain}")),
        Some(rules) if !rules.is_empty() => return Err(format!("chain {chain} is not empty")),
        Some(_) => {}
    }
    if table.values().flatten().any(|rule| target(rule) == Some(chain)) {
        return Err(format!("chain {chain} is in use"));
    }
    table.remove(chain);
    Ok(())
}

fn target(rule: &str) -> Option<&str> {
    rule.rsplit_once("-j ").and_then(|(_, rest)| rest.split(' ').next())
}

fn check_jumps(table: &Table) -> Result<(), String> {
    for rule in table.values().flatten() {
        if let Some(target) = target(rule).filter(|target| target.starts_with("KUBE-"))
            && !table.contains_key(target)
        {
            return Err(format!("jump to missing chain {target}"));
        }
    }
    Ok(())
}

impl Xtables for FakeXtables {
    fn flavor(&self) -> Flavor {
        self.flavor
    }

    fn version(&self) -> Version {
        Version(1, 8, 9)
    }

    async fn check_nat_table(&self) -> Result<()> {
        Ok(())
    }

    fn stamp(&mut self) -> Result<Stamp> {
        if self.flavor == Flavor::Nft {
            return Ok(Stamp::Generation(self.generation));
        }
        let size = |table: &str| {
            let table = self.tables.get(table)?;
            let rules = table.values().flatten();
            let size = u32::try_from(rules.clone().map(String::len).sum::<usize>()).unwrap_or(u32::MAX);
            let entries = u32::try_from(rules.count() + 2 * table.len()).unwrap_or(u32::MAX);
            Some(TableSize { entries, size })
        };
        Ok(Stamp::Sizes(["mangle", "nat", "filter"].map(size)))
    }

    fn has_counter(&mut self, _: &str) -> bool {
        true
    }

    fn ensure_counter(&mut self, _: &str) -> bool {
        true
    }

    async fn chains(&mut self, table: &str, visit: &mut dyn FnMut(Part<&str>)) -> Result<()> {
        self.readings += 1;
        visit(Part::Start);
        let chains = self.tables.get(table).into_iter().flat_map(Table::keys);
        chains.filter(|name| name.starts_with("KUBE-")).for_each(|name| visit(Part::Item(name)));
        Ok(())
    }

    fn counted_rules(
        &mut self,
        table: &str,
        chain: Option<&str>,
        visit: &mut dyn FnMut(Part<CountedRule<'_>>),
    ) -> Result<bool> {
        self.readings += 1;
        visit(Part::Start);
        if self.is_too_large {
            return Ok(false);
        }
        self.each_rule(table, chain, visit);
        Ok(true)
    }

    async fn list(&mut self, table: &str, chain: Option<&str>, visit: &mut dyn FnMut(&str)) -> Result<()> {
        self.readings += 1;
        if std::mem::take(&mut self.listing_fails) {
            bail!("the tool was killed");
        }
        let Some(table) = self.tables.get(table) else { return Ok(()) };
        let wanted = || table.iter().filter(|(name, _)| chain.is_none_or(|chain| chain == *name));
        wanted().for_each(|(name, _)| visit(&format!(":{name} - [0:0]")));
        for (name, rules) in wanted() {
            rules.iter().for_each(|rule| visit(&format!("-A {name} {rule}")));
        }
        Ok(())
    }

    fn listen(&mut self, concerns: Concerns) -> Result<bool> {
        self.heard = Heard::default();
        self.listening.0 = (self.flavor == Flavor::Nft).then_some(concerns);
        Ok(self.listening.0.is_some())
    }

    fn hear(&mut self) -> Heard {
        std::mem::take(&mut self.heard)
    }

    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError> {
        if self.failures_after > 0 {
            self.failures_after -= 1;
        } else if self.failures > 0 {
            self.failures -= 1;
            return Err(RestoreError::Unable { tool: TOOL, message: "the lock is taken".to_owned() });
        }
        let input: String = pieces.collect();
        if let Some(slow) = self.too_slow.iter().filter_map(|what| input.find(what)).min() {
            self.timeouts += 1;
            let done = input[..slow].rfind("COMMIT\n").map_or("", |end| &input[..end + "COMMIT\n".len()]);
            self.take(done).map_err(refused)?;
            return Err(RestoreError::TimedOut { tool: TOOL, after: Duration::from_secs(120) });
        }
        self.take(&input).map_err(refused)?;
        self.inputs.push(input);
        if std::mem::take(&mut self.flushed_after_restore) {
            self.flush("nat");
        }
        Ok(())
    }

    /// What is tried leaves nothing behind, and counts as no input.
    async fn try_rules(&mut self, kinds: &[RuleKind], _: Trial) -> Result<(), RestoreError> {
        let [write, _] = trial_inputs(kinds);
        self.clone().take(&write).map_err(refused)
    }

    async fn ensure_chain(&mut self, place: Place<'_>) -> Result<()> {
        let Some(table) = self.tables.get_mut(place.table) else { bail!("no table {}", place.table) };
        table.entry(place.chain.to_owned()).or_default();
        self.generation += 1;
        Ok(())
    }

    async fn insert_rules(&mut self, rules: &[(Place<'_>, &str)]) -> Result<()> {
        for (place, arguments) in rules {
            let chain = self.tables.get_mut(place.table).and_then(|table| table.get_mut(place.chain));
            let Some(rules) = chain else { bail!("no chain {}", place.chain) };
            rules.insert(0, (*arguments).to_owned());
        }
        self.generation += 1;
        Ok(())
    }

    async fn delete_rule(&mut self, place: Place<'_>, arguments: &str) -> Result<bool> {
        let chain = self.tables.get_mut(place.table).and_then(|table| table.get_mut(place.chain));
        let Some(rules) = chain else { return Ok(false) };
        let before = rules.len();
        rules.retain(|rule| rule != arguments);
        self.generation += 1;
        Ok(rules.len() < before)
    }
}
