//! The containers (or processes) of a cluster beside its nodes.

use node_manager::engine::{ContainerSpec, MountSource, MountSpec, Publish, Role};
use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Port of the master inside its container.
pub(crate) const MASTER_PORT: u16 = 7_400;
/// Where the state is inside a container.
const STATE: &str = "/state";
/// Where the Docker socket is inside the manager's container.
const SOCKET: &str = "/var/run/docker.sock";
const MASTER_MEMORY: u64 = 1 << 30;
const MANAGER_MEMORY: u64 = 256 << 20;

/// Name of the master's container.
pub(crate) fn master_name(cluster: &str) -> String {
    format!("evenkeel-{cluster}-master")
}

/// Name of the manager's container.
pub(crate) fn manager_name(cluster: &str) -> String {
    format!("evenkeel-{cluster}-manager")
}

/// What both containers share.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The cluster.
    pub cluster: String,
    /// Our image.
    pub image: String,
    /// The cluster's network.
    pub network: String,
    /// A second network of the master, where that one is without a way out.
    pub way_out: Option<String>,
    /// Parent control group.
    pub cgroup_parent: Option<String>,
}

fn texts<const N: usize>(arguments: [&str; N]) -> Vec<String> {
    arguments.map(str::to_owned).into()
}

fn container(place: &Place, name: &str, role: Role, args: Vec<String>) -> ContainerSpec {
    let mut spec = ContainerSpec::new(name, &place.cluster, role, &place.image, args);
    spec.network = Some(place.network.clone());
    spec.cgroup_parent.clone_from(&place.cgroup_parent);
    spec.takes_stdin = true;
    spec
}

fn volume(name: String) -> MountSpec {
    MountSpec { source: MountSource::Volume(name), target: STATE.to_owned(), read_only: false }
}

/// The master's container. The administrator's token comes on its standard input.
pub(crate) fn master_container(place: &Place, listen: SocketAddr, ip: Option<IpAddr>) -> ContainerSpec {
    let name = master_name(&place.cluster);
    let inside = format!("0.0.0.0:{MASTER_PORT}");
    let args = texts([
        "master",
        "--cluster",
        &place.cluster,
        "--state-dir",
        STATE,
        "--listen",
        &inside,
        "--bootstrap-token-file",
        "-",
        "--allow-host",
        &name,
    ]);
    let mut spec = container(place, &name, Role::Master, args);
    spec.memory_bytes = Some(MASTER_MEMORY);
    spec.mounts.push(volume(node_manager::docker::volume::state_volume(&place.cluster)));
    spec.publish.push(Publish { host: listen, port: MASTER_PORT });
    spec.second_network.clone_from(&place.way_out);
    spec.ip = ip;
    spec
}

/// The manager's container, with the Docker socket and its group. Its token comes on its standard input.
///
/// # Errors
/// If the daemon is not reached by a socket of this host.
pub(crate) fn manager_container(
    place: &Place,
    master: &str,
    allow_mounts: &[PathBuf],
) -> Result<ContainerSpec, String> {
    let socket = docker_socket()?;
    let group = fs::metadata(&socket).map_err(|error| format!("{}: {error}", socket.display()))?.gid();
    let mut args = texts([
        "node-manager",
        "run",
        "--cluster",
        &place.cluster,
        "--state-dir",
        STATE,
        "--runtime",
        "docker",
        "--master",
        master,
        "--token-file",
        "-",
        "--keep-token",
    ]);
    for folder in allow_mounts {
        args.extend(["--allow-mount".to_owned(), folder.display().to_string()]);
    }
    if let Some(group) = &place.cgroup_parent {
        args.extend(["--cgroup-parent".to_owned(), group.clone()]);
    }
    let name = manager_name(&place.cluster);
    let mut spec = container(place, &name, Role::Manager, args);
    spec.memory_bytes = Some(MANAGER_MEMORY);
    spec.groups.push(group.to_string());
    spec.mounts.push(volume(name));
    spec.mounts.push(MountSpec {
        source: MountSource::Host(socket),
        target: SOCKET.to_owned(),
        read_only: false,
    });
    spec.env.insert("DOCKER_HOST".to_owned(), format!("unix://{SOCKET}"));
    Ok(spec)
}

fn docker_socket() -> Result<PathBuf, String> {
    match env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()) {
        None => Ok(SOCKET.into()),
        Some(host) => host.strip_prefix("unix://").map(PathBuf::from).ok_or_else(|| {
            format!("DOCKER_HOST is {host}: a manager in a container needs the daemon's socket on this host; leave --detach out")
        }),
    }
}

/// The master as a process. Its state is in a folder of its own below the cluster's.
pub(crate) fn master_process(
    cluster: &str,
    state: &Path,
    listen: SocketAddr,
    token_file: &Path,
) -> ContainerSpec {
    let (folder, listen) = (state.join(MASTER_FOLDER).display().to_string(), listen.to_string());
    let token_file = token_file.display().to_string();
    let args = texts([
        "master",
        "--cluster",
        cluster,
        "--state-dir",
        &folder,
        "--listen",
        &listen,
        "--bootstrap-token-file",
        &token_file,
    ]);
    ContainerSpec::new(&master_name(cluster), cluster, Role::Master, "", args)
}

/// What a master is told for TLS, beside what its kind of place is told: it cannot see by itself which of the
/// host's addresses lead to it.
pub(crate) fn tls_arguments(listen: IpAddr) -> Vec<String> {
    let addresses = if listen.is_unspecified() { service::addresses::local() } else { vec![listen] };
    let names = addresses.iter().flat_map(|ip| ["--tls-name".to_owned(), ip.to_string()]);
    texts(["--tls", "auto"]).into_iter().chain(names).collect()
}

/// Where a master in a container keeps its CA's certificate.
pub(crate) const CA_IN_CONTAINER: &str = "/state/tls/ca.pem";

/// Where a master that is a process keeps its CA's certificate.
pub(crate) fn ca_of_process(state: &Path) -> PathBuf {
    state.join(MASTER_FOLDER).join("tls/ca.pem")
}

/// Folder of a master that is a process, in the cluster's state directory.
pub(crate) const MASTER_FOLDER: &str = "master";

/// The manager as a process. Its token comes on its standard input.
pub(crate) fn manager_process(cluster: &str, state: &Path, master: &str) -> ContainerSpec {
    let state = state.display().to_string();
    let args = texts([
        "node-manager",
        "run",
        "--cluster",
        cluster,
        "--state-dir",
        &state,
        "--runtime",
        "process",
        "--master",
        master,
        "--token-file",
        "-",
    ]);
    let mut spec = ContainerSpec::new(&manager_name(cluster), cluster, Role::Manager, "", args);
    spec.takes_stdin = true;
    spec
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            cluster: "c".to_owned(),
            image: "evenkeel:x".to_owned(),
            network: "balancer-net-c".to_owned(),
            way_out: None,
            cgroup_parent: Some("/g".to_owned()),
        }
    }

    #[test]
    fn names_places_and_volumes_are_those_of_the_contract() {
        let spec = master_container(&place(), "127.0.0.1:7400".parse().unwrap(), None);
        assert_eq!(spec.name, "evenkeel-c-master");
        assert_eq!(spec.mounts[0].source, MountSource::Volume("evenkeel-c-state".to_owned()));
        assert_eq!((spec.publish[0].host.port(), spec.publish[0].port), (7_400, 7_400));
        assert_eq!(spec.cgroup_parent.as_deref(), Some("/g"));
        assert!(spec.takes_stdin && spec.user.is_none(), "hardened as all are, its token by stdin");
        assert_eq!(manager_name("c"), "evenkeel-c-manager");
    }

    #[test]
    fn the_arguments_are_ones_that_the_command_line_takes() {
        let listen = "127.0.0.1:1".parse().unwrap();
        let specs = [
            master_container(&place(), listen, None),
            master_process("c", Path::new("/s"), listen, Path::new("/s/admin.token")),
            manager_process("c", Path::new("/s"), "http://127.0.0.1:1"),
        ];
        let mut secured = specs[0].clone();
        secured.args.extend(tls_arguments([192, 0, 2, 7].into()));
        for spec in specs.into_iter().chain([secured]) {
            let line = std::iter::once("evenkeel".to_owned()).chain(spec.args.clone()).map(Into::into);
            crate::cli::parse(line.collect()).unwrap();
        }
    }
}
