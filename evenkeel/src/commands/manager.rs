//! `evenkeel node-manager run|scale|update|drain|logs|list|prune`.

use super::{
    parse_cores,
    token::ListOutput,
    update::{self, UpdateArgs},
};
use crate::{
    cli::Global,
    commands::master::kept_token,
    connect::{ConnectArgs, Connection, is_https},
    exit::Failure,
    output,
    up::runtime::{self, Runtime, RuntimeArg},
};
use clap::{Args, Subcommand};
use client::{ClientConfig, Token, Trust};
use futures_util::StreamExt;
use node_manager::{
    docker::{
        DockerEngine,
        network::{NetworkEnd, NetworkWish},
    },
    engine::{EngineError, Filter},
    image,
    template::Surroundings,
    verbs,
};
use protocol::pool::PoolView;
use service::{
    Shutdown,
    duration::{parse_bytes, parse_duration, show_duration},
    state::{Context, StateDir, is_fingerprint},
};
use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// File in the state directory in which a manager keeps the token that came on standard input.
const MANAGER_TOKEN_FILE: &str = "manager.token";

/// What to do with the nodes of a pool.
#[derive(Debug, Subcommand)]
pub(crate) enum ManagerCommand {
    /// Create the nodes of a pool and keep them
    Run(Box<RunArgs>),
    /// Say how many nodes the pool shall have
    Scale(ScaleArgs),
    /// Say what the nodes of the pool are made of; they are replaced one after the other
    Update(Box<UpdateArgs>),
    /// Give a node no more work; what it runs is finished
    Drain(DrainArgs),
    /// Give a node that was drained work again
    Resume(ResumeArgs),
    /// Print what a node, the master or the manager wrote
    Logs(LogsArgs),
    /// List the nodes as their runtime sees them, with what the master says of them
    List(ListArgs),
    /// Remove every container of the cluster, its network and its volumes
    Prune(PruneArgs),
}

/// Arguments of `node-manager run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Pool to keep
    #[arg(long, default_value = "default")]
    pool: String,
    /// What nodes are
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
    /// URL of the master as the nodes see it [default: the manager's own]
    #[arg(long, value_name = "URL")]
    node_master: Option<String>,
    /// Host directory that pools may mount, with all below it; may be given more than once
    #[arg(long, value_name = "DIR")]
    allow_mount: Vec<PathBuf>,
    /// CPU limit of nodes whose pool names none, in cores
    #[arg(long, value_parser = parse_cores)]
    cpus: Option<f64>,
    /// Memory limit of nodes whose pool names none
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Subnet of the cluster's network, if it has to be made [default: Docker's choice]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// Control group that all containers are put below
    #[arg(long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
    /// How long a node that is to go may finish its tasks [default: as long as they take]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    drain_deadline: Option<Duration>,
    /// Remove the nodes when the manager ends; otherwise the next manager adopts them
    #[arg(long)]
    remove_on_exit: bool,
    /// Keep the token that comes on standard input in the state directory, and use it from there when started again
    #[arg(long, requires = "token_file")]
    keep_token: bool,
}

/// Arguments of `node-manager scale`.
#[derive(Args, Debug)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Pool to change
    #[arg(long, default_value = "default")]
    pool: String,
    /// How many nodes
    nodes: u32,
}

/// Arguments of `node-manager drain`.
#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Name or id of the node
    node: String,
    /// What still runs after this is handed back [default: never]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    drain_deadline: Option<Duration>,
}

/// Arguments of `node-manager resume`.
#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Name or id of the node
    node: String,
}

/// Arguments of `node-manager logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// Name of the container
    node: String,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// What nodes are
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
}

/// Arguments of `node-manager list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Only this pool
    #[arg(long)]
    pool: Option<String>,
    /// What nodes are
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
    /// How to write them
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    output: ListOutput,
}

/// Arguments of `node-manager prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Do not ask; needed where standard input is no terminal
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
    /// What nodes are
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
}

/// Does it.
///
/// # Errors
/// What the master or the runtime says.
pub(crate) async fn run(
    global: &Global,
    command: ManagerCommand,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    match command {
        ManagerCommand::Run(args) => keep(global, *args, shutdown).await,
        ManagerCommand::Scale(args) => {
            let view = verbs::scale(&args.connect.client(global)?, &args.pool, args.nodes).await?;
            if view.manager.is_none() {
                output::say(format_args!(
                    "nobody keeps pool {} now; start one: evenkeel node-manager run --pool {}",
                    args.pool, args.pool
                ));
            }
            warn_of_sharing(&view, args.nodes);
            let nodes = output::counted(args.nodes.into(), "node");
            output::say(format_args!("pool {} shall have {nodes}", args.pool));
            Ok(())
        }
        ManagerCommand::Update(args) => update::run(global, *args).await,
        ManagerCommand::Drain(args) => {
            let deadline = args.drain_deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
            let id = verbs::drain(&args.connect.client(global)?, &args.node, deadline).await?;
            let flags = args.connect.flags(global);
            output::say(format_args!(
                "node {} gets no new work and finishes what it runs; it gets work again by: evenkeel node-manager resume{flags} {}",
                args.node, args.node
            ));
            output::data(id)
        }
        ManagerCommand::Resume(args) => {
            let id = verbs::resume(&args.connect.client(global)?, &args.node).await?;
            output::say(format_args!("node {} gets work again", args.node));
            output::data(id)
        }
        ManagerCommand::Logs(args) => logs(global, args, shutdown).await,
        ManagerCommand::List(args) => list(global, args).await,
        ManagerCommand::Prune(args) => {
            let runtime = runtime::of_cluster(args.runtime, &global.state()?).await?;
            if args.dry_run || !args.yes {
                list_prunable(&runtime, &global.cluster).await?;
            }
            if args.dry_run {
                return Ok(());
            }
            if !args.yes {
                confirm("remove all this, with the tasks that the master has accepted?")?;
            }
            prune(&runtime, &global.cluster).await?;
            if let Runtime::Docker(engine) = &runtime {
                for name in engine.remove_old_images().await? {
                    output::say(format_args!("removed the unused image {name}"));
                }
            }
            Ok(())
        }
    }
}

/// Removes what carries the cluster's label and says what; how many things.
///
/// # Errors
/// What the runtime says.
pub(crate) async fn prune(runtime: &Runtime, cluster: &str) -> Result<usize, Failure> {
    let pruned = match runtime {
        Runtime::Docker(engine) => verbs::prune(engine, cluster).await?,
        Runtime::Process(engine) => verbs::Pruned {
            containers: verbs::prune_containers(engine, cluster).await?,
            ..verbs::Pruned::default()
        },
    };
    let mut count = pruned.containers.len() + pruned.volumes.len();
    let container = container_word(runtime);
    for name in &pruned.containers {
        output::say(format_args!("removed the {container} {name}"));
    }
    for name in &pruned.volumes {
        output::say(format_args!("removed the volume {name}"));
    }
    for (name, end) in pruned.networks {
        match end {
            NetworkEnd::Removed => {
                count += 1;
                output::say(format_args!("removed the network {name}"));
            }
            NetworkEnd::NotOurs => {
                output::say(format_args!("the network {name} stays: it was not made by evenkeel"));
            }
            NetworkEnd::InUse(by) => {
                output::say(format_args!("the network {name} stays: {} is on it", by.join(", ")));
            }
            NetworkEnd::Absent => {}
        }
    }
    Ok(count)
}

const fn container_word(runtime: &Runtime) -> &'static str {
    match runtime {
        Runtime::Docker(_) => "container",
        Runtime::Process(_) => "process",
    }
}

/// Writes what [`prune`] would remove to standard output.
async fn list_prunable(runtime: &Runtime, cluster: &str) -> Result<(), Failure> {
    for listed in runtime.engine().list(&Filter::cluster(cluster)).await? {
        output::data(format_args!("{} {}", container_word(runtime), listed.name))?;
    }
    if let Runtime::Docker(engine) = runtime {
        for name in engine.networks(cluster).await? {
            output::data(format_args!("network {name}"))?;
        }
        for name in engine.volumes(cluster).await? {
            output::data(format_args!("volume {name}"))?;
        }
        for name in engine.old_images().await? {
            output::data(format_args!("image {name}, unless a container uses it"))?;
        }
    }
    Ok(())
}

/// Asks on the terminal.
fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "nothing was removed; say --yes to remove what is listed above, with the master and its accepted tasks".to_owned(),
        ));
    }
    output::say(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::Other("nothing was removed".to_owned())),
    }
}

/// Says that nodes will share cores, where the manager's host is known to have fewer than asked for.
fn warn_of_sharing(view: &PoolView, nodes: u32) {
    let (Some(manager), Some(cpus)) = (&view.manager, view.spec.template.cpus) else { return };
    if cpus * f64::from(nodes) > manager.host_cores {
        output::say(format_args!(
            "warning: {} of {cpus} cores are more than the host's {}: they will share them",
            output::counted(nodes.into(), "node"),
            manager.host_cores
        ));
    }
}

async fn keep(global: &Global, args: RunArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let state = global.state()?;
    let connection = connection(global, &args, &state).await?;
    remember(&state, &args, &connection);
    let trust = connection.trust()?;
    check_node_master(args.node_master.as_deref(), &connection, trust.as_ref())?;
    let runtime = runtime::choose(args.runtime, &state).await?;
    let host = runtime.engine().host().await?;
    let (cpus, memory) = crate::up::sizes::node_size(&host, None);
    let mut surroundings = Surroundings {
        cluster: global.cluster.clone(),
        pool: args.pool,
        image: String::new(),
        node_master: args.node_master.unwrap_or_else(|| connection.master.clone()),
        network: None,
        internal_network: false,
        cgroup_parent: args.cgroup_parent,
        allow_mounts: args.allow_mount,
        default_cpus: Some(args.cpus.unwrap_or(cpus)),
        default_memory_bytes: Some(args.memory.unwrap_or(memory)),
        isolated: runtime.engine().is_isolated(),
    };
    if let Runtime::Docker(engine) = &runtime {
        let wish = NetworkWish { subnet: args.subnet, internal: false };
        let network = engine.ensure_network(&global.cluster, &wish).await?;
        (surroundings.network, surroundings.internal_network) = (Some(network.name), network.internal);
        surroundings.image = image_reference(engine).await?;
    }
    let config = node_manager::Config {
        engine: runtime.engine(),
        master: Arc::new(connection.client()?),
        trust: trust.map(|trust| trust.to_text()),
        surroundings,
        drain_deadline: args.drain_deadline,
        remove_on_exit: args.remove_on_exit,
    };
    Ok(Box::pin(node_manager::run(config, shutdown.token())).await?)
}

/// Nodes are not led around the manager's TLS, nor to a TLS that they cannot trust.
fn check_node_master(
    node_master: Option<&str>,
    connection: &Connection,
    trust: Option<&Trust>,
) -> Result<(), Failure> {
    let Some(url) = node_master else { return Ok(()) };
    match (is_https(url), connection.is_secure()) {
        (false, true) => Err(Failure::Usage(format!(
            "--node-master {url}: the manager reaches the master by https://, and by http:// the nodes' tokens would go over the network in clear text"
        ))),
        (true, _) if trust.is_none() => Err(Failure::Usage(format!(
            "--node-master {url}: nodes need the master's CA for it; give it to the manager by --ca"
        ))),
        _ => Ok(()),
    }
}

/// Our image, built if it is not there.
///
/// # Errors
/// What the daemon says.
pub(crate) async fn image_reference(engine: &DockerEngine) -> Result<String, Failure> {
    Ok(image::build(engine, env!("CARGO_PKG_VERSION")).await?.reference)
}

async fn connection(global: &Global, args: &RunArgs, state: &StateDir) -> Result<Connection, Failure> {
    let from_stdin = args.connect.token_file.as_deref() == Some(Path::new("-"));
    if args.keep_token && from_stdin {
        let token_file = Some(kept_token(state, MANAGER_TOKEN_FILE).await?);
        return ConnectArgs { token_file, ..args.connect.clone() }.resolve(global);
    }
    args.connect.resolve(global)
}

/// A manager that is told a master and a token lets the other commands on this host find them too, unless
/// the cluster has a context of another master already. Only a convenience: what goes wrong is logged.
fn remember(state: &StateDir, args: &RunArgs, connection: &Connection) {
    let Some(file) = args.connect.token_file.as_ref().filter(|file| file.as_path() != Path::new("-")) else {
        return;
    };
    let saved = match state.context() {
        Ok(Some(context)) if context.master != connection.master => {
            tracing::warn!(
                context = %state.path().display(), master = %context.master,
                "the cluster's context names another master, and stays; other commands need --master and --token-file"
            );
            return;
        }
        Ok(_) => std::path::absolute(file).map_err(|error| error.to_string()).and_then(|file| {
            let context = Context {
                master: connection.master.clone(),
                token_file: Some(file),
                ca: connection
                    .ca
                    .clone()
                    .map(|ca| if is_fingerprint(&ca) { ca } else { std::path::absolute(&ca).unwrap_or(ca) }),
            };
            state.create().and_then(|()| state.save_context(&context)).map_err(|error| error.to_string())
        }),
        Err(error) => Err(error.to_string()),
    };
    match saved {
        Ok(()) => {
            tracing::info!(context = %state.path().display(), "other commands find the master by this context")
        }
        Err(error) => {
            tracing::warn!(%error, "no context is kept; other commands need --master and --token-file")
        }
    }
}

/// A client with this token and this trust.
///
/// # Errors
/// If the URLs cannot be used.
pub(crate) fn client_with(
    master: &str,
    token: &str,
    trust: Option<Trust>,
) -> Result<client::Client, Failure> {
    let config = ClientConfig { trust, ..ClientConfig::new(master) };
    Ok(client::Client::new(config.with_token(Token::new(token)))?)
}

async fn logs(global: &Global, args: LogsArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let runtime = runtime::of_cluster(args.runtime, &global.state()?).await?;
    let engine = runtime.engine();
    let parts = verbs::logs(engine.as_ref(), &global.cluster, &args.node, args.follow, args.tail).await;
    let mut parts = parts.map_err(|error| match error {
        EngineError::NotFound(_) => Failure::Usage(error.to_string()),
        other => other.into(),
    })?;
    let token = shutdown.token();
    loop {
        tokio::select! {
            part = parts.next() => match part {
                Some(part) => output::raw(&part?)?,
                None => return Ok(()),
            },
            () = token.cancelled() => return Err(Failure::Interrupted(String::new())),
        }
    }
}

/// Says what the managers of these pools cannot do, such as an image that is not there.
async fn tell_troubles(
    client: &client::Client,
    pool: Option<&str>,
    listed: &[verbs::ListedNode],
) -> Result<(), Failure> {
    let mut pools: BTreeSet<&str> = listed.iter().filter_map(|node| node.pool.as_deref()).collect();
    pools.insert(pool.unwrap_or("default"));
    for pool in pools {
        let view = match client.pool(pool).await {
            Err(error) if error.status() == Some(404) => continue,
            other => other?,
        };
        if let Some(manager) = view.manager.filter(|manager| !manager.trouble.is_empty()) {
            output::say(format_args!("pool {pool}: the manager says: {}", manager.trouble));
        }
    }
    Ok(())
}

async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let runtime = runtime::of_cluster(args.runtime, &global.state()?).await?;
    // A master that does not answer does not hide the containers.
    let client = args.connect.client(global);
    let asked = match &client {
        Ok(client) => client.nodes().await.map_err(Failure::from),
        Err(failure) => Err(Failure::Other(failure.to_string())),
    };
    let nodes = asked.as_ref().map(|page| page.items.as_slice()).unwrap_or_default();
    let listed = verbs::list(runtime.engine().as_ref(), &global.cluster, args.pool.as_deref(), nodes).await?;
    match (asked, client) {
        (Ok(_), Ok(client)) => tell_troubles(&client, args.pool.as_deref(), &listed).await?,
        // What stands in the way of a client is the reason of its failure too.
        (_, Err(failure)) | (Err(failure), _) => {
            if listed.is_empty() {
                return Err(failure);
            }
            output::say(format_args!("without what the master says: {failure}"));
        }
    }
    if args.output == ListOutput::Json {
        return output::json(&listed);
    }
    let rows: Vec<_> = listed
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                node.pool.clone().unwrap_or_default(),
                node.state.clone(),
                show_duration(Duration::from_millis(node.age_ms)),
                node.node.as_ref().map_or("unknown", |node| node.status.as_str()).to_owned(),
                node.template.clone().unwrap_or_default(),
                node.runtime_id.chars().take(12).collect(),
            ]
        })
        .collect();
    output::table(&["NAME", "POOL", "STATE", "AGE", "STATUS", "TEMPLATE", "ID"], &rows)
}
