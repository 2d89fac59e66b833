//! A rolling upgrade under load, from an earlier program to the one of this build, and nodes back again:
//! `cargo run --release -p e2e --example upgrade -- OLD_EVENKEEL [TASKS]`; exit 1 if anything was lost, done twice or undone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for developers")]

use e2e::chaos::{Plan, upgrade};
use std::{path::PathBuf, process::ExitCode, time::Duration};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let old = PathBuf::from(arguments.next().expect("the earlier program"));
    let tasks = arguments.next().map_or(5_000, |argument| argument.parse().expect("a number of tasks"));
    let plan = Plan {
        seed: 0,
        tasks,
        callers: 8,
        nodes: 4,
        pause: Duration::from_secs(8),
        within: Duration::from_secs(600),
    };
    let report = upgrade(&old, &plan);
    print!("{report}");
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
