//! Flag before environment before file before default, and how the master is found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};
use tempfile::TempDir;

/// A command in an empty home.
fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.args(arguments).stdin(Stdio::null()).env_clear().env("HOME", home);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The URL that a command would go to: nobody listens there, so that it says which.
fn goes_to(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    said(&output)
}

#[test]
fn a_flag_counts_before_a_variable_before_the_file_before_the_context() {
    let home = home();
    let state = home.path().join(".local/state/evenkeel/default");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("context.toml"), "master = 'http://127.0.0.1:2'\n").unwrap();
    let list = ["task", "list"];
    assert!(goes_to(&mut command(home.path(), &list)).contains("127.0.0.1:2"));

    let config = home.path().join(".config/evenkeel");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("evenkeel.toml"), "master = 'http://127.0.0.1:3'\n").unwrap();
    assert!(goes_to(&mut command(home.path(), &list)).contains("127.0.0.1:3"));

    let other = home.path().join("other.toml");
    fs::write(&other, "[task.list]\nmaster = 'http://127.0.0.1:4'\n").unwrap();
    let mut with_file = command(home.path(), &list);
    assert!(goes_to(with_file.env("EVENKEEL_CONFIG", &other)).contains("127.0.0.1:4"));
    assert!(goes_to(with_file.env("EVENKEEL_MASTER", "http://127.0.0.1:5")).contains("127.0.0.1:5"));
    assert!(goes_to(with_file.args(["--master", "http://127.0.0.1:6"])).contains("127.0.0.1:6"));
}

#[test]
fn a_wrong_key_or_value_in_the_file_is_exit_code_2_with_the_nearest_right_one() {
    let home = home();
    let file = home.path().join("evenkeel.toml");
    for (text, part) in [
        ("mastre = 'x'", "\"master\""),
        ("[sumbit]\npriority = 1", "\"submit\""),
        ("[submit]\npriority = 1000", "submit.priority"),
        ("[up]\nruntime = 'dokcer'", "docker"),
        ("log_format = 'text'", "log-format"),
        ("master = ", "not TOML"),
    ] {
        fs::write(&file, text).unwrap();
        let output = command(home.path(), &["--config", file.to_str().unwrap(), "version"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {}", said(&output));
        assert!(
            said(&output).contains(part) && said(&output).contains("evenkeel.toml"),
            "{text}: {}",
            said(&output)
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_variable_is_exit_code_2() {
    let home = home();
    let output =
        command(home.path(), &["submit", "fib", "1"]).env("EVENKEEL_PRIORITY", "high").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("high"), "{}", said(&output));
}

#[test]
fn a_broken_context_says_what_to_do() {
    let home = home();
    fs::write(home.path().join("context.toml"), "master = 1").unwrap();
    let output = command(home.path(), &["task", "list", "--state-dir", home.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("--master"), "{}", said(&output));
}

/// Takes one request and answers 401; the request's head.
fn one_request(listener: &TcpListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    let body =
        r#"{"type":"/problems/unauthenticated","title":"No","status":401,"detail":"no","request_id":"r"}"#;
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 401 No\r\ncontent-type: application/problem+json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .unwrap();
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

#[test]
fn the_contexts_token_is_sent_to_the_contexts_url_and_to_no_other() {
    let home = home();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let state = home.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("admin.token"), "ek_the-secret\n").unwrap();
    fs::write(state.join("context.toml"), format!("master = '{url}'\ntoken_file = 'admin.token'\n")).unwrap();
    let arguments = ["task", "list", "--state-dir", state.to_str().unwrap()];

    let server = thread::spawn(move || one_request(&listener));
    let output = command(home.path(), &arguments).output().unwrap();
    assert!(server.join().unwrap().contains("authorization: bearer ek_the-secret"));
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("--token-file") && !said(&output).contains("ek_the-secret"));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || one_request(&listener));
    let output = command(home.path(), &arguments).args(["--master", &other]).output().unwrap();
    assert!(!server.join().unwrap().contains("authorization"));
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || one_request(&listener));
    command(home.path(), &arguments)
        .args(["--master", &other])
        .env("EVENKEEL_TOKEN", "ek_mine")
        .output()
        .unwrap();
    assert!(server.join().unwrap().contains("authorization: bearer ek_mine"));
}
