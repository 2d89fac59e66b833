//! `evenkeel up` and `evenkeel down`.

use super::parse_cores;
use crate::{
    cli::Global,
    commands::{manager::prune, master::TlsArg},
    exit::Failure,
    output,
    up::{
        Cluster, Wish,
        checks::MOST_NODES,
        forget, owner,
        runtime::{self, PROCESSES, Runtime, RuntimeArg},
        urls_elsewhere,
    },
};
use clap::Args;
use node_manager::docker::DockerEngine;
use protocol::pool::Mount;
use service::{Shutdown, duration::parse_bytes, state::ADMIN_TOKEN_FILE};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// An `up` in the foreground takes its cluster down within this.
const OWNER_ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Arguments of `up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// How many nodes, at most 256 [default: one for each core, at most 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=MOST_NODES))]
    nodes: Option<u32>,
    /// What nodes are
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
    /// CPU limit of each node, in cores [default: a share of 0.9 of the host]
    #[arg(long, value_parser = parse_cores)]
    cpus: Option<f64>,
    /// Memory limit of each node [default: a share of 0.8 of the host, 64MiB to 1GiB]
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Image of the nodes [default: made from this program]
    #[arg(long, value_parser = parse_image)]
    image: Option<String>,
    /// Host directory in every node, may be given more than once
    #[arg(long, value_parser = parse_mount, value_name = "SOURCE:TARGET[:ro]")]
    mount: Vec<Mount>,
    /// User of the nodes, as "$(id -u):$(id -g)" for files that are yours [default: 65532:65532]
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_user)]
    user: Option<String>,
    /// Nodes reach the master and each other only: no other network, not the host, not the world
    #[arg(long)]
    isolate: bool,
    /// Own kinds of work
    #[arg(long, value_name = "FILE")]
    kinds: Option<PathBuf>,
    /// Where the master is reached on this host
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDRESS", value_parser = parse_listen)]
    listen: SocketAddr,
    /// Subnet of the cluster's network [default: Docker's choice]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// Address of the master on that network
    #[arg(long, requires = "subnet", value_name = "ADDRESS")]
    master_ip: Option<IpAddr>,
    /// Control group that all containers are put below
    #[arg(long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
    /// HTTPS between the master and its clients and nodes, by a CA of the cluster's own
    #[arg(long, value_enum, default_value_t = TlsArg::Off)]
    tls: TlsArg,
    /// Leave the cluster running; `evenkeel down` takes it down
    #[arg(long)]
    detach: bool,
}

/// Arguments of `down`.
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    /// Only what is of this runtime
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
}

/// An address with a port.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let port = text.trim_start_matches(':').parse::<u16>().unwrap_or(7_400);
    text.parse().map_err(|_| format!("{text:?} is not an address with a port; write it as 127.0.0.1:{port}"))
}

/// `SOURCE:TARGET[:ro]`.
pub(super) fn parse_mount(text: &str) -> Result<Mount, String> {
    let form = || format!("{text:?} is not a mount; write it as SOURCE:TARGET or SOURCE:TARGET:ro");
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else { return Err(form()) };
    let read_only = match (parts.next(), parts.next()) {
        (None, _) | (Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(form()),
    };
    if source.is_empty() || !target.starts_with('/') {
        return Err(form());
    }
    // Without `..` and links, which a manager does not take; one that is not there is told of later.
    let real = Path::new(source).canonicalize().or_else(|_| std::path::absolute(source));
    let source = real.map_err(|error| format!("{source}: {error}"))?;
    Ok(Mount { source: source.display().to_string(), target: target.to_owned(), read_only })
}

/// The name of an image, as far as it can be told here: the daemon knows the rest.
pub(super) fn parse_image(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:@-".contains(&byte);
    if text.is_empty() || !text.bytes().all(fits) || text.starts_with(['-', '/', '.']) || text.contains("//")
    {
        return Err(format!("{text:?} is no name of an image; write it as NAME or NAME:TAG, as debian:12"));
    }
    Ok(text.to_owned())
}

/// `UID[:GID]` in numbers: an image may have other names than this host, or none.
pub(super) fn parse_user(text: &str) -> Result<String, String> {
    let mut parts = text.split(':');
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(uid), gid, None) if is_number(uid) && gid.is_none_or(is_number) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no user; write it as UID or UID:GID in numbers, as $(id -u):$(id -g)")),
    }
}

/// The text of a `kinds.toml`, looked at here so that a mistake is said before anything is made.
pub(super) fn read_kinds(path: &Path) -> Result<String, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    node::kinds_file::parse(&text).map_err(|error| wrong(&error))?;
    Ok(text)
}

/// Brings a cluster up; stays with it until a signal comes, unless it is told to leave it.
///
/// # Errors
/// What does not work.
pub(crate) async fn up(global: &Global, args: UpArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let state = global.state()?;
    let wish = Wish {
        cluster: global.cluster.clone(),
        runtime: args.runtime,
        nodes: args.nodes,
        cpus: args.cpus,
        memory_bytes: args.memory,
        image: args.image,
        mounts: args.mount,
        user: args.user,
        isolate: args.isolate,
        kinds: args.kinds.as_deref().map(read_kinds).transpose()?,
        listen: args.listen,
        subnet: args.subnet,
        master_ip: args.master_ip,
        cgroup_parent: args.cgroup_parent,
        tls: args.tls == TlsArg::Auto,
        detach: args.detach,
        again: true,
    };
    if !args.listen.ip().is_loopback() && !wish.tls {
        output::say(format_args!(
            "warning: --listen {}: tokens, tasks and results go over the network in clear text, and whoever reaches this address can try to use the master; --tls auto encrypts it",
            args.listen
        ));
    }
    let token = shutdown.token();
    let mut cluster = Cluster::bring_up(&wish, &state, &token).await?;
    output::data(format_args!("master:  {}", cluster.url))?;
    for url in urls_elsewhere(wish.listen, wish.tls, &service::addresses::outward()) {
        output::data(format_args!("         {url} from other machines"))?;
    }
    output::data(format_args!("context: {}", state.path().display()))?;
    output::data(format_args!("token:   {}", state.file(ADMIN_TOKEN_FILE).display()))?;
    let flag = global.flags();
    output::say(format_args!("cluster {} is up; try: evenkeel submit{flag} fib 40", global.cluster));
    if cluster.stays {
        output::say(format_args!("take it down by: evenkeel down{flag}"));
        cluster.leave().await;
        return Ok(());
    }
    output::say("Ctrl-C takes it down");
    let ended = tokio::select! {
        () = token.cancelled() => Err(Failure::Interrupted(String::new())),
        failure = cluster.manager_ended() => Err(failure),
    };
    cluster.take_down().await?;
    ended
}

/// Takes a cluster down, however it was brought up.
///
/// # Errors
/// What cannot be removed.
pub(crate) async fn down(global: &Global, args: &DownArgs) -> Result<(), Failure> {
    let state = global.state()?;
    let ended = usize::from(owner::living(&state).is_some());
    if ended > 0 {
        output::say("an `evenkeel up` keeps this cluster; asking it to end");
        if !owner::end(&state, OWNER_ENDS_WITHIN).await {
            return Err(Failure::Other(
                "that `evenkeel up` did not end within 60 s; end it and try again".to_owned(),
            ));
        }
    }
    let noted = runtime::noted(&state);
    let mut removed = ended;
    if args.runtime != RuntimeArg::Docker && state.file(PROCESSES).exists() {
        let processes = runtime::choose(RuntimeArg::Process, &state).await?;
        removed += prune(&processes, &global.cluster).await?;
    }
    if args.runtime != RuntimeArg::Process && noted != Some(RuntimeArg::Process) {
        match DockerEngine::connect().await {
            Ok(engine) => removed += prune(&Runtime::Docker(engine), &global.cluster).await?,
            // Without a daemon there can be no containers, unless we know that there were some.
            Err(error) if noted == Some(RuntimeArg::Docker) || args.runtime == RuntimeArg::Docker => {
                return Err(error.into());
            }
            Err(_) => {}
        }
    }
    forget(&state).await?;
    if removed == 0 {
        output::say(format_args!("nothing of cluster {} was there", global.cluster));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_lone_port_is_told_how_to_become_an_address() {
        assert!(parse_listen("0.0.0.0:7401").is_ok());
        assert!(parse_listen("7411").unwrap_err().contains("127.0.0.1:7411"));
        assert!(parse_listen(":7411").unwrap_err().contains("127.0.0.1:7411"));
    }

    #[test]
    fn an_image_is_named_as_docker_names_it() {
        for right in ["debian", "debian:12", "registry.example:5000/a/b:1", "x@sha256:00ff", "sha256:00ff"] {
            assert!(parse_image(right).is_ok(), "{right}");
        }
        for wrong in ["", "a b", "-v", "../x", "http://x/y", "x?y"] {
            assert!(parse_image(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_user_is_numbers() {
        assert_eq!(parse_user("1000:100").unwrap(), "1000:100");
        assert_eq!(parse_user("0").unwrap(), "0");
        for wrong in ["", "me", "1000:", "1:2:3", "-1", "4294967296"] {
            assert!(parse_user(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mounts_as_docker_writes_them() {
        let mount = parse_mount("/data:/in:ro").unwrap();
        assert_eq!((mount.source.as_str(), mount.target.as_str(), mount.read_only), ("/data", "/in", true));
        assert!(!parse_mount("/data:/in").unwrap().read_only);
        assert!(parse_mount("data:/in").unwrap().source.starts_with('/'));
        let above = std::env::current_dir().unwrap().canonicalize().unwrap();
        let above = above.parent().unwrap().display().to_string();
        assert_eq!(parse_mount("..:/in").unwrap().source, above);
        for wrong in ["", "/data", ":/in", "/data:in", "/data:/in:xx", "/data:/in:ro:ro"] {
            assert!(parse_mount(wrong).is_err(), "{wrong}");
        }
    }
}
