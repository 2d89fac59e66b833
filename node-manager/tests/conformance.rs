//! One suite for every engine, on the real daemon and on real processes; and what only one of them can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{Bench, ProcessBench, block_on, docker, eventually, listed};
use futures_util::StreamExt as _;
use libtest_mimic::{Arguments, Trial};
use node_manager::{
    docker::network::{Network, NetworkEnd, NetworkWish, network_name},
    engine::{ContainerSpec, Engine, EngineError, Event, Filter, MountSource, MountSpec, Role, Stdin},
    process::ProcessEngine,
    verbs,
};
use pool::State;
use std::time::Duration;

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
        test("containers_pass_the_suite", || block_on(containers_pass_the_suite())),
        test("processes_pass_the_suite", || block_on(processes_pass_the_suite())),
        test("containers_are_hardened", || block_on(containers_are_hardened())),
        test("what_docker_cannot_do_is_said_in_words_that_help", || block_on(what_cannot_be_is_said())),
        test("networks_and_volumes_come_and_go", || block_on(networks_and_volumes())),
        test("an_image_is_built_once", || block_on(an_image_is_built_once())),
        test("processes_are_adopted_by_the_next_engine", || block_on(processes_are_adopted())),
        test("removing_a_process_removes_its_children", || block_on(children_are_removed())),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

struct Suite<'a> {
    engine: &'a dyn Engine,
    cluster: &'a str,
    image: &'a str,
}

impl Suite<'_> {
    fn spec(&self, name: &str, args: &[&str]) -> ContainerSpec {
        let args = ["helper"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let mut spec = ContainerSpec::new(&self.name(name), self.cluster, Role::Node, self.image, args);
        spec.pool = Some("p".to_owned());
        spec.template = Some("hash".to_owned());
        spec.cpus = Some(0.5);
        spec.memory_bytes = Some(64 << 20);
        spec
    }

    fn name(&self, name: &str) -> String {
        format!("evenkeel-{}-{name}", self.cluster)
    }

    async fn create(&self, name: &str, args: &[&str]) -> String {
        self.engine.create(&self.spec(name, args)).await.unwrap()
    }

    async fn start(&self, name: &str, args: &[&str]) -> String {
        let id = self.create(name, args).await;
        self.engine.start(&id, None).await.unwrap();
        id
    }

    async fn log(&self, id: &str, tail: Option<u32>) -> String {
        let pieces: Vec<_> = self.engine.logs(id, false, tail).collect().await;
        let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.unwrap().to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    }

    async fn wait_for_log(&self, id: &str, wanted: &str) {
        eventually(&format!("the log has {wanted}"), 20, async || {
            let log = self.log(id, None).await;
            if log.contains(wanted) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    async fn wait_for_exit(&self, name: &str) -> pool::Exit {
        eventually(&format!("{name} ends"), 20, async || {
            match listed(self.engine, self.cluster, &self.name(name)).await.map(|listed| listed.state) {
                Some(State::Exited(exit)) => Ok(exit),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    async fn run(&self) {
        self.what_is_created_is_listed_and_not_started().await;
        self.names_are_unique().await;
        self.a_secret_arrives_on_standard_input_and_nowhere_else().await;
        self.ends_leave_evidence().await;
        self.what_has_ended_starts_again_and_what_runs_does_not().await;
        self.stop_is_gentle_and_kill_is_not().await;
        self.events_tell_what_happens().await;
        self.logs_are_read_from_the_end_and_followed_to_the_end().await;
        self.cpu_is_measured().await;
        self.only_the_cluster_is_listed_and_pruned().await;
    }

    async fn what_is_created_is_listed_and_not_started(&self) {
        let id = self.create("a", &["serve"]).await;
        let found = listed(self.engine, self.cluster, &self.name("a")).await.unwrap();
        assert_eq!((found.id.as_str(), found.state), (id.as_str(), State::Created));
        assert_eq!(
            (found.role, found.pool.as_deref(), found.template.as_deref()),
            (Role::Node, Some("p"), Some("hash"))
        );
        self.engine.remove(&id).await.unwrap();
        assert_eq!(listed(self.engine, self.cluster, &self.name("a")).await, None);
        self.engine.remove(&id).await.unwrap();
    }

    async fn names_are_unique(&self) {
        let id = self.create("a", &["serve"]).await;
        let again = self.engine.create(&self.spec("a", &["serve"])).await;
        assert!(matches!(&again, Err(EngineError::NameTaken(name)) if *name == self.name("a")), "{again:?}");
        self.engine.remove(&id).await.unwrap();
    }

    async fn a_secret_arrives_on_standard_input_and_nowhere_else(&self) {
        let spec = ContainerSpec { takes_stdin: true, ..self.spec("a", &["read"]) };
        let id = self.engine.create(&spec).await.unwrap();
        self.engine.start(&id, Some(Stdin("s3cret".to_owned()))).await.unwrap();
        self.wait_for_log(&id, "got <s3cret>").await;
        self.wait_for_log(&id, "then None").await;
        if self.engine.is_isolated() {
            assert!(!docker(&["inspect", &id]).contains("s3cret"));
        }
        let found = listed(self.engine, self.cluster, &self.name("a")).await.unwrap();
        assert_eq!(found.state, State::Running, "the end of its standard input does not end it");
        self.engine.remove(&id).await.unwrap();
    }

    async fn ends_leave_evidence(&self) {
        let id = self.start("a", &["exit", "7"]).await;
        let exit = self.wait_for_exit("a").await;
        assert_eq!((exit.code, exit.oom_killed), (Some(7), false));
        self.engine.kill(&id).await.unwrap();
        self.engine.stop(&id, Duration::from_secs(1)).await.unwrap();
        self.engine.remove(&id).await.unwrap();
    }

    async fn what_has_ended_starts_again_and_what_runs_does_not(&self) {
        let id = self.start("a", &["serve"]).await;
        self.wait_for_log(&id, "ready").await;
        self.engine.start(&id, None).await.unwrap();
        self.engine.kill(&id).await.unwrap();
        assert_eq!(self.wait_for_exit("a").await.code, Some(137), "the second start was none");
        self.engine.start(&id, None).await.unwrap();
        let found = listed(self.engine, self.cluster, &self.name("a")).await.unwrap();
        assert_eq!((found.id.as_str(), found.state), (id.as_str(), State::Running));
        // Docker's log has both lives.
        let lives = if self.engine.is_isolated() { 2 } else { 1 };
        self.wait_for_log(&id, &"ready\n".repeat(lives)).await;
        self.engine.stop(&id, Duration::from_secs(20)).await.unwrap();
        assert_eq!(self.wait_for_exit("a").await.code, Some(0), "how the second life ended");
        self.engine.remove(&id).await.unwrap();
    }

    async fn stop_is_gentle_and_kill_is_not(&self) {
        let id = self.start("a", &["serve"]).await;
        self.wait_for_log(&id, "ready").await;
        self.engine.stop(&id, Duration::from_secs(20)).await.unwrap();
        assert_eq!(self.wait_for_exit("a").await.code, Some(0));
        assert!(self.log(&id, None).await.contains("bye"));
        self.engine.remove(&id).await.unwrap();

        let id = self.start("a", &["serve"]).await;
        self.wait_for_log(&id, "ready").await;
        self.engine.kill(&id).await.unwrap();
        assert_eq!(self.wait_for_exit("a").await.code, Some(137));
        assert!(!self.log(&id, None).await.contains("bye"));
        self.engine.remove(&id).await.unwrap();
    }

    async fn events_tell_what_happens(&self) {
        let mut events = self.engine.events(self.cluster);
        let name = self.name("a");
        let wanted = [
            Event::Started { name: name.clone() },
            Event::Died { name: name.clone(), exit_code: Some(3) },
            Event::Removed { name: name.clone() },
        ];
        let mut seen = Vec::new();
        // The first look connects.
        let _ = tokio::time::timeout(Duration::from_millis(300), async {
            loop {
                seen.extend(events.next().await);
            }
        })
        .await;
        let id = self.start("a", &["exit", "3"]).await;
        self.wait_for_exit("a").await;
        self.engine.remove(&id).await.unwrap();
        let all = tokio::time::timeout(Duration::from_secs(20), async {
            while !wanted.iter().all(|event| seen.contains(event)) {
                seen.extend(events.next().await);
            }
        });
        assert!(all.await.is_ok(), "{seen:?}");
    }

    async fn logs_are_read_from_the_end_and_followed_to_the_end(&self) {
        let id = self.start("a", &["lines"]).await;
        self.wait_for_exit("a").await;
        assert_eq!(self.log(&id, Some(2)).await, "line 8\nline 9\n");
        assert_eq!(self.log(&id, None).await.lines().count(), 10);
        self.engine.remove(&id).await.unwrap();

        let id = self.start("a", &["serve"]).await;
        let following = self.engine.logs(&id, true, None).collect::<Vec<_>>();
        let stopping = async {
            self.wait_for_log(&id, "ready").await;
            self.engine.stop(&id, Duration::from_secs(20)).await.unwrap();
        };
        let both = async { tokio::join!(following, stopping).0 };
        let pieces =
            tokio::time::timeout(Duration::from_secs(40), both).await.expect("the log ends with its process");
        let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.unwrap().to_vec()).collect();
        assert!(String::from_utf8_lossy(&text).ends_with("bye\n"), "{}", String::from_utf8_lossy(&text));
        self.engine.remove(&id).await.unwrap();
    }

    async fn cpu_is_measured(&self) {
        let burner = self.start("burner", &["burn"]).await;
        let idle = self.start("idle", &["serve"]).await;
        self.wait_for_log(&idle, "ready").await;
        let stats = self.engine.stats(self.cluster).await.unwrap();
        let of = |name: &str| stats.iter().find(|cpu| cpu.name == self.name(name)).unwrap();
        let (busy, quiet) = (of("burner"), of("idle"));
        // How much a hog gets depends on the machine; that it gets most of it does not.
        assert!(busy.used_cores > 0.02 && busy.used_cores > quiet.used_cores * 3.0, "{stats:?}");
        assert!((busy.allotted_cores - 0.5).abs() < 1e-9, "{stats:?}");
        assert!((busy.percent - busy.used_cores / 0.5 * 100.0).abs() < 1e-6, "{stats:?}");
        assert!(quiet.memory_bytes > 0 && quiet.memory_bytes < 64 << 20, "{stats:?}");
        for id in [burner, idle] {
            self.engine.remove(&id).await.unwrap();
        }
    }

    async fn only_the_cluster_is_listed_and_pruned(&self) {
        self.start("a", &["serve"]).await;
        self.create("b", &["serve"]).await;
        self.start("c", &["exit", "0"]).await;
        let other = Filter::nodes(self.cluster, "other");
        assert_eq!(self.engine.list(&other).await.unwrap(), []);
        assert_eq!(self.engine.list(&Filter::cluster("t-other")).await.unwrap(), []);
        assert_eq!(self.engine.list(&Filter::nodes(self.cluster, "p")).await.unwrap().len(), 3);
        assert_eq!(verbs::prune_containers(self.engine, "t-other").await.unwrap(), Vec::<String>::new());
        let removed = verbs::prune_containers(self.engine, self.cluster).await.unwrap();
        assert_eq!(removed, ["a", "b", "c"].map(|name| self.name(name)));
        assert_eq!(self.engine.list(&Filter::cluster(self.cluster)).await.unwrap(), []);
    }
}

async fn containers_pass_the_suite() {
    let bench = Bench::new().await;
    Suite { engine: &bench.engine, cluster: &bench.cluster, image: &bench.image }.run().await;
}

async fn processes_pass_the_suite() {
    let bench = ProcessBench::new();
    Suite { engine: &bench.engine, cluster: &bench.cluster, image: "" }.run().await;
}

async fn containers_are_hardened() {
    let bench = Bench::new().await;
    let suite = Suite { engine: &bench.engine, cluster: &bench.cluster, image: &bench.image };
    let id = suite.start("a", &["serve"]).await;
    let whole: serde_json::Value = serde_json::from_str(&docker(&["inspect", &id])).unwrap();
    let (host, config) = (&whole[0]["HostConfig"], &whole[0]["Config"]);
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Labels"]["io.evenkeel.cluster"], bench.cluster);
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges"]));
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&(64 << 20).into(), &(64 << 20).into()));
    assert!(host["PidsLimit"].as_i64().unwrap() > 0);
    let tmp = host["Tmpfs"]["/tmp"].as_str().unwrap();
    assert!(tmp.contains("size=33554432"), "half of its memory: {tmp}");
    assert_eq!(
        (&host["ShmSize"], &host["Sysctls"]["kernel.shm_rmid_forced"]),
        (&(8 << 20).into(), &"1".into())
    );
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(docker(&["exec", &id, "/evenkeel", "helper", "write", "/tmp/x"]), "", "/tmp is writable");
    let root = std::process::Command::new("docker")
        .args(["exec", &id, "/evenkeel", "helper", "write", "/x"])
        .output();
    assert!(!root.unwrap().status.success(), "the root is not");

    // A volume on /state belongs to the user of our containers.
    let mut spec = suite.spec("b", &["write", "/state/x"]);
    let source = MountSource::Volume(format!("evenkeel-{}-state", bench.cluster));
    spec.mounts.push(MountSpec { source, target: "/state".to_owned(), read_only: false });
    let id = bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&id, None).await.unwrap();
    assert_eq!(suite.wait_for_exit("b").await.code, Some(0), "{}", suite.log(&id, None).await);
}

async fn what_cannot_be_is_said() {
    let bench = Bench::new().await;
    let suite = Suite { engine: &bench.engine, cluster: &bench.cluster, image: &bench.image };
    let host = bench.engine.host().await.unwrap();
    let too_much = ContainerSpec { cpus: Some(host.cores + 1.0), ..suite.spec("a", &["serve"]) };
    let error = bench.engine.create(&too_much).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Refused(text) if text.contains(&host.cores.to_string())),
        "{error}"
    );
    let no_image = ContainerSpec { image: "evenkeel:none-such".to_owned(), ..suite.spec("a", &["serve"]) };
    let error = bench.engine.create(&no_image).await.unwrap_err();
    assert!(matches!(&error, EngineError::NotFound(text) if text.contains("evenkeel:none-such")), "{error}");
    assert_eq!(listed(&bench.engine, &bench.cluster, &suite.name("a")).await, None);
}

async fn networks_and_volumes() {
    let bench = Bench::new().await;
    let (engine, cluster) = (&bench.engine, bench.cluster.as_str());
    let ended = async || engine.remove_networks(cluster).await.unwrap()[0].1.clone();
    assert_eq!(ended().await, NetworkEnd::Absent);
    let Network { name, internal } = engine.ensure_network(cluster, &NetworkWish::default()).await.unwrap();
    assert_eq!((name.as_str(), internal), (network_name(cluster).as_str(), false));
    assert_eq!(engine.ensure_network(cluster, &NetworkWish::default()).await.unwrap().name, name);
    let subnet = docker(&["network", "inspect", &name, "--format", "{{(index .IPAM.Config 0).Subnet}}"]);

    // The same subnet again: the error names who has it and what is free.
    let other = format!("{cluster}-b");
    let wish = NetworkWish { subnet: Some(subnet.clone()), internal: false };
    let error = engine.ensure_network(&other, &wish).await.unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("is free"), "{error}");

    let suite = Suite { engine, cluster, image: &bench.image };
    let mut spec = suite.spec("a", &["serve"]);
    spec.network = Some(name.clone());
    let id = engine.create(&spec).await.unwrap();
    engine.start(&id, None).await.unwrap();
    assert_eq!(ended().await, NetworkEnd::InUse(vec![spec.name.clone()]));
    engine.ensure_volume(&format!("evenkeel-{cluster}-state"), cluster).await.unwrap();

    let pruned = verbs::prune(engine, cluster).await.unwrap();
    assert_eq!(pruned.containers, [spec.name]);
    assert_eq!(pruned.networks[0], (name.clone(), NetworkEnd::Removed));
    assert_eq!(pruned.volumes, [format!("evenkeel-{cluster}-state")]);

    // One that was made by hand is used and never removed.
    docker(&["network", "create", &name]);
    let used = engine.ensure_network(cluster, &NetworkWish::default()).await;
    let end = engine.remove_networks(cluster).await;
    docker(&["network", "rm", &name]);
    assert_eq!((used.unwrap().name, end.unwrap()[0].clone()), (name.clone(), (name, NetworkEnd::NotOurs)));
}

async fn an_image_is_built_once() {
    let bench = Bench::new().await;
    let program = node_manager::image::Program::running().unwrap();
    let again = bench.engine.ensure_image(&program, &[]).await.unwrap();
    assert!(!again.built);
    assert_eq!(again.reference, bench.image);
    let config = docker(&["inspect", &bench.image, "--format", "{{json .Config}}"]);
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/evenkeel"]));
    assert!(config["Env"].to_string().contains("EVENKEEL_LISTEN=0.0.0.0:7400"), "{config}");
}

async fn processes_are_adopted() {
    let bench = ProcessBench::new();
    let suite = Suite { engine: &bench.engine, cluster: &bench.cluster, image: "" };
    let id = suite.start("a", &["serve"]).await;
    suite.wait_for_log(&id, "ready").await;

    let second = ProcessEngine::new(bench.state.path()).unwrap();
    let found = listed(&second, &bench.cluster, &suite.name("a")).await.unwrap();
    assert_eq!((found.id, found.state), (id.clone(), State::Running));
    second.kill(&id).await.unwrap();
    let found = listed(&second, &bench.cluster, &suite.name("a")).await.unwrap();
    assert!(matches!(found.state, State::Exited(_)), "{found:?}");
    second.remove(&id).await.unwrap();
}

async fn children_are_removed() {
    let bench = ProcessBench::new();
    let suite = Suite { engine: &bench.engine, cluster: &bench.cluster, image: "" };
    let id = suite.start("a", &["parent"]).await;
    suite.wait_for_log(&id, "ready").await;
    let child = eventually("the child is known", 10, async || {
        let log = suite.log(&id, None).await;
        let line = log.lines().find_map(|line| line.strip_prefix("child ")?.parse::<u32>().ok());
        line.ok_or(log)
    })
    .await;
    bench.engine.remove(&id).await.unwrap();
    eventually("the child is gone", 10, async || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    })
    .await;
}
