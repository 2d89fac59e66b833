//! HyperQueue as a server and workers on this machine.

use crate::{Ends, Meter, Round, System, output, until};
use anyhow::Context as _;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// Server and workers come up within this.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// A server and its workers; dropping it ends them.
#[derive(Debug)]
pub struct HyperQueue {
    binary: PathBuf,
    name: String,
    // In the order in which they are ended.
    workers: Vec<Ends>,
    server: Option<Ends>,
    directory: TempDir,
}

impl HyperQueue {
    /// Brings up a server with so many workers of one CPU each.
    ///
    /// # Errors
    /// It does not come up.
    pub fn up(binary: &Path, workers: usize) -> anyhow::Result<Self> {
        let version = output(Command::new(binary).arg("--version"))?;
        let name = version.trim().to_owned();
        let directory = tempfile::tempdir()?;
        let mut system =
            Self { binary: binary.to_owned(), name, workers: Vec::new(), server: None, directory };
        system.server = Some(system.start(&["server", "start"])?);
        until("HyperQueue's server answers", UP_WITHIN, || Ok(system.connected().is_ok()))?;
        for _ in 0..workers {
            system.workers.push(system.start(&["worker", "start", "--cpus", "1"])?);
        }
        until("all workers are there", UP_WITHIN, || Ok(system.connected()? == workers))?;
        Ok(system)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--server-dir").arg(self.directory.path());
        // Where standard output of tasks would go, and what it may leave behind.
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    fn start(&self, arguments: &[&str]) -> anyhow::Result<Ends> {
        let mut command = self.command();
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Ends(command.spawn().with_context(|| format!("cannot start {command:?}"))?))
    }

    /// Workers that are connected.
    fn connected(&self) -> anyhow::Result<usize> {
        let list = output(self.command().args(["--output-mode", "json", "worker", "list"]))?;
        let list: Value = serde_json::from_str(&list)?;
        Ok(list.as_array().context("a list of workers")?.len())
    }
}

impl System for HyperQueue {
    fn name(&self) -> &str {
        &self.name
    }

    fn round(&mut self, program: &str, tasks: u32) -> anyhow::Result<Round> {
        let workers: Vec<u32> = self.workers.iter().map(|worker| worker.0.id()).collect();
        let server: Vec<u32> = self.server.iter().map(|server| server.0.id()).collect();
        let mut submit = self.command();
        submit.args(["--output-mode", "quiet", "submit", "--wait", "--stdout", "none", "--stderr", "none"]);
        submit.args(["--array", &format!("1-{tasks}"), program]);
        let meter = Meter::start(&server, &workers)?;
        let ran = submit.output().context("cannot start hq submit")?;
        let round = meter.stop()?;
        anyhow::ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr).trim());
        let info = output(self.command().args(["--output-mode", "json", "job", "info", "last"]))?;
        let info: Value = serde_json::from_str(&info)?;
        let finished = &info[0]["info"]["task_stats"]["finished"];
        anyhow::ensure!(*finished == tasks, "{finished} of {tasks} tasks finished");
        Ok(round)
    }
}
