//! The cluster as a whole: status, kinds, tokens, health.

use crate::{Client, Error, transport::Call};
use http::Method;
use protocol::{
    auth::{TokenCreated, TokenInfo, TokenRequest},
    node::KindInfo,
    status::ClusterStatus,
    task::Page,
};
use session::retry::Policy;

impl Client {
    /// `GET /v1/status`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        self.transport.call(Call::new(Method::GET, ["v1", "status"])).await?.json()
    }

    /// `GET /v1/kinds`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kinds(&self) -> Result<Page<KindInfo>, Error> {
        self.transport.call(Call::new(Method::GET, ["v1", "kinds"])).await?.json()
    }

    /// `POST /v1/tokens`: the only time that the token itself is shown. Not repeated when its answer is
    /// lost: a token that nobody knows would be left behind.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenCreated, Error> {
        let call = Call::new(Method::POST, ["v1", "tokens"]).json(request)?;
        self.transport.call(call).await?.json()
    }

    /// `GET /v1/tokens`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokens(&self) -> Result<Page<TokenInfo>, Error> {
        self.transport.call(Call::new(Method::GET, ["v1", "tokens"])).await?.json()
    }

    /// `GET /v1/tokens/current`: what is known of the token that this client has. 404 if the master serves
    /// without tokens.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn current_token(&self) -> Result<TokenInfo, Error> {
        self.transport.call(Call::new(Method::GET, ["v1", "tokens", "current"])).await?.json()
    }

    /// `DELETE /v1/tokens/{id}`: it is not valid any more.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke_token(&self, id: uuid::Uuid) -> Result<(), Error> {
        let path = ["v1".into(), "tokens".into(), std::borrow::Cow::from(id.to_string())];
        self.transport.call(Call::new(Method::DELETE, path)).await.map(drop)
    }

    /// `GET /livez`: the process answers. One attempt.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn livez(&self) -> Result<(), Error> {
        self.transport.call(Call::new(Method::GET, ["livez"]).retry(Policy::NEVER)).await.map(drop)
    }

    /// The master's wall clock, in whole seconds, by the `Date` of its answer to `GET /livez`; `None` if it
    /// does not say. One attempt.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wall_clock(&self) -> Result<Option<std::time::SystemTime>, Error> {
        let answer = self.transport.call(Call::new(Method::GET, ["livez"]).retry(Policy::NEVER)).await?;
        Ok(answer.date())
    }

    /// `GET /readyz`: the master serves. One attempt.
    ///
    /// # Errors
    /// See [`Error`]; 503 while it does not.
    pub async fn readyz(&self) -> Result<(), Error> {
        self.transport.call(Call::new(Method::GET, ["readyz"]).retry(Policy::NEVER)).await.map(drop)
    }
}
