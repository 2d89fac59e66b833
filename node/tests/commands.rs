//! Commands on real programs: results, bounds, and that nothing of them is left. A test process of its own,
//! because it becomes the reaper of all that its children leave behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

use node::{
    cancel::{Cancel, Stop},
    cpu::{Config, Sampler},
    kinds::{
        Failure,
        command::{Commands, Progress, RUN_STDOUT_BYTES},
        strays::{become_subreaper, sweep},
    },
    kinds_file,
};
use protocol::{TaskId, task::ErrorCode};
use serde_json::{Value, json, value::to_raw_value};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Commands in a directory of the test's own, on a thread that is as nice as a slot's.
struct Bench {
    root: tempfile::TempDir,
    commands: Arc<Commands>,
}

impl Bench {
    fn new() -> Self {
        become_subreaper().unwrap();
        let root = tempfile::tempdir().unwrap();
        let sampler = Sampler::new(Config { cores: Some(1.0), ..Config::default() }).unwrap();
        let commands = Commands::new(root.path().to_owned(), sampler.oom_counter(), sampler.tasks());
        Self { root, commands: Arc::new(commands) }
    }

    fn slot<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Commands) -> (Result<String, Failure>, T) + Send + 'static,
    ) -> (Result<String, Failure>, T) {
        let commands = Arc::clone(&self.commands);
        let slot = std::thread::spawn(move || {
            rustix::process::setpriority_process(None, 10).unwrap();
            work(&commands)
        });
        slot.join().unwrap()
    }

    fn run_until(
        &self,
        task: TaskId,
        input: Value,
        cancel: Arc<Cancel>,
    ) -> (Result<String, Failure>, Duration) {
        let input = to_raw_value(&input).unwrap();
        self.slot(move |commands| commands.run(task, &input, &cancel, &Progress::default()))
    }

    fn run(&self, input: Value) -> Result<String, Failure> {
        self.run_until(new_task(), input, Arc::new(Cancel::unlimited())).0
    }

    fn sh(&self, script: &str) -> Result<String, Failure> {
        self.run(json!({"argv": ["sh", "-c", script]}))
    }

    fn own(&self, kind: &str, input: &Value) -> Result<String, Failure> {
        let kind = kinds_file::parse(kind).unwrap().remove(0);
        let input = to_raw_value(input).unwrap();
        let work = move |commands: &Commands| {
            commands.own(&kind, new_task(), &input, &Cancel::unlimited(), &Progress::default())
        };
        self.slot(work).0
    }

    /// What is left of work directories.
    fn left_behind(&self) -> Vec<PathBuf> {
        self.root.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn new_task() -> TaskId {
    TaskId(uuid::Uuid::now_v7())
}

fn stdout(result: &str) -> String {
    parsed(result)["stdout"].as_str().unwrap().to_owned()
}

fn parsed(result: &str) -> Value {
    serde_json::from_str(result).unwrap()
}

fn failed(result: Result<String, Failure>) -> (ErrorCode, String, Option<Value>) {
    match result {
        Err(Failure::Failed { error, result }) => (error.code, error.message, result.map(|r| parsed(&r))),
        other => panic!("not a failure: {other:?}"),
    }
}

/// Whether a process lives that has this text in its command line.
fn lives(marker: &str) -> bool {
    let processes = Path::new("/proc").read_dir().unwrap().flatten();
    processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())).any(
        |entry| {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(marker)
        },
    )
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A number of seconds that no other test sleeps: found in the process table.
fn marker() -> String {
    format!("9{}", uuid::Uuid::now_v7().as_u64_pair().1 % 10_000_000)
}

#[test]
fn the_result_is_the_output_and_the_exit_code() {
    let bench = Bench::new();
    let result = bench.run(json!({"argv": ["echo", "hello", "wörld"]})).unwrap();
    assert_eq!(parsed(&result), json!({"exit_code": 0, "stdout": "hello wörld\n", "truncated": false}));
    let result = bench.run(json!({"argv": ["cat"], "stdin": "in"})).unwrap();
    assert_eq!(stdout(&result), "in");
    assert_eq!(bench.left_behind(), [] as [PathBuf; 0]);
}

#[test]
fn a_program_that_fails_shows_the_end_of_its_errors_and_its_output() {
    let bench = Bench::new();
    let (code, message, result) =
        failed(bench.sh("echo out; yes error | head -c 100000 >&2; echo last >&2; exit 3"));
    assert_eq!(code, ErrorCode::TaskError);
    assert!(message.starts_with("exit code 3: ") && message.ends_with("last"), "{message}");
    assert!(message.chars().count() <= 4_096);
    assert_eq!(result.unwrap(), json!({"exit_code": 3, "stdout": "out\n", "truncated": false}));
    let (_, message, result) = failed(bench.sh("kill -TERM $$"));
    assert_eq!(message, "killed by signal 15");
    assert_eq!(result.unwrap()["exit_code"], 143);
    let (code, message, result) = failed(bench.run(json!({"argv": ["/no/such/program"]})));
    assert_eq!(code, ErrorCode::TaskError);
    assert!(message.contains("/no/such/program"), "{message}");
    assert_eq!(result.unwrap()["exit_code"], 127);
    let (code, ..) = failed(bench.run(json!({"argv": []})));
    assert_eq!(code, ErrorCode::BadInput);
}

#[test]
fn the_environment_is_clean_and_the_directory_private() {
    let bench = Bench::new();
    let task = new_task();
    let script = "env; pwd; stat -c %a .; cat /proc/self/oom_score_adj; nice; ls -A";
    let input = json!({"argv": ["sh", "-c", script], "env": {"MINE": "yes"}});
    let (result, _) = bench.run_until(task, input, Arc::new(Cancel::unlimited()));
    let output = stdout(&result.unwrap());
    let (mut variables, mut rest) = (Vec::new(), Vec::new());
    for line in output.lines() {
        match line.split_once('=') {
            Some((name, value)) => variables.push((name.to_owned(), value.to_owned())),
            None => rest.push(line.to_owned()),
        }
    }
    let value = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    // PWD is the shell's own.
    variables.iter().for_each(|(name, _)| {
        assert!(
            ["PATH", "HOME", "TMPDIR", "EVENKEEL_TASK_ID", "MINE", "PWD", "SHLVL", "_", "OLDPWD"]
                .contains(&&**name),
            "{name}"
        );
    });
    assert_eq!(value("EVENKEEL_TASK_ID"), Some(task.to_string()));
    assert_eq!(value("MINE"), Some("yes".to_owned()));
    assert_eq!(rest[1..], ["700", "1000", "10"]);
    assert_eq!(value("HOME").as_ref(), Some(&rest[0]));
    assert_eq!(value("TMPDIR").as_ref(), Some(&rest[0]));
    assert!(Path::new(&rest[0]).starts_with(bench.root.path()) && !Path::new(&rest[0]).exists());
}

#[test]
fn a_directory_is_removed_whatever_was_done_to_it() {
    let bench = Bench::new();
    bench.sh("mkdir -p a/b; touch a/b/c; chmod 0 a/b; chmod 0500 a; ln -s / root; chmod 0 .").unwrap();
    assert_eq!(bench.left_behind(), [] as [PathBuf; 0]);
}

#[test]
fn ten_megabytes_of_output_are_read_and_the_end_is_kept() {
    let bench = Bench::new();
    let result = bench.sh("head -c 10485760 /dev/zero | tr '\\0' x; printf end").unwrap();
    let result = parsed(&result);
    assert_eq!(result["truncated"], true);
    let output = result["stdout"].as_str().unwrap();
    assert_eq!(output.len(), RUN_STDOUT_BYTES);
    assert!(output.ends_with("xend"));
    // Escapes make it longer than a result may be: cut further.
    let result = bench.sh("head -c 600000 /dev/zero").unwrap();
    assert!(result.len() <= protocol::task::MAX_RESULT_BYTES);
    assert_eq!(parsed(&result)["truncated"], true);
}

#[test]
fn a_program_that_does_not_read_its_input_is_no_error() {
    let bench = Bench::new();
    let input = "x".repeat(900_000);
    bench.run(json!({"argv": ["true"], "stdin": input})).unwrap();
    let result = bench.run(json!({"argv": ["sh", "-c", "head -c 3; exec <&-; sleep 0.1"], "stdin": input}));
    assert_eq!(stdout(&result.unwrap()), "xxx");
}

#[test]
fn cpu_time_is_that_of_the_program_and_its_children() {
    let bench = Bench::new();
    let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'";
    let input = json!({"argv": ["sh", "-c", script]});
    let (result, cpu) = bench.run_until(new_task(), input, Arc::new(Cancel::unlimited()));
    result.unwrap();
    assert!(cpu > Duration::from_millis(20), "{cpu:?}");
}

#[test]
fn it_ends_at_its_timeout_and_when_cancelled() {
    let bench = Bench::new();
    let timeout = Cancel::new(Instant::now(), Some(Duration::from_millis(50)), None);
    let (result, _) = bench.run_until(new_task(), json!({"argv": ["sleep", "3600"]}), Arc::new(timeout));
    assert_eq!(result, Err(Failure::Stopped(Stop::Timeout)));

    let cancel = Arc::new(Cancel::unlimited());
    let canceller = {
        let cancel = Arc::clone(&cancel);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            cancel.stop(Stop::Cancelled);
        })
    };
    let flood = json!({"argv": ["sh", "-c", "yes & yes >&2"]});
    let (result, _) = bench.run_until(new_task(), flood, cancel);
    assert_eq!(result, Err(Failure::Stopped(Stop::Cancelled)));
    canceller.join().unwrap();
    assert_eq!(bench.left_behind(), [] as [PathBuf; 0]);
}

#[test]
fn a_hostile_program_does_not_hold_its_slot_and_leaves_nothing() {
    let bench = Bench::new();
    let marker = marker();
    // Ignores signals, forks, leaves group and session, and keeps the pipes open.
    let script = format!(
        "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; sleep {marker} & wait' & \
         (setsid sleep {marker} &) ; sleep {marker} & echo started; sleep {marker}"
    );
    let cancel = Arc::new(Cancel::unlimited());
    let canceller = {
        let (cancel, marker) = (Arc::clone(&cancel), marker.clone());
        std::thread::spawn(move || {
            until("it never started", || lives(&marker));
            std::thread::sleep(Duration::from_millis(200));
            cancel.stop(Stop::Cancelled);
        })
    };
    let (result, _) = bench.run_until(new_task(), json!({"argv": ["sh", "-c", script]}), cancel);
    canceller.join().unwrap();
    assert_eq!(result, Err(Failure::Stopped(Stop::Cancelled)));
    assert!(!lives(&marker));
    assert_eq!(bench.left_behind(), [] as [PathBuf; 0]);
}

#[test]
fn what_a_program_leaves_in_the_background_ends_with_it() {
    let bench = Bench::new();
    let marker = marker();
    let script = format!("sleep {marker} & setsid sleep {marker} & echo done");
    assert_eq!(stdout(&bench.sh(&script).unwrap()), "done\n");
    assert!(!lives(&marker));
}

#[test]
fn a_process_that_a_program_makes_its_own_brother_ends_with_it() {
    let bench = Bench::new();
    let marker = marker();
    // Neither child nor orphan of the program: a child of the thread that started it. By `clone` with
    // CLONE_PARENT and SIGCHLD.
    let script = format!(
        "if (syscall({}, 0x8000 | 17, 0, 0, 0, 0) == 0) {{ setpgrp; exec 'sleep', '{marker}' }} \
         select undef, undef, undef, 0.3; print 'done'",
        libc::SYS_clone
    );
    let result = bench.run(json!({"argv": ["perl", "-e", script]})).unwrap();
    assert_eq!(stdout(&result), "done");
    assert!(!lives(&marker));
}

#[test]
fn a_process_that_hides_is_found_by_the_sweep() {
    let bench = Bench::new();
    let marker = marker();
    // Neither its group, nor its session, nor its environment tell whose it is.
    let script = format!("env -i setsid sh -c 'sleep {marker} & sleep 0.2' >/dev/null 2>&1 & sleep 0.5");
    bench.sh(&script).unwrap();
    until("it lives on", || {
        sweep();
        !lives(&marker)
    });
}

#[test]
fn many_orphans_leave_no_zombie() {
    let bench = Bench::new();
    bench.sh("i=0; while [ $i -lt 50 ]; do (setsid true &); i=$((i+1)); done; sleep 0.2").unwrap();
    let own = std::process::id().to_string();
    until("zombies are left", || {
        sweep();
        let processes = Path::new("/proc").read_dir().unwrap().flatten();
        !processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok()).any(|stat| {
            let rest: Vec<&str> = stat.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
            stat.contains("(true)") && rest[0] == "Z" && rest[1] == own
        })
    });
}

#[test]
fn an_own_kind_takes_json_and_gives_json_or_text() {
    let bench = Bench::new();
    let kind = |command: &str| {
        format!("[[kind]]\nname = \"own\"\ncommand = {command}\nenv = {{ GREETING = \"hi\" }}\n")
    };
    let echo = bench.own(&kind(r#"["cat"]"#), &json!({"a": [1, "ü"]})).unwrap();
    assert_eq!(parsed(&echo), json!({"a": [1, "ü"]}));
    assert_eq!(bench.own(&kind(r#"["sh", "-c", "echo $GREETING"]"#), &json!({})).unwrap(), r#""hi\n""#);
    assert_eq!(bench.own(&kind(r#"["true"]"#), &json!({})).unwrap(), "null");
    let (code, message, result) =
        failed(bench.own(&kind(r#"["sh", "-c", "echo why >&2; exit 1"]"#), &json!({})));
    assert_eq!((code, &*message, result), (ErrorCode::TaskError, "exit code 1: why", None));
    let (code, message, _) = failed(bench.own(&kind(r#"["/no/such"]"#), &json!({})));
    assert_eq!(code, ErrorCode::TaskError);
    assert!(message.contains("cannot start \"/no/such\" of kind own"), "{message}");
    let (code, ..) = failed(bench.own(&kind(r#"["head", "-c", "5000000", "/dev/zero"]"#), &json!({})));
    assert_eq!(code, ErrorCode::ResultTooLarge);
}
