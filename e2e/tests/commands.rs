//! Commands through the whole cluster: what they are given, what comes back, and that nothing of them is left
//! on the machine, however hard they try.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, evenkeel, eventually, run, try_run};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

#[test]
fn a_command_has_its_input_environment_and_directory_and_its_exit_code_comes_back() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--cpus", "0.9"]);
    let submit = |arguments: &[&str], stdin: &str| {
        try_run(cluster.command().args([&["submit", "-o", "value", "run"], arguments].concat()), stdin)
    };
    let ran = submit(&["--stdin", "-", "--", "sort"], "pear\napple\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "apple\npear\n"), "{ran:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "from a file").unwrap();
    let ran = submit(&["--stdin", &format!("@{}", file.path().display()), "--", "cat"], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "from a file\n"), "{ran:?}");
    // Without it there is nothing to read, and no terminal to wait for.
    let ran = submit(&["--", "wc", "-c"], "not for the command");
    assert_eq!((ran.code, ran.stdout.trim()), (0, "0"), "{ran:?}");
    let ran = submit(
        &["--env", "COLOUR=red", "--env", "EMPTY=", "--", "sh", "-c", "echo $COLOUR-${EMPTY+set}"],
        "",
    );
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "red-set\n"), "{ran:?}");
    let ran = submit(&["--env", "EVENKEEL_TOKEN=x", "--", "true"], "");
    assert_eq!(ran.code, 2, "{ran:?}");

    // A directory of its own, empty, and gone afterwards.
    let ran = submit(&["--", "sh", "-c", "pwd; ls -A; touch mine"], "");
    let directory = ran.stdout.trim().to_owned();
    assert!(ran.code == 0 && directory.starts_with('/') && !directory.contains('\n'), "{ran:?}");
    let other = submit(&["--", "sh", "-c", "pwd; ls -A"], "");
    assert!(other.stdout.trim() != directory && !other.stdout.contains("mine"), "{other:?}");
    assert!(!Path::new(&directory).exists());

    let ran = cluster.try_evenkeel(&["submit", "run", "--", "sh", "-c", "echo out; echo why >&2; exit 7"]);
    assert_eq!((ran.code, ran.json()["exit_code"].as_i64()), (1, Some(7)), "{ran:?}");
    assert_eq!(ran.json()["stdout"], "out\n");
    assert!(ran.stderr.contains("exit code 7") && ran.stderr.contains("why"), "{ran:?}");
    let ran = cluster.try_evenkeel(&["submit", "run", "--", "/no/such/program"]);
    assert_eq!((ran.code, ran.json()["exit_code"].as_i64()), (1, Some(127)), "{ran:?}");
}

#[test]
fn a_node_started_by_hand_brings_kinds_of_its_own_file() {
    let cluster = Cluster::up_processes(&["--nodes", "1"]);
    let folder = tempfile::tempdir().unwrap();
    let kinds = folder.path().join("kinds.toml");
    let text = "[[kind]]\nname = \"count\"\ncommand = [\"wc\", \"-c\"]\n\
                schema = '{\"type\":\"object\",\"required\":[\"text\"]}'\n";
    fs::write(&kinds, text).unwrap();
    let unknown = cluster.try_evenkeel(&["submit", "count", "--input", r#"{"text":"x"}"#]);
    assert_eq!(unknown.code, 2, "{unknown:?}");

    let token = folder.path().join("join.token");
    fs::write(&token, cluster.evenkeel(&["token", "create", "--scope", "node", "--ttl", "1h"])).unwrap();
    let mut node = evenkeel();
    node.env("EVENKEEL_STATE_DIR", folder.path()).arg("node").arg("--kinds").arg(&kinds);
    node.args(["--name", "by-hand", "--master", &format!("http://127.0.0.1:{}", cluster.port)]);
    node.arg("--token-file").arg(&token).stdin(Stdio::null()).stderr(Stdio::null());
    let mut node = node.spawn().unwrap();
    cluster.wait_for_node("by-hand", "ready", 30);

    let input = r#"{"text":"seven"}"#;
    let task = cluster.submit(&["count", "--input", input]);
    assert_eq!(cluster.wait_for_task(&task, "succeeded", 30)["result"], input.len());
    assert_eq!(cluster.task(&task)["node"], cluster.node("by-hand").unwrap().text("id"));
    let refused = cluster.try_evenkeel(&["submit", "count", "--input", "{}"]);
    assert!(refused.code == 2 && refused.stderr.contains("text"), "{refused:?}");
    let commands = cluster.node("by-hand").unwrap().0["kinds"].to_string();
    assert!(!commands.contains("\"run\""), "without --allow-commands: {commands}");

    fs::write(&kinds, "[[kind]]\nname = \"count\"\n").unwrap();
    let mut wrong = evenkeel();
    wrong.env("EVENKEEL_STATE_DIR", folder.path()).arg("node").arg("--kinds").arg(&kinds);
    let wrong = try_run(wrong.args(["--master", "http://127.0.0.1:1", "--token-file", "-"]), "ek_x");
    assert!(wrong.code == 2 && wrong.stderr.contains("command"), "{wrong:?}");
    run(Command::new("kill").arg(node.id().to_string()));
    assert!(node.wait().unwrap().success());
}

/// Command lines of processes of this machine that hold this text.
fn alive(marker: &str) -> Vec<String> {
    let processes = Path::new("/proc").read_dir().unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|l| l.contains(marker))
        .collect()
}

/// A shell script that ignores signals, forks, leaves its group, its session and its parents, hides its
/// environment and keeps the pipes open, and a text by which its processes are found.
fn hostile(number: u32) -> (String, String) {
    let marker = format!("86{:07}{number}", std::process::id());
    let script = format!(
        "trap '' TERM INT HUP QUIT
         (setsid sh -c 'trap \"\" TERM HUP; sleep {marker} & sleep {marker}' &)
         (setsid env -i sleep {marker} &)
         setsid sleep {marker} &
         sleep {marker} &
         while :; do sleep {marker}; done"
    );
    (script, marker)
}

fn gone(marker: &str, after: &str) {
    eventually(&format!("no process is left after {after}"), 30, || match alive(marker) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

#[test]
fn nothing_of_a_hostile_program_is_left_after_a_cancel_a_timeout_a_drain_a_killed_node_or_a_stop() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--cpus", "0.9"]);
    let start = |number, limits: &[&str]| {
        let (script, marker) = hostile(number);
        let id = cluster.submit(&[limits, &["run", "--", "sh", "-c", &script]].concat());
        eventually("all of it runs", 30, || match alive(&marker) {
            // The script itself, and below it two shells and five sleeps.
            all if all.len() >= 7 => Ok(()),
            some => Err(format!("{some:?}")),
        });
        (id, marker)
    };
    let (cancelled, marker) = start(1, &[]);
    cluster.evenkeel(&["task", "cancel", &cancelled]);
    gone(&marker, "a cancel");

    let (timed_out, marker) = start(2, &["--timeout", "4s"]);
    let task = cluster.wait_for_task(&timed_out, "failed", 30);
    assert_eq!(task["error"]["code"], "timeout", "{task}");
    gone(&marker, "its timeout");

    // Handed back past the deadline of a drain, which costs no attempt; there is no other node to take it.
    let (drained, marker) = start(5, &[]);
    let node = cluster.node_of(&drained, 10);
    cluster.evenkeel(&["node-manager", "drain", &node, "--drain-deadline", "1s"]);
    let task = cluster.wait_for_task(&drained, "queued", 30);
    assert_eq!(task["attempt"], 0, "{task}");
    gone(&marker, "a drain");
    cluster.evenkeel(&["task", "cancel", &drained]);
    cluster.evenkeel(&["node-manager", "resume", &node]);
    cluster.wait_for_ready(1, 30);

    let (lost, marker) = start(3, &["--max-attempts", "1"]);
    let node = cluster.node_of(&lost, 10);
    run(Command::new("kill").args(["-KILL", &cluster.pid_of(&node)]));
    let task = cluster.wait_for_task(&lost, "failed", 30);
    assert_eq!(task["error"]["code"], "node_lost", "{task}");
    gone(&marker, "its node was killed");

    let (_, marker) = start(4, &[]);
    cluster.evenkeel(&["down"]);
    gone(&marker, "the cluster was taken down");
}
