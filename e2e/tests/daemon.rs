//! A Docker daemon that is killed and started again, under a cluster with work: one of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use e2e::{Daemon, Masters, Program, evenkeel_binary, eventually, run};
use std::{collections::BTreeSet, time::Instant};

/// Nodes of the cluster.
const NODES: usize = 2;

/// A cluster on a daemon: master and manager are processes in its network, nodes are containers.
struct Cluster {
    manager: Program,
    masters: Masters,
    daemon: Daemon,
}

impl Cluster {
    fn start(daemon_arguments: &[&str]) -> Self {
        let daemon = Daemon::start(daemon_arguments);
        run(daemon.inside().command(&evenkeel_binary()).args(["image", "build"]));
        let mut masters = Masters::inside(&daemon);
        masters.start_missing();
        masters.wait_for_master();
        let mut manager = Program::new(masters.file("manager.log"));
        let mut command = masters.command(&masters.all_urls());
        manager.start(command.args(["node-manager", "run", "--runtime", "docker", "--cpus", "0.5"]));
        masters.evenkeel(&["node-manager", "scale", &NODES.to_string()]);
        masters.wait_for_nodes(NODES);
        Self { manager, masters, daemon }
    }

    fn submit(&self, arguments: &[&str]) -> String {
        self.masters.evenkeel(&[&["submit", "--detach"], arguments].concat())
    }

    /// Ids of all nodes' containers, whatever their state.
    fn containers(&self) -> BTreeSet<String> {
        let label = format!("label=io.evenkeel.cluster={}", self.masters.name);
        self.daemon.docker(&["ps", "-aq", "--filter", &label]).lines().map(str::to_owned).collect()
    }

    fn running(&self) -> usize {
        self.daemon.docker(&["ps", "-q"]).lines().count()
    }
}

/// Kills the daemon under a cluster with work, and starts it again; the containers before and after, and the attempts of a
/// task that ran throughout.
fn kill_and_start_again(cluster: &mut Cluster) -> (BTreeSet<String>, BTreeSet<String>, u64) {
    let before = cluster.containers();
    let long = cluster.submit(&["sleep", "15000"]);
    let masters = &cluster.masters;
    eventually("it runs", 20, || {
        let task = masters.task(&long);
        if task["state"] == "running" { Ok(()) } else { Err(task.to_string()) }
    });
    let mut tasks: Vec<String> = (0..20).map(|_| cluster.submit(&["burn", "100"])).collect();
    cluster.daemon.kill();
    // Nodes do not need it: what comes now is done now.
    assert_eq!(cluster.masters.evenkeel(&["submit", "-o", "value", "fib", "20"]), "6765");
    tasks.extend((0..20).map(|_| cluster.submit(&["burn", "100"])));
    let killed = Instant::now();
    cluster.daemon.start_again();
    println!("the daemon answers {:.1} s after it was started again", killed.elapsed().as_secs_f64());
    tasks.push(long.clone());
    for id in &tasks {
        let ran = cluster.masters.try_evenkeel(&["task", "wait", id]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    cluster.masters.wait_for_nodes(NODES);
    println!("all tasks are done and all nodes ready after {:.1} s", killed.elapsed().as_secs_f64());
    let after = cluster.containers();
    assert_eq!(
        (after.len(), cluster.running()),
        (NODES, NODES),
        "no second set of nodes, nor a dead one that stays"
    );
    (before, after, cluster.masters.task(&long)["attempt"].as_u64().unwrap())
}

/// The manager still follows wishes, and takes away what it made.
fn assert_it_goes_on_and_away(mut cluster: Cluster) {
    cluster.masters.evenkeel(&["node-manager", "scale", "3"]);
    cluster.masters.wait_for_nodes(3);
    let listed = cluster.masters.evenkeel(&["node-manager", "list", "-o", "json"]);
    assert!(!listed.contains("cannot"), "it has no trouble any more: {listed}");
    cluster.masters.evenkeel(&["node-manager", "scale", "0"]);
    eventually("no container is left", 60, || {
        let left = cluster.containers();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    cluster.manager.end("TERM");
    cluster.masters.evenkeel(&["down"]);
    let ours = format!("label=io.evenkeel.cluster={}", cluster.masters.name);
    for kind in ["network", "volume"] {
        assert_eq!(cluster.daemon.docker(&[kind, "ls", "-q", "--filter", &ours]), "", "{kind}s are left");
    }
}

#[test]
fn a_daemon_that_is_killed_ends_its_containers_when_it_is_back_and_they_are_replaced() {
    let mut cluster = Cluster::start(&[]);
    let (before, after, attempts) = kill_and_start_again(&mut cluster);
    assert!(before.is_disjoint(&after), "they were ended by the daemon: {before:?}, {after:?}");
    // Told to end, a node hands back what it runs, and that costs no attempt; a busy machine may be too slow for it.
    assert!((1..=2).contains(&attempts), "{attempts}");
    assert_it_goes_on_and_away(cluster);
}

#[test]
fn a_daemon_that_keeps_containers_alive_is_killed_and_nothing_is_done_again() {
    let mut cluster = Cluster::start(&["--live-restore"]);
    let (before, after, attempts) = kill_and_start_again(&mut cluster);
    assert_eq!((before, attempts), (after, 1));
    assert_it_goes_on_and_away(cluster);
}
