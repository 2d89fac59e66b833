//! A further pool's manager, as a user starts it by hand beside a cluster.

use crate::{Cluster, cluster::CGROUP_PARENT};
use std::process::{Child, Stdio};

/// `evenkeel node-manager run`, on this host; told to end when dropped. Its nodes go with the cluster.
pub struct Manager(Child);

impl Manager {
    /// Starts one for this pool.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn run(cluster: &Cluster, pool: &str) -> Self {
        let master = format!("http://evenkeel-{}-master:7400", cluster.name);
        let mut command = cluster.command();
        command.args(["node-manager", "run", "--runtime", "docker", "--pool", pool]);
        command.args(["--node-master", &master, "--cgroup-parent", CGROUP_PARENT]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Nothing is lost by a kill: the next manager adopts what runs, and here `down` removes it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
