//! The same cluster without Docker: host processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, try_run};
use std::process::Command;

#[test]
fn a_cluster_of_processes_works_and_leaves_none() {
    let name = {
        let cluster = Cluster::up_processes(&["--nodes", "2"]);
        cluster.wait_for_ready(2, 15);
        assert_eq!(cluster.evenkeel(&["submit", "fib", "30"]), r#"{"value":"832040"}"#);
        assert_eq!(
            cluster.evenkeel(&["submit", "-o", "value", "run", "--", "/bin/echo", "hello"]).trim(),
            "hello"
        );
        cluster.name.clone()
    };
    let left = try_run(Command::new("pgrep").args(["-fa", &name]), "");
    assert_eq!(left.stdout, "", "processes of {name} are left");
}

#[test]
fn the_demo_without_docker_checks_every_result() {
    let ran =
        try_run(e2e::evenkeel().args(["demo", "--runtime", "process", "--nodes", "2", "--tasks", "60"]), "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("60"), "{ran:?}");
}

#[test]
fn the_demo_on_containers_checks_every_result() {
    let ran =
        try_run(e2e::evenkeel().args(["demo", "--runtime", "docker", "--nodes", "3", "--tasks", "100"]), "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("100"), "{ran:?}");
}
