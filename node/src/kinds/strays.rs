//! Processes that a command leaves behind.
//!
//! Killing a process group misses what has left the group (`setsid`). The node is a *subreaper*
//! (`PR_SET_CHILD_SUBREAPER`, prctl(2)), and process 1 of a container is one by birth: orphans of its
//! commands become its own children, where they are found. Whose orphan it is shows its session, its
//! group or its `EVENKEEL_TASK_ID`; one that hides all three is killed once it is older than every
//! command that still runs, so at once where none does. What came into the container another way (`docker exec`) does not have our
//! nice value and is left alone, but for being reaped.

use super::child::{self, leaders};
use protocol::TaskId;
use rustix::process::{Pid, Signal};
use std::{
    fs,
    time::{Duration, Instant},
};

/// How long the killing of one command's strays may take; what is left then is found by [`sweep`].
const KILL_WITHIN: Duration = Duration::from_secs(2);
/// So many times strays are killed one by one, then all at once.
const ROUNDS_BEFORE_FREEZE: u32 = 5;
/// Looks at the stopped processes of a container, should one of them have been about to end.
const FROZEN_ROUNDS: usize = 4;
/// Most processes of one tree that are looked at.
const MAX_TREE: usize = 10_000;
/// Nice value of everything that runs for a task.
pub const TASK_NICE: i32 = 10;

/// Makes this process the one that orphans of its descendants are given to. Children that it does not
/// wait for itself are killed and reaped from then on by [`sweep`].
///
/// # Errors
/// If the kernel does not know how (before 3.4).
pub fn become_subreaper() -> std::io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// What `/proc/<pid>/stat` says of a process, see proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) zombie: bool,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) nice: i32,
    pub(super) started_ticks: u64,
}

impl Process {
    /// `None` if it is gone.
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name stands in brackets and may hold anything, so what follows is read from the last bracket on.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(' ')?;
        let fields: Vec<&str> = rest.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // Field numbers of the manual page, less 3: the state is field 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        let small = |field: usize| i32::try_from(number(field)?).ok();
        Some(Self {
            pid: pid.parse().ok()?,
            zombie: matches!(*fields.first()?, "Z" | "X"),
            group: small(5)?,
            session: small(6)?,
            nice: small(19)?,
            started_ticks: fields.get(22 - 3)?.parse().ok()?,
        })
    }

    /// Whether it belongs to the task whose command has this process id.
    fn is_of(&self, leader: i32, task: TaskId) -> bool {
        self.group == leader || self.session == leader || has_task_id(self.pid, task)
    }
}

fn has_task_id(pid: i32, task: TaskId) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let wanted = format!("{}={task}", super::command::TASK_ID_VARIABLE);
    environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes())
}

/// Children of two threads. Those that were given to us when their parent ended are the first one's. The
/// calling thread, which started a command, has also those that the command made its own brothers (clone(2),
/// `CLONE_PARENT`).
fn adopted() -> Vec<i32> {
    let mut adopted = Vec::new();
    for thread in [format!("self/task/{}", std::process::id()), "thread-self".to_owned()] {
        // The first may have ended before the others; then nothing is given to it.
        let list = fs::read_to_string(format!("/proc/{thread}/children")).unwrap_or_default();
        adopted.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    adopted.sort_unstable();
    adopted.dedup();
    adopted
}

/// Children of a process, all its threads' together.
fn children(pid: &str) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        // A thread may have ended meanwhile.
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    children
}

/// The process and everything below it, itself first.
pub(super) fn tree(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut next = 0;
    while next < all.len() && all.len() < MAX_TREE {
        all.extend(children(&all[next].to_string()));
        next += 1;
    }
    all
}

pub(super) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended meanwhile.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Kills a process group. Its leader must not have been reaped yet, or the number may be another's.
pub(super) fn kill_group(leader: i32) {
    if let Some(pid) = Pid::from_raw(leader) {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// Children of ours, as `list` finds them, that no slot waits for.
fn orphans(list: impl FnOnce() -> Vec<i32>) -> Vec<Process> {
    if !child::has_any() {
        return Vec::new();
    }
    let found = list();
    let known = child::known();
    found.into_iter().filter(|pid| !known.contains(pid)).filter_map(Process::read).collect()
}

/// Kills what is left of a command that has ended, wherever it hides; says what CPU time it had used.
pub(super) fn kill_all_of(leader: i32, task: TaskId) -> Duration {
    let give_up = Instant::now() + KILL_WITHIN;
    let mut cpu = Duration::ZERO;
    // Where no other command runs, what is there can only be this one's, whatever it did to its marks. Asked
    // each time: another may start meanwhile, but then its processes are its own or younger.
    let is_mine =
        |orphan: &Process| orphan.is_of(leader, task) || is_stray(orphan, oldest_command(Some(leader)));
    for round in 0u32.. {
        let mine: Vec<_> = orphans(adopted).into_iter().filter(is_mine).collect();
        if mine.is_empty() {
            return cpu;
        }
        if round >= ROUNDS_BEFORE_FREEZE && round % ROUNDS_BEFORE_FREEZE == 0 {
            frozen(|| kill_trees(orphans(adopted).iter().filter(|orphan| is_mine(orphan))));
        }
        kill_trees(mine.iter());
        for orphan in mine {
            cpu += child::reap(orphan.pid).map_or(Duration::ZERO, |exit| exit.cpu);
        }
        if Instant::now() >= give_up {
            tracing::warn!(%task, "processes of a command do not die; they are looked for again every second");
            return cpu;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    cpu
}

/// When the oldest command but this one started; the end of time if there is none. One that is just being
/// started counts.
fn oldest_command(but: Option<i32>) -> u64 {
    let others = leaders().into_iter().filter(|command| Some(command.pid) != but);
    others.map(|command| command.started_ticks).min().unwrap_or(u64::MAX)
}

/// Whether an orphan is older than each running command, so that none of them can have started it.
const fn is_stray(orphan: &Process, oldest_command: u64) -> bool {
    orphan.nice >= TASK_NICE && orphan.started_ticks < oldest_command
}

/// Kills these and what is below them; says how many were alive.
fn kill_trees<'a>(orphans: impl Iterator<Item = &'a Process>) -> usize {
    let mut alive = 0;
    for orphan in orphans.filter(|orphan| !orphan.zombie) {
        for pid in tree(orphan.pid) {
            kill(pid);
            alive += 1;
        }
    }
    alive
}

/// Calls `kill_some` while nothing else in this container runs, until it finds nothing to kill any more.
///
/// A process that forks and ends in a loop is gone before it is killed, and its child is the next. As
/// process 1 of a container we can stop all its processes at once: `kill(2)` of −1 reaches each of them,
/// and a fork does not finish while its caller has a signal to take. Those that are not killed then go on
/// after some milliseconds. Elsewhere −1 would be the processes of others, and nothing is done.
#[allow(unsafe_code, reason = "no safe library that we use can signal all processes")]
fn frozen(kill_some: impl Fn() -> usize) {
    if std::process::id() != 1 {
        return;
    }
    // SAFETY: kill takes two numbers and touches no memory.
    let signal_all = |signal| unsafe { libc::kill(-1, signal) };
    for _ in 0..FROZEN_ROUNDS {
        signal_all(libc::SIGSTOP);
        if kill_some() == 0 {
            break;
        }
    }
    signal_all(libc::SIGCONT);
}

/// Reaps orphans that have ended, and kills those that no running command can have started; goes on with
/// directories that took too long to remove. Whether there was anything.
pub fn sweep() -> bool {
    super::work_directory::remove_the_rest();
    let spare = super::work_directory::remove_spare(false);
    let hanging = child::reap_abandoned();
    let of_any_thread = || children("self");
    let mut found = orphans(of_any_thread);
    // A child that a slot is just starting may be among them, or was when they were listed.
    let commands = leaders();
    let is_leader = |orphan: &Process, command: &child::Listed| {
        command.pid == orphan.pid || command.pid == 0 && command.started_ticks <= orphan.started_ticks
    };
    found.retain(|orphan| !commands.iter().any(|command| is_leader(orphan, command)));
    // Asked after the orphans were listed: each of those is of no command or of one that is on the list.
    let is_stray = |orphan: &&Process| is_stray(orphan, oldest_command(None));
    for orphan in found.iter().filter(|orphan| orphan.zombie) {
        child::reap(orphan.pid);
    }
    if kill_trees(found.iter().filter(is_stray)) > 0 {
        tracing::debug!("killing processes that a command left behind");
        // Most are gone at once. What is left may be one that is never there to be killed.
        std::thread::sleep(Duration::from_millis(1));
        let alive = |found: &[Process]| found.iter().filter(is_stray).any(|orphan| !orphan.zombie);
        if alive(&orphans(of_any_thread)) {
            frozen(|| kill_trees(orphans(of_any_thread).iter().filter(is_stray)));
        }
    }
    hanging || spare || !found.is_empty() || super::removal::is_unfinished()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a) R (b) ) Z 7 40 41 0 -1 0 0 0 0 0 1 2 3 4 30 10 1 0 12345 1000 77 184 0";
        let expected =
            Process { pid: 42, zombie: true, group: 40, session: 41, nice: 10, started_ticks: 12345 };
        assert_eq!(Process::parse(stat), Some(expected));
        assert_eq!(Process::parse("42 (a"), None);
        assert_eq!(Process::parse(""), None);
    }

    #[test]
    fn this_process_is_found() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let process = Process::read(pid).unwrap();
        assert!(!process.zombie && process.pid == pid && process.started_ticks > 0);
        assert_eq!(tree(pid)[0], pid);
    }
}
