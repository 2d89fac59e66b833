//! A PostgreSQL server of a test's own: Debian's package, as an ordinary user, in a folder that goes with it.
//! It syncs as a real one does. When the thread that started it ends, however it does, the kernel ends the server.

use crate::command::{run, try_run};
use std::{
    fs::File,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Where Debian's package has the programs.
pub const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The user of that name may not be there; `nobody` is.
const NOBODY: u32 = 65_534;
/// Role, and its password over the network. (The socket asks for none.)
const ROLE: &str = "evenkeel";
/// Password of the role.
pub const PASSWORD: &str = "not-to-be-shown";
/// What differs from a server's defaults.
const SETTINGS: &str = "max_connections = 200\nshared_buffers = 32MB\nlog_min_messages = warning\n";
/// Setting: before its recovery a server syncs the file system as a whole, and not each of its thousand files.
pub const QUICK_RECOVERY: &str = "recovery_init_sync_method = syncfs";
/// How long it may take to start or to end.
const WITHIN: Duration = Duration::from_secs(60);

/// A server; dropping it ends it.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    /// Beside the loopback one.
    address: Option<IpAddr>,
    port: u16,
    uid: u32,
    server: Option<Child>,
    databases: AtomicU32,
}

impl Postgres {
    /// Makes a server with no database of ours, and starts it.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&std::env::temp_dir(), None, "")
    }

    /// The same, on this address of the host too, for whoever has the password.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start_at(address: Option<IpAddr>) -> Self {
        Self::start_with(&std::env::temp_dir(), address, "")
    }

    /// The same in a folder of its own below this one, with further settings.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start_in(place: &Path, settings: &str) -> Self {
        Self::start_with(place, None, settings)
    }

    fn start_with(place: &Path, address: Option<IpAddr>, settings: &str) -> Self {
        assert!(
            Path::new(PROGRAMS).exists(),
            "{PROGRAMS} is not there: run ./test, or install postgresql-15"
        );
        let folder = tempfile::Builder::new().prefix("evenkeel-postgres-").tempdir_in(place).unwrap();
        // The server refuses to run as root.
        let uid = match rustix::process::geteuid().as_raw() {
            0 => NOBODY,
            uid => uid,
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { folder, address, port, uid, server: None, databases: AtomicU32::new(0) };
        let password = server.path("password");
        std::fs::write(&password, PASSWORD).unwrap();
        for path in [server.folder.path(), &password] {
            chown(path, Some(uid), Some(uid)).unwrap();
        }
        let mut initdb = server.command("initdb");
        initdb.args(["--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256", "--username", ROLE]);
        initdb.args(["--encoding=UTF8", "--no-locale", "--pwfile"]).arg(password);
        run(initdb.arg("--pgdata").arg(server.path("data")));
        let mut file = File::options().append(true).open(server.path("data/postgresql.conf")).unwrap();
        writeln!(file, "{SETTINGS}{settings}").unwrap();
        let mut who = File::options().append(true).open(server.path("data/pg_hba.conf")).unwrap();
        writeln!(who, "host all all all scram-sha-256").unwrap();
        server.start_again();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One of the server's programs, as its user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        let id = self.uid.to_string();
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        }
        // The server ends at once on this signal, and takes its own processes with it.
        command.args(["--pdeathsig", "QUIT"]).arg(Path::new(PROGRAMS).join(program));
        command.current_dir(self.folder.path()).env("HOME", self.folder.path());
        command
    }

    /// Starts it again after it ended, on the same port.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "it runs");
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.path("data")).arg("-k").arg(self.folder.path());
        let addresses = self.address.map_or_else(String::new, |address| format!(",{address}"));
        postgres.args(["-p", &self.port.to_string(), "-h", &format!("127.0.0.1{addresses}")]);
        let end = Instant::now() + WITHIN;
        loop {
            if self.server.as_mut().is_none_or(|server| server.try_wait().unwrap().is_some()) {
                // After a kill the memory may still be in use by what has not noticed yet.
                let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
                let again = postgres.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
                self.server = Some(again.spawn().unwrap());
            }
            let ready = Path::new(PROGRAMS).join("pg_isready");
            let answers = try_run(Command::new(ready).arg("-q").args(self.where_it_is()), "");
            if answers.code == 0 && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            assert!(Instant::now() < end, "it does not come up: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn where_it_is(&self) -> [String; 4] {
        let folder = self.folder.path().display().to_string();
        ["-h".to_owned(), folder, "-p".to_owned(), self.port.to_string()]
    }

    /// What the server said, for messages.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Makes another database; what `--store` takes for it, over the network and with a password.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        let address = self.address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        format!("postgres://{ROLE}:{PASSWORD}@{address}:{}/{name}", self.port)
    }

    /// Replaces a database, by the URL of [`Postgres::database`], by an empty one of its name.
    ///
    /// # Panics
    /// If it cannot be replaced.
    pub fn empty(&self, url: &str) {
        let name = url.rsplit('/').next().unwrap();
        self.sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
    }

    /// Executes SQL in a database of this server, by the server's own client; what it prints.
    ///
    /// # Panics
    /// If the server refuses it.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(Path::new(PROGRAMS).join("psql"));
        psql.args(self.where_it_is()).args(["-U", ROLE, "-d", database, "-X", "-q", "-A", "-t"]);
        run(psql.args(["-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The process of the server.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().id()
    }

    /// Ends it as `kill -9` does; its other processes end when they notice.
    pub fn kill(&mut self) {
        self.end(rustix::process::Signal::KILL);
    }

    /// Ends it in order; connections are cut.
    pub fn stop(&mut self) {
        self.end(rustix::process::Signal::INT);
    }

    fn end(&mut self, signal: rustix::process::Signal) {
        let Some(mut child) = self.server.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        // It may have ended already.
        let _ = rustix::process::kill_process(pid, signal);
        let end = Instant::now() + WITHIN;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() >= end {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end(rustix::process::Signal::QUIT);
    }
}
