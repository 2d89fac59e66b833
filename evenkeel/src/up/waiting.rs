//! Waiting until a cluster is ready, and saying why it does not become so.

use super::{Cluster, LOOK, POOL, has_ended, specs};
use crate::{exit::Failure, output};
use futures_util::StreamExt;
use node_manager::{
    engine::{Filter, Role},
    verbs,
};
use protocol::node::NodeStatus;
use std::time::{Duration, Instant};

/// The master is ready within this, or something is wrong.
const MASTER_WITHIN: Duration = Duration::from_secs(60);
/// The nodes are ready within this, and [`EACH_NODE_WITHIN`] for each.
const NODES_WITHIN: Duration = Duration::from_secs(60);
const EACH_NODE_WITHIN: Duration = Duration::from_secs(2);
/// What the manager says is wrong is given so long to go away by itself.
const TROUBLE_FOR: Duration = Duration::from_secs(5);
/// How often the manager is looked at.
const TROUBLE_LOOK: Duration = Duration::from_secs(1);
/// Lines of a log that are shown when something does not become ready.
const TAIL_LINES: u32 = 15;
/// Logs of more nodes than these say nothing new.
const TAIL_NODES: usize = 2;

impl Cluster {
    /// Gives up on a master that has ended, or takes too long; `last` says what it is waited for.
    pub(super) async fn check_master(&self, began: Instant, last: &str) -> Result<(), Failure> {
        let name = specs::master_name(&self.name);
        let listed = self.runtime.engine().list(&Filter::cluster(&self.name)).await?;
        let ended = listed.iter().any(|it| it.name == name && has_ended(it));
        if !ended && began.elapsed() <= MASTER_WITHIN {
            return Ok(());
        }
        let why = if ended { "it has ended" } else { last };
        let tail = self.tail(&name).await;
        Err(Failure::Other(format!("the master does not become ready: {why}\n{tail}")))
    }

    pub(super) async fn wait_for_master(&self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let last = match self.client.readyz().await {
                Ok(()) => break,
                Err(error) => error,
            };
            self.check_master(began, &last.to_string()).await?;
            tokio::time::sleep(LOOK).await;
        }
        match self.client.status().await {
            Err(error) if error.status() == Some(401) => Err(Failure::Other(format!(
                "the master does not take the token of {}: its state is of an earlier cluster; `evenkeel down` removes that",
                self.state.path().display()
            ))),
            other => Ok(other.map(drop)?),
        }
    }

    pub(super) async fn wait_for_nodes(&mut self, wanted: u32) -> Result<(), Failure> {
        let (began, within) = (Instant::now(), NODES_WITHIN + EACH_NODE_WITHIN * wanted);
        let (mut most_ready, mut looked, mut trouble_since) = (0, Instant::now(), None::<Instant>);
        loop {
            let nodes = self.client.nodes().await?.items;
            let ready =
                nodes.iter().filter(|node| node.pool == POOL && node.status == NodeStatus::Ready).count();
            if ready >= wanted as usize {
                return Ok(());
            }
            if let Some((_, manager)) = self.manager.as_mut().filter(|(_, manager)| manager.is_finished()) {
                let ended = manager.await.map_err(|error| Failure::Other(error.to_string()))?;
                self.manager = None;
                ended?;
                return Err(Failure::Other("the node-manager ended by itself".to_owned()));
            }
            if ready > most_ready {
                (most_ready, trouble_since) = (ready, None);
            }
            if looked.elapsed() >= TROUBLE_LOOK {
                looked = Instant::now();
                let in_trouble = self.is_in_trouble().await?;
                trouble_since = in_trouble.then(|| trouble_since.unwrap_or(looked));
            }
            if began.elapsed() > within || trouble_since.is_some_and(|since| since.elapsed() > TROUBLE_FOR) {
                return Err(self.why_no_nodes(ready, wanted).await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the manager says that something is wrong, or has ended.
    async fn is_in_trouble(&self) -> Result<bool, Failure> {
        let view = self.client.pool(POOL).await?;
        if view.manager.is_some_and(|manager| !manager.trouble.is_empty()) {
            return Ok(true);
        }
        let listed = self.runtime.engine().list(&Filter::cluster(&self.name)).await?;
        Ok(listed.iter().any(|it| it.role == Role::Manager && has_ended(it)))
    }

    /// Shows the ends of the logs, and returns the reason, which is thus said last.
    async fn why_no_nodes(&self, ready: usize, wanted: u32) -> Failure {
        let nodes = output::counted(wanted.into(), "node");
        let mut text = format!("only {ready} of {nodes} became ready");
        if let Ok(view) = self.client.pool(POOL).await {
            match view.manager.map(|manager| manager.trouble) {
                Some(trouble) if trouble.is_empty() => {}
                Some(trouble) => text.push_str(&format!("; the manager says: {trouble}")),
                None => text.push_str("; no manager keeps the pool"),
            }
        }
        let listed = self.runtime.engine().list(&Filter::cluster(&self.name)).await.unwrap_or_default();
        let managers = listed.iter().filter(|it| it.role == Role::Manager);
        let nodes = listed.iter().filter(|it| it.role == Role::Node).take(TAIL_NODES);
        for listed in managers.chain(nodes) {
            output::say(self.tail(&listed.name).await);
        }
        Failure::Other(text)
    }

    /// The end of a log, for messages.
    async fn tail(&self, name: &str) -> String {
        let engine = self.runtime.engine();
        let Ok(mut parts) = verbs::logs(engine.as_ref(), &self.name, name, false, Some(TAIL_LINES)).await
        else {
            return format!("({name} has no log)");
        };
        let mut text = Vec::new();
        while let Ok(Some(Ok(part))) = tokio::time::timeout(Duration::from_secs(5), parts.next()).await {
            text.extend_from_slice(&part);
        }
        format!("--- {name} wrote last:\n{}", String::from_utf8_lossy(&text).trim_end())
    }
}
