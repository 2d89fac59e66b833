//! What the command line says to wrong usage: exit code 2, a message that names what is wrong, nothing on
//! standard output.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::process::{Command, Output, Stdio};

fn evenkeel(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    // Nothing of the machine that the test runs on gets through.
    command.args(arguments).stdin(Stdio::null()).env_clear();
    command.env("HOME", folder.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All commands, subcommands included, as the program itself tells of them.
fn commands() -> Vec<Vec<String>> {
    fn below(path: &[String], found: &mut Vec<Vec<String>>) {
        let arguments: Vec<_> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let ran = evenkeel(&arguments);
        assert_eq!(ran.status.code(), Some(0), "{arguments:?}");
        let help = text(&ran.stdout);
        found.push(path.to_vec());
        let listed = help.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap();
        for line in listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap();
            if name != "help" {
                below(&[path, &[name.to_owned()]].concat(), found);
            }
        }
    }
    let mut found = Vec::new();
    below(&[], &mut found);
    found
}

#[test]
fn every_command_refuses_a_flag_that_it_does_not_know() {
    let commands = commands();
    assert!(commands.len() >= 27, "{commands:?}");
    for command in commands {
        let mut arguments: Vec<_> = command.iter().map(String::as_str).collect();
        arguments.push("--frobnicate");
        let ran = evenkeel(&arguments);
        let said = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("--frobnicate"), "{arguments:?}: {said}");
        assert_eq!(text(&ran.stdout), "", "{arguments:?}");
    }
}

#[test]
fn every_command_refuses_a_wrong_value_and_names_it() {
    for command in commands() {
        let mut arguments: Vec<_> = command.iter().map(String::as_str).collect();
        arguments.push("--log-format=xml");
        let ran = evenkeel(&arguments);
        let said = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("xml") && said.contains("json"), "{arguments:?}: {said}");
    }
}

#[test]
fn wrong_values_of_each_kind_are_named_with_what_would_be_right() {
    for (line, said) in [
        ("demo --nodes 0", "0"),
        ("demo --runtime dokcer", "docker"),
        ("up --nodes -1", "-1"),
        ("up --listen nowhere", "nowhere"),
        ("up --mount /data", "SOURCE:TARGET"),
        ("up --cpus 0", "above 0"),
        ("up --user me", "UID:GID"),
        ("up --image=", "NAME:TAG"),
        ("up --runtime process --listen 127.0.0.1:0 --image debian", "--image needs containers"),
        ("up --runtime process --listen 127.0.0.1:0 --mount .:/data", "--mount needs containers"),
        ("up --runtime process --listen 127.0.0.1:0 --isolate", "--isolate needs containers"),
        ("node-manager update", "--image"),
        ("node-manager update --cpus none", "0.5"),
        ("up --memory lots", "64MiB"),
        ("up --kinds Cargo.toml", "kind"),
        ("up --master-ip 172.18.0.22", "--subnet"),
        ("master --policy fastest", "finish-time"),
        ("master --node-lost-after 5", "30s"),
        ("master --lease 5", "30s"),
        ("master --lease 5s", "--store postgres:"),
        ("master --advertise http://10.0.0.5:7400", "--store postgres:"),
        ("master --store postgres://db/x --lease 500ms", "1s to 60s"),
        ("master --store postgres://db/x --listen 0.0.0.0:7400", "--advertise"),
        ("master --store postgres://db/x --advertise http://a:1/path", "nothing else"),
        ("master --store postgres://db/x --advertise https://a:1", "http://"),
        ("node --cores none", "0.5"),
        ("node-manager scale", "NODES"),
        ("node-manager scale many", "many"),
        ("node-manager sclae 3", "scale"),
        ("status -o tabel", "table"),
        ("submit", "KIND"),
        ("submit fib 40 --priority 101", "101"),
        ("submit fib 40 --max-attempts 0", "0"),
        ("submit fib 40 --wait-for 5", "1h30m"),
        ("submit fib 40 --label x", "key=value"),
        ("submit fib 40 --durability disc", "disk"),
        ("submit fib --input {", "not JSON"),
        ("submit fib --input @/nonexistent", "/nonexistent"),
        ("submit fib 1 2", "submit fib N"),
        ("submit own-kind 1", "--input"),
        ("submit fib 40 --env A=b", "--input"),
        ("submit own-kind --stdin x", "--input"),
        ("submit run --stdin @/nonexistent -- cat", "/nonexistent"),
        ("submit run --env A -- env", "NAME=VALUE"),
        ("submit run --env A=1 --env A=2 -- env", "twice"),
        ("submit run --stdin x", "run -- COMMAND"),
        ("submit fib 40 --retry-on timeuot", "timeout"),
        ("submit fib 40 --rerun-after 5", "30s"),
        ("submit --batch x --priority 5", "--priority"),
        ("submit fib 40 --batch x", "--batch"),
        ("submit --batch /nonexistent", "/nonexistent"),
        ("task get 12", "12"),
        ("task list --state done", "succeeded"),
        ("task list --limit 0", "0"),
        ("task cancel", "--label"),
        ("token create", "--scope"),
        ("token create --scope amdin", "admin"),
        ("token revoke 12", "12"),
        ("completions zssh", "zsh"),
        ("doctor -o tabel", "table"),
        ("doctor --subnet 172.18.0.0", "172.18.0.0/16"),
        ("doctor --listen 7400", "7400"),
        ("burn --seconds x", "1.5"),
        ("burn --memory x", "64MiB"),
        ("task list --cluster Big", "Big"),
        ("submit fib 1 --token-file /nonexistent", "/nonexistent"),
        ("submit fib 1 --master ftp://x", "http"),
        ("node --master http://127.0.0.1:1 --token-file /nonexistent", "/nonexistent"),
        ("--config /nonexistent version", "/nonexistent"),
        ("--log loud=,= version", "debug"),
    ] {
        let ran = evenkeel(&line.split(' ').collect::<Vec<_>>());
        let message = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{line}: {message}");
        assert!(message.contains(said), "{line}: {message}");
        assert_eq!(text(&ran.stdout), "", "{line}");
    }
}

#[test]
fn a_master_that_is_not_there_is_exit_code_3() {
    // Port 1 of this host: nobody listens there.
    for line in ["submit fib 1", "task list", "status", "node-manager scale 1"] {
        let mut arguments: Vec<_> = line.split(' ').collect();
        arguments.extend(["--master", "http://127.0.0.1:1"]);
        let ran = evenkeel(&arguments);
        let said = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(3), "{line}: {said}");
        assert!(said.contains("127.0.0.1:1"), "{line}: {said}");
        assert_eq!(text(&ran.stdout), "", "{line}");
    }
}

#[test]
fn help_version_and_completions_are_data() {
    let version = evenkeel(&["version"]);
    assert_eq!(text(&version.stdout), format!("evenkeel {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(text(&evenkeel(&["--version"]).stdout), text(&version.stdout));
    for shell in ["bash", "zsh", "fish"] {
        let script = evenkeel(&["completions", shell]);
        assert_eq!(script.status.code(), Some(0));
        assert!(text(&script.stdout).contains("node-manager"), "{shell}");
    }
    assert!(text(&evenkeel(&["submit", "--help"]).stdout).contains("submit fib 40"));
}

#[test]
fn no_colour_reaches_what_is_no_terminal() {
    for arguments in
        [&["--help"][..], &["submit", "--frobnicate"], &["--color", "never", "up", "--nodes", "x"]]
    {
        let ran = evenkeel(arguments);
        assert!(!ran.stdout.contains(&0x1b) && !ran.stderr.contains(&0x1b), "{arguments:?}");
    }
    assert!(evenkeel(&["--color", "always", "up", "--nodes", "x"]).stderr.contains(&0x1b));
}
