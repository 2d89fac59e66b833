//! Prints what a CPU hog inside one node's container does to placement:
//! `cargo run --release -p e2e --example hog`.
//!
//! Nodes of 0.2, 0.4 and 0.8 cores work off a backlog of equal tasks; then `evenkeel burn` starts inside the
//! largest. Printed are, from 3 s later: how often a task waited on that node while another slot was free, how
//! far its predicted times are off, and the throughput of the other nodes before and after. Times are predicted when
//! a task is sent, and anew while it runs: the kernel puts the hog and the task on two CPUs or on one, as it likes,
//! which nobody knows beforehand.
//!
//! A task uses some seconds of CPU, so that the 100 ms periods of the CFS quota are small against it. The
//! throughput of a node is counted from its first end of a task to its last, so that whole tasks are counted.

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
    collections::{BTreeMap, HashMap},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

const WARM_UP: Duration = Duration::from_secs(20);
const WINDOW: Duration = Duration::from_secs(120);
/// From when on the time predicted anew counts: two reports.
const ANEW_AFTER: Duration = Duration::from_secs(1);
const SIZES: [(&str, &str); 3] = [("small", "0.2"), ("middle", "0.4"), ("large", "0.8")];

fn backlog(cluster: &Cluster) -> Child {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"kind\":\"fib\",\"input\":{\"n\":43}}\n".repeat(2_000)).unwrap();
    let (_, path) = file.keep().unwrap();
    cluster
        .command()
        .args(["submit", "--batch", path.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Tasks in this state on this node.
fn tasks(cluster: &Cluster, state: &str, node: &str) -> Vec<Value> {
    let list = ["task", "list", "--state", state, "--node", node, "--limit", "500", "-o", "json"];
    cluster.try_evenkeel(&list).json()["items"].as_array().unwrap().clone()
}

fn seconds(time: &Value) -> f64 {
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    time.as_nanosecond() as f64 / 1e9
}

fn now_s() -> f64 {
    jiff::Timestamp::now().as_nanosecond() as f64 / 1e9
}

/// What a node did in a window: tasks per second, and CPU milliseconds of one.
fn pace(cluster: &Cluster, node: &str, from: jiff::Timestamp, to: jiff::Timestamp) -> (f64, f64) {
    let (from, to) = (from.as_nanosecond() as f64 / 1e9, to.as_nanosecond() as f64 / 1e9);
    let within: Vec<(f64, f64)> = tasks(cluster, "succeeded", node)
        .iter()
        .map(|task| (seconds(&task["finished_at"]), task["cpu_ms"].as_f64().unwrap()))
        .filter(|(at, _)| (from..=to).contains(at))
        .collect();
    let ends = || within.iter().map(|(at, _)| *at);
    let (first, last) = (ends().fold(f64::MAX, f64::min), ends().fold(f64::MIN, f64::max));
    let count = within.len() as f64;
    ((count - 1.0) / (last - first), within.iter().map(|(_, cpu)| cpu).sum::<f64>() / count)
}

/// What was predicted of a task's running time, in milliseconds.
#[derive(Default)]
struct Predicted {
    /// When it was sent.
    sent_ms: f64,
    /// At the first look after it had run for [`ANEW_AFTER`].
    anew_ms: Option<f64>,
}

/// Watches the hogged node for a window: looks, looks at which a task waited there while another slot was free,
/// and what was predicted for each task that was sent meanwhile and seen running.
fn watch(cluster: &Cluster, large: &str) -> (u32, u32, BTreeMap<String, Predicted>) {
    let (mut looks, mut waited, mut predicted) = (0, 0, BTreeMap::new());
    let (began_s, end) = (now_s(), Instant::now() + WINDOW);
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
        let sent_since = |task: &Value| seconds(&task["started_at"]) >= began_s;
        for task in tasks(cluster, "running", large).into_iter().filter(sent_since) {
            let id = task["id"].as_str().unwrap();
            let started_s = seconds(&task["started_at"]);
            let late = now_s() - started_s >= ANEW_AFTER.as_secs_f64();
            let known: &mut Predicted = predicted.entry(id.to_owned()).or_default();
            if known.sent_ms > 0.0 && (known.anew_ms.is_some() || !late) {
                continue;
            }
            let why: Value = cluster.try_evenkeel(&["task", "explain", id, "-o", "json"]).json();
            known.sent_ms = why["predicted_run_ms"].as_f64().unwrap_or(known.sent_ms);
            if late {
                let left_ms = why["remaining_ms"].as_f64();
                known.anew_ms = left_ms.map(|left_ms| (now_s() - started_s) * 1e3 + left_ms);
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    (looks, waited, predicted)
}

/// Prints pairs of predicted and taken milliseconds.
fn print_errors(what: &str, pairs: &[(f64, f64)]) {
    let shown: Vec<String> = pairs.iter().map(|(ms, took)| format!("{ms:.0}/{took:.0}")).collect();
    let mut errors: Vec<f64> = pairs.iter().map(|(ms, took)| (ms / took - 1.0) * 100.0).collect();
    errors.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let within = errors.iter().filter(|error: &&f64| error.abs() <= 25.0).count();
    println!("{what}: predicted/taken in ms: {}", shown.join(" "));
    println!(
        "{what}: {} tasks, median error {:.0} %, worst {:.0} %, within 25 %: {within}",
        errors.len(),
        errors.get(errors.len() / 2).unwrap_or(&f64::NAN),
        errors.last().unwrap_or(&f64::NAN)
    );
}

fn main() {
    let cluster = Cluster::up(&["--nodes", "0"]);
    let containers: HashMap<&str, String> =
        SIZES.iter().map(|(name, cpus)| (*name, cluster.add_node(name, cpus))).collect();
    let id = |name: &str| cluster.node(name).unwrap().text("id").to_owned();
    let mut batch = backlog(&cluster);
    thread::sleep(WARM_UP);
    let before = jiff::Timestamp::now();
    // The same looks as with the hog, so that they cost the same.
    let (_, _, predicted_alone) = watch(&cluster, &id("large"));
    let hogged = jiff::Timestamp::now();
    let hog_s = (WINDOW + WARM_UP).as_secs().to_string();
    docker(&["exec", "-d", &containers["large"], "/evenkeel", "burn", "--cores", "1", "--seconds", &hog_s]);
    thread::sleep(Duration::from_secs(3));
    let after = jiff::Timestamp::now();
    let (looks, waited, predicted) = watch(&cluster, &id("large"));
    let end = jiff::Timestamp::now();
    thread::sleep(Duration::from_secs(5));
    println!(
        "looks at the nodes: {looks}; a task waited on the hogged node while another slot was free: {waited}"
    );
    for (when, predicted) in [("before", predicted_alone), ("with the hog", predicted)] {
        let took: HashMap<&str, f64> = predicted
            .keys()
            .filter_map(|id| Some((id.as_str(), cluster.task(id)["run_ms"].as_f64()?)))
            .collect();
        let of = |which: fn(&Predicted) -> Option<f64>| -> Vec<(f64, f64)> {
            predicted
                .iter()
                .filter_map(|(id, known)| Some((which(known)?, *took.get(id.as_str())?)))
                .collect()
        };
        print_errors(
            &format!("large, {when}, when sent"),
            &of(|known| (known.sent_ms > 0.0).then_some(known.sent_ms)),
        );
        print_errors(
            &format!("large, {when}, after {} s", ANEW_AFTER.as_secs_f64()),
            &of(|known| known.anew_ms),
        );
    }
    for (name, _) in SIZES {
        let (was, was_cpu) = pace(&cluster, &id(name), before, hogged);
        let (now, now_cpu) = pace(&cluster, &id(name), after, end);
        println!(
            "{name}: {was:.3} tasks/s before, {now:.3} with the hog ({:+.1} %); CPU a task {was_cpu:.0} ms, {now_cpu:.0} ms ({:+.1} %); cores for tasks {:.3}, {:.3} ({:+.1} %)",
            (now / was - 1.0) * 100.0,
            (now_cpu / was_cpu - 1.0) * 100.0,
            was * was_cpu / 1e3,
            now * now_cpu / 1e3,
            (now * now_cpu / (was * was_cpu) - 1.0) * 100.0
        );
    }
    batch.kill().unwrap();
    batch.wait().unwrap();
}
