//! How a command ends: exit codes (contract section 1) and what is said.

use std::io;

/// Why a command did not end with 0.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The task failed or was cancelled; whatever there is to say about it has been said.
    #[error("")]
    TaskEnded,
    /// Wrong usage or bad input.
    #[error("{0}")]
    Usage(String),
    /// The master, or the way to it.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A container runtime.
    #[error(transparent)]
    Engine(#[from] node_manager::EngineError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] service::state::StateError),
    /// A token.
    #[error(transparent)]
    Token(#[from] service::token::TokenError),
    /// The master as a program.
    #[error(transparent)]
    Master(#[from] master::Error),
    /// A node as a program.
    #[error(transparent)]
    Node(#[from] node::Error),
    /// A node-manager as a program.
    #[error(transparent)]
    Manager(#[from] node_manager::Error),
    /// The load of the nodes.
    #[error(transparent)]
    Status(#[from] status_fetcher::Error),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    /// The wait that was asked for is over; the task goes on.
    #[error("{0}")]
    WaitOver(String),
    /// A cluster was named that has no context on this host.
    #[error("there is no cluster {name} here ({}); start it by `evenkeel up --cluster {name}`, or name its master by --master", known_clusters(.known))]
    NoCluster {
        /// Its name.
        name: String,
        /// Those that have a context.
        known: Vec<String>,
    },
    /// The cluster is not as it should be.
    #[error("")]
    Degraded,
    /// A signal asked for the end.
    #[error("{0}")]
    Interrupted(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn known_clusters(known: &[String]) -> String {
    if known.is_empty() { "there is none".to_owned() } else { format!("there are: {}", known.join(", ")) }
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Client(error)
            | Self::Status(status_fetcher::Error::Master(error))
            | Self::Node(node::Error::Client(error))
            | Self::Manager(node_manager::Error::Refused(error)) => error.exit_code(),
            Self::Usage(_)
            | Self::Status(status_fetcher::Error::Usage(_))
            | Self::Token(_)
            | Self::Master(
                master::Error::Advertise { .. }
                | master::Error::AdvertiseMissing { .. }
                | master::Error::Lease,
            )
            | Self::Node(node::Error::Config(_)) => 2,
            Self::State(service::state::StateError::ClusterName(_)) => 2,
            Self::TaskEnded
            | Self::Engine(_)
            | Self::State(_)
            | Self::Master(_)
            | Self::Node(_)
            | Self::Manager(_)
            | Self::Status(_)
            | Self::Output(_)
            | Self::Other(_) => 1,
            Self::NoCluster { .. } => 3,
            Self::WaitOver(_) => 5,
            Self::Degraded => 6,
            Self::Interrupted(_) => 130,
        }
    }

    /// What to say about it on standard error; nothing if empty.
    #[must_use]
    pub(crate) fn message(&self) -> String {
        match self {
            // `evenkeel … | head` is no error worth a word.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => String::new(),
            Self::Client(error) if error.exit_code() == 4 => {
                format!(
                    "{error}\nhint: name a file with a token of the right scope by --token-file; `evenkeel token create` makes one"
                )
            }
            other => other.to_string(),
        }
    }
}
