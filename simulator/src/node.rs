//! A simulated node: the production session, and an executor that lets virtual time pass instead of working.

use crate::master::ConnId;
use bytes::Bytes;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    log::{LOG_PIECE_BYTES, Tail, Tails},
    node::{CpuSample, CpuSource, MemorySample, NodeRegistration, NodeStatus, Report, RunningTask, slots_of},
    task::{ErrorCode, TaskError},
    work::{Outcome, Run},
};
use session::node::{Config, Effect, Ended, Session, slots_of_run};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
};

/// A node process that runs, or the place of one that was killed.
pub struct SimNode {
    /// Its name; stays when the process is replaced.
    pub name: String,
    /// Its allotted cores.
    pub cores: f64,
    /// The production session; none while the process is dead.
    pub session: Option<Session>,
    /// This life of the process.
    pub boot: BootId,
    /// Counts its lives; events for an earlier one are dropped.
    pub life: u64,
    /// Its open channel.
    pub conn: Option<ConnId>,
    /// Stopped by a signal: nothing happens to it until this time.
    pub stopped_until_us: u64,
    /// What it sends waits until this time, as TCP does.
    pub cut_to_master_us: u64,
    /// What is sent to it waits until this time.
    pub cut_to_node_us: u64,
    /// Until when it gets a tenth of its CPU.
    pub slow_until_us: u64,
    /// The master that it asks next, of several.
    pub asks: usize,
    /// The last messages with results that it sent, for those that send them again.
    pub said: VecDeque<(Option<ConnId>, Bytes)>,
    /// Its session token, as the registration gave it.
    pub registered: Option<NodeId>,
    /// Id of its container.
    pub runtime_id: Option<String>,
    running: BTreeMap<RunId, Running>,
    /// Runs that begin when another one ends, and those of them that were cancelled before.
    next: VecDeque<(Box<Run>, Bytes)>,
    never_begun: BTreeSet<RunId>,
    seq: u64,
    /// Epochs of the orders that it obeyed, for the checker.
    pub obeyed_epoch: u64,
    /// How many times each task was begun here, for the checker.
    pub begun: BTreeMap<TaskId, u32>,
}

/// How a run that has begun will end.
#[derive(Clone, Copy, Debug)]
pub enum Begun {
    /// By itself at this time.
    Ends(u64),
    /// With its node at this time.
    EndsNode(u64),
}

#[derive(Clone, Debug)]
struct Running {
    task: TaskId,
    slots: u32,
    value: u64,
    fails: bool,
    cancelled: bool,
    killed: Option<ErrorCode>,
    started_us: u64,
}

/// What the executor does with a task of this input: how long it takes, what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SimInput {
    /// What comes back as the result.
    pub value: u64,
    /// How long it takes on one core.
    pub work_us: u64,
    /// Whether it ends with an error instead.
    pub fails: bool,
    /// Whether it ends the node instead.
    pub poison: bool,
}

/// What a run prints: always the same, so that a log can be checked wherever it turns up, and sometimes more than
/// fits in a frame.
#[must_use]
pub fn printed(run: RunId) -> Tails {
    let line = format!("{run}\n");
    let lines = if run.0.is_multiple_of(7) { LOG_PIECE_BYTES / 4 + 1 } else { 1 };
    let stdout = Tail { offset: run.0, bytes: line.repeat(lines).into() };
    Tails { stdout, stderr: Tail { offset: 0, bytes: line.into() } }
}

impl SimNode {
    /// The place of a node; [`SimNode::boot`] starts its first process.
    #[must_use]
    pub fn new(name: String, cores: f64) -> Self {
        Self {
            name,
            cores,
            session: None,
            boot: BootId(uuid::Uuid::nil()),
            life: 0,
            conn: None,
            stopped_until_us: 0,
            cut_to_master_us: 0,
            cut_to_node_us: 0,
            slow_until_us: 0,
            asks: 0,
            said: VecDeque::new(),
            registered: None,
            runtime_id: None,
            running: BTreeMap::new(),
            next: VecDeque::new(),
            never_begun: BTreeSet::new(),
            seq: 0,
            obeyed_epoch: 0,
            begun: BTreeMap::new(),
        }
    }

    /// A new process starts here.
    pub fn boot(&mut self, now_us: u64, boot: BootId, out: &mut Vec<Effect>) {
        let config = Config::new(slots_of(self.cores));
        let mut session = Session::new(Config { max_ahead: config.max_waiting, ..config }, boot);
        session.start(now_us, out);
        self.session = Some(session);
        self.boot = boot;
        self.life += 1;
        self.seq = 0;
        self.obeyed_epoch = 0;
    }

    /// The process dies, with all that it knew.
    pub fn kill(&mut self) {
        self.session = None;
        self.conn = None;
        self.registered = None;
        self.running.clear();
        self.next.clear();
        self.never_begun.clear();
        self.life += 1;
    }

    /// What it registers as.
    #[must_use]
    pub fn registration(&self) -> NodeRegistration {
        NodeRegistration {
            name: self.name.clone(),
            ip: Ipv4Addr::LOCALHOST.into(),
            pool: "default".to_owned(),
            allotted_cores: self.cores,
            memory_bytes: 1 << 30,
            kinds: vec![protocol::node::KindInfo { name: "work".to_owned(), ..Default::default() }],
            labels: BTreeMap::new(),
            version: "0".to_owned(),
            boot_id: self.boot,
            runtime_id: self.runtime_id.clone(),
        }
    }

    /// Its next report.
    pub fn report(&mut self) -> Report {
        self.seq += 1;
        let busy = (self.running.len() as f64).min(self.cores);
        let draining = self.session.as_ref().is_some_and(Session::is_draining);
        Report {
            seq: self.seq,
            boot_id: self.boot,
            ip: Ipv4Addr::LOCALHOST.into(),
            status: if draining { NodeStatus::Draining } else { NodeStatus::Ready },
            cpu: CpuSample {
                allotted_cores: self.cores,
                used_cores: busy,
                own_cores: busy,
                obtained_share: None,
                throttled_ratio: 0.0,
                source: CpuSource::CgroupV2,
                others_share: 0.0,
            },
            memory: MemorySample { used_bytes: 1 << 20, limit_bytes: 1 << 30 },
            running: self.running.values().map(|run| RunningTask { task: run.task, rss_bytes: 0 }).collect(),
        }
    }

    /// Starts a run; how it will end, or nothing if its input cannot be read.
    pub fn begin(&mut self, now_us: u64, run: &Run, input: &Bytes) -> Option<Begun> {
        let input: SimInput = serde_json::from_slice(input).ok()?;
        *self.begun.entry(run.task).or_default() += 1;
        let running = Running {
            task: run.task,
            slots: slots_of_run(run.cores),
            value: input.value,
            fails: input.fails,
            cancelled: false,
            killed: None,
            started_us: now_us,
        };
        self.running.insert(run.run, running);
        // The share of each does not change while it runs: good enough to find faults of the protocol.
        let threads = self.running.len() as f64;
        let slow = if now_us < self.slow_until_us { 0.1 } else { 1.0 };
        let rate = (self.cores / threads).clamp(0.05, 1.0) * slow;
        let ends_us = now_us + (input.work_us as f64 / rate) as u64;
        Some(if input.poison { Begun::EndsNode(ends_us) } else { Begun::Ends(ends_us) })
    }

    /// A run is to begin when there is a slot for it.
    pub fn begin_later(&mut self, run: Box<Run>, input: Bytes) {
        self.next.push_back((run, input));
    }

    /// The run that is to begin now, if one waits and there is a slot for it.
    pub fn take_next(&mut self) -> Option<(Box<Run>, Bytes)> {
        let taken: u32 = self.running.values().map(|running| running.slots).sum();
        (taken < slots_of(self.cores)).then(|| self.next.pop_front()).flatten()
    }

    /// Takes a run away that has not begun; whether there was one.
    pub fn take_back(&mut self, run: RunId) -> bool {
        let before = self.next.len();
        self.next.retain(|(next, _)| next.run != run);
        self.next.len() < before
    }

    /// A run is to stop; it ends a moment later.
    pub fn cancel(&mut self, run: RunId) {
        if self.take_back(run) {
            self.never_begun.insert(run);
        }
        if let Some(running) = self.running.get_mut(&run) {
            running.cancelled = true;
        }
    }

    /// Kills the process of a run: which one that was, and of which task; nothing if none runs.
    pub fn kill_child(&mut self, code: ErrorCode) -> Option<(RunId, TaskId)> {
        let (run, running) = self.running.iter_mut().find(|(_, running)| running.killed.is_none())?;
        running.killed = Some(code);
        Some((*run, running.task))
    }

    /// A run that it has not ended yet.
    #[must_use]
    pub fn any_run(&self) -> Option<(RunId, TaskId)> {
        self.running.first_key_value().map(|(run, running)| (*run, running.task))
    }

    /// What a run's result is to be.
    #[must_use]
    pub fn value_of(&self, run: RunId) -> Option<u64> {
        self.running.get(&run).map(|running| running.value)
    }

    /// Whether this run goes on.
    #[must_use]
    pub fn runs(&self, run: RunId) -> bool {
        self.running.contains_key(&run)
    }

    /// A run has ended; nothing if it is not there any more.
    pub fn end(&mut self, now_us: u64, run: RunId) -> Option<Ended> {
        if self.never_begun.remove(&run) {
            let (outcome, result) = (Outcome::Cancelled, Bytes::new());
            return Some(Ended { outcome, result, run_ms: 0.0, cpu_ms: 0.0, sample: None, log: None });
        }
        let running = self.running.remove(&run)?;
        let run_ms = (now_us - running.started_us) as f64 / 1_000.0;
        let failed = |code, why: &str| Outcome::Failed(TaskError { code, message: why.to_owned() });
        let (outcome, result) = match (running.cancelled, running.killed, running.fails) {
            (true, ..) => (Outcome::Cancelled, Bytes::new()),
            (_, Some(code), _) => (failed(code, "its process was killed"), Bytes::new()),
            (.., true) => (failed(ErrorCode::TaskError, "as the input asked"), Bytes::new()),
            _ => (Outcome::Succeeded, Bytes::from(running.value.to_string())),
        };
        Some(Ended {
            outcome,
            result,
            run_ms,
            cpu_ms: run_ms,
            sample: None,
            log: Some(Box::new(printed(run))),
        })
    }

    /// Whether nothing runs and nothing waits to be committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
            && self.next.is_empty()
            && self
                .session
                .as_ref()
                .is_none_or(|session| session.uncommitted() == 0 && session.waiting() == 0)
    }
}
