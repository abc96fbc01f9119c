//! Whether another program keeps changing what we write: drift that comes back after each repair. A second service proxy
//! on the node causes that.

use crate::model::culprit;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Drift that is found this many times ...
const TIMES: usize = 3;
/// ... within this time is no accident.
const WINDOW: Duration = Duration::from_secs(600);
/// It is over when nothing has been found for as long as the last times took, and for at least this long.
const SILENCE: Duration = Duration::from_secs(60);

/// What has changed since it was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begins,
    Ends,
}

/// When drift was found, each time after everything had been repaired.
#[derive(Clone, Debug, Default)]
pub(super) struct Contention {
    /// The last times, oldest first.
    found: VecDeque<Instant>,
    /// The program that was the last one known.
    by: Option<String>,
    /// As it was reported last.
    is_told: bool,
}

impl Contention {
    /// Drift was found; `by` is the program that did it, if that is known.
    pub(super) fn drifted(&mut self, by: Option<&str>, now: Instant) {
        self.found.push_back(now);
        if self.found.len() > TIMES {
            self.found.pop_front();
        }
        self.by = by.map(str::to_owned).or(self.by.take());
    }

    /// Whether that has begun or ended since the last call.
    pub(super) fn turn(&mut self, now: Instant) -> Option<Turn> {
        let is_contended = self.is_contended(now);
        let turn = match (self.is_told, is_contended) {
            (false, true) => Some(Turn::Begins),
            (true, false) => Some(Turn::Ends),
            _ => None,
        };
        self.is_told = is_contended;
        turn
    }

    fn is_contended(&self, now: Instant) -> bool {
        let (Some(first), Some(last)) = (self.found.front(), self.found.back()) else { return false };
        let took = last.saturating_duration_since(*first);
        let silence = now.saturating_duration_since(*last);
        self.found.len() == TIMES && took <= WINDOW && silence <= took.max(SILENCE)
    }

    /// Its beginning has been reported, and its end has not.
    pub(super) fn is_told(&self) -> bool {
        self.is_told
    }

    /// The program, what it does, and the remedy.
    pub(super) fn sentence(&self) -> String {
        let by = self.by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
        format!(
            "another program{by} changes our rules again after each repair: is another service proxy, such as \
             kube-proxy, running on this node? Only one can; stop the other ({})",
            culprit(self.by.as_deref())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The turns while drift is found at these seconds, looking every two.
    fn turns(found: &[u64], until: u64) -> Vec<(u64, Turn)> {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let (mut contention, mut turns) = (Contention::default(), Vec::new());
        for second in (0..until).step_by(2) {
            if found.contains(&second) {
                contention.drifted(None, at(second));
            }
            turns.extend(contention.turn(at(second)).map(|turn| (second, turn)));
        }
        turns
    }

    #[test]
    fn what_happens_once_or_twice_or_seldom_is_no_contention() {
        for found in [&[][..], &[0], &[0, 2], &[0, 2, 2000], &[0, 400, 800, 1200, 1600]] {
            assert_eq!(turns(found, 4000), [], "{found:?}");
        }
    }

    #[test]
    fn what_comes_back_at_once_is_one_until_there_has_been_silence_for_a_minute() {
        assert_eq!(turns(&[10, 12, 14], 600), [(14, Turn::Begins), (76, Turn::Ends)]);
        let without_end: Vec<u64> = (10..500).step_by(2).collect();
        assert_eq!(turns(&without_end, 1000), [(14, Turn::Begins), (560, Turn::Ends)]);
    }

    #[test]
    fn the_slower_it_comes_back_the_longer_must_be_the_silence() {
        assert_eq!(turns(&[0, 100, 200], 1000), [(200, Turn::Begins), (402, Turn::Ends)]);
        let each_sync_period: Vec<u64> = (0..600).step_by(30).collect();
        assert_eq!(turns(&each_sync_period, 1000), [(60, Turn::Begins), (632, Turn::Ends)]);
    }

    #[test]
    fn after_its_end_it_can_begin_again() {
        let all = [(14, Turn::Begins), (76, Turn::Ends), (1004, Turn::Begins), (1066, Turn::Ends)];
        assert_eq!(turns(&[10, 12, 14, 1000, 1002, 1004], 2000), all);
    }

    #[test]
    fn the_program_is_named_as_soon_as_it_is_known() {
        let mut contention = Contention::default();
        contention.drifted(None, Instant::now());
        assert!(contention.sentence().starts_with("another program changes"));
        contention.drifted(Some("iptables-restor"), Instant::now());
        contention.drifted(None, Instant::now());
        assert!(contention.sentence().starts_with("another program (iptables-restor) changes"));
    }
}
