//! Rust SDK on Evenkeel's HTTP API: one async method a route, and what a caller over a network needs
//! besides — several masters, bounded retries, timeouts, typed errors that say what to do next.
//!
//! A tour:
//! - [`Client`] with [`ClientConfig`] (`config`): whom to talk to, with which token, for how long;
//! - `tasks`: submit, wait, cancel, list; `logs`: what they print; [`batch`]: streams of tasks both ways;
//! - `nodes`: what nodes, node-managers and operators say and ask; `pools`: what managers keep;
//! - `cluster`: status, kinds, tokens, health;
//! - [`tls`]: whose certificates are trusted;
//! - [`Error`] (`error`): what went wrong, and the exit code that goes with it;
//! - `transport`: one request with its attempts, decided by `session::retry`.
//!
//! What holds:
//! 1. a token is sent only to the configured URLs: redirects are not followed, no proxy is used, and the URLs
//!    are all `https` or none is;
//! 2. a request is sent twice only if that cannot do its work twice (`session::retry`);
//! 3. every call ends: attempts and their time are bounded, bodies too.
//!
//! ```no_run
//! # async fn example() -> Result<(), client::Error> {
//! use client::{Client, ClientConfig, SubmitOptions};
//! use protocol::task::TaskSpec;
//! use std::time::Duration;
//!
//! let client = Client::new(ClientConfig::new("http://127.0.0.1:7400"))?;
//! let input = serde_json::value::to_raw_value(&serde_json::json!({"n": 40})).unwrap().into();
//! let spec = TaskSpec::new("fib", Some(input));
//! let task = client.submit(&spec, &SubmitOptions::wait(Duration::from_secs(30))).await?;
//! # Ok(())
//! # }
//! ```

pub mod batch;
mod cluster;
mod config;
mod error;
mod logs;
mod nodes;
mod pools;
mod tasks;
pub mod tls;
mod transport;

pub use config::{ClientConfig, Timeouts, Token};
pub use error::{Error, ErrorClass};
pub use logs::{LogAnswer, LogPart, LogReader};
pub use tasks::SubmitOptions;
pub use tls::{Fingerprint, Trust};

use std::sync::Arc;
pub use transport::POOL_IDLE;
use transport::Transport;

/// A client of one cluster. Cheap to clone; clones share connections and the choice of master.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Arc<Transport>,
}

impl Client {
    /// A client with this configuration. Does not connect yet. Installs *ring* as the rustls provider of the
    /// process if none is installed.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no URL, one is not `http://` or `https://` with a host, carries a
    /// password, query or fragment, some are `https` and some not, `https` comes without trust, or the trust or
    /// token cannot be read.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        Ok(Self { transport: Arc::new(Transport::new(config)?) })
    }

    /// The URL that requests go to first: the one that answered last.
    #[must_use]
    pub fn url(&self) -> String {
        self.transport.url().to_string()
    }

    /// TLS as this client speaks it, for callers that open connections of their own
    /// ([`Client::work_channel_url`]).
    #[must_use]
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.transport.tls()
    }

    /// Takes the next of several masters, for callers that open connections of their own
    /// ([`Client::work_channel_url`]) and could not; nothing if another caller has left this one ([`Client::url`], as
    /// it was then) already. Without that, two who fail at once would both come back to the master that they left.
    pub fn leave_url(&self, url: &str) {
        self.transport.leave(url);
    }
}
