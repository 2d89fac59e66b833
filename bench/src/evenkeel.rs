//! Evenkeel as a cluster of host processes.

use crate::{Ends, Meter, Round, System, cpu, output, until};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A cluster comes up within this.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// A cluster of a master and nodes; dropping it takes it down.
#[derive(Debug)]
pub struct Evenkeel {
    binary: PathBuf,
    name: String,
    cluster: String,
    master: Vec<u32>,
    nodes: Vec<u32>,
    /// `evenkeel up`, which takes its cluster down when it ends: also when Ctrl-C ends it beside us.
    up: Option<Ends>,
    state: TempDir,
}

impl Evenkeel {
    /// Brings up a cluster of so many nodes of one core each.
    ///
    /// # Errors
    /// It does not come up.
    pub fn up(binary: &Path, nodes: usize) -> anyhow::Result<Self> {
        let version = output(Command::new(binary).arg("version"))?;
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut cluster = Self {
            binary: binary.to_owned(),
            name: version.lines().next().unwrap_or("evenkeel").trim().to_owned(),
            cluster: format!("t-bench-{}", std::process::id()),
            master: Vec::new(),
            nodes: Vec::new(),
            up: None,
            state: tempfile::tempdir()?,
        };
        let number = nodes.to_string();
        let mut up = cluster.command();
        up.args(["up", "--runtime", "process", "--cpus", "1", "--listen", &listen, "--nodes", &number]);
        up.stdout(Stdio::null()).stderr(File::create(cluster.state.path().join("up.log"))?);
        cluster.up = Some(Ends(up.spawn().with_context(|| format!("cannot start {up:?}"))?));
        until("all nodes are ready", UP_WITHIN, || {
            // Fails until the master is there.
            let status = cluster.command().args(["status", "-o", "jsonl"]).output()?;
            let lines = String::from_utf8(status.stdout)?;
            let is_ready =
                |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|node| node["status"] == "ready");
            Ok(lines.lines().filter(is_ready).count() == nodes)
        })?;
        let of_cluster = |role: &'static str| {
            let listen = listen.clone();
            move |arguments: &[String]| {
                arguments.get(1).is_some_and(|argument| argument == role)
                    && arguments.iter().any(|argument| argument.contains(&listen))
            }
        };
        cluster.master = cpu::processes(of_cluster("master"))?;
        cluster.nodes = cpu::processes(of_cluster("node"))?;
        anyhow::ensure!(
            cluster.master.len() == 1 && cluster.nodes.len() == nodes,
            "the processes of the cluster are not found: {cluster:?}"
        );
        Ok(cluster)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("EVENKEEL_CLUSTER", &self.cluster).env("EVENKEEL_STATE_DIR", self.state.path());
        command.stdin(Stdio::null());
        command
    }
}

impl System for Evenkeel {
    fn name(&self) -> &str {
        &self.name
    }

    fn round(&mut self, program: &str, tasks: u32) -> anyhow::Result<Round> {
        let (lines, results) = (self.state.path().join("tasks.ndjson"), self.state.path().join("results"));
        let line = json!({"kind": "run", "input": {"argv": [program]}});
        let mut file = BufWriter::new(File::create(&lines)?);
        for _ in 0..tasks {
            writeln!(file, "{line}")?;
        }
        file.into_inner()?.sync_all()?;
        let mut submit = self.command();
        submit.args(["submit", "--batch"]).arg(&lines).stdout(File::create(&results)?).stderr(Stdio::piped());
        let meter = Meter::start(&self.master, &self.nodes)?;
        let ran = submit.output().context("cannot start evenkeel submit")?;
        let round = meter.stop()?;
        anyhow::ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr).trim());
        let mut succeeded = 0;
        for line in BufReader::new(File::open(&results)?).lines() {
            let answer: Value = serde_json::from_str(&line?)?;
            let good = answer["task"]["state"] == "succeeded" && answer["task"]["result"]["exit_code"] == 0;
            anyhow::ensure!(good, "a task did not succeed: {answer}");
            succeeded += 1;
        }
        anyhow::ensure!(succeeded == tasks, "{succeeded} of {tasks} tasks were answered");
        fs::remove_file(&results)?;
        Ok(round)
    }
}
