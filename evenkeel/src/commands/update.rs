//! `evenkeel node-manager update`: what the nodes of a pool are made of.

use super::{
    parse_cores,
    up::{parse_image, parse_mount, parse_user, read_kinds},
};
use crate::{
    cli::Global,
    connect::ConnectArgs,
    exit::Failure,
    output,
    up::{
        checks,
        runtime::{self, Runtime, RuntimeArg},
    },
};
use clap::{ArgGroup, Args};
use node_manager::verbs;
use protocol::pool::{ManagerView, Mount, PoolSpec, Template};
use service::duration::parse_bytes;
use std::path::PathBuf;

/// Arguments of `node-manager update`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(
    ["image", "cpus", "memory", "kinds", "mount", "user", "allow_commands"]
)))]
#[command(after_help = "\
What is not given stays as it is. A pool that is not there yet is made, with no nodes.
Examples:
  evenkeel node-manager update --pool big --cpus 4 --memory 2GiB --kinds kinds.toml
  evenkeel node-manager scale --pool big 2")]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Pool to change
    #[arg(long, default_value = "default")]
    pool: String,
    /// Image of the nodes
    #[arg(long, value_parser = parse_image)]
    image: Option<String>,
    /// CPU limit of each node, in cores
    #[arg(long, value_parser = parse_cores)]
    cpus: Option<f64>,
    /// Memory limit of each node
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Own kinds of work, in place of those before
    #[arg(long, value_name = "FILE")]
    kinds: Option<PathBuf>,
    /// Host directory in every node, in place of those before; may be given more than once
    #[arg(long, value_parser = parse_mount, value_name = "SOURCE:TARGET[:ro]")]
    mount: Vec<Mount>,
    /// User of the nodes
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_user)]
    user: Option<String>,
    /// Whether the kind run is allowed: true or false
    #[arg(long, value_name = "BOOL")]
    allow_commands: Option<bool>,
    /// Only print the pool as it would be
    #[arg(long)]
    dry_run: bool,
}

/// Does it.
///
/// # Errors
/// What the master says.
pub(crate) async fn run(global: &Global, args: UpdateArgs) -> Result<(), Failure> {
    let client = args.connect.client(global)?;
    let kinds = args.kinds.as_deref().map(read_kinds).transpose()?;
    let change = |spec: &mut PoolSpec| {
        if (spec.desired, spec.min, spec.max) == (None, None, None) {
            spec.desired = Some(0);
        }
        args.apply(&mut spec.template, kinds.clone());
    };
    let (before, manager) = match client.pool(&args.pool).await {
        Ok(view) => (PoolSpec::from(view.spec), view.manager),
        Err(error) if error.status() == Some(404) => (PoolSpec::default(), None),
        Err(error) => return Err(error.into()),
    };
    refuse_impossible(global, &args, manager.as_ref()).await?;
    let mut after = before.clone();
    change(&mut after);
    if args.dry_run {
        return output::json(&after);
    }
    if after == before {
        output::say(format_args!("pool {} is so already; nothing changes", args.pool));
        return Ok(());
    }
    let view = verbs::change_pool(&client, &args.pool, change).await?;
    if view.manager.is_none() {
        output::say(format_args!(
            "nobody keeps pool {0} now; start one: evenkeel node-manager run --pool {0}",
            args.pool
        ));
    }
    output::say(format_args!(
        "pool {} is at revision {}; nodes that are made of something else are replaced one after the other",
        args.pool, view.revision
    ));
    Ok(())
}

/// What is known here already to be impossible. Anything else the manager finds and shows as its trouble; the
/// nodes stay as they are meanwhile.
async fn refuse_impossible(
    global: &Global,
    args: &UpdateArgs,
    manager: Option<&ManagerView>,
) -> Result<(), Failure> {
    if let (Some(cpus), Some(manager)) = (args.cpus, manager)
        && cpus > manager.host_cores
    {
        return Err(Failure::Usage(format!(
            "--cpus {cpus}: the host of the pool's manager has {} cores, and one node cannot have more",
            manager.host_cores
        )));
    }
    let containers_only = [
        ("--image", args.image.is_some()),
        ("--mount", !args.mount.is_empty()),
        ("--user", args.user.is_some()),
    ];
    let Some((flag, _)) = containers_only.into_iter().find(|(_, given)| *given) else { return Ok(()) };
    if manager.is_some_and(|manager| !manager.runtime.starts_with("docker")) {
        return Err(Failure::Usage(format!(
            "{flag} needs containers, and the pool's nodes are processes of its manager's host"
        )));
    }
    // The images of another host cannot be looked at from here.
    let state = global.state()?;
    if let Some(image) = &args.image
        && runtime::noted(&state) == Some(RuntimeArg::Docker)
        && let Runtime::Docker(engine) = runtime::choose(RuntimeArg::Docker, &state).await?
    {
        checks::check_image(&engine, image).await?;
    }
    Ok(())
}

impl UpdateArgs {
    fn apply(&self, template: &mut Template, kinds: Option<String>) {
        if self.image.is_some() {
            template.image.clone_from(&self.image);
        }
        template.cpus = self.cpus.or(template.cpus);
        template.memory_bytes = self.memory.or(template.memory_bytes);
        if kinds.is_some() {
            template.kinds = kinds;
        }
        if !self.mount.is_empty() {
            template.mounts.clone_from(&self.mount);
        }
        if self.user.is_some() {
            template.user.clone_from(&self.user);
        }
        template.allow_commands = self.allow_commands.unwrap_or(template.allow_commands);
    }
}
