//! Everything that can happen to the scheduler.

use crate::effect::WriteSeq;
use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    log::Tails,
    node::{CpuSample, ExitReport, KindInfo, NodeRegistration, Report},
    task::{Durability, TaskSpec},
    work::{Outcome, RunRef},
};
use std::{collections::BTreeMap, sync::Arc};

/// The time of an event, given by the shell (or by the simulator).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic microseconds since the master started; all durations come from this.
    pub mono_us: u64,
    /// Wall clock, for what is shown and stored; it may jump, and no decision but a deadline carried
    /// over a restart depends on it.
    pub wall: Timestamp,
}

/// Names one waiting caller towards the shell; never reused by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyId(pub u64);

/// Who submitted: the id of the token, so that a task is seen by its submitter only.
/// Nil when the master runs without tokens.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ClientId(pub u128);

/// What a caller wants to be told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// `POST` without `wait`, or a batch line with `detach`: told once it is accepted (committed, if it is `disk`).
    Accepted,
    /// A batch line: told when it is accepted (only if `ack`), and again when it has ended.
    Stream {
        /// Whether the acceptance is told too.
        ack: bool,
    },
    /// `?wait=`: told when it has ended, or with the task as it is at `until_us`
    /// (a `memory` task is committed first).
    Until {
        /// Monotonic microseconds, as [`Now::mono_us`].
        until_us: u64,
    },
}

/// One task to accept. The shell has already checked its form and its input.
#[derive(Clone, Debug)]
pub struct Submission {
    /// A new id, made by the shell.
    pub id: TaskId,
    /// The task.
    pub spec: TaskSpec,
    /// Decided by the shell from the way of submitting (contract section 4).
    pub durability: Durability,
    /// Who submits.
    pub client: ClientId,
    /// Idempotency key and a hash of the body it came with; keys of different clients never meet.
    pub key: Option<(Arc<str>, [u8; 32])>,
    /// Who is to be answered.
    pub reply: ReplyId,
    /// What they want to be told.
    pub wait: Wait,
}

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A caller submits. Answered through its `reply`.
    Submit(Box<Submission>),
    /// A caller waits for a task; answered at its end, or with the task as it is at `until_us`.
    Wait {
        /// The task.
        task: TaskId,
        /// Who waits.
        reply: ReplyId,
        /// Monotonic microseconds.
        until_us: u64,
    },
    /// A caller went away before it was answered. A `memory` task that was not promised (no 202 yet) is cancelled.
    ReplyGone {
        /// Who.
        reply: ReplyId,
    },
    /// A caller cancels a task. Answered with the task, or a refusal (`NotFound`, `Ended`).
    Cancel {
        /// The task.
        task: TaskId,
        /// Who is to be answered.
        reply: ReplyId,
    },
    /// A caller cancels all tasks with these labels. Answered with their number.
    CancelLabels {
        /// All of them must match; never empty.
        labels: BTreeMap<String, String>,
        /// Only tasks of this submitter; all if absent.
        only: Option<ClientId>,
        /// Who is to be answered.
        reply: ReplyId,
    },
    /// A node registers. Answered with its id, or a refusal (`NameInUse`).
    Register {
        /// A new id, made by the shell.
        node: NodeId,
        /// Hash of the session token that the shell made for it.
        session_hash: [u8; 32],
        /// The node whose (still valid) session token came as the bearer, if one did: it may take its
        /// name over although it counts as alive.
        replaces: Option<NodeId>,
        /// What it says.
        registration: Box<NodeRegistration>,
        /// Who is to be answered.
        reply: ReplyId,
    },
    /// A node reports. The shell has checked the figures.
    Report {
        /// The node.
        node: NodeId,
        /// What it says.
        report: Box<Report>,
    },
    /// A node's work channel opened and said hello with these runs.
    ChannelUp {
        /// The node.
        node: NodeId,
        /// This life of the process.
        boot_id: BootId,
        /// Runs that it has and that were not called committed.
        runs: Vec<RunRef>,
        /// Whether it drains of its own accord.
        draining: bool,
    },
    /// A node's work channel closed.
    ChannelDown {
        /// The node.
        node: NodeId,
        /// Whether the node's side closed it (then it is lost after 2 s already).
        by_node: bool,
    },
    /// A sign of life that carries nothing else (a pong).
    Heard {
        /// The node.
        node: NodeId,
    },
    /// A run ended.
    RunEnded(Box<RunEnded>),
    /// A node hands runs back without having ended them.
    HandedBack {
        /// The node.
        node: NodeId,
        /// The runs.
        runs: Vec<RunRef>,
        /// Whether the node takes no work from now on.
        draining: bool,
        /// For people.
        reason: String,
    },
    /// A node leaves in order.
    Leaving {
        /// The node.
        node: NodeId,
    },
    /// A manager's evidence that a node is dead.
    Exited {
        /// The node.
        node: NodeId,
        /// The evidence.
        exit: ExitReport,
    },
    /// An operator drains a node.
    Drain {
        /// The node.
        node: NodeId,
        /// Running tasks may go on this long; no bound if absent.
        deadline_ms: Option<u64>,
    },
    /// An operator ends a drain.
    Resume {
        /// The node.
        node: NodeId,
    },
    /// An operator removes a node: it is lost at once, its session is over, and it is not shown any more.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// What pools' templates bring, although none of their nodes may be here now.
    TemplatesKnown {
        /// The whole set; replaces the one before.
        templates: Vec<TemplateInfo>,
    },
    /// This master is about to end: nobody reaches it any more, so from now on silence says nothing of a node.
    GoingAway,
    /// All writes up to this one are durable.
    Written {
        /// The last of them.
        through: WriteSeq,
    },
    /// The store refuses writes. Waiting acceptances are refused with `StoreFailed`; results stay
    /// with their nodes, unacknowledged, until writes succeed again.
    WriteFailed {
        /// The last write that failed; all up to it that were not durable are void, and what is
        /// still to be kept is emitted again.
        through: WriteSeq,
        /// For people.
        why: String,
    },
    /// Time passes. The shell sends one at the time that [`crate::effect::Effect::WakeAt`] last named.
    Tick,
}

/// What is known of a pool's nodes before one is here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateInfo {
    /// The pool's name.
    pub pool: String,
    /// Kinds that its nodes have beside the built-in ones.
    pub kinds: Vec<KindInfo>,
    /// Their allotted cores; absent if that is the manager's choice.
    pub cores: Option<f64>,
    /// Their memory limit; absent if that is the manager's choice.
    pub memory_bytes: Option<u64>,
}

/// A run that ended, as its node says.
#[derive(Clone, Debug)]
pub struct RunEnded {
    /// The node that says so.
    pub node: NodeId,
    /// The task.
    pub task: TaskId,
    /// The hand-out.
    pub run: RunId,
    /// How.
    pub outcome: Outcome,
    /// JSON; empty if there is none.
    pub result: Option<protocol::task::Json>,
    /// Running time.
    pub run_ms: f64,
    /// CPU time.
    pub cpu_ms: f64,
    /// A fresh CPU sample, if one came along.
    pub sample: Option<CpuSample>,
    /// The end of what it printed; none if it printed nothing.
    pub log: Option<Box<Tails>>,
}
