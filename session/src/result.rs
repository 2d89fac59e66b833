//! What a node says of a run's end, checked as far as that can be done without knowing the task.

use protocol::{
    RunId, TaskId,
    node::CpuSample,
    task::{ErrorCode, Json, MAX_RESULT_BYTES, TaskError},
    work::{Outcome, RunResult},
};
use std::sync::Arc;

/// Longest text of an error that is passed on, in characters.
const MAX_ERROR_CHARS: usize = 4_096;

/// A run that ended, as its node says, with everything checked that can be checked without knowing the task.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The task.
    pub task: TaskId,
    /// The hand-out.
    pub run: RunId,
    /// How.
    pub outcome: Outcome,
    /// The result: one JSON document of at most [`MAX_RESULT_BYTES`] without line ends, so that it can
    /// stand in a line of NDJSON.
    pub result: Option<Json>,
    /// Running time, finite and not negative.
    pub run_ms: f64,
    /// CPU time, finite and not negative.
    pub cpu_ms: f64,
    /// A fresh CPU sample, if one came along and its figures are possible.
    pub sample: Option<CpuSample>,
}

/// A result with everything checked that can be checked here. A body that is too large or not JSON fails
/// the run: the node cannot do better by sending it again.
pub(crate) fn checked(header: RunResult, body: &[u8]) -> Ended {
    let RunResult { epoch: _, task, run, outcome, run_ms, cpu_ms, sample } = header;
    let (outcome, result) = match (read_result(body), outcome) {
        (Ok(result), Outcome::Failed(error)) => {
            let (code, message) = (of_a_node(error.code), cut(error.message));
            (Outcome::Failed(TaskError { code, message }), result)
        }
        (Ok(None), Outcome::Succeeded) => {
            (fault(ErrorCode::TaskError, "the node says that it succeeded, but sent no result"), None)
        }
        (Ok(result), outcome) => (outcome, result),
        (Err(_), Outcome::Cancelled) => (Outcome::Cancelled, None),
        (Err(outcome), _) => (outcome, None),
    };
    let sample = sample.map(CpuSample::from).filter(|sample| sample.first_fault().is_none());
    // `max` with 0 also turns a NaN into 0.
    Ended { task, run, outcome, result, run_ms: run_ms.max(0.0), cpu_ms: cpu_ms.max(0.0), sample }
}

/// Some codes are the scheduler's to give: a node that claims them would steer its retries.
const fn of_a_node(code: ErrorCode) -> ErrorCode {
    match code {
        ErrorCode::NodeLost | ErrorCode::AttemptsExhausted | ErrorCode::Cancelled => ErrorCode::TaskError,
        ErrorCode::BadInput
        | ErrorCode::TaskError
        | ErrorCode::Timeout
        | ErrorCode::Deadline
        | ErrorCode::OutOfMemory
        | ErrorCode::ResultTooLarge => code,
    }
}

fn fault(code: ErrorCode, message: &str) -> Outcome {
    Outcome::Failed(TaskError { code, message: message.to_owned() })
}

fn read_result(body: &[u8]) -> Result<Option<Json>, Outcome> {
    if body.is_empty() {
        return Ok(None);
    }
    if body.len() > MAX_RESULT_BYTES {
        let message = format!("the result has {} bytes, at most {MAX_RESULT_BYTES} are kept", body.len());
        return Err(fault(ErrorCode::ResultTooLarge, &message));
    }
    // In JSON text a bare line end can only be white space between tokens.
    let one_line: Vec<u8> = body.iter().map(|&b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }).collect();
    serde_json::from_slice::<Box<serde_json::value::RawValue>>(&one_line)
        .map(|json| Some(Arc::from(json)))
        .map_err(|error| fault(ErrorCode::TaskError, &format!("the node's result is not JSON: {error}")))
}

pub(crate) fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_ERROR_CHARS) {
        text.truncate(end);
    }
    text
}
