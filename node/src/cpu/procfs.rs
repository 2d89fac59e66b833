//! `/proc`: the thin reader, and the parsing of what it reads (`proc_pid_stat(5)`, and for schedstat the
//! kernel's `Documentation/scheduler/sched-stats.rst`).

use super::{Error, schedstat::ThreadTimes};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Files of `/proc` and of cgroups that are read here fit into this; what is longer is cut, which only
/// can happen to a CPU list of thousands of odd CPUs.
const BUFFER_BYTES: usize = 4_096;

/// A file that is opened once and read again from its start at every sample: `pread(2)` at 0 makes the
/// kernel render it afresh, at a third of the cost of opening it by name.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    file: File,
}

impl KeptFile {
    /// Opens `path`; `None` if there is no such file.
    pub(super) fn open(path: PathBuf) -> Result<Option<Self>, Error> {
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { path, file })),
            Err(source) if is_absence(&source) => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// What the file says now, through `parse`.
    pub(super) fn read<T>(
        &self,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let read = read_once(&self.file, |bytes| {
            std::str::from_utf8(bytes).ok().and_then(parse).ok_or_else(|| Error::Parse {
                path: self.path.clone(),
                text: String::from_utf8_lossy(bytes).chars().take(80).collect(),
                expected,
            })
        });
        read.unwrap_or_else(|source| Err(Error::Read { path: self.path.clone(), source }))
    }
}

/// The start of a file through `parse`, with one system call: the kernel renders small files whole.
fn read_once<T>(file: &File, parse: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    let mut buffer = [0; BUFFER_BYTES];
    let length = file.read_at(&mut buffer, 0)?;
    Ok(parse(buffer.get(..length).unwrap_or_default()))
}

/// A small file that is read once; `None` if it is not there or does not parse.
fn read_small<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let file = File::open(path).ok()?;
    read_once(&file, |bytes| std::str::from_utf8(bytes).ok().and_then(parse)).ok()?
}

/// Whether the error says that the thing read is not there (any more): a process that has ended gives
/// ESRCH on a file that was opened while it lived.
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.kind() == io::ErrorKind::NotADirectory
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// What is used of `/proc/<pid>/stat`. Times are in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Its id.
    pub pid: i32,
    /// Whether its first thread runs or waits for a CPU.
    pub runnable: bool,
    /// The id of its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// User and system time of the process itself.
    pub own_ticks: u64,
    /// User and system time of its children that it has waited for, and of theirs.
    pub reaped_ticks: u64,
    /// Pages in memory.
    pub rss_pages: u64,
}

/// Reads `/proc/<pid>/stat`. The name in parentheses may hold spaces and parentheses itself.
#[must_use]
pub fn parse_stat(text: &str) -> Option<ProcessStat> {
    let (head, tail) = text.rsplit_once(')')?;
    let pid = head.split_once('(')?.0.trim().parse().ok()?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    // Field n of the manual page (counted from 1) is at n − 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let id = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
    // Times of reaped children are signed in the manual page, but never negative.
    Some(ProcessStat {
        pid,
        runnable: *fields.first()? == "R",
        parent: id(4)?,
        group: id(5)?,
        own_ticks: number(14)?.checked_add(number(15)?)?,
        reaped_ticks: number(16)?.checked_add(number(17)?)?,
        rss_pages: number(24)?,
    })
}

/// How many files one sample may still open: a bound on its cost, whatever the number of processes.
#[derive(Debug)]
pub(super) struct Budget(u32);

impl Budget {
    pub(super) const fn new(files: u32) -> Self {
        Self(files)
    }

    const fn spend(&mut self) -> bool {
        let some_left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        some_left
    }

    /// Files read or refused since `new(files)`, at most `files`.
    #[cfg(test)]
    pub(super) const fn left(&self) -> u32 {
        self.0
    }
}

/// `/proc`, or a recorded tree of it.
#[derive(Debug)]
pub(super) struct Proc {
    root: PathBuf,
    own_stat: KeptFile,
    own_pid: i32,
    nanos_per_tick: u64,
    page_bytes: u64,
}

impl Proc {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let path = root.join("self/stat");
        let own_stat = KeptFile::open(path.clone())?
            .ok_or(Error::Read { path, source: io::ErrorKind::NotFound.into() })?;
        let own_pid = own_stat.read(STAT, parse_stat)?.pid;
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let page_bytes = rustix::param::page_size() as u64;
        Ok(Self { root: root.into(), own_stat, own_pid, nanos_per_tick: 1_000_000_000 / ticks, page_bytes })
    }

    /// This process's id, as this `/proc` counts.
    pub(super) const fn own_pid(&self) -> i32 {
        self.own_pid
    }

    pub(super) fn own_stat(&self) -> Result<ProcessStat, Error> {
        self.own_stat.read(STAT, parse_stat)
    }

    pub(super) const fn nanos(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(self.nanos_per_tick)
    }

    pub(super) const fn bytes(&self, pages: u64) -> u64 {
        pages.saturating_mul(self.page_bytes)
    }

    /// All processes that can be seen but this one, as far as the budget goes. One that ends meanwhile
    /// is left out.
    pub(super) fn others(&self, budget: &mut Budget) -> Vec<ProcessStat> {
        ids_in(&self.root)
            .filter(|pid| *pid != self.own_pid)
            .take_while(|_| budget.spend())
            .filter_map(|pid| self.stat(pid))
            .collect()
    }

    /// The processes `roots` and everything below them by `/proc/<pid>/task/<tid>/children`, as far as
    /// the budget goes. Cheaper than [`Self::others`] on a host with many processes. Where the kernel
    /// was built without that file it is the roots alone.
    pub(super) fn trees(&self, roots: &[i32], budget: &mut Budget) -> Vec<ProcessStat> {
        let mut ahead = roots.to_vec();
        let mut found: Vec<ProcessStat> = Vec::new();
        while let Some(pid) = ahead.pop() {
            if !budget.spend() {
                break;
            }
            let Some(stat) = self.stat(pid) else { continue };
            found.push(stat);
            for tid in self.threads(pid, budget) {
                if !budget.spend() {
                    break;
                }
                let children = self.root.join(format!("{pid}/task/{tid}/children"));
                let text = fs::read_to_string(children).unwrap_or_default();
                ahead.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
            }
        }
        found
    }

    fn stat(&self, pid: i32) -> Option<ProcessStat> {
        read_small(&self.root.join(format!("{pid}/stat")), parse_stat)
    }

    /// The threads of a process; none if it has ended.
    pub(super) fn threads(&self, pid: i32, budget: &mut Budget) -> Vec<i32> {
        if budget.spend() { ids_in(&self.root.join(format!("{pid}/task"))).collect() } else { Vec::new() }
    }

    /// Run and wait time of a thread; `None` if it has ended, the budget is spent, or the kernel counts
    /// none (`CONFIG_SCHED_INFO`).
    pub(super) fn times(&self, pid: i32, tid: i32, budget: &mut Budget) -> Option<ThreadTimes> {
        if !budget.spend() {
            return None;
        }
        read_small(&self.root.join(format!("{pid}/task/{tid}/schedstat")), ThreadTimes::parse)
    }
}

const STAT: &str = "the 52 fields of proc_pid_stat(5)";

/// The names in a directory that are numbers.
fn ids_in(directory: &Path) -> impl Iterator<Item = i32> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "4242 (sh) R (x) R 7 4240 11017 0 -1 4194304 86 0 1 0 51 2 30 4 39 19 1 0 261250 2654208 381 \
                    18446744073709551615 1 2 3 0 0 0 0 65538 0 0 0 17 1 0 0 0 0 0 1 2 3 4 5 6 7 0\n";
        let expected = ProcessStat {
            pid: 4242,
            runnable: true,
            parent: 7,
            group: 4240,
            own_ticks: 53,
            reaped_ticks: 34,
            rss_pages: 381,
        };
        assert_eq!(parse_stat(text), Some(expected));
    }

    #[test]
    fn text_that_is_cut_off_is_refused_and_not_read_as_zero() {
        for text in ["", "1", "1 (init", "1 (init) S", "1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5"] {
            assert_eq!(parse_stat(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_process_is_found_in_the_real_proc_and_the_budget_bounds_the_search() {
        let proc = Proc::open(Path::new("/proc")).unwrap();
        assert_eq!(u32::try_from(proc.own_pid()).unwrap(), std::process::id());
        let mut budget = Budget::new(3);
        assert!(proc.others(&mut budget).len() <= 3);
        assert_eq!(proc.times(proc.own_pid(), proc.own_pid(), &mut Budget::new(0)), None);
        assert!(proc.times(proc.own_pid(), proc.own_pid(), &mut Budget::new(1)).is_some());
    }

    #[test]
    fn a_kept_file_is_read_afresh_each_time_and_its_absence_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counter");
        assert!(KeptFile::open(path.clone()).unwrap().is_none());
        fs::write(&path, "1\n").unwrap();
        let kept = KeptFile::open(path.clone()).unwrap().unwrap();
        let number = |text: &str| text.trim().parse::<u64>().ok();
        assert_eq!(kept.read("a number", number).unwrap(), 1);
        fs::write(&path, "23\n").unwrap();
        assert_eq!(kept.read("a number", number).unwrap(), 23);
        fs::write(&path, "no").unwrap();
        let error = kept.read("a number", number).unwrap_err().to_string();
        assert!(error.contains("counter") && error.contains("no") && error.contains("a number"), "{error}");
    }
}
