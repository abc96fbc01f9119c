//! How often something may be said: a burst at once, and in the long run one in a while. For each thing that it is
//! about, and over all of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Things that are kept apart; when more are talked about within their time, the new ones are not.
const MOST_KNOWN: usize = 1024;

/// A token bucket's size and how long one token takes to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How often at once.
    pub burst: u32,
    /// One more after each of these.
    pub pace: Duration,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When it will be full again, if it is not.
    full: Option<Instant>,
    /// Asked in vain since the last time that it allowed something.
    refused: u64,
}

impl Bucket {
    /// When it will be full if a token is taken now; `None` if there is none.
    fn after(&self, rate: Rate, now: Instant) -> Option<Instant> {
        let full = self.full.map_or(now, |full| full.max(now)) + rate.pace;
        (full <= now + rate.pace * rate.burst).then_some(full)
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full.is_none_or(|full| full <= now)
    }
}

/// How often something was suppressed before it is said again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suppressed {
    /// About the same thing.
    pub same: u64,
    /// About all things.
    pub all: u64,
}

/// Which things may be told now.
#[derive(Debug)]
pub struct Allowance<K> {
    each: Rate,
    all: Rate,
    known: HashMap<K, Bucket>,
    total: Bucket,
}

impl<K: Eq + Hash> Allowance<K> {
    /// A rate for each thing, and one for all of them together.
    #[must_use]
    pub fn new(each: Rate, all: Rate) -> Self {
        Allowance { each, all, known: HashMap::new(), total: Bucket::default() }
    }

    /// Whether something may be said now; `about` is what it is about, if that has a name. If so, how often it was not
    /// said before.
    pub fn ask(&mut self, about: Option<K>, now: Instant) -> Option<Suppressed> {
        let total = self.total.after(self.all, now);
        let Some(about) = about else { return self.grant(total, 0) };
        if self.known.len() >= MOST_KNOWN {
            self.known.retain(|_, bucket| !bucket.is_full(now));
        }
        if self.known.len() >= MOST_KNOWN && !self.known.contains_key(&about) {
            return self.grant(None, 0);
        }
        let bucket = self.known.entry(about).or_default();
        match (bucket.after(self.each, now), total) {
            (Some(full), Some(_)) => {
                let same = std::mem::take(&mut bucket.refused);
                bucket.full = Some(full);
                self.grant(total, same)
            }
            _ => {
                bucket.refused += 1;
                self.grant(None, 0)
            }
        }
    }

    fn grant(&mut self, full: Option<Instant>, same: u64) -> Option<Suppressed> {
        match full {
            Some(_) => {
                self.total.full = full;
                Some(Suppressed { same, all: std::mem::take(&mut self.total.refused) })
            }
            None => {
                self.total.refused += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Rate = Rate { burst: 2, pace: Duration::from_secs(10) };
    const ALL: Rate = Rate { burst: 5, pace: Duration::from_secs(1) };

    fn said(same: u64, all: u64) -> Option<Suppressed> {
        Some(Suppressed { same, all })
    }

    #[test]
    fn one_thing_is_said_in_bursts_and_what_was_not_said_is_counted() {
        let (mut allowance, start) = (Allowance::new(EACH, ALL), Instant::now());
        let mut at = |about, seconds| allowance.ask(Some(about), start + Duration::from_secs(seconds));
        assert_eq!(
            [at("web", 0), at("web", 0), at("web", 0), at("web", 9)],
            [said(0, 0), said(0, 0), None, None]
        );
        assert_eq!([at("db", 9), at("web", 10), at("web", 10)], [said(0, 2), said(2, 0), None]);
        assert_eq!([at("web", 100), at("web", 100), at("web", 100)], [said(1, 1), said(0, 0), None]);
    }

    #[test]
    fn many_things_share_what_there_is() {
        let (mut allowance, start) = (Allowance::new(EACH, ALL), Instant::now());
        let mut count = |from: u32, seconds| {
            let now = start + Duration::from_secs(seconds);
            (from..from + 100).filter(|about| allowance.ask(Some(*about), now).is_some()).count()
        };
        assert_eq!([count(0, 0), count(100, 2), count(200, 1000)], [5, 2, 5]);
        assert_eq!(allowance.ask(None, start + Duration::from_secs(1001)), said(0, 95));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let all = Rate { burst: u32::MAX, pace: Duration::from_nanos(1) };
        let (mut allowance, start) = (Allowance::new(EACH, all), Instant::now());
        let asked = 2 * MOST_KNOWN;
        let allowed = (0..asked).filter(|about| allowance.ask(Some(*about), start).is_some()).count();
        assert_eq!((allowed, allowance.known.len()), (MOST_KNOWN, MOST_KNOWN));
        assert!(allowance.ask(Some(asked), start + EACH.pace).is_some());
        assert_eq!(allowance.known.len(), 1);
    }
}
