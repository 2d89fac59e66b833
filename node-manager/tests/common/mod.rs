//! What both test programs share: this executable as a node, and cleaning up.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(clippy::print_stdout, reason = "the stand-in's log is what is tested")]

use node_manager::{
    docker::DockerEngine,
    engine::{Engine, Filter, Listed},
    image::Program,
    process::ProcessEngine,
    verbs,
};
use std::{
    future::Future,
    io::{BufRead as _, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// If this process was started as a stand-in for a node, does what it was told and ends; else returns.
pub(crate) fn act_if_told() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("node") => serve(true),
        Some("helper") => match args[1].as_str() {
            "serve" => serve(false),
            "read" => serve(true),
            "exit" => std::process::exit(args[2].parse().unwrap()),
            "burn" => loop {
                std::hint::black_box(0);
            },
            "write" => {
                std::fs::write(&args[2], "x").unwrap_or_else(|error| {
                    println!("{}: {error}", args[2]);
                    std::process::exit(1)
                });
                std::process::exit(0);
            }
            "lines" => {
                (0..10).for_each(|n| println!("line {n}"));
                std::process::exit(0);
            }
            "parent" => {
                #[allow(clippy::zombie_processes, reason = "what becomes of it is what is tested")]
                let child = Command::new("/proc/self/exe").args(["helper", "serve"]).spawn().unwrap();
                println!("child {}", child.id());
                serve(false)
            }
            other => panic!("unknown helper {other}"),
        },
        _ => {}
    }
}

/// Reads one line where told, says what it got, and ends in order on SIGTERM.
fn serve(reads: bool) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        println!("ready");
        if reads {
            let mut lines = std::io::stdin().lock().lines();
            println!("got <{}>", lines.next().unwrap().unwrap());
            println!("then {:?}", lines.next().map(Result::unwrap));
        }
        std::io::stdout().flush().unwrap();
        terminate.recv().await;
        println!("bye");
    });
    std::process::exit(0)
}

pub(crate) fn block_on(test: impl Future<Output = ()>) {
    block_on_with(test);
}

pub(crate) fn block_on_with<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// A cluster name of this test's own; begins with `t-`, by which a left-over is known.
pub(crate) fn own_cluster() -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    format!("t-{}", &id[id.len() - 10..])
}

/// Waits until it holds.
pub(crate) async fn eventually<T>(
    what: &str,
    seconds: u64,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look().await {
            Ok(value) => return value,
            Err(why) => assert!(Instant::now() < until, "not within {seconds} s: {what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn listed(engine: &dyn Engine, cluster: &str, name: &str) -> Option<Listed> {
    let all = engine.list(&Filter::cluster(cluster)).await.unwrap();
    all.into_iter().find(|listed| listed.name == name)
}

/// Runs `docker`; what it wrote, trimmed.
pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Docker, an image of this very executable, and a cluster of one's own; dropping it takes all away, also
/// after a panic.
pub(crate) struct Bench {
    pub(crate) engine: DockerEngine,
    pub(crate) image: String,
    pub(crate) cluster: String,
}

impl Bench {
    /// Fails if there is no Docker daemon: these tests are never skipped.
    pub(crate) async fn new() -> Self {
        let engine = DockerEngine::connect().await.unwrap_or_else(|error| panic!("{error}"));
        let program = Program::running().unwrap_or_else(|error| panic!("{error}"));
        let image =
            engine.ensure_image(&program, &[]).await.unwrap_or_else(|error| panic!("{error}")).reference;
        Self { engine, image, cluster: own_cluster() }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let try_docker = |args: &[&str]| {
            let output = Command::new("docker").args(args).stdin(Stdio::null()).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let label = format!("label=io.evenkeel.cluster={}", self.cluster);
        for container in try_docker(&["ps", "-aq", "--filter", &label]).lines() {
            try_docker(&["rm", "-f", "-v", container]);
        }
        for kind in ["network", "volume"] {
            for thing in try_docker(&[kind, "ls", "-q", "--filter", &label]).lines() {
                try_docker(&[kind, "rm", thing]);
            }
        }
        try_docker(&["rmi", &self.image]);
    }
}

/// An engine of processes with a state directory and a cluster of one's own; dropping it ends them all, also
/// after a panic.
pub(crate) struct ProcessBench {
    pub(crate) engine: ProcessEngine,
    pub(crate) state: tempfile::TempDir,
    pub(crate) cluster: String,
}

impl ProcessBench {
    pub(crate) fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { engine: ProcessEngine::new(state.path()).unwrap(), state, cluster: own_cluster() }
    }
}

impl Drop for ProcessBench {
    fn drop(&mut self) {
        let (engine, cluster) = (ProcessEngine::new(self.state.path()), self.cluster.clone());
        // A runtime of its own, because this may run inside one.
        let pruning = std::thread::spawn(move || {
            block_on(async {
                if let Ok(engine) = engine {
                    let _ = verbs::prune_containers(&engine, &cluster).await;
                }
            });
        });
        let _ = pruning.join();
    }
}
