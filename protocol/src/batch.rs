//! `POST /v1/tasks/batch`: newline-delimited JSON both ways.

use crate::{
    Problem, TaskId,
    task::{Task, TaskSpec},
};
use serde::{Deserialize, Serialize};

/// One line from the client: a task, with a reference of the client's own.
///
/// Unknown fields cannot be refused by serde here (flattening); [`BatchLine::parse`] does it.
#[derive(Clone, Debug)]
pub struct BatchLine {
    /// The client's name for this line; it comes back in every answer.
    pub r#ref: Option<String>,
    /// As the header `Idempotency-Key` of a single submit.
    pub idempotency_key: Option<String>,
    /// The task.
    pub spec: TaskSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatLine {
    #[serde(default)]
    r#ref: Option<String>,
    #[serde(default)]
    idempotency_key: Option<String>,
    kind: String,
    #[serde(default)]
    input: Option<crate::task::Json>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    deadline_ms: Option<u64>,
    #[serde(default)]
    max_attempts: Option<u32>,
    #[serde(default)]
    retry_on: Vec<crate::task::ErrorCode>,
    #[serde(default)]
    priority: i8,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    resources: Option<crate::task::Resources>,
    #[serde(default)]
    rerun_after_ms: Option<u64>,
    #[serde(default)]
    durability: Option<crate::task::Durability>,
}

impl BatchLine {
    /// Reads one line, without its line end.
    ///
    /// # Errors
    /// What `serde_json` says of a line that is not such an object, unknown fields included.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        let flat: FlatLine = serde_json::from_slice(line)?;
        let spec = TaskSpec {
            kind: flat.kind,
            input: flat.input,
            timeout_ms: flat.timeout_ms,
            deadline_ms: flat.deadline_ms,
            max_attempts: flat.max_attempts,
            retry_on: flat.retry_on,
            priority: flat.priority,
            labels: flat.labels,
            resources: flat.resources,
            rerun_after_ms: flat.rerun_after_ms,
            durability: flat.durability,
        };
        Ok(Self { r#ref: flat.r#ref, idempotency_key: flat.idempotency_key, spec })
    }
}

/// One line to the client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BatchAnswer {
    /// The client's name for the line, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#ref: Option<String>,
    /// Number of the line in the request, from 1.
    pub line: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: BatchEvent,
}

/// What happened to a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum BatchEvent {
    /// It is committed; only sent with `?ack=1` or `?detach=1`.
    Accepted {
        /// The task's id.
        id: TaskId,
    },
    /// The task has ended.
    Finished {
        /// The task.
        task: Box<Task>,
    },
    /// The line was refused; the others go on.
    Error {
        /// Why.
        problem: Problem,
    },
}
