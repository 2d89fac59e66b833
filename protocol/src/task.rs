//! Tasks: what is submitted, and how it is shown.

use crate::{
    NodeId, TaskId, Timestamp,
    node::{KindInfo, MAX_CORES},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, sync::Arc};

/// Most bytes of a JSON body or of one batch line, inputs included.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Most bytes of a task's result.
pub const MAX_RESULT_BYTES: usize = 1024 * 1024;
/// Longest `wait` of one request.
pub const MAX_WAIT_MS: u64 = 300_000;
/// Most labels of a task, and most characters of a key or a value.
pub const MAX_LABELS: usize = 32;
/// Longest label key or value, in characters.
pub const MAX_LABEL_CHARS: usize = 128;
/// Longest idempotency key, in bytes.
pub const MAX_KEY_BYTES: usize = 256;
/// Attempts of a task when it names none.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;
/// Most attempts a task may ask for.
pub const MAX_ATTEMPTS: u32 = 100;

/// Longest of the time bounds that a task may carry: ten years. Sums of such times stay far below what a
/// scheduler's microseconds hold.
pub const MAX_TASK_MS: u64 = 10 * 366 * 86_400_000;
/// Most memory that a task may ask for: 1 PiB.
pub const MAX_TASK_MEMORY_BYTES: u64 = 1 << 50;

/// A JSON document kept as its text: it is passed through, never taken apart and put together again.
pub type Json = Arc<RawValue>;

/// What a caller submits. Only `kind` is required.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Name of the kind of work.
    pub kind: String,
    /// The kind's input; an empty object if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Json>,
    /// Bound of one attempt's running time; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Bound from submission to end, waiting included; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// 1 … 100; [`DEFAULT_MAX_ATTEMPTS`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Error codes after which the task is tried again, beside `node_lost` (always) and
    /// `out_of_memory` (once).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retry_on: Vec<ErrorCode>,
    /// −100 … 100, higher first.
    #[serde(default)]
    pub priority: i8,
    /// Tags for list and cancel; they never affect placement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What the task takes while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequest>,
    /// How long after contact to its node is lost the task waits before it runs elsewhere; until the
    /// node counts as lost if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_after_ms: Option<u64>,
    /// `disk` unless the way of submitting says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl TaskSpec {
    /// A task of this kind and input, everything else at its default.
    #[must_use]
    pub fn new(kind: impl Into<String>, input: Option<Json>) -> Self {
        Self {
            kind: kind.into(),
            input,
            timeout_ms: None,
            deadline_ms: None,
            max_attempts: None,
            retry_on: Vec::new(),
            priority: 0,
            labels: BTreeMap::new(),
            resources: None,
            rerun_after_ms: None,
            durability: None,
        }
    }

    /// Takes over what its kind says of tasks that say nothing themselves, each figure for itself.
    pub fn fill_from(&mut self, kind: &KindInfo) {
        if let Some(of_kind) = kind.resources {
            self.resources = Some(self.resources.unwrap_or_default().or(of_kind));
        }
        self.timeout_ms = self.timeout_ms.or(kind.timeout_ms);
        self.max_attempts = self.max_attempts.or(kind.max_attempts);
        if self.retry_on.is_empty() {
            self.retry_on.clone_from(&kind.retry_on);
        }
    }
}

/// What is wrong with a bound of time, if it is not `least` … [`MAX_TASK_MS`].
#[must_use]
pub fn time_fault(field: &str, ms: Option<u64>, least: u64) -> Option<String> {
    let ms = ms.filter(|ms| !(least..=MAX_TASK_MS).contains(ms))?;
    Some(format!("{field} is {ms}, must be {least} to {MAX_TASK_MS}"))
}

/// What is wrong with a number of attempts, if it is not 1 … [`MAX_ATTEMPTS`].
#[must_use]
pub fn attempts_fault(attempts: Option<u32>) -> Option<String> {
    let attempts = attempts.filter(|attempts| !(1..=MAX_ATTEMPTS).contains(attempts))?;
    Some(format!("max_attempts is {attempts}, must be 1 to {MAX_ATTEMPTS}"))
}

/// What is wrong with a `retry_on`, if it names an end after which nothing is left to be tried.
#[must_use]
pub fn retry_fault(retry_on: &[ErrorCode]) -> Option<String> {
    let never = [ErrorCode::Cancelled, ErrorCode::Deadline, ErrorCode::AttemptsExhausted];
    let code = retry_on.iter().find(|code| never.contains(code))?;
    Some(format!("retry_on names {}, after which nothing can be tried again", code.as_str()))
}

/// What a task or a kind asks for; what is absent is left to the kind, and then to [`Resources::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceRequest {
    /// Threads that the task keeps busy, 0 < cores ≤ 4,096. It takes max(1, ⌈cores⌉) slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<f64>,
    /// Memory set aside for it on its node, at most [`MAX_TASK_MEMORY_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl ResourceRequest {
    /// What it asks for, and of what it leaves open what `other` asks for.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { cores: self.cores.or(other.cores), memory_bytes: self.memory_bytes.or(other.memory_bytes) }
    }

    /// The first figure that is out of bounds, with what it must be.
    #[must_use]
    pub fn first_fault(&self) -> Option<String> {
        // Not a number is in no range, so this refuses it too.
        if let Some(cores) = self.cores.filter(|cores| !(f64::MIN_POSITIVE..=MAX_CORES).contains(cores)) {
            return Some(format!("cores is {cores}, must be above 0 and at most {MAX_CORES}"));
        }
        let too_much = self.memory_bytes.is_some_and(|bytes| bytes > MAX_TASK_MEMORY_BYTES);
        too_much.then(|| format!("memory_bytes must be at most {MAX_TASK_MEMORY_BYTES}"))
    }
}

impl From<ResourceRequest> for Resources {
    fn from(request: ResourceRequest) -> Self {
        let default = Self::default();
        Self {
            cores: request.cores.unwrap_or(default.cores),
            memory_bytes: request.memory_bytes.unwrap_or(default.memory_bytes),
        }
    }
}

/// What a task takes while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Threads that the task keeps busy; 1.0 if nobody says otherwise.
    pub cores: f64,
    /// Memory set aside for it on its node; 0 if nobody says otherwise.
    pub memory_bytes: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cores: 1.0, memory_bytes: 0 }
    }
}

/// When an accepted task is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// On disk before it is accepted, and its result on disk before it is answered.
    Disk,
    /// Dispatched at once; on disk only if it outlives the first group commit after 100 ms.
    Memory,
}

/// Where a task is in its life. Only forward: `queued` and `running` may alternate, the other three end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Waiting at the master.
    Queued,
    /// Handed out to a node.
    Running,
    /// Ended with a result.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Ended because somebody asked.
    Cancelled,
}

impl TaskState {
    /// Whether the task has ended; an ended task never changes again.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a task failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The node found the input wrong, although the schema let it through.
    BadInput,
    /// The work itself failed: a non-zero exit, an unknown user.
    TaskError,
    /// The attempt ran longer than `timeout_ms`.
    Timeout,
    /// `deadline_ms` passed.
    Deadline,
    /// The node died or was out of reach for too long.
    NodeLost,
    /// The kernel killed the attempt for its memory.
    OutOfMemory,
    /// Two or more attempts, all ended in `node_lost`.
    AttemptsExhausted,
    /// The result was larger than [`MAX_RESULT_BYTES`].
    ResultTooLarge,
    /// Somebody cancelled it.
    Cancelled,
}

impl ErrorCode {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadInput => "bad_input",
            Self::TaskError => "task_error",
            Self::Timeout => "timeout",
            Self::Deadline => "deadline",
            Self::NodeLost => "node_lost",
            Self::OutOfMemory => "out_of_memory",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::ResultTooLarge => "result_too_large",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a task failed, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what failed, why, and what to do next. At most 4,096 characters.
    pub message: String,
}

/// A task as it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its kind.
    pub kind: String,
    /// Its input; absent in listings without `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Json>,
    /// Where it is.
    pub state: TaskState,
    /// Its result once it ended with one; absent in listings without `full`.
    #[serde(default)]
    pub result: Option<Json>,
    /// Why it failed, once it has.
    #[serde(default)]
    pub error: Option<TaskError>,
    /// The node that runs it or ran it last.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// Attempts that count, the present one included; 0 before the first.
    pub attempt: u32,
    /// Most attempts.
    pub max_attempts: u32,
    /// −100 … 100, higher first.
    pub priority: i8,
    /// Tags.
    pub labels: BTreeMap<String, String>,
    /// What it takes while it runs.
    pub resources: Resources,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// When its last attempt was handed out.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// From submission to the last hand-out, or until now while it is queued.
    pub queue_ms: u64,
    /// Running time of the last attempt, as the node measured it; null before it ends.
    #[serde(default)]
    pub run_ms: Option<u64>,
    /// CPU time of the last attempt, as the node measured it; null before it ends.
    #[serde(default)]
    pub cpu_ms: Option<u64>,
}

/// One page of a listing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items, newest first for tasks, by name for nodes.
    pub items: Vec<T>,
    /// Passed back as `cursor` for the next page; null on the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// Query of `GET /v1/tasks`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    /// Only tasks in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// Only tasks of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only tasks whose last attempt went to this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Only tasks with this label, `key=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// 1 … 1,000; 100 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// 1 to have `input` and `result` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<u8>,
}

/// Body of `POST /v1/tasks/cancel`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelByLabels {
    /// Tasks with all of these labels are cancelled; empty is refused.
    pub labels: BTreeMap<String, String>,
}

/// Answer of `POST /v1/tasks/cancel`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelledCount {
    /// Tasks that were cancelled by this call.
    pub cancelled: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_takes_over_what_its_kind_says_and_its_own_figures_count() {
        let kind = KindInfo {
            resources: Some(ResourceRequest { cores: Some(4.0), memory_bytes: Some(100) }),
            timeout_ms: Some(5_000),
            max_attempts: Some(7),
            retry_on: vec![ErrorCode::TaskError],
            ..KindInfo::default()
        };
        let mut silent = TaskSpec::new("own", None);
        silent.fill_from(&kind);
        assert_eq!(silent.resources.map(Resources::from), Some(Resources { cores: 4.0, memory_bytes: 100 }));
        assert_eq!((silent.timeout_ms, silent.max_attempts), (Some(5_000), Some(7)));
        assert_eq!(silent.retry_on, [ErrorCode::TaskError]);

        let mut own = TaskSpec::new("own", None);
        own.resources = Some(ResourceRequest { memory_bytes: Some(0), ..ResourceRequest::default() });
        own.timeout_ms = Some(60_000);
        own.max_attempts = Some(1);
        own.retry_on = vec![ErrorCode::Timeout];
        own.fill_from(&kind);
        assert_eq!(own.resources.map(Resources::from), Some(Resources { cores: 4.0, memory_bytes: 0 }));
        assert_eq!((own.timeout_ms, own.max_attempts), (Some(60_000), Some(1)));
        assert_eq!(own.retry_on, [ErrorCode::Timeout]);
    }
}
