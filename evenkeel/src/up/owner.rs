//! The `up` that stays in the foreground: which process it is, so that `down` can ask it to end.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use service::state::{StateDir, StateError};
use std::{fs, time::Duration};

const OWNER_FILE: &str = "up.pid";
/// How often a process that is to end is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Pid and start time of a process: a pid alone is used again.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; field 22, the start, is the 20th after it (proc(5)).
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let alive = !matches!(*fields.first()?, "Z" | "X");
    alive.then(|| format!("{pid} {} {}", fields.get(19).copied().unwrap_or_default(), boot.trim()))
}

/// Notes down that this process keeps the cluster.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn note(state: &StateDir) -> Result<(), StateError> {
    state.write(OWNER_FILE, identity(std::process::id()).unwrap_or_default().as_bytes())
}

/// Forgets it.
///
/// # Errors
/// If the file cannot be removed.
pub(crate) fn forget(state: &StateDir) -> Result<(), StateError> {
    state.remove(OWNER_FILE)
}

/// The pid of the process that keeps the cluster, if it lives and is another one than this.
pub(crate) fn living(state: &StateDir) -> Option<u32> {
    let noted = fs::read_to_string(state.file(OWNER_FILE)).ok()?;
    let pid: u32 = noted.split(' ').next()?.parse().ok()?;
    (pid != std::process::id() && identity(pid)? == noted).then_some(pid)
}

/// Asks that process to end, and waits until it has; whether it has within `within`. True if there is none.
pub(crate) async fn end(state: &StateDir, within: Duration) -> bool {
    let Some(pid) = living(state) else { return true };
    // First the handle, then the look whether it is the right one: so no other process is hit.
    let handle = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let handle = handle.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(handle) = handle.filter(|_| living(state) == Some(pid)) {
        let _ = pidfd_send_signal(handle, Signal::TERM);
    }
    let looks = within.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if living(state).is_none() {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_living_other_process_with_the_same_start_is_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(folder.path()), "default").unwrap();
        assert_eq!(living(&state), None);
        note(&state).unwrap();
        assert_eq!(living(&state), None, "this process is not another one");

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        state.write(OWNER_FILE, identity(child.id()).unwrap().as_bytes()).unwrap();
        assert_eq!(living(&state), Some(child.id()));
        let reaped = std::thread::spawn(move || child.wait().unwrap());
        assert!(end(&state, Duration::from_secs(10)).await);
        reaped.join().unwrap();
        state.write(OWNER_FILE, b"1 5 other-boot").unwrap();
        assert_eq!(living(&state), None, "the same pid, another life");
        forget(&state).unwrap();
    }
}
