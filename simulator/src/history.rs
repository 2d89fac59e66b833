//! What the clients saw, and whether it may be.
//!
//! In the manner of Jepsen's checks: each task is a register that changes once, from open to its end. Every
//! operation on it (submit, wait, read, cancel, by its client or by somebody who looks on, through any master) has
//! the time when it was begun and the time when its answer came. The history of such a register is linearizable
//! if and only if all ends that were seen are one, and no operation that began after one had seen the end
//! saw it open; both are checked as the answers come.

use protocol::{
    TaskId,
    task::{Durability, Task, TaskState},
};
use std::collections::BTreeMap;

/// One task as its client saw it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The id that the master gave, once the client knows it.
    pub id: Option<TaskId>,
    /// What the result has to be.
    pub value: u64,
    /// Whether it was made to fail.
    pub fails: bool,
    /// Whether it ends the node that runs it.
    pub poison: bool,
    /// Whether the process of a run of it was killed.
    pub child_killed: bool,
    /// How it was submitted.
    pub durability: Durability,
    /// When the client was told that it is accepted.
    pub acknowledged_us: Option<u64>,
    /// Whether the client was told so before its end, so that nothing it is told may be undone. Of a `memory`
    /// task that was never promised the end may be told before it is stored, and a crash may undo it.
    pub promised: bool,
    /// Whether the client asked to cancel it.
    pub cancel_asked: bool,
    /// Whether the master refused it for good.
    pub refused: bool,
    /// How it ended, as somebody was told; the first such answer.
    pub ended: Option<(TaskState, Option<String>)>,
    /// When that answer came, once it may not be undone any more.
    pub end_seen_us: Option<u64>,
}

impl Entry {
    /// Whether what the client is told of its end may never be undone.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.durability == Durability::Disk || self.promised
    }
}

/// All that all clients saw.
#[derive(Debug, Default)]
pub struct History {
    /// By number of the submission.
    pub entries: BTreeMap<u64, Entry>,
    /// What may not be.
    pub violations: Vec<String>,
    /// Answers that were held against each other.
    pub operations: u64,
}

impl History {
    /// An operation that began at `begun_us` is answered now with how a task stands.
    pub fn told(&mut self, number: u64, task: &Task, (begun_us, now_us): (u64, u64)) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        self.operations += 1;
        if let Some(id) = entry.id.filter(|id| *id != task.id) {
            self.violations.push(format!("submission {number} was task {id} and is now task {}", task.id));
        }
        entry.id = Some(task.id);
        let certain = entry.is_certain();
        if !task.state.is_terminal() {
            entry.promised |= entry.ended.is_none();
            if entry.end_seen_us.is_some_and(|seen_us| seen_us < begun_us) {
                self.violations.push(format!("task {} had ended and is {:?} again", task.id, task.state));
            }
            return;
        }
        if certain {
            entry.end_seen_us.get_or_insert(now_us);
        }
        let seen = (task.state, task.result.as_ref().map(|json| json.get().to_owned()));
        match &entry.ended {
            Some(before) if *before != seen && certain => {
                self.violations.push(format!("task {} ended as {before:?} and then as {seen:?}", task.id));
            }
            Some(_) => {}
            None => {
                if let Some(wrong) = wrong_end(entry, task) {
                    self.violations.push(wrong);
                }
                entry.ended = Some(seen);
            }
        }
    }

    /// An operation that began at `begun_us` is answered now with there being no such task.
    pub fn not_found(&mut self, number: u64, begun_us: u64) {
        let Some(entry) = self.entries.get(&number) else { return };
        self.operations += 1;
        if entry.is_certain() && entry.acknowledged_us.is_some_and(|at_us| at_us < begun_us) {
            self.violations.push(format!("submission {number} was acknowledged and is not there: {entry:?}"));
        }
    }

    /// What is still missing when all faults are over and all time has been given.
    pub fn check_complete(&mut self) {
        for (number, entry) in &self.entries {
            if entry.acknowledged_us.is_some() && entry.ended.is_none() {
                self.violations.push(format!(
                    "submission {number} was acknowledged as {:?} and never ended: {entry:?}",
                    entry.id
                ));
            }
        }
    }
}

fn wrong_end(entry: &Entry, task: &Task) -> Option<String> {
    let right = match task.state {
        TaskState::Succeeded => {
            !entry.fails
                && !entry.poison
                && task.result.as_ref().is_some_and(|json| json.get() == entry.value.to_string())
        }
        // Attempts may run out when nodes die: that is an end that the contract allows.
        TaskState::Failed => match task.error.as_ref().map(|error| error.code.as_str()) {
            Some("task_error") => entry.fails || entry.child_killed,
            Some("out_of_memory") => entry.child_killed,
            Some("node_lost" | "attempts_exhausted") => true,
            _ => false,
        },
        TaskState::Cancelled => entry.cancel_asked || entry.durability == Durability::Memory,
        TaskState::Queued | TaskState::Running => false,
    };
    (!right).then(|| format!("task {} ended wrongly: {task:?} for {entry:?}", task.id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use protocol::{Timestamp, task::Resources};
    use serde_json::value::RawValue;

    const NUMBER: u64 = 3;

    fn history() -> History {
        let entry = Entry {
            id: None,
            value: 5,
            fails: false,
            poison: false,
            child_killed: false,
            durability: Durability::Disk,
            acknowledged_us: Some(10),
            promised: true,
            cancel_asked: false,
            refused: false,
            ended: None,
            end_seen_us: None,
        };
        History { entries: [(NUMBER, entry)].into(), ..History::default() }
    }

    fn task(state: TaskState, result: Option<&str>) -> Task {
        Task {
            id: TaskId(uuid::Uuid::nil()),
            kind: String::new(),
            input: None,
            state,
            result: result.map(|text| RawValue::from_string(text.to_owned()).unwrap().into()),
            error: None,
            node: None,
            attempt: 1,
            max_attempts: 3,
            priority: 0,
            labels: BTreeMap::new(),
            resources: Resources::default(),
            submitted_at: Timestamp(0),
            started_at: None,
            finished_at: None,
            queue_ms: 0,
            run_ms: None,
            cpu_ms: None,
        }
    }

    fn seen(history: &mut History, state: TaskState, result: Option<&str>, during: (u64, u64)) -> usize {
        history.told(NUMBER, &task(state, result), during);
        history.violations.len()
    }

    #[test]
    fn who_asks_after_the_end_was_seen_must_see_it_and_who_asked_before_need_not() {
        let mut history = history();
        assert_eq!(seen(&mut history, TaskState::Succeeded, Some("5"), (20, 30)), 0);
        assert_eq!(seen(&mut history, TaskState::Running, None, (29, 90)), 0, "it began before");
        assert_eq!(seen(&mut history, TaskState::Running, None, (31, 40)), 1);
    }

    #[test]
    fn all_ends_are_one_and_the_right_one() {
        let mut history = history();
        assert_eq!(seen(&mut history, TaskState::Succeeded, Some("5"), (20, 30)), 0);
        assert_eq!(seen(&mut history, TaskState::Succeeded, Some("6"), (20, 31)), 1);
        assert_eq!(seen(&mut history, TaskState::Cancelled, None, (20, 32)), 2);
        let mut wrong = self::history();
        assert_eq!(seen(&mut wrong, TaskState::Succeeded, Some("6"), (20, 30)), 1);
    }

    #[test]
    fn what_was_acknowledged_is_there_for_who_asks_later_and_ends() {
        let mut history = history();
        history.not_found(NUMBER, 9);
        assert!(history.violations.is_empty());
        history.not_found(NUMBER, 11);
        history.check_complete();
        assert_eq!(history.violations.len(), 2);
    }
}
