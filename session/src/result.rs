//! What a node says of a run's end, checked as far as that can be done without knowing the task.

use protocol::{
    RunId, TaskId,
    json::{MAX_DEPTH, nests_too_deep},
    log::Tails,
    node::{CpuSample, MAX_CORES},
    task::{ErrorCode, Json, MAX_RESULT_BYTES, TaskError},
    work::{Outcome, RunResult},
};
use std::sync::Arc;

/// Longest text of an error that is passed on, in characters.
const MAX_ERROR_CHARS: usize = 4_096;
/// Longest running time that is believed, 31 days: one lie must not spoil what is estimated and summed up.
const MAX_RUN_MS: f64 = 31.0 * 86_400_000.0;

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
    /// Running time, 0 … 31 days.
    pub run_ms: f64,
    /// CPU time, at most the running time on 4,096 cores.
    pub cpu_ms: f64,
    /// A fresh CPU sample, if one came along and its figures are possible.
    pub sample: Option<CpuSample>,
    /// The end of what it printed, if it came along: at most `MAX_LOG_BYTES` of each stream.
    pub log: Option<Box<Tails>>,
}

/// A result with everything checked that can be checked here. A body that is too large or not JSON fails
/// the run: the node cannot do better by sending it again.
pub(crate) fn checked(header: RunResult, body: &[u8], log: Option<Box<Tails>>) -> Ended {
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
    // A NaN is not above 0 either.
    let bounded = |value: f64, most: f64| if value > 0.0 { value.min(most) } else { 0.0 };
    let run_ms = bounded(run_ms, MAX_RUN_MS);
    let cpu_ms = bounded(cpu_ms, run_ms * MAX_CORES);
    Ended { task, run, outcome, result, run_ms, cpu_ms, sample, log }
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
    if nests_too_deep(body) {
        let message = format!("the result nests deeper than {MAX_DEPTH} levels");
        return Err(fault(ErrorCode::TaskError, &message));
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn ended(run_ms: f64, cpu_ms: f64, body: &str) -> Ended {
        let (task, run) = (TaskId(uuid::Uuid::nil()), RunId::new(1, 1));
        let header =
            RunResult { epoch: 1, task, run, outcome: Outcome::Succeeded, run_ms, cpu_ms, sample: None };
        checked(header, body.as_bytes(), None)
    }

    #[test]
    fn times_that_cannot_be_are_cut() {
        for (told, kept) in [
            ((1.0, 2.0), (1.0, 2.0)),
            ((f64::NAN, -1.0), (0.0, 0.0)),
            ((1e300, 1e300), (MAX_RUN_MS, MAX_RUN_MS * MAX_CORES)),
            ((1.0, 1e300), (1.0, MAX_CORES)),
        ] {
            let ended = ended(told.0, told.1, "1");
            assert_eq!((ended.run_ms, ended.cpu_ms), kept);
        }
    }

    #[test]
    fn a_result_that_nests_too_deep_fails_the_run() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(ended(1.0, 1.0, &nested(MAX_DEPTH - 1)).outcome, Outcome::Succeeded);
        assert!(matches!(ended(1.0, 1.0, &nested(MAX_DEPTH + 1)).outcome, Outcome::Failed(_)));
    }
}
