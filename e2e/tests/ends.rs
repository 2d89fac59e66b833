//! Limits, retries, priorities, labels, keys and batches as a user of the command line sees them. Host processes
//! are enough for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, eventually, run, try_run};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read, Write as _},
    process::{Child, Command, Stdio},
};

/// A task that has failed: its error code and its attempts.
fn failure(cluster: &Cluster, id: &str) -> (String, u64) {
    let task = cluster.wait_for_task(id, "failed", 30);
    (task["error"]["code"].as_str().unwrap().to_owned(), task["attempt"].as_u64().unwrap())
}

fn listed(cluster: &Cluster, label: &str) -> Vec<Value> {
    let page = cluster.evenkeel(&["task", "list", "--label", label, "--limit", "1000", "-o", "json"]);
    serde_json::from_str::<Value>(&page).unwrap()["items"].as_array().unwrap().clone()
}

#[test]
fn limits_end_a_task_and_its_error_names_the_one_that_did() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--cpus", "0.9"]);
    let ran = cluster.try_evenkeel(&["submit", "sleep", "600000", "--timeout", "300ms"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("timeout"), "{ran:?}");
    let retried = cluster.submit(&[
        "sleep",
        "600000",
        "--timeout",
        "200ms",
        "--retry-on",
        "timeout",
        "--max-attempts",
        "2",
    ]);
    assert_eq!(failure(&cluster, &retried), ("timeout".to_owned(), 2));
    let failing = ["submit", "--detach", "--max-attempts", "3", "--retry-on", "task_error", "run", "--"];
    let failing = cluster.evenkeel(&[&failing[..], &["/bin/false"]].concat());
    assert_eq!(failure(&cluster, &failing), ("task_error".to_owned(), 3));
    let both = ["--timeout", "1h", "--deadline", "1s", "--retry-on", "timeout"];
    let running = cluster.submit(&[&["sleep", "600000"], &both[..]].concat());
    assert_eq!(failure(&cluster, &running), ("deadline".to_owned(), 1));
    let blocks = cluster.submit(&["sleep", "600000"]);
    cluster.wait_for_task(&blocks, "running", 20);
    let waiting = cluster.submit(&["fib", "10", "--deadline", "500ms"]);
    assert_eq!(failure(&cluster, &waiting), ("deadline".to_owned(), 0));
    let over = cluster.try_evenkeel(&["task", "wait", &blocks, "--wait-for", "1s"]);
    assert_eq!(over.code, 5, "{over:?}");
    for (id, code) in [(&blocks, 0), (&blocks, 1)] {
        assert_eq!(cluster.try_evenkeel(&["task", "cancel", id]).code, code, "a second cancel is refused");
    }
    assert_eq!(cluster.try_evenkeel(&["task", "wait", &blocks]).code, 1);
}

#[test]
fn urgent_tasks_go_first_labels_find_them_and_a_key_is_one_task() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--cpus", "0.9"]);
    let blocks = cluster.submit(&["sleep", "600000"]);
    cluster.wait_for_task(&blocks, "running", 20);
    let prior = |priority| {
        let tagged = ["--label", "shift=night", "--label", "team=red", "--priority", priority];
        cluster.submit(&[&["sleep", "20"], &tagged[..]].concat())
    };
    let (low, normal, high) = (prior("-7"), prior("0"), prior("100"));
    cluster.evenkeel(&["task", "cancel", &blocks]);
    let started =
        |id: &str| cluster.wait_for_task(id, "succeeded", 30)["started_at"].as_str().unwrap().to_owned();
    let (low, normal, high) = (started(&low), started(&normal), started(&high));
    assert!(high < normal && normal < low, "{high} {normal} {low}");
    assert_eq!(listed(&cluster, "shift=night").len(), 3);
    assert_eq!(listed(&cluster, "shift=day").len(), 0);

    // A cancel needs all of its labels, and takes what runs and what waits.
    let tagged = |labels: &[&str]| cluster.submit(&[&["sleep", "600000"], labels].concat());
    let night = tagged(&["--label", "shift=night2", "--label", "team=red"]);
    let day = tagged(&["--label", "shift=day2", "--label", "team=red"]);
    let both = ["task", "cancel", "--label", "shift=night2", "--label", "team=red"];
    assert_eq!(cluster.evenkeel(&both), "1");
    assert_eq!(cluster.task(&night)["state"], "cancelled");
    assert_eq!(cluster.evenkeel(&["task", "cancel", "--label", "team=red"]), "1");
    assert_eq!(
        (&cluster.task(&day)["state"], cluster.evenkeel(&both)),
        (&"cancelled".into(), "0".to_owned())
    );

    let keyed = |n| ["submit", "--detach", "--key", "nightly", "fib", n];
    let first = cluster.evenkeel(&keyed("20"));
    assert_eq!(cluster.evenkeel(&keyed("20")), first);
    cluster.wait_for_task(&first, "succeeded", 20);
    assert_eq!(cluster.evenkeel(&["submit", "--key", "nightly", "fib", "20"]), r#"{"value":"6765"}"#);
    let other = cluster.try_evenkeel(&keyed("21"));
    assert_eq!(other.code, 2, "{other:?}");
    assert!(other.stderr.contains("Idempotency-Key"), "{other:?}");
}

#[test]
fn a_task_runs_elsewhere_when_it_said_so_and_its_frozen_node_is_not_counted_twice() {
    let cluster = Cluster::up_processes(&["--nodes", "2"]);
    let signal = |node: &str, signal: &str| {
        run(Command::new("kill").args([signal, &cluster.pid_of(node)]));
    };
    let patient = cluster.submit(&["sleep", "3000", "--rerun-after", "1h"]);
    let node = cluster.node_of(&patient, 20);
    signal(&node, "-STOP");
    cluster.wait_for_node(&node, "lost", 30);
    assert_eq!(cluster.task(&patient)["state"], "running");
    signal(&node, "-CONT");
    let task = cluster.wait_for_task(&patient, "succeeded", 60);
    assert_eq!(task["attempt"], 1, "{task}");
    cluster.wait_for_ready(2, 30);
    let hasty = cluster.submit(&["sleep", "4000", "--rerun-after", "1ms"]);
    let node = cluster.node_of(&hasty, 20);
    signal(&node, "-STOP");
    let elsewhere = eventually("it runs elsewhere", 30, || {
        let task = cluster.task(&hasty);
        if task["attempt"] == 2 { Ok(task) } else { Err(task.to_string()) }
    });
    signal(&node, "-CONT");
    assert_ne!(elsewhere["node"].as_str(), Some(cluster.node(&node).unwrap().text("id")));
    let task = cluster.wait_for_task(&hasty, "succeeded", 60);
    assert_eq!(task["attempt"], 2, "{task}");
    // The slot of the attempt that lost is free again.
    eventually("nothing runs any more", 30, || {
        let nodes = cluster.nodes();
        let idle = nodes.iter().all(|node| node.text("status") == "ready" && node.number("running") == 0.0);
        if idle { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
}

#[test]
fn what_waits_behind_a_long_task_is_cancelled_keeps_its_timeout_and_goes_elsewhere_by_a_drain() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--cpus", "0.9"]);
    let accepted = |lines: &[Value]| -> Vec<String> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let ran = try_run(cluster.command().args(["submit", "--batch", "-", "--detach"]), &text);
        assert_eq!(ran.code, 0, "{ran:?}");
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        ran.stdout.lines().map(id).collect()
    };
    let taught = json!({"kind": "run", "input": {"argv": ["true"]}});
    let long = json!({"kind": "run", "input": {"argv": ["sleep", "600"]}});
    let short = json!({"kind": "sleep", "input": {"ms": 1}, "timeout_ms": 2_000});
    // Behind what is expected to be as short a node is given several at once, which wait there. On a machine that
    // is too busy for that they wait at the master, and all that follows holds too.
    let begin = || {
        for last_try in [false, false, false, true] {
            for id in accepted(&vec![taught.clone(); 50]) {
                cluster.evenkeel(&["task", "wait", &id]);
            }
            let mut ids = accepted(std::slice::from_ref(&long));
            cluster.wait_for_task(&ids[0], "running", 30);
            ids.extend(accepted(&vec![short.clone(); 9]));
            // With one of its next reports.
            let is_given = (0..20).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                cluster.task(&ids[9])["state"] == "running"
            });
            if is_given || last_try {
                return ids;
            }
            cluster.evenkeel(&["task", "cancel", &ids[0]]);
            cluster.wait_for_task(&ids[9], "succeeded", 30);
        }
        unreachable!("the last try returns")
    };

    let ids = begin();
    cluster.evenkeel(&["task", "cancel", &ids[1]]);
    cluster.wait_for_task(&ids[1], "cancelled", 30);
    // Longer than their timeout.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    assert_eq!(cluster.task(&ids[0])["state"], "running");
    cluster.evenkeel(&["task", "cancel", &ids[0]]);
    for id in &ids[2..] {
        cluster.wait_for_task(id, "succeeded", 30);
    }

    let ids = begin();
    let node = cluster.node_of(&ids[0], 30);
    cluster.evenkeel(&["node-manager", "scale", "2"]);
    cluster.wait_for_ready(2, 30);
    cluster.evenkeel(&["node-manager", "drain", &node, "--drain-deadline", "10m"]);
    for id in &ids[1..] {
        cluster.wait_for_task(id, "succeeded", 30);
    }
    assert_eq!(cluster.task(&ids[0])["state"], "running", "a drain leaves it alone until its deadline");
    cluster.evenkeel(&["task", "cancel", &ids[0]]);
}

/// `submit --batch -`, its three streams piped.
fn batch(cluster: &Cluster, arguments: &[&str]) -> Child {
    let mut command = cluster.command();
    command.args(["submit", "--batch", "-"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn peak_kib(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn five_hundred_commands_stream_through_and_their_results_come_while_more_are_sent() {
    let cluster = Cluster::up_processes(&["--nodes", "2"]);
    let mut child = batch(&cluster, &[]);
    let mut lines = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut refs = std::collections::BTreeSet::new();
    for hundred in 0..5 {
        for n in 0..100 {
            let number = hundred * 100 + n;
            writeln!(
                lines,
                r#"{{"kind":"run","ref":"{number}","input":{{"argv":["/bin/echo","{number}"]}}}}"#
            )
            .unwrap();
        }
        lines.flush().unwrap();
        // The stream is open still, and all that was sent is answered.
        for _ in 0..100 {
            let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
            let name = answer["ref"].as_str().unwrap().to_owned();
            assert_eq!(answer["task"]["state"], "succeeded", "{answer}");
            assert_eq!(answer["task"]["result"]["stdout"], format!("{name}\n"), "{answer}");
            assert!(refs.insert(name), "{answer}");
        }
    }
    assert_eq!(refs.len(), 500);
    assert!(peak_kib(&child) < 64 << 10, "{} KiB", peak_kib(&child));
    drop(lines);
    assert!(answers.next().is_none());
    let (code, said) = ended(child);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("500 succeeded"), "{said}");

    // One that fails is printed as the others are, and makes the exit code 1; a bad line too.
    let mixed = [
        r#"{"kind":"run","input":{"argv":["/bin/sh","-c","echo out; exit 7"]}}"#,
        r#"{"kind":"fib","input":{"n":10}}"#,
        r#"{"kind":"fbi"}"#,
    ];
    let ran = try_run(cluster.command().args(["submit", "--batch", "-"]), &mixed.join("\n"));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 3, "{ran:?}");
    assert!(ran.stdout.contains(r#""exit_code":7,"stdout":"out\n""#), "{ran:?}");
    assert!(ran.stderr.contains("1 succeeded, 1 failed, 1 refused"), "{ran:?}");
}

#[test]
fn a_detached_batch_is_found_by_its_label_and_an_interrupted_one_goes_on_or_is_cancelled() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--cpus", "0.9"]);
    let mut lines = String::new();
    for n in 0..20 {
        writeln!(lines, r#"{{"kind":"run","ref":"{n}","input":{{"argv":["/bin/echo","{n}"]}}}}"#).unwrap();
    }
    let ran = try_run(cluster.command().args(["submit", "--batch", "-", "--detach"]), &lines);
    assert_eq!(ran.code, 0, "{ran:?}");
    let accepted: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(accepted.len() == 20 && accepted.iter().all(|line| line["type"] == "accepted"), "{accepted:?}");
    // It says how to cancel it: so its label is known.
    let label = ran.stderr.split_whitespace().find(|word| word.starts_with("batch=")).unwrap().to_owned();
    for line in &accepted {
        let id = line["task"]["id"].as_str().or(line["id"].as_str()).unwrap();
        let result: Value = serde_json::from_str(&cluster.evenkeel(&["task", "wait", id])).unwrap();
        assert_eq!(result["stdout"].as_str().unwrap().trim(), line["ref"].as_str().unwrap());
    }
    assert_eq!(listed(&cluster, &label).len(), 20);

    let interrupted = |signals: usize| {
        let mut child = batch(&cluster, &[]);
        let mut lines = child.stdin.take().unwrap();
        for _ in 0..5 {
            writeln!(lines, r#"{{"kind":"sleep","input":{{"ms":600000}},"labels":{{"of":"{signals}"}}}}"#)
                .unwrap();
        }
        lines.flush().unwrap();
        // Stored by now: what is not is cancelled with the stream.
        let of = format!("of={signals}");
        eventually("all five are accepted", 20, || match listed(&cluster, &of).len() {
            5 => Ok(()),
            other => Err(other.to_string()),
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        let pid = child.id().to_string();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        run(Command::new("kill").args(["-INT", &pid]));
        let mut line = String::new();
        while !line.contains("interrupted") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it says nothing of the interrupt");
        }
        if signals == 2 {
            run(Command::new("kill").args(["-INT", &pid]));
        }
        assert_eq!(child.wait().unwrap().code(), Some(130));
        drop(lines);
        let states = listed(&cluster, &of);
        states.iter().filter(|task| task["state"] == "cancelled").count()
    };
    assert_eq!((interrupted(1), interrupted(2)), (0, 5));
    assert_eq!(cluster.evenkeel(&["task", "cancel", "--label", "of=1"]), "5");
}
