//! What a runtime has to be able to do.

use futures_util::{future::BoxFuture, stream::BoxStream};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Label: the cluster. Nothing without it is ever touched.
pub const LABEL_CLUSTER: &str = "io.evenkeel.cluster";
/// Label: `master`, `manager` or `node`.
pub const LABEL_ROLE: &str = "io.evenkeel.role";
/// Label: the pool of a node.
pub const LABEL_POOL: &str = "io.evenkeel.pool";
/// Label: hash of the template that a node was made from.
pub const LABEL_TEMPLATE: &str = "io.evenkeel.template";

/// The user of hardened containers, by number because an empty image has no names.
pub const NODE_USER: &str = "65532:65532";
/// `/tmp` of a container, unless asked for otherwise.
pub const DEFAULT_TMPFS_BYTES: u64 = 64 << 20;
/// Processes and threads of a container, at most.
pub const DEFAULT_PIDS: i64 = 1_024;

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The master.
    Master,
    /// A node-manager.
    Manager,
    /// A node.
    Node,
}

impl Role {
    /// The value of [`LABEL_ROLE`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Manager => "manager",
            Self::Node => "node",
        }
    }

    /// The role that a label's value names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Master, Self::Manager, Self::Node].into_iter().find(|role| role.as_str() == text)
    }
}

/// A directory inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path inside.
    pub target: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// Where a mounted directory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the host.
    Host(PathBuf),
    /// A volume of the engine; made with the cluster's label if it does not exist.
    Volume(String),
}

/// A port made reachable from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Address on the host.
    pub host: SocketAddr,
    /// TCP port inside.
    pub port: u16,
}

/// What to create. Every container is hardened (contract section 7): there is no field to switch it off.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// The cluster it belongs to.
    pub cluster: String,
    /// What it is for.
    pub role: Role,
    /// The pool, for a node.
    pub pool: Option<String>,
    /// Hash of the template, for a node.
    pub template: Option<String>,
    /// Image; engines without images ignore it.
    pub image: String,
    /// Program, if it is not the image's own.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments of the program. Never a secret: they can be seen.
    pub args: Vec<String>,
    /// Environment. Never a secret: it can be seen.
    pub env: BTreeMap<String, String>,
    /// `uid[:gid]`; [`NODE_USER`] if absent.
    pub user: Option<String>,
    /// Further groups by number, as the one of the Docker socket for a manager.
    pub groups: Vec<String>,
    /// CPU limit in cores; none if absent.
    pub cpus: Option<f64>,
    /// Memory limit in bytes, swap included; none if absent.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at most.
    pub pids: i64,
    /// Size of `/tmp`, in bytes.
    pub tmpfs_bytes: u64,
    /// Further directories.
    pub mounts: Vec<MountSpec>,
    /// Network to be on.
    pub network: Option<String>,
    /// A second network, for what has to be reached from two.
    pub second_network: Option<String>,
    /// Whether only names of its networks can be looked up, none of the world's.
    pub closed_dns: bool,
    /// Fixed address on that network.
    pub ip: Option<IpAddr>,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Parent control group.
    pub cgroup_parent: Option<String>,
    /// Whether its standard input will be fed at the start (see [`Engine::start`]).
    pub takes_stdin: bool,
}

impl ContainerSpec {
    /// A hardened container without anything beyond its name, its place and its arguments.
    #[must_use]
    pub fn new(name: &str, cluster: &str, role: Role, image: &str, args: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            role,
            pool: None,
            template: None,
            image: image.to_owned(),
            entrypoint: None,
            args,
            env: BTreeMap::new(),
            user: None,
            groups: Vec::new(),
            cpus: None,
            memory_bytes: None,
            pids: DEFAULT_PIDS,
            tmpfs_bytes: DEFAULT_TMPFS_BYTES,
            mounts: Vec::new(),
            network: None,
            second_network: None,
            closed_dns: false,
            ip: None,
            publish: Vec::new(),
            cgroup_parent: None,
            takes_stdin: false,
        }
    }

    /// The labels it gets.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (LABEL_CLUSTER.to_owned(), self.cluster.clone()),
            (LABEL_ROLE.to_owned(), self.role.as_str().to_owned()),
        ]);
        labels.extend(self.pool.iter().map(|pool| (LABEL_POOL.to_owned(), pool.clone())));
        labels.extend(self.template.iter().map(|hash| (LABEL_TEMPLATE.to_owned(), hash.clone())));
        labels
    }
}

/// Which containers to list: those of a cluster, of one role and pool where these are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The cluster.
    pub cluster: String,
    /// Only of this role.
    pub role: Option<Role>,
    /// Only of this pool.
    pub pool: Option<String>,
}

impl Filter {
    /// Everything of a cluster.
    #[must_use]
    pub fn cluster(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), role: None, pool: None }
    }

    /// The nodes of one pool.
    #[must_use]
    pub fn nodes(cluster: &str, pool: &str) -> Self {
        Self { cluster: cluster.to_owned(), role: Some(Role::Node), pool: Some(pool.to_owned()) }
    }
}

/// A container of ours as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The engine's id of this life.
    pub id: String,
    /// What it is for.
    pub role: Role,
    /// Its pool, for a node.
    pub pool: Option<String>,
    /// Hash of its template, for a node.
    pub template: Option<String>,
    /// Its state.
    pub state: pool::State,
    /// How long it has lived, or did live.
    pub age: Duration,
}

/// Something happened to a container of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It started.
    Started {
        /// Its name.
        name: String,
    },
    /// It ended.
    Died {
        /// Its name.
        name: String,
        /// Exit code, where it is known.
        exit_code: Option<i64>,
    },
    /// It was removed.
    Removed {
        /// Its name.
        name: String,
    },
    /// Events may have been missed: look at everything anew.
    Missed,
}

/// The machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Cores.
    pub cores: f64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The runtime with its version, for people, as `docker 20.10.24`.
    pub runtime: String,
}

/// CPU of one container, straight from its runtime.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ContainerCpu {
    /// Its name.
    pub name: String,
    /// The engine's id.
    pub id: String,
    /// Cores used over the last second or so.
    pub used_cores: f64,
    /// Its limit in cores; the host's cores if it has none.
    pub allotted_cores: f64,
    /// used ÷ allotted × 100.
    pub percent: f64,
    /// Part of the CFS periods in which it was throttled, 0 … 1; `None` where the runtime does not say.
    pub throttled_ratio: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// Its memory limit, in bytes; the host's if it has none.
    pub memory_limit_bytes: u64,
}

/// A secret that is handed over on standard input. Not shown by `Debug`.
#[derive(Clone)]
pub struct Stdin(pub String);

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stdin(…)")
    }
}

/// What can go wrong at a runtime.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The daemon does not answer.
    #[error("{runtime} cannot be reached: {reason}; is it running, and may this user reach it?")]
    Unreachable {
        /// Which.
        runtime: String,
        /// Why.
        reason: String,
    },
    /// A call took longer than it may.
    #[error("{what} got no answer within {seconds} s; the runtime may be overloaded, try again")]
    Timeout {
        /// The call.
        what: String,
        /// Its bound.
        seconds: u64,
    },
    /// There is no such container, image, network or volume.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The name is in use by something that is not ours, or by an earlier life that is not gone yet.
    #[error("the name {0} is in use by another container; remove or rename that one")]
    NameTaken(String),
    /// The wish cannot be fulfilled as it is.
    #[error("{0}")]
    Refused(String),
    /// Anything else that the runtime said.
    #[error("{what} failed: {reason}")]
    Failed {
        /// The call.
        what: String,
        /// What the runtime said.
        reason: String,
    },
}

/// Result of a call to an engine.
pub type Outcome<T> = Result<T, EngineError>;

/// A runtime. Every call has a bound of its own (60 s at most, building an image aside); streams end when
/// the container is gone or the stream is dropped.
pub trait Engine: Send + Sync {
    /// The machine.
    fn host(&self) -> BoxFuture<'_, Outcome<Host>>;

    /// Makes a container without starting it; its id.
    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Outcome<String>>;

    /// Starts it, also again after it has ended; one that runs is fine. `stdin` is written to its standard input, followed by a line feed and the end of file;
    /// it is seen nowhere else. Only for a container made with `takes_stdin`.
    fn start<'a>(&'a self, id: &'a str, stdin: Option<Stdin>) -> BoxFuture<'a, Outcome<()>>;

    /// SIGTERM, then SIGKILL after `grace` (rounded up to seconds). One that has ended is fine.
    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Outcome<()>>;

    /// SIGKILL. One that has ended is fine.
    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>>;

    /// Removes it, alive or not, with everything that runs in it. One that is gone is fine.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>>;

    /// Our containers, running or not, by name.
    fn list<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Outcome<Vec<Listed>>>;

    /// What happens to the cluster's containers from now on. Never ends by itself: it connects again, and
    /// says [`Event::Missed`] when it has.
    fn events(&self, cluster: &str) -> BoxStream<'static, Event>;

    /// What it wrote, standard output and error mixed: the last `tail` lines (all if absent), and what
    /// follows if `follow`.
    fn logs(&self, id: &str, follow: bool, tail: Option<u32>) -> BoxStream<'static, Outcome<bytes::Bytes>>;

    /// CPU of the cluster's running nodes, measured over about a second.
    fn stats<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Outcome<Vec<ContainerCpu>>>;

    /// Whether containers have their own network and images (`false`: processes of this host).
    fn is_isolated(&self) -> bool;
}
