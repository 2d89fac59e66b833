//! What is written to the store, and what is read back after a restart.
//!
//! Ops of one transaction are applied in order. Each is idempotent and only moves a task forward: a
//! store applies `TaskDispatched` and `TaskRequeued` only to tasks that have not ended, and
//! `TaskEnded` only once.

use crate::{event::ClientId, logs::TaskLog};
use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    node::NodeRegistration,
    task::{Task, TaskSpec},
};
use std::sync::Arc;

/// One change of what is stored.
#[derive(Clone, Debug)]
pub enum Op {
    /// A task was accepted.
    TaskAccepted(Arc<TaskRecord>),
    /// A task was handed out. Not waited for before it is sent: a restart that misses it may run the
    /// task a second time, never lose it.
    TaskDispatched {
        /// The task.
        task: TaskId,
        /// The hand-out.
        run: RunId,
        /// To whom.
        node: NodeId,
        /// Attempts that count, this one included.
        attempt: u32,
        /// When.
        at: Timestamp,
    },
    /// A task waits again.
    TaskRequeued {
        /// The task.
        task: TaskId,
        /// Attempts that count so far.
        attempt: u32,
    },
    /// A task ended; the whole of it as it is shown, so that the store can answer for it alone.
    TaskEnded {
        /// The task as it is shown.
        task: Arc<Task>,
        /// Who submitted it.
        client: ClientId,
        /// What its last attempt printed.
        log: Option<Arc<TaskLog>>,
    },
    /// The log of a task that has ended, and was told so after it: of one that was cancelled while it ran. It
    /// takes the place of the log of an earlier attempt.
    TaskLog {
        /// The task.
        task: TaskId,
        /// What its last attempt printed.
        log: Arc<TaskLog>,
    },
    /// A node registered.
    NodeRegistered(Arc<NodeRecord>),
    /// A node is gone for good: lost, removed or left. Its session token stays valid for 24 h after
    /// the last contact, so that it can come back.
    NodeGone {
        /// The node.
        node: NodeId,
        /// When.
        at: Timestamp,
    },
}

/// A task as it is stored while it lives.
#[derive(Clone, Debug)]
pub struct TaskRecord {
    /// Its id.
    pub id: TaskId,
    /// What was submitted, with what its kind said then of what was left open.
    pub spec: TaskSpec,
    /// Who submitted it.
    pub client: ClientId,
    /// Idempotency key and body hash.
    pub key: Option<(Arc<str>, [u8; 32])>,
    /// When it was accepted.
    pub submitted_at: Timestamp,
}

/// A node as it is stored.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Hash of its session token.
    pub session_hash: [u8; 32],
    /// This life of the process.
    pub boot_id: BootId,
    /// What it said.
    pub registration: NodeRegistration,
    /// When.
    pub registered_at: Timestamp,
}

/// A task that had not ended when the master stopped.
#[derive(Clone, Debug)]
pub struct OpenTask {
    /// As it was accepted.
    pub record: Arc<TaskRecord>,
    /// Attempts that count so far, the running one included.
    pub attempt: u32,
    /// Where it was running, if it was.
    pub running: Option<(NodeId, RunId, Timestamp)>,
}

/// Everything that a starting master reads back.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Tasks that had not ended, oldest first.
    pub tasks: Vec<OpenTask>,
    /// Nodes that had not gone.
    pub nodes: Vec<Arc<NodeRecord>>,
    /// Idempotency keys of the last 24 h: whose, key, body hash, task.
    pub keys: Vec<(ClientId, Arc<str>, [u8; 32], TaskId)>,
}
