//! This machine.

use super::super::facts::{Cgroup, Clock, Probe};
use super::blocking;
use node::cpu::text::ThreadTimes;
use node_manager::docker::subnet::Subnet;
use protocol::Timestamp;
use rustix::process::{Resource, getrlimit};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// So long the clocks are watched; also makes the kernel count something for this thread.
const WATCH: Duration = Duration::from_millis(50);

/// What was seen.
pub(super) struct Seen {
    pub(super) cgroup: Cgroup,
    pub(super) schedstat: Probe<ThreadTimes>,
    pub(super) files: (Option<u64>, Option<u64>),
    monotonic: bool,
    step_ms: i64,
}

pub(super) async fn look() -> Seen {
    let (cgroup, watched) =
        tokio::join!(blocking(|| cgroup(Path::new("/sys/fs/cgroup"))), blocking(watch_thread));
    let (monotonic, step_ms, schedstat) = watched.unwrap_or_else(|why| (false, 0, Err(why)));
    let limit = getrlimit(Resource::Nofile);
    Seen {
        cgroup: cgroup.unwrap_or(Cgroup::Nothing),
        schedstat,
        files: (limit.current, limit.maximum),
        monotonic,
        step_ms,
    }
}

impl Seen {
    /// With what is known of the master's clock.
    pub(super) fn clock(&self, ahead: Option<(i64, i64)>) -> Clock {
        let wall = service::clock::wall();
        Clock { wall, monotonic: self.monotonic, step_ms: self.step_ms, ahead }
    }
}

fn cgroup(root: &Path) -> Cgroup {
    let v1 = ["cpu", "cpuacct", "cpu,cpuacct"].iter().any(|name| root.join(name).join("tasks").exists());
    let unified =
        root.join("unified/cgroup.procs").exists() || root.join("systemd/cgroup.controllers").exists();
    match (v1, unified) {
        (true, true) => Cgroup::Hybrid,
        (true, false) => Cgroup::V1,
        (false, _) if root.join("cgroup.controllers").exists() => Cgroup::V2,
        (false, _) => Cgroup::Nothing,
    }
}

/// Uses a CPU for a moment; whether the monotonic clock went on, by how much the wall clock was set, and what
/// the kernel has counted for the thread.
fn watch_thread() -> (bool, i64, Probe<ThreadTimes>) {
    let (began, wall): (Instant, Timestamp) = (Instant::now(), service::clock::wall());
    let mut monotonic = true;
    let mut last = began;
    while last.duration_since(began) < WATCH && monotonic {
        let now = Instant::now();
        monotonic = now >= last;
        last = now;
    }
    let passed_ms = i64::try_from(last.duration_since(began).as_millis()).unwrap_or(i64::MAX);
    let step_ms = service::clock::wall().0.saturating_sub(wall.0).saturating_sub(passed_ms);
    let text = fs::read_to_string("/proc/thread-self/schedstat").map_err(|error| error.to_string());
    let times =
        text.and_then(|text| ThreadTimes::parse(&text).ok_or_else(|| format!("it says {:?}", text.trim())));
    (monotonic, step_ms, times)
}

/// This host's IPv4 routes but the default ones, with their interfaces.
pub(super) fn routes() -> Vec<(Subnet, String)> {
    parse_routes(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// `/proc/net/route`: addresses are hexadecimal, in this machine's order of bytes.
fn parse_routes(text: &str) -> Vec<(Subnet, String)> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let subnet = Subnet::new(number(fields.get(1)?)?, number(fields.get(7)?)?);
        (!subnet.is_everything()).then(|| (subnet, (*fields.first().unwrap_or(&"")).to_owned()))
    };
    text.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_and_the_default_one_is_left_out() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                    eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let routes: Vec<String> =
            parse_routes(text).iter().map(|(subnet, interface)| format!("{subnet} {interface}")).collect();
        assert_eq!(routes, ["172.17.0.0/16 docker0", "192.0.2.0/24 eth0"]);
        assert!(parse_routes("").is_empty() && parse_routes("a\nb c\n").is_empty());
    }

    #[test]
    fn the_recorded_trees_are_told_apart() {
        let folder = tempfile::tempdir().map(tempfile::TempDir::keep).unwrap_or_default();
        assert_eq!(cgroup(&folder), Cgroup::Nothing);
        let make = |path: &str| {
            let file = folder.join(path);
            let made = file.parent().map(fs::create_dir_all).is_some_and(|made| made.is_ok());
            assert!(made && fs::write(file, "").is_ok());
        };
        make("cgroup.controllers");
        assert_eq!(cgroup(&folder), Cgroup::V2);
        make("cpu/tasks");
        assert_eq!(cgroup(&folder), Cgroup::V1);
        make("unified/cgroup.procs");
        assert_eq!(cgroup(&folder), Cgroup::Hybrid);
        assert!(fs::remove_dir_all(folder).is_ok());
    }
}
