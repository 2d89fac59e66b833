//! Rule 8: how much of the work may be work that is tried again, ahead of others.
//!
//! Source: design.md 3.8. A task that failed and is tried again keeps its place in the queue, so it goes before
//! what came after it. A kind that always fails would so take the cluster from everybody else, many times over.
//! A budget bounds that: one retry for each five tasks handed out for the first time, and ten a second. Past
//! it a retry goes to the back of the queue, where it waits its turn like what arrives now. It is never
//! refused (its `max_attempts` are promised) and never held back from a node that is free.
//!
//! A lost node, a hand-back and a drain are no fault of the task, and are not charged.

/// What one first attempt earns, in thousandths of a retry: 20 %.
const EARNED_MILLI: u64 = 200;
/// What a second earns, in thousandths of a retry.
const PER_SECOND_MILLI: u64 = 10_000;
/// Most that is saved up, in thousandths of a retry: what ten seconds earn.
const MOST_MILLI: u64 = 100_000;
/// Microseconds that earn a thousandth.
const STEP_US: u64 = 1_000_000 / PER_SECOND_MILLI;

/// The budget of retries; begins full.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    left_milli: u64,
    /// Up to when time has been counted.
    counted_us: u64,
}

impl RetryBudget {
    /// A full budget at this time, in monotonic microseconds.
    #[must_use]
    pub const fn new(now_us: u64) -> Self {
        Self { left_milli: MOST_MILLI, counted_us: now_us }
    }

    /// A task was handed out for the first time.
    pub fn earn(&mut self) {
        self.left_milli = (self.left_milli + EARNED_MILLI).min(MOST_MILLI);
    }

    /// A task is tried again at this time, in monotonic microseconds. Says whether the budget had room for it.
    #[must_use]
    pub fn spend(&mut self, now_us: u64) -> bool {
        let steps = now_us.saturating_sub(self.counted_us) / STEP_US;
        // What is left of a step counts the next time.
        self.counted_us += steps * STEP_US;
        self.left_milli = self.left_milli.saturating_add(steps).min(MOST_MILLI);
        let room = self.left_milli >= 1_000;
        if room {
            self.left_milli -= 1_000;
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ten_a_second_always_go_and_a_burst_ends_at_what_was_saved() {
        let mut budget = RetryBudget::new(0);
        assert_eq!((0..200).filter(|_| budget.spend(0)).count(), 100);
        for tenth in 1..=100 {
            assert!(budget.spend(tenth * 100_000), "{tenth}");
            assert!(!budget.spend(tenth * 100_000), "{tenth}");
        }
    }

    #[test]
    fn five_first_attempts_earn_one_retry() {
        let mut budget = RetryBudget::new(0);
        while budget.spend(0) {}
        for _ in 0..4 {
            budget.earn();
        }
        assert!(!budget.spend(0));
        budget.earn();
        assert!(budget.spend(0));
        assert!(!budget.spend(0));
    }

    proptest! {
        #[test]
        fn what_is_spent_is_never_more_than_was_earned(
            steps in prop::collection::vec((0_u64..3, 0_u64..2_000_000), 1..400)
        ) {
            let mut budget = RetryBudget::new(0);
            let (mut now_us, mut first, mut spent) = (0, 0, 0);
            for (what, pass_us) in steps {
                match what {
                    0 => { budget.earn(); first += 1; }
                    1 => spent += u64::from(budget.spend(now_us)),
                    _ => now_us += pass_us,
                }
                // In millionths of a retry, so that nothing is rounded.
                let earned = MOST_MILLI * 1_000 + first * EARNED_MILLI * 1_000 + now_us * 10;
                prop_assert!(spent * 1_000_000 <= earned, "{spent} of {earned}");
            }
        }
    }
}
