//! A node: measures its CPU, takes work from the master and runs it.
//!
//! A tour:
//! - [`run`] with [`Config`] (`config`): the whole life of a node;
//! - `agent`: the shell around `session::node::Session`, which decides; one task that owns everything.
//!   `channel` is the WebSocket to the master, `identity` what a node keeps of itself;
//! - `slots`: threads at nice 10 that run tasks; [`cancel`]: how a task is told to stop;
//! - [`kinds`]: the work itself, built in and commands; own kinds are read by [`kinds_file`];
//! - `log`: the end of what programs print;
//! - [`cpu`]: how much CPU the node has, uses and could give;
//! - [`burn`]: a CPU hog for trying things.
//!
//! What holds:
//! 1. every run that a slot has started is over exactly once, whatever its kind does (panics, hangs, forks);
//! 2. when a run is over, no process of it is left, and its directory is gone;
//! 3. a run that is told to stop stops using CPU within 2 s on a node of 0.25 core or more.

mod agent;
pub mod burn;
pub mod cancel;
mod channel;
mod config;
pub mod cpu;
mod identity;
pub mod kinds;
mod log;
mod slots;
pub mod thread_clock;

pub use config::{
    Config, DEFAULT_DRAIN_DEADLINE, Error as ConfigError, JOIN_TOKEN_VARIABLE, TokenSource, container_id,
    host_name, read_kinds,
};

pub use protocol::kinds_file;

use tokio_util::sync::CancellationToken;

/// Why a node cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The CPU cannot be measured.
    #[error(transparent)]
    Cpu(#[from] cpu::Error),
    /// The masters' URLs or the CA cannot be used.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The master refuses this node for good.
    #[error("{0}")]
    Refused(String),
}

/// Runs a node until `shutdown` is cancelled and it has left: it finishes what runs, hands back what does
/// not end within the drain's deadline, has its results recorded, and says that it leaves. A master that
/// cannot be reached is tried again without end.
///
/// Made for a runtime of one thread (`tokio::runtime::Builder::new_current_thread`): tasks run on threads
/// of their own, and a node at rest is small.
///
/// # Errors
/// [`Error`] if it cannot start, or the master refuses its token or its registration.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    // The future holds the whole agent; callers' stacks stay small.
    Box::pin(agent::run(config, shutdown)).await
}

/// Hides this process from those that it starts for tasks, which run as the same user: they cannot read its
/// memory and its environment (`/proc/<pid>/mem`), trace it or make it the first one to be killed for want
/// of memory. By `PR_SET_DUMPABLE`, see prctl(2) and ptrace(2); programs that it starts are not hidden. To be
/// called before a secret is read.
///
/// # Errors
/// The kernel refuses it.
pub fn hide_from_tasks() -> std::io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}
