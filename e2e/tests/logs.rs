//! What tasks print, as a user reads it: while they run and after, from containers and processes that live or not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, docker, eventually};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Stdio},
    time::Duration,
};

/// A process that is killed when this is dropped.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn follow(cluster: &Cluster, id: &str) -> Following {
    let mut command = cluster.command();
    command.args(["task", "logs", "-f", id]).stdout(Stdio::piped()).stderr(Stdio::piped());
    Following(command.spawn().unwrap())
}

/// One stream of a log, as `task logs` prints it to the stream of the same name.
fn log(cluster: &Cluster, id: &str, stream: &str) -> String {
    let ran = cluster.try_evenkeel(&["task", "logs", "--stream", stream, id]);
    assert_eq!(ran.code, 0, "{ran:?}");
    if stream == "stdout" { ran.stdout } else { ran.stderr }
}

fn shell(cluster: &Cluster, script: &str) -> String {
    cluster.submit(&["run", "--", "/bin/sh", "-c", script])
}

/// Memory of a process that is resident, in bytes.
fn rss_bytes(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The process of the node that runs this task, which its shell has written to standard error as `$PPID`.
fn node_of(cluster: &Cluster, id: &str) -> String {
    eventually("the shell has told its parent", 20, || {
        let told = log(cluster, id, "stderr");
        told.lines().next().filter(|_| told.contains('\n')).map(str::to_owned).ok_or(told)
    })
}

#[test]
fn a_command_is_followed_while_it_runs_and_read_after_its_node_was_killed() {
    let cluster = Cluster::up_processes(&["--nodes", "1"]);
    let place = tempfile::tempdir().unwrap();
    let go_on = place.path().join("go-on");
    let script = format!(
        "echo $PPID >&2; echo out; until [ -e {} ]; do sleep 0.05; done; echo err >&2; echo done",
        go_on.display()
    );
    let id = shell(&cluster, &script);
    let mut following = follow(&cluster, &id);
    let mut stdout = BufReader::new(following.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "out\n");
    assert_eq!(cluster.task(&id)["state"], "running");
    assert_eq!(log(&cluster, &id, "stdout"), "out\n", "without following it ends at once");
    fs::write(&go_on, "").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "done\n");
    let mut errors = String::new();
    following.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.ends_with("\nerr\n"), "{errors}");
    assert_eq!(following.0.wait().unwrap().code(), Some(0));

    let node = log(&cluster, &id, "stderr").lines().next().unwrap().to_owned();
    let killed = e2e::try_run(std::process::Command::new("kill").args(["-9", &node]), "");
    assert_eq!(killed.code, 0, "{killed:?}");
    let ran = cluster.try_evenkeel(&["task", "logs", &id]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "out\ndone\n"), "{ran:?}");
    assert_eq!(ran.stderr, format!("{node}\nerr\n"));

    let unknown = "01930000-0000-7000-8000-000000000001";
    let ran = cluster.try_evenkeel(&["task", "logs", unknown]);
    assert!(ran.code == 2 && ran.stderr.contains(unknown), "{ran:?}");
}

#[test]
fn a_program_that_prints_ten_gigabytes_costs_no_memory_and_its_neighbour_finishes() {
    const PRINTED: u64 = 10_000_000_000;
    let cluster = Cluster::up_processes(&["--nodes", "1"]);
    let hog = shell(&cluster, &format!("echo $PPID >&2; yes 0123456789abcde | head -c {PRINTED}; echo end"));
    let node = node_of(&cluster, &hog);
    // One who follows and never reads.
    let slow = follow(&cluster, &hog);
    let neighbour = cluster.submit(&["fib", "25"]);
    let done = cluster.wait_for_task(&neighbour, "succeeded", 60);
    assert_eq!(done["result"]["value"], "75025", "{done}");
    assert_eq!(cluster.task(&hog)["state"], "running", "the neighbour did not wait for it");
    let mut most = 0;
    let ended = eventually("all is printed", 600, || {
        most = most.max(rss_bytes(&node));
        let task = cluster.task(&hog);
        std::thread::sleep(Duration::from_millis(200));
        if task["state"] == "running" { Err(task.to_string()) } else { Ok(task) }
    });
    most = most.max(rss_bytes(&node));
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert!(most < 64 << 20, "the node took {most} bytes");
    drop(slow);
    let ran = cluster.try_evenkeel(&["task", "logs", &hog, "--stream", "stdout"]);
    assert_eq!((ran.code, ran.stdout.len()), (0, 1 << 20), "the last MiB is kept");
    assert!(ran.stdout.ends_with("0123456789abcde\nend\n"));
    let dropped = PRINTED + 4 - (1 << 20);
    assert!(ran.stderr.contains(&format!("{dropped} bytes of stdout are not kept")), "{}", ran.stderr);
}

#[test]
fn what_a_container_printed_outlives_it_and_the_master() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    // The node's image holds nothing but our own program, which can print something.
    let id = cluster.submit(&["run", "--", "/evenkeel", "completions", "bash"]);
    let mut following = follow(&cluster, &id);
    let mut followed = String::new();
    following.0.stdout.take().unwrap().read_to_string(&mut followed).unwrap();
    assert_eq!(following.0.wait().unwrap().code(), Some(0));
    let expected = cluster.evenkeel(&["completions", "bash"]);
    assert_eq!(followed.trim(), expected);
    for container in cluster.containers("node") {
        docker(&["kill", "-s", "KILL", &container]);
    }
    let master = cluster.containers("master").remove(0);
    docker(&["kill", "-s", "KILL", &master]);
    docker(&["start", &master]);
    eventually("the next master has the log", 30, || {
        let ran = cluster.try_evenkeel(&["task", "logs", &id]);
        if ran.code == 0 && ran.stdout.trim() == expected { Ok(()) } else { Err(format!("{ran:?}")) }
    });
}

#[test]
fn a_follower_goes_on_where_it_was_when_the_master_is_killed_and_started_again() {
    let cluster = Cluster::up(&["--nodes", "1"]);
    // Nothing is printed while the task runs, but that it ends is to be seen.
    let id = cluster.submit(&["sleep", "6000"]);
    cluster.wait_for_task(&id, "running", 20);
    let mut following = follow(&cluster, &id);
    std::thread::sleep(Duration::from_millis(500));
    let master = cluster.containers("master").remove(0);
    docker(&["kill", "-s", "KILL", &master]);
    docker(&["start", &master]);
    let mut errors = String::new();
    following.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((following.0.wait().unwrap().code(), errors.as_str()), (Some(0), ""));
    assert_eq!(cluster.task(&id)["state"], "succeeded");
}
