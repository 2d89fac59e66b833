//! What is known of this machine and of the cluster. Data only: `gather` fills it, `judge` reads it.

use crate::up::runtime::RuntimeArg;
use master::StoreLook;
use node::cpu::text::ThreadTimes;
use node_manager::docker::{facts::DaemonFacts, subnet::Subnet};
use protocol::{Timestamp, auth::TokenInfo};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// What a look gave, or why nothing is known.
pub(super) type Probe<T> = Result<T, String>;

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) cluster: String,
    /// The flags by which another command finds the same cluster, each with a space before it.
    pub(super) flags: String,
    /// What `up` noted that the cluster is made of.
    pub(super) runtime: Option<RuntimeArg>,
    pub(super) docker: Docker,
    pub(super) image: Probe<Image>,
    pub(super) network: Network,
    pub(super) cgroup: Cgroup,
    /// What the kernel counts for a thread that has just used a CPU.
    pub(super) schedstat: Probe<ThreadTimes>,
    pub(super) clock: Clock,
    pub(super) master: Master,
    pub(super) ports: Vec<Port>,
    pub(super) token: Token,
    pub(super) state: State,
    /// Space below Docker's own directory, where it is on this machine.
    pub(super) docker_space: Option<Probe<Space>>,
    /// Open files that this user's processes may have: now, and at most.
    pub(super) files: (Option<u64>, Option<u64>),
}

/// The way to Docker.
#[derive(Clone, Debug)]
pub(super) struct Docker {
    /// `DOCKER_HOST`, if it is set.
    pub(super) variable: Option<String>,
    /// The socket on this machine, if Docker is reached by one.
    pub(super) socket: Option<Socket>,
    pub(super) daemon: Probe<DaemonFacts>,
}

/// A socket on this machine.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub(super) path: PathBuf,
    /// Mode and name of the group; `None` if there is no such file.
    pub(super) file: Option<(u32, String)>,
    /// Whether this user was refused.
    pub(super) denied: bool,
}

/// The image of this program.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// Its name by content.
    pub(super) reference: String,
    /// Its id, if Docker has it.
    pub(super) id: Option<String>,
    /// The id of `evenkeel:latest`.
    pub(super) latest: Option<String>,
}

/// What a cluster's network may meet.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    /// `--subnet`.
    pub(super) wanted: Option<Subnet>,
    /// The host's routes, default routes left out: subnet and interface.
    pub(super) routes: Vec<(Subnet, String)>,
}

/// What is mounted at `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cgroup {
    V1,
    /// Controllers of version 1, and a tree of version 2 beside them.
    Hybrid,
    V2,
    Nothing,
}

/// The clocks.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    pub(super) wall: Timestamp,
    /// Whether the monotonic clock went on between two looks.
    pub(super) monotonic: bool,
    /// By how much the wall clock moved more than the monotonic one while we looked, in ms.
    pub(super) step_ms: i64,
    /// By how much this host's wall clock is ahead of the master's, and how exactly that is known, in ms.
    pub(super) ahead: Option<(i64, i64)>,
}

/// The master.
#[derive(Clone, Debug)]
pub(super) struct Master {
    pub(super) url: String,
    /// Whether somebody said that it is there: a flag or a context.
    pub(super) expected: bool,
    /// Whether its process answers.
    pub(super) lives: Probe<()>,
    /// Whether it serves.
    pub(super) ready: Probe<()>,
    /// Version of its program, if this token may see it.
    pub(super) version: Option<String>,
}

/// A port of this host that Evenkeel listens on.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) address: SocketAddr,
    pub(super) role: PortRole,
    pub(super) state: PortState,
    /// A port nearby that is free.
    pub(super) free: Option<u16>,
}

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortRole {
    Master,
    Services,
}

/// Who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortState {
    Free,
    /// The master of this cluster.
    Ours,
    /// A master of another cluster, as far as can be seen.
    OtherMaster,
    /// Another program; who, where that can be seen.
    Foreign(Option<String>),
    /// This host cannot listen there.
    Impossible(String),
}

/// The token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) source: TokenSource,
    pub(super) at_master: TokenAtMaster,
}

/// Where it is from.
#[derive(Clone, Debug)]
pub(super) enum TokenSource {
    /// There is none.
    Nowhere,
    /// `EVENKEEL_TOKEN`.
    Variable,
    /// A file, which can be read or not.
    File { path: PathBuf, mode: Option<u32>, read: Probe<()> },
}

/// What the master says to it.
#[derive(Clone, Debug)]
pub(super) enum TokenAtMaster {
    /// It was not asked.
    NotAsked,
    /// It knows it.
    Known(Box<TokenInfo>),
    /// It serves without tokens.
    NotNeeded,
    /// It refuses it.
    Refused(String),
    /// It says something else, as one of another version would.
    Unclear(String),
}

/// The state directory.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) path: PathBuf,
    /// Its mode; `None` if it is not there.
    pub(super) mode: Option<u32>,
    /// How long a small file took to be written and synced there; of a directory that is not there, whether it
    /// can be made.
    pub(super) write: Probe<Duration>,
    pub(super) space: Probe<Space>,
    pub(super) databases: Vec<Database>,
}

/// A database of a master.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) folder: PathBuf,
    pub(super) look: Probe<StoreLook>,
    /// Whether a process has it locked.
    pub(super) held: bool,
}

/// Space of a file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) free_bytes: u64,
    pub(super) free_files: Option<u64>,
}
