//! The private directory of a command, and what commands leave beside it.

use super::removal;
use rustix::fs::{AtFlags, statat};
use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the last command's end waits for shared directories to be tidy.
const TIDY_WITHIN: Duration = Duration::from_secs(1);
/// Rounds over a shared directory, each of a bounded number of names.
const ROUNDS: usize = 16;

/// What commands share.
#[derive(Debug, Default)]
struct Shared {
    /// Commands that have a directory now.
    commands: usize,
    /// Shared directories to be tidied, with what is to stay in them.
    directories: Vec<(PathBuf, BTreeSet<CString>)>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { commands: 0, directories: Vec::new() });

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, whenever no command runs, what appeared in these directories and is ours is removed: a
/// file system in memory that one task fills must not fail the next ones. For directories that are this
/// node's alone; what is in them now stays.
pub fn tidy_between_commands(directories: &[&Path]) {
    let mut all = Vec::new();
    for directory in directories {
        let Ok(open) = removal::open_as_it_is(directory) else { continue };
        let names = removal::names_in(&open).unwrap_or_default();
        all.push(((*directory).to_owned(), names.into_iter().collect()));
    }
    shared().directories = all;
}

/// A private directory, removed when dropped.
pub(super) struct WorkDirectory {
    pub(super) path: PathBuf,
}

impl WorkDirectory {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        // Counted first, so that nothing is tidied away while it is made.
        shared().commands += 1;
        let directory = tempfile::Builder::new()
            .prefix("evenkeel-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(root)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("no work directory in {}: {error}", root.display()))
            });
        match directory {
            Ok(directory) => Ok(Self { path: directory.keep() }),
            Err(error) => {
                one_less();
                Err(error)
            }
        }
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        removal::remove_or_later(&self.path);
        one_less();
    }
}

/// A command is over; after the last one shared directories are tidied, before another can begin.
fn one_less() {
    let mut shared = shared();
    shared.commands = shared.commands.saturating_sub(1);
    if shared.commands == 0 {
        let give_up = Instant::now() + TIDY_WITHIN;
        for (directory, kept) in &shared.directories {
            if let Err(error) = tidy(directory, kept, give_up) {
                tracing::warn!(path = %directory.display(), %error, "it is not tidy");
            }
        }
    }
}

/// Removes what is ours in a directory, but for `kept`.
fn tidy(directory: &Path, kept: &BTreeSet<CString>, give_up: Instant) -> io::Result<()> {
    let open = removal::open_as_it_is(directory)?;
    for _ in 0..ROUNDS {
        let mut removed = false;
        for name in removal::names_in(&open)? {
            if Instant::now() >= give_up {
                return Ok(());
            }
            if !kept.contains(&name) && is_ours(&open, &name) {
                removed |= match removal::remove_entry(&open, &name) {
                    Ok(true) => true,
                    Ok(false) => removal::remove(&join(directory, &name), give_up)?,
                    Err(_) => false,
                };
            }
        }
        if !removed {
            break;
        }
    }
    Ok(())
}

fn join(directory: &Path, name: &CString) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    directory.join(std::ffi::OsStr::from_bytes(name.as_bytes()))
}

/// Whether it belongs to the user that tasks run as.
fn is_ours(directory: &OwnedFd, name: &CString) -> bool {
    let us = rustix::process::geteuid().as_raw();
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_uid == us)
}

/// Goes on, on a thread of its own, with directories that took too long to remove.
pub(super) fn remove_the_rest() {
    static GOING_ON: AtomicBool = AtomicBool::new(false);
    if !removal::is_unfinished() || GOING_ON.swap(true, Ordering::SeqCst) {
        return;
    }
    let thread = std::thread::Builder::new().name("remove".to_owned());
    let started = thread.spawn(|| {
        // Best effort: a busy node has better things to do.
        let _ = rustix::process::setpriority_process(None, super::strays::TASK_NICE);
        removal::go_on();
        GOING_ON.store(false, Ordering::SeqCst);
    });
    if started.is_err() {
        GOING_ON.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_tasks_left_in_a_shared_directory_goes_and_the_rest_stays() {
        let shared = tempfile::tempdir().unwrap();
        let at = |name: &str| shared.path().join(name);
        fs::write(at("agent"), "").unwrap();
        let kept = [CString::new("agent").unwrap()].into();
        fs::write(at("large"), "").unwrap();
        fs::create_dir_all(at("a/b/c")).unwrap();
        tidy(shared.path(), &kept, Instant::now() + Duration::from_secs(60)).unwrap();
        let left: Vec<_> = fs::read_dir(shared.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["agent"]);
    }
}
