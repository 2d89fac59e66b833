//! The processes of one cluster, and what can be done to them.

use crate::{Postgres, evenkeel_binary, eventually, run, try_run};
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use tempfile::TempDir;

/// Lease of masters that share a database.
const LEASE: &str = "2s";

/// Who can be killed and started again by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The master of this number.
    Master(usize),
    /// The manager of the only pool.
    Manager,
}

/// Where tasks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In the state directory of the one master.
    Sqlite,
    /// In a PostgreSQL server that so many masters share.
    Postgres(usize),
}

/// A node that was stopped.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

/// Masters, a manager and its nodes, all processes of this host. Dropping it ends them all.
pub struct Stage {
    /// Its name; begins with `t-`, by which a left-over is known.
    name: String,
    /// URLs of the masters.
    pub urls: Vec<String>,
    state: TempDir,
    postgres: Option<(Postgres, String)>,
    /// Further arguments of the masters.
    master_arguments: Vec<String>,
    masters: Vec<Option<Child>>,
    manager: Option<Child>,
    /// What masters and manager are started from; nodes are what their manager is.
    binaries: [PathBuf; 2],
}

fn signal(pid: u32, signal: &str) {
    // The process may be gone already.
    let _ = try_run(Command::new("kill").args(["-s", signal, &pid.to_string()]), "");
}

impl Stage {
    /// A cluster of this many nodes, all of them ready; its masters get these further arguments.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn raise(ground: Ground, nodes: u32, master_arguments: &[&str]) -> Self {
        Self::raise_from(&evenkeel_binary(), ground, nodes, master_arguments)
    }

    /// The same, all of it started from this program.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn raise_from(binary: &Path, ground: Ground, nodes: u32, master_arguments: &[&str]) -> Self {
        let mut stage = Self::masters_from(binary, ground, master_arguments);
        stage.start_missing();
        run(&mut stage.command(&["node-manager", "scale", &nodes.to_string()]));
        eventually("the nodes are ready", 30, || {
            let ran = try_run(&mut stage.command(&["status", "-o", "json"]), "");
            let ready = ran.stdout.matches("\"ready\"").count();
            if ready == nodes as usize { Ok(()) } else { Err(format!("{ran:?}")) }
        });
        stage
    }

    /// A master on SQLite, without a manager.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn master_only() -> Self {
        Self::masters_from(&evenkeel_binary(), Ground::Sqlite, &[])
    }

    fn masters_from(binary: &Path, ground: Ground, master_arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t-chaos-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (masters, postgres) = match ground {
            Ground::Sqlite => (1, None),
            Ground::Postgres(masters) => (masters, Some(Postgres::start())),
        };
        // Held until all are chosen, so that they differ.
        let listeners: Vec<_> = (0..masters).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let mut stage = Self {
            name,
            urls: listeners.iter().map(url).collect(),
            state: tempfile::tempdir().unwrap(),
            postgres: postgres.map(|server| {
                let database = server.database();
                (server, database)
            }),
            master_arguments: master_arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            masters: (0..masters).map(|_| None).collect(),
            manager: None,
            binaries: [binary.to_owned(), binary.to_owned()],
        };
        drop(listeners);
        // One token is good for all masters.
        fs::write(stage.token_file(), format!("ek_{}\n", "0123456789abcdef".repeat(3))).unwrap();
        stage.start_masters();
        stage.wait_for_master();
        stage
    }

    /// Waits until a master that leads answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_for_master(&self) {
        eventually("a master answers", 30, || {
            let ran = try_run(&mut self.command(&["task", "list", "--limit", "1"]), "");
            if ran.code == 0 { Ok(()) } else { Err(format!("{ran:?}")) }
        });
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// The administrator's token.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn token(&self) -> String {
        fs::read_to_string(self.token_file()).unwrap().trim().to_owned()
    }

    fn token_file(&self) -> PathBuf {
        self.state.path().join("admin.token")
    }

    /// The `evenkeel` command against this cluster.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(&evenkeel_binary(), arguments)
    }

    fn command_of(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .env("EVENKEEL_CLUSTER", &self.name)
            .env("EVENKEEL_STATE_DIR", self.state.path());
        command.env("EVENKEEL_MASTER", self.urls.join(",")).env("EVENKEEL_TOKEN_FILE", self.token_file());
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.state.path().join(log)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Starts every master that does not run.
    pub fn start_masters(&mut self) {
        for at in 0..self.masters.len() {
            if self.masters[at].is_some() {
                continue;
            }
            let mut command = self.command_of(&self.binaries[0], &["master", "--bootstrap-token-file"]);
            command.arg(self.token_file()).args(&self.master_arguments);
            command.args(["--listen", self.urls[at].trim_start_matches("http://")]);
            command.env_remove("EVENKEEL_MASTER").env_remove("EVENKEEL_TOKEN_FILE");
            if let Some((_, database)) = &self.postgres {
                command.args(["--lease", LEASE]).env("EVENKEEL_STORE", database);
                command.env("EVENKEEL_STATE_DIR", self.state.path().join(format!("master-{at}")));
            }
            self.masters[at] = Some(self.spawn(command, &format!("master-{at}.log")));
        }
    }

    /// Starts whoever was killed.
    pub fn start_missing(&mut self) {
        self.start_masters();
        if self.manager.is_none() {
            let arguments = ["node-manager", "run", "--runtime", "process", "--cpus", "0.5"];
            self.manager = Some(self.spawn(self.command_of(&self.binaries[1], &arguments), "manager.log"));
        }
    }

    /// `kill -9` of the database's server, which is then started again and has to recover. Nothing where there is none.
    pub fn kill_database(&mut self) {
        if let Some((server, _)) = &mut self.postgres {
            server.kill();
            server.start_again();
        }
    }

    /// Number of masters.
    #[must_use]
    pub fn masters(&self) -> usize {
        self.masters.len()
    }

    fn child(&mut self, actor: Actor) -> &mut Option<Child> {
        match actor {
            Actor::Master(at) => &mut self.masters[at],
            Actor::Manager => &mut self.manager,
        }
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn kill(&mut self, actor: Actor) {
        if let Some(mut child) = self.child(actor).take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to end, waits for that, and starts it again from this program.
    ///
    /// # Panics
    /// If it does not end.
    pub fn replace(&mut self, actor: Actor, binary: &Path) {
        if let Some(mut child) = self.child(actor).take() {
            signal(child.id(), "TERM");
            eventually("it ends in order", 30, || match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        let which = usize::from(actor == Actor::Manager);
        binary.clone_into(&mut self.binaries[which]);
        self.start_missing();
    }

    /// Stops it where it is.
    pub fn freeze(&mut self, actor: Actor) {
        if let Some(child) = self.child(actor) {
            signal(child.id(), "STOP");
        }
    }

    /// It goes on.
    pub fn thaw(&mut self, actor: Actor) {
        if let Some(child) = self.child(actor) {
            signal(child.id(), "CONT");
        }
    }

    /// Process id of an actor that runs.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn pid(&self, actor: Actor) -> u32 {
        let child = match actor {
            Actor::Master(at) => &self.masters[at],
            Actor::Manager => &self.manager,
        };
        child.as_ref().unwrap().id()
    }

    /// Process ids of the nodes, in the order of their names.
    #[must_use]
    pub fn node_pids(&self) -> Vec<u32> {
        let Ok(records) = fs::read_dir(self.state.path().join("processes/processes")) else {
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
            signal(pid, "KILL");
        }
    }

    /// Stops a node where it is.
    pub fn freeze_node(&mut self, which: u32) -> Option<Frozen> {
        let pid = self.pick(which)?;
        signal(pid, "STOP");
        Some(Frozen { pid })
    }

    /// It goes on.
    pub fn thaw_node(&mut self, frozen: &Frozen) {
        signal(frozen.pid, "CONT");
    }

    /// Everybody runs again.
    pub fn heal(&mut self) {
        (0..self.masters.len()).for_each(|at| self.thaw(Actor::Master(at)));
        self.thaw(Actor::Manager);
        self.start_missing();
        self.wait_for_master();
    }

    /// All tasks that the master lists: id and state.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn listed_tasks(&self) -> Vec<(String, String)> {
        let mut listed = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut command = self.command(&["task", "list", "--limit", "1000", "-o", "json"]);
            if let Some(cursor) = &cursor {
                command.args(["--cursor", cursor]);
            }
            let page: Value = serde_json::from_str(&run(&mut command)).unwrap();
            for task in page["items"].as_array().unwrap() {
                let text = |field: &str| task[field].as_str().unwrap().to_owned();
                listed.push((text("id"), text("state")));
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return listed;
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill(Actor::Manager);
        for pid in self.node_pids() {
            signal(pid, "KILL");
        }
        (0..self.masters.len()).for_each(|at| self.kill(Actor::Master(at)));
    }
}
