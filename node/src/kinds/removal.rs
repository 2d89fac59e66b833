//! Removing what a program left behind, however it is nested.
//!
//! A program may leave directories deeper than a path can name (`PATH_MAX`) or a stack can follow, and
//! without rights on them. Nothing here recurses and nothing is named by a long path: what lies in a
//! directory below the top is moved up into the top (one `renameat(2)`), until all of it is one level deep.

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, chmodat, open, openat, renameat, unlinkat},
    io::Errno,
};
use std::{
    ffi::CString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the end of a command waits for its directory to be gone; [`go_on`] removes the rest.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);
/// Names taken from a directory at once: the bound of the memory that this takes.
const NAMES: usize = 1_024;
/// Directories that wait for [`go_on`]; more are left to the end of the container.
const MOST_UNFINISHED: usize = 1_000;

/// Number of the next directory that is moved, so that one that is gone on with finds a name that is free.
static MOVED: AtomicU64 = AtomicU64::new(0);

/// Directories that took too long.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes a directory, or what can be removed of it in time; the rest follows later.
pub(super) fn remove_or_later(directory: &Path) {
    match remove(directory, Instant::now() + REMOVED_WITHIN) {
        Ok(true) => {}
        Ok(false) => {
            let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
            if unfinished.len() < MOST_UNFINISHED {
                unfinished.push(directory.to_owned());
            }
        }
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "a directory is left behind");
        }
    }
}

/// Goes on with what took too long, for as long again. For a thread that may take its time.
pub(super) fn go_on() {
    let next = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).pop();
    if let Some(directory) = next {
        remove_or_later(&directory);
    }
}

/// Whether [`go_on`] has something to do.
pub(super) fn is_unfinished() -> bool {
    !UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
}

/// Removes a directory and all below it until `give_up`; whether that is done. Symbolic links are not
/// followed.
///
/// # Errors
/// What stands in the way, such as a file of another user.
pub(super) fn remove(directory: &Path, give_up: Instant) -> io::Result<bool> {
    let name = CString::new(directory.as_os_str().as_bytes())?;
    // Most commands leave nothing behind.
    if unlinkat(CWD, &name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(true);
    }
    let top = match open_directory(CWD, &name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(true),
        // Something else stands in its place.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return unlinkat(CWD, &name, AtFlags::empty()).map(|()| true).map_err(Into::into);
        }
        Err(error) => return Err(error.into()),
    };
    loop {
        let names = names_in(&top)?;
        if names.is_empty() {
            unlinkat(CWD, &name, AtFlags::REMOVEDIR)?;
            return Ok(true);
        }
        for name in names {
            if !remove_entry(&top, &name)? {
                flatten(&top, &name, give_up)?;
            }
            if Instant::now() >= give_up {
                return Ok(false);
            }
        }
    }
}

/// Removes a file, or a directory that is empty; `false` if it is a directory that is not.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove_entry(directory: &OwnedFd, name: &CString) -> io::Result<bool> {
    let removed = match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => unlinkat(directory, name, AtFlags::REMOVEDIR),
        other => other,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Empties the directory `name` of `top`: what is in it is removed, or moved into `top`.
fn flatten(top: &OwnedFd, name: &CString, give_up: Instant) -> io::Result<()> {
    let directory = open_directory(top, name)?;
    loop {
        let names = names_in(&directory)?;
        if names.is_empty() {
            return remove_entry(top, name).map(drop);
        }
        for name in names {
            if !remove_entry(&directory, &name)? {
                // A directory that moves is written to itself (its `..`).
                let _ = chmodat(&directory, &name, Mode::RWXU, AtFlags::empty());
                loop {
                    let number = MOVED.fetch_add(1, Ordering::Relaxed);
                    let new_name = format!(".evenkeel-removed-{number}");
                    match renameat(&directory, &name, top, new_name.as_str()) {
                        Ok(()) => break,
                        // The name of another one.
                        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) if Instant::now() < give_up => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if Instant::now() >= give_up {
                return Ok(());
            }
        }
    }
}

/// Opens a directory; its owner gets all rights on it where they are missing.
pub(super) fn open_directory(at: impl rustix::fd::AsFd, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Reading the names is not enough: removing them needs the others too.
    let all = |fd: OwnedFd| rustix::fs::fchmod(&fd, Mode::RWXU).map(|()| fd);
    match openat(at.as_fd(), name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            chmodat(at.as_fd(), name, Mode::RWXU, AtFlags::empty())?;
            openat(at.as_fd(), name, flags, Mode::empty())
        }
        Ok(fd) => all(fd),
        Err(error) => Err(error),
    }
}

/// Opens a directory as it is.
pub(super) fn open_as_it_is(directory: &Path) -> Result<OwnedFd, Errno> {
    open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Some of the names in a directory, from its beginning.
pub(super) fn names_in(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
        if names.len() >= NAMES {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Directories in each other, deeper than a path can name.
    fn nest(top: &Path, depth: usize) {
        let mut at = open_as_it_is(top).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn directories_deeper_than_a_path_or_a_stack_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("file"), "").unwrap();
        nest(&top, 5_000);
        let remove_it = move || assert!(remove(&top, soon()).unwrap() && !top.exists());
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        small.spawn(remove_it).unwrap().join().unwrap();
    }

    #[test]
    fn directories_without_rights_and_links_are_removed_and_what_links_point_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (top, outside) = (root.path().join("top"), root.path().join("outside"));
        fs::create_dir_all(top.join("a/locked/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, top.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        for locked in ["a/locked/b", "a/locked", "a", ""] {
            fs::set_permissions(top.join(locked), fs::Permissions::from_mode(0o000)).unwrap();
        }
        assert!(remove(&top, soon()).unwrap());
        assert!(!top.exists() && outside.join("kept").exists());
    }

    #[test]
    fn what_takes_too_long_is_gone_on_with_later() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        nest(&top, 100);
        assert!(!remove(&top, Instant::now()).unwrap());
        for _ in 0..1_000 {
            if remove(&top, Instant::now()).unwrap() {
                break;
            }
        }
        assert!(!top.exists());
        assert!(remove(&top, soon()).unwrap(), "what is gone is removed");
    }
}
