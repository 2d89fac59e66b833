//! Logs of tasks that the store does not have: of `memory` tasks, and of attempts that failed and are followed
//! by another. Bounded in bytes; the oldest go first.

use protocol::{RunId, TaskId, log::Tails};
use std::{collections::BTreeMap, sync::Arc};

/// The log of one attempt of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLog {
    /// The hand-out.
    pub run: RunId,
    /// Which attempt of the task it was, counted from 1.
    pub attempt: u32,
    /// The end of what it printed; never empty.
    pub tails: Tails,
}

/// One log a task, of its last attempt that has ended.
#[derive(Debug, Default)]
pub struct Logs {
    of: BTreeMap<TaskId, (u64, Arc<TaskLog>)>,
    order: BTreeMap<u64, TaskId>,
    turn: u64,
    bytes: u64,
}

impl Logs {
    /// Keeps a log in the place of the one before, and drops the oldest past `max_bytes`.
    pub fn put(&mut self, task: TaskId, log: Arc<TaskLog>, max_bytes: u64) {
        self.take(task);
        self.turn += 1;
        self.bytes += log.tails.len() as u64;
        self.order.insert(self.turn, task);
        self.of.insert(task, (self.turn, log));
        while self.bytes > max_bytes
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            self.take(*oldest);
        }
    }

    /// The log of a task.
    #[must_use]
    pub fn get(&self, task: TaskId) -> Option<&Arc<TaskLog>> {
        self.of.get(&task).map(|(_, log)| log)
    }

    /// Lets go of the log of a task.
    pub fn take(&mut self, task: TaskId) -> Option<Arc<TaskLog>> {
        let (turn, log) = self.of.remove(&task)?;
        self.order.remove(&turn);
        self.bytes -= log.tails.len() as u64;
        Some(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::log::Tail;

    fn log(run: u64, bytes: usize) -> Arc<TaskLog> {
        let stdout = Tail { offset: 0, bytes: vec![b'x'; bytes].into() };
        Arc::new(TaskLog { run: RunId(run), attempt: 1, tails: Tails { stdout, ..Tails::default() } })
    }

    fn task(n: u128) -> TaskId {
        TaskId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn past_the_bound_the_oldest_go() {
        let mut logs = Logs::default();
        for n in 1..=4 {
            logs.put(task(n), log(n as u64, 30), 100);
        }
        assert_eq!([1, 2, 3, 4].map(|n| logs.get(task(n)).is_some()), [false, true, true, true]);
        logs.put(task(5), log(5, 101), 100);
        assert!(
            logs.of.is_empty() && logs.order.is_empty(),
            "one that is larger than all is not kept either"
        );
        assert_eq!(logs.bytes, 0);
    }

    #[test]
    fn the_log_of_a_later_attempt_takes_the_place_of_the_one_before() {
        let mut logs = Logs::default();
        logs.put(task(1), log(1, 30), 100);
        logs.put(task(1), log(2, 40), 100);
        assert_eq!((logs.get(task(1)).map(|log| log.run), logs.bytes), (Some(RunId(2)), 40));
        assert_eq!(logs.take(task(1)).map(|log| log.run), Some(RunId(2)));
        assert_eq!((logs.bytes, logs.order.len()), (0, 0));
    }
}
