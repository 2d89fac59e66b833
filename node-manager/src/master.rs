//! What the manager asks of the master.

use client::{Client, Error};
use futures_util::{FutureExt as _, future::BoxFuture};
use protocol::{
    NodeId,
    auth::{Scope, TokenRequest},
    node::{ExitReport, NodeView},
    pool::{ManagerHello, PoolView},
};
use std::time::Duration;

/// How long a join token is good for: enough for a container to start on a busy host.
pub const JOIN_TOKEN_MS: u64 = 10 * 60 * 1_000;

/// The master, as far as a manager needs it. A trait, so that the loop can be tested without a master.
pub trait Master: Send + Sync {
    /// The wish, at once or when its revision is not this one any more, after `wait` at the latest.
    fn wish<'a>(
        &'a self,
        pool: &'a str,
        newer_than: Option<u64>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<PoolView, Error>>;

    /// Says that this manager keeps the pool; 409 while another one does.
    fn hello<'a>(&'a self, hello: &'a ManagerHello) -> BoxFuture<'a, Result<(), Error>>;

    /// A join token for one registration of a node of this name, good for 10 minutes.
    fn join_token<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<String, Error>>;

    /// All nodes.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeView>, Error>>;

    /// Evidence that a node is dead.
    fn exited<'a>(&'a self, node: NodeId, exit: &'a ExitReport) -> BoxFuture<'a, Result<(), Error>>;

    /// No more work for this node; what still runs after `deadline_ms` is handed back.
    fn drain(&self, node: NodeId, deadline_ms: Option<u64>) -> BoxFuture<'_, Result<(), Error>>;

    /// Work for this node again.
    fn resume(&self, node: NodeId) -> BoxFuture<'_, Result<(), Error>>;
}

impl Master for Client {
    fn wish<'a>(
        &'a self,
        pool: &'a str,
        newer_than: Option<u64>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<PoolView, Error>> {
        match newer_than {
            Some(revision) => self.wait_pool(pool, wait, revision).boxed(),
            None => self.pool(pool).boxed(),
        }
    }

    fn hello<'a>(&'a self, hello: &'a ManagerHello) -> BoxFuture<'a, Result<(), Error>> {
        async move { self.manager_hello(hello).await.map(|_| ()) }.boxed()
    }

    fn join_token<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<String, Error>> {
        async move {
            let request = TokenRequest {
                scopes: vec![Scope::Node],
                ttl_ms: Some(JOIN_TOKEN_MS),
                single_use: true,
                node_name: Some(node.to_owned()),
                note: format!("join token of {node}"),
            };
            Ok(self.create_token(&request).await?.token)
        }
        .boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeView>, Error>> {
        async { Ok(Self::nodes(self).await?.items) }.boxed()
    }

    fn exited<'a>(&'a self, node: NodeId, exit: &'a ExitReport) -> BoxFuture<'a, Result<(), Error>> {
        Self::exited(self, node, exit).boxed()
    }

    fn drain(&self, node: NodeId, deadline_ms: Option<u64>) -> BoxFuture<'_, Result<(), Error>> {
        Self::drain(self, node, deadline_ms).boxed()
    }

    fn resume(&self, node: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        Self::resume(self, node).boxed()
    }
}
