//! A cluster of one test's own.

use crate::{Ran, docker, evenkeel, eventually, run, try_run};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use tempfile::TempDir;

/// Containers of one machine share the weight of one group against every process of the host, so on a busy
/// host they starve. The tests' containers are in a group of their own with the weight of many.
pub(crate) const CGROUP_PARENT: &str = "/evenkeel-e2e";

/// A cluster made by `evenkeel up --detach`; dropping it takes everything away.
pub struct Cluster {
    /// Its name; begins with `t-`, by which a left-over is known.
    pub name: String,
    /// Its published address.
    pub port: u16,
    state: TempDir,
}

/// A node as `evenkeel status -o json` shows it.
#[derive(Clone, Debug)]
pub struct Node(pub Value);

impl Node {
    /// A field as text.
    ///
    /// # Panics
    /// If there is no such field, or it is no text.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_else(|| panic!("no text {field} in {}", self.0))
    }

    /// A field as a number; `a.b` is field b of field a.
    ///
    /// # Panics
    /// If there is no such field, or it is no number.
    #[must_use]
    pub fn number(&self, field: &str) -> f64 {
        let value = field.split('.').fold(&self.0, |value, part| &value[part]);
        value.as_f64().unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn raise_weight() {
    // cgroup v1 and v2; where neither is writable the tests run at the ordinary weight.
    let v1 = Path::new("/sys/fs/cgroup/cpu").join(CGROUP_PARENT.trim_start_matches('/'));
    if Path::new("/sys/fs/cgroup/cpu").is_dir() && fs::create_dir_all(&v1).is_ok() {
        let _ = fs::write(v1.join("cpu.shares"), "100000");
    }
}

impl Cluster {
    /// A cluster of containers with these further arguments of `up`, its nodes ready.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn up(arguments: &[&str]) -> Self {
        raise_weight();
        Self::start("docker", &[&["--cgroup-parent", CGROUP_PARENT], arguments].concat())
    }

    /// The same of host processes.
    #[must_use]
    pub fn up_processes(arguments: &[&str]) -> Self {
        Self::start("process", arguments)
    }

    /// A cluster of containers whose master is published on all addresses of this host; and what `up` said.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn up_everywhere(arguments: &[&str]) -> (Self, Ran) {
        raise_weight();
        let arguments = [&["--cgroup-parent", CGROUP_PARENT], arguments].concat();
        let name = Self::fresh_name();
        let (cluster, ran) = Self::try_start_at("0.0.0.0", &name, "docker", &arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        (cluster, ran)
    }

    /// Tries to bring a cluster of containers of this name up, whatever comes of it, and takes it down again.
    #[must_use]
    pub fn try_up(name: &str, arguments: &[&str]) -> Ran {
        Self::try_start(name, "docker", arguments).1
    }

    fn fresh_name() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("t-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn start(runtime: &str, arguments: &[&str]) -> Self {
        let name = Self::fresh_name();
        let (cluster, ran) = Self::try_start(&name, runtime, arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        cluster
    }

    fn try_start(name: &str, runtime: &str, arguments: &[&str]) -> (Self, Ran) {
        Self::try_start_at("127.0.0.1", name, runtime, arguments)
    }

    fn try_start_at(ip: &str, name: &str, runtime: &str, arguments: &[&str]) -> (Self, Ran) {
        let cluster = Self { name: name.to_owned(), port: free_port(), state: tempfile::tempdir().unwrap() };
        let listen = format!("{ip}:{}", cluster.port);
        let up = [&["up", "--detach", "--runtime", runtime, "--listen", &listen], arguments].concat();
        let ran = cluster.try_evenkeel(&up);
        (cluster, ran)
    }

    /// The administrator's token.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn token(&self) -> String {
        fs::read_to_string(self.state.path().join("admin.token")).unwrap().trim().to_owned()
    }

    /// Its state directory, with context and tokens.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The `evenkeel` command against this cluster.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = evenkeel();
        command.env("EVENKEEL_CLUSTER", &self.name).env("EVENKEEL_STATE_DIR", self.state.path());
        command.stdin(Stdio::null());
        command
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Runs `evenkeel`, whatever comes of it.
    #[must_use]
    pub fn try_evenkeel(&self, arguments: &[&str]) -> Ran {
        try_run(self.command().args(arguments), "")
    }

    /// Runs `evenkeel`, which has to succeed; its standard output, trimmed.
    pub fn evenkeel(&self, arguments: &[&str]) -> String {
        run(self.command().args(arguments))
    }

    /// All nodes that the master shows.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        let ran = self.try_evenkeel(&["status", "-o", "json"]);
        assert!(ran.code == 0 || ran.code == 6, "{ran:?}");
        ran.json()["items"].as_array().unwrap().iter().cloned().map(Node).collect()
    }

    /// The node of this name (the newest, if a lost one of the same name is still shown).
    ///
    /// # Errors
    /// If the master shows none.
    pub fn node(&self, name: &str) -> Result<Node, String> {
        let nodes = self.nodes();
        let newest = nodes
            .iter()
            .filter(|node| node.text("name") == name)
            .max_by_key(|node| node.text("registered_at").to_owned());
        newest.cloned().ok_or_else(|| format!("no node {name} among {nodes:?}"))
    }

    /// Waits until the node of this name has this status.
    pub fn wait_for_node(&self, name: &str, status: &str, seconds: u64) -> Node {
        eventually(&format!("node {name} is {status}"), seconds, || {
            let node = self.node(name)?;
            if node.text("status") == status { Ok(node) } else { Err(format!("{:?}", node.0)) }
        })
    }

    /// Waits until this many nodes are ready.
    pub fn wait_for_ready(&self, count: usize, seconds: u64) -> Vec<Node> {
        eventually(&format!("{count} nodes are ready"), seconds, || {
            let ready: Vec<_> =
                self.nodes().into_iter().filter(|node| node.text("status") == "ready").collect();
            if ready.len() == count { Ok(ready) } else { Err(format!("{ready:?}")) }
        })
    }

    /// Submits with `--detach`; the task's id.
    pub fn submit(&self, arguments: &[&str]) -> String {
        self.evenkeel(&[&["submit", "--detach"], arguments].concat())
    }

    /// A task as it is now.
    #[must_use]
    pub fn task(&self, id: &str) -> Value {
        serde_json::from_str(&self.evenkeel(&["task", "get", id])).unwrap()
    }

    /// Waits until a task is in this state.
    pub fn wait_for_task(&self, id: &str, state: &str, seconds: u64) -> Value {
        eventually(&format!("task {id} is {state}"), seconds, || {
            let task = self.task(id);
            if task["state"] == state { Ok(task) } else { Err(task.to_string()) }
        })
    }

    /// Waits until a task runs, and returns the name of its node.
    pub fn node_of(&self, task: &str, seconds: u64) -> String {
        let id = self.wait_for_task(task, "running", seconds)["node"].as_str().unwrap().to_owned();
        let node = self.nodes().into_iter().find(|node| node.text("id") == id);
        node.unwrap_or_else(|| panic!("no node {id}")).text("name").to_owned()
    }

    /// Process id of a node of this name, of a cluster of host processes.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn pid_of(&self, node: &str) -> String {
        let record = self.state.path().join("processes/processes").join(format!("{node}.json"));
        let text = fs::read(&record).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
        let record: Value = serde_json::from_slice(&text).unwrap();
        record["life"]["identity"]["pid"].as_u64().unwrap_or_else(|| panic!("no pid in {record}")).to_string()
    }

    /// Names of the cluster's containers, running or not, with this role (`master`, `manager`, `node`).
    #[must_use]
    pub fn containers(&self, role: &str) -> Vec<String> {
        let cluster = format!("label=io.evenkeel.cluster={}", self.name);
        let role = format!("label=io.evenkeel.role={role}");
        let names = docker(&["ps", "-a", "--filter", &cluster, "--filter", &role, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }

    /// Starts a container as a node by hand, as a user would who wants nodes of unequal size; its name.
    pub fn add_node(&self, name: &str, cpus: &str) -> String {
        let token = self.evenkeel(&["token", "create", "--scope", "node", "--ttl", "1h"]);
        let container = format!("evenkeel-{}-{name}", self.name);
        let labels = [format!("io.evenkeel.cluster={}", self.name), "io.evenkeel.role=node".to_owned()];
        let network = format!("balancer-net-{}", self.name);
        let master = format!("http://evenkeel-{}-master:7400", self.name);
        let create = [
            "create",
            "-i",
            "--name",
            &container,
            "--label",
            &labels[0],
            "--label",
            &labels[1],
            "--network",
            &network,
        ];
        let limits = ["--cpus", cpus, "--memory", "128m", "--cgroup-parent", CGROUP_PARENT];
        let node = ["evenkeel:latest", "node", "--master", &master, "--name", name, "--token-file", "-"];
        docker(&[&create[..], &limits, &node].concat());
        // Only an attached start can feed the token to standard input; the container outlives the client.
        let mut attached = Command::new("docker");
        attached
            .args(["start", "-ai", &container])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut attached = attached.spawn().unwrap();
        writeln!(attached.stdin.take().unwrap(), "{token}").unwrap();
        self.wait_for_node(name, "ready", 20);
        attached.kill().unwrap();
        attached.wait().unwrap();
        container
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ran = self.try_evenkeel(&["down"]);
        // What `down` should have removed is removed all the same, so that one failure does not spoil the next test.
        let label = format!("label=io.evenkeel.cluster={}", self.name);
        let left = docker(&["ps", "-aq", "--filter", &label]);
        for container in left.lines() {
            let _ = try_run(Command::new("docker").args(["rm", "-f", container]), "");
        }
        for kind in ["network", "volume"] {
            for thing in docker(&[kind, "ls", "-q", "--filter", &label]).lines() {
                let _ = try_run(Command::new("docker").args([kind, "rm", thing]), "");
            }
        }
        if !std::thread::panicking() {
            assert_eq!(ran.code, 0, "{ran:?}");
            assert_eq!(left, "", "`down` left containers");
        }
    }
}
