//! What the clients saw, and whether it may be.

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
    /// How it was submitted.
    pub durability: Durability,
    /// Whether the client was told that it is accepted.
    pub acknowledged: bool,
    /// Whether the client was told so before its end, so that nothing it is told may be undone. Of a `memory`
    /// task that was never promised the end may be told before it is stored, and a crash may undo it.
    pub promised: bool,
    /// Whether the client asked to cancel it.
    pub cancel_asked: bool,
    /// Whether the master refused it for good.
    pub refused: bool,
    /// How it ended, as the client was told; the first such answer.
    pub ended: Option<(TaskState, Option<String>)>,
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
}

impl History {
    /// A client is told how a task stands.
    pub fn told(&mut self, number: u64, task: &Task) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if let Some(id) = entry.id.filter(|id| *id != task.id) {
            self.violations.push(format!("submission {number} was task {id} and is now task {}", task.id));
        }
        entry.id = Some(task.id);
        let certain = entry.is_certain();
        if !task.state.is_terminal() {
            entry.promised |= entry.ended.is_none();
            if entry.ended.is_some() && certain {
                self.violations.push(format!("task {} had ended and is {:?} again", task.id, task.state));
            }
            return;
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

    /// What is still missing when all faults are over and all time has been given.
    pub fn check_complete(&mut self) {
        for (number, entry) in &self.entries {
            if entry.acknowledged && entry.ended.is_none() {
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
            !entry.fails && task.result.as_ref().is_some_and(|json| json.get() == entry.value.to_string())
        }
        // Attempts may run out when nodes die: that is an end that the contract allows.
        TaskState::Failed => {
            let code = task.error.as_ref().map(|error| error.code.as_str());
            match code {
                Some("task_error") => entry.fails,
                Some("node_lost" | "attempts_exhausted") => true,
                _ => false,
            }
        }
        TaskState::Cancelled => entry.cancel_asked || entry.durability == Durability::Memory,
        TaskState::Queued | TaskState::Running => false,
    };
    (!right).then(|| format!("task {} ended wrongly: {task:?} for {entry:?}", task.id))
}
