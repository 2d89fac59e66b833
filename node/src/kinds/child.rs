//! Starting a child process and learning how it ended: the two places where the standard library is not
//! enough, and the list of the children that belong to somebody.
//!
//! The node is the reaper of whatever its commands leave behind ([`super::strays`]), so every child that a
//! slot waits for is on a list, and only that slot takes its exit status.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Children that a slot waits for, and when each started (clock ticks since boot).
static LEADERS: Mutex<BTreeMap<i32, u64>> = Mutex::new(BTreeMap::new());

/// The list; a panic of another holder cannot have left it half changed.
pub(super) fn leaders() -> MutexGuard<'static, BTreeMap<i32, u64>> {
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child on the list; taken off when dropped.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) pid: i32,
}

impl Drop for Leader {
    fn drop(&mut self) {
        leaders().remove(&self.pid);
    }
}

/// Starts `command` as the leader of a process group of its own, first in line for the kernel's
/// out-of-memory killer, and dying with the thread that started it.
///
/// It inherits the nice value of the calling thread.
///
/// # Errors
/// As [`Command::spawn`]: no such program, no permission, no more processes.
#[allow(unsafe_code, reason = "what a child does between fork and exec is outside of the language's safety")]
pub(super) fn start(command: &mut Command) -> io::Result<(Leader, Child)> {
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe system calls are made (prctl);
    // nothing allocates, nothing takes a lock.
    unsafe {
        command.pre_exec(|| {
            // A node that is killed takes its commands along. Best effort.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            Ok(())
        });
    }
    // Held while the child starts, so that the reaper never sees it before it is on the list.
    let mut list = leaders();
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // By us and not by the child: before its exec it is as hidden as we are, and its files are root's. Best
    // effort: it may have ended.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
    list.insert(pid, super::strays::Process::read(pid).map_or(0, |process| process.started_ticks));
    drop(list);
    Ok((Leader { pid }, child))
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

/// Whether a child has ended; its exit status stays to be taken.
pub(super) fn ended(pid: i32) -> bool {
    super::strays::Process::read(pid).is_none_or(|process| process.zombie)
}
