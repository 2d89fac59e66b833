//! A store that is really lost when power fails before it was synced.

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
use std::{collections::BTreeMap, sync::Arc};

/// What has been synced, and the one transaction that is on its way.
#[derive(Debug, Default)]
pub struct Disk {
    epoch: u64,
    open: BTreeMap<TaskId, OpenTask>,
    ended: BTreeMap<TaskId, Arc<Task>>,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
    keys: Vec<(ClientId, Arc<str>, [u8; 32], TaskId)>,
    /// What must never happen and did, for the checker.
    pub violations: Vec<String>,
    plant: Option<Plant>,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new(plant: Option<Plant>) -> Self {
        Self { plant, ..Self::default() }
    }

    /// A master starts: its epoch is durable before it does anything else.
    pub fn start_master(&mut self) -> (u64, Recovered) {
        if self.epoch == 0 || self.plant != Some(Plant::SameEpoch) {
            self.epoch += 1;
        }
        let recovered = Recovered {
            tasks: self.open.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            keys: if self.plant == Some(Plant::KeysForgotten) { Vec::new() } else { self.keys.clone() },
        };
        (self.epoch, recovered)
    }

    /// A transaction becomes durable, whole.
    pub fn commit(&mut self, mut ops: Vec<(WriteSeq, Op)>) {
        if self.plant == Some(Plant::TornTransaction) && ops.len() > 2 {
            ops.pop();
        }
        for (_, op) in ops {
            self.apply(op);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::TaskAccepted(record) => self.accept(record),
            Op::TaskDispatched { task, run, node, attempt, at } => {
                self.dispatch(task, run, node, attempt, at)
            }
            Op::TaskRequeued { task, attempt } => {
                if let Some(open) = self.open.get_mut(&task) {
                    open.running = None;
                    open.attempt = attempt;
                }
            }
            Op::TaskEnded { task, log, .. } => self.end(task, log.as_deref()),
            Op::TaskLog { task, log } => self.check_log(task, &log),
            Op::NodeRegistered(record) => drop(self.nodes.insert(record.id, record)),
            Op::NodeGone { node, .. } => drop(self.nodes.remove(&node)),
        }
    }

    fn accept(&mut self, record: Arc<TaskRecord>) {
        if self.ended.contains_key(&record.id) || self.open.contains_key(&record.id) {
            return;
        }
        if let Some((key, hash)) = &record.key {
            if let Some((.., before)) =
                self.keys.iter().find(|known| known.0 == record.client && known.1 == *key)
            {
                self.violations.push(format!("key {key} names task {before} and task {}", record.id));
            }
            self.keys.push((record.client, Arc::clone(key), *hash, record.id));
        }
        self.open.insert(record.id, OpenTask { record, attempt: 0, running: None });
    }

    fn dispatch(&mut self, task: TaskId, run: RunId, node: NodeId, attempt: u32, at: Timestamp) {
        if let Some(open) = self.open.get_mut(&task) {
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
        self.open.remove(&task.id);
        if let Some(before) = self.ended.get(&task.id) {
            let text = |task: &Task| task.result.as_ref().map(|json| json.get().to_owned());
            if before.state != task.state || text(before) != text(&task) {
                self.violations.push(format!("task {} ended twice: {before:?} and {task:?}", task.id));
            }
            return;
        }
        self.ended.insert(task.id, task);
    }

    /// A task that has ended.
    #[must_use]
    pub fn ended(&self, task: TaskId) -> Option<&Arc<Task>> {
        self.ended.get(&task)
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn open_tasks(&self) -> usize {
        self.open.len()
    }

    /// Tasks that have ended.
    #[must_use]
    pub fn ended_tasks(&self) -> usize {
        self.ended.len()
    }
}
