//! Masters as processes of this host, one on SQLite or several on a PostgreSQL server, and nodes started by hand.

use crate::{Access, Daemon, Postgres, Program, daemon, evenkeel_binary, eventually, run};
use std::{fs, net::TcpListener, ops::Deref, os::unix::fs::DirBuilderExt, path::PathBuf, process::Command};

/// Where tasks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In the state directory of the one master.
    Sqlite,
    /// In a PostgreSQL server that so many masters share.
    Postgres(usize),
}

/// The masters, and nodes if a test starts some. Everything ends when this is dropped.
#[derive(Debug)]
pub struct Masters {
    // Dropped in this order.
    nodes: Vec<Program>,
    masters: Vec<Program>,
    /// The server, and what `--store` takes for the masters' database in it.
    postgres: Option<(Postgres, String)>,
    access: Access,
    /// What masters are started from from now on.
    pub binary: PathBuf,
    lease: String,
    arguments: Vec<String>,
}

impl Deref for Masters {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl Masters {
    /// So many masters on one PostgreSQL with this lease, and so many nodes of one core, all of them ready.
    ///
    /// # Panics
    /// If they do not come up.
    #[must_use]
    pub fn start(masters: usize, nodes: usize, lease: &str) -> Self {
        let mut cluster = Self::prepare(Ground::Postgres(masters), lease, &[]);
        cluster.start_missing();
        let _leader = cluster.leader();
        let urls = cluster.all_urls();
        (0..nodes).for_each(|_| cluster.start_node(&urls));
        cluster.wait_for_nodes(nodes);
        cluster
    }

    /// A leader, 0, and a standby, 1, by HTTPS: the second has the CA of the first, as an operator copies it.
    ///
    /// # Panics
    /// If they do not come up.
    #[must_use]
    pub fn start_secured() -> Self {
        let mut cluster = Self::prepare(Ground::Postgres(2), "5s", &["--tls", "auto"]);
        for url in &mut cluster.access.urls {
            *url = url.replace("http://", "https://");
        }
        cluster.access.ca = Some(cluster.file("master-0/tls/ca.pem"));
        cluster.start_master(0);
        cluster.wait_for_word(0, "master ready");
        let [from, to] = [0, 1].map(|at| cluster.file(&format!("master-{at}")));
        fs::DirBuilder::new().mode(0o700).create(&to).unwrap();
        run(Command::new("cp").arg("-r").arg(from.join("tls")).arg(&to));
        cluster.start_master(1);
        cluster.wait_for_word(1, "standby: another master leads");
        cluster
    }

    /// Masters that are not started yet, and get these further arguments; the lease counts where they share a database.
    ///
    /// # Panics
    /// If their database does not come up.
    #[must_use]
    pub fn prepare(ground: Ground, lease: &str, arguments: &[&str]) -> Self {
        match ground {
            Ground::Sqlite => Self::prepare_on(None, 1, lease, arguments),
            Ground::Postgres(masters) => Self::prepare_on(Some(Postgres::start()), masters, lease, arguments),
        }
    }

    /// The same, so many of them on this server.
    ///
    /// # Panics
    /// If there is no database to be had from it.
    #[must_use]
    pub fn prepare_on(server: Option<Postgres>, count: usize, lease: &str, arguments: &[&str]) -> Self {
        let postgres = server.map(|server| {
            let database = server.database();
            (server, database)
        });
        // Held until all are chosen, so that they differ.
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let access = Access::new("masters", listeners.iter().map(url).collect());
        Self::with(access, postgres, lease, arguments)
    }

    /// One on SQLite, not started yet, that containers of this daemon reach, and only programs in its network.
    #[must_use]
    pub fn inside(daemon: &Daemon) -> Self {
        let mut access = Access::new("inside", vec![format!("http://{}:7400", daemon::ADDRESS)]);
        access.inside = Some(daemon.inside());
        Self::with(access, None, "", &[])
    }

    fn with(access: Access, postgres: Option<(Postgres, String)>, lease: &str, arguments: &[&str]) -> Self {
        let program = |at| Program::new(access.file(&format!("master-{at}.log")));
        Self {
            nodes: Vec::new(),
            masters: (0..access.urls.len()).map(program).collect(),
            postgres,
            access,
            binary: evenkeel_binary(),
            lease: lease.to_owned(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        }
    }

    /// Number of masters.
    #[must_use]
    pub fn count(&self) -> usize {
        self.masters.len()
    }

    /// Starts every master that does not run.
    pub fn start_missing(&mut self) {
        for at in 0..self.count() {
            if !self.masters[at].runs() {
                self.start_master(at);
            }
        }
    }

    /// Starts a master that does not run; [`Access::leader`] waits for one that leads.
    pub fn start_master(&mut self, at: usize) {
        let mut command = self.program(&self.binary);
        command.args(["master", "--listen", self.address(at), "--bootstrap-token-file"]);
        command.arg(self.token_file()).args(&self.arguments).env("EVENKEEL_CLUSTER", &self.name);
        let state = match &self.postgres {
            None => self.file(""),
            Some((_, database)) => {
                command.args(["--lease", &self.lease]).env("EVENKEEL_STORE", database);
                self.file(&format!("master-{at}"))
            }
        };
        self.masters[at].start(command.env("EVENKEEL_STATE_DIR", state));
    }

    /// Waits until a master has written this to its log.
    pub fn wait_for_word(&self, at: usize, word: &str) {
        eventually(word, 30, || {
            let log = self.log(at);
            if log.contains(word) { Ok(()) } else { Err(log) }
        });
    }

    fn start_node(&mut self, masters: &str) {
        let at = self.nodes.len();
        let mut node = Program::new(self.file(&format!("node-{at}.log")));
        let mut command = self.command(masters);
        command.args(["node", "--name", &format!("n{at}"), "--cores", "1"]);
        command.args(["--allow-commands", "--memory", "256MiB"]);
        node.start(command.env("EVENKEEL_STATE_DIR", self.file("nodes")));
        self.nodes.push(node);
    }

    /// One more node, which knows these masters only.
    pub fn add_node(&mut self, masters: &str) {
        self.start_node(masters);
        self.wait_for_nodes(self.nodes.len());
    }

    /// What a master wrote to its log.
    #[must_use]
    pub fn log(&self, at: usize) -> String {
        self.masters[at].log()
    }

    /// Process id of a master that runs.
    #[must_use]
    pub fn pid(&self, at: usize) -> u32 {
        self.masters[at].pid()
    }

    /// Sends a signal to a master, as `STOP`.
    pub fn signal(&self, at: usize, signal: &str) {
        self.masters[at].signal(signal);
    }

    /// Ends a master by this signal, and waits until it is gone.
    pub fn end(&mut self, at: usize, signal: &str) {
        self.masters[at].end(signal);
    }

    /// The server of the database that the masters share, if they do.
    pub fn database(&mut self) -> Option<&mut Postgres> {
        self.postgres.as_mut().map(|(server, _)| server)
    }

    /// What `--store` takes for the database that the masters share.
    ///
    /// # Panics
    /// If they share none.
    #[must_use]
    pub fn store(&self) -> &str {
        &self.postgres.as_ref().unwrap().1
    }

    /// What SQL prints in the masters' database.
    ///
    /// # Panics
    /// If they share none.
    #[must_use]
    pub fn sql(&self, sql: &str) -> String {
        let (server, url) = self.postgres.as_ref().unwrap();
        server.sql(url.rsplit('/').next().unwrap(), sql)
    }
}
