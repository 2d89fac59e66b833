//! The private directory of a command, and what commands leave beside it.
//!
//! It is removed when its command ends. On a disk that takes longer than a short program, and waits for the
//! syncs of others; so while many commands follow each other (a *burst*), a directory that its command has
//! not touched in any way is as good as new and is handed on to the next. When the burst is over the empty
//! ones that are left are removed.
//!
//! Whether it was touched is seen at its times, and for as long as it is so new that a change could carry the
//! time of its making, at all that can be seen of it.

use super::removal;
use rustix::fs::{AtFlags, CWD, llistxattr, statat};
use std::{
    collections::{BTreeSet, VecDeque},
    ffi::CString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
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

/// So many commands that ended within [`BURST`] are a burst.
const BURST_ENDS: usize = 8;
const BURST: Duration = Duration::from_millis(100);
/// A directory that waits longer than this for a command is removed with the next look.
const SPARE_FOR: Duration = Duration::from_millis(200);
/// Most directories that wait for a command.
const MOST_SPARE: usize = 64;
/// Later than this a change of a directory has another time than its making: longer than a clock tick, and than
/// the steps of any file system whose times are not whole seconds.
const TELLS_AFTER: Duration = Duration::from_millis(100);

/// What tells that nothing has touched a directory. Each change of it, of its rights or of its entries sets a
/// time that nobody can set back (`ctime`); only one in the same clock tick as its making does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    written: (i64, i64),
    mode: u32,
    owners: (u32, u32),
    links: u64,
}

impl Stamp {
    /// Of what stands there now; `None` where nothing can be said.
    #[allow(clippy::useless_conversion, reason = "widths differ between processors")]
    fn at(path: &Path) -> Option<Self> {
        let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            changed: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).ok()?),
            written: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?),
            mode: stat.st_mode,
            owners: (stat.st_uid, stat.st_gid),
            links: u64::from(stat.st_nlink),
        })
    }
}

/// A directory as it was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    stamp: Stamp,
    attributes_bytes: Option<usize>,
    at: Instant,
    /// Whether its times alone tell: it was seen untouched when it was no longer new.
    tells: bool,
}

impl Made {
    /// Just now; `None` where nothing can be said.
    fn at(path: &Path) -> Option<Self> {
        let stamp = Stamp::at(path)?;
        Some(Self { stamp, attributes_bytes: attributes_bytes(path), at: Instant::now(), tells: false })
    }

    /// Whether the directory there is still as it was made: the same one, and empty.
    fn is_untouched(&mut self, path: &Path) -> bool {
        if Stamp::at(path) != Some(self.stamp) {
            return false;
        }
        if self.tells {
            return true;
        }
        let is_old = self.at.elapsed() >= TELLS_AFTER;
        let untouched = attributes_bytes(path) == self.attributes_bytes
            && removal::open_as_it_is(path)
                .is_ok_and(|open| removal::names_in(&open).is_ok_and(|names| names.is_empty()));
        // Of a file system that only knows whole seconds all that can be seen is looked at each time.
        self.tells = untouched && is_old && self.stamp.changed.1 != 0;
        untouched
    }
}

/// Length of the names of its extended attributes; not every file system has them.
fn attributes_bytes(path: &Path) -> Option<usize> {
    llistxattr(path, &mut [0_u8; 0]).ok()
}

/// A directory that waits for a command.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    made: Made,
    since: Instant,
}

/// What commands share.
#[derive(Debug, Default)]
struct Shared {
    /// Commands that have a directory now.
    commands: usize,
    /// Shared directories to be tidied, with what is to stay in them.
    directories: Vec<(PathBuf, BTreeSet<CString>)>,
    /// When the last [`BURST_ENDS`] commands ended.
    ends: VecDeque<Instant>,
    spare: Vec<Spare>,
}

static SHARED: Mutex<Shared> =
    Mutex::new(Shared { commands: 0, directories: Vec::new(), ends: VecDeque::new(), spare: Vec::new() });

impl Shared {
    /// A command ends; whether many do.
    fn is_burst(&mut self, now: Instant) -> bool {
        self.ends.push_back(now);
        if self.ends.len() > BURST_ENDS {
            self.ends.pop_front();
        }
        self.ends.len() == BURST_ENDS
            && self.ends.front().is_some_and(|first| now.saturating_duration_since(*first) < BURST)
    }

    /// The one that was used last, below this root.
    fn take_spare(&mut self, root: &Path) -> Option<Spare> {
        let at = self.spare.iter().rposition(|spare| spare.path.parent() == Some(root))?;
        Some(self.spare.remove(at))
    }
}

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
    made: Option<Made>,
}

impl WorkDirectory {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        // Counted first, so that nothing is tidied away while it is made.
        shared().commands += 1;
        loop {
            let Some(Spare { path, mut made, .. }) = shared().take_spare(root) else { break };
            if made.is_untouched(&path) {
                return Ok(Self { path, made: Some(made) });
            }
            removal::remove_or_later(&path);
        }
        let directory = tempfile::Builder::new()
            .prefix("evenkeel-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(root)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("no work directory in {}: {error}", root.display()))
            });
        match directory {
            Ok(directory) => {
                let path = directory.keep();
                let made = Made::at(&path);
                Ok(Self { path, made })
            }
            Err(error) => {
                one_less();
                Err(error)
            }
        }
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        let now = Instant::now();
        let again = shared().is_burst(now);
        let made = self.made.take().filter(|_| again);
        let untouched = made.and_then(|mut made| made.is_untouched(&self.path).then_some(made));
        let spare = untouched.map(|made| Spare { path: self.path.clone(), made, since: now });
        match spare {
            Some(spare) if shared().spare.len() < MOST_SPARE => shared().spare.push(spare),
            _ => removal::remove_or_later(&self.path),
        }
        one_less();
    }
}

/// Removes directories that wait for a command: `all`, or those that have waited for long. Whether some are
/// left.
pub(crate) fn remove_spare(all: bool) -> bool {
    let mut shared = shared();
    let is_old = |spare: &mut Spare| all || spare.since.elapsed() >= SPARE_FOR;
    let old: Vec<Spare> = shared.spare.extract_if(.., is_old).collect();
    let left = !shared.spare.is_empty();
    drop(shared);
    old.iter().for_each(|spare| removal::remove_or_later(&spare.path));
    left
}

/// A command is over; after the last one shared directories are tidied, before another can begin.
fn one_less() {
    let mut shared = shared();
    shared.commands = shared.commands.saturating_sub(1);
    if shared.commands == 0 {
        let give_up = Instant::now() + TIDY_WITHIN;
        for (directory, kept) in &shared.directories {
            let spare = shared.spare.iter().filter(|spare| spare.path.parent() == Some(directory));
            let spare = spare.filter_map(|spare| CString::new(spare.path.file_name()?.as_bytes()).ok());
            let kept = kept.iter().cloned().chain(spare).collect();
            if let Err(error) = tidy(directory, &kept, give_up) {
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

    /// The paths that so many commands get one after the other, each of which does this in its own.
    fn paths(root: &Path, commands: usize, work: impl Fn(&Path)) -> Vec<PathBuf> {
        let command = |_| {
            let directory = WorkDirectory::new(root).unwrap();
            assert_eq!(fs::read_dir(&directory.path).unwrap().count(), 0);
            assert_eq!(fs::metadata(&directory.path).unwrap().permissions().mode() & 0o7777, 0o700);
            work(&directory.path);
            directory.path.clone()
        };
        (0..commands).map(command).collect()
    }

    #[test]
    fn in_a_burst_an_untouched_directory_is_handed_on_and_in_the_end_none_is_left() {
        let root = tempfile::tempdir().unwrap();
        let first = paths(root.path(), 1, |_| ());
        assert!(!first[0].exists(), "alone it is removed at once");
        let all = paths(root.path(), 1_000, |_| ());
        assert!(all.iter().collect::<BTreeSet<_>>().len() < all.len());
        remove_spare(true);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// What a command may do to its directory.
    const WAYS: [fn(&Path); 6] = [
        |path| fs::write(path.join("file"), "").unwrap(),
        |path| fs::create_dir(path.join("folder")).unwrap(),
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap(),
        |path| {
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            fs::write(path.join("file"), "").unwrap();
            fs::File::open(path).unwrap().set_modified(modified).unwrap();
        },
        |path| {
            fs::remove_dir(path).unwrap();
            std::os::unix::fs::symlink("/", path).unwrap();
        },
        |path| {
            fs::remove_dir(path).unwrap();
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(path.join("file"), "").unwrap();
        },
    ];

    #[test]
    fn what_was_done_to_a_directory_is_seen_also_where_its_times_alone_tell() {
        let root = tempfile::tempdir().unwrap();
        for old in [false, true] {
            for (number, way) in WAYS.iter().enumerate() {
                let path = root.path().join(format!("{number}-{old}"));
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
                let mut made = Made::at(&path).unwrap();
                if old {
                    std::thread::sleep(TELLS_AFTER);
                    assert!(made.is_untouched(&path) && made.tells);
                    assert!(made.is_untouched(&path), "as often as it is asked");
                }
                way(&path);
                assert!(!made.is_untouched(&path), "{number} {old}");
            }
        }
    }

    #[test]
    fn a_directory_that_was_touched_in_any_way_is_not_handed_on() {
        let root = tempfile::tempdir().unwrap();
        for way in WAYS {
            paths(root.path(), 100, way);
            shared().ends.clear();
        }
        // Behind the back of what waits, too.
        paths(root.path(), 100, |_| ());
        let waiting: Vec<_> = shared().spare.iter().map(|spare| spare.path.clone()).collect();
        waiting.iter().for_each(|path| fs::write(path.join("file"), "").unwrap());
        paths(root.path(), 1, |_| ());
        remove_spare(true);
        assert_eq!(fs::read_dir(root.path()).unwrap().flatten().count(), 0);
    }
}
