//! What can go wrong, and what to do then.

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option's value is wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The master did not answer as it should.
    #[error(transparent)]
    Master(#[from] client::Error),
    /// The Docker daemon did not answer as it should.
    #[error("cannot read the containers: {0}; is the Docker daemon running?")]
    Docker(#[from] node_manager::EngineError),
    /// The program was asked to end before there was an answer: exit code 130.
    #[error("interrupted before the answer came")]
    Interrupted,
    /// Standard output is closed.
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
}
