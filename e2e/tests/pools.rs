//! Pools with different nodes, and what becomes of them when a manager or the master is away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, Manager, docker, eventually};
use std::fmt::Write as _;

/// Own kinds of the pool `big`.
const KINDS: &str = r#"
[[kind]]
name = "which"
description = "Says which program it is"
command = ["/evenkeel", "version"]
cores = 2.0
memory_bytes = 8_000_000
timeout_ms = 60_000
max_attempts = 5
"#;

/// A file of the test's own.
fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Id and state of every node's container.
fn containers(cluster: &Cluster) -> String {
    let mut names = cluster.containers("node");
    names.sort();
    names.iter().fold(String::new(), |mut all, name| {
        let state = docker(&["inspect", "--format", "{{.Id}} {{.State.Status}}", name]);
        writeln!(all, "{name} {state}").unwrap();
        all
    })
}

#[test]
fn a_pool_without_nodes_queues_its_kinds_and_finishes_them_when_it_is_scaled_up() {
    let cluster = Cluster::up(&["--nodes", "1", "--cpus", "0.3"]);
    let kinds = file(KINDS);
    let kinds = kinds.path().to_str().unwrap();
    let update = ["node-manager", "update", "--pool", "big", "--cpus", "1.1", "--memory", "96MiB"];
    cluster.evenkeel(&[&update[..], &["--kinds", kinds]].concat());
    let _manager = Manager::run(&cluster, "big");

    // Known, and checked, while no node has it.
    let kinds = cluster.evenkeel(&["kinds"]);
    let which = kinds.lines().find(|line| line.starts_with("which")).unwrap();
    assert_eq!(which.split_whitespace().skip(1).take(2).collect::<Vec<_>>(), ["2", "7.6"], "{kinds}");
    let task = cluster.submit(&["which"]);
    let queued = cluster.task(&task);
    assert_eq!(queued["resources"], serde_json::json!({"cores": 2.0, "memory_bytes": 8_000_000}), "{queued}");
    assert_eq!((&queued["state"], &queued["max_attempts"]), (&"queued".into(), &5.into()), "{queued}");
    let why = cluster.evenkeel(&["task", "explain", &task, "-o", "json"]);
    assert!(why.contains("no_node_for_kind"), "{why}");
    let refused = cluster.try_evenkeel(&["submit", "--cores", "3", "which"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("2 cores"), "{refused:?}");
    let larger = cluster.try_evenkeel(&["submit", "--memory", "200MiB", "fib", "1"]);
    assert_eq!(larger.code, 0, "the default pool's node has more memory: {larger:?}");

    let before = containers(&cluster);
    cluster.evenkeel(&["node-manager", "scale", "--pool", "big", "1"]);
    let done = cluster.wait_for_task(&task, "succeeded", 60);
    assert!(done["result"].as_str().unwrap().contains("evenkeel"), "{done}");
    let nodes = cluster.wait_for_ready(2, 30);
    let big = nodes.iter().find(|node| node.text("pool") == "big").unwrap();
    assert_eq!((&big.0["id"], big.number("slots")), (&done["node"], 2.0), "{nodes:?}");
    // Two threads by its kind, by its own word one: both run to their end, one after the other or not.
    let narrow = cluster.submit(&["--cores", "1", "which"]);
    assert_eq!(cluster.wait_for_task(&narrow, "succeeded", 30)["resources"]["cores"], 1.0);

    cluster.evenkeel(&["node-manager", "scale", "--pool", "big", "0"]);
    eventually("the big node is gone and the other one was not touched", 60, || {
        let now = containers(&cluster);
        if now == before { Ok(()) } else { Err(now) }
    });
    let waits = cluster.submit(&["which"]);
    let why = cluster.evenkeel(&["task", "explain", &waits, "-o", "json"]);
    assert!(why.contains("no_node_for_kind"), "{why}");
}

#[test]
fn a_second_manager_of_a_pool_is_refused_and_changes_nothing() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    let before = containers(&cluster);
    let ran = cluster.try_evenkeel(&["node-manager", "run", "--runtime", "docker"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("the pool default is kept by another manager"), "{ran:?}");
    assert!(ran.stderr.contains("stop that one first"), "{ran:?}");
    assert_eq!(containers(&cluster), before);
    assert_eq!(cluster.evenkeel(&["submit", "-o", "value", "fib", "20"]), "6765");
}

#[test]
fn a_manager_without_its_master_keeps_what_runs() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let task = cluster.submit(&["sleep", "20000"]);
    cluster.node_of(&task, 10);
    let before = containers(&cluster);
    let master = format!("evenkeel-{}-master", cluster.name);
    docker(&["stop", "-t", "5", &master]);
    // Longer than the manager's calls and than a node may be silent before it is lost.
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(containers(&cluster), before);
    }
    docker(&["start", &master]);
    let done = eventually("the task ends", 60, || {
        let ran = cluster.try_evenkeel(&["task", "get", &task]);
        if ran.code == 0 && ran.json()["state"] == "succeeded" {
            Ok(ran.json())
        } else {
            Err(format!("{ran:?}"))
        }
    });
    assert_eq!(done["attempt"], 1, "it went on where it was: {done}");
    cluster.wait_for_ready(2, 30);
    assert_eq!(containers(&cluster), before);
    cluster.evenkeel(&["node-manager", "scale", "3"]);
    cluster.wait_for_ready(3, 60);
}
