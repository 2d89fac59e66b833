//! Rule 3: what is in flight on a node, at what rate it runs, and what is left of it.
//!
//! Source: design.md 3.3. A task of m cores on a node of effective capacity Ĉ, where tasks of M cores in
//! all want CPU, runs at `rate = m · min(s, Ĉ ÷ M)` and takes `τ = p + w ÷ rate`. The work left is drained
//! at the same rates, never below 5 % of the estimate while the run has not ended, and is gone with
//! it, so an empty ledger is exactly 0.

use crate::{estimate::Estimate, event::ClientId, periods::Periods};
use protocol::{RunId, TaskId, node::slots_of};
use std::collections::BTreeMap;

/// Part of an estimate that a run which has not ended is taken to have left at least.
const LEAST_LEFT: f64 = 0.05;
/// Least rate that is reckoned with, in cores.
const LEAST_RATE: f64 = 0.001;
/// Loss below which the quota's steps show.
const UNDISTURBED: f64 = 0.05;

/// What the node offers at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// c, in cores.
    pub allotted_cores: f64,
    /// Ĉ, in cores.
    pub effective_cores: f64,
    /// s: what one thread gets of a core.
    pub thread_share: f64,
}

impl Offer {
    /// Rate of a task of `cores` among tasks that want `busy_cores` in all, its own included; in cores.
    #[must_use]
    pub fn rate(&self, cores: f64, busy_cores: f64) -> f64 {
        let share = self.effective_cores / busy_cores.max(cores).max(LEAST_RATE);
        (cores * self.thread_share.min(share)).max(LEAST_RATE)
    }
}

/// One run in flight.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its task.
    pub task: TaskId,
    /// Threads that it keeps busy.
    pub cores: f64,
    /// Slots that it takes.
    pub slots: u32,
    /// Memory set aside for it.
    pub memory_bytes: u64,
    /// What it was expected to cost.
    pub estimate: Estimate,
    /// When it was handed out.
    pub started_us: u64,
    /// Rate at which it was expected to run, in cores.
    pub rate_cores: f64,
    /// Whether it was told to stop: its result is not wanted, its slot is not free yet.
    pub cancelling: bool,
    /// Who submitted its task.
    pub client: ClientId,
    /// Whether it has the whole node to itself, because it is suspected to end nodes.
    pub alone: bool,
    cpu_left_s: f64,
    off_left_s: f64,
}

impl Entry {
    /// A run that begins now.
    #[must_use]
    pub fn new(
        task: TaskId,
        needs: (f64, u32, u64),
        estimate: Estimate,
        started_us: u64,
        rate_cores: f64,
    ) -> Self {
        let (cores, slots, memory_bytes) = needs;
        let (cpu_left_s, off_left_s) = (estimate.cpu_s, estimate.off_cpu_s);
        Self {
            task,
            cores,
            slots,
            memory_bytes,
            estimate,
            started_us,
            rate_cores,
            cancelling: false,
            client: ClientId::default(),
            alone: false,
            cpu_left_s,
            off_left_s,
        }
    }

    fn wants_cpu(&self) -> bool {
        self.estimate.cpu_s > 0.0
    }

    fn left_s(&self, busy_cores: f64, offer: &Offer) -> f64 {
        self.off_left_s + self.cpu_left_s / offer.rate(self.cores, busy_cores)
    }
}

/// The runs in flight on one node.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    runs: BTreeMap<RunId, Entry>,
    slots: u32,
    memory_bytes: u64,
    /// Asked for many times for each run that comes or goes.
    busy_cores: f64,
    drained_us: u64,
    periods: Periods,
}

impl Ledger {
    /// A run was handed out.
    pub fn add(&mut self, run: RunId, entry: Entry) {
        self.remove(run);
        self.slots += entry.slots;
        self.memory_bytes += entry.memory_bytes;
        if entry.wants_cpu() {
            self.periods.begins(run, entry.cores);
        }
        self.runs.insert(run, entry);
        self.sum_busy();
    }

    /// A run is no longer there.
    pub fn remove(&mut self, run: RunId) -> Option<Entry> {
        let entry = self.runs.remove(&run)?;
        self.periods.ends(run);
        self.slots -= entry.slots;
        self.memory_bytes -= entry.memory_bytes;
        self.sum_busy();
        Some(entry)
    }

    /// Summed anew each time, so that no error of rounding stays.
    fn sum_busy(&mut self) {
        self.busy_cores = self.runs.values().filter(|entry| entry.wants_cpu()).map(|entry| entry.cores).sum();
    }

    /// A run that had the node to itself takes only so many slots from now on. Gives how many it took before.
    pub fn shares(&mut self, run: RunId, slots: u32) -> Option<u32> {
        let entry = self.runs.get_mut(&run).filter(|entry| entry.alone)?;
        let before = std::mem::replace(&mut entry.slots, slots);
        entry.alone = false;
        self.slots = self.slots - before + slots;
        Some(before)
    }

    /// A run was told to stop. Says whether it is there.
    pub fn cancelling(&mut self, run: RunId) -> bool {
        let entry = self.runs.get_mut(&run);
        entry.map(|entry| entry.cancelling = true).is_some()
    }

    /// A run.
    #[must_use]
    pub fn get(&self, run: RunId) -> Option<&Entry> {
        self.runs.get(&run)
    }

    /// All runs, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (RunId, &Entry)> {
        self.runs.iter().map(|(run, entry)| (*run, entry))
    }

    /// Runs in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Slots taken.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether older runs take all of the node's slots, so that this one waits there: a node begins them in order.
    #[must_use]
    pub fn waits_behind_others(&self, run: RunId, of: u32) -> bool {
        self.runs.range(..run).map(|(_, entry)| entry.slots).sum::<u32>() >= of
    }

    /// Memory set aside.
    #[must_use]
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// M: threads that want CPU.
    #[must_use]
    pub const fn busy_cores(&self) -> f64 {
        self.busy_cores
    }

    /// Time passed: what ran meanwhile is taken off what is left.
    pub fn drain(&mut self, now_us: u64, offer: &Offer) {
        let elapsed_s = now_us.saturating_sub(self.drained_us) as f64 / 1e6;
        self.drained_us = now_us.max(self.drained_us);
        self.periods.pass(now_us, offer.allotted_cores, slots_of(offer.allotted_cores));
        let busy = self.busy_cores();
        for entry in self.runs.values_mut() {
            // A run handed out since the last time has run for less.
            let ran_s = elapsed_s.min(now_us.saturating_sub(entry.started_us) as f64 / 1e6);
            let off_s = ran_s.min(entry.off_left_s);
            let floor = LEAST_LEFT * entry.estimate.off_cpu_s;
            entry.off_left_s = (entry.off_left_s - off_s).max(floor);
            let done = (ran_s - off_s) * offer.rate(entry.cores, busy);
            entry.cpu_left_s = (entry.cpu_left_s - done).max(LEAST_LEFT * entry.estimate.cpu_s);
        }
    }

    /// W: CPU time left, in seconds; exactly 0 when nothing is in flight.
    #[must_use]
    pub fn cpu_left_s(&self) -> f64 {
        self.runs.values().map(|entry| entry.cpu_left_s).sum()
    }

    /// A: how long until `slots` of the node's `of` are free, in seconds; infinite if it has not so many.
    #[must_use]
    pub fn free_in_s(&self, slots: u32, of: u32, offer: &Offer) -> f64 {
        let mut free = of.saturating_sub(self.slots);
        if free >= slots {
            return 0.0;
        }
        let busy = self.busy_cores();
        let mut ends: Vec<(f64, u32)> =
            self.runs.values().map(|entry| (entry.left_s(busy, offer), entry.slots)).collect();
        ends.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (end_s, freed) in ends {
            free += freed;
            if free >= slots {
                return end_s;
            }
        }
        f64::INFINITY
    }

    /// How long a run goes on from the last [`Ledger::drain`] on, at the rate that it has now; in seconds.
    #[must_use]
    pub fn left_s(&self, run: RunId, offer: &Offer) -> Option<f64> {
        self.runs.get(&run).map(|entry| entry.left_s(self.busy_cores(), offer))
    }

    /// A run ended by itself at the last [`Ledger::drain`], and took so much CPU time.
    pub fn learn(&mut self, run: RunId, cpu_s: f64) {
        if self.runs.get(&run).is_some_and(|entry| entry.estimate.off_cpu_s == 0.0) {
            self.periods.learn(run, cpu_s);
        }
    }

    /// τ: how long a new task of `cores` would run here beside what is in flight, and at what rate. Where others take
    /// little and there are more threads than cores, by what is left of the quota (see [`Periods`]).
    #[must_use]
    pub fn run_s(&self, cores: f64, estimate: &Estimate, offer: &Offer, now_us: u64) -> (f64, f64) {
        let busy = self.busy_cores();
        let rate = offer.rate(cores, busy + cores);
        let undisturbed = offer.effective_cores >= (1.0 - UNDISTURBED) * offer.allotted_cores;
        // What was handed out ahead waits for a slot, and uses no quota yet.
        let threads = (busy + cores).min(f64::from(slots_of(offer.allotted_cores)).max(cores));
        let by_periods = (undisturbed && threads > offer.allotted_cores)
            .then(|| self.periods.wall_s(now_us, estimate.cpu_s / cores, threads))
            .flatten();
        let cpu_s = by_periods.unwrap_or(estimate.cpu_s / rate);
        (estimate.off_cpu_s + cpu_s, rate)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn offer(cores: f64) -> Offer {
        Offer { allotted_cores: cores, effective_cores: cores, thread_share: 1.0 }
    }

    fn cpu(cpu_s: f64) -> Estimate {
        Estimate { cpu_s, off_cpu_s: 0.0, sigma: 0.0 }
    }

    fn entry(estimate: Estimate, started_us: u64) -> Entry {
        Entry::new(TaskId(Uuid::nil()), (1.0, 1, 0), estimate, started_us, 1.0)
    }

    #[test]
    fn two_tasks_share_a_core_and_a_third_core_helps_neither() {
        assert_eq!(offer(1.0).rate(1.0, 2.0), 0.5);
        assert_eq!(offer(3.0).rate(1.0, 2.0), 1.0);
        assert_eq!(offer(4.0).rate(2.0, 2.0), 2.0);
        let contended = Offer { allotted_cores: 2.0, effective_cores: 1.32, thread_share: 0.66 };
        assert!((contended.rate(1.0, 1.0) - 0.66).abs() < 1e-9);
    }

    #[test]
    fn what_runs_is_drained_and_what_sleeps_takes_no_share() {
        let mut ledger = Ledger::default();
        ledger.add(RunId(1), entry(cpu(1.0), 0));
        ledger.add(RunId(2), entry(Estimate { cpu_s: 0.0, off_cpu_s: 10.0, sigma: 0.0 }, 0));
        ledger.drain(500_000, &offer(1.0));
        assert!((ledger.cpu_left_s() - 0.5).abs() < 1e-9);
        assert!((ledger.free_in_s(1, 2, &offer(1.0)) - 0.5).abs() < 1e-9);
        assert!((ledger.free_in_s(2, 2, &offer(1.0)) - 9.5).abs() < 1e-9);
        assert_eq!(ledger.free_in_s(3, 2, &offer(1.0)), f64::INFINITY);
        assert!((ledger.left_s(RunId(1), &offer(0.25)).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(ledger.left_s(RunId(3), &offer(1.0)), None);
    }

    #[test]
    fn a_short_job_on_an_idle_fraction_of_a_core_fits_the_quota_of_one_period() {
        let mut ledger = Ledger::default();
        ledger.drain(0, &offer(0.25));
        let (run_s, _) = ledger.run_s(1.0, &cpu(0.02), &offer(0.25), 0);
        assert!((run_s - 0.02).abs() < 1e-9);
        let (run_s, rate) = ledger.run_s(1.0, &cpu(1.0), &offer(0.25), 0);
        // What is left of the first period comes on top: half of its quota on average.
        assert!((run_s - 4.0).abs() < 0.15 && (rate - 0.25).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn an_empty_ledger_is_exactly_zero_and_no_figure_is_ever_negative(
            works in prop::collection::vec((0.0..5.0f64, 0.0..5.0f64, 0u64..2_000_000), 1..12),
            cores in 0.1..8.0f64,
        ) {
            let mut ledger = Ledger::default();
            let mut now = 0;
            for (at, (cpu_s, off_cpu_s, step)) in works.iter().enumerate() {
                ledger.add(RunId(at as u64), entry(Estimate { cpu_s: *cpu_s, off_cpu_s: *off_cpu_s, sigma: 0.0 }, now));
                let before = ledger.cpu_left_s();
                now += step;
                ledger.drain(now, &offer(cores));
                prop_assert!(ledger.cpu_left_s() <= before + 1e-9);
                let floor: f64 = works[..=at].iter().map(|work| 0.05 * work.0).sum();
                prop_assert!(ledger.cpu_left_s() >= floor - 1e-9);
                prop_assert!(ledger.free_in_s(1, 1, &offer(cores)) >= 0.0);
            }
            prop_assert_eq!(ledger.slots() as usize, works.len());
            for at in 0..works.len() {
                prop_assert!(ledger.remove(RunId(at as u64)).is_some());
            }
            prop_assert_eq!(ledger.cpu_left_s(), 0.0);
            prop_assert_eq!((ledger.slots(), ledger.memory_bytes(), ledger.busy_cores()), (0, 0, 0.0));
        }
    }
}
