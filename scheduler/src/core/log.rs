//! What tasks print: where the log of each is, from its first attempt until the store has it.
//!
//! While a run goes on its node has the log. At its end the node sends it along with the result, and it is
//! written with the end of its task, in the same transaction.

use super::state::{Ended, Entry};
use super::{Core, Effect, NodeId, RunId, TaskId};
use crate::{logs::TaskLog, record::Op};
use protocol::log::Tails;
use std::sync::Arc;

/// Where the log of a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPlace {
    /// The task waits to be handed out; with the log of the attempt before, if there was one.
    Waiting(Option<Arc<TaskLog>>),
    /// A node has it: the task runs there, or was told to stop and may still say something.
    Node {
        /// The node.
        node: NodeId,
        /// The hand-out.
        run: RunId,
        /// Which attempt of the task.
        attempt: u32,
        /// The log of the attempt before, while it is kept.
        before: Option<Arc<TaskLog>>,
    },
    /// The task has ended. Without a log here the store may have one; if it has none, nothing was printed.
    Ended(Option<Arc<TaskLog>>),
}

impl Core {
    /// Where the log of a task is; `None` for a task that is not in memory.
    #[must_use]
    pub fn log(&self, id: TaskId) -> Option<LogPlace> {
        let kept = || self.logs.get(id).cloned();
        Some(match self.tasks.get(&id)? {
            Entry::Live(live) => match live.life.current() {
                Some(current) => {
                    let attempt = live.life.attempt();
                    LogPlace::Node { node: current.node, run: current.run, attempt, before: kept() }
                }
                None => LogPlace::Waiting(kept()),
            },
            Entry::Ended(ended) => match self.stopping(ended) {
                Some((run, node)) => {
                    let before = ended.log.clone().or_else(kept);
                    LogPlace::Node { node, run, attempt: ended.task.attempt, before }
                }
                None => LogPlace::Ended(ended.log.clone().or_else(kept)),
            },
        })
    }

    /// The run of an ended task that was told to stop and has not said that it has.
    fn stopping(&self, ended: &Ended) -> Option<(RunId, NodeId)> {
        let (run, node) = ended.last_run.filter(|_| ended.winner.is_none())?;
        let entry = self.nodes.get(&node)?.ledger.get(run)?;
        entry.cancelling.then_some((run, node))
    }

    /// An attempt has ended, with this log: it takes the place of that of the attempt before.
    pub(super) fn keep_log(&mut self, id: TaskId, run: RunId, tails: Option<Box<Tails>>) {
        let Some(Entry::Live(live)) = self.tasks.get(&id) else { return };
        let attempt = live.life.attempt();
        match tails {
            Some(tails) => {
                let log = Arc::new(TaskLog { run, attempt, tails: *tails });
                self.logs.put(id, log, self.config.logs_max_bytes);
            }
            None => drop(self.logs.take(id)),
        }
    }

    /// The log that is written with the end of its task.
    pub(super) fn log_to_write(&mut self, id: TaskId) -> Option<Arc<TaskLog>> {
        self.logs.take(id).filter(|log| self.has_room_to_write(log))
    }

    fn has_room_to_write(&self, log: &TaskLog) -> bool {
        self.store.unwritten_bytes + log.tails.len() as u64 <= self.config.unwritten_log_max_bytes
    }

    /// The log of a run that does not count any more. It does, if it is that of the run that was told to stop
    /// when its task ended: who cancels a task wants to see what it was doing.
    pub(super) fn late_log(
        &mut self,
        id: TaskId,
        of: (RunId, NodeId),
        tails: Option<Box<Tails>>,
        out: &mut Vec<Effect>,
    ) {
        let (Some(tails), Some(Entry::Ended(ended))) = (tails, self.tasks.get_mut(&id)) else { return };
        if ended.winner.is_some() || ended.last_run != Some(of) {
            return;
        }
        // It comes once.
        ended.last_run = None;
        let log = Arc::new(TaskLog { run: of.0, attempt: ended.task.attempt, tails: *tails });
        if !ended.stored {
            return self.logs.put(id, log, self.config.logs_max_bytes);
        }
        if self.has_room_to_write(&log) {
            if let Some(Entry::Ended(ended)) = self.tasks.get_mut(&id) {
                ended.log = Some(Arc::clone(&log));
            }
            self.write(Op::TaskLog { task: id, log }, out);
        }
    }

    /// The store has this log.
    pub(super) fn log_written(&mut self, id: TaskId, log: Option<&TaskLog>) {
        if let (Some(log), Some(Entry::Ended(ended))) = (log, self.tasks.get_mut(&id))
            && ended.log.as_ref().is_some_and(|kept| kept.run == log.run)
        {
            ended.log = None;
        }
    }
}
