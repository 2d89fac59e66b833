//! The store that all masters share: what is really lost when power fails before it was synced, and who leads.

use crate::{node::printed, plant::Plant};
use protocol::{
    NodeId, RunId, TaskId, Timestamp,
    task::{Task, TaskState},
};
use scheduler::{
    TaskLog,
    effect::WriteSeq,
    event::ClientId,
    record::{NodeRecord, Op, OpenTask, Recovered, TaskRecord},
};
use session::lease::Answer;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How many transactions a store that does not sync may have in memory only.
const UNSYNCED: u32 = 16;

#[derive(Clone, Debug, Default)]
struct State {
    open: BTreeMap<TaskId, OpenTask>,
    ended: BTreeMap<TaskId, Arc<Task>>,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
    keys: BTreeMap<(ClientId, Arc<str>), ([u8; 32], TaskId)>,
}

/// What has been synced, and the lease.
#[derive(Debug, Default)]
pub struct Disk {
    epoch: u64,
    leader: Option<usize>,
    leads_until_us: u64,
    state: State,
    /// Tasks that are here although their acceptance was called failed: their keys may come again.
    unpromised: BTreeSet<TaskId>,
    /// What was really synced, of a store that does so only now and then.
    synced: Option<Box<State>>,
    commits: u32,
    /// What must never happen and did, for the checker.
    pub violations: Vec<String>,
    plant: Option<Plant>,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new(plant: Option<Plant>) -> Self {
        let synced = (plant == Some(Plant::MissingSync)).then(Box::default);
        Self { plant, synced, ..Self::default() }
    }

    /// The highest epoch that was given out.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Which of several masters the store believes to lead.
    #[must_use]
    pub const fn leader(&self) -> Option<usize> {
        self.leader
    }

    /// A new leader's epoch, which is durable before it does anything else.
    pub fn next_epoch(&mut self) -> u64 {
        if self.epoch == 0 || self.plant != Some(Plant::SameEpoch) {
            self.epoch += 1;
        }
        self.epoch
    }

    /// A master asks for the lead, at this time by the store's clock.
    pub fn campaign(&mut self, now_us: u64, machine: usize, lease_us: u64) -> Answer {
        if now_us < self.leads_until_us {
            return Answer::Held { left_us: self.leads_until_us - now_us };
        }
        self.leader = Some(machine);
        self.leads_until_us = now_us + lease_us;
        Answer::Won { epoch: self.next_epoch() }
    }

    /// The leader of this epoch prolongs its lease.
    pub fn renew(&mut self, now_us: u64, epoch: u64, lease_us: u64) -> Answer {
        if epoch != self.epoch || self.leader.is_none() {
            return Answer::Deposed;
        }
        self.leads_until_us = now_us + lease_us;
        Answer::Renewed
    }

    /// The leader of this epoch gives its lease up.
    pub fn resign(&mut self, epoch: u64) -> Answer {
        if epoch == self.epoch {
            self.leads_until_us = 0;
            self.leader = None;
        }
        Answer::Resigned
    }

    /// What a new leader reads.
    #[must_use]
    pub fn recover(&self) -> Recovered {
        let mut tasks: Vec<_> = self.state.open.values().cloned().collect();
        if self.plant == Some(Plant::DoubleRequeue) {
            tasks.extend(tasks.first().cloned());
        }
        let keys = self.state.keys.iter();
        let keys = keys.map(|((client, key), (hash, task))| (*client, Arc::clone(key), *hash, *task));
        Recovered {
            tasks,
            nodes: self.state.nodes.values().cloned().collect(),
            keys: if self.plant == Some(Plant::KeysForgotten) { Vec::new() } else { keys.collect() },
        }
    }

    /// A transaction of the leader of this epoch becomes durable, whole. False if another one leads.
    pub fn commit(&mut self, epoch: u64, mut ops: Vec<(WriteSeq, Op)>) -> bool {
        if epoch != self.epoch {
            if self.plant != Some(Plant::MissingEpochCheck) {
                return false;
            }
            self.violations.push(format!("epoch {epoch} wrote after epoch {} had begun", self.epoch));
        }
        if self.plant == Some(Plant::TornTransaction) && ops.len() > 2 {
            ops.pop();
        }
        for (_, op) in ops {
            self.apply(op);
        }
        self.commits += 1;
        if let Some(synced) = self.synced.as_mut().filter(|_| self.commits.is_multiple_of(UNSYNCED)) {
            **synced = self.state.clone();
        }
        true
    }

    /// A transaction was written although its master was not told so, or was told the contrary.
    pub fn commit_untold(&mut self, epoch: u64, ops: Vec<(WriteSeq, Op)>) -> bool {
        for (_, op) in &ops {
            if let Op::TaskAccepted(record) = op {
                self.unpromised.insert(record.id);
            }
        }
        self.commit(epoch, ops)
    }

    /// The machine loses its power.
    pub fn lose_unsynced(&mut self) {
        if let Some(synced) = &self.synced {
            self.state = State::clone(synced);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::TaskAccepted(record) => self.accept(record),
            Op::TaskDispatched { task, run, node, attempt, at } => {
                self.dispatch(task, run, node, attempt, at)
            }
            Op::TaskRequeued { task, attempt } => {
                if let Some(open) = self.state.open.get_mut(&task) {
                    open.running = None;
                    open.attempt = attempt;
                }
            }
            Op::TaskEnded { task, log, .. } => self.end(task, log.as_deref()),
            Op::TaskLog { task, log } => self.check_log(task, &log),
            Op::NodeRegistered(record) => drop(self.state.nodes.insert(record.id, record)),
            Op::NodeGone { node, .. } => drop(self.state.nodes.remove(&node)),
        }
    }

    fn accept(&mut self, record: Arc<TaskRecord>) {
        if self.state.ended.contains_key(&record.id) || self.state.open.contains_key(&record.id) {
            return;
        }
        if let Some((key, hash)) = &record.key {
            let whose = (record.client, Arc::clone(key));
            if let Some((_, before)) = self.state.keys.insert(whose, (*hash, record.id))
                && !self.unpromised.contains(&before)
            {
                self.violations.push(format!("key {key} names task {before} and task {}", record.id));
            }
        }
        self.state.open.insert(record.id, OpenTask { record, attempt: 0, running: None });
    }

    fn dispatch(&mut self, task: TaskId, run: RunId, node: NodeId, attempt: u32, at: Timestamp) {
        if let Some(open) = self.state.open.get_mut(&task) {
            open.running = Some((node, run, at));
            open.attempt = attempt;
        }
    }

    fn check_log(&mut self, task: TaskId, log: &TaskLog) {
        if log.tails != printed(log.run) {
            self.violations
                .push(format!("task {task} has a log that run {} did not print: {log:?}", log.run));
        }
    }

    fn end(&mut self, task: Arc<Task>, log: Option<&TaskLog>) {
        match log {
            Some(log) => self.check_log(task.id, log),
            None if task.state == TaskState::Succeeded => {
                self.violations.push(format!("task {} succeeded without its log", task.id));
            }
            None => {}
        }
        self.state.open.remove(&task.id);
        if let Some(before) = self.state.ended.get(&task.id) {
            let text = |task: &Task| task.result.as_ref().map(|json| json.get().to_owned());
            if before.state != task.state || text(before) != text(&task) {
                self.violations.push(format!("task {} ended twice: {before:?} and {task:?}", task.id));
            }
            return;
        }
        self.state.ended.insert(task.id, task);
    }

    /// A task that has ended.
    #[must_use]
    pub fn ended(&self, task: TaskId) -> Option<&Arc<Task>> {
        self.state.ended.get(&task)
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn open_tasks(&self) -> usize {
        self.state.open.len()
    }

    /// Tasks that have ended.
    #[must_use]
    pub fn ended_tasks(&self) -> usize {
        self.state.ended.len()
    }
}
