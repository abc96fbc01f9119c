//! What the Services carried: which of the kernel's counters are read and when, and what becomes of
//! their numbers.
//!
//! The kernel resets a counter whenever its rule or server is written, so only its growth is told.
//! The number of series followed is limited; those of a Service are followed all or none.

use crate::model::{Counts, ServiceName, ServicePortName};
use crate::plan::{Plan, Scope, ServicePlan};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Bound;

/// What is asked of the kernel in one round, at most; what is left waits for the next one.
const MOST_QUESTIONS: usize = 100;
/// Rounds of two seconds in which all series are read once; more where their number takes longer.
const ROUNDS: usize = 5;

/// How finely traffic is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// By Service port and kind of frontend.
    Frontends,
    /// By endpoint, too.
    Endpoints,
}

/// What of a Service port is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measured {
    /// What came to the cluster IP.
    ClusterIp,
    /// What came to external IPs, load-balancer IPs and the node port.
    External,
    /// What went to an endpoint, whichever way.
    Endpoint(SocketAddr),
}

/// One thing that is measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Series {
    /// Of which Service port.
    pub port: ServicePortName,
    /// What of it.
    pub of: Measured,
}

/// What there is to tell about what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measurement<'a> {
    /// So much more than when it was last told; nothing at the beginning.
    Grown(&'a Series, Counts),
    /// It is measured no longer.
    Gone(&'a Series),
    /// This many are not measured now: beyond the limit, or unreadable.
    LeftOut(usize),
}

/// What is to be measured, and where the measurements go.
pub struct Measuring {
    /// How finely.
    pub detail: Detail,
    /// Series at most; the first Services by name are measured, and remain so while there is room.
    pub limit: usize,
    /// Takes each measurement.
    pub tell: Box<dyn Fn(Measurement<'_>)>,
}

/// A series and the kernel's counters that make it up.
#[derive(Clone, Debug)]
pub(super) struct CounterSeries<K> {
    pub(super) series: Series,
    /// Counters whose numbers are added.
    pub(super) adds: Vec<K>,
    /// Counters of what these have counted, too, and what is none of this series. They are read last,
    /// so that nothing is counted that may have to be taken back.
    pub(super) subtracts: Vec<K>,
}

/// The kernel's counters, for one round.
pub(super) trait Counters<K> {
    /// What a counter shows; zero if it is not there.
    fn read(&mut self, key: &K) -> Result<Counts>;

    /// How much the kernel was asked in this round.
    fn questions(&self) -> usize;
}

/// A counters and where it stood.
#[derive(Debug)]
struct Running<K> {
    counters: CounterSeries<K>,
    /// What its counters showed, in their order; `None` for one that stood there before us and
    /// has not been read yet.
    last: Vec<Option<Counts>>,
    /// Connections still to be taken off.
    to_subtract: u64,
}

/// All that is measured.
pub(super) struct ServiceCounters<K> {
    measuring: Measuring,
    followed: BTreeMap<ServiceName, Vec<Running<K>>>,
    /// Services for which there is no room, with how many series they have.
    left_out: BTreeMap<ServiceName, usize>,
    /// Series of those that are followed.
    series: usize,
    rounds: usize,
    /// Where the next round goes on.
    resume: Option<(ServiceName, usize)>,
    /// The last round failed.
    is_blind: bool,
}

impl<K> fmt::Debug for ServiceCounters<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCounters").field("series", &self.series).finish_non_exhaustive()
    }
}

impl<K: PartialEq> Running<K> {
    fn new(counters: CounterSeries<K>, is_written: &dyn Fn(&K) -> bool) -> Self {
        let keys = counters.adds.iter().chain(&counters.subtracts);
        let last = keys.map(|key| is_written(key).then(Counts::default)).collect();
        Running { counters, last, to_subtract: 0 }
    }

    fn keys(&self) -> impl Iterator<Item = &K> {
        self.counters.adds.iter().chain(&self.counters.subtracts)
    }

    /// Takes over where the same counters stood, unless they were reset.
    fn continue_from(&mut self, old: &Running<K>) {
        let keys = self.counters.adds.iter().chain(&self.counters.subtracts);
        for (key, last) in keys.zip(&mut self.last).filter(|(_, last)| last.is_none()) {
            if let Some((_, known)) = old.keys().zip(&old.last).find(|(known, _)| *known == key) {
                *last = *known;
            }
        }
        self.to_subtract = old.to_subtract;
    }

    /// What was counted since the last reading.
    fn read(&mut self, counters: &mut dyn Counters<K>) -> Result<Counts> {
        let now: Vec<Counts> = self.keys().map(|key| counters.read(key)).collect::<Result<_>>()?;
        let growth = now
            .iter()
            .zip(&self.last)
            .map(|(now, last)| last.map(|last| now.since(last)).unwrap_or_default());
        let adds = self.counters.adds.len();
        let mut grown = growth.clone().take(adds).fold(Counts::default(), Counts::plus);
        let off = growth.skip(adds).map(|counts| counts.connections).sum::<u64>() + self.to_subtract;
        self.to_subtract = off.saturating_sub(grown.connections);
        grown.connections = grown.connections.saturating_sub(off);
        self.last = now.into_iter().map(Some).collect();
        Ok(grown)
    }
}

impl<K: PartialEq> ServiceCounters<K> {
    pub(super) fn new(measuring: Measuring) -> Self {
        ServiceCounters {
            measuring,
            followed: BTreeMap::new(),
            left_out: BTreeMap::new(),
            series: 0,
            rounds: 0,
            resume: None,
            is_blind: false,
        }
    }

    /// Notes what the Services in a plan's scope look like now. The write reset the counters that `is_written` names.
    pub(super) fn update(
        &mut self,
        plan: &Plan<'_>,
        meters: &dyn Fn(&ServicePlan<'_>, Detail) -> Vec<CounterSeries<K>>,
        is_written: &dyn Fn(&K) -> bool,
    ) {
        let known: Vec<ServiceName> = match plan.scope() {
            Scope::All => self.followed.keys().chain(self.left_out.keys()).cloned().collect(),
            Scope::Only(_) => Vec::new(),
        };
        let names = known.iter().chain(plan.names_in_scope()).collect();
        let detail = self.measuring.detail;
        let of = |name: &ServiceName| plan.service(name).map(|it| meters(&it, detail)).unwrap_or_default();
        self.update_services(&names, &of, is_written);
    }

    /// The same; `meters` has none for a Service that is gone.
    fn update_services(
        &mut self,
        services: &BTreeSet<&ServiceName>,
        meters: &dyn Fn(&ServiceName) -> Vec<CounterSeries<K>>,
        is_written: &dyn Fn(&K) -> bool,
    ) {
        for name in services {
            self.follow(name, meters(name), is_written);
        }
        while let Some(name) = self.next_with_room() {
            self.left_out.remove(&name);
            self.follow(&name, meters(&name), is_written);
        }
        self.tell_left_out();
    }

    fn follow(&mut self, name: &ServiceName, meters: Vec<CounterSeries<K>>, is_written: &dyn Fn(&K) -> bool) {
        let old = self.followed.remove(name).unwrap_or_default();
        self.series -= old.len();
        self.left_out.remove(name);
        let has_room = self.series + meters.len() <= self.measuring.limit;
        let mut new = Vec::new();
        if has_room {
            new.extend(meters.into_iter().map(|counters| Running::new(counters, is_written)));
        } else {
            self.left_out.insert(name.clone(), meters.len());
        }
        let mut gone: HashMap<&Series, &Running<K>> =
            old.iter().map(|old| (&old.counters.series, old)).collect();
        for running in &mut new {
            match gone.remove(&running.counters.series) {
                Some(old) => running.continue_from(old),
                None => {
                    (self.measuring.tell)(Measurement::Grown(&running.counters.series, Counts::default()))
                }
            }
        }
        gone.into_keys().for_each(|series| (self.measuring.tell)(Measurement::Gone(series)));
        if new.iter().any(|running| running.last.contains(&None)) {
            self.rounds = 0;
        }
        self.series += new.len();
        if !new.is_empty() {
            self.followed.insert(name.clone(), new);
        }
    }

    fn next_with_room(&self) -> Option<ServiceName> {
        let room = self.measuring.limit - self.series;
        let fits = |(_, series): &(&ServiceName, &usize)| **series <= room;
        self.left_out.iter().find(fits).map(|(name, _)| name.clone())
    }

    fn tell_left_out(&self) {
        let unread = if self.is_blind { self.series } else { 0 };
        (self.measuring.tell)(Measurement::LeftOut(self.left_out.values().sum::<usize>() + unread));
    }

    /// Reads what has its turn; called every two seconds.
    pub(super) fn round(&mut self, counters: &mut dyn Counters<K>) {
        let is_due = self.resume.is_some() || self.rounds.is_multiple_of(ROUNDS);
        self.rounds += 1;
        if !is_due {
            return;
        }
        let read = self.read_from(counters);
        if let Err(error) = &read {
            let error = format!("{error:#}");
            match self.is_blind {
                false => {
                    tracing::warn!(
                        error,
                        "cannot read the kernel's counters; Service metrics do not grow meanwhile"
                    )
                }
                true => tracing::debug!(error, "the kernel's counters still cannot be read"),
            }
        }
        if self.is_blind != read.is_err() {
            self.is_blind = read.is_err();
            self.tell_left_out();
        }
    }

    /// Reads from where the last round ended.
    fn read_from(&mut self, counters: &mut dyn Counters<K>) -> Result<()> {
        let (first, skipped) = self.resume.take().unzip();
        let from = first.as_ref().map_or(Bound::Unbounded, Bound::Included);
        for (name, meters) in self.followed.range_mut::<ServiceName, _>((from, Bound::Unbounded)) {
            let skipped = skipped.filter(|_| first.as_ref() == Some(name)).unwrap_or_default();
            for (index, running) in meters.iter_mut().enumerate().skip(skipped) {
                if counters.questions() >= MOST_QUESTIONS {
                    self.resume = Some((name.clone(), index));
                    return Ok(());
                }
                tell_growth(&self.measuring, running, counters)?;
            }
        }
        Ok(())
    }

    /// Reads the counters of Services once more before they are written, as far as one round may.
    pub(super) fn read_before<'n>(
        &mut self,
        services: impl Iterator<Item = &'n ServiceName>,
        counters: &mut dyn Counters<K>,
    ) {
        for name in services {
            for running in self.followed.get_mut(name).into_iter().flatten() {
                if counters.questions() >= MOST_QUESTIONS {
                    return;
                }
                if let Err(error) = tell_growth(&self.measuring, running, counters) {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        "cannot read counters before a rewrite; some connections stay uncounted"
                    );
                    return;
                }
            }
        }
    }
}

fn tell_growth<K: PartialEq>(
    measuring: &Measuring,
    running: &mut Running<K>,
    counters: &mut dyn Counters<K>,
) -> Result<()> {
    let grown = running.read(counters)?;
    if grown != Counts::default() {
        (measuring.tell)(Measurement::Grown(&running.counters.series, grown));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod recorder {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// What was told of each series, added up.
    pub(in crate::backend) type Sums = Rc<RefCell<BTreeMap<String, Counts>>>;

    /// Something to measure with, and what it tells.
    pub(in crate::backend) fn recording(detail: Detail, limit: usize) -> (Measuring, Sums) {
        let sums = Sums::default();
        let told = sums.clone();
        let text = |series: &Series| format!("{} {} {:?}", series.port, series.port.protocol, series.of);
        let tell = move |it: Measurement<'_>| {
            let mut sums = told.borrow_mut();
            match it {
                Measurement::Grown(series, counts) => {
                    let sum = sums.entry(text(series)).or_default();
                    *sum = sum.plus(counts);
                }
                Measurement::Gone(series) => drop(sums.remove(&text(series)).unwrap()),
                Measurement::LeftOut(count) => {
                    sums.insert("left out".to_owned(), Counts { connections: count as u64, traffic: None });
                }
            }
        };
        (Measuring { detail, limit, tell: Box::new(tell) }, sums)
    }

    /// The connections of the series whose texts contain this.
    pub(in crate::backend) fn connections(sums: &Sums, what: &str) -> u64 {
        let sums = sums.borrow();
        sums.iter().filter(|(name, _)| name.contains(what)).map(|(_, counts)| counts.connections).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::recorder::{Sums, connections, recording};
    use super::*;
    use crate::model::Protocol;

    /// Numbers by name; each reading is one question.
    #[derive(Default)]
    struct Numbers {
        counts: BTreeMap<&'static str, u64>,
        asked: usize,
        fails: bool,
    }

    impl Counters<&'static str> for Numbers {
        fn read(&mut self, key: &&'static str) -> Result<Counts> {
            anyhow::ensure!(!self.fails, "fake failure");
            self.asked += 1;
            Ok(Counts { connections: self.counts.get(key).copied().unwrap_or_default(), traffic: None })
        }

        fn questions(&self) -> usize {
            self.asked
        }
    }

    fn name(service: &str) -> ServiceName {
        ServiceName::new("shop", service)
    }

    fn counters(limit: usize) -> (ServiceCounters<&'static str>, Sums) {
        let (measuring, sums) = recording(Detail::Endpoints, limit);
        (ServiceCounters::new(measuring), sums)
    }

    fn series_of(
        service: &str,
        adds: &[&'static str],
        subtracts: &[&'static str],
    ) -> CounterSeries<&'static str> {
        let port = ServicePortName { service: name(service), port: "".into(), protocol: Protocol::Tcp };
        let series = Series { port, of: Measured::ClusterIp };
        CounterSeries { series, adds: adds.to_vec(), subtracts: subtracts.to_vec() }
    }

    /// Follows Services of one series each, whose counters have their names.
    fn follow(
        counters: &mut ServiceCounters<&'static str>,
        services: &[&'static str],
        gone: &[&'static str],
    ) {
        let names: Vec<ServiceName> = services.iter().chain(gone).map(|it| name(it)).collect();
        let meters = |of: &ServiceName| {
            let here = services.iter().filter(|it| name(it) == *of);
            here.map(|it| series_of(it, &[*it], &[])).collect()
        };
        counters.update_services(&names.iter().collect(), &meters, &|_| true);
    }

    fn cycle(counters: &mut ServiceCounters<&'static str>, numbers: &mut Numbers) {
        for _ in 0..ROUNDS {
            numbers.asked = 0;
            counters.round(numbers);
        }
    }

    #[test]
    fn counts_only_grow_whenever_counters_begin_anew() {
        let (mut counters, sums) = counters(10);
        let mut numbers = Numbers::default();
        let sum = || connections(&sums, "shop/web tcp ClusterIp");
        let is_told = || sums.borrow().contains_key("shop/web tcp ClusterIp");
        follow(&mut counters, &["web"], &[]);
        assert!(is_told(), "a series is there before anything was counted");
        // Reset by another program: it shows fewer than before.
        for (shown, counted) in [(5, 5), (5, 5), (9, 9), (2, 11), (0, 11), (3, 14)] {
            numbers.counts.insert("web", shown);
            cycle(&mut counters, &mut numbers);
            assert_eq!(sum(), counted);
        }
        // By us: five more, although the counter shows but two more than it did.
        counters.read_before([name("web")].iter(), &mut numbers);
        let names = [name("web")];
        let meters = |_: &ServiceName| vec![series_of("web", &["web"], &[])];
        counters.update_services(&names.iter().collect(), &meters, &|key| *key == "web");
        numbers.counts.insert("web", 5);
        cycle(&mut counters, &mut numbers);
        assert_eq!(sum(), 19);
    }

    #[test]
    fn what_was_counted_before_it_was_measured_is_not_told() {
        let (mut counters, sums) = counters(10);
        let mut numbers = Numbers { counts: [("web", 7)].into(), ..Numbers::default() };
        counters.round(&mut numbers);
        let names = [name("web")];
        let meters = |_: &ServiceName| vec![series_of("web", &["web"], &[])];
        counters.update_services(&names.iter().collect(), &meters, &|_| false);
        counters.round(&mut numbers);
        assert_eq!((numbers.asked, connections(&sums, "web")), (1, 0), "it is read with the next round");
        numbers.counts.insert("web", 9);
        cycle(&mut counters, &mut numbers);
        assert_eq!(connections(&sums, "web"), 2);
    }

    #[test]
    fn what_is_read_before_a_write_is_not_lost() {
        let (mut counters, sums) = counters(10);
        follow(&mut counters, &["web"], &[]);
        let mut numbers = Numbers { counts: [("web", 7)].into(), ..Numbers::default() };
        counters.read_before([name("web"), name("unknown")].iter(), &mut numbers);
        assert_eq!(connections(&sums, "ClusterIp"), 7);
    }

    #[test]
    fn a_service_that_does_not_fit_is_left_out_until_there_is_room() {
        let (mut counters, sums) = counters(2);
        let told = || sums.borrow().keys().cloned().collect::<Vec<_>>().join(", ");
        follow(&mut counters, &["b", "c", "d", "a"], &[]);
        assert_eq!(
            (told().as_str(), connections(&sums, "left out")),
            ("left out, shop/a tcp ClusterIp, shop/b tcp ClusterIp", 2)
        );
        follow(&mut counters, &["b", "c", "d"], &["a"]);
        assert_eq!(
            (told().as_str(), connections(&sums, "left out")),
            ("left out, shop/b tcp ClusterIp, shop/c tcp ClusterIp", 1)
        );
        follow(&mut counters, &[], &["b", "c", "d"]);
        assert_eq!((told().as_str(), connections(&sums, "left out")), ("left out", 0));
    }

    #[test]
    fn a_service_that_outgrows_the_limit_makes_room_for_others() {
        let (mut counters, sums) = counters(3);
        let endpoint = |service: &'static str, number: u16| {
            let mut counters = series_of(service, &[service], &[]);
            counters.series.of = Measured::Endpoint(([10, 0, 0, 1], number).into());
            counters
        };
        let sizes = |a: u16, b: u16| {
            move |of: &ServiceName| match of.name() {
                "a" => (0..a).map(|number| endpoint("a", number)).collect(),
                _ => (0..b).map(|number| endpoint("b", number)).collect(),
            }
        };
        let names = [name("a"), name("b")];
        for (a, b, followed, left_out) in [(2, 2, "shop/a", 2), (4, 2, "shop/b", 4), (1, 2, "shop/", 0)] {
            counters.update_services(&names.iter().collect(), &sizes(a, b), &|_| true);
            let told: Vec<String> = sums.borrow().keys().filter(|it| *it != "left out").cloned().collect();
            assert!(told.iter().all(|it| it.starts_with(followed)), "{told:?}");
            assert_eq!(told.len() as u64 + left_out, u64::from(a + b));
            assert_eq!(connections(&sums, "left out"), left_out);
        }
    }

    #[test]
    fn a_round_asks_a_bounded_number_of_questions_and_the_next_goes_on() {
        let (mut counters, sums) = counters(1000);
        let services: Vec<&'static str> = (0..250).map(|number| &*format!("s-{number:03}").leak()).collect();
        follow(&mut counters, &services, &[]);
        let counts = services.iter().map(|it| (*it, 1)).collect();
        let mut numbers = Numbers { counts, ..Numbers::default() };
        for read in [100, 200, 250, 250] {
            numbers.asked = 0;
            counters.round(&mut numbers);
            assert_eq!(connections(&sums, "ClusterIp"), read);
        }
        assert_eq!(numbers.asked, 0, "all were read, and the time for another round has not come");
    }

    #[test]
    fn what_another_series_counts_is_taken_off_however_late_it_shows() {
        let (mut counters, sums) = counters(10);
        let names = [name("web")];
        let meters = |_: &ServiceName| vec![series_of("web", &["all"], &["external"])];
        counters.update_services(&names.iter().collect(), &meters, &|_| true);
        let mut numbers = Numbers::default();
        for (all, external, counted) in [(10, 4, 6), (10, 6, 6), (15, 6, 9), (16, 7, 9)] {
            numbers.counts = [("all", all), ("external", external)].into();
            cycle(&mut counters, &mut numbers);
            assert_eq!(connections(&sums, "ClusterIp"), counted);
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_left_out_until_it_can() {
        let (mut counters, sums) = counters(10);
        follow(&mut counters, &["web"], &[]);
        let mut numbers = Numbers { counts: [("web", 3)].into(), fails: true, ..Numbers::default() };
        cycle(&mut counters, &mut numbers);
        assert_eq!(connections(&sums, "left out"), 1);
        numbers.fails = false;
        cycle(&mut counters, &mut numbers);
        assert_eq!((connections(&sums, "left out"), connections(&sums, "ClusterIp")), (0, 3));
    }
}
