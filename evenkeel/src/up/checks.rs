//! What is refused before anything is made.

use super::{
    Wish,
    runtime::{Runtime, RuntimeArg},
};
use crate::exit::Failure;
use crate::output;
use node_manager::{
    docker::{DockerEngine, network::Network},
    engine::{EngineError, Host, NODE_USER},
    mounts::daemon_is_local,
    template::{NodeTemplate, Surroundings, TemplateError},
};
use protocol::pool::{Mount, Template};
use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Most nodes of one `up`: each takes a container, a connection and some MiB of its own.
pub(crate) const MOST_NODES: i64 = 256;

/// Refuses what can never work on this host, naming the flag.
///
/// # Errors
/// [`Failure::Usage`], or the runtime does not answer.
pub(super) async fn refuse_impossible(wish: &Wish, runtime: &Runtime) -> Result<(), Failure> {
    let host = runtime.engine().host().await?;
    check_cpus(wish.cpus, &host).map_err(Failure::Usage)?;
    match runtime {
        Runtime::Process(_) => check_process(wish).map_err(Failure::Usage),
        Runtime::Docker(engine) => {
            check_template(wish, &host).map_err(|error| Failure::Usage(format!("--mount: {error}")))?;
            // The paths of another host cannot be looked at from here.
            if daemon_is_local() {
                wish.mounts.iter().try_for_each(check_mount).map_err(Failure::Usage)?;
                warn_of_unwritable(wish);
            }
            match &wish.image {
                Some(image) => check_image(engine, image).await,
                None => Ok(()),
            }
        }
    }
}

/// Refuses an image that the daemon does not have: nothing is pulled.
///
/// # Errors
/// [`Failure::Usage`], or the daemon does not answer.
pub(crate) async fn check_image(engine: &DockerEngine, image: &str) -> Result<(), Failure> {
    match engine.has_image(image).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Usage(format!(
            "--image: the Docker daemon has no image {image}; get it by `docker pull {image}`, or look at `docker image ls`"
        ))),
        // It is no name of an image.
        Err(EngineError::Failed { reason, .. }) => Err(Failure::Usage(format!("--image: {reason}"))),
        Err(other) => Err(other.into()),
    }
}

/// What no node could be made from, such as two mounts at one target.
fn check_template(wish: &Wish, host: &Host) -> Result<(), TemplateError> {
    let template = Template { mounts: wish.mounts.clone(), ..Template::default() };
    let allow_mounts = wish.mounts.iter().map(|mount| mount.source.clone().into()).collect();
    let around = Surroundings { allow_mounts, isolated: true, ..Surroundings::default() };
    NodeTemplate::new(&template, &around, host).map(drop)
}

fn check_cpus(cpus: Option<f64>, host: &Host) -> Result<(), String> {
    match cpus {
        Some(cpus) if cpus > host.cores => {
            Err(format!("--cpus {cpus}: this host has {} cores, and one node cannot have more", host.cores))
        }
        _ => Ok(()),
    }
}

fn check_process(wish: &Wish) -> Result<(), String> {
    let needs = |flag: &str| {
        let how = match wish.runtime {
            RuntimeArg::Process => "leave --runtime process out",
            RuntimeArg::Auto | RuntimeArg::Docker => "start Docker",
        };
        Err(format!("{flag} needs containers, and the nodes would be processes of this host; {how}"))
    };
    match wish {
        Wish { image: Some(_), .. } => needs("--image"),
        Wish { mounts, .. } if !mounts.is_empty() => needs("--mount"),
        Wish { subnet: Some(_), .. } => needs("--subnet"),
        Wish { user: Some(_), .. } => needs("--user"),
        Wish { isolate: true, .. } => needs("--isolate"),
        _ => Ok(()),
    }
}

/// A network of the same name that was made by hand is used as it is, so it has to be of the wanted sort.
///
/// # Errors
/// What to do with the network.
pub(super) fn check_network(wish: &Wish, network: &Network) -> Result<(), String> {
    let name = &network.name;
    match (wish.isolate, network.internal) {
        (true, false) => Err(format!(
            "--isolate: the network {name} is there already, and has a way out; remove it by `docker network rm {name}`, or choose another --cluster"
        )),
        (false, true) => Err(format!(
            "the network {name} is there already and is without a way out, so the master could not be reached from this host; say --isolate, or remove it by `docker network rm {name}`"
        )),
        _ => Ok(()),
    }
}

/// The usual surprise with mounts: the nodes' user is another one than the folder's.
fn warn_of_unwritable(wish: &Wish) {
    let user = wish.user.as_deref().unwrap_or(NODE_USER);
    for mount in wish.mounts.iter().filter(|mount| !mount.read_only) {
        if fs::metadata(&mount.source).is_ok_and(|folder| !may_write(user, &folder)) {
            output::say(format_args!(
                "warning: nodes run as user {user}, who may not write to {}; say --user \"$(id -u):$(id -g)\" if it is yours, or let others write to it: chmod o+w",
                mount.source
            ));
        }
    }
}

/// Whether `uid[:gid]`, without any privilege of root, may write there by owner, group and mode.
fn may_write(user: &str, folder: &Metadata) -> bool {
    let mut numbers = user.split(':').map(|part| part.parse::<u32>().ok());
    let (uid, gid) = (numbers.next().flatten(), numbers.next().flatten().unwrap_or(0));
    let bit = if uid == Some(folder.uid()) {
        0o200
    } else if gid == folder.gid() {
        0o020
    } else {
        0o002
    };
    folder.mode() & bit != 0
}

fn check_mount(mount: &Mount) -> Result<(), String> {
    match Path::new(&mount.source).try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("--mount: {} does not exist on this host; make it first", mount.source)),
        // Docker runs as root and may see what this user may not.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish::new("c".to_owned(), RuntimeArg::Process, ([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn a_network_made_by_hand_has_to_be_of_the_wanted_sort() {
        let check = |isolate: bool, internal: bool| {
            let wish = Wish { isolate, ..wish() };
            check_network(&wish, &Network { name: "balancer-net".to_owned(), internal })
        };
        assert!(check(true, true).is_ok() && check(false, false).is_ok());
        assert!(check(true, false).is_err_and(|text| text.contains("--isolate")));
        assert!(check(false, true).is_err_and(|text| text.contains("docker network rm balancer-net")));
    }

    #[test]
    fn mounts_that_no_node_could_have_are_refused_before_anything_is_made() {
        let host = Host { cores: 2.0, memory_bytes: 1 << 30, runtime: String::new() };
        let check = |mounts: &[(&str, &str)]| {
            let mount = |(source, target): &(&str, &str)| Mount {
                source: (*source).to_owned(),
                target: (*target).to_owned(),
                read_only: false,
            };
            check_template(&Wish { mounts: mounts.iter().map(mount).collect(), ..wish() }, &host)
        };
        assert_eq!(check(&[("/a", "/x"), ("/b", "/y")]), Ok(()));
        assert!(matches!(check(&[("/a", "/x"), ("/b", "/x")]), Err(TemplateError::MountTwice(_))));
        assert!(matches!(check(&[("/a", "/tmp")]), Err(TemplateError::MountTarget(_))));
        assert!(matches!(check(&[("/run", "/x")]), Err(TemplateError::MountSocket(_))));
    }

    #[test]
    fn what_only_containers_can_is_refused_with_processes() {
        let refused = |wish: Wish| check_process(&wish).err().unwrap_or_default();
        assert_eq!(check_process(&wish()), Ok(()));
        assert!(refused(Wish { image: Some("debian".to_owned()), ..wish() }).contains("--image"));
        assert!(refused(Wish { user: Some("1".to_owned()), ..wish() }).contains("--user"));
        assert!(refused(Wish { isolate: true, ..wish() }).contains("--isolate"));
        let mount = Mount { source: "/".to_owned(), target: "/in".to_owned(), read_only: true };
        assert!(refused(Wish { mounts: vec![mount], ..wish() }).contains("--mount"));
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "tests")]
    fn who_may_write_is_told_by_owner_group_and_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let with_mode = |mode: u32| {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            fs::metadata(folder.path()).unwrap()
        };
        let (own, other) = (with_mode(0o755), "64999:64999");
        assert!(may_write(&format!("{}:{}", own.uid(), own.gid()), &own));
        assert!(!may_write(other, &own));
        assert!(may_write(other, &with_mode(0o757)));
        assert!(may_write(&format!("64999:{}", own.gid()), &with_mode(0o775)));
        assert!(
            !may_write(&format!("64999:{}", own.gid()), &with_mode(0o757)),
            "the group's bit counts for it"
        );
    }

    #[test]
    fn what_this_host_cannot_give_is_refused_and_the_flag_named() {
        let host = Host { cores: 2.0, memory_bytes: 1 << 30, runtime: String::new() };
        assert_eq!(check_cpus(Some(2.0), &host), Ok(()));
        let refused = check_cpus(Some(64.0), &host).err().unwrap_or_default();
        assert!(refused.contains("--cpus 64") && refused.contains("2 cores"), "{refused}");

        let mount =
            |source: &str| Mount { source: source.to_owned(), target: "/in".to_owned(), read_only: true };
        assert_eq!(check_mount(&mount("/")), Ok(()));
        let refused = check_mount(&mount("/nonexistent")).err().unwrap_or_default();
        assert!(refused.contains("--mount") && refused.contains("/nonexistent"), "{refused}");
    }
}
