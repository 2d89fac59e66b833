//! Runs seeds of the simulated cluster on all cores, and says which of them break an invariant, which faults they
//! had, and how fast it went.

use clap::Parser;
use simulator::many::{self, Many};
use std::{num::NonZero, process::ExitCode, thread, time::Instant};

/// From so many seeds on every fault has to have happened.
const ENOUGH: u64 = 500;

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
    /// Print what happens; on one core.
    #[arg(long)]
    trace: bool,
    /// How many cores; all if absent.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
}

#[allow(clippy::print_stdout, reason = "the result is this program's data")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (first, count) = arguments.seed.map_or((arguments.first, arguments.seeds), |seed| (seed, 1));
    let all = || thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let threads = if arguments.trace { NonZero::<usize>::MIN } else { arguments.threads.unwrap_or_else(all) };
    let started = Instant::now();
    let Many { sum, failed } = many::run(first, count, threads, arguments.trace);
    let took_s = started.elapsed().as_secs_f64();
    for (seed, violations) in &failed {
        println!("seed {seed}:");
        violations.iter().for_each(|violation| println!("  {violation}"));
    }
    for (fault, times) in sum.coverage.iter() {
        println!("{times:>12} {fault:?}");
    }
    println!(
        "{count} seeds, {} with violations; {} events, {} tasks acknowledged, {} answers checked, {} runs begun, {} s \
         simulated in {took_s:.1} s on {threads} threads: {:.0} seeds/s",
        failed.len(),
        sum.steps,
        sum.acknowledged,
        sum.operations,
        sum.begun,
        sum.simulated_us / 1_000_000,
        count as f64 / took_s.max(0.001),
    );
    let missing = sum.coverage.missing();
    if count >= ENOUGH && !missing.is_empty() {
        println!("never happened, so nothing is shown of them: {missing:?}");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
