//! Masters, a manager and its nodes, all processes of this host, and what can be done to them.

use crate::{
    Masters, Postgres, Program, evenkeel_binary, masters::Ground, postgres::QUICK_RECOVERY, power::Disk,
    program::send,
};
use serde_json::Value;
use std::{
    fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Lease of masters that share a database.
const LEASE: &str = "2s";

/// How long a master goes on with a disk without power.
const CUT_FOR: Duration = Duration::from_millis(200);

/// Who can be killed and started again by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The master of this number.
    Master(usize),
    /// The manager of the only pool.
    Manager,
}

/// A node that was stopped.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

/// The processes of one cluster. Dropping it ends them all.
#[derive(Debug)]
pub struct Stage {
    manager: Program,
    masters: Masters,
    /// What the manager is started from; nodes are what their manager is.
    manager_binary: PathBuf,
}

impl Deref for Stage {
    type Target = Masters;

    fn deref(&self) -> &Masters {
        &self.masters
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Masters {
        &mut self.masters
    }
}

impl Stage {
    /// A cluster of this many nodes, all of them ready; its masters get these further arguments.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn raise(ground: Ground, nodes: usize, master_arguments: &[&str]) -> Self {
        Self::raise_from(&evenkeel_binary(), ground, nodes, master_arguments)
    }

    /// The same, all of it started from this program.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn raise_from(binary: &Path, ground: Ground, nodes: usize, master_arguments: &[&str]) -> Self {
        let mut stage = Self::prepare(ground, master_arguments);
        stage.masters.binary = binary.to_owned();
        stage.manager_binary = binary.to_owned();
        stage.start_missing();
        stage.wait_for_master();
        stage.scale(nodes);
        stage
    }

    /// A master and so many nodes, all of them ready, with the store, be it a file or a server with all it has, on this
    /// disk.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn raise_on(disk: &Disk, ground: Ground, nodes: usize) -> Self {
        let masters = match ground {
            Ground::Sqlite => {
                let store = format!("sqlite:{}", disk.path().join("evenkeel.db").display());
                Masters::prepare(ground, LEASE, &["--store", &store])
            }
            Ground::Postgres(masters) => Masters::prepare_on(
                Some(Postgres::start_in(&disk.path(), QUICK_RECOVERY)),
                masters,
                LEASE,
                &[],
            ),
        };
        let mut stage = Self::of(masters);
        stage.start_missing();
        stage.wait_for_master();
        stage.scale(nodes);
        // Whoever makes a server does not sync it.
        disk.sync();
        stage
    }

    /// A master on SQLite, without a manager.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn master_only() -> Self {
        let mut stage = Self::prepare(Ground::Sqlite, &[]);
        stage.masters.start_missing();
        stage.wait_for_master();
        stage
    }

    fn prepare(ground: Ground, master_arguments: &[&str]) -> Self {
        Self::of(Masters::prepare(ground, LEASE, master_arguments))
    }

    fn of(masters: Masters) -> Self {
        let manager = Program::new(masters.file("manager.log"));
        Self { manager, masters, manager_binary: evenkeel_binary() }
    }

    /// Another number of nodes, and waits until these are ready.
    pub fn scale(&self, nodes: usize) {
        self.evenkeel(&["node-manager", "scale", &nodes.to_string()]);
        self.wait_for_nodes(nodes);
    }

    /// Starts whoever was killed.
    pub fn start_missing(&mut self) {
        self.masters.start_missing();
        if !self.manager.runs() {
            // The same environment as a client of this cluster.
            let client = self.command(&self.all_urls());
            let mut command = std::process::Command::new(&self.manager_binary);
            command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
            self.manager.start(command.args([
                "node-manager",
                "run",
                "--runtime",
                "process",
                "--cpus",
                "0.5",
            ]));
        }
    }

    /// `kill -9` of the database's server, which is then started again and has to recover. Nothing where there is none.
    pub fn kill_database(&mut self) {
        if let Some(server) = self.database() {
            server.kill();
            server.start_again();
        }
    }

    /// Cuts the power of the disk that the store is on: who has it open ends, the disk comes back, and they are started
    /// again. Where the store is a server, masters end with it only if they are told to.
    pub fn cut_power(&mut self, disk: &mut Disk, masters_too: bool) {
        disk.cut();
        // What is acknowledged from now on is not on the disk either way.
        thread::sleep(CUT_FOR);
        if masters_too || self.database().is_none() {
            (0..self.count()).for_each(|at| self.kill(Actor::Master(at)));
        }
        if let Some(server) = self.database() {
            server.kill();
        }
        disk.restore();
        if let Some(server) = self.database() {
            server.start_again();
        }
        self.start_missing();
    }

    /// Sends it a signal, as `STOP`.
    pub fn signal_to(&self, actor: Actor, signal: &str) {
        match actor {
            Actor::Master(at) => self.masters.signal(at, signal),
            Actor::Manager => self.manager.signal(signal),
        }
    }

    /// Ends it by this signal, and waits until it is gone.
    fn end_by(&mut self, actor: Actor, signal: &str) {
        match actor {
            Actor::Master(at) => self.masters.end(at, signal),
            Actor::Manager => self.manager.end(signal),
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self, actor: Actor) {
        self.end_by(actor, "KILL");
    }

    /// Asks it to end, waits for that, and starts it again from this program.
    pub fn replace(&mut self, actor: Actor, binary: &Path) {
        self.end_by(actor, "TERM");
        match actor {
            Actor::Master(_) => binary.clone_into(&mut self.masters.binary),
            Actor::Manager => binary.clone_into(&mut self.manager_binary),
        }
        self.start_missing();
    }

    /// Process id of an actor that runs.
    #[must_use]
    pub fn pid_of(&self, actor: Actor) -> u32 {
        match actor {
            Actor::Master(at) => self.masters.pid(at),
            Actor::Manager => self.manager.pid(),
        }
    }

    /// Process ids of the nodes, in the order of their names.
    #[must_use]
    pub fn node_pids(&self) -> Vec<u32> {
        let Ok(records) = fs::read_dir(self.file("processes/processes")) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = records.flatten().map(|file| file.path()).collect();
        files.sort();
        let pid = |file: &PathBuf| {
            let record: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            let pid = u32::try_from(record["life"]["identity"]["pid"].as_u64()?).ok()?;
            // Only a process that still is the program: the number may be another one's by now.
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains("evenkeel").then_some(pid)
        };
        files.iter().filter_map(pid).collect()
    }

    fn pick(&self, which: u32) -> Option<u32> {
        let pids = self.node_pids();
        pids.get(which as usize % pids.len().max(1)).copied()
    }

    /// `kill -9` of a node.
    pub fn kill_node(&mut self, which: u32) {
        if let Some(pid) = self.pick(which) {
            send(pid, "KILL");
        }
    }

    /// Stops a node where it is.
    pub fn freeze_node(&mut self, which: u32) -> Option<Frozen> {
        let pid = self.pick(which)?;
        send(pid, "STOP");
        Some(Frozen { pid })
    }

    /// It goes on.
    pub fn thaw_node(&mut self, frozen: &Frozen) {
        send(frozen.pid, "CONT");
    }

    /// Everybody runs again.
    pub fn heal(&mut self) {
        (0..self.count()).for_each(|at| self.signal_to(Actor::Master(at), "CONT"));
        self.signal_to(Actor::Manager, "CONT");
        self.start_missing();
        self.wait_for_master();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // It would make new nodes for those that are killed.
        self.manager.end("KILL");
        for pid in self.node_pids() {
            send(pid, "KILL");
        }
    }
}
