//! A cluster of processes that are killed and stopped at random instants while clients submit and read, and what
//! must hold of what those clients saw.
//!
//! A tour: [`stage`] holds the processes of one cluster, [`faults`] picks from a seed what happens to them when,
//! [`caller`] is one client, which writes down what it asked and was told, and [`history`] says whether that may
//! be. [`run`] plays it all; [`cut_power`] cuts the power instead. [`containers`] holds a cluster whose network is cut, and
//! [`cuts::run`] plays that.

pub mod caller;
pub mod containers;
pub mod cuts;
pub mod faults;
pub mod history;
pub mod stage;

use crate::{Access, evenkeel_binary, masters::Ground, power::Disk};
use faults::Faults;
use history::History;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use stage::{Actor, Stage};
use std::{
    collections::BTreeMap,
    fmt,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What decides which fault comes when.
    pub seed: u64,
    /// Most tasks; each is submitted with a key, and has to end `succeeded`.
    pub tasks: u32,
    /// Clients that submit them, each some at a time.
    pub callers: u32,
    /// Nodes of the pool.
    pub nodes: usize,
    /// Longest pause between two faults; the mean is half of it.
    pub pause: Duration,
    /// Longest that all of it may take.
    pub within: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// How often each fault happened, by name.
    pub faults: BTreeMap<String, u32>,
    /// What followed from some of them, and how soon.
    pub seen: Vec<String>,
    /// Tasks that the clients know to have ended `succeeded`, each once.
    pub succeeded: u32,
    /// Most attempts that one of them took.
    pub most_attempts: u64,
    /// Requests that got no answer or one that promised nothing, and were made again.
    pub repeated: u64,
    /// From the first submit to the last end.
    pub took: Duration,
    /// What may not be; empty if all is well.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> =
            self.faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        self.seen.iter().try_for_each(|seen| writeln!(f, "  {seen}"))?;
        writeln!(
            f,
            "tasks succeeded with one result: {} in {:.1} s; most attempts of one: {}; requests repeated: {}",
            self.succeeded,
            self.took.as_secs_f64(),
            self.most_attempts,
            self.repeated
        )?;
        writeln!(f, "violations: {}", self.violations.len())?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

/// Plays it: faults go on until every task has ended, then the cluster is left alone and asked once more.
///
/// # Panics
/// If the cluster does not come up at all.
#[must_use]
pub fn run(ground: Ground, plan: &Plan) -> Report {
    let mut faults = Faults::new(plan.seed, plan.pause);
    let mut report = play(plan, Stage::raise(ground, plan.nodes, &[]), |stage| {
        faults.play_next(stage);
        ControlFlow::Continue(())
    });
    report.faults = faults.played;
    report
}

/// Plays it with the store on a disk whose power is cut so many times, at random instants; no new tasks come after the
/// last cut.
///
/// # Panics
/// If the cluster does not come up at all.
#[must_use]
pub fn cut_power(ground: Ground, plan: &Plan, cuts: u32) -> Report {
    let mut disk = Disk::new();
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut left = cuts;
    let stage = Stage::raise_on(&disk, ground, plan.nodes);
    let mut report = play(plan, stage, |stage| {
        thread::sleep(random.random_range(Duration::ZERO..=plan.pause));
        stage.cut_power(&mut disk, random.random());
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    report.faults.insert("CutPower".to_owned(), cuts - left);
    if left > 0 {
        report.violations.push(format!("all tasks had ended {left} cuts too soon; give it more"));
    }
    report
}

/// Plays it without faults: a cluster of the `old` program is upgraded to the one of this build and its nodes go back to
/// the old one, part after part, the next one after each pause of the plan, until every task has ended.
///
/// # Panics
/// If the cluster does not come up at all.
#[must_use]
pub fn upgrade(old: &Path, plan: &Plan) -> Report {
    let new = evenkeel_binary();
    let steps = [
        (Actor::Master(0), new.as_path()),
        (Actor::Manager, &new),
        (Actor::Manager, old),
        (Actor::Manager, &new),
    ];
    let mut steps = steps.into_iter();
    let mut which = 0;
    let mut report = play(plan, Stage::raise_from(old, Ground::Sqlite, plan.nodes, &[]), |stage| {
        thread::sleep(plan.pause);
        if let Some((actor, binary)) = steps.next() {
            stage.replace(actor, binary);
        }
        // Nodes that are not replaced by their new manager end, and are made anew of what it is.
        stage.kill_node(which);
        which += 1;
        ControlFlow::Continue(())
    });
    if let Some(left) = steps.next() {
        report.violations.push(format!("all tasks had ended before {left:?} was replaced; give it more"));
    }
    report
}

/// A cluster that faults happen to.
pub trait Scene {
    /// How clients reach it.
    fn access(&self) -> &Access;

    /// Ends what faults are still there, and waits until a master answers.
    fn heal(&mut self);
}

impl Scene for Stage {
    fn access(&self) -> &Access {
        self
    }

    fn heal(&mut self) {
        Self::heal(self);
    }
}

/// Clients submit while the cluster is disturbed, until all tasks of the plan have ended or `disturb` breaks off: what
/// was submitted by then is seen through.
///
/// # Panics
/// If a client does.
pub fn play<S: Scene>(
    plan: &Plan,
    mut scene: S,
    mut disturb: impl FnMut(&mut S) -> ControlFlow<()>,
) -> Report {
    let (history, enough) = (Arc::new(Mutex::new(History::default())), Arc::new(AtomicBool::new(false)));
    let began = Instant::now();
    let end = began + plan.within;
    let start = |number| caller::start(scene.access(), &history, &enough, number, plan, end);
    let callers: Vec<_> = (0..plan.callers).map(start).collect();
    while callers.iter().any(|caller| !caller.is_finished()) && Instant::now() < end {
        if disturb(&mut scene).is_break() {
            break;
        }
    }
    enough.store(true, Ordering::Relaxed);
    scene.heal();
    for caller in callers {
        caller.join().unwrap();
    }
    let took = began.elapsed();
    let mut history = std::mem::take(&mut *history.lock().unwrap_or_else(PoisonError::into_inner));
    history.check_end(&scene.access().listed_tasks());
    Report {
        faults: BTreeMap::new(),
        seen: Vec::new(),
        succeeded: history.succeeded(),
        most_attempts: history.most_attempts(),
        repeated: history.repeated,
        took,
        violations: history.violations,
    }
}
