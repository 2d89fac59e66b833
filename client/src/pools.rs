//! What node-managers keep.

use crate::{Client, Error, transport::Call};
use http::Method;
use protocol::{
    pool::{ManagerHello, ManagerView, PoolSpec, PoolView},
    task::MAX_WAIT_MS,
};
use std::time::Duration;

impl Client {
    /// `GET /v1/pools/{pool}`.
    ///
    /// # Errors
    /// See [`Error`]; 404 when nobody has made it.
    pub async fn pool(&self, name: &str) -> Result<PoolView, Error> {
        self.transport.call(Call::new(Method::GET, ["v1", "pools", name])).await?.json()
    }

    /// `GET /v1/pools/{pool}?wait=&revision=`: answers once the pool's revision differs from `revision`, or
    /// with the pool as it is when the wait (at most 300 s) is over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wait_pool(&self, name: &str, wait: Duration, revision: u64) -> Result<PoolView, Error> {
        let call = Call::new(Method::GET, ["v1", "pools", name])
            .wait(wait.min(Duration::from_millis(MAX_WAIT_MS)))
            .query("revision", revision.to_string());
        self.transport.call(call).await?.json()
    }

    /// `PUT /v1/pools/{pool}`; with `if_match`, only if its revision is still this one.
    ///
    /// # Errors
    /// See [`Error`]; 412 when it changed meanwhile, 422 for a wrong value.
    pub async fn put_pool(
        &self,
        name: &str,
        spec: &PoolSpec,
        if_match: Option<u64>,
    ) -> Result<PoolView, Error> {
        let mut call = Call::new(Method::PUT, ["v1", "pools", name]).json(spec)?;
        if let Some(revision) = if_match {
            call = call.header("if-match", &format!("\"{revision}\""))?;
            // A repeat after a lost answer would find the revision changed by itself.
            call.repeatable = false;
        }
        self.transport.call(call).await?.json()
    }

    /// `POST /v1/managers`: a manager says that it keeps its pool; at start and then every 5 s.
    ///
    /// # Errors
    /// See [`Error`]; 409 while another manager keeps the pool.
    pub async fn manager_hello(&self, hello: &ManagerHello) -> Result<ManagerView, Error> {
        let call = Call::new(Method::POST, ["v1", "managers"]).json(hello)?.repeatable();
        self.transport.call(call).await?.json()
    }
}
