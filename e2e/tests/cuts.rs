//! What was accepted is never lost, done twice or undone, whoever is cut off from whom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use e2e::chaos::{Plan, cuts};
use std::time::Duration;

#[test]
fn clients_see_no_loss_while_nodes_masters_and_database_are_cut_off_from_each_other() {
    let plan = Plan {
        seed: 20_261_121,
        // As long as there are cuts to come.
        tasks: u32::MAX,
        callers: 2,
        nodes: 3,
        pause: Duration::from_secs(1),
        within: Duration::from_secs(200),
    };
    let report = cuts::run(&plan, 1);
    println!("{report}");
    assert_eq!(report.violations, Vec::<String>::new(), "{report}");
    assert_eq!(report.faults.len(), cuts::Kind::ALL.len(), "{report}");
    assert!(report.succeeded >= 500, "too few tasks to say anything: {report}");
}
