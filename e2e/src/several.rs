//! Several masters on one PostgreSQL, with nodes: all processes of this host.

use crate::{Postgres, Ran, evenkeel_binary, eventually, run, try_run};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A program of this cluster.
struct Program {
    child: Option<Child>,
    log: PathBuf,
}

impl Program {
    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        run(Command::new("kill").args(["-s", signal, &pid]));
    }

    fn end(&mut self, signal: &str) {
        if self.child.is_some() {
            self.signal(signal);
        }
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }
}

/// The cluster. Everything ends when it is dropped.
pub struct Several {
    /// The database's server.
    pub postgres: Postgres,
    store: String,
    masters: Vec<Program>,
    ports: Vec<u16>,
    nodes: Vec<Program>,
    state: TempDir,
    lease: String,
    /// Whether all masters show certificates of one CA.
    secured: bool,
}

impl Several {
    /// So many masters and nodes of one core, all of them ready.
    ///
    /// # Panics
    /// If they do not come up.
    #[must_use]
    pub fn start(masters: usize, nodes: usize, lease: &str) -> Self {
        let mut cluster = Self::prepare(masters, nodes, lease);
        (0..masters).for_each(|at| cluster.start_master(at));
        let _leader = cluster.leader();
        let urls = cluster.urls();
        (0..nodes).for_each(|at| cluster.start_node(at, &urls));
        cluster.wait_for_nodes(nodes);
        cluster
    }

    /// A leader, 0, and a standby, 1, by HTTPS: the second has the CA of the first, as an operator copies it.
    ///
    /// # Panics
    /// If they do not come up.
    #[must_use]
    pub fn start_secured() -> Self {
        let mut cluster = Self::prepare(2, 0, "5s");
        cluster.secured = true;
        cluster.start_master(0);
        cluster.wait_for_word(0, "master ready");
        let [from, to] = [0, 1].map(|at| cluster.file(&format!("master-{at}")));
        fs::DirBuilder::new().mode(0o700).create(&to).unwrap();
        run(Command::new("cp").arg("-r").arg(from.join("tls")).arg(&to));
        cluster.start_master(1);
        cluster.wait_for_word(1, "standby: another master leads");
        cluster
    }

    fn prepare(masters: usize, nodes: usize, lease: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let token = format!("ek_{}\n", "0123456789abcdef".repeat(3));
        fs::write(state.path().join("admin.token"), token).unwrap();
        let free = |_| TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<TcpListener> = (0..masters).map(free).collect();
        let ports = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let program = |what: &str, at: usize| Program {
            child: None,
            log: state.path().join(format!("{what}-{at}.log")),
        };
        let postgres = Postgres::start();
        Self {
            store: postgres.database(),
            postgres,
            masters: (0..masters).map(|at| program("master", at)).collect(),
            ports,
            nodes: (0..nodes).map(|at| program("node", at)).collect(),
            state,
            lease: lease.to_owned(),
            secured: false,
        }
    }

    fn wait_for_word(&self, at: usize, word: &str) {
        eventually(word, 30, || {
            let log = self.log(at);
            if log.contains(word) { Ok(()) } else { Err(log) }
        });
    }

    /// Starts a master that does not run, and waits until it answers.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_master(&mut self, at: usize) {
        let port = self.ports[at];
        let mut command = Command::new(evenkeel_binary());
        command.args(["master", "--listen", &format!("127.0.0.1:{port}"), "--lease", &self.lease]);
        command.arg("--state-dir").arg(self.state.path().join(format!("master-{at}")));
        command.arg("--bootstrap-token-file").arg(self.token_file());
        command.env("EVENKEEL_STORE", &self.store);
        if self.secured {
            command.args(["--tls", "auto"]);
        }
        self.masters[at].child = Some(started(command, &self.masters[at].log));
        if self.secured {
            return self.wait_for_word(at, "one of several masters");
        }
        eventually("the master answers", 30, || match self.get(at, "/livez") {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}; {}", self.log(at))),
        });
    }

    fn start_node(&mut self, at: usize, masters: &str) {
        let mut command = Command::new(evenkeel_binary());
        command.args(["node", "--master", masters, "--name", &format!("n{at}"), "--cores", "1"]);
        command.args(["--allow-commands", "--memory", "256MiB"]);
        command.arg("--token-file").arg(self.token_file());
        command.env("EVENKEEL_STATE_DIR", self.state.path().join("nodes"));
        self.trust(&mut command);
        self.nodes[at].child = Some(started(command, &self.nodes[at].log));
    }

    /// One more node, which knows these masters only.
    pub fn add_node(&mut self, masters: &str) {
        let at = self.nodes.len();
        self.nodes.push(Program { child: None, log: self.state.path().join(format!("node-{at}.log")) });
        self.start_node(at, masters);
        self.wait_for_nodes(at + 1);
    }

    /// Waits until so many nodes are ready.
    pub fn wait_for_nodes(&self, count: usize) {
        eventually("the nodes are ready", 30, || {
            let ran = self.try_evenkeel(&["status", "-o", "json"]);
            let nodes = ran.stdout.matches("\"status\":\"ready\"").count();
            if nodes == count { Ok(()) } else { Err(format!("{ran:?}")) }
        });
    }

    fn token_file(&self) -> PathBuf {
        self.state.path().join("admin.token")
    }

    /// The administrator's token.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn token(&self) -> String {
        fs::read_to_string(self.token_file()).unwrap().trim().to_owned()
    }

    /// What SQL prints in the masters' database.
    #[must_use]
    pub fn sql(&self, sql: &str) -> String {
        self.postgres.sql(self.store.rsplit('/').next().unwrap(), sql)
    }

    /// A file of this cluster's own.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// The URL of a master.
    #[must_use]
    pub fn url(&self, at: usize) -> String {
        format!("{}://127.0.0.1:{}", if self.secured { "https" } else { "http" }, self.ports[at])
    }

    /// The URLs of all, separated by commas.
    #[must_use]
    pub fn urls(&self) -> String {
        (0..self.ports.len()).map(|at| self.url(at)).collect::<Vec<_>>().join(",")
    }

    /// What a master wrote to its log.
    #[must_use]
    pub fn log(&self, at: usize) -> String {
        fs::read_to_string(&self.masters[at].log).unwrap_or_default()
    }

    /// What a node wrote to its log.
    #[must_use]
    pub fn node_log(&self, at: usize) -> String {
        fs::read_to_string(&self.nodes[at].log).unwrap_or_default()
    }

    /// Sends a signal to a master, as `STOP`.
    pub fn signal(&self, at: usize, signal: &str) {
        self.masters[at].signal(signal);
    }

    /// Ends a master by this signal, and waits until it is gone.
    pub fn end(&mut self, at: usize, signal: &str) {
        self.masters[at].end(signal);
    }

    /// Which master leads.
    #[must_use]
    pub fn leader(&self) -> usize {
        eventually("a master leads", 30, || {
            let answers: Vec<_> = (0..self.ports.len())
                .filter(|at| self.masters[*at].child.is_some())
                .map(|at| (at, self.get(at, "/readyz")))
                .collect();
            let leader = answers.iter().find(|(_, (status, _))| *status == 200);
            leader.map(|(at, _)| *at).ok_or_else(|| format!("{answers:?}"))
        })
    }

    /// Status and body of a GET without a token; status 0 if there is no answer within 3 s.
    #[must_use]
    pub fn get(&self, at: usize, path: &str) -> (u16, String) {
        self.ask(at, Duration::from_secs(3), &format!("GET {path}"), &["host: localhost"], "")
    }

    /// Status and body of a request (`GET /path`) with exactly these headers, beside those of the body and the
    /// connection; status 0 if there is no answer in time.
    #[must_use]
    pub fn ask(
        &self,
        at: usize,
        within: Duration,
        request: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String) {
        let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.ports[at]))?;
            stream.set_read_timeout(Some(within))?;
            write!(
                stream,
                "{request} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().unwrap_or_default();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// The `evenkeel` command against these masters.
    #[must_use]
    pub fn command(&self, masters: &str) -> Command {
        let mut command = Command::new(evenkeel_binary());
        command.env("EVENKEEL_MASTER", masters).env("EVENKEEL_TOKEN_FILE", self.token_file());
        command.env("EVENKEEL_STATE_DIR", self.state.path().join("client"));
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        self.trust(&mut command);
        command
    }

    fn trust(&self, command: &mut Command) {
        if self.secured {
            command.env("EVENKEEL_CA", self.file("master-0/tls/ca.pem"));
        }
    }

    /// Runs `evenkeel` against all masters, whatever comes of it.
    #[must_use]
    pub fn try_evenkeel(&self, arguments: &[&str]) -> Ran {
        try_run(self.command(&self.urls()).args(arguments), "")
    }

    /// Runs `evenkeel` against all masters, which has to succeed; its standard output, trimmed.
    pub fn evenkeel(&self, arguments: &[&str]) -> String {
        run(self.command(&self.urls()).args(arguments))
    }

    /// A task as it is now.
    ///
    /// # Panics
    /// If it is not known.
    #[must_use]
    pub fn task(&self, id: &str) -> Value {
        serde_json::from_str(&self.evenkeel(&["task", "get", id])).unwrap()
    }
}

impl Drop for Several {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for program in self.masters.iter().chain(&self.nodes) {
                let log = fs::read_to_string(&program.log).unwrap_or_default();
                eprintln!("---- {}\n{log}", program.log.display());
            }
        }
        for program in self.nodes.iter_mut().chain(&mut self.masters) {
            program.end("KILL");
        }
    }
}

fn started(mut command: Command, log: &PathBuf) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}
