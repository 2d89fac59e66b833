//! CPU counters and limits of the node's own container: cgroup v1 (also hybrid) and v2.
//!
//! Inside a container the mounts below `/sys/fs/cgroup` are rooted at the container's own group, so the
//! path in `/proc/self/cgroup` is not joined to them: with v1 it names a path of the host. On a host they
//! show the root group, which counts the whole machine; such a node is measured as a process instead.
//! Sources: the kernel's `admin-guide/cgroup-v2.rst`, `admin-guide/cgroup-v1/cpuacct.rst` and
//! `scheduler/sched-bwc.rst`.

use super::{Error, procfs::KeptFile};
use protocol::node::{CpuSource, MAX_CORES};
use std::path::Path;

/// What was found below `/sys/fs/cgroup`.
#[derive(Debug)]
pub(super) enum Found {
    /// The group of a container.
    Container(CpuGroup),
    /// The root of a hierarchy: a host.
    Host,
    /// No CPU group at all.
    Nothing,
}

/// Counters of a group since some start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// CPU time.
    pub usage_ns: u64,
    /// CFS periods; 0 without a quota.
    pub periods: u64,
    /// Those of them in which it was throttled.
    pub throttled: u64,
}

/// The open files of a group.
#[derive(Debug)]
pub(super) struct CpuGroup {
    files: Files,
    cpus: Option<KeptFile>,
}

#[derive(Debug)]
enum Files {
    V1 { usage: KeptFile, stat: Option<KeptFile>, quota: Option<(KeptFile, KeptFile)> },
    V2 { stat: KeptFile, max: Option<KeptFile> },
}

/// Where v1 controllers are mounted: alone, or several together with or without links to the one names.
const V1_USAGE: [&str; 3] = ["cpuacct", "cpu,cpuacct", "cpuacct,cpu"];
const V1_CPU: [&str; 3] = ["cpu", "cpu,cpuacct", "cpuacct,cpu"];

/// Looks at what is mounted at `root`, which is `/sys/fs/cgroup` but for tests.
///
/// # Errors
/// A file that exists cannot be opened.
pub(super) fn find(root: &Path) -> Result<Found, Error> {
    for directory in V1_USAGE.map(|name| root.join(name)) {
        let Some(usage) = KeptFile::open(directory.join("cpuacct.usage"))? else { continue };
        // The kernel shows this file in root groups only.
        if directory.join("cgroup.sane_behavior").exists() {
            return Ok(Found::Host);
        }
        let (mut stat, mut quota) = (None, None);
        for directory in V1_CPU.map(|name| root.join(name)) {
            stat = KeptFile::open(directory.join("cpu.stat"))?;
            let period = KeptFile::open(directory.join("cpu.cfs_period_us"))?;
            quota = KeptFile::open(directory.join("cpu.cfs_quota_us"))?.zip(period);
            if quota.is_some() {
                break;
            }
        }
        let cpus = KeptFile::open(root.join("cpuset/cpuset.cpus"))?;
        return Ok(Found::Container(CpuGroup { files: Files::V1 { usage, stat, quota }, cpus }));
    }
    if !root.join("cgroup.controllers").exists() {
        return Ok(Found::Nothing);
    }
    // The kernel shows this file in all groups but the root.
    if !root.join("cgroup.type").exists() {
        return Ok(Found::Host);
    }
    let Some(stat) = KeptFile::open(root.join("cpu.stat"))? else { return Ok(Found::Nothing) };
    let max = KeptFile::open(root.join("cpu.max"))?;
    let cpus = KeptFile::open(root.join("cpuset.cpus.effective"))?;
    Ok(Found::Container(CpuGroup { files: Files::V2 { stat, max }, cpus }))
}

impl CpuGroup {
    pub(super) const fn source(&self) -> CpuSource {
        match self.files {
            Files::V1 { .. } => CpuSource::CgroupV1,
            Files::V2 { .. } => CpuSource::CgroupV2,
        }
    }

    /// The counters now.
    pub(super) fn counters(&self) -> Result<Counters, Error> {
        match &self.files {
            Files::V1 { usage, stat, .. } => {
                let usage_ns = usage.read("a number of nanoseconds", |text| text.trim().parse().ok())?;
                let (periods, throttled) = match stat {
                    Some(stat) => stat.read("lines of keys and numbers", |text| Some(parse_periods(text)))?,
                    None => (0, 0),
                };
                Ok(Counters { usage_ns, periods, throttled })
            }
            Files::V2 { stat, .. } => stat.read("lines of keys and numbers, with usage_usec", parse_cpu_stat),
        }
    }

    /// min(quota, CPUs of the cpuset), above 0 and at most 4,096; `cpus_without_set` stands in where no
    /// cpuset is mounted.
    pub(super) fn allotted_cores(&self, cpus_without_set: f64) -> Result<f64, Error> {
        let quota = match &self.files {
            Files::V1 { quota: Some((quota, period)), .. } => {
                let quota: i64 = quota.read("a number of microseconds", |text| text.trim().parse().ok())?;
                let period: u64 = period.read("a number of microseconds", |text| text.trim().parse().ok())?;
                quota_cores(quota, period)
            }
            Files::V2 { max: Some(max), .. } => max.read("a quota, or max, and a period", parse_cpu_max)?,
            Files::V1 { quota: None, .. } | Files::V2 { max: None, .. } => None,
        };
        let cpus = match &self.cpus {
            Some(cpus) => cpus.read("a list of CPUs", |text| Some(parse_cpu_list(text)))?.map(f64::from),
            None => None,
        };
        let cpus = cpus.unwrap_or(cpus_without_set);
        Ok(quota.map_or(cpus, |quota| quota.min(cpus)).clamp(0.01, MAX_CORES))
    }
}

/// Reads the `cpu.stat` of v2; `None` if it says no usage.
#[must_use]
pub fn parse_cpu_stat(text: &str) -> Option<Counters> {
    let usage_ns = value_of(text, "usage_usec")?.checked_mul(1_000)?;
    let (periods, throttled) = parse_periods(text);
    Some(Counters { usage_ns, periods, throttled })
}

/// CFS periods in a `cpu.stat`, and those of them with throttling; 0 if it says none, as without a quota.
fn parse_periods(text: &str) -> (u64, u64) {
    let value = |key| value_of(text, key).unwrap_or(0);
    (value("nr_periods"), value("nr_throttled"))
}

/// The number after `key` in lines of keys and numbers.
#[must_use]
pub fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `None` if there is no quota: v1 says −1.
fn quota_cores(quota_us: i64, period_us: u64) -> Option<f64> {
    // Both are far below 2⁵³ µs, so the casts are exact.
    (quota_us > 0 && period_us > 0).then(|| quota_us as f64 / period_us as f64)
}

/// Reads `cpu.max`: `None` if it cannot be read, `Some(None)` if there is no quota.
#[allow(clippy::option_option, reason = "unreadable and unlimited are different answers")]
#[must_use]
pub fn parse_cpu_max(text: &str) -> Option<Option<f64>> {
    let (quota, period) = text.trim().split_once(' ')?;
    let period = period.trim().parse().ok().filter(|period| *period > 0)?;
    if quota == "max" { Some(None) } else { Some(quota_cores(quota.parse().ok()?, period)) }
}

/// How many CPUs a list such as `0-3,8` names; `None` if it is empty, as in a cpuset that was never
/// filled, or is no such list.
#[must_use]
pub fn parse_cpu_list(text: &str) -> Option<u32> {
    let mut count = 0u32;
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (count > 0).then_some(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn recorded(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup").join(name)
    }

    fn container(name: &str) -> CpuGroup {
        match find(&recorded(name)).unwrap() {
            Found::Container(group) => group,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn v1_with_one_mount_for_each_controller() {
        let group = container("v1");
        assert_eq!(group.source(), CpuSource::CgroupV1);
        let expected = Counters { usage_ns: 5_279_018_624, periods: 211, throttled: 204 };
        assert_eq!(group.counters().unwrap(), expected);
        assert_eq!(group.allotted_cores(64.0).unwrap(), 0.25);
    }

    #[test]
    fn v1_with_cpu_and_cpuacct_in_one_mount_and_links() {
        let group = container("v1-links");
        assert_eq!(group.source(), CpuSource::CgroupV1);
        assert_eq!(group.counters().unwrap().usage_ns, 91_204_338_117);
        assert_eq!(group.allotted_cores(64.0).unwrap(), 3.0, "no quota: the CPUs of the cpuset");
    }

    #[test]
    fn hybrid_is_read_as_v1() {
        let group = container("hybrid");
        assert_eq!(group.source(), CpuSource::CgroupV1);
        assert_eq!(group.counters().unwrap(), Counters { usage_ns: 812_500_000, periods: 40, throttled: 3 });
        assert_eq!(group.allotted_cores(64.0).unwrap(), 1.5);
    }

    #[test]
    fn v2_with_a_quota() {
        let group = container("v2");
        assert_eq!(group.source(), CpuSource::CgroupV2);
        let expected = Counters { usage_ns: 2_538_417_000, periods: 52, throttled: 49 };
        assert_eq!(group.counters().unwrap(), expected);
        assert_eq!(group.allotted_cores(64.0).unwrap(), 0.5);
    }

    #[test]
    fn v2_without_quota_and_with_few_controllers() {
        let group = container("v2-unlimited");
        assert_eq!(group.counters().unwrap(), Counters { usage_ns: 1_000, periods: 0, throttled: 0 });
        assert_eq!(group.allotted_cores(6.0).unwrap(), 6.0, "no cpuset either: what the caller found");
    }

    #[test]
    fn hosts_and_empty_trees_are_no_containers() {
        assert!(matches!(find(&recorded("host-v1")).unwrap(), Found::Host));
        assert!(matches!(find(&recorded("host-v2")).unwrap(), Found::Host));
        assert!(matches!(find(&recorded("none")).unwrap(), Found::Nothing));
        assert!(matches!(find(&recorded("no-such-directory")).unwrap(), Found::Nothing));
    }

    #[test]
    fn a_file_that_says_something_odd_is_an_error_that_names_it() {
        let group = container("v1-broken");
        let error = group.counters().unwrap_err().to_string();
        assert!(error.contains("cpuacct.usage") && error.contains("seventeen"), "{error}");
        assert!(group.allotted_cores(2.0).unwrap_err().to_string().contains("cpu.cfs_quota_us"));
    }

    #[test]
    fn lists_of_cpus() {
        let counts = [("0", 1), ("0-1\n", 2), ("0-3,8", 5), ("5,7,9-11", 5)];
        for (text, count) in counts {
            assert_eq!(parse_cpu_list(text), Some(count), "{text:?}");
        }
        for text in ["", "\n", "a", "3-1", "1,", "-1", "0-4294967295,0-4294967295"] {
            assert_eq!(parse_cpu_list(text), None, "{text:?}");
        }
    }

    #[test]
    fn quotas() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(Some(1.5)));
        assert_eq!(parse_cpu_max("max 100000\n"), Some(None));
        for text in ["", "max", "x 100000", "50000 0", "50000 x"] {
            assert_eq!(parse_cpu_max(text), None, "{text:?}");
        }
        assert_eq!(quota_cores(-1, 100_000), None);
        assert_eq!(quota_cores(5_000, 50_000), Some(0.1));
    }
}
