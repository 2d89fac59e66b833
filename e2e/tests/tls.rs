//! TLS and tokens as a user meets them, seen by clients that are not ours too: curl and openssl.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{Cluster, Ran, docker, evenkeel, eventually, run, try_run};
use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn curl(arguments: &[&str]) -> Ran {
    try_run(
        Command::new("curl").args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"]).args(arguments),
        "",
    )
}

fn openssl(folder: &Path, line: &str) -> Ran {
    try_run(Command::new("openssl").args(line.split(' ')).current_dir(folder), "")
}

/// `evenkeel` with a state directory of its own: as on another machine.
fn elsewhere(state: &Path) -> Command {
    let mut command = evenkeel();
    command.env("EVENKEEL_STATE_DIR", state).stdin(Stdio::null());
    command
}

#[test]
fn a_cluster_with_tls_works_on_containers_and_its_nodes_come_back_to_a_master_that_was_killed() {
    let cluster = Cluster::up(&["--nodes", "2", "--tls", "auto"]);
    assert_eq!(cluster.evenkeel(&["submit", "fib", "30"]), r#"{"value":"832040"}"#);
    let url = format!("https://127.0.0.1:{}", cluster.port);
    let ca = cluster.state().join("ca.pem");
    let ready = format!("{url}/readyz");

    let seen = curl(&["--cacert", ca.to_str().unwrap(), &ready]);
    assert!(seen.code == 0 && seen.stdout.ends_with("200"), "{seen:?}");
    assert_eq!(curl(&[&ready]).code, 60, "a CA that nobody knows");
    let plain = curl(&[&ready.replace("https:", "http:")]);
    assert!(plain.stdout.contains("https://") && plain.stdout.ends_with("400"), "{plain:?}");
    let hello = |version: &str| {
        let line = format!(
            "s_client -connect 127.0.0.1:{} -CAfile ca.pem -verify_return_error -verify_ip 127.0.0.1 {version}",
            cluster.port
        );
        openssl(cluster.state(), &line).code
    };
    assert_eq!((hello("-tls1_2"), hello("-tls1_3")), (0, 0));
    assert_ne!(hello("-tls1_1 -cipher DEFAULT@SECLEVEL=0"), 0);

    let downgraded = cluster.try_evenkeel(&["status", "--master", &url.replace("https:", "http:")]);
    assert!(downgraded.code == 2 && downgraded.stderr.contains("clear text"), "{downgraded:?}");
    let pin = format!("sha256:{}", "0".repeat(64));
    let wrong = cluster.try_evenkeel(&["status", "--ca", &pin]);
    assert!(wrong.code == 3 && wrong.stderr.contains("name its CA by --ca"), "{wrong:?}");

    let master = format!("evenkeel-{}-master", cluster.name);
    docker(&["kill", "-s", "KILL", &master]);
    docker(&["start", &master]);
    cluster.wait_for_ready(2, 60);
    assert_eq!(cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#);
    for container in ["master", "manager", "node"].iter().flat_map(|role| cluster.containers(role)) {
        let shown = docker(&["inspect", &container]);
        assert!(!shown.contains("PRIVATE KEY") && !shown.contains("ek_"), "{shown}");
    }
}

#[test]
fn a_cluster_with_tls_works_on_processes_and_takes_a_node_by_a_join_token_once() {
    let cluster = Cluster::up_processes(&["--nodes", "1", "--tls", "auto"]);
    assert_eq!(cluster.evenkeel(&["submit", "fib", "30"]), r#"{"value":"832040"}"#);
    let url = format!("https://127.0.0.1:{}", cluster.port);
    let create = ["token", "create", "--scope", "node", "--single-use", "--node-name", "by-hand"];
    let join = cluster.evenkeel(&[&create[..], &["-o", "join"]].concat());
    assert!(join.lines().nth(1).unwrap().starts_with("sha256:"), "the CA's fingerprint goes with the token");

    let state = tempfile::tempdir().unwrap();
    let node = || {
        let mut node = elsewhere(state.path());
        node.args(["node", "--master", &url, "--name", "by-hand", "--token-file", "-"]);
        node
    };
    let mut first = Running(node().stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    first.0.stdin.take().unwrap().write_all(join.as_bytes()).unwrap();
    cluster.wait_for_node("by-hand", "ready", 30);

    let again = try_run(&mut node(), &join);
    assert!(again.code != 0 && again.stderr.contains("has been used"), "{again:?}");
    let token = join.lines().next().unwrap();
    let untrusting = try_run(&mut node(), token);
    assert!(untrusting.code == 2 && untrusting.stderr.contains("--ca"), "{untrusting:?}");
}

#[test]
fn a_cluster_on_all_addresses_says_its_urls_and_is_reached_by_each_with_its_ca() {
    let (cluster, up) = Cluster::up_everywhere(&["--nodes", "1", "--tls", "auto"]);
    let urls: Vec<&str> = up.stdout.split_whitespace().filter(|word| word.starts_with("https://")).collect();
    let here = format!("https://127.0.0.1:{}", cluster.port);
    assert!(urls.len() > 1 && urls[0] == here && up.stdout.contains("from other machines"), "{up:?}");
    let ca = cluster.state().join("ca.pem").display().to_string();
    for url in &urls {
        let seen = curl(&["--cacert", &ca, &format!("{url}/readyz")]);
        assert!(seen.stdout.ends_with("200"), "{url}: {seen:?}");
    }
    assert_eq!(cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#);
}

#[test]
fn a_master_with_another_name_shows_it_in_its_certificate_and_answers_to_it() {
    let state = tempfile::tempdir().unwrap();
    let token = state.path().join("admin.token").display().to_string();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut master = elsewhere(state.path());
    master.args(["master", "--listen", &format!("127.0.0.1:{port}"), "--bootstrap-token-file", &token]);
    master.args(["--tls", "auto", "--tls-name", "master.example"]);
    let _master = Running(master.stderr(Stdio::null()).spawn().unwrap());
    let ca = state.path().join("tls/ca.pem").display().to_string();
    let ask = |name: &str| {
        let resolve = format!("{name}:{port}:127.0.0.1");
        curl(&["--resolve", &resolve, "--cacert", &ca, &format!("https://{name}:{port}/readyz")])
    };
    eventually("the master is ready by its name", 30, || {
        let seen = ask("master.example");
        if seen.stdout.ends_with("200") { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(ask("other.example").code, 60, "a name that the certificate does not have");
    let resolve = format!("other.example:{port}:127.0.0.1");
    let foreign = curl(&["-k", "--resolve", &resolve, &format!("https://other.example:{port}/v1/status")]);
    assert!(foreign.stdout.ends_with("421"), "{foreign:?}");

    // Our own client trusts the CA by its fingerprint, and the name by the certificate.
    let other = tempfile::tempdir().unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let status = ["status", "--master", &url, "--ca", &ca, "--token-file", &token];
    let ran = try_run(elsewhere(other.path()).args(status), "");
    assert!(ran.code == 0 || ran.code == 6, "{ran:?}");
    let wrong = try_run(elsewhere(other.path()).args(["master", "--tls", "auto", "--tls-name", "a b"]), "");
    assert!(wrong.code == 2 && wrong.stderr.contains("host name"), "{wrong:?}");
}

/// A CA by openssl, and certificates of it.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let it = Self(tempfile::tempdir().unwrap());
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        it.openssl(&format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 30 -subj /CN=Test"));
        it.openssl(&format!(
            "req {new_key} -keyout key.pem -out csr.pem -subj /CN=master -addext subjectAltName=IP:127.0.0.1"
        ));
        it
    }

    fn openssl(&self, line: &str) -> String {
        let ran = openssl(self.0.path(), line);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    /// Makes `cert.pem` anew, good for so many days from now on.
    fn issue(&self, days: i32) {
        self.openssl(&format!(
            "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -copy_extensions copy -days {days} -out new.pem"
        ));
        fs::rename(self.file("new.pem"), self.file("cert.pem")).unwrap();
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[test]
fn a_master_by_files_serves_nodes_and_takes_other_files_without_a_restart() {
    let authority = Authority::new();
    authority.issue(30);
    let state = tempfile::tempdir().unwrap();
    let token = state.path().join("admin.token").display().to_string();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (address, url) = (format!("127.0.0.1:{port}"), format!("https://127.0.0.1:{port}"));
    let mut master = elsewhere(state.path());
    master.args(["master", "--listen", &address, "--bootstrap-token-file", &token]);
    master.args(["--tls-cert", &authority.file("cert.pem"), "--tls-key", &authority.file("key.pem")]);
    let master = Running(master.stderr(Stdio::null()).spawn().unwrap());

    let other = tempfile::tempdir().unwrap();
    let with = |arguments: &[&str]| {
        let mut command = elsewhere(other.path());
        command.args(arguments);
        command.args(["--master", &url, "--ca", &authority.file("ca.pem"), "--token-file", &token]);
        command
    };
    eventually("the master is ready", 30, || {
        let seen = curl(&["--cacert", &authority.file("ca.pem"), &format!("{url}/readyz")]);
        if seen.stdout.ends_with("200") { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let _node = Running(with(&["node", "--name", "n-1"]).stderr(Stdio::null()).spawn().unwrap());
    assert_eq!(run(&mut with(&["submit", "fib", "30"])), r#"{"value":"832040"}"#);

    let shown = || {
        let line = format!("s_client -connect {address} -CAfile ca.pem");
        let ran = openssl(authority.0.path(), &line);
        let begin = ran.stdout.find("-----BEGIN").unwrap();
        let end = ran.stdout.find("-----END").unwrap();
        ran.stdout[begin..end].to_owned()
    };
    let reread = || run(Command::new("kill").args(["-HUP", &master.0.id().to_string()]));
    let first = shown();
    authority.issue(20);
    reread();
    eventually("the new certificate is shown", 30, || {
        if shown() == first { Err("the old one".to_owned()) } else { Ok(()) }
    });
    assert_eq!(run(&mut with(&["submit", "fib", "20"])), r#"{"value":"6765"}"#);

    authority.issue(-1);
    reread();
    eventually("a certificate that has expired is refused", 30, || {
        let ran = try_run(&mut with(&["status"]), "");
        if ran.code == 3 && ran.stderr.contains("has expired") { Ok(()) } else { Err(format!("{ran:?}")) }
    });
}

#[test]
fn a_token_is_made_listed_used_and_revoked_on_the_command_line() {
    let cluster = Cluster::up_processes(&["--nodes", "1"]);
    let create = |arguments: &[&str]| {
        let made = cluster.evenkeel(&[&["token", "create", "-o", "json"], arguments].concat());
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        (made["token"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
    };
    let submit = |token: &str| {
        let mut command = cluster.command();
        try_run(command.env("EVENKEEL_TOKEN", token).args(["submit", "fib", "20"]), "")
    };
    let (submitter, id) = create(&["--scope", "submit", "--ttl", "1h", "--note", "for a test"]);
    assert_eq!(submit(&submitter).code, 0);
    let listed = cluster.evenkeel(&["token", "list"]);
    let line = listed.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.contains("submit") && line.contains("for a test"), "{line}");
    assert!(!listed.contains(&submitter), "a list shows no secret");

    let (reader, _) = create(&["--scope", "read"]);
    let refused = submit(&reader);
    assert!(refused.code == 4 && refused.stderr.contains("scope submit"), "{refused:?}");
    cluster.evenkeel(&["token", "revoke", &id]);
    assert_eq!(submit(&submitter).code, 4);
    let again = cluster.try_evenkeel(&["token", "revoke", &id]);
    assert_eq!(again.code, 2, "{again:?}");

    let (short, _) = create(&["--scope", "submit", "--ttl", "1ms"]);
    eventually("it has expired", 10, || match submit(&short).code {
        4 => Ok(()),
        code => Err(code.to_string()),
    });
}
