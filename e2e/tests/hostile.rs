//! What hostile programs, callers and readers get, on real containers. What was seen is printed, a line for
//! each attack: `cargo nextest run --release -p e2e --test hostile --no-capture`.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use e2e::{Cluster, Ran, docker, evenkeel_binary, eventually, try_run};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

fn saw(attack: &str, what: impl std::fmt::Display) {
    println!("{attack}: {what}");
}

/// A cluster whose tasks can run `/hostile`.
struct Bench {
    cluster: Cluster,
    /// Containers of the nodes that were there at the start, with their engine's ids.
    nodes: BTreeMap<String, String>,
}

impl Bench {
    fn up(nodes: &str) -> Self {
        let program = evenkeel_binary().with_file_name("examples/hostile");
        assert!(program.exists(), "{} is not built", program.display());
        let mount = format!("{}:/hostile:ro", program.display());
        // Two tasks at a time on each.
        let cluster = Cluster::up(&["--nodes", nodes, "--cpus", "1.2", "--mount", &mount]);
        let mut bench = Self { cluster, nodes: BTreeMap::new() };
        bench.nodes = bench.ids();
        bench
    }

    fn ids(&self) -> BTreeMap<String, String> {
        let id = |name: String| {
            let id = docker(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}}", &name]);
            (name, id)
        };
        self.cluster.containers("node").into_iter().map(id).collect()
    }

    fn try_attack(&self, limits: &[&str], attack: &[&str]) -> Ran {
        let submit = ["submit", "--max-attempts", "1", "-o", "value"];
        self.cluster.try_evenkeel(&[&submit, limits, &["run", "--", "/hostile"], attack].concat())
    }

    /// Runs an attack to its end; what it said.
    fn attack(&self, attack: &[&str]) -> Vec<String> {
        let ran = self.try_attack(&["--timeout", "60s"], attack);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout.lines().map(str::to_owned).collect()
    }

    /// The nodes are those that were there, and take work.
    fn all_is_well(&self, after: &str) {
        self.cluster.wait_for_ready(self.nodes.len(), 60);
        assert_eq!(self.ids(), self.nodes, "after {after} the nodes are the same");
        assert_eq!(self.cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#, "after {after}");
    }

    /// Nothing is left on the one node: no process, no file, no memory, and there is room.
    fn nothing_is_left(&self, after: &str) {
        eventually(&format!("nothing is left after {after}"), 30, || {
            let seen = self.attack(&["look-around"]);
            let clean = !seen.iter().any(|line| line.starts_with("left: "))
                && ["shared memory: 0", "wrote 8 MiB"].iter().all(|line| seen.iter().any(|l| l == line));
            if clean { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        self.all_is_well(after);
    }
}

/// Outcomes that are no error, but for these.
fn succeeded<'a>(lines: &'a [String], but: &[&str]) -> Vec<&'a String> {
    lines.iter().filter(|line| line.ends_with(": done") && !but.contains(&line.as_str())).collect()
}

#[test]
fn what_hostile_tasks_try_is_refused_or_contained() {
    let bench = Bench::up("1");
    what_is_not_theirs_is_refused(&bench);
    what_they_leave_is_cleared_away(&bench);
    what_they_do_to_their_neighbours_stays_on_the_node(&bench);
    drop(bench);
    what_they_use_up_is_theirs(&Bench::up("2"));
}

fn what_is_not_theirs_is_refused(bench: &Bench) {
    let seen = bench.attack(&["read-agent"]);
    assert!(seen.contains(&"parent is 1: done".to_owned()), "{seen:?}");
    assert_eq!(succeeded(&seen, &["parent is 1: done"]), [] as [&String; 0]);
    assert!(seen.len() > 20 && seen.iter().any(|line| line == "prlimit: EPERM"), "{seen:?}");
    saw("read, trace or limit the agent", format!("{} ways tried, each EACCES or EPERM", seen.len() - 1));

    let seen = bench.attack(&["search-tokens"]);
    assert_eq!(seen[0], "own descriptors: 0 1 2");
    assert!(seen[1].starts_with("looked at ") && seen[1].ends_with("tokens in: []"), "{seen:?}");
    saw("search files, environments and command lines for tokens", &seen[1]);

    let seen = bench.attack(&["privileges"]);
    assert!(seen.len() > 15 && succeeded(&seen, &[]).is_empty(), "{seen:?}");
    saw("become root, mount, trace, raw sockets, devices", format!("{} ways tried, none worked", seen.len()));

    let master = format!("evenkeel-{}-master:7400", bench.cluster.name);
    let node = bench.cluster.nodes().remove(0).text("id").to_owned();
    let seen = bench.attack(&["network", &master, &node]);
    let (api, sockets): (Vec<_>, Vec<_>) = seen.iter().partition(|line| line.contains("/v1/"));
    assert!(api.len() == 13 && api.iter().all(|line| line.ends_with(": 401")), "{seen:?}");
    assert!(sockets.len() == 5 && !sockets.iter().any(|line| line.ends_with(": done")), "{seen:?}");
    assert_eq!(bench.cluster.nodes().len(), 1, "no fake node");
    saw("forge a node, a report, a result; use the operator's API", "13 requests, each 401");
    saw("reach the Docker socket", "no such file; nothing listens at 2375 and 2376");

    let seen = bench.attack(&["write-outside"]);
    assert_eq!(succeeded(&seen, &["own directory: done"]), [] as [&String; 0]);
    saw("write outside of its directory", format!("{} places, each EROFS or EACCES", seen.len() - 1));

    let seen = bench.attack(&["signals"]);
    saw("kill, stop and end the agent", format!("{}; the node goes on", seen[0]));
    bench.all_is_well("signals");
}

fn what_they_leave_is_cleared_away(bench: &Bench) {
    for (attack, what) in [
        ("fill-tmp", "fill /tmp and /dev/shm"),
        ("deep", "leave a directory that is hard to remove"),
        ("daemons", "leave daemons behind"),
        ("respawn", "leave a process that forks from life to life"),
        ("system-v", "leave System V memory, queues, semaphores"),
    ] {
        let seen = bench.attack(&[attack]);
        bench.nothing_is_left(attack);
        saw(what, format!("{}; gone for the next task", seen.join(", ")));
    }
}

fn what_they_do_to_their_neighbours_stays_on_the_node(bench: &Bench) {
    let cluster = &bench.cluster;
    // Said plainly in docs/security.md: tasks of one node are one user, and this is what that means.
    let victim = cluster.submit(&["run", "--", "/hostile", "victim", "secret"]);
    cluster.wait_for_task(&victim, "running", 20);
    let seen = bench.attack(&["neighbours", "changed"]);
    assert_eq!(seen, ["read: secret", "changed: done"]);
    saw("read and change the files of a task of the same node", "possible: tasks of one node are one user");
    let ran = bench.try_attack(&["--timeout", "60s"], &["kill-all"]);
    let task = cluster.wait_for_task(&victim, "failed", 30);
    assert_eq!(task["error"]["code"], "task_error", "{task} {ran:?}");
    assert!(task["error"]["message"].as_str().unwrap().contains("signal 9"), "{task}");
    saw("kill all tasks of the same node", "possible; the node lives, and says of each: killed by signal 9");
    bench.nothing_is_left("kill-all");

    let holding = cluster.submit(&["run", "--", "/hostile", "descriptors"]);
    cluster.wait_for_task(&holding, "running", 20);
    bench.all_is_well("descriptors");
    let task = cluster.wait_for_task(&holding, "succeeded", 60);
    saw("open files without end", task["result"]["stdout"].as_str().unwrap().trim());
}

fn what_they_use_up_is_theirs(bench: &Bench) {
    let cluster = &bench.cluster;
    let ran = bench.try_attack(&["--timeout", "3s"], &["endless"]);
    assert!(ran.code == 1 && ran.stderr.contains("timeout"), "{ran:?}");
    let agents = cluster.containers("node").into_iter().map(|name| resident_mib(&name)).max().unwrap();
    assert!(agents < 64, "an agent has {agents} MiB");
    saw("print without end", format!("ended by its time limit; an agent has {agents} MiB after it"));
    bench.all_is_well("endless output");

    let ran = bench.try_attack(&[], &["allocate"]);
    assert!(ran.code == 1 && ran.stderr.contains("out_of_memory"), "{ran:?}");
    bench.all_is_well("taking all memory");
    saw("take all memory", "out_of_memory for itself; the node lives");

    let bomb =
        cluster.submit(&["--max-attempts", "1", "--timeout", "8s", "run", "--", "/hostile", "fork-bomb"]);
    let node = cluster.node_of(&bomb, 20);
    std::thread::sleep(Duration::from_secs(2));
    let pids = docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", &node]);
    // Commands that are offered to the bombed node find no room there, and run all the same.
    let others: Vec<_> = (0..4).map(|_| cluster.submit(&["run", "--", "/evenkeel", "version"])).collect();
    for other in &others {
        cluster.wait_for_task(other, "succeeded", 120);
    }
    let task = cluster.wait_for_task(&bomb, "failed", 60);
    // On a busy machine a thousand processes keep its agent silent for longer than a node may be.
    let end = task["error"]["code"].as_str().unwrap();
    assert!(["timeout", "node_lost"].contains(&end), "{task}");
    bench.all_is_well("a fork bomb");
    saw(
        "fork without end",
        format!("{pids} processes on its node, its end: {end}; others ran on, the node takes work again"),
    );
}

/// Resident memory of a container's first process.
fn resident_mib(container: &str) -> u64 {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// A request of which only this much is sent.
fn begin(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(30)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The master may refuse it before it has all.
    let _refused = stream.write_all(text.as_bytes());
    stream
}

/// Whether the master has closed it, without waiting.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a live local.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    assert!(limit.rlim_max >= 11_000, "this test opens 10,000 connections; raise `ulimit -Hn` above 11,000");
}

#[test]
fn a_master_serves_on_whatever_connections_do_that_are_not_finished() {
    allow_many_files();
    let cluster = Cluster::up(&["--nodes", "1"]);
    let before = cluster.wait_for_ready(1, 30).remove(0);
    let master = format!("evenkeel-{}-master", cluster.name);
    let ip = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address: SocketAddr =
        format!("{}:7400", docker(&["inspect", "--format", ip, &master])).parse().unwrap();
    let at_rest = resident_mib(&master);

    let drip = "GET /v1/status HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
    let mut dripping: Vec<_> = (0..200).map(|_| begin(address, drip)).collect();
    let mut idle: Vec<_> = (0..10_000).map(|_| begin(address, "")).collect();
    for _ in 0..10 {
        assert_eq!(cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#);
        for stream in &mut dripping {
            let _closed = stream.write_all(b"x");
        }
    }
    let crowded = resident_mib(&master);
    let closed = idle.iter_mut().map(is_closed).filter(|closed| *closed).count();
    assert!(closed >= 10_000 - 4_096, "{closed} of 10,000 are closed");
    let dripped = dripping.iter_mut().map(is_closed).filter(|closed| *closed).count();
    assert_eq!(dripped, 200, "those that drip are the oldest that say nothing");
    assert!(crowded < 200, "the master has {crowded} MiB");
    saw(
        "10,000 connections that say nothing, 200 that drip a header",
        format!(
            "others are served; {closed} and {dripped} closed to make room; {at_rest} MiB at rest, {crowded} MiB now"
        ),
    );
    drop((idle, dripping));

    // Bodies that never end, by somebody who has a token: 400 of 900 KiB are 350 MiB.
    let token = fs::read_to_string(cluster.state_dir().join("admin.token")).unwrap();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n",
        token.trim()
    );
    let most = format!("{head}{}", " ".repeat(900 * 1024));
    let mut unfinished: Vec<_> = (0..400).map(|_| begin(address, &most)).collect();
    assert_eq!(cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#);
    let held = resident_mib(&master);
    let refused = unfinished.iter_mut().filter(|stream| {
        let mut answer = [0; 12];
        stream.set_nonblocking(true).unwrap();
        matches!((&**stream).read(&mut answer), Ok(12) if answer.ends_with(b"503"))
    });
    let refused = refused.count();
    assert!(refused > 100, "{refused} were refused");
    assert!(held < 400, "the master has {held} MiB");
    saw("400 bodies of 900 KiB that never end", format!("{refused} get 503, others are served; {held} MiB"));
    drop(unfinished);

    let after = cluster.wait_for_ready(1, 60).remove(0);
    assert_eq!(after.text("id"), before.text("id"), "the node stayed");
}

/// Texts of the form of a token: `ek_` and 43 characters of base64url.
fn tokens_in(bytes: &[u8]) -> Vec<String> {
    let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let found = bytes.windows(46).filter(|text| text.starts_with(b"ek_") && text[3..].iter().all(is_inside));
    found.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// All places below `root` whose files have a token in them.
fn files_with_tokens(root: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && !tokens_in(&fs::read(&path).unwrap()).is_empty() {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// What Docker shows of a cluster to whoever may ask it, with tokens in it.
fn shown_by_docker(cluster: &Cluster) -> Vec<String> {
    let label = format!("label=io.evenkeel.cluster={}", cluster.name);
    let mut found = Vec::new();
    let mut look = |what: String, text: &[u8]| {
        if !tokens_in(text).is_empty() {
            found.push(what);
        }
    };
    for container in docker(&["ps", "-aq", "--no-trunc", "--filter", &label]).lines() {
        look(format!("inspect {container}"), docker(&["inspect", container]).as_bytes());
        let logs = try_run(Command::new("docker").args(["logs", container]), "");
        look(format!("logs {container}"), (logs.stdout + &logs.stderr).as_bytes());
        // Of one that does not run there is none.
        let top = try_run(Command::new("docker").args(["top", container, "-eo", "pid,args"]), "");
        look(format!("top {container}"), top.stdout.as_bytes());
    }
    for (kind, list) in [("volume", "ls"), ("network", "ls")] {
        for thing in docker(&[kind, list, "-q", "--filter", &label]).lines() {
            look(format!("inspect {thing}"), docker(&[kind, "inspect", thing]).as_bytes());
        }
    }
    for command in
        [&["image", "inspect", "evenkeel:latest"][..], &["history", "--no-trunc", "evenkeel:latest"]]
    {
        look(command.join(" "), docker(command).as_bytes());
    }
    found
}

/// Environments and command lines of all processes of this machine, with one of these tokens in them. Only
/// these, because others have clusters here too.
fn shown_by_processes(known: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["environ", "cmdline"] {
            let path = entry.path().join(file);
            let bytes = fs::read(&path).unwrap_or_default();
            if tokens_in(&bytes).iter().any(|token| known.contains(token)) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn no_token_is_found_where_others_look_while_a_cluster_runs() {
    let bench = Bench::up("2");
    let cluster = &bench.cluster;
    for work in [&["fib", "20"][..], &["sum", "1", "2"], &["sleep", "10"], &["burn", "10"]] {
        cluster.evenkeel(&[&["submit"], work].concat());
    }
    bench.attack(&["look-around"]);
    let made = cluster.evenkeel(&["token", "create", "--scope", "read", "--ttl", "1h"]);
    assert_eq!(tokens_in(made.as_bytes()).len(), 1, "{made}");

    // Every token that is alive: of the administrator and the manager by their files, of the nodes' sessions
    // and their joins by their form.
    let copy = tempfile::tempdir().unwrap();
    for (container, folder) in [("master", "/state"), ("manager", "/state")] {
        let to = copy.path().join(container);
        let from = format!("evenkeel-{}-{container}:{folder}", cluster.name);
        docker(&["cp", &from, to.to_str().unwrap()]);
    }
    let state = cluster.state_dir();
    let mut known = tokens_in(made.as_bytes());
    for root in [copy.path(), state] {
        for file in files_with_tokens(root) {
            known.extend(tokens_in(&fs::read(root.join(file)).unwrap()));
        }
    }
    known.sort();
    known.dedup();
    assert!(known.len() >= 3, "the administrator's, the manager's and the one made here: {}", known.len());

    let allowed =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".token"));
    let stored = files_with_tokens(copy.path());
    assert!(stored.iter().all(allowed), "{stored:?}");
    assert!(copy.path().join("master").read_dir().unwrap().count() >= 2, "the database is there");
    let here = files_with_tokens(state);
    assert!(!here.is_empty() && here.iter().all(allowed), "{here:?}");
    for (root, files) in [(copy.path(), &stored), (state, &here)] {
        for file in files {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(root.join(file)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.display());
        }
    }
    assert_eq!(shown_by_docker(cluster), [] as [String; 0]);
    assert_eq!(shown_by_processes(&known), [] as [PathBuf; 0]);
    let inside: Vec<_> = (0..4).map(|_| bench.attack(&["search-tokens"]).pop().unwrap()).collect();
    assert!(inside.iter().all(|line| line.ends_with("tokens in: []")), "{inside:?}");
    saw(
        "search for tokens",
        format!(
            "none in docker inspect, logs, top, history, environments, command lines, the database and its log; only in {stored:?} and {here:?}, mode 600"
        ),
    );
    a_planted_token_is_found(cluster, &known[0]);
}

/// The search above is one that finds something.
fn a_planted_token_is_found(cluster: &Cluster, token: &str) {
    let container = format!("evenkeel-{}-planted", cluster.name);
    let label = format!("io.evenkeel.cluster={}", cluster.name);
    let variable = format!("TOKEN={token}");
    docker(&[
        "create",
        "--name",
        &container,
        "--label",
        &label,
        "--env",
        &variable,
        "evenkeel:latest",
        "version",
    ]);
    let found = shown_by_docker(cluster);
    docker(&["rm", "-f", &container]);
    assert_eq!(found.len(), 1, "{found:?}");

    let mut process =
        Command::new("sleep").arg("60").env("TOKEN", token).stdin(Stdio::null()).spawn().unwrap();
    let found = eventually("the process is seen", 10, || {
        let found = shown_by_processes(&[token.to_owned()]);
        if found.is_empty() { Err(String::new()) } else { Ok(found) }
    });
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(found, [PathBuf::from(format!("/proc/{}/environ", process.id()))]);

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("log"), format!("INFO a token: {token}\n")).unwrap();
    assert_eq!(files_with_tokens(folder.path()), [PathBuf::from("log")]);
}
