//! Run and wait times of threads, from counters of threads that come and go to sums that only grow.
//!
//! `/proc/<pid>/task/<tid>/schedstat` holds three numbers: nanoseconds on a CPU, nanoseconds ready but
//! not on a CPU, and how often it was put on one. Waiting counts quota throttling, neighbours in the
//! container and contention on the host alike; sleeping counts in neither.
//!
//! The kernel adds a wait to its counter when the wait *ends*. A thread that is starved for longer than
//! the window would show no wait at all, so that the worst node would look like an idle one. Where it
//! is known that a thread was ready, the ledger therefore counts the wait that is still going on ("open"),
//! and takes it off again from what the kernel adds later.

use std::collections::HashMap;

/// A thread's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// On a CPU.
    pub run_ns: u64,
    /// Ready, and not on a CPU.
    pub wait_ns: u64,
}

impl ThreadTimes {
    /// Reads a schedstat file.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace().map(str::parse);
        let (run, wait, slices): (_, _, Option<Result<u64, _>>) =
            (fields.next()?, fields.next()?, fields.next());
        slices?.ok()?;
        Some(Self { run_ns: run.ok()?, wait_ns: wait.ok()? })
    }
}

/// What is known, beside the counters, about whether a thread was ready to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Nothing.
    Unknown,
    /// It is ready at this moment. If it was so at the last look too and its counters stood still, it
    /// waited all the time between.
    Now,
    /// It was ready all the time since the last look: what it did not run, it waited.
    Throughout,
}

#[derive(Debug)]
struct Known {
    times: ThreadTimes,
    open_ns: u64,
    ready: bool,
    round: u64,
}

/// Sums over a set of threads. A *round* is one look at all of them.
#[derive(Debug, Default)]
pub struct Ledger {
    known: HashMap<i32, Known>,
    round: u64,
    /// Since the last round; `None` in the first.
    elapsed_ns: Option<u64>,
    run_ns: u64,
    wait_ns: u64,
}

impl Ledger {
    /// Starts a round, `elapsed_ns` after the last one.
    pub fn begin(&mut self, elapsed_ns: Option<u64>) {
        self.round += 1;
        self.elapsed_ns = elapsed_ns;
    }

    /// Adds what a thread did since the last round.
    ///
    /// A thread that was not seen before counts from its birth, unless its counters hold more than the
    /// time since the last round: then it is older and counts from now. Counters that went back belong
    /// to a new thread with the id of an old one.
    pub fn observe(&mut self, tid: i32, times: ThreadTimes, ready: Ready) {
        let elapsed_ns = self.elapsed_ns.unwrap_or(0);
        let before = self
            .known
            .get(&tid)
            .filter(|known| known.times.run_ns <= times.run_ns && known.times.wait_ns <= times.wait_ns);
        let (run_ns, wait_ns, open_before) = match before {
            Some(known) => {
                (times.run_ns - known.times.run_ns, times.wait_ns - known.times.wait_ns, known.open_ns)
            }
            None if times.run_ns.saturating_add(times.wait_ns) <= elapsed_ns => {
                (times.run_ns, times.wait_ns, 0)
            }
            None => (0, 0, 0),
        };
        let still = run_ns == 0 && wait_ns == 0;
        let throughout = before.is_some()
            && match ready {
                Ready::Unknown => false,
                Ready::Now => still && before.is_some_and(|known| known.ready),
                Ready::Throughout => true,
            };
        let open_ns = if throughout {
            open_before.saturating_add(elapsed_ns).saturating_sub(run_ns.saturating_add(wait_ns))
        } else {
            0
        };
        // Nanoseconds of 584 years fit; what the kernel says beyond is nonsense that must not stop the node.
        self.run_ns = self.run_ns.saturating_add(run_ns);
        // A guess that was too high is never taken back, so that the sums only grow.
        let waited_ns = wait_ns.saturating_add(open_ns).saturating_sub(open_before);
        self.wait_ns = self.wait_ns.saturating_add(waited_ns);
        let known = Known { times, open_ns, ready: ready != Ready::Unknown, round: self.round };
        self.known.insert(tid, known);
    }

    /// Forgets a thread that has ended.
    pub fn forget(&mut self, tid: i32) {
        self.known.remove(&tid);
    }

    /// Forgets all threads that this round has not seen.
    pub fn forget_unseen(&mut self) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
    }

    /// Sum of the run times.
    #[must_use]
    pub const fn run_ns(&self) -> u64 {
        self.run_ns
    }

    /// Sum of the wait times.
    #[must_use]
    pub const fn wait_ns(&self) -> u64 {
        self.wait_ns
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn times(run_ns: u64, wait_ns: u64) -> ThreadTimes {
        ThreadTimes { run_ns, wait_ns }
    }

    /// One round with these threads; gives run and wait of the round.
    fn round(ledger: &mut Ledger, elapsed: Option<u64>, seen: &[(i32, ThreadTimes, Ready)]) -> (u64, u64) {
        let before = (ledger.run_ns(), ledger.wait_ns());
        ledger.begin(elapsed);
        for (tid, times, ready) in seen {
            ledger.observe(*tid, *times, *ready);
        }
        ledger.forget_unseen();
        (ledger.run_ns() - before.0, ledger.wait_ns() - before.1)
    }

    #[test]
    fn the_file_is_three_numbers_and_nothing_less() {
        assert_eq!(ThreadTimes::parse("175072338 12454865 404\n"), Some(times(175_072_338, 12_454_865)));
        for text in ["", "1 2", "1 2 x", "-1 2 3", "1,2,3"] {
            assert_eq!(ThreadTimes::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn threads_that_come_count_from_birth_and_old_ones_from_the_first_look() {
        let mut ledger = Ledger::default();
        assert_eq!(round(&mut ledger, None, &[(1, times(900, 50), Ready::Unknown)]), (0, 0), "first look");
        let seen = [(1, times(910, 55), Ready::Unknown), (2, times(30, 60), Ready::Unknown)];
        assert_eq!(round(&mut ledger, Some(100), &seen), (40, 65), "2 was born since");
        let seen = [(2, times(40, 60), Ready::Unknown), (3, times(5_000, 0), Ready::Unknown)];
        assert_eq!(
            round(&mut ledger, Some(100), &seen),
            (10, 0),
            "3 ran for longer than the round: it is old"
        );
        assert_eq!(
            round(&mut ledger, Some(100), &[(2, times(7, 1), Ready::Unknown)]),
            (7, 1),
            "id used again"
        );
    }

    #[test]
    fn a_starved_thread_waits_though_its_counters_stand_still_and_is_not_counted_twice() {
        let mut ledger = Ledger::default();
        round(&mut ledger, None, &[(1, times(10, 10), Ready::Now)]);
        assert_eq!(round(&mut ledger, Some(500), &[(1, times(10, 10), Ready::Now)]), (0, 500));
        assert_eq!(round(&mut ledger, Some(500), &[(1, times(10, 10), Ready::Now)]), (0, 500));
        // The kernel now adds the 1,400 ns that this wait took in the end; 1,000 were counted.
        assert_eq!(round(&mut ledger, Some(500), &[(1, times(110, 1_410), Ready::Now)]), (100, 400));
    }

    #[test]
    fn a_thread_that_sleeps_does_not_wait() {
        let mut ledger = Ledger::default();
        round(&mut ledger, None, &[(1, times(10, 10), Ready::Unknown)]);
        assert_eq!(round(&mut ledger, Some(500), &[(1, times(10, 10), Ready::Now)]), (0, 0), "just woken");
        assert_eq!(round(&mut ledger, Some(500), &[(1, times(10, 10), Ready::Unknown)]), (0, 0));
    }

    proptest! {
        /// A thread that is always ready, looked at at any moments: run + wait is the time that passed,
        /// though the kernel adds waits only at their ends.
        #[test]
        fn open_waits_make_up_for_the_kernels_late_counting(
            pieces in prop::collection::vec((1u64..50, 1u64..200), 1..20),
            looks in prop::collection::vec(1u64..700, 1..20),
        ) {
            let mut ledger = Ledger::default();
            let at = |time: u64| {
                let (mut now, mut run, mut wait) = (0, 0, 0);
                for (run_for, wait_for) in pieces.iter().cycle() {
                    if now + run_for >= time {
                        return times(run + time - now, wait);
                    }
                    (now, run) = (now + run_for, run + run_for);
                    if now + wait_for > time {
                        return times(run, wait);
                    }
                    (now, wait) = (now + wait_for, wait + wait_for);
                }
                unreachable!("an endless iterator")
            };
            round(&mut ledger, None, &[(1, at(0), Ready::Throughout)]);
            let mut now = 0;
            for elapsed in looks {
                now += elapsed;
                let (run, wait) = round(&mut ledger, Some(elapsed), &[(1, at(now), Ready::Throughout)]);
                prop_assert_eq!(run + wait, elapsed);
                prop_assert_eq!(ledger.run_ns(), at(now).run_ns);
            }
        }

        /// Whatever is read, the sums only grow and nothing overflows.
        #[test]
        fn sums_only_grow(
            seen in prop::collection::vec(
                (0i32..4, any::<u64>(), any::<u64>(), 0u8..3, any::<u64>()), 0..60,
            ),
        ) {
            let mut ledger = Ledger::default();
            for (tid, run_ns, wait_ns, ready, elapsed) in seen {
                let ready = [Ready::Unknown, Ready::Now, Ready::Throughout][usize::from(ready)];
                let before = (ledger.run_ns(), ledger.wait_ns());
                ledger.begin(Some(elapsed));
                ledger.observe(tid, times(run_ns, wait_ns), ready);
                prop_assert!(ledger.run_ns() >= before.0 && ledger.wait_ns() >= before.1);
            }
        }
    }
}
