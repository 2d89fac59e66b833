//! The CPU of one node: threads under a CFS quota, ours and those of hogs.
//!
//! Source: kernel documents, sched-bwc. The quota of a period of 100 ms comes in one piece at its start; ready
//! threads use it up as fast as the CPUs allow, and then all of them wait for the next period. Within the
//! time that they run, ready threads share the CPUs equally. What is left out: the 5 ms slices in which CPUs draw
//! on the quota, and priorities (a hog counts as one thread like ours).
//!
//! Because all threads are served alike, one number says how far each has come: the service, in CPU-seconds,
//! that a thread which was always ready would have had. A task of w CPU-seconds on m threads is done when the
//! service has grown by w ÷ m. Whole periods are jumped over, so a long task costs no more than a short one.

use node::cpu::measure::Totals;
use std::collections::BTreeSet;

/// A CFS period, in seconds (the default that Docker sets).
pub const PERIOD_S: f64 = 0.1;
/// Rounding of times and services, in seconds; far below a microsecond.
const EPSILON_S: f64 = 1e-9;

/// Names a ready task on a machine.
pub type Key = u32;

/// The CPU of one node.
#[derive(Clone, Debug)]
pub struct Machine {
    cores: f64,
    /// CPUs that its threads may run on at once.
    cpus: f64,
    hogs: f64,
    frozen: bool,
    time_s: f64,
    period_end_s: f64,
    quota_left_s: f64,
    service_s: f64,
    threads: f64,
    /// By the service at which they are done; the bits of a float that is not negative are in its order.
    ready: BTreeSet<(u64, Key, u32)>,
    sums: Sums,
}

/// What the kernel counts, in seconds and periods.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    used: f64,
    own: f64,
    wait: f64,
    busy: f64,
    foreign: f64,
    periods: f64,
    throttled: f64,
}

impl Machine {
    /// A machine of `cores` whose periods begin `phase_s` after the start.
    #[must_use]
    pub fn new(cores: f64, phase_s: f64) -> Self {
        Self {
            cores,
            cpus: cores.ceil().max(1.0),
            hogs: 0.0,
            frozen: false,
            time_s: 0.0,
            period_end_s: phase_s.max(EPSILON_S),
            quota_left_s: cores * PERIOD_S,
            service_s: 0.0,
            threads: 0.0,
            ready: BTreeSet::new(),
            sums: Sums::default(),
        }
    }

    /// Its quota, in cores.
    #[must_use]
    pub const fn cores(&self) -> f64 {
        self.cores
    }

    /// Threads of hogs.
    #[must_use]
    pub const fn hogs(&self) -> f64 {
        self.hogs
    }

    /// Whether nothing of ours is ready.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty()
    }

    /// So many hog threads from now on.
    pub fn set_hogs(&mut self, now_s: f64, hogs: f64) {
        self.advance(now_s);
        self.hogs = hogs;
    }

    /// All processes are stopped (SIGSTOP), or go on.
    pub fn set_frozen(&mut self, now_s: f64, frozen: bool) {
        self.advance(now_s);
        self.frozen = frozen;
    }

    /// A task of `cpu_s` on `threads` threads is ready from now on.
    pub fn add(&mut self, now_s: f64, key: Key, cpu_s: f64, threads: u32) {
        self.advance(now_s);
        let done_at = self.service_s + cpu_s / f64::from(threads);
        self.ready.insert((done_at.to_bits(), key, threads));
        self.threads += f64::from(threads);
    }

    /// A task is stopped.
    pub fn remove(&mut self, now_s: f64, key: Key) {
        self.advance(now_s);
        if let Some(entry) = self.ready.iter().find(|entry| entry.1 == key).copied() {
            self.take(entry);
        }
    }

    /// All tasks of ours are gone.
    pub fn clear(&mut self, now_s: f64) {
        self.advance(now_s);
        self.ready.clear();
        self.threads = 0.0;
    }

    fn take(&mut self, entry: (u64, Key, u32)) {
        self.ready.remove(&entry);
        self.threads -= f64::from(entry.2);
    }

    /// A task that is done by now.
    pub fn pop_done(&mut self, now_s: f64) -> Option<Key> {
        self.advance(now_s);
        let first = self.ready.first().copied()?;
        (f64::from_bits(first.0) <= self.service_s + EPSILON_S).then(|| {
            self.take(first);
            first.1
        })
    }

    /// When the first task is done if nothing changes, in seconds from the start.
    #[must_use]
    pub fn next_done_s(&self) -> Option<f64> {
        let first = self.ready.first()?;
        self.wall_s(f64::from_bits(first.0) - self.service_s, self.threads).map(|wall| self.time_s + wall)
    }

    /// How long a task of `cpu_s` on `threads` would take from the last event on, beside what is ready now and if
    /// nothing more comes: the truth, which only a bound may ask for.
    #[must_use]
    pub fn would_take_s(&self, now_s: f64, cpu_s: f64, threads: u32) -> f64 {
        let mut then = self.clone();
        then.add(now_s, Key::MAX, cpu_s, threads);
        let done_at = then.ready.iter().find(|entry| entry.1 == Key::MAX).map(|entry| entry.0);
        while let Some(at_s) = then.next_done_s() {
            let first = then.ready.first().map(|entry| entry.0);
            then.advance(at_s);
            if first == done_at {
                return at_s - now_s;
            }
            while then.pop_done(at_s).is_some() {}
        }
        f64::INFINITY
    }

    /// How long until `threads` threads in all have each had `service_s` more.
    fn wall_s(&self, service_s: f64, threads: f64) -> Option<f64> {
        let all = threads + self.hogs;
        if self.frozen || all <= 0.0 {
            return None;
        }
        let wanted = service_s.max(0.0);
        let each = all.min(self.cpus) / all;
        if all.min(self.cpus) <= self.cores {
            return Some(wanted / each);
        }
        let (period_end_s, quota_left_s) = self.quota_at(self.time_s);
        let now = (quota_left_s / all).min((period_end_s - self.time_s) * each);
        if wanted <= now {
            return Some(wanted / each);
        }
        let piece = self.cores * PERIOD_S / all;
        let rest = wanted - now;
        let whole = ((rest / piece).ceil() - 1.0).max(0.0);
        Some(period_end_s - self.time_s + whole * PERIOD_S + (rest - whole * piece) / each)
    }

    /// End of the period and what is left of its quota, at a time from which on nothing has run yet.
    fn quota_at(&self, time_s: f64) -> (f64, f64) {
        if time_s < self.period_end_s {
            return (self.period_end_s, self.quota_left_s);
        }
        let passed = ((time_s - self.period_end_s) / PERIOD_S).floor() + 1.0;
        (self.period_end_s + passed * PERIOD_S, self.cores * PERIOD_S)
    }

    /// Time passes.
    pub fn advance(&mut self, to_s: f64) {
        while self.time_s < to_s {
            (self.period_end_s, self.quota_left_s) = self.quota_at(self.time_s);
            let all = if self.frozen { 0.0 } else { self.threads + self.hogs };
            if all <= 0.0 {
                self.time_s = to_s;
            } else {
                self.run(all, to_s);
            }
        }
    }

    /// Runs to the end of the period, over whole periods, or to `to_s`.
    fn run(&mut self, all: f64, to_s: f64) {
        let speed = all.min(self.cpus);
        let left_s = self.period_end_s - self.time_s;
        if speed <= self.cores {
            // The quota never runs out; it is still counted, in case more threads come.
            let span = if to_s < self.period_end_s { to_s - self.time_s } else { left_s };
            self.quota_left_s = (self.quota_left_s - speed * span).max(0.0);
            return self.served(all, span, span * speed / all, (span / PERIOD_S, 0.0));
        }
        let whole = ((to_s - self.time_s) / PERIOD_S).floor();
        if left_s >= PERIOD_S - EPSILON_S && whole >= 1.0 && to_s >= self.period_end_s {
            // From the start of a period on, each period gives the whole quota.
            self.quota_left_s = 0.0;
            let span = whole * PERIOD_S;
            self.period_end_s += (whole - 1.0) * PERIOD_S;
            return self.served(all, span, whole * self.cores * PERIOD_S / all, (whole, whole));
        }
        let span = left_s.min(to_s - self.time_s);
        let ran = span.min(self.quota_left_s / speed);
        self.quota_left_s = (self.quota_left_s - ran * speed).max(0.0);
        let ran_out = f64::from(u8::from(to_s >= self.period_end_s && self.quota_left_s <= EPSILON_S));
        let over = f64::from(u8::from(to_s >= self.period_end_s));
        self.served(all, span, ran * speed / all, (over, ran_out));
    }

    fn served(&mut self, all: f64, span_s: f64, service_s: f64, (periods, throttled): (f64, f64)) {
        self.time_s += span_s.max(f64::EPSILON * self.time_s);
        self.service_s += service_s;
        let sums = &mut self.sums;
        sums.used += all * service_s;
        sums.own += self.threads * service_s;
        sums.wait += self.threads * (span_s - service_s).max(0.0);
        if self.threads > 0.0 {
            sums.busy += span_s;
        }
        sums.foreign += self.hogs * span_s;
        sums.periods += periods;
        sums.throttled += throttled;
    }

    /// CPU time of everything on it so far, in seconds.
    #[must_use]
    pub const fn used_s(&self) -> f64 {
        self.sums.used
    }

    /// What the kernel's files would say now.
    pub fn totals(&mut self, now_s: f64) -> Totals {
        self.advance(now_s);
        // Simulated times are far below 2⁵³ ns.
        let ns = |seconds: f64| (seconds * 1e9).round() as u64;
        let sums = self.sums;
        Totals {
            at_ns: ns(now_s),
            used_ns: ns(sums.used),
            own_ns: ns(sums.own),
            host_others_ns: 0,
            task_cpu_ns: ns(sums.own),
            run_ns: ns(sums.own),
            wait_ns: ns(sums.wait),
            busy_ns: ns(sums.busy),
            foreign_ns: ns(sums.foreign),
            periods: sums.periods.floor() as u64,
            throttled: sums.throttled as u64,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(machine: &mut Machine) -> Vec<(Key, f64)> {
        let mut ended = Vec::new();
        while let Some(at_s) = machine.next_done_s() {
            machine.advance(at_s);
            while let Some(key) = machine.pop_done(at_s) {
                ended.push((key, at_s));
            }
        }
        ended
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-6
    }

    #[test]
    fn a_task_that_fits_the_unspent_quota_runs_at_full_speed_and_a_longer_one_waits_for_periods() {
        let mut machine = Machine::new(0.1, PERIOD_S);
        machine.add(0.0, 1, 0.008, 1);
        assert!(near(ends(&mut machine)[0].1, 0.008));
        let mut machine = Machine::new(0.1, PERIOD_S);
        machine.add(0.0, 1, 0.025, 1);
        // 10 ms in each of two periods, 5 ms of the third.
        assert!(near(ends(&mut machine)[0].1, 0.205));
    }

    #[test]
    fn a_hog_takes_half_of_the_quota_and_the_kernels_files_say_so() {
        let mut machine = Machine::new(0.5, PERIOD_S);
        machine.set_hogs(0.0, 1.0);
        machine.add(0.0, 1, 10.0, 1);
        let totals = machine.totals(2.0);
        assert_eq!(totals.used_ns / 1_000, 1_000_000);
        assert_eq!(totals.own_ns / 1_000, 500_000);
        assert_eq!(totals.wait_ns / 1_000, 1_500_000);
        assert_eq!((totals.busy_ns, totals.foreign_ns), (2_000_000_000, 2_000_000_000));
        assert_eq!((totals.periods, totals.throttled), (20, 20));
    }

    #[test]
    fn threads_of_one_task_use_up_the_quota_together() {
        let mut machine = Machine::new(2.0, PERIOD_S);
        machine.add(0.0, 1, 1.0, 2);
        assert!(near(ends(&mut machine)[0].1, 0.5));
        let mut machine = Machine::new(1.5, PERIOD_S);
        machine.add(0.0, 1, 0.9, 4);
        // Six periods of 150 ms, of which the last ends when its quota is used up: 75 ms in.
        assert!(near(ends(&mut machine)[0].1, 0.575));
    }

    #[test]
    fn what_is_stopped_goes_on_later() {
        let mut machine = Machine::new(1.0, PERIOD_S);
        machine.add(0.0, 1, 0.3, 1);
        machine.set_frozen(0.1, true);
        assert_eq!(machine.next_done_s(), None);
        machine.set_frozen(5.1, false);
        assert!(near(ends(&mut machine)[0].1, 5.3));
    }

    proptest! {
        /// However often one looks, tasks end at the same times; no more than the quota is used; and what a bound
        /// is told beforehand is what happens.
        #[test]
        fn looking_changes_nothing_and_nobody_gets_more_than_the_quota(
            cores in 0.1..3.0f64,
            hogs in 0u32..3,
            tasks in prop::collection::vec((0.001..0.5f64, 1u32..4), 1..6),
            looks in prop::collection::vec(0.0..3.0f64, 0..40),
        ) {
            let mut machine = Machine::new(cores, 0.03);
            machine.set_hogs(0.0, f64::from(hogs));
            for (key, (cpu_s, threads)) in (0..).zip(&tasks) {
                let told = machine.would_take_s(0.0, *cpu_s, *threads);
                machine.add(0.0, key, *cpu_s, *threads);
                let really = ends(&mut machine.clone()).into_iter().find(|end| end.0 == key).unwrap().1;
                prop_assert!((told - really).abs() < 1e-6, "{told} {really}");
            }
            let expected = ends(&mut machine.clone());
            let last = expected.last().unwrap().1;
            let mut looks = looks;
            looks.sort_by(f64::total_cmp);
            let mut looked = machine.clone();
            let mut ended = Vec::new();
            for at_s in looks.into_iter().filter(|at_s| *at_s < last) {
                while let Some(done_s) = looked.next_done_s().filter(|done_s| *done_s <= at_s) {
                    while let Some(key) = looked.pop_done(done_s) {
                        ended.push((key, done_s));
                    }
                }
                looked.advance(at_s);
            }
            ended.extend(ends(&mut looked));
            prop_assert_eq!(ended.len(), expected.len());
            for (one, other) in ended.iter().zip(&expected) {
                prop_assert!((one.1 - other.1).abs() < 1e-6, "{:?} {:?}", one, other);
            }
            // One piece may be left over from before the first full period.
            prop_assert!(looked.used_s() <= cores * (last + 2.0 * PERIOD_S) + 1e-6);
        }
    }
}
