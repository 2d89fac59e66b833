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
    resources: Option<crate::task::ResourceRequest>,
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

impl BatchAnswer {
    /// The line that it is, without its line end.
    ///
    /// # Errors
    /// None that is known: strings and numbers can be written.
    pub fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

#[derive(Deserialize)]
struct FlatAnswer {
    #[serde(default)]
    r#ref: Option<String>,
    line: u64,
    r#type: String,
    #[serde(default)]
    id: Option<TaskId>,
    #[serde(default)]
    task: Option<Box<Task>>,
    #[serde(default)]
    problem: Option<Problem>,
}

impl BatchAnswer {
    /// Reads one line, without its line end. The derived `Deserialize` cannot read a task with an input or a
    /// result: flattening and tags lose the raw text of JSON.
    ///
    /// # Errors
    /// What `serde_json` says of a line that is not such an object, or a type without its field.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        use serde::de::Error as _;
        let flat: FlatAnswer = serde_json::from_slice(line)?;
        let event = match flat.r#type.as_str() {
            "accepted" => flat.id.map(|id| BatchEvent::Accepted { id }),
            "finished" => flat.task.map(|task| BatchEvent::Finished { task }),
            "error" => flat.problem.map(|problem| BatchEvent::Error { problem }),
            other => return Err(serde_json::Error::custom(format!("unknown type {other:?} of an answer"))),
        };
        let event = event.ok_or_else(|| {
            serde_json::Error::custom(format!("an answer {:?} without its field", flat.r#type))
        })?;
        Ok(Self { r#ref: flat.r#ref, line: flat.line, event })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_whole_task_is_read_as_it_was_written() {
        let task = r#"{"id":"01939d5f-0000-7000-8000-000000000001","kind":"fib","input":{"n":1},"state":"succeeded","result":{"value":"1"},"error":null,"node":null,"attempt":1,"max_attempts":3,"priority":0,"labels":{},"resources":{"cores":1.0,"memory_bytes":0},"submitted_at":"2026-11-21T03:50:00.000Z","started_at":null,"finished_at":null,"queue_ms":0,"run_ms":1,"cpu_ms":1}"#;
        let line = format!(r#"{{"ref":"a","line":3,"type":"finished","task":{task}}}"#);
        let answer = BatchAnswer::parse(line.as_bytes()).unwrap();
        assert!(matches!(&answer.event, BatchEvent::Finished { task } if task.result.is_some()));
        assert_eq!(serde_json::to_string(&answer).unwrap(), line);
    }

    #[test]
    fn an_answer_without_its_field_or_of_an_unknown_type_is_an_error() {
        assert!(BatchAnswer::parse(br#"{"line":1,"type":"finished"}"#).is_err());
        assert!(BatchAnswer::parse(br#"{"line":1,"type":"other"}"#).is_err());
    }
}
