//! What the master is told at its start, and why it may refuse to start.

use crate::store::Place;
use scheduler::Policy;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tokio::sync::oneshot;

/// How long a master leads without renewing its lease, in milliseconds, unless it is told otherwise.
pub const LEASE_MS: u64 = 5_000;

/// What the master is told at its start. [`Config::new`] has the contract's defaults.
#[derive(Debug)]
pub struct Config {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Directory of the database and of `context.toml`; made if it is not there, mode 0700.
    pub state_dir: PathBuf,
    /// Serve without tokens. Only on a loopback address.
    pub insecure_loopback: bool,
    /// File with an admin token, made (0600) if it is not there.
    pub bootstrap_token_file: Option<PathBuf>,
    /// Name of the cluster. `evenkeel-<cluster>-master`, the name of its master's container, is answered to.
    pub cluster: String,
    /// Hosts that are answered to, beside IP literals, `localhost`, the machine's own name and that of the
    /// master's container.
    pub allow_hosts: Vec<String>,
    /// TLS of the listener.
    pub tls: Tls,
    /// Silence after which a node counts as lost, in milliseconds.
    pub node_lost_after_ms: u64,
    /// How nodes are chosen.
    pub policy: Policy,
    /// Most tasks that wait.
    pub queue_max_tasks: u64,
    /// Most bytes of tasks that have not ended.
    pub queue_max_bytes: u64,
    /// Where the store is; in the state directory if this says nothing.
    pub store: Option<Place>,
    /// Most bytes of ended tasks in the store; the oldest are dropped first.
    pub store_max_bytes: u64,
    /// URL by which other masters of the same store reach this one, and forward to it: scheme, host and port. Where
    /// it listens if this says nothing, which does not do for 0.0.0.0 and ::.
    pub advertise: Option<String>,
    /// How long this master leads without renewing its lease, in milliseconds, 1,000 … 60,000. Counts only where
    /// masters share a store.
    pub lease_ms: u64,
    /// Whose certificates of other masters are trusted, beside what this one shows itself.
    pub trust: Option<client::Trust>,
    /// Name or URL of this master, as `GET /v1/status` shows it; the bound address if empty.
    pub name: String,
    /// Version of the program, as it is shown.
    pub version: String,
    /// Told the bound address once requests are answered.
    pub on_ready: Option<oneshot::Sender<SocketAddr>>,
}

impl Config {
    /// A master on 127.0.0.1:7400 with the contract's defaults and this state directory.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let core = scheduler::Config::default();
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7_400)),
            state_dir: state_dir.into(),
            insecure_loopback: false,
            bootstrap_token_file: None,
            cluster: "default".to_owned(),
            allow_hosts: Vec::new(),
            tls: Tls::Off,
            node_lost_after_ms: core.node_lost_after_ms,
            policy: core.policy,
            queue_max_tasks: core.queue_max_tasks,
            queue_max_bytes: core.queue_max_bytes,
            store: None,
            store_max_bytes: 10 << 30,
            advertise: None,
            lease_ms: LEASE_MS,
            trust: None,
            name: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            on_ready: None,
        }
    }
}

/// TLS of the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// None: plain HTTP.
    Off,
    /// By a CA of the master's own, in its state directory.
    Auto {
        /// Names and addresses that the certificate is for, beside loopback, the master's own names and the
        /// address it listens on; the master answers to them too.
        names: Vec<String>,
    },
    /// By files in PEM, which are read again when they change.
    Files {
        /// The certificate, and those between it and the CA.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// Why the master did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `insecure_loopback` with an address that others can reach.
    #[error(
        "--insecure-loopback serves without tokens, so it needs a loopback address; {listen} is none. Use --listen 127.0.0.1:7400, or tokens: --bootstrap-token-file FILE"
    )]
    InsecureOffLoopback {
        /// Where it was to listen.
        listen: SocketAddr,
    },
    /// No token at all, and no leave to serve without.
    #[error(
        "no token exists, so nobody could use this master. Give --bootstrap-token-file FILE to have an admin token read or made, or --insecure-loopback to serve a loopback address without tokens"
    )]
    NoTokens,
    /// The token file cannot be used.
    #[error("token file {}: {why}", file.display())]
    TokenFile {
        /// The file.
        file: PathBuf,
        /// For people.
        why: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: {source}. Another program may have it; choose one with --listen")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// `advertise` is no address of this master.
    #[error("--advertise {url}: {why}")]
    Advertise {
        /// What was said.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Others cannot know where this master is.
    #[error(
        "masters that share a store forward to the one that leads, and {listen} is an address that nobody can be reached by. Say by --advertise URL where this one is"
    )]
    AdvertiseMissing {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// The lease is too short or too long.
    #[error("--lease must be 1s to 60s")]
    Lease,
    /// Requests cannot be forwarded to another master.
    #[error(transparent)]
    Forward(#[from] client::Error),
    /// TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::Error),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] service::state::StateError),
    /// The store cannot be opened or read.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The task that owns the scheduler ended by itself, or could not write all that waited at the end.
    #[error("the scheduler's task ended: {0}")]
    Brain(String),
}
