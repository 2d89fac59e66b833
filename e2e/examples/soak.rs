//! Whether a cluster under load stays the size it is: memory of masters, manager and nodes, and bytes of the store, once a
//! minute: `cargo run --release -p e2e --example soak -- [MINUTES] [MASTERS]`. One master stores in SQLite; several share
//! a PostgreSQL server.
//!
//! Clients submit tasks that are stored, and wait for them. The store's bound is set so low that it is reached in the first
//! minutes. At the end the medians of the second and the last quarter are printed side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for developers")]

use e2e::{
    chaos::{
        caller,
        stage::{Actor, Stage},
    },
    masters::Ground,
};
use serde_json::Value;
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Clients, each with one task at a time.
const CALLERS: u32 = 8;
/// Pause of a client after each task: the machine is not to be busy, only the cluster never to rest.
const PAUSE: Duration = Duration::from_millis(40);
const NODES: usize = 3;
const STORE_MAX: &str = "16MiB";

/// One look: tasks that ended so far, and MiB of masters, manager, nodes and store.
#[derive(Clone, Copy)]
struct Look {
    ended: u64,
    mib: [f64; 4],
}

fn rss_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib / 1024.0
}

fn store_bytes(stage: &Stage, ground: Ground) -> u64 {
    match ground {
        Ground::Sqlite => {
            let files = fs::read_dir(stage.file("")).unwrap().flatten();
            let store = files.filter(|file| file.file_name().to_string_lossy().starts_with("evenkeel.db"));
            store.map(|file| file.metadata().map_or(0, |data| data.len())).sum()
        }
        // Tables and indexes with what is dead in them; the server's log is its own affair.
        Ground::Postgres(_) => {
            stage.sql("SELECT pg_database_size(current_database())").trim().parse().unwrap()
        }
    }
}

fn look(stage: &Stage, ground: Ground, ended: u64) -> Look {
    let masters = (0..stage.count()).map(|at| rss_mib(stage.pid_of(Actor::Master(at)))).sum();
    let nodes = stage.node_pids().into_iter().map(rss_mib).sum();
    let store = store_bytes(stage, ground) as f64 / f64::from(1 << 20);
    Look { ended, mib: [masters, rss_mib(stage.pid_of(Actor::Manager)), nodes, store] }
}

/// Submits and waits until `end`; counts what succeeded, and panics if anything else is answered.
async fn call(url: String, token: String, end: Instant, ended: Arc<AtomicU64>) {
    let http = caller::http();
    // As large as a small script's input, so that the store has something to forget.
    let body = serde_json::json!({"kind": "sum", "input": {"numbers": vec!["1234567.125"; 64]}});
    while Instant::now() < end {
        let submit = http.post(format!("{url}/v1/tasks")).bearer_auth(&token).json(&body);
        let mut task: Value = submit.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        let id = task["id"].as_str().unwrap().to_owned();
        // A busy machine may make it take long, but not for ever.
        for _ in 0..24 {
            let wait = http.get(format!("{url}/v1/tasks/{id}?wait=5s")).bearer_auth(&token);
            task = wait.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
            if !task["finished_at"].is_null() {
                break;
            }
        }
        assert_eq!(task["result"]["value"], "79012296", "{task}");
        ended.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

fn median(looks: &[Look], which: usize) -> f64 {
    let mut values: Vec<f64> = looks.iter().map(|look| look.mib[which]).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>().expect("a number"));
    let minutes: u64 = arguments.next().unwrap_or(30).into();
    let ground = match arguments.next() {
        None | Some(1) => Ground::Sqlite,
        Some(masters) => Ground::Postgres(usize::try_from(masters).expect("a number of masters")),
    };
    let stage = Stage::raise(ground, NODES, &["--store-max-bytes", STORE_MAX]);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let ended = Arc::new(AtomicU64::new(0));
    let (url, token, count) = (stage.urls[0].clone(), stage.token(), Arc::clone(&ended));
    let callers = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..CALLERS {
                all.spawn(call(url.clone(), token.clone(), end, Arc::clone(&count)));
            }
            all.join_all().await;
        });
    });
    let mut looks = Vec::new();
    println!("{ground:?}\nminute  tasks  masters  manager  nodes  store (MiB)");
    while Instant::now() + Duration::from_secs(60) <= end {
        thread::sleep(Duration::from_secs(60));
        let look = look(&stage, ground, ended.load(Ordering::Relaxed));
        let [master, manager, nodes, store] = look.mib;
        looks.push(look);
        println!("{:6} {:6} {master:8.1} {manager:8.1} {nodes:6.1} {store:6.1}", looks.len(), look.ended);
    }
    callers.join().unwrap();
    let quarter = looks.len() / 4;
    assert!(quarter > 0, "give it at least 4 minutes");
    let (early, late) = (&looks[quarter..2 * quarter], &looks[looks.len() - quarter..]);
    for (which, name) in ["masters", "manager", "nodes", "store"].into_iter().enumerate() {
        let (was, is) = (median(early, which), median(late, which));
        println!(
            "{name}: {was:.1} MiB in the second quarter, {is:.1} MiB in the last ({:+.1} %)",
            (is / was - 1.0) * 100.0
        );
    }
}
