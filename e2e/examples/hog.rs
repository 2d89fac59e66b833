//! Prints what a CPU hog inside one node's container does to placement:
//! `cargo run --release -p e2e --example hog`.
//!
//! Nodes of 0.2, 0.4 and 0.8 cores work off a backlog of equal tasks; then `evenkeel burn` starts inside the
//! largest. Printed are, from 3 s later: how often a task waited on that node while another slot was free, how
//! far its predicted times are off, and the throughput of the other nodes before and after.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program for developers"
)]

use e2e::{Cluster, docker};
use serde_json::Value;
use std::{
    collections::HashMap,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

const SECONDS: u64 = 30;
const SIZES: [(&str, &str); 3] = [("small", "0.2"), ("middle", "0.4"), ("large", "0.8")];

fn backlog(cluster: &Cluster) -> Child {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"kind\":\"fib\",\"input\":{\"n\":37}}\n".repeat(4_000)).unwrap();
    let (_, path) = file.keep().unwrap();
    cluster
        .command()
        .args(["submit", "--batch", path.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn completed(cluster: &Cluster) -> HashMap<String, f64> {
    cluster.nodes().iter().map(|node| (node.text("name").to_owned(), node.number("completed"))).collect()
}

fn rates(cluster: &Cluster) -> HashMap<String, f64> {
    let (before, started) = (completed(cluster), Instant::now());
    thread::sleep(Duration::from_secs(SECONDS));
    let (after, seconds) = (completed(cluster), started.elapsed().as_secs_f64());
    after.into_iter().map(|(name, count)| (name.clone(), (count - before[&name]) / seconds)).collect()
}

fn main() {
    let cluster = Cluster::up(&["--nodes", "0"]);
    let containers: HashMap<&str, String> =
        SIZES.iter().map(|(name, cpus)| (*name, cluster.add_node(name, cpus))).collect();
    let mut batch = backlog(&cluster);
    thread::sleep(Duration::from_secs(6));
    let before = rates(&cluster);
    docker(&["exec", "-d", &containers["large"], "/evenkeel", "burn", "--cores", "1", "--seconds", "120"]);
    thread::sleep(Duration::from_secs(3));

    let large = cluster.node("large").unwrap().text("id").to_owned();
    let (mut looks, mut waited, mut errors) = (0, 0, Vec::new());
    let mut predicted: HashMap<String, f64> = HashMap::new();
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let (counts, started) = (completed(&cluster), Instant::now());
    while Instant::now() < end {
        let nodes = cluster.nodes();
        let over = nodes
            .iter()
            .any(|node| node.text("name") == "large" && node.number("running") > node.number("slots"));
        let free = nodes
            .iter()
            .any(|node| node.text("name") != "large" && node.number("running") < node.number("slots"));
        looks += 1;
        waited += u32::from(over && free);
        let running: Value = cluster
            .try_evenkeel(&["task", "list", "--state", "running", "--node", &large, "-o", "json"])
            .json();
        for task in running["items"].as_array().unwrap() {
            let id = task["id"].as_str().unwrap();
            if !predicted.contains_key(id) {
                let explain = cluster.try_evenkeel(&["task", "explain", id, "-o", "json"]);
                if let Some(ms) = serde_json::from_str::<Value>(&explain.stdout)
                    .ok()
                    .and_then(|why| why["predicted_run_ms"].as_f64())
                {
                    predicted.insert(id.to_owned(), ms);
                }
            }
        }
    }
    let (after, seconds) = (completed(&cluster), started.elapsed().as_secs_f64());
    thread::sleep(Duration::from_secs(2));
    let mut pairs = Vec::new();
    for (id, ms) in &predicted {
        if let Some(took) = cluster.task(id)["run_ms"].as_f64() {
            pairs.push(format!("{ms:.0}/{took:.0}"));
            errors.push((ms / took - 1.0) * 100.0);
        }
    }
    errors.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    println!(
        "looks at the nodes: {looks}; a task waited on the hogged node while another slot was free: {waited}"
    );
    if errors.is_empty() {
        println!("no task of the hogged node was seen running");
    } else {
        println!("predicted/taken in ms: {}", pairs.join(" "));
        let within = errors.iter().filter(|error| error.abs() <= 25.0).count();
        println!(
            "predicted against taken on the hogged node: {} tasks, median error {:.0} %, worst {:.0} %, within 25 %: {within}",
            errors.len(),
            errors[errors.len() / 2],
            errors[errors.len() - 1]
        );
    }
    for (name, _) in SIZES {
        let now = (after[name] - counts[name]) / seconds;
        println!(
            "{name}: {:.2} tasks/s before, {now:.2} with the hog ({:+.1} %)",
            before[name],
            (now / before[name] - 1.0) * 100.0
        );
    }
    batch.kill().unwrap();
    batch.wait().unwrap();
}
