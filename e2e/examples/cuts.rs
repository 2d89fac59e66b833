//! Cuts the network between nodes, masters and their database while clients submit, and says what they saw:
//! `cargo run --release -p e2e --example cuts -- [SEED] [ROUNDS]`; exit 1 if anything was lost, done twice or undone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for developers")]

use e2e::chaos::{Plan, cuts};
use std::{process::ExitCode, time::Duration};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>().expect("a number"));
    let seed = arguments.next().unwrap_or(1).into();
    let rounds = arguments.next().unwrap_or(3);
    let plan = Plan {
        seed,
        // As long as there are cuts to come.
        tasks: u32::MAX,
        callers: 2,
        nodes: 3,
        pause: Duration::from_secs(3),
        within: Duration::from_secs(300) * rounds,
    };
    let report = cuts::run(&plan, rounds as usize);
    print!("seed {seed}\n{report}");
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
