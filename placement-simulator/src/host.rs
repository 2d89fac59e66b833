//! One node: its CPU, the tasks on it, and what it reports.

use crate::{
    machine::{Key, Machine},
    work::Task,
};
use node::cpu::measure::{Window, obtained_share, others_share};
use protocol::node::{CpuSample, CpuSource, slots_of};
use std::collections::{BTreeMap, VecDeque};

/// Least time between two looks at the CPU, in microseconds: as a node of ours.
const LOOK_APART_US: u64 = 100_000;
/// A change of the effective capacity by this part is reported at once: as a node of ours.
const WORTH_REPORTING: f64 = 0.15;
/// Least time between two reports, in microseconds: as a node of ours.
const REPORT_APART_US: u64 = 250_000;
/// Latencies that a node remembers for probes.
const LATENCIES: usize = 32;

/// A run on a node.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The task.
    pub task: u32,
    /// What the balancer calls it.
    pub tag: u64,
    /// When it came to the node.
    pub came_us: u64,
    /// When it began there.
    pub began_us: u64,
    /// Runs on the node when it came.
    pub beside: u32,
    threads: u32,
    /// CPU time of its second half, which begins after its time without CPU.
    second_half_s: f64,
    off_cpu_s: f64,
}

/// What happened to a run when its CPU time was used up.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// It waits without CPU until then.
    Sleeps(Key, u64),
    /// It has ended.
    Ended(Run),
}

/// One node.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its CPU.
    pub machine: Machine,
    /// Whether its process lives.
    pub alive: bool,
    /// Whether every task fails at once.
    pub fails_fast: bool,
    /// Whether it reports the same for ever.
    pub frozen_report: Option<CpuSample>,
    slots: Option<u32>,
    slots_taken: u32,
    runs: BTreeMap<Key, Run>,
    waiting: VecDeque<Key>,
    next_key: Key,
    window: Window,
    looked_us: u64,
    sample: Option<CpuSample>,
    reported_us: u64,
    reported_cores: f64,
    latencies: VecDeque<(u32, f64)>,
}

impl Host {
    /// A node of `cores`, whose periods begin `phase_s` after the start; with slots if not all tasks run at once.
    #[must_use]
    pub fn new(cores: f64, phase_s: f64, has_slots: bool) -> Self {
        Self {
            machine: Machine::new(cores, phase_s),
            alive: true,
            fails_fast: false,
            frozen_report: None,
            slots: has_slots.then(|| slots_of(cores)),
            slots_taken: 0,
            runs: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_key: 0,
            window: Window::default(),
            looked_us: 0,
            sample: None,
            reported_us: 0,
            reported_cores: cores,
            latencies: VecDeque::new(),
        }
    }

    /// Runs on it, those that wait included.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        // Some thousand.
        self.runs.len() as u32
    }

    /// The runs on it.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// A task came.
    pub fn take(&mut self, now_us: u64, number: u32, tag: u64, task: &Task) -> Option<Next> {
        let key = self.next_key;
        self.next_key += 1;
        let (threads, off_cpu_s) = (task.threads, task.off_cpu_s);
        // Without a wait in the middle there is no second half.
        let second_half_s = if off_cpu_s > 0.0 { task.cpu_s / 2.0 } else { 0.0 };
        let beside = self.in_flight();
        let run = Run {
            task: number,
            tag,
            came_us: now_us,
            began_us: now_us,
            beside,
            threads,
            second_half_s,
            off_cpu_s,
        };
        self.runs.insert(key, run);
        let first_half_s = task.cpu_s - second_half_s;
        if self.slots.is_some_and(|slots| !self.waiting.is_empty() || !self.fits(threads, slots)) {
            self.waiting.push_back(key);
            // What it has to do first waits with it.
            self.runs.entry(key).and_modify(|run| run.second_half_s = task.cpu_s);
            return None;
        }
        self.begin(now_us, key, first_half_s)
    }

    fn fits(&self, threads: u32, slots: u32) -> bool {
        self.slots_taken == 0 || self.slots_taken + threads <= slots
    }

    fn begin(&mut self, now_us: u64, key: Key, first_half_s: f64) -> Option<Next> {
        let run = self.runs.get_mut(&key)?;
        run.began_us = now_us;
        self.slots_taken += run.threads;
        if first_half_s > 0.0 {
            self.machine.add(seconds(now_us), key, first_half_s, run.threads);
            return None;
        }
        let off_cpu_s = std::mem::take(&mut run.off_cpu_s);
        Some(Next::Sleeps(key, now_us + micros(off_cpu_s)))
    }

    /// Runs whose CPU time is used up by now.
    pub fn due(&mut self, now_us: u64) -> Option<Next> {
        let key = self.machine.pop_done(seconds(now_us))?;
        let run = self.runs.get_mut(&key)?;
        if run.off_cpu_s > 0.0 {
            let off_cpu_s = std::mem::take(&mut run.off_cpu_s);
            return Some(Next::Sleeps(key, now_us + micros(off_cpu_s)));
        }
        self.finish(now_us, key).map(Next::Ended)
    }

    /// A run's time without CPU is over.
    pub fn awake(&mut self, now_us: u64, key: Key) -> Option<Run> {
        let run = self.runs.get_mut(&key)?;
        let rest_s = std::mem::take(&mut run.second_half_s);
        if rest_s > 0.0 {
            self.machine.add(seconds(now_us), key, rest_s, run.threads);
            return None;
        }
        self.finish(now_us, key)
    }

    fn finish(&mut self, now_us: u64, key: Key) -> Option<Run> {
        let run = self.runs.remove(&key)?;
        self.slots_taken -= run.threads;
        if self.latencies.len() == LATENCIES {
            self.latencies.pop_front();
        }
        self.latencies.push_back((run.beside, seconds(now_us - run.came_us)));
        Some(run)
    }

    /// Begins what waits for a slot, as far as there is one.
    pub fn begin_waiting(&mut self, now_us: u64) -> Option<Next> {
        let slots = self.slots?;
        while let Some(key) = self.waiting.front().copied() {
            let Some(run) = self.runs.get_mut(&key) else {
                self.waiting.pop_front();
                continue;
            };
            let threads = run.threads;
            let all_s = run.second_half_s;
            if !self.fits(threads, slots) {
                return None;
            }
            self.waiting.pop_front();
            let run = self.runs.get_mut(&key)?;
            run.second_half_s = if run.off_cpu_s > 0.0 { all_s / 2.0 } else { 0.0 };
            let first_half_s = all_s - run.second_half_s;
            if let Some(next) = self.begin(now_us, key, first_half_s) {
                return Some(next);
            }
        }
        None
    }

    /// A run is stopped.
    pub fn stop(&mut self, now_us: u64, tag: u64) {
        let Some(key) = self.runs.iter().find(|(_, run)| run.tag == tag).map(|(key, _)| *key) else { return };
        let waited = self.waiting.iter().any(|waiting| *waiting == key);
        self.waiting.retain(|waiting| *waiting != key);
        if let Some(run) = self.runs.remove(&key)
            && !waited
        {
            self.slots_taken -= run.threads;
            self.machine.remove(seconds(now_us), key);
        }
    }

    /// All runs are gone: the process died.
    pub fn clear(&mut self, now_us: u64) -> Vec<(u32, u64)> {
        self.machine.clear(seconds(now_us));
        self.waiting.clear();
        self.slots_taken = 0;
        std::mem::take(&mut self.runs).into_values().map(|run| (run.task, run.tag)).collect()
    }

    /// Looks at the CPU, if it is time; the sample if it is new.
    pub fn look(&mut self, now_us: u64) -> Option<CpuSample> {
        if now_us < self.looked_us + LOOK_APART_US {
            return None;
        }
        self.looked_us = now_us;
        let totals = self.machine.totals(seconds(now_us));
        self.window.push(totals);
        let span = self.window.span()?;
        let cores = self.machine.cores();
        let per_s = |ns: u64| ns as f64 / span.at_ns.max(1) as f64;
        let throttled_ratio =
            if span.periods == 0 { 0.0 } else { (span.throttled as f64 / span.periods as f64).min(1.0) };
        let sample = CpuSample {
            allotted_cores: cores,
            used_cores: per_s(span.used_ns),
            own_cores: per_s(span.own_ns).min(per_s(span.used_ns)),
            obtained_share: obtained_share(&span, cores),
            others_share: others_share(&span, cores),
            throttled_ratio,
            source: CpuSource::CgroupV2,
        };
        self.sample = Some(sample);
        Some(self.frozen_report.unwrap_or(sample))
    }

    /// The last sample.
    #[must_use]
    pub fn last_sample(&self) -> Option<CpuSample> {
        self.frozen_report.or(self.sample)
    }

    /// Whether a report is due: by its interval, or because the capacity changed much since the last one.
    #[must_use]
    pub fn due_report(&self, now_us: u64, interval_us: u64) -> bool {
        let changed =
            |cores: f64| (cores - self.reported_cores).abs() > WORTH_REPORTING * self.reported_cores;
        let since_us = now_us - self.reported_us;
        // Looks are a tenth early or late.
        since_us + interval_us / 8 >= interval_us
            || since_us >= REPORT_APART_US && self.effective_cores().is_some_and(changed)
    }

    /// A report was sent.
    pub fn reported(&mut self, now_us: u64) {
        self.reported_us = now_us;
        self.reported_cores = self.effective_cores().unwrap_or(self.reported_cores);
    }

    fn effective_cores(&self) -> Option<f64> {
        let sample = self.last_sample()?;
        let lost = (1.0 - sample.obtained_share.unwrap_or(1.0)).max(sample.others_share);
        Some(sample.allotted_cores * (1.0 - lost).max(0.05))
    }

    /// What it answers to a probe: runs in flight, and the median of the latest latencies of runs that came to about
    /// as many.
    #[must_use]
    pub fn probe(&self) -> (u32, f64) {
        let in_flight = self.in_flight();
        let nearest = self.latencies.iter().map(|(beside, _)| beside.abs_diff(in_flight)).min();
        let alike = |entry: &&(u32, f64)| Some(entry.0.abs_diff(in_flight)) == nearest;
        let mut latencies: Vec<f64> = self.latencies.iter().filter(alike).map(|entry| entry.1).collect();
        latencies.sort_by(f64::total_cmp);
        (in_flight, latencies.get(latencies.len() / 2).copied().unwrap_or(0.0))
    }
}

/// Microseconds as seconds.
#[must_use]
pub fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// Seconds as microseconds, rounded up.
#[must_use]
pub fn micros(seconds: f64) -> u64 {
    // Simulated times are some minutes.
    (seconds * 1e6).ceil() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::work::Known;

    fn task(cpu_s: f64, off_cpu_s: f64) -> Task {
        Task { arrival_us: 0, cpu_s, off_cpu_s, threads: 1, known: Known::Said }
    }

    fn ended_us(host: &mut Host) -> Vec<(u64, u64)> {
        let (mut ended, mut awake) = (Vec::new(), Vec::new());
        loop {
            let done = host.machine.next_done_s().map(micros);
            let woken = awake.iter().copied().min_by_key(|(at_us, _)| *at_us);
            let next = match (done, woken) {
                (Some(done), Some((at_us, _))) => done.min(at_us),
                (done, woken) => match done.or(woken.map(|one| one.0)) {
                    Some(next) => next,
                    None => return ended,
                },
            };
            let mut happened = Vec::new();
            if let Some((at_us, key)) = woken.filter(|one| one.0 == next) {
                awake.retain(|one| *one != (at_us, key));
                happened.extend(host.awake(next, key).map(Next::Ended));
            }
            while let Some(due) = host.due(next) {
                happened.push(due);
            }
            happened.extend(host.begin_waiting(next));
            for one in happened {
                match one {
                    Next::Sleeps(key, at_us) => awake.push((at_us, key)),
                    Next::Ended(run) => ended.push((run.tag, next)),
                }
            }
        }
    }

    #[test]
    fn with_one_slot_tasks_run_one_after_the_other_and_without_slots_side_by_side() {
        for (has_slots, expected) in [(true, [(1, 20_000), (2, 40_000)]), (false, [(1, 40_000), (2, 40_000)])]
        {
            let mut host = Host::new(1.0, 0.1, has_slots);
            assert!(host.take(0, 1, 1, &task(0.02, 0.0)).is_none());
            assert!(host.take(0, 2, 2, &task(0.02, 0.0)).is_none());
            let ended = ended_us(&mut host);
            for (one, expected) in ended.iter().zip(expected) {
                assert!(one.0 == expected.0 && one.1.abs_diff(expected.1) <= 1, "{has_slots} {ended:?}");
            }
        }
    }

    #[test]
    fn a_task_waits_for_its_io_in_the_middle_and_another_one_computes_meanwhile() {
        let mut host = Host::new(1.0, 0.1, false);
        host.take(0, 1, 1, &task(0.02, 0.05));
        host.take(0, 2, 2, &task(0.03, 0.0));
        let ended = ended_us(&mut host);
        // 10 of 20 ms each side by side; the other is alone from then on; 20 + 50 + 10.
        assert!(ended[0].0 == 2 && ended[0].1.abs_diff(40_000) <= 1, "{ended:?}");
        assert!(ended[1].0 == 1 && ended[1].1.abs_diff(80_000) <= 2, "{ended:?}");
    }

    #[test]
    fn a_hog_shows_in_the_sample_whether_we_work_or_not() {
        let mut busy = Host::new(0.5, 0.1, true);
        busy.machine.set_hogs(0.0, 1.0);
        let mut idle = busy.clone();
        busy.take(0, 1, 1, &task(100.0, 0.0));
        for at_us in [100_000, 600_000, 1_100_000] {
            busy.look(at_us);
            idle.look(at_us);
        }
        let (busy, idle) = (busy.last_sample().unwrap(), idle.last_sample().unwrap());
        assert!((busy.obtained_share.unwrap() - 0.5).abs() < 0.03, "{busy:?}");
        assert!(idle.obtained_share.is_none() && (idle.others_share - 0.5).abs() < 0.03, "{idle:?}");
    }
}
