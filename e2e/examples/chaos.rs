//! Kills and stops master, manager and nodes every few seconds while clients submit, and says what they saw:
//! `cargo run --release -p e2e --example chaos -- [SEED] [TASKS] [MASTERS]`; exit 1 if anything was lost, done twice or undone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for developers")]

use e2e::{
    chaos::{Plan, run},
    masters::Ground,
};
use std::{process::ExitCode, time::Duration};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>().expect("a number"));
    let seed = arguments.next().unwrap_or(1).into();
    let tasks = arguments.next().unwrap_or(10_000);
    // One master stores in SQLite; several share a PostgreSQL server, which is killed too.
    let ground = match arguments.next() {
        None | Some(1) => Ground::Sqlite,
        Some(masters) => Ground::Postgres(usize::try_from(masters).expect("a number of masters")),
    };
    let plan = Plan {
        seed,
        tasks,
        callers: 8,
        nodes: 4,
        pause: Duration::from_secs(4),
        within: Duration::from_secs(1_800),
    };
    let report = run(ground, &plan);
    print!("{ground:?}, seed {seed}\n{report}");
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
