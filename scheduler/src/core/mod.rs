//! The state, and the one function that changes it.

use crate::{
    config::Config,
    effect::Effect,
    event::{ClientId, Event, Now},
    record::Recovered,
};
use protocol::{
    NodeId, TaskId,
    node::{KindInfo, NodeView},
    status::{ClusterStatus, Explanation, NodeCounts},
    task::{Task, TaskState},
};
use std::sync::Arc;

/// Which tasks a listing wants; all given fields must match.
#[derive(Clone, Debug)]
pub struct TaskFilter {
    /// In this state.
    pub state: Option<TaskState>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Whose last attempt went to this node.
    pub node: Option<NodeId>,
    /// With this label and value.
    pub label: Option<(String, String)>,
    /// Of this submitter.
    pub client: Option<ClientId>,
    /// Older than this one.
    pub before: Option<TaskId>,
    /// At most so many.
    pub limit: usize,
}

impl Default for TaskFilter {
    fn default() -> Self {
        Self { state: None, kind: None, node: None, label: None, client: None, before: None, limit: 100 }
    }
}

/// The scheduler's whole state.
pub struct Core {
    config: Config,
}

impl Core {
    /// A scheduler with what the store had. All clocks of nodes begin anew at `now`.
    /// Call [`Core::start`] next.
    #[must_use]
    pub fn new(config: Config, _now: Now, _recovered: Recovered) -> Self {
        Self { config }
    }

    /// The effects of starting: the first [`Effect::WakeAt`].
    pub fn start(&mut self, _now: Now, _out: &mut Vec<Effect>) {}

    /// Something happened; what is to be done about it is appended to `out`.
    pub fn step(&mut self, _now: Now, _event: Event, _out: &mut Vec<Effect>) {}

    /// A task that has not ended, or that has and is still in memory, and its submitter.
    /// A `disk` task that is not committed yet is not shown.
    #[must_use]
    pub fn task(&self, _id: TaskId, _now: Now) -> Option<(Arc<Task>, ClientId)> {
        None
    }

    /// Tasks that have not ended, and those ended ones that are still in memory, newest id first.
    #[must_use]
    pub fn tasks(&self, _filter: &TaskFilter, _now: Now) -> Vec<(Arc<Task>, ClientId)> {
        Vec::new()
    }

    /// Whether this was a task that ended without being stored and is not kept any longer (410).
    #[must_use]
    pub fn expired(&self, _id: TaskId) -> bool {
        false
    }

    /// All nodes by name; lost and stopped ones stay for 60 s.
    #[must_use]
    pub fn nodes(&self, _now: Now) -> Vec<NodeView> {
        Vec::new()
    }

    /// One node, as [`Core::nodes`] shows it.
    #[must_use]
    pub fn node(&self, _id: NodeId, _now: Now) -> Option<NodeView> {
        None
    }

    /// Why a task is where it is.
    #[must_use]
    pub fn explain(&self, _id: TaskId, _now: Now) -> Option<Explanation> {
        None
    }

    /// The cluster as a whole.
    #[must_use]
    pub fn status(&self, _now: Now) -> ClusterStatus {
        ClusterStatus {
            leader: self.config.leader.clone(),
            epoch: self.config.epoch,
            version: self.config.version.clone(),
            nodes: NodeCounts::default(),
            queued: 0,
            running: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
            late_results: 0,
            accepted_per_second: 0.0,
            finished_per_second: 0.0,
            allotted_cores: 0.0,
            effective_cores: 0.0,
            used_cores: 0.0,
            uptime_ms: 0,
        }
    }

    /// The kinds that are known: built in, of pool templates, or registered in the last 7 days.
    #[must_use]
    pub fn kinds(&self, _now: Now) -> Vec<KindInfo> {
        protocol::kinds::built_in()
    }

    /// How often nodes report, so that all together send at most 2,000 reports a second: 500 … 5,000 ms.
    #[must_use]
    pub fn report_interval_ms(&self) -> u64 {
        500
    }

    /// Whose session token has this hash; valid for 24 h after the last contact.
    #[must_use]
    pub fn session(&self, _hash: &[u8; 32], _now: Now) -> Option<NodeId> {
        None
    }
}
