//! All nodes come back to a master that was killed, with what they had.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use bench::rejoin::{Plan, run};
use std::{path::PathBuf, time::Duration};

/// The program under test, built by the same run of cargo: tests are in target/<triple>/release/deps.
fn evenkeel() -> PathBuf {
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("evenkeel");
    assert!(binary.exists(), "{} is not built: run ./test", binary.display());
    binary
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_nodes_come_back_at_once_and_nothing_is_started_again() {
    let plan =
        Plan { nodes: 200, tasks_each: 2, task: Duration::from_secs(8), within: Duration::from_secs(100) };
    let report = run(&evenkeel(), &plan).await.unwrap();
    println!("{report}");
    assert_eq!((report.registered_again, report.started_again), (0, 0), "{report}");
}
