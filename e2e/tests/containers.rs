//! How containers are made: hardened, without secrets, small, quickly, and gone afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, docker, evenkeel_binary, eventually};
use serde_json::{Value, json};

fn inspect(container: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["inspect", container])).unwrap()[0].take()
}

#[test]
fn every_container_is_hardened_and_none_shows_a_token() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    let all = [cluster.containers("master"), cluster.containers("manager"), cluster.containers("node")];
    assert_eq!(all.each_ref().map(Vec::len), [1, 1, 2], "{all:?}");
    for container in all.iter().flatten() {
        let whole = inspect(container);
        let host = &whole["HostConfig"];
        assert_eq!(host["ReadonlyRootfs"], true, "{container}");
        assert_eq!(host["CapDrop"], json!(["ALL"]), "{container}");
        assert!(
            host["SecurityOpt"].to_string().contains("no-new-privileges"),
            "{container}: {}",
            host["SecurityOpt"]
        );
        assert!(
            whole["Config"]["User"].as_str().unwrap().starts_with("65532"),
            "{container}: {}",
            whole["Config"]["User"]
        );
        assert!(host["PidsLimit"].as_i64().unwrap() > 0, "{container}");
        assert_eq!(
            host["RestartPolicy"]["Name"].as_str().unwrap_or("no"),
            "no",
            "replaced, never restarted: {container}"
        );
        assert_eq!(host["Privileged"], false, "{container}");
        assert!(!whole.to_string().contains("ek_"), "{container} shows a token");
    }
    for node in cluster.containers("node") {
        let host = inspect(&node)["HostConfig"].take();
        assert!(host["NanoCpus"].as_i64().unwrap() > 0, "{node}");
        assert!(host["Memory"].as_i64().unwrap() > 0, "{node}");
        assert_eq!(host["MemorySwap"], host["Memory"], "no swap beside the limit: {node}");
        assert!(host["Tmpfs"]["/tmp"].as_str().unwrap().contains("size="), "{node}");
        assert!(!host.to_string().contains("docker.sock"), "{node} has the Docker socket");
    }
}

#[test]
fn down_leaves_no_container_network_or_volume() {
    let name = {
        let cluster = Cluster::up(&["--nodes", "2"]);
        cluster.evenkeel(&["submit", "fib", "20"]);
        cluster.name.clone()
    };
    for listing in [
        &["ps", "-a", "--format", "{{.Names}}"][..],
        &["network", "ls", "--format", "{{.Name}}"],
        &["volume", "ls", "--format", "{{.Name}}"],
    ] {
        let left = docker(listing);
        assert!(!left.lines().any(|line| line.contains(&name)), "left by down: {left}");
    }
}

#[test]
fn the_image_is_small_and_static_and_not_built_without_need() {
    let binary = std::fs::read(evenkeel_binary()).unwrap();
    let headers = (
        u16::from_le_bytes([binary[56], binary[57]]),
        u64::from_le_bytes(binary[32..40].try_into().unwrap()),
    );
    let interpreter = (0..u64::from(headers.0)).any(|at| {
        let header = usize::try_from(headers.1 + at * 56).unwrap();
        binary[header..header + 4] == [3, 0, 0, 0]
    });
    assert!(!interpreter, "PT_INTERP: the binary needs a loader that an empty image does not have");

    let cluster = Cluster::up(&["--nodes", "1"]);
    let id = docker(&["inspect", "--format", "{{.Id}} {{.Created}}", "evenkeel:latest"]);
    cluster.evenkeel(&["image", "build"]);
    assert_eq!(
        docker(&["inspect", "--format", "{{.Id}} {{.Created}}", "evenkeel:latest"]),
        id,
        "the same program, the same image"
    );
    let bytes: u64 = docker(&["inspect", "--format", "{{.Size}}", "evenkeel:latest"]).parse().unwrap();
    assert!(bytes <= 20_000_000, "the image has {bytes} bytes");
}

/// Resident memory of a container's processes, in bytes, as the kernel tells of its PID 1.
fn resident_bytes(container: &str) -> u64 {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn master_and_nodes_are_small_at_rest() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    cluster.evenkeel(&["submit", "fib", "20"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    for node in cluster.containers("node") {
        let bytes = resident_bytes(&node);
        assert!(bytes <= 15 << 20, "node at rest: {bytes} bytes");
    }
    let master = resident_bytes(&cluster.containers("master")[0]);
    assert!(master <= 40 << 20, "master at rest: {master} bytes");
}

#[test]
fn twenty_nodes_are_kept_and_work() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    cluster.evenkeel(&["node-manager", "scale", "20"]);
    // The bound is wide because other work may share the machine; the figure is measured by hand.
    cluster.wait_for_ready(20, 60);
    cluster.evenkeel(&["submit", "fib", "20"]);
    cluster.evenkeel(&["node-manager", "scale", "0"]);
    eventually("all are gone", 90, || {
        if cluster.containers("node").is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", cluster.containers("node")))
        }
    });
}
