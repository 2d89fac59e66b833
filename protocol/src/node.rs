//! Nodes: what they say of themselves, and how they are shown.

use crate::{
    BootId, NodeId, TaskId, Timestamp,
    task::{self, ErrorCode, MAX_RESULT_BYTES, ResourceRequest},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// More cores than this in a report are refused.
pub const MAX_CORES: f64 = 4_096.0;
/// Fewer allotted cores than this are refused: less than any runtime hands out, and so that what is divided
/// by them stays finite.
pub const MIN_CORES: f64 = 0.001;

/// Body of `POST /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRegistration {
    /// Unique among live nodes; 1 … 128 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The node's own address, shown to people; the master never dials it.
    pub ip: IpAddr,
    /// The pool it belongs to.
    #[serde(default = "default_pool")]
    pub pool: String,
    /// min(CPU quota, CPUs of the cpuset), 0.001 ≤ cores ≤ 4,096.
    pub allotted_cores: f64,
    /// Its memory limit.
    pub memory_bytes: u64,
    /// Kinds it can run.
    pub kinds: Vec<KindInfo>,
    /// Tags, shown with the node.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Version of the program.
    pub version: String,
    /// This life of the process.
    pub boot_id: BootId,
    /// Id that the runtime gave to its container or process, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_id: Option<String>,
}

/// The pool of nodes that name none.
#[must_use]
pub fn default_pool() -> String {
    "default".to_owned()
}

/// A kind of work, as `GET /v1/kinds` shows it and nodes register it. Its limits are those of tasks that say
/// nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindInfo {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// JSON Schema (2020-12) of its input; null if it takes anything.
    #[serde(default)]
    pub schema: Option<serde_json::Value>,
    /// What a task takes while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequest>,
    /// Bound of one attempt's running time; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// 1 … 100; [`task::DEFAULT_MAX_ATTEMPTS`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Error codes after which a task is tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retry_on: Vec<ErrorCode>,
    /// Most bytes of a result, 1 … [`MAX_RESULT_BYTES`], which it is if absent; a task cannot ask for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_result_bytes: Option<usize>,
}

impl KindInfo {
    /// The first of its limits that is out of bounds, with what it must be.
    #[must_use]
    pub fn first_fault(&self) -> Option<String> {
        if let Some(fault) = self.resources.and_then(|resources| resources.first_fault()) {
            return Some(fault);
        }
        if self.max_result_bytes.is_some_and(|bytes| !(1..=MAX_RESULT_BYTES).contains(&bytes)) {
            return Some(format!("max_result_bytes must be 1 to {MAX_RESULT_BYTES}"));
        }
        task::time_fault("timeout_ms", self.timeout_ms, 1)
            .or_else(|| task::attempts_fault(self.max_attempts))
            .or_else(|| task::retry_fault(&self.retry_on))
    }
}

/// Answer of `POST /v1/nodes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registered {
    /// The node's id from now on.
    pub node_id: NodeId,
    /// Bearer token for reports and the work channel.
    pub session_token: String,
    /// How often to report, 500 … 5,000.
    pub report_interval_ms: u64,
}

/// Body of `POST /v1/nodes/{id}/report`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Grows by one with each report of this boot; an old one is ignored.
    pub seq: u64,
    /// This life of the process.
    pub boot_id: BootId,
    /// The node's address now.
    pub ip: IpAddr,
    /// `ready` or `draining`.
    pub status: NodeStatus,
    /// CPU of the node's own container, never of the host.
    pub cpu: CpuSample,
    /// Memory of the node's own container.
    pub memory: MemorySample,
    /// What is running.
    pub running: Vec<RunningTask>,
}

/// CPU of the node's own container over a sliding window of 500 … 1,000 ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSample {
    /// min(CPU quota, CPUs of the cpuset), in cores.
    pub allotted_cores: f64,
    /// Used by everything in the container, in cores.
    pub used_cores: f64,
    /// Used by the node and its tasks, in cores.
    pub own_cores: f64,
    /// 1 − e_g: of what an undisturbed node would have given our threads, the part they got, 0 … 1;
    /// null when there was too little work to tell (design 3.1).
    pub obtained_share: Option<f64>,
    /// o of design 3.1, 0 … 1: the part of the allotted cores that others in the container take beside
    /// us, bounded by what a first task of ours would win back from them. Only the node sees the
    /// runnable threads of others, so the master cannot work it out from `used_cores − own_cores`.
    /// The loss that placement counts with is `max(1 − obtained_share.unwrap_or(1), others_share)`.
    #[serde(default)]
    pub others_share: f64,
    /// Part of the CFS periods in which the container was throttled, 0 … 1.
    pub throttled_ratio: f64,
    /// Where the figures come from.
    pub source: CpuSource,
}

/// Where CPU figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuSource {
    /// cgroup v1 (also the hybrid layout).
    CgroupV1,
    /// cgroup v2.
    CgroupV2,
    /// No cgroup: the process tree and the host.
    Process,
}

/// Memory of the node's own container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// In use now.
    pub used_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
}

/// One running task in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningTask {
    /// The task.
    pub task: TaskId,
    /// Resident memory of its processes; 0 for kinds that run inside the node.
    pub rss_bytes: u64,
}

/// Answer of `POST /v1/nodes/{id}/report`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ReportReply {
    /// How often to report from now on, 500 … 5,000; at least 900 while it has no work.
    pub report_interval_ms: u64,
    /// That of the master that leads, as in every frame; 0 from one that does not say. A node whose work channel is
    /// of a lower one opens another.
    #[serde(default)]
    pub epoch: u64,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Registered; its work channel is not open yet.
    Starting,
    /// Takes work.
    Ready,
    /// Finishes what it has and takes no more.
    Draining,
    /// Not heard of for 3 intervals, or its channel is closed: no new work.
    Suspect,
    /// Given up: its tasks run elsewhere.
    Lost,
    /// Left in order.
    Stopped,
}

impl NodeStatus {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
        }
    }
}

/// Body of `POST /v1/nodes/{id}/exited`: the manager's evidence that a node is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitReport {
    /// Exit code, where it is known.
    pub exit_code: Option<i64>,
    /// Whether the runtime blames memory. Docker says so also when a child was killed: evidence, not proof.
    #[serde(default)]
    pub oom_killed: bool,
    /// For people.
    #[serde(default)]
    pub reason: String,
}

/// Body of `POST /v1/nodes/{id}/drain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Running tasks may go on this long, then they are handed back; no bound if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// A node as it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its own address.
    pub ip: IpAddr,
    /// The pool it belongs to.
    pub pool: String,
    /// Where it is in its life.
    pub status: NodeStatus,
    /// Tags.
    pub labels: BTreeMap<String, String>,
    /// Names of the kinds it can run.
    pub kinds: Vec<String>,
    /// min(CPU quota, CPUs of the cpuset), in cores.
    pub allotted_cores: f64,
    /// CPU as last reported; null before the first report.
    pub cpu: Option<CpuView>,
    /// Memory as last reported; null before the first report.
    pub memory: Option<MemorySample>,
    /// Single-core tasks it can run side by side.
    pub slots: u32,
    /// Tasks running on it.
    pub running: u32,
    /// CPU time still to be used by the tasks on it, by estimate.
    pub queued_cpu_ms: u64,
    /// Tasks that it ended with a result.
    pub completed: u64,
    /// Tasks that it ended with an error.
    pub failed: u64,
    /// When it registered.
    pub registered_at: Timestamp,
    /// When it last reported.
    pub last_report_at: Option<Timestamp>,
    /// Id that the runtime gave to its container or process, where it is known.
    pub runtime_id: Option<String>,
    /// Effective capacity in cores: what new work would get (design 3.1).
    pub effective_cores: f64,
    /// Why it is suspect, lost or draining, for people; empty otherwise.
    #[serde(default)]
    pub reason: String,
}

/// CPU of a node as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuView {
    /// The sample.
    #[serde(flatten)]
    pub sample: CpuSampleFields,
    /// used ÷ allotted × 100 of the node's own container; may pass 100.
    pub percent: f64,
    /// Age of the sample when the answer was made.
    pub sample_age_ms: u64,
}

/// [`CpuSample`] without the refusal of unknown fields, which serde cannot combine with flattening.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuSampleFields {
    /// See [`CpuSample::allotted_cores`].
    pub allotted_cores: f64,
    /// See [`CpuSample::used_cores`].
    pub used_cores: f64,
    /// See [`CpuSample::own_cores`].
    pub own_cores: f64,
    /// See [`CpuSample::obtained_share`].
    pub obtained_share: Option<f64>,
    /// See [`CpuSample::others_share`].
    #[serde(default)]
    pub others_share: f64,
    /// See [`CpuSample::throttled_ratio`].
    pub throttled_ratio: f64,
    /// See [`CpuSample::source`].
    pub source: CpuSource,
}

impl From<CpuSample> for CpuSampleFields {
    fn from(sample: CpuSample) -> Self {
        let CpuSample {
            allotted_cores,
            used_cores,
            own_cores,
            obtained_share,
            others_share,
            throttled_ratio,
            source,
        } = sample;
        Self { allotted_cores, used_cores, own_cores, obtained_share, others_share, throttled_ratio, source }
    }
}

impl From<CpuSampleFields> for CpuSample {
    fn from(fields: CpuSampleFields) -> Self {
        let CpuSampleFields {
            allotted_cores,
            used_cores,
            own_cores,
            obtained_share,
            others_share,
            throttled_ratio,
            source,
        } = fields;
        Self { allotted_cores, used_cores, own_cores, obtained_share, others_share, throttled_ratio, source }
    }
}

impl CpuSample {
    /// used ÷ allotted × 100; may pass 100, at most 10⁹; 0 if nothing is allotted.
    #[must_use]
    pub fn percent(&self) -> f64 {
        if self.allotted_cores > 0.0 {
            (self.used_cores / self.allotted_cores * 100.0).min(MAX_PERCENT)
        } else {
            0.0
        }
    }

    /// The first field that is not finite, negative or too large, with what is wrong with it.
    #[must_use]
    pub fn first_fault(&self) -> Option<(&'static str, &'static str)> {
        let cores = |value: f64| !(0.0..=MAX_CORES).contains(&value);
        let share = |value: f64| !(0.0..=1.0).contains(&value);
        if !(MIN_CORES..=MAX_CORES).contains(&self.allotted_cores) {
            Some(("cpu.allotted_cores", "must be 0.001 to 4096"))
        } else if cores(self.used_cores) {
            Some(("cpu.used_cores", "must be 0 to 4096"))
        } else if cores(self.own_cores) {
            Some(("cpu.own_cores", "must be 0 to 4096"))
        } else if self.obtained_share.is_some_and(share) {
            Some(("cpu.obtained_share", "must be 0 to 1, or null"))
        } else if share(self.others_share) {
            Some(("cpu.others_share", "must be 0 to 1"))
        } else if share(self.throttled_ratio) {
            Some(("cpu.throttled_ratio", "must be 0 to 1"))
        } else {
            None
        }
    }
}

/// Keeps [`CpuSample::percent`] a number that JSON can carry, whatever the sample.
const MAX_PERCENT: f64 = 1e9;

/// Single-core tasks that a node of so many cores runs side by side: max(1, ⌈cores − 0.05⌉).
#[must_use]
pub fn slots_of(allotted_cores: f64) -> u32 {
    // Cores are at most 4,096 and not negative, so the cast is exact.
    ((allotted_cores - 0.05).ceil().clamp(1.0, MAX_CORES)) as u32
}

/// Memory that the agent itself needs; at most half of the limit is held back for it.
const AGENT_RESERVE_BYTES: u64 = 16 << 20;

/// Memory that tasks may ask for in all on a node with this limit.
#[must_use]
pub fn memory_for_tasks(limit_bytes: u64) -> u64 {
    limit_bytes - AGENT_RESERVE_BYTES.min(limit_bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_some_memory_but_never_more_than_half() {
        assert_eq!(memory_for_tasks(256 << 20), 240 << 20);
        assert_eq!(memory_for_tasks(8 << 20), 4 << 20);
        assert_eq!(memory_for_tasks(0), 0);
    }

    #[test]
    fn a_percentage_is_finite_whatever_was_allotted() {
        let sample = |allotted_cores| CpuSample {
            allotted_cores,
            used_cores: MAX_CORES,
            own_cores: 0.0,
            obtained_share: None,
            others_share: 0.0,
            throttled_ratio: 0.0,
            source: CpuSource::Process,
        };
        for cores in [0.0, 5e-324, f64::MIN_POSITIVE, MIN_CORES, 1.0] {
            assert!(sample(cores).percent().is_finite(), "{cores}");
            assert_eq!(sample(cores).first_fault().is_some(), cores < MIN_CORES, "{cores}");
        }
    }
}
