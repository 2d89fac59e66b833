//! `evenkeel master`.

use crate::{cli::Global, connect::trust_of, exit::Failure, output};
use clap::{
    Args, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use service::{
    Secret, Shutdown,
    duration::{parse_bytes, parse_ms},
    state::{ADMIN_TOKEN_FILE, StateDir},
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// A token on standard input must come within this.
const TOKEN_WITHIN: Duration = Duration::from_secs(30);

/// Arguments of `master`.
#[derive(Args, Debug)]
pub(crate) struct MasterArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    command: Option<MasterCommand>,
    /// How to serve.
    #[command(flatten)]
    serve: ServeArgs,
}

/// What else there is to do with a master's store.
#[derive(Debug, Subcommand)]
enum MasterCommand {
    /// Copy the store, also while a master uses it; prints the name of the copy
    Backup(CopyArgs),
    /// Put a copy in the place of the store, while no master runs
    Restore(CopyArgs),
}

/// Arguments of `master backup` and `master restore`.
#[derive(Args, Debug)]
struct CopyArgs {
    /// The copy; a directory: a new file in it, or its newest one
    path: PathBuf,
    /// The store: sqlite:PATH [default: evenkeel.db in the state directory]
    #[arg(long, value_name = "PLACE", hide_env_values = true, hide_default_value = true)]
    store: Option<Secret>,
}

/// Arguments of `master` itself.
#[derive(Args, Debug)]
struct ServeArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Serve without tokens; only on a loopback address
    #[arg(long)]
    insecure_loopback: bool,
    /// File with an administrator's token, made if it is not there; '-': read once from standard input, and kept in the state directory
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_loopback")]
    bootstrap_token_file: Option<PathBuf>,
    /// Name by which clients may address this master, beside IP addresses and localhost
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// HTTPS by a CA of the master's own, which is made in its state directory; the fingerprint is logged
    #[arg(long, value_enum, default_value_t = TlsArg::Off)]
    tls: TlsArg,
    /// Further name or address for the certificate of --tls auto
    #[arg(long, value_name = "NAME", value_parser = parse_certificate_name)]
    tls_name: Vec<String>,
    /// HTTPS by this certificate, PEM, followed by those between it and its CA; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "tls")]
    tls_cert: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Silence after which a node counts as lost
    #[arg(long, default_value = "5s", value_parser = parse_ms, value_name = "DURATION")]
    node_lost_after: u64,
    /// How nodes are chosen
    #[arg(long, default_value = "finish-time", value_parser = policies())]
    policy: String,
    /// Most tasks that wait
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    queue_max_tasks: u64,
    /// Most bytes of tasks that have not ended
    #[arg(long, default_value = "1GiB", value_parser = parse_bytes, value_name = "SIZE")]
    queue_max_bytes: u64,
    /// Where tasks are kept: sqlite:PATH, or postgres://USER@HOST:PORT/DATABASE, or 'postgres:host=HOST dbname=DATABASE' [default: evenkeel.db in the state directory]. A password belongs into EVENKEEL_STORE, evenkeel.toml, PGPASSWORD or ~/.pgpass
    #[arg(long, value_name = "PLACE", hide_env_values = true, hide_default_value = true)]
    store: Option<Secret>,
    /// URL by which the other masters of the same PostgreSQL reach this one, as http://10.0.0.5:7400 [default: the address of --listen, if it is not 0.0.0.0 or ::]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// How long this master leads without renewing its lease; another one takes over after that. Only with a PostgreSQL [default: 5s]
    #[arg(long, value_parser = parse_ms, value_name = "DURATION")]
    lease: Option<u64>,
    /// CA of the other masters of the same PostgreSQL, a PEM file or the fingerprint sha256:… [default: the one of --tls auto, or the certificates of --tls-cert]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Most bytes of ended tasks that are kept
    #[arg(long, default_value = "10GiB", value_parser = parse_bytes, value_name = "SIZE")]
    store_max_bytes: u64,
}

/// Whether there is TLS without further files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsArg {
    /// Plain HTTP
    Off,
    /// HTTPS by a CA of the master's own
    Auto,
}

fn parse_certificate_name(text: &str) -> Result<String, String> {
    if master::is_certificate_name(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "{text:?} is neither a host name nor an IP address; write it without port, as master.example"
    ))
}

fn policies() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new([
        "finish-time",
        "least-cpu",
        "least-connections",
        "round-robin",
        "random",
        "p2c",
    ])
}

/// Serves until a signal comes.
///
/// # Errors
/// Why it cannot start, or had to end.
pub(crate) async fn run(global: &Global, args: MasterArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    match args.command {
        None => serve(global, args.serve, shutdown).await,
        Some(MasterCommand::Backup(copy)) => {
            let now = service::clock::wall();
            let made =
                master::backup(&place_of(global, copy.store.or(args.serve.store))?, &copy.path, now).await;
            output::data(made.map_err(master::Error::from)?.display())
        }
        Some(MasterCommand::Restore(copy)) => {
            let now = service::clock::wall();
            let done =
                master::restore(&place_of(global, copy.store.or(args.serve.store))?, &copy.path, now).await;
            let done = done.map_err(master::Error::from)?;
            if let Some(away) = done.put_away {
                output::say(format_args!("what was there is now {}", away.display()));
            }
            output::say(
                "tasks that ended after this copy was made may run again; the next start goes on from it",
            );
            output::data(done.from.display())
        }
    }
}

fn place_of(global: &Global, store: Option<Secret>) -> Result<master::Place, Failure> {
    match store {
        Some(place) => {
            master::Place::parse(place.expose()).map_err(|error| Failure::Usage(error.to_string()))
        }
        None => Ok(master::Place::in_directory(global.state()?.path())),
    }
}

async fn serve(global: &Global, args: ServeArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let state = global.state()?;
    let mut config = master::Config::new(state.path());
    config.policy = args.policy.parse().map_err(Failure::Usage)?;
    config.bootstrap_token_file = match args.bootstrap_token_file {
        Some(path) if path == Path::new("-") => Some(kept_token(&state, ADMIN_TOKEN_FILE).await?),
        other => other,
    };
    config.listen = args.listen;
    config.insecure_loopback = args.insecure_loopback;
    config.cluster.clone_from(&global.cluster);
    config.allow_hosts = args.allow_host;
    config.tls = match (args.tls, args.tls_cert, args.tls_key) {
        (TlsArg::Auto, _, _) => master::Tls::Auto { names: args.tls_name },
        (TlsArg::Off, Some(cert), Some(key)) => master::Tls::Files { cert, key },
        (TlsArg::Off, _, _) => master::Tls::Off,
    };
    config.node_lost_after_ms = args.node_lost_after;
    config.queue_max_tasks = args.queue_max_tasks;
    config.queue_max_bytes = args.queue_max_bytes;
    config.store = Some(place_of(global, args.store)?);
    let shared = config.store.as_ref().is_some_and(|place| place.file().is_none());
    if args.lease.is_some() && !shared {
        let why = "--lease is for masters that share a store by --store postgres:…; this one is alone";
        return Err(Failure::Usage(why.to_owned()));
    }
    config.advertise = args.advertise.map(|url| url.trim_end_matches('/').to_owned());
    config.lease_ms = args.lease.unwrap_or(master::LEASE_MS);
    // Its variable and its key of the configuration file are the clients' too, so a master alone takes no offence.
    config.trust = args.ca.as_deref().filter(|_| shared).map(trust_of).transpose()?;
    config.store_max_bytes = args.store_max_bytes;
    config.version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Box::pin(master::run(config, shutdown.token())).await?)
}

/// The file with a token that came on standard input at the first start. A container that is started again
/// has nobody at its standard input, so the file counts once it is there.
///
/// # Errors
/// If no token comes within 30 s, or it cannot be kept.
pub(crate) async fn kept_token(state: &StateDir, name: &str) -> Result<PathBuf, Failure> {
    let path = state.file(name);
    if !path.exists() {
        state.create()?;
        let token = token_from_stdin().await?;
        state.write(name, format!("{}\n", token.expose()).as_bytes())?;
    }
    Ok(path)
}

async fn token_from_stdin() -> Result<Secret, Failure> {
    let read = tokio::task::spawn_blocking(|| service::token::read(Path::new("-")));
    match tokio::time::timeout(TOKEN_WITHIN, read).await {
        Ok(Ok(token)) => Ok(token?),
        Ok(Err(error)) => Err(Failure::Other(error.to_string())),
        Err(_) => Err(Failure::Usage("no token came on standard input within 30 s".to_owned())),
    }
}
