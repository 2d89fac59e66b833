//! Rule 3, where there is a quota: when the CFS periods of a node begin, and what is left of the present one.
//!
//! Source: kernel documents, sched-bwc. A quota of c cores comes in one piece of c · 100 ms at the start of each period,
//! and ready threads use it up at full speed. So a short task on a node of 0.1 core takes 5 ms or 95, whichever way
//! the period stands: more than nodes differ by their cores. No file of the kernel says how it stands. But of a run the
//! master knows when it began and ended, and what CPU time it took; only where periods begin at the right time
//! would it have got just that. So a number of phases are followed side by side, each with its own reckoning of
//! what is left, and each run counts against those that it does not fit (a Bayesian filter on a grid).
//! The timer of a cgroup keeps its grid for as long as the quota is not set anew.

use protocol::RunId;
use std::collections::BTreeMap;

/// A period, in microseconds and in seconds (the kernel's default, which Docker sets).
const PERIOD_US: u64 = 100_000;
const PERIOD_S: f64 = 0.1;
/// Phases that are followed: one each 4 ms.
const PHASES: usize = 25;
/// Error of a run that says as much against a phase as chance does, in seconds: two ways over a network, and how
/// far a phase is from its neighbours.
const SIGMA_S: f64 = 0.002;
/// Most that one run says against a phase, so that one that met something else does not decide.
const MOST_OF_A_RUN: f64 = 9.0;
/// Most doubt about a phase: a few runs that fit are enough if the grid has moved.
const MOST_DOUBT: f64 = 30.0;
/// Phases of more doubt are left out of account: they are less likely than the best by a factor e³.
const LEFT_OUT: f64 = 6.0;

/// One phase.
#[derive(Clone, Copy, Debug, Default)]
struct Phase {
    doubt: f64,
    /// Quota left in the present period, in seconds.
    left_s: f64,
    /// What a thread that was always ready would have got so far, in seconds.
    service_s: f64,
}

/// The periods of one node.
#[derive(Clone, Debug, Default)]
pub struct Periods {
    phases: Option<Box<[Phase; PHASES]>>,
    at_us: u64,
    cores: f64,
    /// Of all runs here, and how many of them run at once at most.
    threads: f64,
    slots: u32,
    /// Threads of the runs, and their service at the start by phase.
    runs: BTreeMap<RunId, (f64, [f64; PHASES])>,
}

/// What is left of the period of a phase at a time, in microseconds; never 0.
const fn to_end_us(phase: usize, at_us: u64) -> u64 {
    let begins_us = phase as u64 * PERIOD_US / PHASES as u64;
    PERIOD_US - (at_us + PERIOD_US - begins_us) % PERIOD_US
}

/// Microseconds of a few periods at most as seconds.
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

impl Phase {
    /// In whole microseconds, so that what ends with a period ends with it.
    fn pass(&mut self, to_end_us: u64, elapsed_us: u64, threads: f64, cores: f64) {
        let quota_s = cores * PERIOD_S;
        let over_us = elapsed_us.checked_sub(to_end_us);
        let rest_s = seconds(over_us.unwrap_or(0) % PERIOD_US);
        if threads <= cores {
            self.service_s += if threads > 0.0 { seconds(elapsed_us) } else { 0.0 };
            let (from_s, ran_s) =
                if over_us.is_none() { (self.left_s, seconds(elapsed_us)) } else { (quota_s, rest_s) };
            self.left_s = (from_s - threads * ran_s).max(0.0);
            return;
        }
        let first_s = (self.left_s / threads).min(seconds(to_end_us.min(elapsed_us)));
        let Some(over_us) = over_us else {
            self.service_s += first_s;
            self.left_s = (self.left_s - first_s * threads).max(0.0);
            return;
        };
        let piece_s = quota_s / threads;
        let last_s = rest_s.min(piece_s);
        self.service_s += first_s + (over_us / PERIOD_US) as f64 * piece_s + last_s;
        self.left_s = (quota_s - last_s * threads).max(0.0);
    }

    /// How long until each of `threads` has got so much.
    fn wall_s(&self, to_end_s: f64, service_s: f64, threads: f64, cores: f64) -> f64 {
        if threads <= cores {
            return service_s;
        }
        let first_s = (self.left_s / threads).min(to_end_s);
        if service_s <= first_s {
            return service_s;
        }
        let (rest_s, piece_s) = (service_s - first_s, cores * PERIOD_S / threads);
        let whole = ((rest_s / piece_s).ceil() - 1.0).max(0.0);
        to_end_s + whole * PERIOD_S + rest_s - whole * piece_s
    }
}

impl Periods {
    /// Time passes on a node of so many cores and slots.
    pub fn pass(&mut self, now_us: u64, cores: f64, slots: u32) {
        self.slots = slots;
        let full = Phase { left_s: cores * PERIOD_S, ..Phase::default() };
        if self.cores != cores {
            // The quota was set anew: its timer too.
            self.phases = None;
            self.runs.clear();
            self.threads = 0.0;
            self.cores = cores;
        }
        let phases = self.phases.get_or_insert_with(|| Box::new([full; PHASES]));
        let elapsed_us = now_us.saturating_sub(self.at_us);
        if elapsed_us == 0 {
            return;
        }
        let threads = self.threads.min(f64::from(slots));
        for (number, phase) in phases.iter_mut().enumerate() {
            phase.pass(to_end_us(number, self.at_us), elapsed_us, threads, cores);
        }
        self.at_us = now_us;
    }

    /// A run of so many threads begins, as of the last [`Periods::pass`].
    pub fn begins(&mut self, run: RunId, threads: f64) {
        let Some(phases) = &self.phases else { return };
        let starts = std::array::from_fn(|number| phases[number].service_s);
        self.threads += threads;
        self.runs.insert(run, (threads, starts));
    }

    /// A run is over.
    pub fn ends(&mut self, run: RunId) {
        if let Some((threads, _)) = self.runs.remove(&run) {
            self.threads = if self.runs.is_empty() { 0.0 } else { self.threads - threads };
        }
    }

    /// A run has just ended that computed all the time, and took so much CPU time.
    pub fn learn(&mut self, run: RunId, cpu_s: f64) {
        let (Some(phases), Some((threads, starts))) = (&mut self.phases, self.runs.get(&run)) else { return };
        // Where some wait for a slot nobody knows here when it began.
        if self.threads > f64::from(self.slots).max(*threads) {
            return;
        }
        for (phase, start_s) in phases.iter_mut().zip(starts) {
            let error = ((phase.service_s - start_s) * threads - cpu_s) / SIGMA_S;
            phase.doubt += (error * error).min(MOST_OF_A_RUN);
        }
        let least = phases.iter().map(|phase| phase.doubt).fold(f64::INFINITY, f64::min);
        for phase in phases.iter_mut() {
            phase.doubt = (phase.doubt - least).min(MOST_DOUBT);
        }
    }

    /// How long a run would take in which each thread gets `service_s`, with `threads` in all on the node: the mean over
    /// the phases that may be.
    #[must_use]
    pub fn wall_s(&self, now_us: u64, service_s: f64, threads: f64) -> Option<f64> {
        let phases = self.phases.as_ref()?;
        let elapsed_us = now_us.saturating_sub(self.at_us);
        let running = self.threads.min(f64::from(self.slots));
        let (mut sum, mut weights) = (0.0, 0.0);
        for (number, phase) in phases.iter().enumerate().filter(|phase| phase.1.doubt < LEFT_OUT) {
            let mut then = *phase;
            then.pass(to_end_us(number, self.at_us), elapsed_us, running, self.cores);
            let weight = (-phase.doubt / 2.0).exp();
            let to_end_s = seconds(to_end_us(number, now_us.max(self.at_us)));
            sum += weight * then.wall_s(to_end_s, service_s, threads, self.cores);
            weights += weight;
        }
        (weights > 0.0).then(|| sum / weights)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A machine of `cores` whose periods begin at `begins_us`: when a run alone on it, that begins then with a quota
    /// that nobody has touched for long, is over.
    fn over_us(cores: f64, begins_us: u64, from_us: u64, cpu_s: f64) -> u64 {
        let full = Phase { left_s: cores * PERIOD_S, ..Phase::default() };
        let to_end_s = (PERIOD_US - (from_us + PERIOD_US - begins_us) % PERIOD_US) as f64 / 1e6;
        from_us + (full.wall_s(to_end_s, cpu_s, 1.0, cores) * 1e6).ceil() as u64
    }

    fn run(periods: &mut Periods, number: u64, cores: f64, (from_us, to_us): (u64, u64), cpu_s: f64) {
        periods.pass(from_us, cores, 8);
        periods.begins(RunId(number), 1.0);
        periods.pass(to_us, cores, 8);
        periods.learn(RunId(number), cpu_s);
        periods.ends(RunId(number));
    }

    #[test]
    fn after_some_runs_it_is_known_how_long_the_next_one_waits_for_its_quota() {
        let (cores, begins_us) = (0.2, 37_000);
        let mut periods = Periods::default();
        let mut now_us = 1_000_000;
        for number in 0..8 {
            let cpu_s = 0.025 + 0.003 * number as f64;
            let to_us = over_us(cores, begins_us, now_us, cpu_s);
            // The master hears of it half a millisecond later.
            run(&mut periods, number, cores, (now_us, to_us + 500), cpu_s);
            now_us = to_us + 213_000;
        }
        // 20 ms are there at once; the rest comes with the next period, which begins 30 or 60 ms from now.
        for wait_us in [30_000, 60_000] {
            let from_us = 5_000_000 + begins_us + PERIOD_US - wait_us;
            let told_s = periods.wall_s(from_us, 0.025, 1.0).unwrap();
            let expected_s = wait_us as f64 / 1e6 + 0.005;
            assert!((told_s - expected_s).abs() < 0.005, "{told_s} {expected_s}");
        }
    }

    #[test]
    fn a_node_whose_quota_was_just_used_up_is_slow_until_the_next_period_and_then_as_fast_as_a_whole_core() {
        let (cores, mut periods) = (0.1, Periods::default());
        for number in 0..8 {
            let from_us = 1_000_000 * (number + 1) + 11_000 * number;
            let cpu_s = 0.021 + 0.002 * number as f64;
            run(&mut periods, number, cores, (from_us, over_us(cores, 0, from_us, cpu_s)), cpu_s);
        }
        // From the start of a period on 10 ms are used; 50 ms of the period are left.
        run(&mut periods, 9, cores, (20_000_000, 20_050_000), 0.010);
        assert!((periods.wall_s(20_050_000, 0.005, 1.0).unwrap() - 0.055).abs() < 0.005);
        assert!((periods.wall_s(20_102_000, 0.005, 1.0).unwrap() - 0.005).abs() < 0.002);
    }

    #[test]
    fn before_anything_was_learned_a_run_takes_what_it_takes_on_average() {
        let mut periods = Periods::default();
        periods.pass(0, 0.1, 8);
        // 10 ms are there; the other 10 come with the next period, 50 ms from now on average.
        let told_s = periods.wall_s(0, 0.020, 1.0).unwrap();
        assert!((0.050..0.070).contains(&told_s), "{told_s}");
    }

    #[test]
    fn a_quota_that_was_set_anew_is_learned_anew() {
        let mut periods = Periods::default();
        run(&mut periods, 1, 0.1, (0, 350_000), 0.040);
        periods.pass(400_000, 0.5, 8);
        assert!(
            periods.phases.as_ref().unwrap().iter().all(|phase| phase.doubt == 0.0 && phase.left_s == 0.05)
        );
    }

    proptest! {
        #[test]
        fn looking_often_changes_nothing_and_nobody_gets_more_than_the_quota(
            cores in 0.05..3.0f64,
            threads in 1u32..5,
            looks in prop::collection::vec(1u64..300_000, 1..40),
        ) {
            let mut often = Periods::default();
            often.pass(1, cores, 8);
            often.begins(RunId(1), f64::from(threads));
            let mut once = often.clone();
            let mut now_us = 1;
            for look in looks {
                now_us += look;
                often.pass(now_us, cores, 8);
            }
            once.pass(now_us, cores, 8);
            let pairs = often.phases.as_ref().unwrap().iter().zip(once.phases.as_ref().unwrap().iter());
            let passed_s = now_us as f64 / 1e6;
            for (one, other) in pairs {
                prop_assert!((one.service_s - other.service_s).abs() < 1e-6, "{:?} {:?}", one, other);
                prop_assert!((one.left_s - other.left_s).abs() < 1e-6 && one.left_s >= 0.0);
                let most_s = cores * (passed_s + 2.0 * PERIOD_S);
                prop_assert!(one.service_s * f64::from(threads) <= most_s + 1e-6);
                prop_assert!(one.service_s <= passed_s + 1e-6);
            }
        }
    }
}
