//! What /proc says of a process (proc(5)), and signals that cannot hit another one.

use crate::engine::Host;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fs};

/// Clock ticks a second in /proc, on every architecture that Linux gives Rust's standard library (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;
/// At this nice value, or above it, a node runs its commands.
const COMMAND_NICE: i64 = 10;

/// One process for good: a pid alone is used again after its process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) pid: u32,
    /// Ticks from the host's boot to its start.
    start_ticks: u64,
    /// First half of the host's boot id: ticks begin anew with each boot.
    boot: u64,
}

/// Fields of /proc/<pid>/stat.
struct Stat {
    state: char,
    parent: u32,
    cpu_ticks: u64,
    nice: i64,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in parentheses may itself hold spaces and parentheses: what follows the last one counts.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(1)?).ok()?,
            // Its own time, and that of its children that were waited for.
            cpu_ticks: (11..=14).filter_map(number).sum(),
            nice: fields.get(16)?.parse().ok()?,
            start_ticks: number(19)?,
        })
    }
}

fn boot() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

impl Identity {
    /// The process that has this pid now.
    pub(super) fn of_pid(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        Some(Self { pid, start_ticks: stat.start_ticks, boot: boot() })
    }

    /// The letter of its state if it still runs; `None` if it has ended (one that only waits to be reaped has).
    pub(super) fn look(self) -> Option<char> {
        let stat = Stat::read(self.pid)?;
        let same = stat.start_ticks == self.start_ticks && boot() == self.boot;
        (same && !matches!(stat.state, 'Z' | 'X' | 'x')).then_some(stat.state)
    }

    /// SIGTERM; also wakes it if it is stopped.
    pub(super) fn terminate(self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// SIGKILL.
    pub(super) fn kill(self) {
        self.signal(Signal::KILL);
    }

    /// First a handle that stays with the process, then the look whether it is the right one: so a pid that
    /// is used again in between is not hit.
    fn signal(self, signal: Signal) {
        let handle = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let handle = handle.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(handle) = handle.filter(|_| self.look().is_some()) {
            // It may end between the look and here: then there is nothing to be signalled.
            let _ = pidfd_send_signal(&handle, signal);
        }
    }
}

/// All living processes by pid, with their parents.
fn processes() -> Vec<(u32, Stat)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, Stat::read(pid)?))).collect()
}

/// Children, their children and so on, nearest first; not the process itself.
pub(super) fn descendants(of: Identity) -> Vec<Identity> {
    if of.look().is_none() {
        return Vec::new();
    }
    let (all, boot) = (processes(), boot());
    let mut found: Vec<Identity> = Vec::new();
    let mut open = vec![of.pid];
    while let Some(parent) = open.pop() {
        for (pid, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
            found.push(Identity { pid: *pid, start_ticks: stat.start_ticks, boot });
            open.push(*pid);
        }
    }
    found
}

/// From now on this process is the parent of what processes below it leave behind, see [`kill_adopted`].
pub(super) fn adopt_orphans() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "commands of a node that is killed will not be found");
    }
}

/// Kills the commands that a killed node left to this process, and what is below them: its children at a nice
/// value that a node gives its commands, but for `own`, which it started itself. Whether there were any.
pub(super) fn kill_adopted(own: &BTreeSet<u32>) -> bool {
    let (me, boot) = (std::process::id(), boot());
    let mut found = false;
    for (pid, stat) in processes() {
        if stat.parent != me || stat.nice < COMMAND_NICE || own.contains(&pid) {
            continue;
        }
        found = true;
        let orphan = Identity { pid, start_ticks: stat.start_ticks, boot };
        for process in descendants(orphan) {
            process.kill();
        }
        orphan.kill();
        // Nobody else takes its exit status; one that has not ended yet is found again.
        let _ = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
    }
    found
}

/// CPU time and memory of a process and all its descendants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    cpu_ticks: u64,
    pub(super) resident_bytes: u64,
}

impl Usage {
    pub(super) fn of_tree(leader: Identity) -> Option<Self> {
        leader.look()?;
        let mut usage = Self { cpu_ticks: 0, resident_bytes: 0 };
        for process in descendants(leader).into_iter().chain([leader]) {
            let Some(stat) = Stat::read(process.pid) else { continue };
            usage.cpu_ticks += stat.cpu_ticks;
            usage.resident_bytes += resident_bytes(process.pid);
        }
        Some(usage)
    }

    /// CPU seconds since an earlier look; 0 if a counter fell because a process of the tree was handed to another parent.
    pub(super) fn cpu_s_since(&self, earlier: &Self) -> f64 {
        self.cpu_ticks.saturating_sub(earlier.cpu_ticks) as f64 / TICKS_PER_SECOND
    }
}

/// The value of a line `Name: 123 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&status, "VmRSS:").unwrap_or(0)
}

/// This machine.
pub(super) fn host() -> Host {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Host {
        cores: cores as f64,
        memory_bytes: kilobytes(&memory, "MemTotal:").unwrap_or(0),
        runtime: "process".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_fields() {
        let stat = Stat::parse("7 (a) b (c)) S 3 7 7 0 -1 0 0 0 0 0 10 20 1 2 20 0 1 0 4242 0 0").unwrap();
        assert_eq!((stat.state, stat.parent, stat.cpu_ticks, stat.start_ticks), ('S', 3, 33, 4242));
        assert_eq!(stat.nice, 0);
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_another_process() {
        let me = Identity::of_pid(std::process::id()).unwrap();
        assert!(me.look().is_some());
        let reused = Identity { start_ticks: me.start_ticks + 1, ..me };
        assert!(reused.look().is_none());
        // Must not hit this process.
        reused.kill();
        let other_boot = Identity { boot: me.boot ^ 1, ..me };
        assert!(other_boot.look().is_none());
        other_boot.kill();
    }
}
