//! Starting a child process and learning how it ended, and the list of the children that belong to somebody.
//!
//! The node is the reaper of whatever its commands leave behind ([`super::strays`]), so every child that a
//! slot waits for is on a list, and only that slot takes its exit status.

use super::launch::Program;
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    process::{Pid, WaitId, WaitIdOptions, waitid},
    time::{ClockId, clock_gettime},
};
use std::{
    collections::BTreeSet,
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A command on the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    number: u64,
    /// Its process id; 0 while it is being started.
    pub(super) pid: i32,
    /// When it was about to start, in clock ticks since boot: none of its processes is older.
    pub(super) started_ticks: u64,
}

#[derive(Debug, Default)]
struct List {
    /// Number of the last command.
    last: u64,
    commands: Vec<Listed>,
    /// Killed children that do not end, and that nobody waits for any more.
    abandoned: Vec<i32>,
}

/// Commands that a slot starts or waits for. It is not held while one starts, which takes as long as the
/// kernel needs to read the program.
static LIST: Mutex<List> = Mutex::new(List { last: 0, commands: Vec::new(), abandoned: Vec::new() });

/// The list; a panic of another holder cannot have left it half changed.
fn list() -> MutexGuard<'static, List> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All commands that a slot starts or waits for now.
pub(super) fn leaders() -> Vec<Listed> {
    list().commands.clone()
}

/// Children whose exit status somebody takes.
pub(super) fn known() -> BTreeSet<i32> {
    let list = list();
    list.commands.iter().map(|command| command.pid).chain(list.abandoned.iter().copied()).collect()
}

/// A child on the list; taken off when dropped.
#[derive(Debug)]
pub(super) struct Leader {
    number: u64,
    pub(super) pid: i32,
    /// Readable when it has ended, where the kernel knows such descriptors.
    pub(super) pidfd: Option<OwnedFd>,
}

impl Leader {
    /// On the list, before there is a process.
    fn enlisted() -> Self {
        let started_ticks = ticks_since_boot();
        let mut list = list();
        list.last += 1;
        let number = list.last;
        list.commands.push(Listed { number, pid: 0, started_ticks });
        Self { number, pid: 0, pidfd: None }
    }

    /// Whether it has ended; its exit status stays to be taken.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error is that it is no child of ours any more.
        Pid::from_raw(self.pid).is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// It was killed and does not end: [`reap_abandoned`] is to take its exit status when it does.
    pub(super) fn abandon(&self) {
        list().abandoned.push(self.pid);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        list().commands.retain(|command| command.number != self.number);
    }
}

/// The time since boot as `/proc/<pid>/stat` tells it, in the same units.
fn ticks_since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    // Neither part is negative, and nanoseconds are below 10⁹.
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0) * per_second + nanoseconds.unwrap_or(0) * per_second / 1_000_000_000
}

/// Starts a program as the leader of a process group of its own, before this node in line for the kernel's
/// out-of-memory killer (`oom_score_adj`, 1 … 1000), and dying with the thread that started it.
///
/// It inherits the nice value of the calling thread, which must not be the first one of the process.
///
/// # Errors
/// No such program, no permission, no more processes.
pub(super) fn start(program: &Program, stdio: [BorrowedFd<'_>; 3], oom_score_adj: u64) -> io::Result<Leader> {
    let mut leader = Leader::enlisted();
    (leader.pid, leader.pidfd) = program.start(stdio)?;
    if let Some(listed) = list().commands.iter_mut().find(|listed| listed.number == leader.number) {
        listed.pid = leader.pid;
    }
    // By us and not by the child: before its exec it is as hidden as we are, and its files are root's. Best
    // effort: it may have ended.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", leader.pid), oom_score_adj.to_string());
    Ok(leader)
}

/// Takes the exit status of abandoned children that have ended; whether some are left.
pub(super) fn reap_abandoned() -> bool {
    let mut list = list();
    // Nobody else takes it, so that the number is still theirs.
    list.abandoned.retain(|&pid| reap(pid).is_none());
    !list.abandoned.is_empty()
}

/// Whether this process has any child at all, ended or not.
pub(super) fn has_any() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(rustix::io::Errno::CHILD))
}

/// How a child ended, and what it and the descendants that it waited for have cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    pub(super) status: ExitStatus,
    pub(super) cpu: Duration,
}

impl Exit {
    pub(super) fn code(self) -> Option<i32> {
        self.status.code()
    }

    pub(super) fn signal(self) -> Option<i32> {
        self.status.signal()
    }
}

/// Takes the exit status of a child if it has ended; `None` if it has not, or is no child of ours.
/// By `wait4(2)`, which is the one call that tells the CPU time of a single child.
#[allow(unsafe_code, reason = "wait4 is in no safe library that we use")]
pub(super) fn reap(pid: i32) -> Option<Exit> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right type; wait4 keeps neither.
    let reaped = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) };
    if reaped != pid {
        return None;
    }
    let time = |time: libc::timeval| {
        // Neither part is negative, and microseconds are below 10⁶.
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    Some(Exit { status: ExitStatus::from_raw(status), cpu: time(usage.ru_utime) + time(usage.ru_stime) })
}
