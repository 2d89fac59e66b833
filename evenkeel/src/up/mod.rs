//! A whole cluster on this host: brought up, waited for, taken down.
//!
//! - [`runtime`]: containers or processes; [`sizes`]: how many nodes and how large; [`specs`]: the containers
//!   beside the nodes; `checks`: what is refused before anything is made; [`owner`]: the `up` in the foreground;
//! - [`Cluster::bring_up`], [`Cluster::take_down`]: the two ends.
//!
//! What holds: what bringing up has made is gone again when it fails or is interrupted.

pub(crate) mod checks;
pub(crate) mod owner;
pub(crate) mod runtime;
pub(crate) mod sizes;
pub(crate) mod specs;

use crate::{
    commands::manager::{client_with, image_reference, prune},
    exit::Failure,
    output,
};
use client::{Client, Fingerprint, Trust};
use futures_util::StreamExt;
use node_manager::{
    docker::network::NetworkWish,
    engine::{ContainerSpec, Engine, EngineError, Filter, Listed, Role, Stdin},
    template::Surroundings,
    verbs,
};
use pool::State;
use protocol::{
    auth::{Scope, TokenRequest},
    node::NodeStatus,
    pool::{Mount, Template},
};
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
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// The pool that `up` makes.
const POOL: &str = "default";
/// How often something is looked at that is to become ready.
const LOOK: Duration = Duration::from_millis(100);
/// The master is ready within this, or something is wrong.
const MASTER_WITHIN: Duration = Duration::from_secs(60);
/// The nodes are ready within this, and [`EACH_NODE_WITHIN`] for each.
const NODES_WITHIN: Duration = Duration::from_secs(60);
const EACH_NODE_WITHIN: Duration = Duration::from_secs(2);
/// A manager inside `up` ends within this.
const MANAGER_ENDS_WITHIN: Duration = Duration::from_secs(15);
/// What the manager says is wrong is given so long to go away by itself.
const TROUBLE_FOR: Duration = Duration::from_secs(5);
/// How often the manager is looked at.
const TROUBLE_LOOK: Duration = Duration::from_secs(1);
/// Lines of a log that are shown when something does not become ready.
const TAIL_LINES: u32 = 15;
/// Logs of more nodes than these say nothing new.
const TAIL_NODES: usize = 2;

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
        let runtime = runtime::choose(wish.runtime, state).await?;
        refuse_second(&runtime, &wish.cluster, state).await?;
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

    async fn start_manager(&mut self, wish: &Wish, place: Option<&specs::Place>) -> Result<(), Failure> {
        let token = self.manager_token().await?;
        let engine = self.runtime.engine();
        let scheme = if wish.tls { "https" } else { "http" };
        let inside = format!("{scheme}://{}:{}", specs::master_name(&self.name), specs::MASTER_PORT);
        let allow_mounts: Vec<PathBuf> =
            wish.mounts.iter().map(|mount| mount.source.clone().into()).collect();
        let mut spec = match place {
            None => specs::manager_process(&self.name, self.state.path(), &self.url),
            Some(place) if wish.detach => {
                specs::manager_container(place, &inside, &allow_mounts).map_err(Failure::Usage)?
            }
            Some(place) => {
                let surroundings = Surroundings {
                    cluster: self.name.clone(),
                    pool: POOL.to_owned(),
                    image: place.image.clone(),
                    node_master: inside,
                    network: Some(place.network.clone()),
                    internal_network: wish.isolate,
                    cgroup_parent: place.cgroup_parent.clone(),
                    allow_mounts,
                    default_cpus: None,
                    default_memory_bytes: None,
                    isolated: true,
                };
                let config = node_manager::Config {
                    engine,
                    master: Arc::new(client_with(&self.url, token.expose(), self.trust.clone())?),
                    trust: self.trust.as_ref().map(Trust::to_text),
                    surroundings,
                    drain_deadline: None,
                    remove_on_exit: false,
                };
                let stop = CancellationToken::new();
                let running = tokio::spawn(Box::pin(node_manager::run(config, stop.clone())));
                self.manager = Some((stop, running));
                return Ok(());
            }
        };
        if let Some(Trust::Certificates(pem)) = &self.trust {
            // No secret, so it may be seen among the arguments.
            spec.args.extend(["--ca".to_owned(), Fingerprint::of_pem(pem)?.to_string()]);
        }
        start(engine.as_ref(), &spec, Some(Stdin(token.expose().to_owned()))).await.map(drop)
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

    /// Gives up on a master that has ended, or takes too long; `last` says what it is waited for.
    async fn check_master(&self, began: Instant, last: &str) -> Result<(), Failure> {
        let name = specs::master_name(&self.name);
        let listed = self.runtime.engine().list(&Filter::cluster(&self.name)).await?;
        let ended = listed.iter().any(|it| it.name == name && has_ended(it));
        if !ended && began.elapsed() <= MASTER_WITHIN {
            return Ok(());
        }
        let why = if ended { "it has ended" } else { last };
        let tail = self.tail(&name).await;
        Err(Failure::Other(format!("the master does not become ready: {why}\n{tail}")))
    }

    async fn manager_token(&self) -> Result<Secret, Failure> {
        let request = TokenRequest {
            scopes: vec![Scope::Manager, Scope::Operate, Scope::Read],
            ttl_ms: None,
            single_use: false,
            node_name: None,
            note: "manager of the pool default, made by up".to_owned(),
        };
        Ok(Secret::new(self.client.create_token(&request).await?.token))
    }

    async fn wait_for_master(&self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let last = match self.client.readyz().await {
                Ok(()) => break,
                Err(error) => error,
            };
            self.check_master(began, &last.to_string()).await?;
            tokio::time::sleep(LOOK).await;
        }
        match self.client.status().await {
            Err(error) if error.status() == Some(401) => Err(Failure::Other(format!(
                "the master does not take the token of {}: its state is of an earlier cluster; `evenkeel down` removes that",
                self.state.path().display()
            ))),
            other => Ok(other.map(drop)?),
        }
    }

    async fn wait_for_nodes(&mut self, wanted: u32) -> Result<(), Failure> {
        let (began, within) = (Instant::now(), NODES_WITHIN + EACH_NODE_WITHIN * wanted);
        let (mut most_ready, mut looked, mut trouble_since) = (0, Instant::now(), None::<Instant>);
        loop {
            let nodes = self.client.nodes().await?.items;
            let ready =
                nodes.iter().filter(|node| node.pool == POOL && node.status == NodeStatus::Ready).count();
            if ready >= wanted as usize {
                return Ok(());
            }
            if let Some((_, manager)) = self.manager.as_mut().filter(|(_, manager)| manager.is_finished()) {
                let ended = manager.await.map_err(|error| Failure::Other(error.to_string()))?;
                self.manager = None;
                ended?;
                return Err(Failure::Other("the node-manager ended by itself".to_owned()));
            }
            if ready > most_ready {
                (most_ready, trouble_since) = (ready, None);
            }
            if looked.elapsed() >= TROUBLE_LOOK {
                looked = Instant::now();
                let in_trouble = self.is_in_trouble().await?;
                trouble_since = in_trouble.then(|| trouble_since.unwrap_or(looked));
            }
            if began.elapsed() > within || trouble_since.is_some_and(|since| since.elapsed() > TROUBLE_FOR) {
                return Err(self.why_no_nodes(ready, wanted).await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the manager says that something is wrong, or has ended.
    async fn is_in_trouble(&self) -> Result<bool, Failure> {
        let view = self.client.pool(POOL).await?;
        if view.manager.is_some_and(|manager| !manager.trouble.is_empty()) {
            return Ok(true);
        }
        let listed = self.runtime.engine().list(&Filter::cluster(&self.name)).await?;
        Ok(listed.iter().any(|it| it.role == Role::Manager && has_ended(it)))
    }

    /// Shows the ends of the logs, and returns the reason, which is thus said last.
    async fn why_no_nodes(&self, ready: usize, wanted: u32) -> Failure {
        let nodes = output::counted(wanted.into(), "node");
        let mut text = format!("only {ready} of {nodes} became ready");
        if let Ok(view) = self.client.pool(POOL).await {
            match view.manager.map(|manager| manager.trouble) {
                Some(trouble) if trouble.is_empty() => {}
                Some(trouble) => text.push_str(&format!("; the manager says: {trouble}")),
                None => text.push_str("; no manager keeps the pool"),
            }
        }
        let listed = self.runtime.engine().list(&Filter::cluster(&self.name)).await.unwrap_or_default();
        let managers = listed.iter().filter(|it| it.role == Role::Manager);
        let nodes = listed.iter().filter(|it| it.role == Role::Node).take(TAIL_NODES);
        for listed in managers.chain(nodes) {
            output::say(self.tail(&listed.name).await);
        }
        Failure::Other(text)
    }

    /// The end of a log, for messages.
    async fn tail(&self, name: &str) -> String {
        let engine = self.runtime.engine();
        let Ok(mut parts) = verbs::logs(engine.as_ref(), &self.name, name, false, Some(TAIL_LINES)).await
        else {
            return format!("({name} has no log)");
        };
        let mut text = Vec::new();
        while let Ok(Some(Ok(part))) = tokio::time::timeout(Duration::from_secs(5), parts.next()).await {
            text.extend_from_slice(&part);
        }
        format!("--- {name} wrote last:\n{}", String::from_utf8_lossy(&text).trim_end())
    }

    /// Waits until the manager inside this process ends, which it does only when something is wrong; without
    /// one, for ever.
    pub(crate) async fn manager_ended(&mut self) -> Failure {
        let Some((_, manager)) = self.manager.as_mut() else { return std::future::pending().await };
        let ended = manager.await;
        self.manager = None;
        match ended {
            Ok(Ok(())) => Failure::Other("the node-manager ended by itself".to_owned()),
            Ok(Err(error)) => error.into(),
            Err(error) => Failure::Other(error.to_string()),
        }
    }

    /// Lets go of the cluster without taking it down. A manager inside this process ends; the nodes stay.
    pub(crate) async fn leave(mut self) {
        self.stop_manager().await;
        // What stays behind is only the note of a process that will be gone.
        let _ = owner::forget(&self.state);
    }

    async fn stop_manager(&mut self) {
        if let Some((stop, manager)) = self.manager.take() {
            stop.cancel();
            if tokio::time::timeout(MANAGER_ENDS_WITHIN, manager).await.is_err() {
                output::say("the node-manager did not end in time");
            }
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

/// A cluster that is up is not brought up again. What is left of one that has ended (after a restart of the
/// host, say) makes room: containers are replaced, never restarted; the state stays.
async fn refuse_second(runtime: &Runtime, cluster: &str, state: &StateDir) -> Result<(), Failure> {
    let engine = runtime.engine();
    let listed = engine.list(&Filter::cluster(cluster)).await?;
    let living = !listed.iter().all(has_ended);
    if living || owner::living(state).is_some() {
        return Err(Failure::Usage(format!(
            "cluster {cluster} is up already; use it, take it down by `evenkeel down --cluster {cluster}`, or choose another name by --cluster"
        )));
    }
    for it in listed {
        engine.remove(&it.id).await?;
    }
    Ok(())
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
