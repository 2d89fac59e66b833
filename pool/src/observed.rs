//! What the shell saw before a plan.

use protocol::{NodeId, node::NodeStatus};
use std::collections::BTreeSet;

/// What is there: the containers of this pool, and what is being done to them.
///
/// `creating` and `ending` have to be read *before* the containers are listed: then whatever finishes
/// while the list is made is still counted as busy, and nothing is done twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// All containers with our labels of this cluster and pool, running or not. Never any other.
    pub containers: Vec<Container>,
    /// Names whose creation is under way.
    pub creating: BTreeSet<String>,
    /// Names whose drain, stop or removal is being carried out right now.
    pub ending: BTreeSet<String>,
    /// Names that somebody else's containers have; they are passed over.
    pub taken: BTreeSet<String>,
    /// Whether the master answered. If not, nothing is done at all: the last wish stands.
    pub master_reachable: bool,
}

/// One container (or process) of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its name, which is its node's name too.
    pub name: String,
    /// The runtime's id: another one for each life.
    pub id: String,
    /// Hash of the template it was made from.
    pub template: String,
    /// Its state.
    pub state: State,
    /// How long it has lived, or did live if it ended, in microseconds.
    pub age_us: u64,
    /// Its node at the master; `None` if the master knows none of this life.
    pub node: Option<NodeSeen>,
}

/// State of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started. Such a one is left behind by a manager that died in between: it lacks its token.
    Created,
    /// Runs.
    Running,
    /// Held by somebody's hand; it counts as there.
    Paused,
    /// Has ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, where it is known.
    pub code: Option<i64>,
    /// Whether the runtime blames memory.
    pub oom_killed: bool,
    /// For people, beyond the code; may be empty.
    pub detail: String,
}

impl Exit {
    /// In words.
    #[must_use]
    pub fn reason(&self) -> String {
        let memory = if self.oom_killed { ", out of memory" } else { "" };
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        match self.code {
            Some(code) => format!("exit code {code}{memory}{detail}"),
            None => format!("gone{memory}{detail}"),
        }
    }
}

/// A node as the master shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSeen {
    /// Its id.
    pub id: NodeId,
    /// Where it is in its life.
    pub status: NodeStatus,
    /// Tasks running on it.
    pub running: u32,
    /// Effective capacity in cores.
    pub effective_cores: f64,
}
