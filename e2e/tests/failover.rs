//! Two masters on one PostgreSQL: one leads, the other stands by, and takes over.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{
    Masters,
    chaos::stage::{Actor, Stage},
    eventually,
    masters::Ground,
    try_run,
};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

/// A command that notes each time that it runs, as a line of a file, and takes a while.
fn noted(cluster: &Masters, file: &str, line: &str, seconds: &str) -> Vec<String> {
    let script = format!("echo {line} >> {}; sleep {seconds}", cluster.file(file).display());
    ["submit", "--detach", "run", "--", "/bin/sh", "-c", &script].map(str::to_owned).to_vec()
}

fn submit_noted(cluster: &Masters, file: &str, line: &str, seconds: &str) -> String {
    let arguments = noted(cluster, file, line, seconds);
    cluster.evenkeel(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The lines of such a file, in order of their text.
fn lines(cluster: &Masters, file: &str) -> Vec<String> {
    let text = fs::read_to_string(cluster.file(file)).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Waits until the one command that notes into such a file runs.
fn wait_for_line(cluster: &Masters, file: &str) {
    eventually("it runs", 20, || match lines(cluster, file).len() {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
}

fn wait_for_all(cluster: &Masters, tasks: &[String]) {
    for id in tasks {
        let ran = cluster.try_evenkeel(&["task", "wait", id]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(cluster.task(id)["state"], "succeeded");
    }
}

/// A client that waits for its task and knows these masters.
fn waiting(cluster: &Masters, masters: &str, ms: u32, key: &str) -> Child {
    let mut command = cluster.command(masters);
    command.args(["submit", "sleep", "--input", &format!("{{\"ms\":{ms}}}"), "--key", key]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ends_well(client: Child) {
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_leader_is_killed_and_what_it_had_goes_on_with_the_other() {
    let mut cluster = Masters::start(2, 3, "2s");
    let first = cluster.leader();
    // One runs throughout; its node must keep it.
    let long = submit_noted(&cluster, "long", "ran", "12");
    wait_for_line(&cluster, "long");
    let queued: Vec<String> =
        (0..20).map(|at| submit_noted(&cluster, "short", &format!("{at:02}"), "0.3")).collect();
    let client = waiting(&cluster, &cluster.all_urls(), 5_000, "waits-through-it");
    thread::sleep(Duration::from_millis(500));
    cluster.end(first, "KILL");
    let second = cluster.leader();
    assert_ne!(second, first);
    ends_well(client);
    wait_for_all(&cluster, &queued);
    wait_for_all(&cluster, std::slice::from_ref(&long));
    assert_eq!(lines(&cluster, "long"), ["ran"], "what runs on a healthy node is not run again");
    let long = cluster.task(&long);
    assert_eq!(long["attempt"], 1, "{long}");
    // The same key stands for the same task, which is not run again.
    let again = ["submit", "sleep", "--input", "{\"ms\":5000}", "--key", "waits-through-it"];
    cluster.evenkeel(&again);
    let sleeps = cluster.evenkeel(&["task", "list", "-o", "json"]).matches("\"kind\":\"sleep\"").count();
    assert_eq!(sleeps, 1);
    // It comes back as a standby, and is the next to lead.
    cluster.start_master(first);
    eventually("the first is a standby", 20, || match cluster.get(first, "/readyz") {
        (503, body) if body.contains("/problems/standby") && body.contains(&cluster.url(second)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.end(second, "KILL");
    assert_eq!(cluster.evenkeel(&["submit", "fib", "20", "-o", "value"]), "6765");
    assert_eq!(cluster.leader(), first);
}

#[test]
fn a_leader_that_stood_still_writes_and_dispatches_nothing_when_it_wakes_up() {
    let cluster = Masters::start(2, 2, "2s");
    let first = cluster.leader();
    // More than the nodes can take, so that the old leader has much to hand out when it wakes up.
    let tasks: Vec<String> =
        (0..40).map(|at| submit_noted(&cluster, "ran", &format!("{at:02}"), "0.4")).collect();
    let second = 1 - first;
    // Its wait is forwarded, and must not end in a master that says nothing.
    let client = waiting(&cluster, &cluster.url(second), 100, "by-the-standby");
    thread::sleep(Duration::from_millis(500));
    cluster.signal(first, "STOP");
    eventually("the other leads", 30, || match cluster.get(second, "/readyz") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let epoch = cluster.sql("SELECT epoch FROM master");
    let rest = Duration::from_secs(4);
    thread::sleep(rest);
    let of_second = cluster.command(&cluster.url(second)).args(["status", "-o", "json"]).output().unwrap();
    assert!(of_second.status.code().is_some_and(|code| code == 0 || code == 6), "{of_second:?}");
    cluster.signal(first, "CONT");
    eventually("the first knows who leads", 20, || match cluster.get(first, "/readyz") {
        (503, body) if body.contains("/problems/standby") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ends_well(client);
    wait_for_all(&cluster, &tasks);
    let once: Vec<String> = (0..40).map(|at| format!("{at:02}")).collect();
    assert_eq!(lines(&cluster, "ran"), once, "each task runs once");
    assert_eq!(cluster.sql("SELECT epoch FROM master"), epoch, "nobody else led since");
    let log = cluster.log(first);
    assert!(log.contains("this master does not lead any more"), "{log}");
    // It serves on, without a restart, by the other one.
    assert_eq!(
        e2e::run(cluster.command(&cluster.url(first)).args(["submit", "fib", "20", "-o", "value"])),
        "6765"
    );
}

#[test]
fn a_leader_that_stops_in_order_hands_over_before_its_lease_ends() {
    // Nobody here waits for a minute.
    let mut cluster = Masters::start(2, 1, "60s");
    let first = cluster.leader();
    let task = submit_noted(&cluster, "ran", "once", "4");
    wait_for_line(&cluster, "ran");
    cluster.end(first, "TERM");
    assert_eq!(cluster.leader(), 1 - first);
    wait_for_all(&cluster, &[task]);
    assert_eq!(lines(&cluster, "ran"), ["once"]);
}

#[test]
fn a_standby_serves_clients_and_nodes_that_know_no_other_master() {
    let mut cluster = Masters::start(2, 0, "5s");
    let standby = 1 - cluster.leader();
    let url = cluster.url(standby);
    eventually("the standby knows who leads", 20, || match cluster.get(standby, "/readyz") {
        (503, body) if body.contains("/problems/standby") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.add_node(&url);
    let by_standby = |arguments: &[&str], stdin: &str| {
        let ran = try_run(cluster.command(&url).args(arguments), stdin);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    };
    assert_eq!(by_standby(&["submit", "fib", "20", "-o", "value"], "").stdout.trim(), "6765");
    let batch = "{\"kind\":\"fib\",\"input\":{\"n\":20}}\n".repeat(200);
    let answers = by_standby(&["submit", "--batch", "-"], &batch).stdout;
    assert_eq!(answers.matches("\"6765\"").count(), 200, "{answers}");
    let task = by_standby(
        &["submit", "--detach", "run", "--", "/bin/sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done"],
        "",
    );
    assert_eq!(by_standby(&["task", "logs", "-f", task.stdout.trim()], "").stdout, "1\n2\n3\n");

    let ask = |request: &str, headers: &[&str]| {
        let (status, body) = cluster.ask(standby, Duration::from_secs(10), request, headers, "");
        let problem = body.split("/problems/").nth(1).and_then(|rest| rest.split('"').next());
        (status, problem.unwrap_or_default().to_owned())
    };
    let bearer = format!("authorization: Bearer {}", cluster.token());
    let own = format!("host: 127.0.0.1:{}", url.rsplit(':').next().unwrap());
    let origin = format!("origin: {url}");
    assert_eq!(ask("GET /v1/nodes", &["host: localhost", &bearer]).0, 200);
    assert_eq!(ask("GET /v1/nodes", &[&own, &origin, &bearer]).0, 200, "its own pages may ask");
    for (headers, status, problem) in [
        (vec!["host: localhost"], 401, "unauthenticated"),
        (vec!["host: evil.example", &bearer], 421, "foreign-host"),
        (vec!["host: localhost", "origin: http://evil.example", &bearer], 403, "cross-site"),
        (vec!["host: localhost", "sec-fetch-site: cross-site", &bearer], 403, "cross-site"),
        (vec!["host: localhost", "evenkeel-forwarded: 1", &bearer], 503, "no-leader"),
    ] {
        assert_eq!(ask("GET /v1/nodes", &headers), (status, problem.to_owned()), "{headers:?}");
    }
}

#[test]
fn a_database_that_is_away_for_a_while_costs_the_lead_and_nothing_that_was_accepted() {
    let mut cluster = Masters::start(2, 2, "2s");
    let tasks: Vec<String> =
        (0..10).map(|at| submit_noted(&cluster, "ran", &format!("{at:02}"), "0.5")).collect();
    cluster.database().unwrap().kill();
    eventually("nobody leads", 20, || {
        let patience = Duration::from_secs(10);
        let answers = [0, 1].map(|at| cluster.ask(at, patience, "GET /v1/nodes", &["host: localhost"], ""));
        let refused = |(status, body): &(u16, String)| *status == 503 && body.contains("/problems/no-leader");
        if answers.iter().all(refused) { Ok(()) } else { Err(format!("{answers:?}")) }
    });
    cluster.database().unwrap().start_again();
    let _leader = cluster.leader();
    wait_for_all(&cluster, &tasks);
}

#[test]
fn a_standby_forwards_by_tls_and_takes_over_with_the_same_ca() {
    let mut cluster = Masters::start_secured();
    let standby = cluster.url(1);
    // Its work channel too.
    cluster.add_node(&standby);
    let fib = ["submit", "fib", "20", "-o", "value"];
    assert_eq!(e2e::run(cluster.command(&standby).args(fib)), "6765");
    cluster.end(0, "KILL");
    assert_eq!(e2e::run(cluster.command(&cluster.all_urls()).args(fib)), "6765");
}

#[test]
fn a_manager_goes_on_with_whichever_master_leads() {
    let mut stage = Stage::raise(Ground::Postgres(2), 2, &[]);
    let ids = |stage: &Stage| {
        let mut ids: Vec<String> = stage.nodes().iter().map(|node| node["id"].to_string()).collect();
        ids.sort();
        ids
    };
    let before = ids(&stage);
    let first = stage.leader();
    stage.kill(Actor::Master(first));
    stage.wait_for_nodes(2);
    assert_eq!(ids(&stage), before, "adopted, not made anew");
    // What is wished of the next one is done, and what dies under it is replaced.
    stage.scale(3);
    let pids = stage.node_pids();
    stage.kill_node(0);
    eventually("it is replaced", 30, || {
        let now = stage.node_pids();
        let fresh = now.iter().filter(|pid| !pids.contains(pid)).count();
        if (now.len(), fresh) == (3, 1) { Ok(()) } else { Err(format!("{pids:?}, then {now:?}")) }
    });
    stage.wait_for_nodes(3);
    // And back again.
    stage.start_missing();
    stage.kill(Actor::Master(1 - first));
    assert_eq!(stage.leader(), first);
    stage.scale(1);
    assert_eq!(stage.evenkeel(&["submit", "-o", "value", "fib", "20"]), "6765");
}

#[test]
fn a_log_is_followed_from_one_leader_to_the_next_without_a_gap() {
    const LINES: u32 = 40;
    let mut cluster = Masters::start(2, 1, "2s");
    let script = format!("i=1; while [ $i -le {LINES} ]; do echo $i; i=$((i+1)); sleep 0.2; done");
    let id = cluster.evenkeel(&["submit", "--detach", "run", "--", "/bin/sh", "-c", &script]);
    let mut command = cluster.command(&cluster.all_urls());
    command.args(["task", "logs", "-f", &id]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut following = command.spawn().unwrap();
    let mut printed = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut followed: Vec<String> = printed.by_ref().take(5).map(Result::unwrap).collect();
    let first = cluster.leader();
    cluster.end(first, "KILL");
    followed.extend(printed.map(Result::unwrap));
    let output = following.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let all: Vec<String> = (1..=LINES).map(|line| line.to_string()).collect();
    assert_eq!(followed, all);
    assert_eq!(cluster.task(&id)["attempt"], 1);
    assert_eq!(cluster.leader(), 1 - first);
}
