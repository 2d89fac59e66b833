//! Handing a secret over on a container's standard input.

use super::{ACT_SECONDS, DockerEngine, fault::bounded};
use crate::engine::{EngineError, Outcome, Stdin};
use bollard::query_parameters::AttachContainerOptionsBuilder;
use std::{pin::Pin, time::Duration};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// The writing end of a container's standard input.
pub(super) type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// The bytes fit a pipe's buffer, so this is only reached by a daemon that hangs.
const FEED_SECONDS: u64 = 20;

impl DockerEngine {
    pub(super) async fn attach_stdin(&self, id: &str) -> Outcome<Input> {
        let options = AttachContainerOptionsBuilder::new().stdin(true).stream(true).build();
        let attaching = self.docker.attach_container(id, Some(options));
        Ok(bounded(&format!("attaching to {id}"), ACT_SECONDS, attaching).await?.input)
    }
}

/// Writes the secret and a line feed, then closes: the container was made with `StdinOnce`, so its
/// standard input ends there for good.
pub(super) async fn feed(mut input: Input, stdin: &Stdin) -> Outcome<()> {
    let what = "handing over standard input";
    let writing = async {
        input.write_all(stdin.0.as_bytes()).await?;
        input.write_all(b"\n").await?;
        input.flush().await?;
        input.shutdown().await
    };
    match tokio::time::timeout(Duration::from_secs(FEED_SECONDS), writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(EngineError::Failed { what: what.to_owned(), reason: error.to_string() }),
        Err(_) => Err(EngineError::Timeout { what: what.to_owned(), seconds: FEED_SECONDS }),
    }
}
