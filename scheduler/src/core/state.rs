//! What the core remembers of a task and the store.

use super::submit::bytes_of;
use crate::{
    effect::WriteSeq,
    estimate::{Estimate, Size},
    event::{ClientId, ReplyId},
    explain::Decision,
    logs::TaskLog,
    queue::{Class, Item},
    record::{Op, TaskRecord},
    suspects::Fingerprint,
    task::Life,
};
use protocol::{
    NodeId, RunId,
    task::{Resources, Task, TaskState},
};
use std::{collections::VecDeque, sync::Arc};

/// What a change takes until it is durable, beside a task's input and result, in bytes.
const OP_BYTES: u64 = 512;

/// What a caller still has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// That it is accepted.
    Accepted,
    /// That it is accepted, if `ack` is still due, and that it has ended.
    Stream { ack: bool },
    /// That it has ended, or how it is at that time.
    Until { until_us: u64 },
    /// The time has come: how it is, as soon as it is stored.
    Due,
    /// That their cancel was done.
    Cancelled,
    /// That their cancel came after the end, once that end is certain.
    TooLate,
}

/// Whether a task is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    No,
    Writing,
    Yes,
}

/// A task that has not ended.
pub(super) struct Live {
    pub(super) record: Arc<TaskRecord>,
    pub(super) kind: Arc<str>,
    pub(super) resources: Resources,
    pub(super) life: Life,
    pub(super) class: Class,
    /// What it is, to those who look for what ends nodes.
    pub(super) print: Fingerprint,
    pub(super) size: Size,
    pub(super) estimate: Estimate,
    /// Its place in the queue, while it waits.
    pub(super) item: Option<Item>,
    pub(super) arrival_us: i64,
    /// The arrival by which it is queued: its own, or that of a retry past the budget.
    pub(super) queued_as_us: i64,
    pub(super) deadline_us: Option<u64>,
    pub(super) bytes: u64,
    /// Whether it is a `disk` task.
    pub(super) durable: bool,
    pub(super) stored: Stored,
    /// Whether somebody was told that it will be done.
    pub(super) promised: bool,
    /// The submitter's reply, while its going away may cancel a `memory` task; whether it is a stream.
    pub(super) owner: Option<(ReplyId, bool)>,
    pub(super) waiters: Vec<(ReplyId, Want)>,
    pub(super) last_node: Option<NodeId>,
    pub(super) started: Option<(i64, protocol::Timestamp)>,
    pub(super) decision: Option<Box<Decision>>,
}

/// A task that has ended.
pub(super) struct Ended {
    pub(super) task: Arc<Task>,
    pub(super) client: ClientId,
    /// The run whose result was taken, and its node: told when the result is safe.
    pub(super) winner: Option<(RunId, NodeId)>,
    /// The winner, or the run that was told to stop when the task ended without one.
    pub(super) last_run: Option<(RunId, NodeId)>,
    /// Whether the store has it, or will.
    pub(super) stored: bool,
    /// Its log, until the store has it.
    pub(super) log: Option<Arc<TaskLog>>,
    /// Whether its end is still being written.
    pub(super) writing: bool,
    /// Whether callers are told only once it is written.
    pub(super) durable: bool,
    /// As what it is shown until then.
    pub(super) before: TaskState,
    pub(super) waiters: Vec<(ReplyId, Want)>,
    pub(super) decision: Option<Box<Decision>>,
}

/// A task.
pub(super) enum Entry {
    Live(Box<Live>),
    Ended(Box<Ended>),
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) late: u64,
}

/// What was asked of the store and is not durable yet.
#[derive(Default)]
pub(super) struct Store {
    pub(super) last: WriteSeq,
    pub(super) outstanding: VecDeque<(WriteSeq, Op)>,
    /// Written again once the store is tried again, in this order.
    pub(super) void: VecDeque<Op>,
    /// What all of these take, as [`Store::bytes_of`] counts: grows with what is asked, shrinks with what is
    /// durable or not wanted any more.
    pub(super) unwritten_bytes: u64,
    /// How long it waits before that, in microseconds; 0 while writes succeed.
    pub(super) pause_us: u64,
    /// Callers who are told a number once everything up to this write is durable.
    pub(super) counts: Vec<(WriteSeq, ReplyId, u64)>,
}

impl Store {
    /// What a change takes until it is durable.
    pub(super) fn bytes_of(op: &Op) -> u64 {
        match op {
            Op::TaskAccepted(record) => bytes_of(&record.spec),
            Op::TaskLog { log, .. } => OP_BYTES + log.tails.len() as u64,
            Op::TaskEnded { task, log, .. } => {
                let length =
                    |json: &Option<protocol::task::Json>| json.as_ref().map_or(0, |json| json.get().len());
                let log_bytes = log.as_ref().map_or(0, |log| log.tails.len());
                OP_BYTES + (length(&task.input) + length(&task.result) + log_bytes) as u64
            }
            _ => OP_BYTES,
        }
    }

    /// A change is durable, or not wanted any more.
    pub(super) fn done(&mut self, op: &Op) {
        self.unwritten_bytes = self.unwritten_bytes.saturating_sub(Self::bytes_of(op));
    }
}
