//! How the agent joins a cluster: registration, and the way to the work channel.

use super::{Agent, Input};
use crate::{
    channel::{Channel, OpenError},
    config::registration,
    identity::{SavedSession, local_ip},
};
use client::{Client, Token};
use protocol::NodeId;
use session::node::{Bearer, RegisterFailure};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// A registration must be answered within this.
const REGISTER_WITHIN: Duration = Duration::from_secs(15);

impl Agent {
    /// Registers; of several tokens the next is tried where one is refused.
    pub(super) fn register(&self, bearer: Bearer) {
        let of_life = match bearer {
            Bearer::Session => self.token.clone(),
            // An earlier life of this node may still count as alive under its name.
            Bearer::Join => self.saved.as_ref().map(|saved| saved.session_token.clone()),
        };
        let join = (bearer == Bearer::Join || of_life.is_none())
            // A master without tokens takes an empty one.
            .then(|| self.config.join_token.clone().unwrap_or_else(|| Token::new("")));
        let (inputs, client, config) = (self.inputs.clone(), self.client.clone(), self.config.clone());
        let (boot_id, cores, memory) = (self.boot_id, self.cores, self.reading.memory.limit_bytes);
        tokio::spawn(async move {
            let ip = match config.ip {
                Some(ip) => ip,
                None => local_ip(&client.url()).await.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            };
            let body = registration(&config, boot_id, ip, cores, memory);
            let mut result = Err(client::Error::Config("there is no token to register with".to_owned()));
            for token in [of_life, join].into_iter().flatten() {
                let call = async { client.register(&body, &token).await };
                result = within(REGISTER_WITHIN, &client, call).await;
                if !matches!(&result, Err(error) if matches!(error.status(), Some(401 | 403))) {
                    break;
                }
            }
            let _ = inputs.send(Input::Registered(result)).await;
        });
    }

    pub(super) fn connect(&mut self, node: NodeId) {
        self.channel_number += 1;
        self.channel = None;
        let number = self.channel_number;
        let (inputs, client) = (self.inputs.clone(), self.client.clone());
        let masters = self.config.masters.len();
        // Registered, so there is one.
        let token = self.token.clone().unwrap_or_else(|| Token::new(""));
        tokio::spawn(async move {
            let event = move |happened| Input::Channel(number, happened);
            let mut opened = Err(OpenError::Other("no master is named".to_owned()));
            // One that cannot be reached says nothing of the others, so that only all of them make it wait.
            for _ in 0..masters {
                let master = client.url();
                let url = client.work_channel_url(node);
                opened = Channel::open(&url, &token, client.tls(), inputs.clone(), event).await;
                let Err(OpenError::Other(why)) = &opened else { break };
                tracing::debug!(url, why, "no work channel at this master");
                client.leave_url(&master);
            }
            let _ = inputs.send(Input::Opened(number, opened)).await;
        });
    }

    /// Keeps the session token; in the file too, where one is configured.
    pub(super) fn keep_token(&mut self, token: Token) {
        if let Some(file) = &self.config.session_file {
            let saved = SavedSession { name: self.config.name.clone(), session_token: token.clone() };
            if let Err(error) = saved.store(file) {
                tracing::warn!(path = %file.display(), %error, "the session token is kept in memory only");
            }
        }
        self.token = Some(token);
        self.saved = None;
    }
}

/// A call that ends in time, whatever the client's own bounds.
pub(super) async fn within<T>(
    bound: Duration,
    client: &Client,
    call: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, client::Error> {
    let url = client.url();
    match tokio::time::timeout(bound, call).await {
        Ok(result) => result,
        Err(_) => {
            let after_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
            // A master that stands still refuses nothing: the next call goes to another one.
            client.leave_url(&url);
            Err(client::Error::Timeout { url, after_ms })
        }
    }
}

/// What a refused registration means to the session.
pub(super) fn register_failure(error: &client::Error) -> RegisterFailure {
    match error.status() {
        Some(401 | 403) => RegisterFailure::NotAuthorised(error.to_string()),
        Some(400 | 413 | 415 | 421 | 422) => RegisterFailure::Refused(error.to_string()),
        _ => RegisterFailure::Transient,
    }
}
