//! A cluster of processes that are killed and stopped at random instants while clients submit and read, and what
//! must hold of what those clients saw.
//!
//! A tour: [`stage`] holds the processes of one cluster, [`faults`] picks from a seed what happens to them when,
//! [`caller`] is one client, which writes down what it asked and was told, and [`history`] says whether that may
//! be. [`run`] plays it all.

pub mod caller;
pub mod faults;
pub mod history;
pub mod stage;

use crate::evenkeel_binary;
use faults::{Fault, Faults};
use history::History;
use stage::{Actor, Ground, Stage};
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where tasks are stored, and how many masters there are.
    pub ground: Ground,
    /// What decides which fault comes when.
    pub seed: u64,
    /// Tasks in all; each is submitted with a key, and has to end `succeeded`.
    pub tasks: u32,
    /// Clients that submit them, each some at a time.
    pub callers: u32,
    /// Nodes of the pool.
    pub nodes: u32,
    /// Longest pause between two faults; the mean is half of it.
    pub pause: Duration,
    /// Longest that all of it may take.
    pub within: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// How often each fault happened.
    pub faults: BTreeMap<Fault, u32>,
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
            self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
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
pub fn run(plan: &Plan) -> Report {
    let mut faults = Faults::new(plan.seed, plan.pause);
    let mut report = play(plan, Stage::raise(plan.ground, plan.nodes, &[]), |stage| faults.play_next(stage));
    report.faults = faults.played;
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
    let mut report = play(plan, Stage::raise_from(old, plan.ground, plan.nodes, &[]), |stage| {
        thread::sleep(plan.pause);
        if let Some((actor, binary)) = steps.next() {
            stage.replace(actor, binary);
        }
        // Nodes that are not replaced by their new manager end, and are made anew of what it is.
        stage.kill_node(which);
        which += 1;
    });
    if let Some(left) = steps.next() {
        report.violations.push(format!("all tasks had ended before {left:?} was replaced; give it more"));
    }
    report
}

fn play(plan: &Plan, mut stage: Stage, mut disturb: impl FnMut(&mut Stage)) -> Report {
    let history = Arc::new(Mutex::new(History::default()));
    let began = Instant::now();
    let end = began + plan.within;
    let callers: Vec<_> =
        (0..plan.callers).map(|number| caller::start(&stage, &history, number, plan, end)).collect();
    while callers.iter().any(|caller| !caller.is_finished()) && Instant::now() < end {
        disturb(&mut stage);
    }
    stage.heal();
    for caller in callers {
        caller.join().unwrap();
    }
    let took = began.elapsed();
    let mut history = std::mem::take(&mut *history.lock().unwrap_or_else(PoisonError::into_inner));
    history.check_end(plan.tasks, &stage.listed_tasks());
    Report {
        faults: BTreeMap::new(),
        succeeded: history.succeeded(),
        most_attempts: history.most_attempts(),
        repeated: history.repeated,
        took,
        violations: history.violations,
    }
}
