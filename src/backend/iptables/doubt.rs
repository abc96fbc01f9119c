//! Whether the tables may differ from what was written in ways that counting does not show.

/// After that many rewrites in a row they come no less often: with thorough looks 30 s apart, an hour.
const MOST_DOUBLINGS: u32 = 7;

/// Others wrote while nobody listened, so that everything has to be written once more: soon, and
/// ever more seldom if that happens each time.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    is_raised: bool,
    /// How often everything has been written for it, one doubt after the other.
    rewrites: u32,
    /// So many thorough looks pass before everything is written for it again.
    rest: u32,
}

impl Doubt {
    pub(super) fn raise(&mut self) {
        self.is_raised = true;
    }

    /// Everything is written anew for another reason.
    pub(super) fn lower(&mut self) {
        self.is_raised = false;
    }

    /// Whether everything is to be written now; asked once at each thorough look.
    pub(super) fn is_due(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        if !self.is_raised {
            self.rewrites = 0;
            return false;
        }
        self.is_raised = false;
        self.rewrites = (self.rewrites + 1).min(MOST_DOUBLINGS);
        self.rest = 1 << self.rewrites;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_written_at_once_and_then_ever_more_seldom_while_doubts_go_on() {
        let mut doubt = Doubt::default();
        let mut due = Vec::new();
        for look in 0..100 {
            doubt.raise();
            due.extend(doubt.is_due().then_some(look));
        }
        assert_eq!(due, [0, 3, 8, 17, 34, 67]);
    }

    #[test]
    fn after_a_time_without_doubts_the_next_one_counts_as_the_first() {
        let mut doubt = Doubt::default();
        assert!((0..10).all(|_| !doubt.is_due()));
        doubt.raise();
        assert!(doubt.is_due());
        assert!((0..3).all(|_| !doubt.is_due()));
        doubt.raise();
        assert!(doubt.is_due());
    }
}
