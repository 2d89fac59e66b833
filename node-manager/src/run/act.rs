//! Carrying actions out.

use crate::{
    engine::{Engine, EngineError, Filter, Outcome, Stdin},
    master::Master,
    mounts::{self, MountError},
    template::{NodeTemplate, Surroundings},
};
use futures_util::{StreamExt as _, stream};
use pool::Action;
use protocol::{
    NodeId, Timestamp,
    node::{ExitReport, NodeStatus, NodeView},
};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::OnceCell;

/// Bound of one call to the master, the client's own repeats included.
const CALL: Duration = Duration::from_secs(10);
/// Bound of the look at the nodes: without an answer the master counts as away.
const LOOK: Duration = Duration::from_secs(3);
/// A node that is stopped gets this long to leave; more than it takes by itself.
const GRACE: Duration = Duration::from_secs(10);
/// Removals side by side at the end.
const SIDE_BY_SIDE: usize = 8;

/// What carries actions out.
pub(super) struct Actor {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) master: Arc<dyn Master>,
    /// Whom nodes are to trust.
    pub(super) trust: Option<String>,
    pub(super) drain_deadline: Option<Duration>,
    pub(super) surroundings: Surroundings,
}

/// A template, and whether what it needs beside images is there.
pub(super) struct Prepared {
    pub(super) template: NodeTemplate,
    volume_filled: OnceCell<()>,
}

impl Prepared {
    pub(super) fn new(template: NodeTemplate) -> Self {
        Self { template, volume_filled: OnceCell::new() }
    }
}

/// What became of the actions on one name.
pub(super) struct Done {
    pub(super) name: String,
    /// Whether the name was marked busy for these.
    pub(super) holds: bool,
    pub(super) outcomes: Vec<(Action, Result<(), Failure>)>,
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the name is in use by a container that is not ours")]
    NameTaken,
    #[error(transparent)]
    Engine(EngineError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Master(client::Error),
    #[error("the master did not answer within {} s", CALL.as_secs())]
    MasterSilent,
}

impl Failure {
    /// Whether it says nothing about the node, only that the master is away or overloaded.
    pub(super) fn is_absence_of_master(&self) -> bool {
        match self {
            Self::MasterSilent => true,
            Self::Master(error) => error.status().is_none_or(|status| status >= 500 || status == 429),
            Self::NameTaken | Self::Engine(_) | Self::Mount(_) => false,
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NameTaken(_) => Self::NameTaken,
            other => Self::Engine(other),
        }
    }
}

/// Whose action it is.
pub(super) fn name_of(action: &Action) -> &str {
    match action {
        Action::Create { name }
        | Action::Drain { name, .. }
        | Action::Resume { name, .. }
        | Action::Remove { name, .. }
        | Action::ReportExit { name, .. } => name,
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, client::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map_err(Failure::Master),
        Err(_) => Err(Failure::MasterSilent),
    }
}

impl Actor {
    /// All nodes that the master shows; `None` if it does not answer.
    pub(super) async fn nodes(&self) -> Option<Vec<NodeView>> {
        match tokio::time::timeout(LOOK, self.master.nodes()).await {
            Ok(Ok(nodes)) => Some(nodes),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the nodes cannot be seen");
                None
            }
            Err(_) => None,
        }
    }

    pub(super) async fn carry_out(
        &self,
        name: String,
        holds: bool,
        actions: Vec<Action>,
        template: &Prepared,
    ) -> Done {
        let mut outcomes = Vec::with_capacity(actions.len());
        for action in actions {
            let outcome = self.one(&action, template).await;
            outcomes.push((action, outcome));
        }
        Done { name, holds, outcomes }
    }

    async fn one(&self, action: &Action, template: &Prepared) -> Result<(), Failure> {
        match action {
            Action::Create { name } => self.create(name, template).await,
            Action::Drain { node, .. } => {
                let deadline = self
                    .drain_deadline
                    .map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX));
                bounded(self.master.drain(*node, deadline)).await
            }
            Action::Resume { node, .. } => bounded(self.master.resume(*node)).await,
            Action::Remove { id, stop_first, .. } => {
                if *stop_first {
                    // Removal kills what did not stop.
                    let _ = self.engine.stop(id, GRACE).await;
                }
                Ok(self.engine.remove(id).await?)
            }
            Action::ReportExit { name, id, node, exit, ago_us } => {
                let reason = exit.reason();
                let report = ExitReport { exit_code: exit.code, oom_killed: exit.oom_killed, reason };
                self.report_exit(name, id, *node, &report, Duration::from_micros(*ago_us)).await
            }
        }
    }

    async fn create(&self, name: &str, prepared: &Prepared) -> Result<(), Failure> {
        prepared.volume_filled.get_or_try_init(|| self.fill_volume(&prepared.template)).await?;
        let spec = prepared.template.spec(name);
        if self.engine.is_isolated() {
            // At each creation, because a task may have changed what is below a folder since the last one.
            mounts::check(&spec.mounts, &self.surroundings.allow_mounts)?;
        }
        let token = bounded(self.master.join_token(name)).await?;
        let id = self.engine.create(&spec).await?;
        let handed_over = match &self.trust {
            Some(trust) => format!("{token}\n{trust}"),
            None => token,
        };
        let started = self.engine.start(&id, Some(Stdin(handed_over))).await;
        if started.is_err() {
            // Not to be left behind; if this fails too, the next plan removes it.
            let _ = self.engine.remove(&id).await;
        }
        Ok(started?)
    }

    async fn fill_volume(&self, template: &NodeTemplate) -> Result<(), Failure> {
        let Some(filler) = template.volume_filler(&self.surroundings) else { return Ok(()) };
        // One that a manager left behind that died in between.
        let ours = self.engine.list(&Filter::cluster(&self.surroundings.cluster)).await?;
        if let Some(left) = ours.iter().find(|listed| listed.name == filler.name) {
            self.engine.remove(&left.id).await?;
        }
        let id = self.engine.create(&filler).await.map_err(Failure::Engine)?;
        Ok(self.engine.remove(&id).await?)
    }

    /// Tells the master; nothing to tell if it knows no such node.
    async fn report_exit(
        &self,
        name: &str,
        id: &str,
        node: Option<NodeId>,
        report: &ExitReport,
        ago: Duration,
    ) -> Result<(), Failure> {
        let node = match node {
            Some(node) => Some(node),
            None => {
                let nodes = self.nodes().await.ok_or(Failure::MasterSilent)?;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let died_ms = now.saturating_sub(ago).as_millis();
                let died = Timestamp(i64::try_from(died_ms).unwrap_or(i64::MAX));
                find_dead(&nodes, name, id, died, self.engine.is_isolated())
            }
        };
        let Some(node) = node else { return Ok(()) };
        match bounded(self.master.exited(node, report)).await {
            // Unknown, or known to be dead: that is what was to be told.
            Err(Failure::Master(error)) if matches!(error.status(), Some(404 | 409 | 410)) => Ok(()),
            other => other,
        }
    }

    /// Stops and removes all nodes of the pool.
    pub(super) async fn remove_all(&self) -> Outcome<()> {
        let listed = self.engine.list(&self.filter()).await?;
        let removals = stream::iter(listed).map(|listed| async move {
            let _ = self.engine.stop(&listed.id, GRACE).await;
            self.engine.remove(&listed.id).await
        });
        let removals: Vec<Outcome<()>> = removals.buffer_unordered(SIDE_BY_SIDE).collect().await;
        removals.into_iter().collect()
    }
}

/// The node of a life that ended before the manager saw it at the master: by the runtime's id where nodes
/// know it, else by name, if it registered before that death.
fn find_dead(nodes: &[NodeView], name: &str, id: &str, died: Timestamp, isolated: bool) -> Option<NodeId> {
    let over = |node: &&NodeView| matches!(node.status, NodeStatus::Lost | NodeStatus::Stopped);
    let fits = |node: &&NodeView| match &node.runtime_id {
        Some(runtime_id) if isolated => !runtime_id.is_empty() && id.starts_with(runtime_id.as_str()),
        _ => node.name == name && node.registered_at <= died,
    };
    nodes.iter().filter(|node| !over(node)).find(fits).map(|node| node.id)
}
