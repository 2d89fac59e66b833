//! A Docker daemon of a test's own, which may be killed.
//!
//! It is in a network namespace of its own, with its own bridges and rules, and all that it keeps is in a folder that
//! goes with it: the machine's daemon, its networks and its images are not touched. Programs that shall reach its
//! containers have to be in that namespace too ([`Inside`]).

use crate::{Program, cluster::CGROUP_PARENT, eventually, run, try_run};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// Where it writes down the process of its containerd.
const CONTAINERD: &str = "exec/containerd/containerd.pid";
/// An address inside that is there whatever the daemon does with its bridges.
pub const ADDRESS: &str = "10.214.0.1";

/// A network namespace, and the daemon in it.
#[derive(Clone, Debug)]
pub struct Inside {
    namespace: String,
    host: String,
}

impl Inside {
    /// A program that is in there, and knows the daemon as its own.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program);
        command.env("DOCKER_HOST", &self.host);
        command
    }
}

/// The daemon; dropping it ends it, its containers, and takes its network namespace away.
#[derive(Debug)]
pub struct Daemon {
    daemon: Program,
    inside: Inside,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Daemon {
    /// Starts one with these further arguments, without any image.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t-docker-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // A short name: the path of a socket has a bound.
        let folder = tempfile::Builder::new().prefix("evk-docker-").tempdir().unwrap();
        fs::write(folder.path().join("daemon.json"), "{}").unwrap();
        for arguments in [
            &["netns", "add", &name][..],
            &["-n", &name, "link", "set", "lo", "up"],
            &["-n", &name, "addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"],
        ] {
            run(Command::new("ip").args(arguments));
        }
        let daemon = Program::new(folder.path().join("log"));
        let host = format!("unix://{}", folder.path().join("socket").display());
        let inside = Inside { namespace: name, host };
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut daemon = Self { daemon, inside, arguments, folder };
        daemon.start_again();
        daemon
    }

    /// Starts it after it ended, and waits until it answers.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_again(&mut self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut command = self.inside.command(Path::new("dockerd"));
        command.env_remove("DOCKER_HOST").args(["--config-file", &path("daemon.json")]);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        command.args(["-H", &self.inside.host, "--cgroup-parent", CGROUP_PARENT]).args(&self.arguments);
        self.daemon.start(&mut command);
        // One that ends what it finds running gives it 10 s to end by itself.
        eventually("the daemon answers", 90, || {
            let ran = self.try_docker(&["version"]);
            if ran.code == 0 { Ok(()) } else { Err(format!("{ran:?}; {}", self.daemon.log())) }
        });
    }

    /// `kill -9`. The kernel ends its containerd with it; containers go on, each with the process that looks after it.
    pub fn kill(&mut self) {
        let containerd = self.containerd();
        self.daemon.end("KILL");
        // Whoever is process 1 may take its time to notice. Until then the next daemon would take it for alive.
        eventually("containerd has ended", 20, || match containerd.as_deref().map(state_of) {
            Some(Some('R' | 'S' | 'D')) => Err(format!("{containerd:?}")),
            _ => Ok(()),
        });
        let _ = fs::remove_file(self.folder.path().join(CONTAINERD));
    }

    fn containerd(&self) -> Option<String> {
        let pid = fs::read_to_string(self.folder.path().join(CONTAINERD)).ok()?;
        Some(pid.trim().to_owned())
    }

    /// Where programs have to be that reach its containers.
    #[must_use]
    pub fn inside(&self) -> Inside {
        self.inside.clone()
    }

    /// Runs `docker` against it, whatever comes of it.
    #[must_use]
    pub fn try_docker(&self, arguments: &[&str]) -> crate::Ran {
        try_run(Command::new("docker").args(arguments).env("DOCKER_HOST", &self.inside.host), "")
    }

    /// Runs `docker` against it, which has to succeed.
    pub fn docker(&self, arguments: &[&str]) -> String {
        run(Command::new("docker").args(arguments).env("DOCKER_HOST", &self.inside.host))
    }

    /// Processes that have its folder in their command line: itself, containerd, and who looks after containers.
    fn processes(&self) -> Vec<String> {
        let folder = self.folder.path().as_os_str().as_encoded_bytes();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().into_string().ok());
        let is_ours = |pid: &String| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != std::process::id().to_string() && line.windows(folder.len()).any(|part| part == folder)
        };
        pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())).filter(is_ours).collect()
    }
}

/// The state of a process as `/proc/<pid>/stat` has it, if it is there.
fn state_of(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for container in self.try_docker(&["ps", "-aq"]).stdout.lines() {
            let _ = self.try_docker(&["rm", "-f", container]);
        }
        // In order: it unmounts what it mounted, and ends its containerd.
        self.daemon.signal("TERM");
        for _ in 0..100 {
            if self.processes().is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        // What a daemon has left that does not live any more: a container is the child of who looks after it.
        for pid in self.processes() {
            let _ = try_run(Command::new("pkill").args(["-KILL", "-P", &pid]), "");
            let _ = try_run(Command::new("kill").args(["-KILL", &pid]), "");
        }
        let folder = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in below.filter(|mount| mount.starts_with(&folder)) {
            let _ = try_run(Command::new("umount").args(["-l", mount]), "");
        }
        let _ = try_run(Command::new("ip").args(["netns", "del", &self.inside.namespace]), "");
    }
}
