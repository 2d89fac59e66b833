//! The loop against real engines, with a master that only remembers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use client::Error;
use common::{Bench, ProcessBench, block_on, block_on_with, eventually};
use futures_util::{FutureExt as _, future::BoxFuture};
use libtest_mimic::{Arguments, Trial};
use node_manager::{
    Config,
    docker::DockerEngine,
    engine::{Engine, Filter, Listed},
    master::Master,
    process::ProcessEngine,
    run,
    template::Surroundings,
};
use pool::State;
use protocol::{
    NodeId, Problem, Timestamp,
    node::{ExitReport, NodeStatus, NodeView},
    pool::{ManagerHello, PoolSpec, PoolView},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

fn main() {
    common::act_if_told();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let test = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let tests = vec![
        test("containers_are_kept", containers_are_kept),
        test("processes_are_kept", processes_are_kept),
        test("a_second_manager_is_refused", || block_on(a_second_manager_is_refused())),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

/// A master that takes every node for registered once it has a join token.
#[derive(Default)]
struct Remembers {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    spec: PoolSpec,
    revision: u64,
    nodes: Vec<NodeView>,
    exits: Vec<(NodeId, ExitReport)>,
    away: bool,
    held: bool,
    trouble: String,
}

fn away() -> Error {
    Error::Unreachable { url: "http://test".to_owned(), why: "away".to_owned() }
}

impl Remembers {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap())
    }

    fn wish_for(&self, change: impl FnOnce(&mut PoolSpec)) {
        self.with(|inner| {
            change(&mut inner.spec);
            inner.revision += 1;
        });
    }

    fn asked<T>(&self, answer: impl FnOnce(&mut Inner) -> T) -> Result<T, Error> {
        self.with(|inner| if inner.away { Err(away()) } else { Ok(answer(inner)) })
    }
}

impl Master for Remembers {
    fn wish<'a>(
        &'a self,
        pool: &'a str,
        newer_than: Option<u64>,
        _: Duration,
    ) -> BoxFuture<'a, Result<PoolView, Error>> {
        async move {
            loop {
                let view = self.asked(|inner| PoolView {
                    name: pool.to_owned(),
                    revision: inner.revision,
                    spec: inner.spec.clone().into(),
                    manager: None,
                })?;
                if Some(view.revision) != newer_than {
                    return Ok(view);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        .boxed()
    }

    fn hello<'a>(&'a self, hello: &'a ManagerHello) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let held = self.asked(|inner| {
                inner.trouble.clone_from(&hello.trouble);
                inner.held
            })?;
            if held { Err(Error::Problem(Box::new(Problem::conflict("held")))) } else { Ok(()) }
        }
        .boxed()
    }

    fn join_token<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<String, Error>> {
        async move {
            self.asked(|inner| {
                let registered = Timestamp(i64::try_from(inner.nodes.len()).unwrap());
                let view = serde_json::json!({
                    "id": uuid::Uuid::now_v7(), "name": node, "ip": "10.0.0.1", "pool": "p", "status": "ready",
                    "labels": {}, "kinds": [], "allotted_cores": 1.0, "cpu": null, "memory": null, "slots": 1,
                    "running": 0, "queued_cpu_ms": 0, "completed": 0, "failed": 0, "registered_at": registered,
                    "last_report_at": null, "runtime_id": null, "effective_cores": 1.0,
                });
                inner.nodes.push(serde_json::from_value(view).unwrap());
                "ek_test".to_owned()
            })
        }
        .boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeView>, Error>> {
        async { self.asked(|inner| inner.nodes.clone()) }.boxed()
    }

    fn exited<'a>(&'a self, node: NodeId, exit: &'a ExitReport) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            self.asked(|inner| {
                inner.exits.push((node, exit.clone()));
                set_status(inner, node, NodeStatus::Lost);
            })
        }
        .boxed()
    }

    fn drain(&self, node: NodeId, _: Option<u64>) -> BoxFuture<'_, Result<(), Error>> {
        async move { self.asked(|inner| set_status(inner, node, NodeStatus::Draining)) }.boxed()
    }

    fn resume(&self, node: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        async move { self.asked(|inner| set_status(inner, node, NodeStatus::Ready)) }.boxed()
    }
}

fn set_status(inner: &mut Inner, node: NodeId, status: NodeStatus) {
    inner.nodes.iter_mut().filter(|view| view.id == node).for_each(|view| view.status = status);
}

struct Keeping {
    engine: Arc<dyn Engine>,
    master: Arc<Remembers>,
    surroundings: Surroundings,
}

impl Keeping {
    fn config(&self) -> Config {
        Config {
            engine: Arc::clone(&self.engine),
            master: Arc::<Remembers>::clone(&self.master),
            trust: None,
            surroundings: self.surroundings.clone(),
            drain_deadline: None,
            remove_on_exit: false,
        }
    }

    /// Starts a manager; the result ends it.
    fn manager(&self) -> (CancellationToken, tokio::task::JoinHandle<Result<(), node_manager::Error>>) {
        let shutdown = CancellationToken::new();
        (shutdown.clone(), tokio::spawn(run(self.config(), shutdown)))
    }

    async fn running(&self) -> Vec<Listed> {
        let filter = Filter::nodes(&self.surroundings.cluster, &self.surroundings.pool);
        let mut listed = self.engine.list(&filter).await.unwrap();
        listed.retain(|listed| listed.state == State::Running);
        listed
    }

    async fn wait_for(&self, count: usize) -> Vec<Listed> {
        eventually(&format!("{count} nodes run"), 30, async || {
            let running = self.running().await;
            if running.len() == count { Ok(running) } else { Err(format!("{running:?}")) }
        })
        .await
    }

    fn name(&self, n: u32) -> String {
        format!("evenkeel-{}-{}-{n}", self.surroundings.cluster, self.surroundings.pool)
    }

    async fn scenario(&self) {
        self.master.wish_for(|spec| spec.desired = Some(2));
        let (shutdown, manager) = self.manager();
        let first = self.wait_for(2).await;
        assert_eq!(first.iter().map(|l| l.name.clone()).collect::<Vec<_>>(), [self.name(1), self.name(2)]);

        // Killed: replaced under the same name, and the master is told.
        self.engine.kill(&first[0].id).await.unwrap();
        eventually("the killed node is replaced", 20, async || {
            let running = self.running().await;
            let replaced =
                running.len() == 2 && running[0].name == self.name(1) && running[0].id != first[0].id;
            if replaced { Ok(()) } else { Err(format!("{running:?}")) }
        })
        .await;
        let exits = self.master.with(|inner| inner.exits.clone());
        assert_eq!(
            exits.iter().map(|(_, exit)| exit.exit_code).collect::<Vec<_>>(),
            [Some(137)],
            "{exits:?}"
        );

        // The manager goes, the nodes stay, the next manager adopts them.
        let before = self.running().await;
        shutdown.cancel();
        manager.await.unwrap().unwrap();
        let (shutdown, manager) = self.manager();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ids(&before), ids(&self.running().await), "adopted, not made anew");

        // Without the master nothing is done, whatever happens.
        self.master.with(|inner| inner.away = true);
        self.engine.remove(&before[1].id).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ids(&self.running().await), [before[0].id.clone()]);
        self.master.with(|inner| inner.away = false);
        let healed = self.wait_for(2).await;
        assert_eq!(healed[0].id, before[0].id);

        // Another template: all are made anew, and there are never fewer than wanted.
        let old = ids(&healed);
        self.master.wish_for(|spec| spec.template.memory_bytes = Some(80 << 20));
        eventually("all nodes are new", 40, async || {
            let running = self.running().await;
            assert!(running.len() >= 2, "capacity was lost: {running:?}");
            if running.len() == 2 && running.iter().all(|l| !old.contains(&l.id)) {
                Ok(())
            } else {
                Err(format!("{running:?}"))
            }
        })
        .await;

        self.master.wish_for(|spec| spec.desired = Some(0));
        self.wait_for(0).await;
        shutdown.cancel();
        manager.await.unwrap().unwrap();
        let left = self.engine.list(&Filter::cluster(&self.surroundings.cluster)).await.unwrap();
        assert_eq!(left, [], "nothing is left behind");
    }
}

fn ids(listed: &[Listed]) -> Vec<String> {
    listed.iter().map(|listed| listed.id.clone()).collect()
}

fn surroundings(cluster: &str, image: &str, isolated: bool) -> Surroundings {
    Surroundings {
        cluster: cluster.to_owned(),
        pool: "p".to_owned(),
        image: image.to_owned(),
        node_master: "http://nowhere:7400".to_owned(),
        default_cpus: Some(0.2),
        default_memory_bytes: Some(64 << 20),
        isolated,
        ..Surroundings::default()
    }
}

/// The bench outlives the runtime of the scenario: a manager that a failed scenario leaves behind ends with
/// that runtime, so that it makes nothing anew while the bench cleans up.
fn containers_are_kept() {
    let bench = block_on_with(Bench::new());
    let surroundings = surroundings(&bench.cluster, &bench.image, true);
    block_on(async {
        let engine = Arc::new(DockerEngine::connect().await.unwrap());
        Keeping { engine, master: Arc::default(), surroundings }.scenario().await;
    });
}

fn processes_are_kept() {
    let bench = ProcessBench::new();
    let surroundings = surroundings(&bench.cluster, "", false);
    block_on(async {
        let engine = Arc::new(ProcessEngine::new(bench.state.path()).unwrap());
        Keeping { engine, master: Arc::default(), surroundings }.scenario().await;
    });
}

async fn a_second_manager_is_refused() {
    let bench = ProcessBench::new();
    let engine = Arc::new(bench.engine.clone());
    let keeping =
        Keeping { engine, master: Arc::default(), surroundings: surroundings(&bench.cluster, "", false) };
    keeping.master.wish_for(|spec| spec.desired = Some(1));
    keeping.master.with(|inner| inner.held = true);
    let (_shutdown, manager) = keeping.manager();
    let outcome = tokio::time::timeout(Duration::from_secs(40), manager).await.expect("it gives up").unwrap();
    assert!(matches!(outcome, Err(node_manager::Error::Held { .. })), "{outcome:?}");
    assert_eq!(keeping.running().await, []);
}
