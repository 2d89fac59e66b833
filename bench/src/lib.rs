//! What benchmarks share: systems that are brought up on this machine, what they cost, and figures.
//!
//! - [`System`]: something that runs commands; [`evenkeel`] and [`hyperqueue`] are two;
//! - [`core`](mod@core): the scheduler alone;
//! - [`cpu`]: CPU time of other processes, from `/proc`; [`http`]: requests to a master without nodes;
//! - [`crowd`]: many nodes in one process; [`rejoin`]: their master is killed and started again;
//! - [`figures`]: medians and tables.
//!
//! Benchmarks stand where a user stands, as the end-to-end tests do: they start programs and look at what
//! comes out. Whatever they start ends with them.

pub mod core;
pub mod cpu;
pub mod crowd;
pub mod evenkeel;
pub mod figures;
pub mod http;
pub mod hyperqueue;
pub mod rejoin;

use anyhow::Context as _;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

/// One round of many commands.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// From the start of the submitting program to its end.
    pub elapsed: Duration,
    /// CPU time of the one process that hands out the work.
    pub master: Duration,
    /// CPU time of the processes that run it, without what they started.
    pub workers: Duration,
    /// CPU time of the programs that they started.
    pub programs: Duration,
    /// CPU time of the submitting program.
    pub client: Duration,
}

/// Something that runs commands.
pub trait System {
    /// Its name and version.
    fn name(&self) -> &str;

    /// Runs a program without arguments so many times.
    ///
    /// # Errors
    /// A run failed or is missing, or the system does not work.
    fn round(&mut self, program: &str, tasks: u32) -> anyhow::Result<Round>;
}

/// CPU time before and after a round.
#[derive(Debug)]
pub(crate) struct Meter {
    master: Vec<u32>,
    workers: Vec<u32>,
    started: Instant,
    before: [cpu::Used; 3],
}

impl Meter {
    /// Starts to measure these processes and the children of this one.
    pub(crate) fn start(master: &[u32], workers: &[u32]) -> anyhow::Result<Self> {
        let before = [cpu::used(master)?, cpu::used(workers)?, cpu::used(&[std::process::id()])?];
        Ok(Self { master: master.to_vec(), workers: workers.to_vec(), started: Instant::now(), before })
    }

    /// What was used since, and in which time.
    pub(crate) fn stop(self) -> anyhow::Result<Round> {
        let elapsed = self.started.elapsed();
        let [master, workers, own] = self.before;
        let workers_now = cpu::used(&self.workers)?;
        Ok(Round {
            elapsed,
            master: cpu::used(&self.master)?.own - master.own,
            workers: workers_now.own - workers.own,
            programs: workers_now.children - workers.children,
            client: cpu::used(&[std::process::id()])?.children - own.children,
        })
    }
}

/// A process that is ended when this is dropped: asked first, then killed.
#[derive(Debug)]
pub(crate) struct Ends(pub(crate) Child);

impl Ends {
    /// How long a process that was asked to end may take.
    const WITHIN: Duration = Duration::from_secs(60);
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw)
            && self.0.try_wait().is_ok_and(|ended| ended.is_none())
        {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let give_up = Instant::now() + Self::WITHIN;
        while Instant::now() < give_up && self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that has to succeed; its standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Asks again every 100 ms until it holds.
pub(crate) fn until(
    what: &str,
    within: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let give_up = Instant::now() + within;
    while !holds()? {
        anyhow::ensure!(Instant::now() < give_up, "not within {} s: {what}", within.as_secs());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The program of this workspace, brought up to date beside this one.
///
/// # Errors
/// It does not build.
pub fn built() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").context("run this by cargo, or name --evenkeel")?;
    let build = ["build", "--release", "--quiet", "--workspace", "--bin", "evenkeel"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(cargo).args(build).current_dir(folder).status()?;
    anyhow::ensure!(status.success(), "evenkeel does not build");
    let own = std::env::current_exe()?;
    Ok(own.with_file_name("evenkeel"))
}
