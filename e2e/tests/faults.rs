//! What a user sees when things break: containers are killed, paused, cut off, and the work goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, docker, eventually};

/// The results of this many `fib` are right.
fn assert_right(task: &serde_json::Value, value: &str) {
    assert_eq!(task["state"], "succeeded", "{task}");
    assert_eq!(task["result"]["value"], value, "{task}");
}

#[test]
fn a_killed_node_costs_its_task_one_attempt_and_is_replaced() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let task = cluster.submit(&["burn", "3000"]);
    let victim = cluster.node_of(&task, 10);
    let before = cluster.node(&victim).unwrap();
    docker(&["kill", "-s", "KILL", &victim]);

    let task = cluster.wait_for_task(&task, "succeeded", 60);
    assert_eq!(task["attempt"], 2, "{task}");
    let again = eventually("a new node has the dead one's place", 20, || {
        let node = cluster.node(&victim)?;
        let new = node.text("status") == "ready" && node.text("id") != before.text("id");
        if new { Ok(node) } else { Err(format!("{node:?}")) }
    });
    assert_ne!(again.0["runtime_id"], before.0["runtime_id"], "replaced, not restarted");
    cluster.wait_for_ready(2, 20);
}

#[test]
fn a_killed_removed_or_stopped_node_is_replaced() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    // Empty while there is no such container: between the end of the old one and the new one.
    let id = |name: &str| docker(&["ps", "-aq", "--no-trunc", "--filter", &format!("name=^{name}$")]);
    for how in [&["kill", "-s", "KILL"][..], &["rm", "-f"], &["stop", "-t", "1"]] {
        let victim = cluster.containers("node").into_iter().min().unwrap();
        let before = id(&victim);
        docker(&[how, &[&victim]].concat());
        // The bound is wide because other work may share the machine; `examples/figures.rs` measures the time.
        eventually("the node is created anew", 10, || {
            let now = id(&victim);
            if now.is_empty() || now == before { Err(format!("{victim} is {now:?}")) } else { Ok(()) }
        });
        cluster.wait_for_ready(2, 20);
        // A node that lived long enough is replaced at once; back-off is for those that keep dying.
        std::thread::sleep(std::time::Duration::from_secs(11));
    }
}

#[test]
fn a_paused_node_is_suspect_then_lost_and_comes_back_without_counting_twice() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let task = cluster.submit(&["sleep", "4000"]);
    let paused = cluster.node_of(&task, 10);
    docker(&["pause", &paused]);
    cluster.wait_for_node(&paused, "suspect", 10);
    cluster.wait_for_node(&paused, "lost", 15);
    let other = eventually("the task runs elsewhere", 15, || {
        let node = cluster.node_of(&task, 5);
        if node == paused { Err(node) } else { Ok(node) }
    });
    docker(&["unpause", &paused]);
    cluster.wait_for_node(&paused, "ready", 20);

    let task = cluster.wait_for_task(&task, "succeeded", 30);
    assert_eq!(task["attempt"], 2, "{task}");
    // The returned node ends its old attempt too, and that must count for nothing.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let completed: f64 =
        [&paused, &other].iter().map(|name| cluster.node(name).unwrap().number("completed")).sum();
    assert_eq!(completed, 1.0, "{:?}", cluster.nodes());
    let listed = cluster.evenkeel(&["task", "list", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
}

#[test]
fn a_node_that_was_cut_off_and_comes_back_keeps_its_work() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    let network = format!("balancer-net-{}", cluster.name);
    let task = cluster.submit(&["sleep", "6000"]);
    let node = cluster.node_of(&task, 10);
    docker(&["network", "disconnect", &network, &node]);
    cluster.wait_for_node(&node, "suspect", 10);
    docker(&["network", "connect", &network, &node]);

    let task = cluster.wait_for_task(&task, "succeeded", 40);
    assert_eq!(task["attempt"], 1, "the attempt was not given out again: {task}");
    cluster.wait_for_node(&node, "ready", 20);
}

#[test]
fn a_running_task_is_adopted_by_the_master_that_was_killed_and_started_again() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let running = cluster.submit(&["sleep", "8000"]);
    let node = cluster.node_of(&running, 10);
    // The dispatch is recorded with the next group commit; a kill before that may run the task again.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let queued: Vec<_> = (0..8).map(|_| cluster.submit(&["burn", "300"])).collect();

    let master = format!("evenkeel-{}-master", cluster.name);
    docker(&["kill", "-s", "KILL", &master]);
    docker(&["start", &master]);

    let task = eventually("the running task ends", 60, || {
        let ran = cluster.try_evenkeel(&["task", "get", &running]);
        if ran.code != 0 {
            return Err(format!("{ran:?}"));
        }
        let task = ran.json();
        if task["state"] == "succeeded" { Ok(task) } else { Err(task.to_string()) }
    });
    assert_eq!(task["attempt"], 1, "adopted, not run twice: {task}");
    let id = cluster.node(&node).unwrap();
    assert_eq!(task["node"], id.0["id"], "{task}");
    for task in queued {
        cluster.wait_for_task(&task, "succeeded", 60);
    }
}

#[test]
fn a_manager_that_was_killed_adopts_what_runs() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let ids = || {
        let mut ids: Vec<_> = cluster
            .containers("node")
            .iter()
            .map(|name| docker(&["inspect", "--format", "{{.Id}}", name]))
            .collect();
        ids.sort();
        ids
    };
    let before = ids();
    let manager = format!("evenkeel-{}-manager", cluster.name);
    docker(&["kill", "-s", "KILL", &manager]);
    docker(&["start", &manager]);
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(ids(), before, "adopted, not made anew");
    cluster.evenkeel(&["node-manager", "scale", "3"]);
    cluster.wait_for_ready(3, 30);
    cluster.evenkeel(&["node-manager", "scale", "1"]);
    eventually("two nodes are gone", 30, || {
        let left = cluster.containers("node");
        if left.len() == 1 { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn a_child_that_the_kernel_kills_for_its_memory_fails_alone() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    let node = cluster.wait_for_ready(1, 10).remove(0);
    let ran = cluster.try_evenkeel(&[
        "submit",
        "--max-attempts",
        "1",
        "run",
        "--",
        "/evenkeel",
        "burn",
        "--seconds",
        "5",
        "--memory",
        "4GiB",
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("out_of_memory"), "{ran:?}");
    assert_eq!(cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#);
    assert_eq!(cluster.node(node.text("name")).unwrap().text("id"), node.text("id"), "the node lives");
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    let foreign = format!("foreign-{}", cluster.name);
    let network = format!("balancer-net-{}", cluster.name);
    docker(&[
        "run",
        "-d",
        "--name",
        &foreign,
        "--network",
        &network,
        "evenkeel:latest",
        "burn",
        "--cores",
        "0.01",
        "--seconds",
        "600",
    ]);
    let state = || docker(&["inspect", "--format", "{{.State.Status}} {{.Id}}", &foreign]);
    let before = state();
    cluster.evenkeel(&["node-manager", "scale", "2"]);
    cluster.wait_for_ready(2, 20);
    cluster.evenkeel(&["node-manager", "scale", "0"]);
    eventually("our nodes are gone", 30, || {
        if cluster.containers("node").is_empty() { Ok(()) } else { Err(String::new()) }
    });
    let down = cluster.try_evenkeel(&["down"]);
    let after = state();
    docker(&["rm", "-f", &foreign]);
    let _ = e2e::try_run(std::process::Command::new("docker").args(["network", "rm", &network]), "");
    assert_eq!(after, before, "{down:?}");
    assert_eq!(down.code, 0, "a network that others use stays, and that is said: {down:?}");
}

#[test]
fn results_are_right_through_real_containers() {
    let cluster = Cluster::up(&["--nodes", "3"]);
    assert_eq!(cluster.evenkeel(&["submit", "fib", "40"]), r#"{"value":"102334155"}"#);
    assert_eq!(
        cluster.evenkeel(&["submit", "fib", "--input", r#"{"n":90,"algorithm":"doubling"}"#]),
        r#"{"value":"2880067194370816120"}"#
    );
    assert_eq!(
        cluster.evenkeel(&["submit", "sum", "--input", r#"{"numbers":[1,"2.5"]}"#]),
        r#"{"value":"3.5"}"#
    );
    assert_eq!(cluster.evenkeel(&["submit", "-o", "value", "fib", "10"]), "55");
    let lines: String =
        (0..=30).map(|n| format!("{{\"ref\":\"{n}\",\"kind\":\"fib\",\"input\":{{\"n\":{n}}}}}\n")).collect();
    let ran = e2e::try_run(cluster.command().args(["submit", "--batch", "-"]), &lines);
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut results: Vec<(u64, String)> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|answer| {
            (
                answer["ref"].as_str().unwrap().parse().unwrap(),
                answer["task"]["result"]["value"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    results.sort();
    let (mut a, mut b) = (0_u64, 1_u64);
    assert_eq!(results.len(), 31);
    for (n, value) in results {
        assert_eq!(value, a.to_string(), "fib({n})");
        (a, b) = (b, a + b);
    }
    let id = cluster.submit(&["fib", "25"]);
    assert_right(&cluster.wait_for_task(&id, "succeeded", 20), "75025");
}
