//! From a pool's template to the containers of its nodes.

use crate::engine::{ContainerSpec, Host, MountSource, MountSpec, NODE_USER, Role};
use protocol::pool::Template;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

/// Variable with the text of a pool's `kinds.toml`.
pub const KINDS_VARIABLE: &str = "EVENKEEL_KINDS_TOML";
/// Variable with the environment of commands, as a JSON object of strings.
pub const COMMAND_ENV_VARIABLE: &str = "EVENKEEL_COMMAND_ENV";
/// Where our program is in a container of another image.
const PROGRAM_FOLDER: &str = "/.evenkeel";
/// Where the Docker daemon's socket is.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];

/// What a manager adds to every template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// The cluster.
    pub cluster: String,
    /// The pool.
    pub pool: String,
    /// Our own image; empty where the engine has no images.
    pub image: String,
    /// URL at which nodes reach the master.
    pub node_master: String,
    /// Network of the nodes; none where the engine has no networks.
    pub network: Option<String>,
    /// Whether that network is without a way out; then no name of the world is looked up either.
    pub internal_network: bool,
    /// Parent control group.
    pub cgroup_parent: Option<String>,
    /// Host directories may be mounted only if they are one of these or lie below one (see [`crate::mounts`]).
    pub allow_mounts: Vec<PathBuf>,
    /// CPU limit of templates that name none, in cores.
    pub default_cpus: Option<f64>,
    /// Memory limit of templates that name none.
    pub default_memory_bytes: Option<u64>,
    /// Whether the engine itself holds nodes to their limits. If not, nodes are told them.
    pub isolated: bool,
}

/// Why no node can be made from a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// More than one node can have.
    #[error("template.cpus is {cpus}, but this host has {host_cores} cores; one node cannot have more")]
    Cpus {
        /// As asked for.
        cpus: String,
        /// As there are.
        host_cores: String,
    },
    /// A directory that the manager was not told to allow.
    #[error(
        "the mount of {0:?} is not allowed; start the manager with `--allow-mount` for it or for a folder above it"
    )]
    Mount(String),
    /// A path that is not absolute, or goes up.
    #[error("the mount path {0:?} must be absolute, without `..`")]
    MountPath(String),
    /// A target that would hide what the node itself needs.
    #[error(
        "nothing can be mounted at {0:?}, which the node needs itself; choose a folder of its own, as /data"
    )]
    MountTarget(String),
    /// Two mounts at one target.
    #[error("two mounts have the target {0:?}; give each a target of its own")]
    MountTwice(String),
    /// A folder that holds the socket of the Docker daemon, by which a task would rule the host.
    #[error("{0:?} holds the socket of the Docker daemon; mount the folders that the work needs instead")]
    MountSocket(String),
    /// Something that only containers can have.
    #[error("template.{0} needs containers; this manager keeps processes of the host")]
    NeedsContainers(&'static str),
}

/// What the nodes of a pool are made from.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTemplate {
    base: ContainerSpec,
    hash: String,
    /// Volume with our program, for another image than our own; it has to be filled before the first node.
    pub program_volume: Option<String>,
}

impl NodeTemplate {
    /// The template of this pool's nodes on this host.
    ///
    /// # Errors
    /// [`TemplateError`] saying what cannot be.
    pub fn new(template: &Template, around: &Surroundings, host: &Host) -> Result<Self, TemplateError> {
        let cpus = template.cpus.or(around.default_cpus);
        if let Some(cpus) = cpus.filter(|cpus| !(*cpus > 0.0 && *cpus <= host.cores)) {
            return Err(TemplateError::Cpus { cpus: cpus.to_string(), host_cores: host.cores.to_string() });
        }
        let mut base = ContainerSpec::new("", &around.cluster, Role::Node, &around.image, Vec::new());
        base.pool = Some(around.pool.clone());
        base.cpus = cpus;
        base.memory_bytes = template.memory_bytes.or(around.default_memory_bytes);
        base.user = Some(template.user.clone().unwrap_or_else(|| NODE_USER.to_owned()));
        base.tmpfs_bytes = template.tmpfs_bytes.unwrap_or(base.tmpfs_bytes);
        base.network.clone_from(&around.network);
        base.closed_dns = around.internal_network;
        base.cgroup_parent.clone_from(&around.cgroup_parent);
        base.takes_stdin = true;
        base.args = arguments(template, around, &base);
        base.env.extend(template.kinds.iter().map(|kinds| (KINDS_VARIABLE.to_owned(), kinds.clone())));
        if !template.env.is_empty() {
            let env = serde_json::to_string(&template.env).unwrap_or_default();
            base.env.insert(COMMAND_ENV_VARIABLE.to_owned(), env);
        }
        let program_volume = if around.isolated {
            base.mounts = host_folders(template, around)?;
            other_image(template, around, &mut base)
        } else if !template.mounts.is_empty() {
            return Err(TemplateError::NeedsContainers("mounts"));
        } else if template.image.is_some() {
            return Err(TemplateError::NeedsContainers("image"));
        } else {
            None
        };
        // Everything that a node is made of is in `base`, in a fixed order; a new version of the program may
        // write it differently, but then the program is another one anyway.
        let whole = format!("{} {base:?}", env!("CARGO_PKG_VERSION"));
        let hash = Sha256::digest(whole).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { base, hash, program_volume })
    }

    /// By which nodes made from another template are known.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The container of the node of this name.
    #[must_use]
    pub fn spec(&self, name: &str) -> ContainerSpec {
        let mut spec = self.base.clone();
        spec.name = name.to_owned();
        spec.template = Some(self.hash.clone());
        spec.args.extend(["--name".to_owned(), name.to_owned()]);
        spec
    }

    /// A container that is never started: when it is made, the engine fills the program's volume from our
    /// image, whose `/bin` holds nothing but the program.
    #[must_use]
    pub fn volume_filler(&self, around: &Surroundings) -> Option<ContainerSpec> {
        let volume = self.program_volume.clone()?;
        // Of this pool's manager alone, so that managers of several pools do not meet here.
        let name = format!("evenkeel-{}-{}-filler", around.cluster, around.pool);
        let mut spec = ContainerSpec::new(&name, &around.cluster, Role::Manager, &around.image, Vec::new());
        spec.mounts.push(MountSpec {
            source: MountSource::Volume(volume),
            target: "/bin".to_owned(),
            read_only: false,
        });
        Some(spec)
    }
}

fn arguments(template: &Template, around: &Surroundings, base: &ContainerSpec) -> Vec<String> {
    let mut args: Vec<String> =
        ["node", "--master", &around.node_master, "--pool", &around.pool, "--token-file", "-"]
            .map(str::to_owned)
            .into();
    for (key, value) in &template.labels {
        args.extend(["--label".to_owned(), format!("{key}={value}")]);
    }
    if template.allow_commands {
        args.push("--allow-commands".to_owned());
    }
    if !around.isolated {
        args.extend(base.cpus.iter().flat_map(|cpus| ["--cores".to_owned(), cpus.to_string()]));
        args.extend(base.memory_bytes.iter().flat_map(|bytes| ["--memory".to_owned(), bytes.to_string()]));
    }
    args
}

/// Puts our program into another image than our own; the volume it comes from.
fn other_image(template: &Template, around: &Surroundings, base: &mut ContainerSpec) -> Option<String> {
    let image = template.image.as_ref().filter(|image| **image != around.image)?;
    let hash = around.image.rsplit(':').next().unwrap_or_default();
    let volume = format!("evenkeel-{}-bin-{hash}", around.cluster);
    base.image.clone_from(image);
    base.entrypoint = Some(vec![format!("{PROGRAM_FOLDER}/evenkeel")]);
    base.mounts.push(MountSpec {
        source: MountSource::Volume(volume.clone()),
        target: PROGRAM_FOLDER.to_owned(),
        read_only: true,
    });
    Some(volume)
}

fn host_folders(template: &Template, around: &Surroundings) -> Result<Vec<MountSpec>, TemplateError> {
    let mut targets = BTreeSet::new();
    // As paths, so that `/x` and `/x/` are the same.
    if let Some(twice) = template.mounts.iter().find(|mount| !targets.insert(Path::new(&mount.target))) {
        return Err(TemplateError::MountTwice(twice.target.clone()));
    }
    template.mounts.iter().map(|mount| checked(mount, around)).collect()
}

/// A mount below what is allowed, by its words alone; [`crate::mounts`] looks at the folders themselves.
fn checked(mount: &protocol::pool::Mount, around: &Surroundings) -> Result<MountSpec, TemplateError> {
    let plain = |path: &str| {
        let path = Path::new(path);
        path.is_absolute()
            && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
    };
    for path in [&mount.source, &mount.target] {
        if !plain(path) {
            return Err(TemplateError::MountPath(path.clone()));
        }
    }
    let source = Path::new(&mount.source);
    if !around.allow_mounts.iter().any(|allowed| source.starts_with(allowed)) {
        return Err(TemplateError::Mount(mount.source.clone()));
    }
    if SOCKETS.iter().any(|socket| Path::new(socket).starts_with(source)) {
        return Err(TemplateError::MountSocket(mount.source.clone()));
    }
    let first = Path::new(&mount.target).components().nth(1).map(Component::as_os_str);
    // What is below `/tmp` is removed between commands.
    let ours = ["bin", "evenkeel", "proc", "sys", "dev", "tmp", ".evenkeel"];
    if first.is_none_or(|first| ours.iter().any(|name| first == OsStr::new(name))) {
        return Err(TemplateError::MountTarget(mount.target.clone()));
    }
    Ok(MountSpec {
        source: MountSource::Host(source.to_owned()),
        target: mount.target.clone(),
        read_only: mount.read_only,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use protocol::pool::Mount;

    fn around() -> Surroundings {
        Surroundings {
            cluster: "c".to_owned(),
            pool: "p".to_owned(),
            image: "evenkeel:0123456789ab".to_owned(),
            node_master: "http://m:7400".to_owned(),
            allow_mounts: vec!["/srv/data".into()],
            isolated: true,
            ..Surroundings::default()
        }
    }

    fn host() -> Host {
        Host { cores: 2.0, memory_bytes: 1 << 32, runtime: String::new() }
    }

    fn with_mount(source: &str, target: &str) -> Result<NodeTemplate, TemplateError> {
        let mount = Mount { source: source.to_owned(), target: target.to_owned(), read_only: false };
        NodeTemplate::new(&Template { mounts: vec![mount], ..Template::default() }, &around(), &host())
    }

    #[test]
    fn any_change_of_a_template_changes_its_hash_and_the_name_does_not() {
        let new = |template: &Template| NodeTemplate::new(template, &around(), &host()).unwrap();
        let base = new(&Template::default());
        assert_eq!(base.hash(), new(&Template::default()).hash());
        assert_eq!(base.spec("a").template, base.spec("b").template);
        let changed = [
            Template { cpus: Some(0.5), ..Template::default() },
            Template { memory_bytes: Some(1 << 26), ..Template::default() },
            Template { allow_commands: true, ..Template::default() },
            Template { kinds: Some("x".to_owned()), ..Template::default() },
            Template { image: Some("debian".to_owned()), ..Template::default() },
            Template { env: [("A".to_owned(), "b".to_owned())].into(), ..Template::default() },
        ];
        for template in changed {
            assert_ne!(base.hash(), new(&template).hash(), "{template:?}");
        }
    }

    #[test]
    fn one_node_cannot_have_more_cores_than_the_host() {
        for cpus in [2.1, 0.0, -1.0, f64::NAN] {
            let template = Template { cpus: Some(cpus), ..Template::default() };
            assert!(matches!(
                NodeTemplate::new(&template, &around(), &host()),
                Err(TemplateError::Cpus { .. })
            ));
        }
    }

    #[test]
    fn only_allowed_folders_are_mounted_and_never_over_what_a_node_needs() {
        assert!(with_mount("/srv/data", "/data").is_ok());
        assert!(with_mount("/srv/data/deeper", "/data").is_ok());
        for source in ["/", "/srv", "/srv/database", "/etc"] {
            assert_eq!(with_mount(source, "/data"), Err(TemplateError::Mount(source.to_owned())));
        }
        for source in ["/srv/data/../..", "srv/data", ""] {
            assert_eq!(with_mount(source, "/data"), Err(TemplateError::MountPath(source.to_owned())));
        }
        for target in ["/", "/proc/x", "/bin", "/.evenkeel/x", "/tmp", "/tmp/x"] {
            assert_eq!(with_mount("/srv/data", target), Err(TemplateError::MountTarget(target.to_owned())));
        }
    }

    #[test]
    fn no_target_is_used_twice_and_the_docker_socket_is_never_mounted() {
        let mount = |source: &str, target: &str| Mount {
            source: source.to_owned(),
            target: target.to_owned(),
            read_only: true,
        };
        let new = |mounts: Vec<Mount>| {
            let around = Surroundings { allow_mounts: vec!["/".into()], ..around() };
            NodeTemplate::new(&Template { mounts, ..Template::default() }, &around, &host())
        };
        assert!(new(vec![mount("/a", "/x"), mount("/a", "/y")]).is_ok());
        let twice = new(vec![mount("/a", "/x"), mount("/b", "/x/")]);
        assert_eq!(twice, Err(TemplateError::MountTwice("/x/".to_owned())));
        for source in ["/", "/run", "/var", "/var/run/", "/var/run/docker.sock"] {
            assert_eq!(new(vec![mount(source, "/x")]), Err(TemplateError::MountSocket(source.to_owned())));
        }
    }

    #[test]
    fn another_image_gets_our_program_from_a_volume_that_can_only_be_read() {
        let template = Template { image: Some("debian".to_owned()), ..Template::default() };
        let template = NodeTemplate::new(&template, &around(), &host()).unwrap();
        let spec = template.spec("n");
        assert_eq!(spec.image, "debian");
        assert_eq!(spec.entrypoint, Some(vec!["/.evenkeel/evenkeel".to_owned()]));
        assert!(spec.mounts.iter().all(|mount| mount.read_only));
        assert_eq!(template.program_volume.as_deref(), Some("evenkeel-c-bin-0123456789ab"));
        assert_eq!(template.volume_filler(&around()).unwrap().image, around().image);
    }

    #[test]
    fn a_process_is_told_its_limits_because_nothing_holds_it_to_them() {
        let around = Surroundings { isolated: false, default_cpus: Some(0.5), ..around() };
        let spec = NodeTemplate::new(&Template::default(), &around, &host()).unwrap().spec("n");
        assert!(spec.args.windows(2).any(|pair| pair == ["--cores", "0.5"]), "{:?}", spec.args);
        let image = Template { image: Some("debian".to_owned()), ..Template::default() };
        assert_eq!(NodeTemplate::new(&image, &around, &host()), Err(TemplateError::NeedsContainers("image")));
    }
}
