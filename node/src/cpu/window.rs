//! The sliding window: sums at moments, and what happened over a span of 500 … 1,000 ms of them.

use std::collections::VecDeque;

/// A span shorter than this says too little: quotas are given out in periods of 100 ms. It is the
/// 500 ms of design 3.1 less the jitter of a timer.
const SHORTEST_NS: u64 = 450_000_000;
/// A longer span says too much about the past.
const LONGEST_NS: u64 = 1_000_000_000;
/// Moments kept at most; past this a new one takes the place of the last one.
const MOST: usize = 32;

/// Sums since some start, at one moment. All but `at_ns` may stand still, none may go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Monotonic time.
    pub at_ns: u64,
    /// CPU time of everything in the container.
    pub used_ns: u64,
    /// CPU time of the node's process tree, exited children included.
    pub own_ns: u64,
    /// CPU time of others on the host, where the node is a process of a host; else 0.
    pub host_others_ns: u64,
    /// CPU time of our tasks by the clocks of whole processes: what [`Self::run_ns`] misses of threads
    /// that lived and died between two looks.
    pub task_cpu_ns: u64,
    /// Run time of the threads of our tasks.
    pub run_ns: u64,
    /// Wait time of the threads of our tasks.
    pub wait_ns: u64,
    /// Time with at least one task that is not `sleep`.
    pub busy_ns: u64,
    /// Run and wait time of the threads in the container that are not ours.
    pub foreign_ns: u64,
    /// CFS periods.
    pub periods: u64,
    /// CFS periods in which the container was throttled.
    pub throttled: u64,
}

/// The difference of two [`Totals`]; `at_ns` is the length of the span.
pub type Span = Totals;

impl Totals {
    /// Whether a counter of the kernel went back since `earlier`: it was set to 0, or wrapped.
    const fn went_back(&self, earlier: &Self) -> bool {
        self.used_ns < earlier.used_ns
            || self.periods < earlier.periods
            || self.throttled < earlier.throttled
            || self.at_ns < earlier.at_ns
    }

    const fn since(&self, earlier: &Self) -> Span {
        Span {
            at_ns: self.at_ns.saturating_sub(earlier.at_ns),
            used_ns: self.used_ns.saturating_sub(earlier.used_ns),
            // Sums over processes that come and go may shrink by a clock tick.
            own_ns: self.own_ns.saturating_sub(earlier.own_ns),
            host_others_ns: self.host_others_ns.saturating_sub(earlier.host_others_ns),
            task_cpu_ns: self.task_cpu_ns.saturating_sub(earlier.task_cpu_ns),
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            wait_ns: self.wait_ns.saturating_sub(earlier.wait_ns),
            busy_ns: self.busy_ns.saturating_sub(earlier.busy_ns),
            foreign_ns: self.foreign_ns.saturating_sub(earlier.foreign_ns),
            periods: self.periods.saturating_sub(earlier.periods),
            throttled: self.throttled.saturating_sub(earlier.throttled),
        }
    }
}

/// The last second of sums.
#[derive(Clone, Debug, Default)]
pub struct Window {
    moments: VecDeque<Totals>,
}

impl Window {
    /// Adds a moment. If a counter of the kernel went back the window starts anew; a moment that is not
    /// later than the last one is ignored.
    pub fn push(&mut self, totals: Totals) {
        if let Some(last) = self.moments.back() {
            if totals.went_back(last) {
                self.moments.clear();
            } else if totals.at_ns == last.at_ns {
                return;
            }
        }
        self.moments.push_back(totals);
        // The second moment is dropped once it, too, is old enough: so the first is the youngest of
        // those that are older than the longest span, or the oldest of all.
        while self.moments.len() > 2
            && self.moments.get(1).is_some_and(|second| totals.at_ns - second.at_ns >= LONGEST_NS)
        {
            self.moments.pop_front();
        }
        if self.moments.len() > MOST {
            self.moments.remove(MOST - 1);
        }
    }

    /// What happened over the longest span up to now that is no longer than a second, or over the time
    /// between the last two moments if that was longer. `None` until 500 ms are covered.
    pub fn span(&self) -> Option<Span> {
        let last = self.moments.back()?;
        let age = |moment: &Totals| last.at_ns - moment.at_ns;
        let within = self.moments.iter().find(|moment| age(moment) <= LONGEST_NS);
        let first = match within {
            Some(moment) if age(moment) >= SHORTEST_NS => moment,
            _ => self.moments.iter().rev().find(|moment| age(moment) >= SHORTEST_NS)?,
        };
        Some(last.since(first))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64, used_ms: u64) -> Totals {
        Totals { at_ns: ms * MS, used_ns: used_ms * MS, ..Totals::default() }
    }

    #[test]
    fn there_is_no_figure_before_half_a_second_is_covered() {
        let mut window = Window::default();
        assert_eq!(window.span(), None);
        window.push(at(7_000, 3));
        assert_eq!(window.span(), None, "one look is no rate");
        window.push(at(7_250, 30));
        assert_eq!(window.span(), None);
        window.push(at(7_500, 53));
        assert_eq!(window.span().unwrap(), at(500, 50));
    }

    #[test]
    fn an_interval_of_zero_changes_nothing() {
        let mut window = Window::default();
        window.push(at(0, 0));
        window.push(at(600, 60));
        window.push(at(600, 60));
        assert_eq!(window.span().unwrap(), at(600, 60));
    }

    #[test]
    fn a_counter_that_went_back_empties_the_window() {
        let mut window = Window::default();
        window.push(at(0, 1_000));
        window.push(at(600, 1_060));
        window.push(at(900, 5));
        assert_eq!(window.span(), None);
        window.push(at(1_500, 35));
        assert_eq!(window.span().unwrap(), at(600, 30));
    }

    #[test]
    fn a_node_that_was_starved_for_seconds_says_what_happened_meanwhile() {
        let mut window = Window::default();
        window.push(at(0, 0));
        window.push(at(500, 50));
        window.push(at(5_500, 60));
        assert_eq!(window.span().unwrap(), at(5_000, 10));
    }

    proptest! {
        /// Whatever triggers a look, the span is 450 … 1,000 ms, unless a single gap was longer.
        #[test]
        fn the_span_has_its_length(gaps in prop::collection::vec(1u64..1_400, 1..200)) {
            let mut window = Window::default();
            let mut now = 0;
            window.push(at(0, 0));
            for gap in &gaps {
                now += gap;
                window.push(at(now, now));
                prop_assert!(window.moments.len() <= MOST);
                let Some(span) = window.span() else {
                    prop_assert!(now < 450);
                    continue;
                };
                prop_assert_eq!(span.at_ns, span.used_ns);
                let longest = gaps.iter().copied().max().unwrap_or(0) * MS;
                // Two gaps can straddle: 400 ms and then 1,300 ms.
                prop_assert!(span.at_ns >= SHORTEST_NS && span.at_ns <= LONGEST_NS.max(SHORTEST_NS + longest));
            }
        }
    }
}
