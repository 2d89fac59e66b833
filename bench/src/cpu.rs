//! CPU time of other processes, from `/proc/<pid>/stat` (proc_pid_stat(5)).

use anyhow::Context as _;
use std::{fs, time::Duration};

/// CPU time of some processes so far, user and system together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Of the processes themselves.
    pub own: Duration,
    /// Of those of their children that have ended and were waited for.
    pub children: Duration,
}

/// The sum over these processes. Its resolution is a clock tick, 10 ms.
///
/// # Errors
/// One of them has ended.
pub fn used(pids: &[u32]) -> anyhow::Result<Used> {
    let mut sum = Used::default();
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} has ended"))?;
        let one = parse(&stat).with_context(|| format!("/proc/{pid}/stat: {stat}"))?;
        sum.own += one.own;
        sum.children += one.children;
    }
    Ok(sum)
}

/// The process ids of all processes whose arguments satisfy this.
///
/// # Errors
/// There is no `/proc`.
pub fn processes(is_wanted: impl Fn(&[String]) -> bool) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = line
            .split(|&byte| byte == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        if is_wanted(&arguments) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The name stands in brackets and may hold anything, so fields are counted from the last bracket on.
fn parse(stat: &str) -> Option<Used> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // Field numbers of the manual page, less 3: the state is field 3.
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let time = |user: u64, system: u64| {
        Duration::from_millis((user + system) * 1_000 / rustix::param::clock_ticks_per_second())
    };
    Some(Used { own: time(ticks(14)?, ticks(15)?), children: time(ticks(16)?, ticks(17)?) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_four_times_are_found_whatever_the_name() {
        let stat = "42 (a) 1 (b) S 1 40 41 0 -1 0 0 0 0 0 100 50 30 20 20 0 1 0 5 6 7";
        let expected = Used { own: Duration::from_millis(1_500), children: Duration::from_millis(500) };
        assert_eq!(parse(stat), Some(expected));
        assert_eq!(parse("42 (a"), None);
    }

    #[test]
    fn this_process_is_found_by_its_arguments() {
        let own: Vec<String> = std::env::args().collect();
        let found = processes(|arguments| arguments.starts_with(&own)).unwrap();
        assert!(found.contains(&std::process::id()));
        assert!(used(&[std::process::id()]).is_ok());
    }
}
