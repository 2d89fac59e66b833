//! `docker/compose.failover.yaml` as its head says it is used: on a daemon of the test's own, with images made here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Daemon, Program, Ran, evenkeel_binary, eventually, run, try_run};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// By number as `--master` below has them.
const MASTERS: [&str; 2] = ["evenkeel-default-master", "evenkeel-default-master-b"];

struct Composed {
    node: Program,
    daemon: Daemon,
    folder: TempDir,
}

impl Composed {
    /// Does what the head of the file says, to its last line but one.
    fn up() -> Self {
        let daemon = Daemon::start(&[]);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        run(daemon.inside().command(&here.join("images/postgres")).arg("postgres:15"));
        run(daemon.inside().command(&evenkeel_binary()).args(["image", "build"]));
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(here.join("../docker/compose.failover.yaml")).unwrap();
        fs::write(folder.path().join("compose.failover.yaml"), &text).unwrap();
        let mut said: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
        let last = said.pop().unwrap();
        assert!(
            last.starts_with("evenkeel status --master http://127.0.0.1:7400,http://127.0.0.1:7401 "),
            "{last}"
        );
        let composed = Self { node: Program::new(folder.path().join("node.log")), daemon, folder };
        run(composed.inside("/bin/sh").args(["-ec", &said.join("\n")]));
        composed
    }

    /// A program in the folder and the network.
    fn inside(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = self.daemon.inside().command(&program.into());
        command.current_dir(self.folder.path()).env("EVENKEEL_STATE_DIR", self.folder.path().join("client"));
        command.env("EVENKEEL_MASTER", "http://127.0.0.1:7400,http://127.0.0.1:7401");
        command.env("EVENKEEL_TOKEN_FILE", self.folder.path().join("state/admin.token"));
        command
    }

    fn try_evenkeel(&self, arguments: &[&str]) -> Ran {
        try_run(self.inside(evenkeel_binary()).args(arguments), "")
    }

    fn evenkeel(&self, arguments: &[&str]) -> String {
        let ran = self.try_evenkeel(arguments);
        assert_eq!(ran.code, 0, "{ran:?}; {}", self.logs());
        ran.stdout.trim().to_owned()
    }

    fn logs(&self) -> String {
        let all = self.daemon.docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
        let log = |line: &str| {
            let ran = self.daemon.try_docker(&["logs", line.split(' ').next().unwrap_or_default()]);
            format!("---- {line}\n{}{}", ran.stdout, ran.stderr)
        };
        all.lines().map(log).collect()
    }

    /// What a master answers to `/readyz`.
    fn ready(&self, at: usize) -> String {
        let url = format!("http://127.0.0.1:{}/readyz", 7400 + at);
        try_run(self.inside("curl").args(["-sS", "-m", "5", "-w", " %{http_code}", &url]), "").stdout
    }

    fn leader(&self) -> usize {
        eventually("a master leads", 30, || {
            let answers = [0, 1].map(|at| self.ready(at));
            let leader = answers.iter().position(|answer| answer.ends_with(" 200"));
            leader.ok_or_else(|| format!("{answers:?}; {}", self.logs()))
        })
    }

    fn stands_by(&self, at: usize) {
        eventually("it stands by", 60, || {
            let answer = self.ready(at);
            if answer.contains("/problems/standby") {
                Ok(())
            } else {
                Err(format!("{answer}; {}", self.logs()))
            }
        });
    }
}

#[test]
fn two_masters_and_their_database_by_compose_fail_over_and_go_away() {
    let mut composed = Composed::up();
    let first = composed.leader();
    composed.stands_by(1 - first);
    let mut node = composed.inside(evenkeel_binary());
    composed.node.start(node.args(["node", "--name", "by-hand", "--cores", "1"]));
    eventually("the node is ready", 30, || {
        let ran = composed.try_evenkeel(&["status"]);
        if ran.code == 0 && ran.stdout.contains("ready") { Ok(()) } else { Err(format!("{ran:?}")) }
    });

    let long = composed.evenkeel(&["submit", "--detach", "sleep", "10000"]);
    eventually("it runs", 20, || {
        let task = composed.evenkeel(&["task", "get", &long]);
        if task.contains("\"running\"") { Ok(()) } else { Err(task) }
    });
    // That it was handed out is recorded with the next group commit.
    std::thread::sleep(std::time::Duration::from_millis(500));
    composed.daemon.docker(&["kill", MASTERS[first]]);
    let queued = eventually("the other one takes work", 30, || {
        let ran = composed.try_evenkeel(&["submit", "--detach", "fib", "20"]);
        if ran.code == 0 { Ok(ran.stdout.trim().to_owned()) } else { Err(format!("{ran:?}")) }
    });
    assert_eq!(composed.leader(), 1 - first);
    for id in [&long, &queued] {
        composed.evenkeel(&["task", "wait", id]);
    }
    let task: serde_json::Value = serde_json::from_str(&composed.evenkeel(&["task", "get", &long])).unwrap();
    assert_eq!((&task["state"], &task["attempt"]), (&"succeeded".into(), &1.into()), "{task}");
    composed.daemon.docker(&["start", MASTERS[first]]);
    composed.stands_by(first);

    let database = composed.daemon.docker(&["ps", "-q", "--filter", "ancestor=postgres:15"]);
    composed.daemon.docker(&["restart", &database]);
    let _leader = composed.leader();
    assert_eq!(composed.evenkeel(&["submit", "-o", "value", "fib", "20"]), "6765");

    composed.node.end("TERM");
    let mut down = composed.inside("docker-compose");
    down.args(["-f", "compose.failover.yaml", "down", "-v"]);
    run(down.env("EVENKEEL_USER", "0:0").env("DATABASE_PASSWORD", "any"));
    assert_eq!(composed.daemon.docker(&["ps", "-aq"]), "");
    assert_eq!(composed.daemon.docker(&["volume", "ls", "-q"]), "");
}
