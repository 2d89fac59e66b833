//! `evenkeel node`.

use super::{parse_cores, parse_label};
use crate::{cli::Global, connect::ConnectArgs, exit::Failure};
use clap::Args;
use client::{ClientConfig, Token, Trust};
use node::{TokenSource, kinds_file::OwnKind};
use node_manager::template::{COMMAND_ENV_VARIABLE, KINDS_VARIABLE};
use service::{
    Shutdown,
    duration::{parse_bytes, parse_duration},
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Arguments of `node`.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Name, unique among live nodes [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// Pool it belongs to
    #[arg(long, default_value = "default")]
    pool: String,
    /// Cores that it may use [default: what its control group allows]
    #[arg(long, value_parser = parse_cores)]
    cores: Option<f64>,
    /// Memory that it may use [default: what its control group allows]
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Tag, may be given more than once
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// Own kinds of work
    #[arg(long, value_name = "FILE")]
    kinds: Option<PathBuf>,
    /// Allow the kind `run`: whoever may submit may then run commands here
    #[arg(long)]
    allow_commands: bool,
    /// Keeps the session, so that a node that is started again can take its name at once
    #[arg(long, value_name = "FILE")]
    session_file: Option<PathBuf>,
    /// Address to report [default: the one by which the master is reached]
    #[arg(long)]
    ip: Option<IpAddr>,
    /// Running tasks are handed back after this when the node is asked to end
    #[arg(long, default_value = "8s", value_parser = parse_duration, value_name = "DURATION")]
    drain_deadline: Duration,
    /// Where commands have their private directories [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    work_root: Option<PathBuf>,
}

/// Works until a signal comes.
///
/// # Errors
/// Why it cannot start, or the master refuses it.
pub(crate) async fn run(global: &Global, args: NodeArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    // Before any secret is read, and before any task can run.
    node::hide_from_tasks().map_err(|error| Failure::Other(format!("cannot hide from tasks: {error}")))?;
    shutdown.only_from_outside();
    let found = ConnectArgs { token_file: None, ..args.connect.clone() };
    // The token is read below, in a way that standard input may take its time.
    let found = crate::connect::locate(&found, global)?;
    let trust = found.trust()?;
    let (join_token, handed_over) = join_token(global, &args, found.is_secure() && trust.is_none()).await?;
    let mut config = node::Config::new(&found.master);
    config.masters = ClientConfig::new(&found.master).urls;
    config.trust = trust.or(handed_over);
    config.join_token = join_token;
    config.pool = args.pool;
    config.cores = args.cores;
    config.memory_bytes = args.memory;
    config.labels = args.label.into_iter().collect();
    config.allow_commands = args.allow_commands;
    config.session_file = args.session_file;
    config.ip = args.ip;
    config.drain_deadline = args.drain_deadline;
    config.version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(name) = args.name {
        config.name = name;
    }
    config.kinds = own_kinds(args.kinds.as_deref())?;
    config.command_env = command_env()?;
    if let Some(folder) = args.work_root {
        config.work_root = folder;
    }
    config.check().map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(node::run(config, shutdown.token()).await?)
}

/// Own kinds: of the file, and of the pool's template, which a node-manager hands over by a variable.
fn own_kinds(file: Option<&Path>) -> Result<Vec<OwnKind>, Failure> {
    let mut kinds = file.map(node::read_kinds).transpose().map_err(node::Error::from)?.unwrap_or_default();
    if let Some(text) = variable(KINDS_VARIABLE) {
        let of_pool = node::kinds_file::parse(&text);
        kinds.extend(of_pool.map_err(|error| Failure::Usage(format!("{KINDS_VARIABLE}: {error}")))?);
    }
    Ok(kinds)
}

/// The environment of commands that the pool's template names.
fn command_env() -> Result<BTreeMap<String, String>, Failure> {
    let Some(text) = variable(COMMAND_ENV_VARIABLE) else { return Ok(BTreeMap::new()) };
    serde_json::from_str(&text).map_err(|error| {
        Failure::Usage(format!("{COMMAND_ENV_VARIABLE} is no JSON object of texts: {error}"))
    })
}

/// A variable that is set, and not to nothing.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The flag, else the variable with the token, else the context's (an administrator may do everything); with
/// whom to trust, where that is looked for below the token.
async fn join_token(
    global: &Global,
    args: &NodeArgs,
    with_trust: bool,
) -> Result<(Option<Token>, Option<Trust>), Failure> {
    let source = match &args.connect.token_file {
        Some(path) if path == Path::new("-") => TokenSource::Stdin,
        Some(path) => TokenSource::File(path.clone()),
        None if std::env::var_os(node::JOIN_TOKEN_VARIABLE).is_some() => {
            TokenSource::Variable(node::JOIN_TOKEN_VARIABLE.to_owned())
        }
        None => {
            let token = args.connect.resolve(global)?.token;
            return Ok((token.map(|token| Token::new(token.expose())), None));
        }
    };
    let read = move || {
        if with_trust { source.read_with_trust() } else { source.read().map(|token| (token, None)) }
    };
    let read = tokio::task::spawn_blocking(read).await;
    let (token, trust) = read
        .map_err(|error| Failure::Other(error.to_string()))?
        .map_err(|error| Failure::Usage(error.to_string()))?;
    Ok((Some(token), trust))
}
