//! The state directory, databases, space.

use super::{
    super::facts::{Database, Probe, Space, State},
    blocking, bounded,
};
use crate::up::specs::MASTER_FOLDER;
use service::state::StateDir;
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Bytes of the file that is written for a trial: more than a block.
const TRIAL_BYTES: usize = 8 * 1_024;

pub(super) async fn look(state: StateDir) -> State {
    let path = state.path().to_owned();
    let folder = path.clone();
    let mode = blocking(move || fs::metadata(&folder).ok().map(|folder| folder.mode())).await.unwrap_or(None);
    let (folder, nearest) = (path.clone(), path.clone());
    let (write, space, databases) = tokio::join!(
        blocking(move || if mode.is_some() { write(&folder) } else { could_be_made(&folder) }),
        blocking(move || space(existing(&nearest))),
        databases(&state),
    );
    State { path, mode, write: write.and_then(|it| it), space: space.and_then(|it| it), databases }
}

/// Writes a small file, syncs it and takes it away.
fn write(folder: &Path) -> Probe<Duration> {
    let path = folder.join(format!(".doctor.{}", std::process::id()));
    let began = Instant::now();
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
            file.write_all(&[0; TRIAL_BYTES])?;
            file.sync_all()
        });
    let took = began.elapsed();
    // What was not made cannot be removed either.
    let _ = fs::remove_file(&path);
    written.map(|()| took).map_err(|error| error.to_string())
}

/// Whether this user may make a directory there, by the rights of what exists above it.
fn could_be_made(folder: &Path) -> Probe<Duration> {
    let above = existing(folder);
    let rights = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::access(above, rights) {
        Ok(()) if above.is_dir() => Ok(Duration::ZERO),
        Ok(()) => Err(format!("{} is no directory", above.display())),
        Err(error) => Err(format!("{}: {error}", above.display())),
    }
}

/// The path itself, or the nearest above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// What is free for this user.
pub(super) fn space(path: &Path) -> Probe<Space> {
    let found = rustix::fs::statvfs(path).map_err(|error| error.to_string())?;
    // File systems that make inodes by need say 0 of 0.
    let free_files = (found.f_files > 0).then_some(found.f_favail);
    Ok(Space { free_bytes: found.f_bavail.saturating_mul(found.f_frsize), free_files })
}

/// Those of a master that is a process, or that has this state directory itself.
async fn databases(state: &StateDir) -> Vec<Database> {
    let mut databases = Vec::new();
    for folder in [state.path().to_owned(), state.file(MASTER_FOLDER)] {
        let look =
            bounded(async { master::look_at_store(&folder).await.map_err(|error| error.to_string()) }).await;
        let look = match look {
            Ok(None) => continue,
            Ok(Some(look)) => Ok(look),
            Err(why) => Err(why),
        };
        let lock = folder.join(master::STORE_LOCK);
        let held = blocking(move || is_locked(lock)).await.unwrap_or(false);
        databases.push(Database { folder, look, held });
    }
    databases
}

/// Whether some process has a lock on this file, without taking it: a master that starts at this moment must
/// not find it taken (`/proc/locks`, proc_locks(5)).
fn is_locked(path: PathBuf) -> bool {
    let Ok(file) = fs::metadata(path) else { return false };
    let (device, inode) = (file.dev(), file.ino());
    let wanted = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| line.split_ascii_whitespace().any(|field| field == wanted))
}
