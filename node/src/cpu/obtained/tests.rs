//! The cases of design 3.1, each alone and with hogs, on a small model of the CFS quota.

use super::*;
use crate::cpu::{
    schedstat::{Ledger, Ready, ThreadTimes},
    window::{Totals, Window},
};
use proptest::prelude::*;

const STEP_NS: u64 = 1_000_000;
const PERIOD_STEPS: u64 = 100;

/// What a thread wants.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Demand {
    /// CPU, always.
    Always,
    /// Nothing.
    Never,
    /// So many ms of CPU, then so many ms of sleep, and again.
    Bursts { cpu_ms: u64, sleep_ms: u64 },
    /// So many ms of CPU, then it ends and another thread takes its place.
    Short { cpu_ms: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Slot,
    Command,
    Foreign,
}

#[derive(Clone, Debug)]
struct Thread {
    tid: i32,
    owner: Owner,
    demand: Demand,
    run_ns: u64,
    wait_ns: u64,
    /// Of the present wait, which the kernel counts at its end.
    waiting_ns: u64,
    /// Of the present burst or life.
    done_ns: u64,
    sleep_ns: u64,
    busy_since_ns: u64,
}

impl Thread {
    fn new(tid: i32, owner: Owner, demand: Demand, now_ns: u64) -> Self {
        let (run_ns, wait_ns, waiting_ns, done_ns, sleep_ns) = (0, 0, 0, 0, 0);
        Self { tid, owner, demand, run_ns, wait_ns, waiting_ns, done_ns, sleep_ns, busy_since_ns: now_ns }
    }

    fn ready(&self) -> bool {
        self.demand != Demand::Never && self.sleep_ns == 0
    }
}

/// A container with a CPU quota, on as many CPUs as it is allowed to use.
struct Container {
    cores: f64,
    cpus: usize,
    threads: Vec<Thread>,
    now_ns: u64,
    left_ns: u64,
    ran_out: bool,
    next_tid: i32,
    totals: Totals,
}

impl Container {
    fn new(cores: f64, threads: &[(Owner, Demand)]) -> Self {
        let cpus = cores.ceil() as usize;
        let threads: Vec<Thread> =
            (1..).zip(threads).map(|(tid, (owner, demand))| Thread::new(tid, *owner, *demand, 0)).collect();
        let next_tid = threads.len() as i32 + 1;
        Self {
            cores,
            cpus,
            threads,
            now_ns: 0,
            left_ns: 0,
            ran_out: false,
            next_tid,
            totals: Totals::default(),
        }
    }

    /// One ms: the ready threads that ran least share what the period has left.
    fn step(&mut self) {
        if self.now_ns.is_multiple_of(PERIOD_STEPS * STEP_NS) {
            self.left_ns = (self.cores * (PERIOD_STEPS * STEP_NS) as f64) as u64;
            self.totals.periods += 1;
            self.ran_out = false;
        }
        let mut ready: Vec<usize> = (0..self.threads.len()).filter(|at| self.threads[*at].ready()).collect();
        // Who got the least of what it wanted goes first; a new thread stands in the middle.
        ready.sort_by(|a, b| {
            let part = |at: &usize| {
                let thread = &self.threads[*at];
                let wanted = thread.run_ns + thread.wait_ns + thread.waiting_ns;
                if wanted == 0 { 0.5 } else { thread.run_ns as f64 / wanted as f64 }
            };
            part(a).total_cmp(&part(b))
        });
        if ready.iter().any(|at| self.threads[*at].owner != Owner::Foreign) {
            self.totals.busy_ns += STEP_NS;
        }
        for (place, at) in ready.into_iter().enumerate() {
            let slice_ns = if place < self.cpus { self.left_ns.min(STEP_NS) } else { 0 };
            self.left_ns -= slice_ns;
            if self.left_ns == 0 && !std::mem::replace(&mut self.ran_out, true) {
                self.totals.throttled += 1;
            }
            let thread = &mut self.threads[at];
            thread.waiting_ns += STEP_NS - slice_ns;
            if slice_ns > 0 {
                thread.wait_ns += std::mem::take(&mut thread.waiting_ns);
                thread.run_ns += slice_ns;
                thread.done_ns += slice_ns;
                self.totals.used_ns += slice_ns;
                if thread.owner != Owner::Foreign {
                    self.totals.own_ns += slice_ns;
                    self.totals.task_cpu_ns += slice_ns;
                }
            }
        }
        self.now_ns += STEP_NS;
        self.totals.at_ns = self.now_ns;
        for thread in &mut self.threads {
            thread.sleep_ns = thread.sleep_ns.saturating_sub(STEP_NS);
            match thread.demand {
                Demand::Bursts { cpu_ms, sleep_ms } if thread.done_ns >= cpu_ms * STEP_NS => {
                    thread.done_ns = 0;
                    thread.sleep_ns = sleep_ms * STEP_NS;
                    thread.busy_since_ns = self.now_ns + thread.sleep_ns;
                }
                Demand::Short { cpu_ms } if thread.done_ns >= cpu_ms * STEP_NS => {
                    *thread = Thread::new(self.next_tid, thread.owner, thread.demand, self.now_ns);
                    self.next_tid += 1;
                }
                _ => {}
            }
        }
    }

    /// Run time of our tasks so far.
    fn task_run_ns(&self) -> u64 {
        self.totals.task_cpu_ns
    }
}

/// Looks at the container as the sampler does, and gives the figures of every look after the first
/// 1.2 s: obtained share, others' share, effective cores.
fn watch(container: &mut Container, gaps_ms: &[u64]) -> Vec<(Option<f64>, f64, f64)> {
    let (mut window, mut ours, mut foreign) = (Window::default(), Ledger::default(), Ledger::default());
    let (mut last_ns, mut figures) = (None, Vec::new());
    for gap_ms in gaps_ms {
        for _ in 0..*gap_ms {
            container.step();
        }
        let now_ns = container.now_ns;
        for ledger in [&mut ours, &mut foreign] {
            ledger.begin(last_ns.map(|last| now_ns - last));
        }
        for thread in &container.threads {
            let times = ThreadTimes { run_ns: thread.run_ns, wait_ns: thread.wait_ns };
            let throughout = thread.owner == Owner::Slot
                && thread.ready()
                && last_ns.is_some_and(|last| thread.busy_since_ns <= last);
            let ledger = if thread.owner == Owner::Foreign { &mut foreign } else { &mut ours };
            ledger.observe(thread.tid, times, if throughout { Ready::Throughout } else { Ready::Unknown });
        }
        ours.forget_unseen();
        foreign.forget_unseen();
        last_ns = Some(now_ns);
        window.push(Totals {
            run_ns: ours.run_ns(),
            wait_ns: ours.wait_ns(),
            foreign_ns: foreign.run_ns() + foreign.wait_ns(),
            ..container.totals
        });
        if let Some(span) = window.span().filter(|_| now_ns > 1_200_000_000) {
            let obtained = obtained_share(&span, container.cores);
            let others = others_share(&span, container.cores);
            figures.push((obtained, others, effective_cores(container.cores, obtained, others)));
        }
    }
    figures
}

/// Our threads in a container of so many cores, with so many hogs.
fn with_hogs(cores: f64, ours: &[(Owner, Demand)], hogs: usize) -> Container {
    let mut threads = ours.to_vec();
    threads.extend(std::iter::repeat_n((Owner::Foreign, Demand::Always), hogs));
    Container::new(cores, &threads)
}

/// Looks at 250 ms give or take the jitter of a report, and at once now and then, as results do.
fn looks() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![4 => 225u64..275, 1 => 100u64..225, 1 => 275u64..600], 24..40)
}

/// Each case: its name, the cores, our threads, and the least and most of the cores that count as
/// effective beside one hog.
type Case = (&'static str, f64, Vec<(Owner, Demand)>, (f64, f64));

fn cases() -> Vec<Case> {
    let slots = |count, demand| vec![(Owner::Slot, demand); count];
    let commands = |count, demand| vec![(Owner::Command, demand); count];
    let burst = Demand::Bursts { cpu_ms: 50, sleep_ms: 300 };
    vec![
        // The hog takes one of four cores and our thread keeps its own.
        ("one busy slot of four", 4.0, slots(1, Demand::Always), (0.70, 0.80)),
        // Nothing of ours runs; a first task would share the core with the hog.
        ("only sleep", 1.0, slots(4, Demand::Never), (0.45, 0.55)),
        ("idle", 0.5, vec![], (0.45, 0.55)),
        // Three share what two would have.
        ("two threads on a quarter of a core", 0.25, slots(2, Demand::Always), (0.52, 0.82)),
        // The hog empties the quota before the burst comes.
        ("bursts of 50 ms", 0.25, slots(1, burst), (0.20, 0.80)),
        ("one and a half cores with two threads", 1.5, slots(2, Demand::Always), (0.57, 0.77)),
        // One against eight.
        ("a command with eight threads", 1.0, commands(8, Demand::Always), (0.78, 0.95)),
        ("a command of short children", 1.0, commands(4, Demand::Short { cpu_ms: 3 }), (0.65, 0.90)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_undisturbed_node_keeps_its_cores_whatever_it_runs(gaps in looks()) {
        for (name, cores, ours, _) in cases() {
            let mut container = with_hogs(cores, &ours, 0);
            for (obtained, others, effective) in watch(&mut container, &gaps) {
                prop_assert!(effective >= 0.9 * cores, "{name}: {obtained:?} {others} {effective} of {cores}");
            }
        }
    }

    #[test]
    fn beside_a_hog_a_node_counts_as_what_new_work_would_get(gaps in looks()) {
        for (name, cores, ours, (least, most)) in cases() {
            let mut container = with_hogs(cores, &ours, 1);
            for (obtained, others, effective) in watch(&mut container, &gaps) {
                let share = effective / cores;
                prop_assert!(least <= share && share <= most, "{name}: {obtained:?} {others} {share}");
            }
        }
    }

    /// Any always busy slots against any hogs: the loss is what they lost by the hogs, or what sits
    /// beside them, whichever is more.
    #[test]
    fn the_loss_is_what_the_hogs_took(
        cores in 0.1f64..4.0, threads in 1usize..6, hogs in 0usize..4, gaps in looks(),
    ) {
        let ours = vec![(Owner::Slot, Demand::Always); threads];
        let mut alone = with_hogs(cores, &ours, 0);
        let mut beside = with_hogs(cores, &ours, hogs);
        watch(&mut alone, &gaps);
        let figures = watch(&mut beside, &gaps);
        let lost = 1.0 - beside.task_run_ns() as f64 / alone.task_run_ns() as f64;
        let hogged = (beside.totals.used_ns - beside.totals.own_ns) as f64 / beside.now_ns as f64;
        let others = (hogged / cores).min(hogs as f64 / (hogs as f64 + 1.0));
        let expected = 1.0 - lost.max(others);
        for (obtained, others, effective) in figures {
            let share = effective / cores;
            prop_assert!((share - expected.max(0.05)).abs() < 0.15, "{obtained:?} {others} {share} {expected}");
        }
    }

    /// Whatever the counters say, the figures are shares.
    #[test]
    fn figures_are_always_in_range(
        at_ns in 1u64..5_000_000_000, used_ns: u32, own_ns: u32, task_cpu_ns: u32, run_ns: u32,
        wait_ns: u32, busy_ns: u32, foreign_ns: u32, host_others_ns: u32, periods in 0u64..20, throttled in 0u64..20,
        cores in 0.01f64..4_096.0,
    ) {
        let [used_ns, own_ns, task_cpu_ns, run_ns, wait_ns, busy_ns, foreign_ns, host_others_ns] =
            [used_ns, own_ns, task_cpu_ns, run_ns, wait_ns, busy_ns, foreign_ns, host_others_ns].map(u64::from);
        let span = Span {
            at_ns, used_ns, own_ns, host_others_ns, task_cpu_ns, run_ns, wait_ns, busy_ns, foreign_ns,
            periods, throttled,
        };
        let obtained = obtained_share(&span, cores);
        prop_assert!(obtained.is_none_or(|share| (0.0..=1.0).contains(&share)));
        for others in [others_share(&span, cores), others_share_on_host(&span, cores, 2.0)] {
            prop_assert!((0.0..=1.0).contains(&others));
            let effective = effective_cores(cores, obtained, others);
            prop_assert!(effective >= 0.05 * cores && effective <= cores);
        }
    }
}

#[test]
fn a_thread_that_gets_nothing_at_all_is_a_loss_though_its_counters_stand_still() {
    // 1 ms of quota in 100, all of it taken by the hog that is always first.
    let span = Span { at_ns: 900_000_000, busy_ns: 900_000_000, wait_ns: 900_000_000, ..Span::default() };
    assert_eq!(obtained_share(&span, 0.5), Some(0.0));
    assert_eq!(effective_cores(0.5, Some(0.0), 0.0), 0.025, "placement still leaves it a little");
}

#[test]
fn too_little_work_says_nothing() {
    let span = Span { at_ns: 900_000_000, busy_ns: 90_000_000, run_ns: 40_000_000, ..Span::default() };
    assert_eq!(obtained_share(&span, 1.0), None);
    let idle = Span { at_ns: 900_000_000, run_ns: 200_000_000, ..Span::default() };
    assert_eq!(obtained_share(&idle, 1.0), None, "threads that ran without a task are not our work");
}

#[test]
fn the_measured_burst_of_50_ms_on_an_undisturbed_quarter_of_a_core_is_no_loss() {
    let span = Span {
        at_ns: 1_000_000_000,
        busy_ns: 119_000_000,
        run_ns: 50_000_000,
        wait_ns: 69_000_000,
        ..Span::default()
    };
    assert_eq!(obtained_share(&span, 0.25), Some(1.0));
}

#[test]
fn on_a_host_others_count_only_where_they_take_what_this_node_was_given() {
    let busy = |others_cores: f64| Span {
        at_ns: 1_000_000_000,
        host_others_ns: (others_cores * 1e9) as u64,
        ..Span::default()
    };
    assert_eq!(others_share_on_host(&busy(3.0), 1.0, 4.0), 0.0, "the fourth CPU is free");
    assert_eq!(others_share_on_host(&busy(0.0), 0.5, 2.0), 0.0);
    let saturated = others_share_on_host(&busy(4.0), 1.0, 4.0);
    assert!((saturated - 0.2).abs() < 1e-9, "five threads on four CPUs: {saturated}");
}
