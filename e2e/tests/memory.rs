//! Memory: who is killed for it, who is blamed, and where it is tried again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, Manager, eventually};

/// Arguments of a command that holds so much memory for so many seconds.
fn hold<'a>(memory: &'a str, seconds: &'a str) -> [&'a str; 10] {
    ["run", "--", "/evenkeel", "burn", "--cores", "0.05", "--memory", memory, "--seconds", seconds]
}

#[test]
fn of_programs_side_by_side_the_one_that_was_killed_for_its_memory_is_blamed() {
    let cluster = Cluster::up(&["--nodes", "1", "--cpus", "1.1", "--memory", "160MiB"]);
    let node = cluster.wait_for_ready(1, 10).remove(0);
    // The largest at every moment, but it asked for what it holds.
    let innocent = cluster.submit(&[&["--memory", "100MiB"][..], &hold("90MiB", "15")].concat());
    cluster.node_of(&innocent, 20);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let greedy = cluster.submit(&hold("80MiB", "1"));
    eventually("it is killed, and waits for more memory", 30, || {
        let task = cluster.task(&greedy);
        if task["state"] == "queued" && task["attempt"] == 1 { Ok(()) } else { Err(task.to_string()) }
    });
    let why = cluster.evenkeel(&["task", "explain", &greedy, "-o", "json"]);
    assert!(why.contains("not_enough_memory"), "{why}");
    let innocent = cluster.wait_for_task(&innocent, "succeeded", 40);
    assert_eq!(innocent["attempt"], 1, "{innocent}");
    let greedy = cluster.wait_for_task(&greedy, "succeeded", 40);
    assert_eq!(greedy["attempt"], 2, "alone it fits: {greedy}");
    let hog = cluster.submit(&hold("4GiB", "1"));
    let hog = cluster.wait_for_task(&hog, "failed", 40);
    assert_eq!(hog["error"]["code"], "out_of_memory", "{hog}");
    assert_eq!(hog["attempt"], 1, "no node has more to give: {hog}");
    assert_eq!(cluster.node(node.text("name")).unwrap().text("id"), node.text("id"), "the node lives");
}

#[test]
fn out_of_memory_is_tried_once_more_where_there_is_more_and_nowhere_else() {
    let cluster = Cluster::up(&["--nodes", "1", "--cpus", "0.5", "--memory", "96MiB"]);
    let _manager = Manager::run(&cluster, "big");
    cluster.evenkeel(&[
        "node-manager",
        "update",
        "--pool",
        "big",
        "--cpus",
        "0.5",
        "--memory",
        "512MiB",
        "--allow-commands",
        "true",
    ]);
    cluster.evenkeel(&["node-manager", "scale", "--pool", "big", "1"]);
    let nodes = cluster.wait_for_ready(2, 40);
    let big = nodes.iter().find(|node| node.text("pool") == "big").unwrap().clone();
    // It has to begin where there is too little.
    cluster.evenkeel(&["node-manager", "drain", big.text("name")]);
    cluster.wait_for_node(big.text("name"), "draining", 10);
    let task = cluster.submit(&hold("200MiB", "1"));
    eventually("its first attempt is over", 40, || {
        let task = cluster.task(&task);
        if task["state"] == "queued" && task["attempt"] == 1 { Ok(()) } else { Err(task.to_string()) }
    });
    cluster.evenkeel(&["node-manager", "resume", big.text("name")]);
    let done = cluster.wait_for_task(&task, "succeeded", 40);
    assert_eq!((&done["attempt"], &done["node"]), (&2.into(), &big.0["id"]), "{done}");
    // What is too large for both ends with the second.
    let hog = cluster.submit(&hold("4GiB", "1"));
    let hog = cluster.wait_for_task(&hog, "failed", 40);
    assert_eq!(hog["error"]["code"], "out_of_memory", "{hog}");
    assert!(hog["attempt"].as_u64().unwrap() <= 2, "{hog}");
    // Asked for, it goes where it fits at once.
    let asked = cluster.submit(&[&["--memory", "200MiB"][..], &hold("200MiB", "1")].concat());
    let asked = cluster.wait_for_task(&asked, "succeeded", 40);
    assert_eq!((&asked["attempt"], &asked["node"]), (&1.into(), &big.0["id"]), "{asked}");
}
