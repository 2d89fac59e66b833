//! How a master takes it when all nodes come back to it at once. See `bench/README.md`.

use bench::rejoin::{Plan, run};
use clap::Parser;
use std::{path::PathBuf, time::Duration};

/// Many nodes with work, whose master is killed and started again.
#[derive(Parser, Debug)]
struct Arguments {
    /// Evenkeel's program [default: built now]
    #[arg(long, value_name = "FILE")]
    evenkeel: Option<PathBuf>,
    /// Nodes of one core
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=8_000))]
    nodes: u32,
    /// Tasks for each node
    #[arg(long, default_value_t = 3)]
    tasks: u32,
    /// Seconds that each takes, without CPU
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

#[allow(clippy::print_stdout, reason = "the figures are this program's data")]
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let binary = match &arguments.evenkeel {
        Some(binary) => binary.clone(),
        None => bench::built()?,
    };
    let plan = Plan {
        nodes: usize::try_from(arguments.nodes)?,
        tasks_each: usize::try_from(arguments.tasks)?,
        task: Duration::from_secs(arguments.seconds),
        within: Duration::from_secs(300),
    };
    print!("{}", run(&binary, &plan).await?);
    Ok(())
}
