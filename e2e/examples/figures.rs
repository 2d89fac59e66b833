//! Prints the sizes and times of a cluster on this machine: `cargo run --release -p e2e --example figures`.
//! These are figures for people; no test asserts the times, because they move with the machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program for developers"
)]

use e2e::{Cluster, Node, docker};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

fn pid(container: &str) -> String {
    docker(&["inspect", "--format", "{{.State.Pid}}", container])
}

fn resident_mib(container: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid(container))).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// CPU time of a container's first process, in seconds, to the nanosecond (all its threads).
fn cpu_seconds(container: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid(container))).unwrap();
    let run_ns = |task: fs::DirEntry| -> f64 {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0)
    };
    tasks.map(|task| run_ns(task.unwrap())).sum::<f64>() / 1e9
}

fn millis(text: &str) -> f64 {
    let seconds = std::process::Command::new("date").args(["-d", text, "+%s.%N"]).output().unwrap();
    String::from_utf8(seconds.stdout).unwrap().trim().parse::<f64>().unwrap() * 1e3
}

fn main() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let bytes: f64 = docker(&["inspect", "--format", "{{.Size}}", "evenkeel:latest"]).parse().unwrap();
    println!("image: {:.2} MB", bytes / 1e6);

    thread::sleep(Duration::from_secs(5));
    let node = cluster.containers("node").remove(0);
    let master = cluster.containers("master").remove(0);
    println!(
        "at rest: node {:.1} MiB, master {:.1} MiB resident",
        resident_mib(&node),
        resident_mib(&master)
    );

    let (before, started) = (cpu_seconds(&node), Instant::now());
    thread::sleep(Duration::from_secs(30));
    let used = (cpu_seconds(&node) - before) / started.elapsed().as_secs_f64();
    println!("node at rest with its reports: {:.3} % of a core", used * 100.0);

    let mut replaced = Vec::new();
    for how in [&["kill", "-s", "KILL"][..], &["rm", "-f"], &["stop", "-t", "1"]] {
        let id = || {
            docker(&[
                "ps",
                "-aq",
                "--no-trunc",
                "--filter",
                &format!("name=^{node}$"),
                "--filter",
                "status=running",
            ])
        };
        let before = id();
        docker(&[how, &[&node]].concat());
        let started = Instant::now();
        while [String::new(), before.clone()].contains(&id()) {
            thread::sleep(Duration::from_millis(20));
        }
        replaced.push(format!("docker {} {:.1} s", how[0], started.elapsed().as_secs_f64()));
        cluster.wait_for_ready(2, 30);
        thread::sleep(Duration::from_secs(12));
    }
    println!("gone to running again: {}", replaced.join(", "));

    let started = Instant::now();
    cluster.evenkeel(&["node-manager", "scale", "20"]);
    let nodes = cluster.wait_for_ready(20, 60);
    println!("2 to 20 nodes ready: {:.1} s", started.elapsed().as_secs_f64());
    let ready = |node: &Node| {
        let created = docker(&["inspect", "--format", "{{.Created}}", node.text("name")]);
        millis(node.text("registered_at")) - millis(&created)
    };
    let mut times: Vec<f64> = nodes.iter().map(ready).collect();
    times.sort_by(f64::total_cmp);
    println!(
        "created to registered, 20 nodes of which 18 at once: median {:.0} ms, worst {:.0} ms",
        times[times.len() / 2],
        times[times.len() - 1]
    );

    cluster.evenkeel(&["node-manager", "scale", "1"]);
    thread::sleep(Duration::from_secs(15));
    let mut alone = Vec::new();
    for count in 2..=6 {
        cluster.evenkeel(&["node-manager", "scale", &count.to_string()]);
        let nodes = cluster.wait_for_ready(count, 30);
        alone.push(ready(nodes.iter().max_by_key(|node| node.text("registered_at").to_owned()).unwrap()));
    }
    alone.sort_by(f64::total_cmp);
    println!(
        "created to registered, one at a time: median {:.0} ms, worst {:.0} ms of {}",
        alone[alone.len() / 2],
        alone[alone.len() - 1],
        alone.len()
    );
}
