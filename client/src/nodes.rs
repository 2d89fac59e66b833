//! What nodes, node-managers and operators say and ask about nodes.

use crate::{Client, Error, Token, transport::Call};
use http::Method;
use protocol::{
    NodeId,
    node::{DrainRequest, ExitReport, NodeRegistration, NodeView, Registered, Report, ReportReply},
    task::Page,
};
use session::retry::Policy;
use std::borrow::Cow;

fn path(node: NodeId, verb: Option<&'static str>) -> Vec<Cow<'static, str>> {
    let mut path = vec!["v1".into(), "nodes".into(), node.to_string().into()];
    path.extend(verb.map(Cow::from));
    path
}

impl Client {
    /// `POST /v1/nodes` with this token (a join token, or the session token of the registration before).
    /// Not repeated when its answer is lost: a join token may be good for one use only.
    ///
    /// # Errors
    /// See [`Error`]; 409 when a live node has this name.
    pub async fn register(
        &self,
        registration: &NodeRegistration,
        bearer: &Token,
    ) -> Result<Registered, Error> {
        let call = Call::new(Method::POST, ["v1", "nodes"]).json(registration)?.token(bearer);
        self.transport.call(call).await?.json()
    }

    /// `POST /v1/nodes/{id}/report`. One attempt: the next report is on its way anyway, and goes to the next
    /// of several masters if this one failed.
    ///
    /// # Errors
    /// See [`Error`]; 401 or 404 when the node has to register anew.
    pub async fn report(&self, node: NodeId, session: &Token, report: &Report) -> Result<ReportReply, Error> {
        let call = Call::new(Method::POST, path(node, Some("report"))).json(report)?;
        self.transport.call(call.token(session).retry(Policy::NEVER)).await?.json()
    }

    /// `POST /v1/nodes/{id}/exited`: a manager's evidence that the node is dead.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exited(&self, node: NodeId, exit: &ExitReport) -> Result<(), Error> {
        let call = Call::new(Method::POST, path(node, Some("exited"))).json(exit)?.repeatable();
        self.transport.call(call).await.map(drop)
    }

    /// `GET /v1/nodes`: all nodes, by name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn nodes(&self) -> Result<Page<NodeView>, Error> {
        self.transport.call(Call::new(Method::GET, ["v1", "nodes"])).await?.json()
    }

    /// `GET /v1/nodes/{id}`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn node(&self, node: NodeId) -> Result<NodeView, Error> {
        self.transport.call(Call::new(Method::GET, path(node, None))).await?.json()
    }

    /// `POST /v1/nodes/{id}/drain`: it takes no more work; what still runs after `deadline_ms` is handed back.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn drain(&self, node: NodeId, deadline_ms: Option<u64>) -> Result<(), Error> {
        let body = DrainRequest { deadline_ms };
        let call = Call::new(Method::POST, path(node, Some("drain"))).json(&body)?.repeatable();
        self.transport.call(call).await.map(drop)
    }

    /// `POST /v1/nodes/{id}/resume`: it takes work again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resume(&self, node: NodeId) -> Result<(), Error> {
        let call = Call::new(Method::POST, path(node, Some("resume"))).repeatable();
        self.transport.call(call).await.map(drop)
    }

    /// `DELETE /v1/nodes/{id}`: it is lost at once and its session is over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_node(&self, node: NodeId) -> Result<(), Error> {
        self.transport.call(Call::new(Method::DELETE, path(node, None))).await.map(drop)
    }

    /// The WebSocket URL of the node's work channel at the master that answered last. Open it with
    /// [`protocol::work::SUBPROTOCOL`] and the session token as bearer; on failure call
    /// [`Client::leave_url`] and ask again.
    #[must_use]
    pub fn work_channel_url(&self, node: NodeId) -> String {
        let mut url = self.transport.url().clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path(node, Some("work")));
        }
        // Both are special schemes with default ports, so the change is allowed.
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        let _ = url.set_scheme(scheme);
        url.into()
    }
}
