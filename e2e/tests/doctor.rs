//! `evenkeel doctor` on this machine, and on what is wrong with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, Ran, docker, evenkeel, evenkeel_binary, run, try_run, without_own_variables};
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A cluster that is not there, in a state directory of the test's own.
struct Nowhere {
    name: String,
    state: tempfile::TempDir,
}

impl Nowhere {
    fn new(of: &str) -> Self {
        Self { name: format!("t-{}-{of}", std::process::id()), state: tempfile::tempdir().unwrap() }
    }

    fn doctor(&self) -> Command {
        self.doctor_as("json")
    }

    fn doctor_as(&self, format: &str) -> Command {
        let mut command = evenkeel();
        command.args(["doctor", "-o", format, "--cluster", &self.name, "--state-dir"]).arg(self.state.path());
        // The usual port may be somebody else's on the machine that the test runs on.
        command.args(["--listen", &format!("127.0.0.1:{}", free_port())]);
        command
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The findings of this check.
fn of(ran: &Ran, check: &str) -> Vec<Value> {
    let json = ran.json();
    json["items"].as_array().unwrap().iter().filter(|item| item["check"] == check).cloned().collect()
}

fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap_or_else(|| panic!("no {field} in {finding}"))
}

/// The failure of this check, of which there is one, on a machine that is degraded by it.
fn failure(ran: &Ran, check: &str) -> Value {
    assert_eq!((ran.code, ran.json()["verdict"].as_str()), (6, Some("failure")), "{ran:?}");
    let failures: Vec<_> = of(ran, check).into_iter().filter(|item| item["verdict"] == "failure").collect();
    assert_eq!(failures.len(), 1, "{ran:?}");
    failures[0].clone()
}

#[test]
fn this_machine_is_well_and_has_no_cluster_yet() {
    let ran = try_run(&mut Nowhere::new("well").doctor(), "");
    assert_eq!(ran.code, 0, "{ran:?}");
    for check in ["docker", "limits", "socket", "network", "clock", "master", "token", "state", "space"] {
        assert!(!of(&ran, check).is_empty(), "nothing of {check}: {ran:?}");
    }
    let version = docker(&["version", "--format", "{{.Server.Version}}"]);
    assert!(text(&of(&ran, "docker")[0], "what").contains(&version), "{ran:?}");
    assert!(text(&of(&ran, "master")[0], "what").contains("evenkeel up"), "{ran:?}");
}

#[test]
fn a_docker_that_is_named_and_not_there_is_a_failure_and_the_rest_is_looked_at() {
    for host in ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"] {
        let ran = try_run(Nowhere::new("no-docker").doctor().env("DOCKER_HOST", host), "");
        let finding = failure(&ran, "docker");
        assert!(text(&finding, "what").contains(host), "{finding}");
        assert_eq!(text(&finding, "mend"), "unset DOCKER_HOST");
        assert!(text(&finding, "why").contains("processes of this host"), "{finding}");
        assert_eq!(of(&ran, "state").len(), 1, "{ran:?}");
        assert!(of(&ran, "network").is_empty(), "{ran:?}");
    }
}

#[test]
fn a_cluster_that_is_up_is_well_until_its_token_can_be_read_by_others_and_the_command_mends_it() {
    let cluster = Cluster::up_processes(&["--nodes", "1"]);
    let doctor = || cluster.try_evenkeel(&["doctor", "-o", "json"]);
    let ran = doctor();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(text(&of(&ran, "token")[0], "what").contains("scope admin"), "{ran:?}");
    assert!(text(&of(&ran, "master")[0], "what").contains("answers and serves"), "{ran:?}");
    assert!(text(&of(&ran, "ports")[0], "what").contains("this cluster's master"), "{ran:?}");
    assert!(text(&of(&ran, "store")[0], "what").contains("in use by a master"), "{ran:?}");

    let token = cluster.state_dir().join("admin.token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let finding = failure(&doctor(), "token");
    assert!(text(&finding, "what").contains("mode 0644"), "{finding}");
    run(Command::new("sh").args(["-c", text(&finding, "mend")]));
    assert_eq!(doctor().code, 0);

    // A token of some other cluster.
    fs::write(&token, "ek_0123456789012345678901234567890123456789012\n").unwrap();
    let finding = failure(&doctor(), "token");
    assert!(text(&finding, "what").contains("does not take the token"), "{finding}");
}

/// Does what the failure of the master says, as it is printed.
fn mend_master(cluster: &Cluster) -> Ran {
    let finding = failure(&cluster.try_evenkeel(&["doctor", "-o", "json"]), "master");
    let path =
        format!("{}:{}", evenkeel_binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", text(&finding, "mend")]).env("PATH", path);
    let ran = try_run(without_own_variables(&mut shell), "");
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

/// One task that has ended and one that runs; killed; mended; both are there, and the second ends.
fn a_master_comes_back_with_its_tasks(cluster: &Cluster, kill: impl FnOnce()) -> Ran {
    let ended = cluster.submit(&["fib", "20"]);
    cluster.wait_for_task(&ended, "succeeded", 30);
    let runs = cluster.submit(&["burn", "3000"]);
    cluster.wait_for_task(&runs, "running", 30);
    let nodes: Vec<_> = cluster.nodes().iter().map(|node| node.text("id").to_owned()).collect();
    kill();
    let ran = mend_master(cluster);
    assert_eq!(cluster.task(&ended)["result"]["value"], "6765", "{ran:?}");
    let task = cluster.wait_for_task(&runs, "succeeded", 60);
    assert_eq!(task["attempt"], 1, "it went on where it ran: {task}");
    let seen: Vec<_> =
        cluster.wait_for_ready(nodes.len(), 30).iter().map(|it| it.text("id").to_owned()).collect();
    assert_eq!(seen, nodes, "the same nodes");
    assert_eq!(cluster.try_evenkeel(&["doctor", "-o", "json"]).code, 0);
    ran
}

#[test]
fn a_dead_master_of_processes_is_started_again_by_what_is_printed_and_has_its_tasks() {
    let cluster = Cluster::up_processes(&["--nodes", "1"]);
    let kill = |of: &str| {
        run(Command::new("kill").args(["-9", &cluster.pid_of(&format!("evenkeel-{}-{of}", cluster.name))]))
    };
    a_master_comes_back_with_its_tasks(&cluster, || drop(kill("master")));
    // Docker answers here too, and got no second cluster of this name.
    assert_eq!(cluster.containers("master"), [""; 0]);
    assert_eq!(cluster.containers("node"), [""; 0]);
    let ran = cluster.try_evenkeel(&["up", "--detach"]);
    assert!(ran.code == 2 && ran.stderr.contains("is up already"), "{ran:?}");
    let ran = cluster.try_evenkeel(&["up", "--detach", "--runtime", "docker"]);
    assert!(ran.code == 2 && ran.stderr.contains("made of processes"), "{ran:?}");

    kill("manager");
    a_master_comes_back_with_its_tasks(&cluster, || drop(kill("master")));
    cluster.evenkeel(&["node-manager", "scale", "2"]);
    cluster.wait_for_ready(2, 30);
}

#[test]
fn a_dead_master_in_a_container_is_started_again_by_what_is_printed_and_has_its_tasks() {
    let cluster = Cluster::up(&["--nodes", "1", "--tls", "auto"]);
    let kill = |of: &str| docker(&["kill", &format!("evenkeel-{}-{of}", cluster.name)]);
    let of = |role: &str| docker(&["inspect", "-f", "{{.Id}}", &cluster.containers(role)[0]]);
    let master = of("master");
    kill("manager");
    a_master_comes_back_with_its_tasks(&cluster, || drop(kill("master")));
    assert_eq!(of("master"), master, "the same container");
    cluster.evenkeel(&["node-manager", "scale", "2"]);
    cluster.wait_for_ready(2, 60);
}

/// A small file system of its own.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Self {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(path));
        Self(path.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

#[test]
fn a_full_state_directory_is_a_failure() {
    let nowhere = Nowhere::new("full");
    let small = Small::mount(nowhere.state.path());
    // Whatever still fits of it.
    let _ = fs::write(small.0.join("ballast"), vec![1; 2 << 20]);
    let ran = try_run(&mut nowhere.doctor(), "");
    let finding = failure(&ran, "state");
    assert!(text(&finding, "what").contains("No space left"), "{finding}");
    assert!(text(&finding, "mend").contains("df -h"), "{finding}");
    assert!(text(&failure(&ran, "space"), "what").contains("MiB free"), "{ran:?}");
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 1, "the trial is taken away");
}

#[test]
fn a_port_that_another_program_has_is_named_with_its_holder_and_a_free_one() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let nowhere = Nowhere::new("port");
    let mut doctor = evenkeel();
    doctor.args(["doctor", "-o", "json", "--listen", &address, "--state-dir"]).arg(nowhere.state.path());
    let finding = failure(&try_run(&mut doctor, ""), "ports");
    assert!(text(&finding, "what").contains(&format!("pid {}", std::process::id())), "{finding}");
    let mend = text(&finding, "mend");
    let free = mend.split("--listen ").nth(1).unwrap();
    assert!(free != address && TcpListener::bind(free).is_ok(), "{finding}");
}

/// A network of Docker's, with a subnet of its choice.
struct Network(String);

impl Drop for Network {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.0]);
    }
}

#[test]
fn a_subnet_that_another_network_has_is_named_with_a_free_one() {
    let nowhere = Nowhere::new("subnet");
    let network = Network(format!("evenkeel-{}", nowhere.name));
    docker(&["network", "create", &network.0]);
    let subnet = docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", &network.0]);
    let doctor = |subnet: &str| try_run(nowhere.doctor().args(["--subnet", subnet]), "");
    let finding = failure(&doctor(&subnet), "network");
    assert!(text(&finding, "what").contains(&network.0), "{finding}");
    let free = text(&finding, "mend").split("--subnet ").nth(1).unwrap().to_owned();
    let ran = doctor(&free);
    assert_eq!(ran.code, 0, "{ran:?}");

    assert_eq!(doctor("172.18.0.0").code, 2);
}

#[test]
fn the_table_is_for_people() {
    let nowhere = Nowhere::new("table");
    let mut doctor = nowhere.doctor_as("table");
    let ran = try_run(doctor.env("DOCKER_HOST", "tcp://127.0.0.1:1"), "");
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stdout.contains("mend: unset DOCKER_HOST") && !ran.stdout.contains('\u{1b}'), "{ran:?}");
    assert!(ran.stderr.contains("1 failure"), "{ran:?}");
    let ran = try_run(doctor.args(["--color", "always"]), "");
    assert!(ran.stdout.contains('\u{1b}'), "{ran:?}");
}
