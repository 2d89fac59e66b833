//! CPU as the master shows it, held against Docker's own figures, and work shared by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, docker};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

/// CPU time that a container has used so far, in seconds, as Docker tells it.
fn cpu_seconds(container: &str) -> f64 {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in groups.lines() {
        let parts: Vec<_> = line.splitn(3, ':').collect();
        if parts[1].split(',').any(|controller| controller == "cpuacct") {
            let usage =
                std::fs::read_to_string(format!("/sys/fs/cgroup/cpuacct{}/cpuacct.usage", parts[2])).unwrap();
            return usage.trim().parse::<f64>().unwrap() / 1e9;
        }
        if parts[1].is_empty() && !std::path::Path::new("/sys/fs/cgroup/cpuacct").exists() {
            let stat = std::fs::read_to_string(format!("/sys/fs/cgroup{}/cpu.stat", parts[2])).unwrap();
            let line = stat.lines().find(|line| line.starts_with("usage_usec")).unwrap();
            return line.split(' ').nth(1).unwrap().parse::<f64>().unwrap() / 1e6;
        }
    }
    panic!("no CPU accounting for {container}: {groups}");
}

#[test]
fn the_cpu_percent_of_the_master_is_that_of_docker_within_five_points() {
    let cluster = Cluster::up(&["--nodes", "0"]);
    for (name, cpus, burn) in [("quarter", "0.25", "0.15"), ("half", "0.5", "0.4"), ("one", "1", "0.5")] {
        let container = cluster.add_node(name, cpus);
        docker(&["exec", "-d", &container, "/evenkeel", "burn", "--cores", burn, "--seconds", "30"]);
        thread::sleep(Duration::from_secs(3));
        let (mut shown, started, before) = (Vec::new(), Instant::now(), cpu_seconds(&container));
        while started.elapsed() < Duration::from_secs(6) {
            shown.push(cluster.node(name).unwrap().number("cpu.percent"));
            thread::sleep(Duration::from_millis(400));
        }
        let used = (cpu_seconds(&container) - before) / started.elapsed().as_secs_f64();
        let docker_percent = used / cpus.parse::<f64>().unwrap() * 100.0;
        let mean = shown.iter().sum::<f64>() / shown.len() as f64;
        assert!(
            (mean - docker_percent).abs() <= 5.0,
            "{name}: master {mean:.1} %, Docker {docker_percent:.1} %, samples {shown:.0?}"
        );
        docker(&["rm", "-f", &container]);
    }
}

#[test]
fn equal_tasks_are_shared_by_capacity() {
    let cluster = Cluster::up(&["--nodes", "0"]);
    let sizes = [("small", "0.2"), ("middle", "0.4"), ("large", "0.8")];
    let containers: BTreeMap<&str, String> =
        sizes.iter().map(|(name, cpus)| (*name, cluster.add_node(name, cpus))).collect();
    let before: BTreeMap<&str, f64> =
        containers.iter().map(|(name, container)| (*name, cpu_seconds(container))).collect();
    let lines = "{\"kind\":\"fib\",\"input\":{\"n\":34}}\n".repeat(300);
    let ran = e2e::try_run(cluster.command().args(["submit", "--batch", "-"]), &lines);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout.lines().filter(|line| line.contains(r#""value":"5702887""#)).count(), 300);
    let used: BTreeMap<&str, f64> =
        containers.iter().map(|(name, container)| (*name, cpu_seconds(container) - before[name])).collect();
    let all: f64 = used.values().sum();
    for (name, cpus) in sizes {
        let (share, fair) = (used[name] / all, cpus.parse::<f64>().unwrap() / 1.4);
        assert!(
            (share / fair - 1.0).abs() <= 0.15,
            "{name} did {share:.3} of the work, its share of capacity is {fair:.3}: {used:?}"
        );
    }
}
