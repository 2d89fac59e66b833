//! The store seen from outside: a full disk, a database server that goes and comes back, copies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{
    Postgres, Ran,
    chaos::stage::{Actor, Stage},
    evenkeel_binary, eventually,
    masters::Ground,
    postgres,
    relay::{Cut, Relay},
    run, try_run,
};
use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// A master alone. Its token is outside of its state directory.
struct Master {
    folder: TempDir,
    url: String,
    process: Child,
}

impl Master {
    /// Starts one by this command, to which its own is added; `prepare` may say more of it.
    fn start(mut command: Command, prepare: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let log = File::create(folder.path().join("log")).unwrap();
        prepare(&mut command);
        let spawned = command
            .args(["--listen", &address])
            .env("EVENKEEL_CLUSTER", "t-store")
            .env("EVENKEEL_STATE_DIR", folder.path().join("state"))
            .env("EVENKEEL_BOOTSTRAP_TOKEN_FILE", folder.path().join("token"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let master = Self { folder, url: format!("http://{address}"), process: spawned.unwrap() };
        master.wait_until_ready();
        master
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Status and body of `/readyz`.
    fn readyz(&self) -> (String, String) {
        let url = format!("{}/readyz", self.url);
        let ran = try_run(Command::new("curl").args(["-sS", "-m", "30", "-w", "\n%{http_code}", &url]), "");
        let (body, status) = ran.stdout.rsplit_once('\n').unwrap_or(("", "none"));
        (status.to_owned(), body.to_owned())
    }

    fn wait_until_ready(&self) {
        eventually("the master is ready", 60, || match self.readyz() {
            (status, _) if status == "200" => Ok(()),
            other => Err(format!("{other:?}, {}", self.log())),
        });
    }

    /// How large a file may be that it writes: with 0 every write fails.
    fn limit_files(&self, limit: &str) {
        let pid = self.process.id().to_string();
        run(Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}")]));
    }

    fn submit(&self) -> Ran {
        let mut command = Command::new(evenkeel_binary());
        let token = self.folder.path().join("token");
        command.args(["submit", "--detach", "fib", "20", "--master", &self.url, "--token-file"]).arg(token);
        try_run(command.env("EVENKEEL_STATE_DIR", self.folder.path().join("client")), "")
    }

    /// Submits as a client that cannot repeat it; status and body.
    fn post_without_key(&self) -> (String, String) {
        let token = fs::read_to_string(self.folder.path().join("token")).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "60", "-w", "\n%{http_code}", "-d", r#"{"kind":"fib","input":{"n":20}}"#]);
        curl.args(["-H", "Content-Type: application/json", "-H"]);
        curl.arg(format!("Authorization: Bearer {}", token.trim())).arg(format!("{}/v1/tasks", self.url));
        let ran = try_run(&mut curl, "");
        let (body, status) = ran.stdout.rsplit_once('\n').unwrap_or(("", "none"));
        (status.to_owned(), body.to_owned())
    }

    /// Submits until one is refused; what was acknowledged, and the refusal.
    fn submit_until_refused(&self) -> (Vec<String>, Ran) {
        let mut acknowledged = Vec::new();
        loop {
            let ran = self.submit();
            if ran.code != 0 {
                return (acknowledged, ran);
            }
            acknowledged.push(ran.stdout.trim().to_owned());
            assert!(acknowledged.len() < 1_000, "none is refused");
        }
    }

    fn listed(&self) -> String {
        let mut command = Command::new(evenkeel_binary());
        let token = self.folder.path().join("token");
        command.args([
            "task",
            "list",
            "--limit",
            "1000",
            "-o",
            "json",
            "--master",
            &self.url,
            "--token-file",
        ]);
        run(command.arg(token).env("EVENKEEL_STATE_DIR", self.folder.path().join("client")))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_disk_that_is_full_or_broken_refuses_what_is_new_says_so_and_loses_nothing() {
    let mut own_mount = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        own_mount.args(["--user", "--map-root-user"]);
    }
    // The signal of a file that may not grow would end the process, where a broken disk only gives an error.
    let small = "trap '' XFSZ; mount -t tmpfs -o size=2m tmpfs \"$EVENKEEL_STATE_DIR\" && exec \"$0\" \"$@\"";
    own_mount.args(["--mount", "sh", "-c", small]).arg(evenkeel_binary()).arg("master");
    let master = Master::start(own_mount, |_| {});
    let first = master.submit();
    assert_eq!(first.code, 0, "{first:?}");
    // As the master sees it.
    let root = PathBuf::from(format!("/proc/{}/root", master.process.id()));
    let state = master.folder.path().join("state");
    let filler = root.join(state.strip_prefix("/").unwrap()).join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
    let (mut acknowledged, refused) = master.submit_until_refused();
    acknowledged.push(first.stdout.trim().to_owned());
    assert!(refused.stderr.contains("full"), "{refused:?}");
    drop(file);
    fs::remove_file(filler).unwrap();
    master.wait_until_ready();
    master.limit_files("0:unlimited");
    let (status, why) = eventually("it is not ready", 30, || match master.readyz() {
        (status, why) if status == "503" => Ok((status, why)),
        other => Err(format!("{other:?}")),
    });
    assert!(status == "503" && why.contains("I/O"), "{why}");
    let refused = master.submit();
    assert!(refused.code != 0 && refused.stderr.contains("I/O"), "{refused:?}");
    let listed = master.listed();
    assert!(acknowledged.iter().all(|id| listed.contains(id)), "reading goes on");
    master.limit_files("unlimited");
    master.wait_until_ready();
    let last = master.submit();
    assert_eq!(last.code, 0, "{last:?}");
    acknowledged.push(last.stdout.trim().to_owned());
    let listed = master.listed();
    assert!(acknowledged.iter().all(|id| listed.contains(id)), "{acknowledged:?} were acknowledged");
}

#[test]
fn a_database_server_that_goes_away_is_waited_for_and_its_password_is_never_said() {
    let mut server = Postgres::start();
    let mut command = Command::new(evenkeel_binary());
    command.arg("master");
    let master = Master::start(command, |command| {
        command.env("EVENKEEL_STORE", server.database());
    });
    let first = master.submit();
    assert_eq!(first.code, 0, "{first:?}");
    server.kill();
    let why = eventually("it is not ready", 30, || match master.readyz() {
        // Nobody leads once the lease has ended.
        (status, why) if status == "503" && (why.contains("PostgreSQL") || why.contains("leader")) => Ok(why),
        other => Err(format!("{other:?}")),
    });
    let refused = master.submit();
    assert_ne!(refused.code, 0, "{refused:?}");
    server.start_again();
    master.wait_until_ready();
    let last = master.submit();
    assert_eq!(last.code, 0, "{last:?}");
    let listed = master.listed();
    assert!(listed.contains(first.stdout.trim()) && listed.contains(last.stdout.trim()), "{listed}");
    let log = master.log();
    let mut said = vec![log, why, refused.stderr];
    let wrong = server.database().replace("127.0.0.1", "127.0.0.1:x");
    let mut command = Command::new(evenkeel_binary());
    command.args(["master", "--listen", "127.0.0.1:0", "--insecure-loopback"]).env("EVENKEEL_STORE", &wrong);
    let ran = try_run(command.env("EVENKEEL_STATE_DIR", master.folder.path().join("other")), "");
    assert_eq!(ran.code, 2, "{ran:?}");
    said.push(ran.stderr);
    for text in said {
        assert!(!text.contains(postgres::PASSWORD), "{text}");
    }
}

/// A master whose connections to its server pass through the relay.
fn master_behind(relay: &Relay, server: &Postgres) -> Master {
    let store = server.database().replace(&format!(":{}/", server.port()), &format!(":{}/", relay.port));
    let mut command = Command::new(evenkeel_binary());
    command.args(["master", "--lease", "60s"]);
    Master::start(command, |command| {
        command.env("EVENKEEL_STORE", store);
    })
}

/// How many tasks there are.
fn count(master: &Master) -> usize {
    let listed: serde_json::Value = serde_json::from_str(&master.listed()).unwrap();
    listed["items"].as_array().unwrap().len()
}

#[test]
fn a_submit_whose_commit_was_not_answered_is_told_what_became_of_it() {
    let server = Postgres::start();
    let relay = Relay::start(server.port());
    let master = master_behind(&relay, &server);
    relay.cut_next(Cut::After, false);
    let (status, body) = master.post_without_key();
    assert_eq!((status.as_str(), relay.cuts(), count(&master)), ("202", 1, 1), "{body}");
    relay.cut_next(Cut::Before, false);
    let (status, body) = master.post_without_key();
    assert_eq!((status.as_str(), relay.cuts(), count(&master)), ("503", 2, 1), "{body}");
    assert!(!body.contains("not known"), "{body}");
    // A client with a key repeats it.
    relay.cut_next(Cut::Before, false);
    let ran = master.submit();
    assert_eq!((ran.code, relay.cuts(), count(&master)), (0, 3, 2), "{ran:?}");

    // Nobody can be asked for longer than the master asks.
    relay.cut_next(Cut::After, true);
    let (status, body) = master.post_without_key();
    assert!(status == "502" && body.contains("leader-lost") && body.contains("is not known"), "{body}");
    relay.open();
    master.wait_until_ready();
    assert_eq!(count(&master), 3, "the master has read what is there");
}

#[test]
fn a_copy_takes_the_place_of_the_store_and_nodes_obey_the_master_on_it() {
    let mut stage = Stage::raise(Ground::Sqlite, 1, &[]);
    let copies = tempfile::tempdir().unwrap();
    let copies_folder = copies.path().to_str().unwrap().to_owned();
    let before = stage.evenkeel(&["submit", "--detach", "fib", "20"]);
    stage.evenkeel(&["task", "wait", &before]);
    let copy = stage.evenkeel(&["master", "backup", &copies_folder]);
    assert!(copy.starts_with(&copies_folder), "{copy}");
    let after = stage.evenkeel(&["submit", "--detach", "fib", "21"]);
    // Nodes see epochs that the copy knows nothing of.
    for _ in 0..2 {
        stage.kill(Actor::Master(0));
        stage.start_master(0);
        stage.wait_for_master();
    }
    let refused = stage.try_evenkeel(&["master", "restore", &copy]);
    assert!(refused.code != 0 && refused.stderr.contains("in use"), "{refused:?}");
    stage.kill(Actor::Master(0));
    assert_eq!(stage.evenkeel(&["master", "restore", &copies_folder]), copy);
    stage.start_master(0);
    stage.wait_for_master();
    assert_eq!(stage.evenkeel(&["submit", "fib", "30"]), r#"{"value":"832040"}"#);
    let known = stage.try_evenkeel(&["task", "get", &before]);
    assert!(known.stdout.contains("6765"), "{known:?}");
    assert_ne!(stage.try_evenkeel(&["task", "get", &after]).code, 0, "the copy is older");
}

/// What the page of operations says of copies of a PostgreSQL: the command that makes one, and those that put it back.
fn printed_copy() -> (String, String) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/operations.md");
    let text = fs::read_to_string(page).unwrap();
    let section = text.split("PostgreSQL has its own tools.").nth(1).unwrap();
    let make = section.split('`').find(|code| code.starts_with("pg_dump ")).unwrap();
    (make.to_owned(), section.split("```\n").nth(1).unwrap().to_owned())
}

#[test]
fn a_dump_of_postgresql_is_made_and_put_back_as_printed_and_nodes_obey_the_master_on_it() {
    let (make, put_back) = printed_copy();
    let mut stage = Stage::raise(Ground::Postgres(1), 1, &[]);
    let (folder, url) = (tempfile::tempdir().unwrap(), stage.store().to_owned());
    let path = format!("{}:{}", postgres::PROGRAMS, std::env::var("PATH").unwrap());
    let shell = |script: &str| {
        let mut shell = Command::new("sh");
        run(shell.args(["-ec", script]).current_dir(folder.path()).env("URL", &url).env("PATH", &path))
    };
    let before = stage.evenkeel(&["submit", "--detach", "fib", "20"]);
    stage.evenkeel(&["task", "wait", &before]);
    shell(&make);
    let after = stage.evenkeel(&["submit", "--detach", "fib", "21"]);
    // Nodes see epochs that the copy knows nothing of.
    for _ in 0..2 {
        stage.kill(Actor::Master(0));
        stage.start_master(0);
        stage.wait_for_master();
    }
    stage.kill(Actor::Master(0));
    stage.database().unwrap().empty(&url);
    shell(&put_back);
    stage.start_master(0);
    stage.wait_for_master();
    assert_eq!(stage.evenkeel(&["submit", "fib", "30"]), r#"{"value":"832040"}"#);
    let known = stage.try_evenkeel(&["task", "get", &before]);
    assert!(known.stdout.contains("6765"), "{known:?}");
    assert_ne!(stage.try_evenkeel(&["task", "get", &after]).code, 0, "the copy is older");
}
