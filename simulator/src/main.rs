//! Runs seeds of the simulated cluster and says which of them break an invariant.

use clap::Parser;
use simulator::{Setup, World};
use std::process::ExitCode;

/// Simulates whole clusters with faults, one for each seed.
#[derive(Parser)]
struct Arguments {
    /// How many seeds, from --first.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
}

#[allow(clippy::print_stdout, reason = "the result is this program's data")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (first, count) = arguments.seed.map_or((arguments.first, arguments.seeds), |seed| (seed, 1));
    let (mut failed, mut steps, mut acknowledged, mut begun, mut simulated_us) = (0_u64, 0, 0, 0, 0);
    for seed in first..first.saturating_add(count) {
        let setup = Setup { trace: arguments.trace, ..Setup::new(seed) };
        match World::new(setup).run() {
            Ok(summary) => {
                steps += summary.steps;
                acknowledged += summary.acknowledged;
                begun += summary.begun;
                simulated_us += summary.simulated_us;
            }
            Err(violations) => {
                failed += 1;
                println!("seed {seed}:");
                violations.iter().for_each(|violation| println!("  {violation}"));
            }
        }
    }
    println!(
        "{count} seeds, {failed} with violations; {steps} events, {acknowledged} tasks acknowledged, {begun} runs begun, {} s simulated",
        simulated_us / 1_000_000
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
