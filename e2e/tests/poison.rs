//! A task that ends the nodes it runs on: it is found out, ends, and the pool does everybody else's work.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, docker, eventually};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Nodes of a cluster.
const NODES: usize = 3;
/// Copies of the task that ends them.
const COPIES: usize = 8;
/// Nodes that it may cost: as many as its first copies run on, each twice before it is suspected, and three on which it
/// was alone. Without quarantine it would be three attempts of each copy, 24.
const MOST_LOST: usize = 2 * NODES + 3;

/// Every copy ends, all others' tasks succeed, and the pool is as it was.
fn assert_only_the_poison_ends(cluster: &Cluster, poison: &[&str]) {
    let copies: Vec<String> = (0..COPIES).map(|_| cluster.submit(poison)).collect();
    let others: Vec<String> = (0..40).map(|_| cluster.submit(&["burn", "100"])).collect();
    let mut lost = BTreeSet::new();
    eventually("every copy has ended", 120, || {
        let all = cluster.nodes();
        let gone = all.iter().filter(|node| matches!(node.text("status"), "lost" | "stopped"));
        lost.extend(gone.map(|node| node.text("id").to_owned()));
        let open: Vec<_> = copies.iter().filter(|id| cluster.task(id)["finished_at"].is_null()).collect();
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
    });
    for id in &copies {
        let task = cluster.task(id);
        assert_eq!(
            (&task["state"], &task["error"]["code"]),
            (&"failed".into(), &"attempts_exhausted".into()),
            "{task}"
        );
    }
    assert!((2..=MOST_LOST).contains(&lost.len()), "{} nodes were lost: {lost:?}", lost.len());
    for id in &others {
        let task = cluster.wait_for_task(id, "succeeded", 60);
        assert_eq!(task["result"]["cpu_ms"].as_u64().map(|ms| ms >= 100), Some(true), "{task}");
    }
    // One more ends without costing a node, and its place is free at once.
    let before = cluster.wait_for_ready(NODES, 60);
    let again = cluster.wait_for_task(&cluster.submit(poison), "failed", 20);
    assert_eq!(again["error"]["code"], "attempts_exhausted", "{again}");
    let why = again["error"]["message"].as_str().unwrap();
    assert!(why.contains("while they ran nothing else"), "{again}");
    assert_eq!(cluster.evenkeel(&["submit", "-o", "value", "fib", "20"]), "6765");
    let id =
        |nodes: &[e2e::Node]| nodes.iter().map(|node| node.text("id").to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(id(&cluster.wait_for_ready(NODES, 10)), id(&before), "no node was lost by it");
}

#[test]
fn a_command_that_kills_its_node_ends_and_the_pool_goes_on() {
    let cluster = Cluster::up_processes(&["--nodes", &NODES.to_string()]);
    // A process of the host may signal its parent, which is the node.
    assert_only_the_poison_ends(&cluster, &["run", "--", "/bin/sh", "-c", "kill -KILL $PPID"]);
}

#[test]
fn a_task_whose_container_dies_with_it_ends_and_the_pool_goes_on() {
    let cluster = Cluster::up(&["--nodes", &NODES.to_string()]);
    let over = AtomicBool::new(false);
    // In a container no task can end its node, so that somebody else has to: whichever runs this input dies of it.
    let kills = || {
        while !over.load(Ordering::Relaxed) {
            let listed = cluster
                .try_evenkeel(&["task", "list", "--state", "running", "--kind", "sleep", "-o", "json"]);
            let shown = cluster.nodes();
            let name = |id: &str| {
                shown.iter().find(|node| node.text("id") == id).map(|node| node.text("name").to_owned())
            };
            for task in listed.json()["items"].as_array().unwrap() {
                if let Some(node) = task["node"].as_str().and_then(name) {
                    // It may be gone already.
                    let _ = e2e::try_run(std::process::Command::new("docker").args(["kill", &node]), "");
                }
            }
            thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    thread::scope(|scope| {
        scope.spawn(kills);
        // Ended also if an assertion fails, or the scope would wait for ever.
        let end = Ends(&over);
        assert_only_the_poison_ends(&cluster, &["sleep", "60000"]);
        drop(end);
    });
    assert_eq!(
        docker(&["ps", "-q", "--filter", &format!("label=io.evenkeel.cluster={}", cluster.name)])
            .lines()
            .count(),
        NODES + 2
    );
}

/// Says that it is over when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
