//! Two masters and their nodes as containers on a network of their own, and ways to cut it.
//!
//! PostgreSQL and the manager are processes of this host; the server listens on the host's address in that network.
//! Masters and nodes have no shell, so rules that cut them off are put into their network namespaces from outside.

use super::Scene;
use crate::{Access, Postgres, Program, cluster::CGROUP_PARENT, docker, evenkeel, run, try_run};
use std::{fs, net::Ipv4Addr, process::Command};

/// Lease of the masters.
const LEASE: &str = "2s";
/// Masters of a cluster.
const MASTERS: u8 = 2;

/// The cluster. Dropping it takes everything away.
#[derive(Debug)]
pub struct Containers {
    manager: Program,
    postgres: Postgres,
    database: String,
    network: Network,
    access: Access,
}

/// A network that goes with this.
#[derive(Debug)]
struct Network {
    name: String,
    /// The host's address in it; the masters' follow.
    host: Ipv4Addr,
}

impl Network {
    /// One of the first free subnets of a range that nobody else here uses.
    fn new(name: String) -> Self {
        for part in 0..=255 {
            let host = Ipv4Addr::new(10, 213, part, 1);
            let create = ["network", "create", "--gateway", &host.to_string(), "--subnet"];
            let ran = try_run(
                Command::new("docker").args(create).args([&format!("10.213.{part}.0/24"), &name]),
                "",
            );
            if ran.code == 0 {
                return Self { name, host };
            }
            assert!(ran.stderr.contains("overlap"), "{ran:?}");
        }
        panic!("no subnet is free");
    }

    fn master_ip(&self, at: usize) -> Ipv4Addr {
        let [a, b, c, _] = self.host.octets();
        // Far from those that Docker gives to nodes, from the lowest on.
        Ipv4Addr::new(a, b, c, 200 + u8::try_from(at).unwrap_or_default())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = try_run(Command::new("docker").args(["network", "rm", &self.name]), "");
    }
}

/// Between whom nothing goes any more, in either direction and without a word: not what is on its way either.
#[derive(Debug)]
pub struct Cut {
    /// Containers, and what is thrown away in each.
    rules: Vec<(String, Vec<String>)>,
}

impl Containers {
    /// Two masters that share a database, and so many nodes, all of them ready.
    ///
    /// # Panics
    /// If they do not come up.
    #[must_use]
    pub fn up(nodes: usize) -> Self {
        run(evenkeel().args(["image", "build"]));
        let mut access = Access::new("cut", Vec::new());
        let network = Network::new(format!("balancer-net-{}", access.name));
        access.urls =
            (0..usize::from(MASTERS)).map(|at| format!("http://{}:7400", network.master_ip(at))).collect();
        let postgres = Postgres::start_at(Some(network.host.into()));
        let manager = Program::new(access.file("manager.log"));
        let mut cluster = Self { manager, database: postgres.database(), postgres, network, access };
        (0..usize::from(MASTERS)).for_each(|at| cluster.start_master(at));
        cluster.access.wait_for_master();
        let urls = cluster.access.all_urls();
        let mut manager = cluster.access.command(&urls);
        manager.args(["node-manager", "run", "--runtime", "docker", "--node-master", &urls]);
        cluster.manager.start(manager.args(["--cgroup-parent", CGROUP_PARENT]));
        cluster.access.evenkeel(&["node-manager", "scale", &nodes.to_string()]);
        cluster.access.wait_for_nodes(nodes);
        cluster
    }

    /// The container of a master.
    #[must_use]
    pub fn master(&self, at: usize) -> String {
        format!("evenkeel-{}-master-{at}", self.access.name)
    }

    fn start_master(&self, at: usize) {
        let state = self.access.file(&format!("master-{at}"));
        fs::create_dir(&state).unwrap();
        let [name, ip] = [self.master(at), self.network.master_ip(at).to_string()];
        let cluster = format!("io.evenkeel.cluster={}", self.access.name);
        let mut run = Command::new("docker");
        run.args(["run", "-d", "--name", &name, "--label", &cluster, "--user", "0"]);
        run.args(["--net", &self.network.name, "--ip", &ip, "--cgroup-parent", CGROUP_PARENT]);
        run.arg("-v").arg(format!("{}:/state", state.display()));
        run.arg("-v").arg(format!("{}:/admin.token:ro", self.access.token_file().display()));
        run.args(["-e", &format!("EVENKEEL_STORE={}", self.database), "evenkeel:latest", "master"]);
        run.args(["--state-dir", "/state", "--bootstrap-token-file", "/admin.token", "--lease", LEASE]);
        crate::run(run.args(["--advertise", &self.access.url(at)]));
    }

    /// Containers of the nodes that run, in the order of their names.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let cluster = format!("label=io.evenkeel.cluster={}", self.access.name);
        let names = docker(&[
            "ps",
            "--filter",
            &cluster,
            "--filter",
            "label=io.evenkeel.role=node",
            "--format",
            "{{.Names}}",
        ]);
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// What a master wrote to its log.
    #[must_use]
    pub fn log(&self, at: usize) -> String {
        try_run(Command::new("docker").args(["logs", &self.master(at)]), "").stderr
    }

    /// What SQL prints in the masters' database.
    #[must_use]
    pub fn sql(&self, sql: &str) -> String {
        self.postgres.sql(self.database.rsplit('/').next().unwrap_or_default(), sql)
    }

    /// Takes a container out of the network: its address is gone.
    pub fn disconnect(&self, container: &str) {
        docker(&["network", "disconnect", &self.network.name, container]);
    }

    /// Puts a container back into the network; a master gets the address that it had, a node any.
    pub fn connect(&self, container: &str) {
        let at = (0..usize::from(MASTERS)).find(|at| self.master(*at) == container);
        let ip = at.map(|at| self.network.master_ip(at).to_string());
        let ip = ip.as_ref().map_or_else(Vec::new, |ip| vec!["--ip", ip]);
        docker(&[&["network", "connect"], &ip[..], &[&self.network.name, container]].concat());
    }

    /// Cuts a container off from a master. Each throws away what comes from the other: whoever threw away what it sends
    /// itself would be told by its own kernel, which a network does not do.
    #[must_use]
    pub fn cut_from_master(&self, container: &str, at: usize) -> Cut {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let from_container = docker(&["inspect", "--format", format, container]);
        let from_master = self.network.master_ip(at).to_string();
        Cut::of(&[
            (container, &["INPUT", "-s", &from_master]),
            (&self.master(at), &["INPUT", "-s", &from_container]),
        ])
    }

    /// Cuts a master off from the database, both ways in the master's own network namespace: the database is on this
    /// host, from whose other ports clients come.
    #[must_use]
    pub fn cut_from_database(&self, at: usize) -> Cut {
        let [host, port] = [self.network.host.to_string(), self.postgres.port().to_string()];
        let master = self.master(at);
        Cut::of(&[
            (&master, &["INPUT", "-s", &host, "-p", "tcp", "--sport", &port]),
            (&master, &["OUTPUT", "-d", &host, "-p", "tcp", "--dport", &port]),
        ])
    }
}

impl Cut {
    fn of(rules: &[(&str, &[&str])]) -> Self {
        let own = |rule: &[&str]| rule.iter().copied().chain(["-j", "DROP"]).map(str::to_owned).collect();
        let cut = Self { rules: rules.iter().map(|(at, rule)| ((*at).to_owned(), own(rule))).collect() };
        cut.iptables("-A");
        cut
    }

    fn iptables(&self, what: &str) {
        for (container, rule) in &self.rules {
            let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]);
            run(Command::new("nsenter").args(["-t", &pid, "-n", "iptables", "-w", what]).args(rule));
        }
    }

    /// Everything goes again.
    pub fn heal(self) {
        self.iptables("-D");
    }
}

impl Scene for Containers {
    fn access(&self) -> &Access {
        &self.access
    }

    fn heal(&mut self) {
        self.access.wait_for_master();
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // It would make new nodes for those that are removed.
        self.manager.end("KILL");
        if std::thread::panicking() {
            for at in 0..usize::from(MASTERS) {
                eprintln!("---- {}\n{}", self.master(at), self.log(at));
            }
        }
        let label = format!("label=io.evenkeel.cluster={}", self.access.name);
        for container in docker(&["ps", "-aq", "--filter", &label]).lines() {
            let _ = try_run(Command::new("docker").args(["rm", "-f", container]), "");
        }
        for volume in docker(&["volume", "ls", "-q", "--filter", &label]).lines() {
            let _ = try_run(Command::new("docker").args(["volume", "rm", volume]), "");
        }
    }
}
