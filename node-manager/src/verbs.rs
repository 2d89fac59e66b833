//! One-off commands on a pool or a cluster. They return data; printing is the caller's business.

use crate::{
    docker::{DockerEngine, network::NetworkEnd},
    engine::{Engine, EngineError, Filter, Listed, Outcome, Role},
};
use bytes::Bytes;
use client::{Client, Error};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use protocol::{
    NodeId,
    node::NodeView,
    pool::{PoolSpec, PoolView},
};

/// How often a change is tried anew when somebody else changes the pool at the same time.
const ATTEMPTS: u32 = 5;
/// Removals side by side.
const SIDE_BY_SIDE: usize = 8;
/// A manager that is being removed may make a node meanwhile: so many looks for left-overs.
const ROUNDS: u32 = 3;

/// Writes the number of nodes into the pool; the pool as it is then. Autoscaling is switched off by it.
///
/// # Errors
/// See [`Error`].
pub async fn scale(client: &Client, pool: &str, nodes: u32) -> Result<PoolView, Error> {
    let set = |spec: &mut PoolSpec| {
        (spec.desired, spec.min, spec.max, spec.target_queue_ms) = (Some(nodes), None, None, None);
    };
    change_pool(client, pool, set).await
}

/// Changes a pool without undoing what others change at the same time; the pool as it is then.
///
/// # Errors
/// See [`Error`]; 412 if others change it again and again.
pub async fn change_pool(
    client: &Client,
    pool: &str,
    change: impl Fn(&mut PoolSpec),
) -> Result<PoolView, Error> {
    let mut attempt = 1;
    loop {
        let (mut spec, revision) = match client.pool(pool).await {
            Ok(view) => (PoolSpec::from(view.spec), Some(view.revision)),
            Err(error) if error.status() == Some(404) => (PoolSpec::default(), None),
            Err(error) => return Err(error),
        };
        change(&mut spec);
        match client.put_pool(pool, &spec, revision).await {
            Err(error) if error.status() == Some(412) && attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

/// A node as its runtime and the master see it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ListedNode {
    /// Its name.
    pub name: String,
    /// The runtime's id.
    pub runtime_id: String,
    /// Its pool.
    pub pool: Option<String>,
    /// `created`, `running`, `paused`, or how it ended.
    pub state: String,
    /// How long it has lived, or did live.
    pub age_ms: u64,
    /// Hash of its template.
    pub template: Option<String>,
    /// The same at the master; null if the master knows none, or was not asked.
    pub node: Option<NodeView>,
}

/// The nodes of a cluster (of one pool, where that is given), joined with what the master says of them.
///
/// # Errors
/// If the runtime does not answer.
pub async fn list(
    engine: &dyn Engine,
    cluster: &str,
    pool: Option<&str>,
    nodes: &[NodeView],
) -> Outcome<Vec<ListedNode>> {
    let filter =
        Filter { cluster: cluster.to_owned(), role: Some(Role::Node), pool: pool.map(str::to_owned) };
    let listed = engine.list(&filter).await?;
    let shown = listed.into_iter().map(|listed| {
        let node = crate::run::node_of(&listed, nodes, engine.is_isolated()).cloned();
        ListedNode {
            state: state_word(&listed.state),
            age_ms: u64::try_from(listed.age.as_millis()).unwrap_or(u64::MAX),
            name: listed.name,
            runtime_id: listed.id,
            pool: listed.pool,
            template: listed.template,
            node,
        }
    });
    Ok(shown.collect())
}

fn state_word(state: &pool::State) -> String {
    match state {
        pool::State::Created => "created".to_owned(),
        pool::State::Running => "running".to_owned(),
        pool::State::Paused => "paused".to_owned(),
        pool::State::Exited(exit) => exit.reason(),
    }
}

/// What a container of the cluster wrote: the node, master or manager of this name.
///
/// # Errors
/// If the cluster has no such container, or the runtime does not answer.
pub async fn logs(
    engine: &dyn Engine,
    cluster: &str,
    name: &str,
    follow: bool,
    tail: Option<u32>,
) -> Outcome<BoxStream<'static, Outcome<Bytes>>> {
    let listed = engine.list(&Filter::cluster(cluster)).await?;
    let found = listed.iter().find(|listed| listed.name == name);
    let known = || listed.iter().map(|listed| listed.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = found.ok_or_else(|| {
        EngineError::NotFound(format!("{name} in cluster {cluster} (there are: {})", known()))
    })?;
    Ok(engine.logs(&found.id, follow, tail))
}

/// The id of a node given by name or id; of several of this name the newest.
///
/// # Errors
/// See [`Error`]; [`Error::Config`] if the master knows no such node.
pub async fn find_node(client: &Client, node: &str) -> Result<NodeId, Error> {
    if let Ok(id) = node.parse::<NodeId>() {
        return Ok(id);
    }
    let nodes = client.nodes().await?.items;
    let newest = nodes.iter().filter(|view| view.name == node).max_by_key(|view| view.registered_at);
    newest.map(|view| view.id).ok_or_else(|| {
        Error::Config(format!("there is no node {node}; `evenkeel status -o wide` shows names and ids"))
    })
}

/// No more work for a node, given by name or id; its id.
///
/// # Errors
/// See [`Error`]; 404 if there is no such node.
pub async fn drain(client: &Client, node: &str, deadline_ms: Option<u64>) -> Result<NodeId, Error> {
    let id = find_node(client, node).await?;
    client.drain(id, deadline_ms).await?;
    Ok(id)
}

/// Work again for a node that was told to drain, given by name or id; its id.
///
/// # Errors
/// See [`Error`]; 404 if there is no such node.
pub async fn resume(client: &Client, node: &str) -> Result<NodeId, Error> {
    let id = find_node(client, node).await?;
    client.resume(id).await?;
    Ok(id)
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of the containers or processes.
    pub containers: Vec<String>,
    /// What became of each network; empty where the runtime has none.
    pub networks: Vec<(String, NetworkEnd)>,
    /// Names of the volumes.
    pub volumes: Vec<String>,
}

/// Removes every container (or process) with the cluster's label, managers first, so that none is made anew.
///
/// # Errors
/// If the runtime does not answer, or one cannot be removed; what could be is removed all the same.
pub async fn prune_containers(engine: &dyn Engine, cluster: &str) -> Outcome<Vec<String>> {
    let mut removed = Vec::new();
    for _ in 0..ROUNDS {
        let listed = engine.list(&Filter::cluster(cluster)).await?;
        if listed.is_empty() {
            break;
        }
        let (managers, others): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|listed| listed.role == Role::Manager);
        for group in [managers, others] {
            removed.extend(remove_all(engine, group).await?);
        }
    }
    removed.sort();
    removed.dedup();
    Ok(removed)
}

async fn remove_all(engine: &dyn Engine, group: Vec<Listed>) -> Outcome<Vec<String>> {
    let removals = stream::iter(group)
        .map(|listed| async move { engine.remove(&listed.id).await.map(|()| listed.name) })
        .buffer_unordered(SIDE_BY_SIDE)
        .collect::<Vec<_>>();
    removals.await.into_iter().collect()
}

/// Removes everything of a cluster that carries its label: containers, then the networks that we made and
/// nobody else uses, then volumes (the master's state too, and those with our program, also of earlier ones).
///
/// # Errors
/// If the daemon does not answer, or something cannot be removed.
pub async fn prune(engine: &DockerEngine, cluster: &str) -> Outcome<Pruned> {
    let containers = prune_containers(engine, cluster).await?;
    let networks = engine.remove_networks(cluster).await?;
    let volumes = engine.remove_volumes(cluster).await?;
    Ok(Pruned { containers, networks, volumes })
}
