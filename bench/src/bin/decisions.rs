//! What a decision of the scheduler costs, and what a waiting task takes, as the cluster grows. See `bench/README.md`.

use bench::{
    core::{CLASSES, Cluster},
    figures,
};
use clap::Parser;
use std::process::{Command, Stdio};

/// Drives the scheduler's core alone: no network, no store, a clock that stands where the benchmark puts it.
#[derive(Parser, Debug)]
struct Arguments {
    /// Sizes of the cluster, in nodes of one core; a single one prints its row alone
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000])]
    nodes: Vec<u32>,
    /// Tasks that wait, of 100 classes
    #[arg(long, default_value_t = 1_000_000)]
    tasks: u32,
    /// Decisions that are timed in each round
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    decisions: u32,
    /// Rounds of each kind
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let [nodes] = arguments.nodes[..] {
        say(&measure(&arguments, nodes)?.join("\t"));
        return Ok(());
    }
    let titles =
        ["nodes", "a run ends, many wait: µs", "a task comes, half are free: µs", "bytes a waiting task"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    // Each in a process of its own, so that its memory is its own too.
    for nodes in &arguments.nodes {
        let number = |flag: &str, number: u32| [format!("--{flag}"), number.to_string()];
        let ran = Command::new(std::env::current_exe()?)
            .args(number("nodes", *nodes))
            .args(number("tasks", arguments.tasks))
            .args(number("decisions", arguments.decisions))
            .args(number("rounds", arguments.rounds))
            .stderr(Stdio::inherit())
            .output()?;
        anyhow::ensure!(ran.status.success(), "{nodes} nodes: {}", ran.status);
        rows.push(String::from_utf8(ran.stdout)?.trim().split('\t').map(str::to_owned).collect());
    }
    say(&format!(
        "{} tasks of {CLASSES} classes wait; medians of {} rounds of {} decisions, in CPU time of one thread",
        arguments.tasks, arguments.rounds, arguments.decisions
    ));
    say(&figures::table(&rows));
    Ok(())
}

/// The row of a cluster.
fn measure(arguments: &Arguments, nodes: u32) -> anyhow::Result<[String; 4]> {
    let mut cluster = Cluster::new(nodes);
    let rounds = || 0..arguments.rounds;
    let comes = rounds().map(|_| cluster.arrivals(arguments.decisions)).collect::<Result<Vec<_>, _>>()?;
    let bytes = cluster.wait(arguments.tasks);
    let ends = rounds().map(|_| cluster.ends(arguments.decisions)).collect::<Result<Vec<_>, _>>()?;
    let [ends, comes] = [ends, comes].map(|all| format!("{:.1}", figures::median(&all)));
    Ok([nodes.to_string(), ends, comes, format!("{bytes:.0}")])
}

#[allow(clippy::print_stdout, reason = "the benchmark's output")]
fn say(text: &str) {
    println!("{text}");
}
