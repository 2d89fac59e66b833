//! Everything that the scheduler can ask its shell for.

use crate::{event::ReplyId, record::Op};
use protocol::{
    NodeId, RunId, TaskId,
    node::NodeStatus,
    task::{Json, Task, TaskState},
};
use std::sync::Arc;

/// Number of a write; grows by one with each [`Effect::Write`] of this master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteSeq(pub u64);

/// Something for the shell to do. Effects of one step are done in order; those of several steps may be
/// done together (one message per channel, one transaction for all writes).
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write this with the next transaction, then say [`crate::event::Event::Written`].
    Write {
        /// Its number.
        seq: WriteSeq,
        /// What to write.
        op: Op,
    },
    /// Send this over the node's work channel.
    Send {
        /// The node.
        node: NodeId,
        /// What.
        order: Order,
    },
    /// Close the node's work channel: its session is over (removed, replaced).
    CloseChannel {
        /// The node.
        node: NodeId,
    },
    /// Answer a caller. `last` says whether the shell may forget the reply.
    Answer {
        /// Who.
        reply: ReplyId,
        /// What.
        answer: Answer,
        /// Whether nothing more will be said to them.
        last: bool,
    },
    /// Something changed that followers of `/v1/events` and the metrics want to know.
    Changed(Change),
    /// Send [`crate::event::Event::Tick`] at this time (monotonic microseconds). Replaces the one before,
    /// and stays in force until it is replaced or reached: events that come earlier do not void it.
    WakeAt {
        /// When.
        mono_us: u64,
    },
}

/// An order for a node, without the epoch that the session adds.
#[derive(Clone, Debug)]
pub enum Order {
    /// Run this.
    Run {
        /// The task.
        task: TaskId,
        /// The hand-out.
        run: RunId,
        /// Name of the kind.
        kind: Arc<str>,
        /// Its input; an empty object if the task has none.
        input: Json,
        /// Bound of the running time.
        timeout_ms: Option<u64>,
        /// What is left of the deadline.
        deadline_in_ms: Option<u64>,
        /// Threads that it keeps busy.
        cores: f64,
        /// Memory set aside for it.
        memory_bytes: u64,
    },
    /// Stop this run.
    Cancel {
        /// The hand-out.
        run: RunId,
    },
    /// The run's result is recorded, or will never be wanted.
    Committed {
        /// The hand-out.
        run: RunId,
    },
    /// Take no new work.
    Drain {
        /// Running tasks may go on this long.
        deadline_ms: Option<u64>,
    },
    /// Take work again.
    Resume,
}

/// What a caller is told.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The task is accepted and, if `disk`, committed.
    Accepted(Arc<Task>),
    /// The task has ended (and is committed, if `disk`).
    Finished(Arc<Task>),
    /// The wait ended first; the task as it is, committed.
    Unfinished(Arc<Task>),
    /// The idempotency key and body came before, as this task, which has ended and is not in memory any
    /// more: the shell answers with what the store has (as `Accepted` or `Finished`).
    Stored(TaskId),
    /// The task was cancelled by this call.
    Cancelled(Arc<Task>),
    /// So many tasks were cancelled by this call.
    CancelledCount(u64),
    /// The node is registered.
    Registered {
        /// Its id.
        node: NodeId,
        /// How often it reports.
        report_interval_ms: u64,
    },
    /// It was refused.
    Refused(Refusal),
}

/// Why a caller was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bound of the queue is reached: 429.
    #[error(
        "the queue holds {tasks} tasks and {bytes} bytes, which is its bound; try again after {retry_after_s} s"
    )]
    QueueFull {
        /// Tasks in it.
        tasks: u64,
        /// Bytes in it.
        bytes: u64,
        /// When to try again.
        retry_after_s: u32,
    },
    /// No such kind: 422. `near` is the nearest known name.
    #[error("kind {kind:?} is not known{}; GET /v1/kinds lists what is", near.as_ref().map(|n| format!(", did you mean {n:?}")).unwrap_or_default())]
    UnknownKind {
        /// What was asked for.
        kind: String,
        /// The nearest known name.
        near: Option<String>,
    },
    /// Nothing known could ever run it: 422.
    #[error("{why}")]
    NeverFits {
        /// What is asked for and the largest that is known.
        why: String,
    },
    /// The idempotency key came before with another body: 422.
    #[error("this Idempotency-Key was used with another body; use a new key for a new task")]
    KeyReused,
    /// No such task here (the shell may look in the store): 404.
    #[error("no such task")]
    NotFound,
    /// It was here and is not kept any longer: 410.
    #[error("the task has ended and is no longer kept")]
    Gone,
    /// The task has already ended: 409.
    #[error("the task has already ended: it is {}", state.as_str())]
    Ended {
        /// How.
        state: TaskState,
    },
    /// A live node has this name: 409.
    #[error("a live node is named {name:?}; stop it first, or start this one with another name")]
    NameInUse {
        /// The name.
        name: String,
    },
    /// So many idempotency keys are remembered that no further one can be: 429.
    #[error(
        "{keys} idempotency keys of the last 24 h are remembered, which is the bound; submit without a key, or \
         try again after {retry_after_s} s"
    )]
    KeysFull {
        /// Keys that are remembered.
        keys: u64,
        /// When the oldest of them ends.
        retry_after_s: u32,
    },
    /// So many nodes are registered that no further one can be: 503.
    #[error("{nodes} nodes are registered, which is the bound; remove some first")]
    NodesFull {
        /// Nodes that are registered.
        nodes: u64,
    },
    /// So many kinds were registered that no further one can be: 503.
    #[error(
        "{kinds} kinds were registered since the master started, which is the bound; use fewer, then restart the master"
    )]
    KindsFull {
        /// Kinds that are known.
        kinds: u64,
    },
    /// The store refuses writes: 503.
    #[error("the store refuses writes: {why}")]
    StoreFailed {
        /// For people.
        why: String,
    },
}

/// Something that changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A task entered this state.
    Task {
        /// The task.
        task: TaskId,
        /// The state.
        state: TaskState,
    },
    /// A node entered this status, or reported.
    Node {
        /// The node.
        node: NodeId,
        /// The status.
        status: NodeStatus,
    },
    /// A late result of an older attempt was refused.
    LateResult {
        /// Who sent it.
        node: NodeId,
    },
}
