//! Whether the host folders of a node are really where their paths say.
//!
//! [`crate::template`] has checked the words: absolute, without `..`, one of `--allow-mount` or below one. But
//! who may write below an allowed folder (a task with that folder mounted, say) can put a symbolic link there,
//! and the engine, which is root, would follow it. So a folder *below* an allowed one is looked at here. What
//! is left is the moment between the look and the mount.

use crate::engine::{MountSource, MountSpec};
use std::{
    env, io,
    path::{Path, PathBuf},
};

/// Why a folder is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It cannot be looked at.
    #[error(
        "the mount of {folder:?} cannot be checked, because this manager does not see it ({why}); make the folder, or start the manager with `--allow-mount {folder}` itself"
    )]
    Unseen {
        /// The folder.
        folder: String,
        /// Why not.
        why: String,
    },
    /// A link leads out of what is allowed.
    #[error("the mount of {folder:?} is not allowed: it leads to {real:?}, which no `--allow-mount` covers")]
    LeadsOut {
        /// As the template names it.
        folder: String,
        /// Where it is.
        real: String,
    },
}

/// Looks at the host folders of a node. One that `allowed` names itself is the word of who started the
/// manager and is not looked at.
///
/// # Errors
/// [`MountError`] naming the first that will not do.
pub fn check(mounts: &[MountSpec], allowed: &[PathBuf]) -> Result<(), MountError> {
    let folders = mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Host(folder) => Some(folder),
        MountSource::Volume(_) => None,
    });
    folders.filter(|folder| !allowed.contains(folder)).try_for_each(|folder| check_one(folder, allowed))
}

fn check_one(folder: &Path, allowed: &[PathBuf]) -> Result<(), MountError> {
    let shown = || folder.display().to_string();
    let unseen = |why: String| MountError::Unseen { folder: shown(), why };
    if !daemon_is_local() {
        return Err(unseen("DOCKER_HOST names another host".to_owned()));
    }
    let real = folder.canonicalize().map_err(|error: io::Error| unseen(error.to_string()))?;
    let covers = |allowed: &PathBuf| allowed.canonicalize().is_ok_and(|allowed| real.starts_with(allowed));
    if allowed.iter().any(covers) {
        return Ok(());
    }
    Err(MountError::LeadsOut { folder: shown(), real: real.display().to_string() })
}

/// Whether the Docker daemon runs on this host, so that its paths can be looked at from here.
#[must_use]
pub fn daemon_is_local() -> bool {
    let host = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    host.is_none_or(|host| host.starts_with("unix://"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_link_below_an_allowed_folder_does_not_lead_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("real")).unwrap();
        symlink("real", data.join("inside")).unwrap();
        symlink("/etc", data.join("outside")).unwrap();
        symlink("..", data.join("up")).unwrap();
        let at = |name: &str| {
            let source = MountSource::Host(data.join(name));
            let mount = MountSpec { source, target: "/x".to_owned(), read_only: false };
            check(&[mount], std::slice::from_ref(&data))
        };
        assert!(at("real").is_ok());
        assert!(at("inside").is_ok());
        assert!(matches!(at("outside"), Err(MountError::LeadsOut { real, .. }) if real == "/etc"));
        assert!(matches!(at("up/data2"), Err(MountError::Unseen { .. })));
        assert!(matches!(at("up"), Err(MountError::LeadsOut { .. })));
        assert!(matches!(at("none"), Err(MountError::Unseen { .. })));
    }

    #[test]
    fn what_is_named_itself_needs_no_look() {
        let named = PathBuf::from("/on/another/host");
        let source = MountSource::Host(named.clone());
        let mount = MountSpec { source, target: "/x".to_owned(), read_only: false };
        assert!(check(&[mount], &[named]).is_ok());
    }
}
