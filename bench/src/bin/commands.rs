//! Many short commands through four nodes, beside HyperQueue on the same machine.
//!
//! Rounds alternate between the systems, so that whatever else the machine does meets both. Ends with an error
//! if any task fails. See `bench/README.md`.

use bench::{Round, System, evenkeel::Evenkeel, figures, hyperqueue::HyperQueue};
use clap::Parser;
use std::path::PathBuf;

/// Runs many short commands through a cluster of host processes, and through HyperQueue where it is there.
#[derive(Parser, Debug)]
struct Arguments {
    /// HyperQueue's program, built from its repository [default: only Evenkeel is measured]
    #[arg(long, value_name = "FILE")]
    hq: Option<PathBuf>,
    /// Evenkeel's program [default: built now]
    #[arg(long, value_name = "FILE")]
    evenkeel: Option<PathBuf>,
    /// Rounds of each system
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Commands in a round
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tasks: u32,
    /// Nodes, and HyperQueue's workers, of one core each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    nodes: u32,
    /// What is run
    #[arg(long, default_value = "/bin/true", value_name = "FILE")]
    program: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let binary = match &arguments.evenkeel {
        Some(binary) => binary.clone(),
        None => bench::built()?,
    };
    let nodes = usize::try_from(arguments.nodes)?;
    let mut systems: Vec<Box<dyn System>> = vec![Box::new(Evenkeel::up(&binary, nodes)?)];
    if let Some(hq) = &arguments.hq {
        let hq = std::path::absolute(hq)?;
        systems.push(Box::new(HyperQueue::up(&hq, nodes)?));
    }
    let mut rounds: Vec<Vec<Round>> = systems.iter().map(|_| Vec::new()).collect();
    for number in 1..=arguments.rounds {
        for (system, rounds) in systems.iter_mut().zip(&mut rounds) {
            let round = system.round(&arguments.program, arguments.tasks)?;
            say(&format!(
                "round {number}: {}: {:.0} tasks/s",
                system.name(),
                per_second(&round, arguments.tasks)
            ));
            rounds.push(round);
        }
    }
    say(&report(&systems, &rounds, arguments.tasks));
    Ok(())
}

fn per_second(round: &Round, tasks: u32) -> f64 {
    f64::from(tasks) / round.elapsed.as_secs_f64()
}

fn report(systems: &[Box<dyn System>], rounds: &[Vec<Round>], tasks: u32) -> String {
    let seconds_of_10_000 = 10_000.0 / f64::from(tasks);
    let heads = ["median of rounds", "tasks/s", "master", "nodes", "programs", "client"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut rates = Vec::new();
    for (system, rounds) in systems.iter().zip(rounds) {
        let of =
            |figure: &dyn Fn(&Round) -> f64| figures::median(&rounds.iter().map(figure).collect::<Vec<_>>());
        let rate = of(&|round| per_second(round, tasks));
        rates.push(rate);
        let cpu = [
            of(&|round| round.master.as_secs_f64()),
            of(&|round| round.workers.as_secs_f64()),
            of(&|round| round.programs.as_secs_f64()),
            of(&|round| round.client.as_secs_f64()),
        ];
        let mut row = vec![system.name().to_owned(), format!("{rate:.0}")];
        row.extend(cpu.map(|seconds| format!("{:.2}", seconds * seconds_of_10_000)));
        rows.push(row);
    }
    let mut text = format!("\n{}\n(CPU-seconds for 10,000 tasks)", figures::table(&rows));
    if let [ours, theirs] = rates[..] {
        text += &format!("\nratio of the medians: {:.2}", ours / theirs);
    }
    text
}

#[allow(clippy::print_stdout, reason = "the figures are this program's data")]
fn say(text: &str) {
    println!("{text}");
}
