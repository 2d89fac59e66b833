//! `evenkeel node-manager update`: what the nodes of a pool are made of.

use super::{
    parse_cores,
    up::{parse_mount, read_kinds},
};
use crate::{cli::Global, connect::ConnectArgs, exit::Failure, output};
use clap::Args;
use node_manager::verbs;
use protocol::pool::{Mount, PoolSpec, Template};
use service::duration::parse_bytes;
use std::path::PathBuf;

/// Arguments of `node-manager update`.
#[derive(Args, Debug)]
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
    #[arg(long)]
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
    if args.dry_run {
        let mut spec = match client.pool(&args.pool).await {
            Ok(view) => PoolSpec::from(view.spec),
            Err(error) if error.status() == Some(404) => PoolSpec::default(),
            Err(error) => return Err(error.into()),
        };
        change(&mut spec);
        return output::json(&spec);
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
        template.allow_commands = self.allow_commands.unwrap_or(template.allow_commands);
    }
}
