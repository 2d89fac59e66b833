//! A whole cluster on this host: brought up, waited for, taken down.
//!
//! - [`runtime`]: containers or processes; [`sizes`]: how many nodes and how large; [`specs`]: the containers
//!   beside the nodes; `checks`: what is refused before anything is made; [`owner`]: the `up` in the foreground;
//! - `again`: what is there already, and a master that is started again; `manager`: the node-manager; `waiting`:
//!   until all is ready;
//! - [`Cluster::bring_up`], [`Cluster::take_down`]: the two ends.
//!
//! What holds: what bringing up has made is gone again when it fails or is interrupted; what was there before stays.

mod again;
pub(crate) mod checks;
mod manager;
pub(crate) mod owner;
pub(crate) mod runtime;
pub(crate) mod sizes;
pub(crate) mod specs;
mod waiting;

use crate::{
    commands::manager::{client_with, image_reference, prune},
    exit::Failure,
    output,
};
use again::There;
use client::{Client, Fingerprint, Trust};
use node_manager::{
    docker::network::NetworkWish,
    engine::{ContainerSpec, Engine, EngineError, Listed, Stdin},
    verbs,
};
use pool::State;
use protocol::pool::{Mount, Template};
use runtime::{Runtime, RuntimeArg};
use service::{
    Secret,
    shutdown::CancellationToken,
    state::{ADMIN_TOKEN_FILE, CA_FILE, CONTEXT_FILE, Context, StateDir},
    token,
};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// The pool that `up` makes.
const POOL: &str = "default";
/// How often something is looked at that is to become ready.
const LOOK: Duration = Duration::from_millis(100);

/// What is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// Name of the cluster.
    pub cluster: String,
    /// What nodes are.
    pub runtime: RuntimeArg,
    /// How many nodes; the default number if absent.
    pub nodes: Option<u32>,
    /// CPU limit of each, in cores.
    pub cpus: Option<f64>,
    /// Memory limit of each, in bytes.
    pub memory_bytes: Option<u64>,
    /// Image of the nodes, if not our own.
    pub image: Option<String>,
    /// Host directories in every node.
    pub mounts: Vec<Mount>,
    /// User of the nodes, if not the usual one.
    pub user: Option<String>,
    /// Whether the nodes' network is without a way out.
    pub isolate: bool,
    /// Text of a `kinds.toml`.
    pub kinds: Option<String>,
    /// Where the master is reached on this host.
    pub listen: SocketAddr,
    /// Subnet of the network.
    pub subnet: Option<String>,
    /// Fixed address of the master on it.
    pub master_ip: Option<IpAddr>,
    /// Parent control group of all containers.
    pub cgroup_parent: Option<String>,
    /// Whether the master speaks TLS, by a CA of its own.
    pub tls: bool,
    /// Whether the cluster stays when this process ends.
    pub detach: bool,
    /// Whether a cluster that lives, and only its master does not, gets that again; else it is refused as any
    /// that is there already.
    pub again: bool,
}

impl Wish {
    /// A cluster of this name, as `up` makes it where nothing else is said, with its master at this address.
    pub(crate) const fn new(cluster: String, runtime: RuntimeArg, listen: SocketAddr) -> Self {
        Self {
            cluster,
            runtime,
            nodes: None,
            cpus: None,
            memory_bytes: None,
            image: None,
            mounts: Vec::new(),
            user: None,
            isolate: false,
            kinds: None,
            listen,
            subnet: None,
            master_ip: None,
            cgroup_parent: None,
            tls: false,
            detach: false,
            again: false,
        }
    }
}

/// A cluster that is up.
pub(crate) struct Cluster {
    /// Its name.
    pub name: String,
    /// URL of its master on this host.
    pub url: String,
    /// A client with the administrator's token, once the master has started.
    pub client: Client,
    /// Whom to trust, where the master speaks TLS.
    trust: Option<Trust>,
    /// Whether it stays when this process ends.
    pub stays: bool,
    runtime: Runtime,
    state: StateDir,
    manager: Option<(CancellationToken, JoinHandle<Result<(), node_manager::Error>>)>,
}

impl Cluster {
    /// Brings a cluster up and waits until its nodes are ready. If that fails or `interrupted` is cancelled,
    /// what was made is taken down again.
    ///
    /// # Errors
    /// What does not work, with the end of the logs that say why.
    pub(crate) async fn bring_up(
        wish: &Wish,
        state: &StateDir,
        interrupted: &CancellationToken,
    ) -> Result<Self, Failure> {
        service::state::check_cluster(&wish.cluster)?;
        let runtime = runtime::of_up(wish.runtime, &wish.cluster, state).await?;
        match again::look(&runtime, &wish.cluster, state).await? {
            There::Ended(left) => again::clear(runtime.engine().as_ref(), left).await?,
            There::Headless(rest) if wish.again => {
                return again::start_master(wish, runtime, state, *rest, interrupted).await;
            }
            There::Up | There::Headless(_) => return Err(up_already(&wish.cluster)),
        }
        refuse_taken_address(wish.listen)?;
        checks::refuse_impossible(wish, &runtime).await?;
        state.create()?;
        let url = url_of(wish.listen, wish.tls);
        // Of a master with TLS the CA is known once it runs: until then nobody is trusted.
        let nobody = wish.tls.then(|| Trust::Pinned(Fingerprint::of(b"")));
        let client = client_with(&url, admin_token(state)?.expose(), nobody)?;
        let mut cluster = Self {
            name: wish.cluster.clone(),
            url,
            client,
            trust: None,
            runtime,
            state: state.clone(),
            manager: None,
            stays: wish.detach,
        };
        let made = tokio::select! {
            made = Box::pin(cluster.make(wish)) => made,
            () = interrupted.cancelled() => Err(Failure::Interrupted("interrupted; taking down what is there".to_owned())),
        };
        match made {
            Ok(()) => Ok(cluster),
            Err(failure) => {
                // The failure itself is what is to be told; a failure to clean up is said beside it.
                if let Err(second) = cluster.take_down().await {
                    output::say(format_args!("not all could be taken down: {second}"));
                }
                Err(failure)
            }
        }
    }

    async fn make(&mut self, wish: &Wish) -> Result<(), Failure> {
        self.state.write(runtime::RUNTIME_FILE, self.runtime.as_str().as_bytes())?;
        if !wish.detach {
            owner::note(&self.state)?;
        }
        let token = admin_token(&self.state)?;
        let engine = self.runtime.engine();
        let host = engine.host().await?;
        let nodes = wish.nodes.unwrap_or_else(|| sizes::default_nodes(host.cores));
        let (cpus, memory) = sizes::node_size(&host, Some(nodes));
        let cpus = wish.cpus.unwrap_or(cpus);
        if cpus * f64::from(nodes) > host.cores {
            output::say(format_args!(
                "{} of {cpus} cores are more than this host's {}: they will share them",
                output::counted(nodes.into(), "node"),
                host.cores
            ));
        }
        let place = self.place(wish).await?;
        let mut master = match &place {
            Some(place) => specs::master_container(place, wish.listen, wish.master_ip),
            None => {
                let token_file = self.state.file(ADMIN_TOKEN_FILE);
                specs::master_process(&self.name, self.state.path(), wish.listen, &token_file)
            }
        };
        let stdin = place.is_some().then(|| Stdin(token.expose().to_owned()));
        if wish.tls {
            master.args.extend(specs::tls_arguments(wish.listen.ip()));
        }
        let id = start(engine.as_ref(), &master, stdin).await?;
        let ca = if wish.tls { Some(self.take_ca(&id).await?) } else { None };
        self.wait_for_master().await?;
        let token_file = Some(self.state.file(ADMIN_TOKEN_FILE));
        self.state.save_context(&Context { master: self.url.clone(), token_file, ca })?;
        let template = Template {
            image: wish.image.clone(),
            cpus: Some(cpus),
            memory_bytes: Some(wish.memory_bytes.unwrap_or(memory)),
            mounts: wish.mounts.clone(),
            user: wish.user.clone(),
            kinds: wish.kinds.clone(),
            allow_commands: true,
            ..Template::default()
        };
        verbs::change_pool(&self.client, POOL, |spec| {
            (spec.desired, spec.min, spec.max, spec.target_queue_ms) = (Some(nodes), None, None, None);
            spec.template = template.clone();
        })
        .await?;
        self.start_manager(wish, place.as_ref()).await?;
        self.wait_for_nodes(nodes).await
    }

    /// What containers share; nothing for processes.
    async fn place(&self, wish: &Wish) -> Result<Option<specs::Place>, Failure> {
        let Runtime::Docker(engine) = &self.runtime else { return Ok(None) };
        let image = image_reference(engine).await?;
        let network = NetworkWish { subnet: wish.subnet.clone(), internal: wish.isolate };
        let network = engine.ensure_network(&self.name, &network).await.map_err(|error| match error {
            EngineError::Refused(reason) => Failure::Usage(format!("--subnet: {reason}")),
            other => other.into(),
        })?;
        checks::check_network(wish, &network).map_err(Failure::Usage)?;
        let way_out = match wish.isolate {
            true => Some(engine.ensure_way_out(&self.name).await?.name),
            false => None,
        };
        let cgroup_parent = wish.cgroup_parent.clone();
        let (cluster, network) = (self.name.clone(), network.name);
        Ok(Some(specs::Place { cluster, image, network, way_out, cgroup_parent }))
    }

    /// Takes the CA out of the master's own state, by the runtime and not by the network, keeps it in the state
    /// directory and trusts it from now on; the file.
    async fn take_ca(&mut self, master: &str) -> Result<PathBuf, Failure> {
        let began = Instant::now();
        let pem = loop {
            let found = match &self.runtime {
                Runtime::Docker(engine) => engine.read_file(master, specs::CA_IN_CONTAINER).await?,
                Runtime::Process(_) => fs::read(specs::ca_of_process(self.state.path())).ok(),
            };
            if let Some(pem) = found {
                break pem;
            }
            self.check_master(began, "it makes no CA").await?;
            tokio::time::sleep(LOOK).await;
        };
        self.state.write(CA_FILE, &pem)?;
        self.trust = Some(Trust::Certificates(pem));
        let token = admin_token(&self.state)?;
        self.client = client_with(&self.url, token.expose(), self.trust.clone())?;
        Ok(self.state.file(CA_FILE))
    }

    /// Lets go of the cluster without taking it down. A manager inside this process ends; the nodes stay.
    pub(crate) async fn leave(mut self) {
        self.stop_manager().await;
        if owner::living(&self.state).is_none() {
            // What stays behind is only the note of a process that will be gone.
            let _ = owner::forget(&self.state);
        }
    }

    /// Takes it down: nothing is left but what somebody else uses.
    ///
    /// # Errors
    /// What cannot be removed.
    pub(crate) async fn take_down(mut self) -> Result<(), Failure> {
        self.stop_manager().await;
        prune(&self.runtime, &self.name).await?;
        forget(&self.state).await
    }
}

/// Whether it has ended.
fn has_ended(listed: &Listed) -> bool {
    matches!(listed.state, State::Exited(_))
}

/// Creates and starts it; its id.
async fn start(engine: &dyn Engine, spec: &ContainerSpec, stdin: Option<Stdin>) -> Result<String, Failure> {
    let id = engine.create(spec).await?;
    engine.start(&id, stdin).await?;
    Ok(id)
}

/// The master's URL for programs of this host.
fn url_of(listen: SocketAddr, tls: bool) -> String {
    let loopback: IpAddr =
        if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let ip = if listen.ip().is_unspecified() { loopback } else { listen.ip() };
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, listen.port()))
}

/// The URLs by which other machines reach a master that listens on all of this host's addresses, of which
/// `own` lead out; none for one that listens on a single address, whose URL is the same everywhere.
pub(crate) fn urls_elsewhere(listen: SocketAddr, tls: bool, own: &[IpAddr]) -> Vec<String> {
    let reached = |ip: &&IpAddr| listen.ip().is_unspecified() && (listen.is_ipv6() || ip.is_ipv4());
    own.iter().filter(reached).map(|&ip| url_of(SocketAddr::new(ip, listen.port()), tls)).collect()
}

/// The administrator's token of the state directory, made if there is none.
fn admin_token(state: &StateDir) -> Result<Secret, Failure> {
    let path = state.file(ADMIN_TOKEN_FILE);
    if path.exists() {
        return Ok(token::read(&path)?);
    }
    let fresh = token::generate()?;
    state.write(ADMIN_TOKEN_FILE, format!("{}\n", fresh.expose()).as_bytes())?;
    Ok(fresh)
}

/// Said before anything is made: the usual reason why a cluster does not come up.
fn refuse_taken_address(listen: SocketAddr) -> Result<(), Failure> {
    match TcpListener::bind(listen) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Failure::Usage(format!(
            "{listen} is in use by another program; choose another address by --listen, as 127.0.0.1:7401"
        ))),
        // Anything else may be right for a daemon that runs elsewhere.
        _ => Ok(()),
    }
}

fn up_already(cluster: &str) -> Failure {
    Failure::Usage(format!(
        "cluster {cluster} is up already; use it, take it down by `evenkeel down --cluster {cluster}`, or choose another name by --cluster"
    ))
}

/// Removes what only a cluster that is up has in its state directory, and the directory if nothing else is
/// in it.
///
/// # Errors
/// What cannot be removed.
pub(crate) async fn forget(state: &StateDir) -> Result<(), Failure> {
    for name in [CONTEXT_FILE, ADMIN_TOKEN_FILE, CA_FILE, runtime::RUNTIME_FILE] {
        state.remove(name)?;
    }
    for folder in [runtime::PROCESSES, specs::MASTER_FOLDER] {
        remove_folder(&state.file(folder)).await?;
    }
    // Last, because a `down` waits for this.
    owner::forget(state)?;
    // Only succeeds if it is empty: what somebody else put there stays.
    let _ = fs::remove_dir(state.path());
    Ok(())
}

/// Removes a folder with all that is in it. The end of a process that was just killed may still be written
/// down there, so it is tried for a second.
async fn remove_folder(path: &Path) -> Result<(), Failure> {
    let mut tries = 10;
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if tries > 0 => tries -= 1,
            Err(error) => {
                return Err(Failure::Other(format!("{} cannot be removed: {error}", path.display())));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urls_of_a_master_are_some_that_can_be_used() {
        let own: [IpAddr; 2] = [[192, 0, 2, 7].into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).into()];
        let one: SocketAddr = ([192, 0, 2, 7], 7400).into();
        let all_v4: SocketAddr = (Ipv4Addr::UNSPECIFIED, 7400).into();
        let all: SocketAddr = (Ipv6Addr::UNSPECIFIED, 7400).into();
        assert_eq!(url_of(one, false), "http://192.0.2.7:7400");
        assert_eq!(url_of(all_v4, true), "https://127.0.0.1:7400");
        assert_eq!(url_of(all, false), "http://[::1]:7400");
        assert_eq!(urls_elsewhere(one, true, &own), [""; 0]);
        assert_eq!(urls_elsewhere(all_v4, true, &own), ["https://192.0.2.7:7400"]);
        assert_eq!(urls_elsewhere(all, false, &own), ["http://192.0.2.7:7400", "http://[fd00::7]:7400"]);
    }
}
