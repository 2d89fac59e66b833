//! What the README and the page of one's own work print, as they print it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{docker, evenkeel_binary, eventually, images::debian_python, try_run, without_own_variables};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The block below a heading of a page.
fn block(page: &str, heading: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join(page)).unwrap();
    let section =
        text.split(&format!("## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

/// The commands of the README's block below a heading; lines that end in a backslash go on in the next.
fn commands(heading: &str) -> Vec<String> {
    block("README.md", heading)
        .replace("\\\n", " ")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A place where `evenkeel` is on the path and the state is the test's own, and the end of what was started.
struct Bench {
    folder: tempfile::TempDir,
    path: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(evenkeel_binary(), bin.join("evenkeel")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        Self { folder, path }
    }

    fn shell(&self, line: &str) -> Command {
        let mut shell = Command::new("sh");
        without_own_variables(&mut shell);
        shell.args(["-c", line]).current_dir(self.folder.path()).env("PATH", &self.path).env("NO_COLOR", "1");
        shell.env("XDG_STATE_HOME", self.state()).env_remove("DOCKER_HOST");
        shell
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("xdg")
    }

    fn run(&self, line: &str) -> String {
        let ran = try_run(&mut self.shell(line), "");
        assert_eq!(ran.code, 0, "{line}: {ran:?}");
        ran.stdout.trim().to_owned()
    }
}

/// A subnet that nothing on this machine uses, in place of the README's, which the first network of a machine
/// often has.
const SUBNET: &str = "10.213.77.";

#[test]
fn the_way_by_hand_works_as_printed() {
    struct End<'a>(&'a Bench, Option<std::process::Child>);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            if let Some(manager) = &mut self.1 {
                let _ = try_run(Command::new("kill").arg(manager.id().to_string()), "");
                let _ = manager.wait();
            }
            let label = "docker ps -aq --filter label=io.evenkeel.cluster=default";
            let _ =
                try_run(&mut self.0.shell(&format!("docker rm -f $({label}) evenkeel-default-master")), "");
            let _ = try_run(&mut self.0.shell("docker network rm balancer-net"), "");
        }
    }
    let taken = try_run(Command::new("docker").args(["inspect", "evenkeel-default-master"]), "");
    assert_ne!(
        taken.code, 0,
        "this test needs the name evenkeel-default-master: take your own cluster down first"
    );

    let bench = Bench::new();
    let mut end = End(&bench, None);
    let mut said = Vec::new();
    for line in commands("By hand, piece by piece") {
        let line = line.replace("172.18.0.0/16", &format!("{SUBNET}0/24")).replace("172.18.0.", SUBNET);
        if line.contains("second terminal") {
            let manager =
                bench.shell(&format!("exec {line}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            end.1 = Some(manager.unwrap());
            continue;
        }
        if line.starts_with("evenkeel status-fetcher") {
            eventually("three nodes are ready", 30, || {
                let shown = try_run(&mut bench.shell(&line), "").stdout;
                if shown.matches(" ready ").count() == 3 { Ok(()) } else { Err(shown) }
            });
        }
        if line.starts_with("mkdir") {
            // The master makes its token at its start; the next line reads it.
            bench.run(&line);
            eventually("the token is there", 10, || {
                let made = bench.folder.path().join("state/admin.token").exists();
                if made { Ok(()) } else { Err("not yet".to_owned()) }
            });
            continue;
        }
        let promised = line.split_once("# {").map(|(_, result)| format!("{{{result}"));
        let printed = bench.run(&line);
        if let Some(promised) = promised {
            assert_eq!(printed, promised, "{line}");
        }
        said.push(line);
    }
    assert!(said.iter().any(|line| line.contains("submit fib 40")), "{said:?}");
}

#[test]
fn the_everyday_commands_work_as_printed() {
    struct End<'a>(&'a Bench);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            let _ = try_run(&mut self.0.shell("evenkeel down"), "");
        }
    }
    let bench = Bench::new();
    // The README's cluster is `default` on port 7400; a test must not meet a cluster that is really used.
    let own = "EVENKEEL_CLUSTER=t-readme EVENKEEL_LISTEN=127.0.0.1:17431";
    let _end = End(&bench);
    let mut ran = 0;
    for line in commands("Use it") {
        if line.starts_with("cargo build") || line.contains("--watch") {
            continue;
        }
        let promised = line.split_once("# {").map(|(_, result)| format!("{{{result}"));
        let printed = bench.run(&format!("export {own}; {line}"));
        if let Some(promised) = promised {
            assert_eq!(printed, promised, "{line}");
        }
        ran += 1;
    }
    assert!(ran >= 6, "only {ran} commands were run");
}

#[test]
fn the_compose_file_brings_up_a_master_and_a_manager() {
    struct End<'a>(&'a Bench);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            let _ = try_run(
                &mut self.0.shell("docker rm -f $(docker ps -aq --filter label=io.evenkeel.cluster=default)"),
                "",
            );
            let _ = try_run(
                &mut self.0.shell("EVENKEEL_USER=0:0 DOCKER_GROUP=0 docker-compose -p t-compose down"),
                "",
            );
        }
    }
    let bench = Bench::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docker/compose.yaml");
    fs::copy(file, bench.folder.path().join("docker-compose.yml")).unwrap();
    bench.run("evenkeel image build && mkdir -p state");
    let _end = End(&bench);
    let group = "DOCKER_GROUP=$(stat -c %g /var/run/docker.sock)";
    bench.run(&format!("EVENKEEL_USER=$(id -u):$(id -g) {group} docker-compose -p t-compose up -d"));
    let target = "--master http://127.0.0.1:7400 --token-file state/admin.token";
    eventually("the master has made its token", 15, || {
        let made = bench.folder.path().join("state/admin.token").exists();
        if made { Ok(()) } else { Err("not yet".to_owned()) }
    });
    bench.run(&format!("evenkeel node-manager scale 2 {target}"));
    eventually("two nodes are ready", 30, || {
        let shown = try_run(&mut bench.shell(&format!("evenkeel status {target}")), "").stdout;
        if shown.matches(" ready ").count() == 2 { Ok(()) } else { Err(shown) }
    });
    assert_eq!(bench.run(&format!("evenkeel submit fib 20 {target}")), r#"{"value":"6765"}"#);
    bench.run(&format!("evenkeel node-manager scale 0 {target}"));
    eventually("the nodes are gone", 30, || {
        let left = bench.run(
            "docker ps -q --filter label=io.evenkeel.cluster=default --filter label=io.evenkeel.role=node",
        );
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// Runs an example of the page whole, in a cluster of the test's own; what its lines promise is printed.
fn own_work(heading: &str, cluster: &str, address: &str) -> Bench {
    struct End<'a>(&'a Bench, String);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            let _ = try_run(&mut self.0.shell(&format!("{}; evenkeel down", self.1)), "");
        }
    }
    let script = block("docs/your-own-work.md", heading);
    let promised: Vec<_> = script.lines().filter_map(|line| line.split_once("    # ")).collect();
    assert!(!promised.is_empty(), "{heading} promises nothing");
    let bench = Bench::new();
    {
        // The page's cluster is `default`; a test must not meet one that is really used. `-e`: each line succeeds.
        let own = format!("set -e; export EVENKEEL_CLUSTER={cluster} EVENKEEL_LISTEN={address}");
        let _end = End(&bench, own.clone());
        let printed = bench.run(&format!("{own}\n{script}"));
        let mut lines = printed.lines().map(str::trim);
        for (line, result) in promised {
            assert!(lines.any(|line| line == result), "{line} does not print {result}, but:\n{printed}");
        }
    }
    bench
}

/// An image of a registry, which cannot be asked here: a small Debian stands for it unless it is there.
struct StandIn(Option<&'static str>);

impl StandIn {
    fn new(name: &'static str) -> Self {
        let there = try_run(Command::new("docker").args(["image", "inspect", name]), "").code == 0;
        if there {
            return Self(None);
        }
        docker(&["tag", debian_python(), name]);
        Self(Some(name))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(name) = self.0 {
            let _ = try_run(Command::new("docker").args(["rmi", name]), "");
        }
    }
}

#[test]
fn an_image_of_your_own_works_as_printed() {
    let _image = e2e::images::Image { name: "own-pi".to_owned() };
    let bench = own_work("An image of your own", "t-own-image", "127.0.0.1:17441");
    let results = fs::read_to_string(bench.folder.path().join("own-work/results.ndjson")).unwrap();
    assert_eq!(results.matches("\"3.14").count(), 8, "{results}");
}

#[test]
fn a_folder_of_files_works_as_printed() {
    let _image = StandIn::new("debian:stable-slim");
    let bench = own_work("A folder of files", "t-own-files", "127.0.0.1:17442");
    for n in 1..=8 {
        let file = bench.folder.path().join(format!("own-work/out/part-{n}.txt.gz"));
        assert!(file.metadata().unwrap().len() > 100_000, "{n}");
    }
}

#[test]
fn a_python_script_works_as_printed() {
    let _image = StandIn::new("python:3-slim");
    own_work("A Python script with its result", "t-own-python", "127.0.0.1:17443");
}
