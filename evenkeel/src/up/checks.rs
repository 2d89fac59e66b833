//! What is refused before anything is made.

use super::{
    Wish,
    runtime::{Runtime, RuntimeArg},
};
use crate::exit::Failure;
use node_manager::engine::Host;
use protocol::pool::Mount;
use std::{env, path::Path};

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
            // The paths of another host cannot be looked at from here.
            let is_local = env::var("DOCKER_HOST")
                .ok()
                .filter(|host| !host.is_empty())
                .is_none_or(|host| host.starts_with("unix://"));
            if is_local {
                wish.mounts.iter().try_for_each(check_mount).map_err(Failure::Usage)?;
            }
            match &wish.image {
                Some(image) if !engine.has_image(image).await? => Err(Failure::Usage(format!(
                    "--image: the Docker daemon has no image {image}; get it by `docker pull {image}`, or look at `docker image ls`"
                ))),
                _ => Ok(()),
            }
        }
    }
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
        _ => Ok(()),
    }
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
