//! The cluster as a whole.

use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// URL or name of the master that answers for the cluster.
    pub leader: String,
    /// Its epoch; grows with every start and takeover.
    pub epoch: u64,
    /// Version of its program.
    pub version: String,
    /// Nodes by status.
    pub nodes: NodeCounts,
    /// Tasks that wait.
    pub queued: u64,
    /// Tasks that are handed out.
    pub running: u64,
    /// Tasks that ended with a result since the start.
    pub succeeded: u64,
    /// Tasks that ended with an error since the start.
    pub failed: u64,
    /// Tasks that were cancelled since the start.
    pub cancelled: u64,
    /// Late results of older attempts that were refused since the start.
    pub late_results: u64,
    /// Tasks accepted per second over the last 10 s.
    pub accepted_per_second: f64,
    /// Tasks ended per second over the last 10 s.
    pub finished_per_second: f64,
    /// Σ allotted cores of nodes that take work.
    pub allotted_cores: f64,
    /// Σ effective cores of nodes that take work (design 3.1).
    pub effective_cores: f64,
    /// Σ used cores of nodes that take work.
    pub used_cores: f64,
    /// Milliseconds since this master started.
    pub uptime_ms: u64,
}

/// Nodes by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    /// See [`crate::node::NodeStatus::Starting`].
    pub starting: u32,
    /// See [`crate::node::NodeStatus::Ready`].
    pub ready: u32,
    /// See [`crate::node::NodeStatus::Draining`].
    pub draining: u32,
    /// See [`crate::node::NodeStatus::Suspect`].
    pub suspect: u32,
    /// See [`crate::node::NodeStatus::Lost`].
    pub lost: u32,
}

/// Answer of `GET /v1/tasks/{id}/explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The rule that decided, as a stable word: `earliest_finish`, `no_node_for_kind`, `no_ready_node`,
    /// `no_free_slot`, `waiting_for_better_node`, `not_enough_memory`, `quarantined`, `ended` …
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// Place in its queue, 1 is next; null if it does not wait.
    #[serde(default)]
    pub position: Option<u64>,
    /// Estimated CPU time of the task; null if nothing is known of its kind.
    #[serde(default)]
    pub estimated_cpu_ms: Option<f64>,
    /// Running time that was predicted where it was sent, when it was sent; null while it waits.
    #[serde(default)]
    pub predicted_run_ms: Option<f64>,
    /// The same predicted anew now: what is left of it, at the rate at which its node runs it now; null unless
    /// it runs, or if nothing is known of its kind.
    #[serde(default)]
    pub remaining_ms: Option<f64>,
    /// The nodes that were looked at, best first, at most 16.
    pub candidates: Vec<Candidate>,
}

/// One node that was looked at for a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node.
    pub node: crate::NodeId,
    /// Its name.
    pub name: String,
    /// Effective capacity in cores at the decision.
    pub effective_cores: f64,
    /// Tasks in flight on it at the decision.
    pub in_flight: u32,
    /// Slots free at the decision.
    pub free_slots: u32,
    /// Predicted time from the decision to the task's end there.
    pub finish_ms: f64,
    /// Why it was not taken, or `chosen`.
    pub verdict: String,
}
