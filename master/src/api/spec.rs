//! The form of a submitted task: bounds that hold for every kind, and which durability it has.

use super::{
    app::App,
    failure::Failure,
    params::{check_labels, check_length, check_name},
};
use protocol::{
    Problem,
    task::{Durability, MAX_KEY_BYTES, TaskSpec, attempts_fault, retry_fault, time_fault},
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// Checks a task: first its form, then its input against its kind.
pub(crate) async fn check(app: &App, spec: &TaskSpec) -> Result<(), Failure> {
    check_form(spec)?;
    let input: &RawValue = match &spec.input {
        Some(input) => input,
        None => empty_object(),
    };
    app.schemas().check(app, &spec.kind, input).await
}

fn empty_object() -> &'static RawValue {
    static EMPTY: std::sync::OnceLock<Box<RawValue>> = std::sync::OnceLock::new();
    EMPTY.get_or_init(|| RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned()))
}

fn check_form(spec: &TaskSpec) -> Result<(), Problem> {
    check_name("kind", &spec.kind)?;
    check_labels(&spec.labels)?;
    if !(-100..=100).contains(&spec.priority) {
        return Err(Problem::invalid(format!("priority is {}, must be -100 to 100", spec.priority)));
    }
    let resources = || spec.resources.and_then(|resources| resources.first_fault());
    let fault = attempts_fault(spec.max_attempts)
        .or_else(|| time_fault("timeout_ms", spec.timeout_ms, 1))
        .or_else(|| time_fault("deadline_ms", spec.deadline_ms, 1))
        .or_else(|| time_fault("rerun_after_ms", spec.rerun_after_ms, 0))
        .or_else(|| retry_fault(&spec.retry_on))
        .or_else(|| resources().map(|fault| format!("resources.{fault}")));
    fault.map_or(Ok(()), |fault| Err(Problem::invalid(fault)))
}

/// Checks an idempotency key: 1 … 256 bytes.
pub(crate) fn check_key(key: &str) -> Result<(), Problem> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        return check_length("Idempotency-Key", key, MAX_KEY_BYTES);
    }
    Err(Problem::invalid(format!("Idempotency-Key must be 1 to {MAX_KEY_BYTES} bytes")))
}

/// Hash of what was asked for, to tell whether an idempotency key comes with the same task again. White
/// space and the order of fields do not matter, except inside of `input`.
pub(crate) fn fingerprint(spec: &TaskSpec) -> [u8; 32] {
    // A struct of strings, numbers and lists: serialising it to memory cannot fail.
    Sha256::digest(serde_json::to_vec(spec).unwrap_or_default()).into()
}

/// The durability of a task (contract section 4): what the way of submitting promises cannot be asked
/// away, and what it leaves open is `memory` unless asked otherwise.
pub(crate) fn durability(asked: Option<Durability>, promised: bool) -> Result<Durability, Problem> {
    match (asked, promised) {
        (Some(Durability::Memory), true) => Err(Problem::invalid(
            "durability \"memory\" is only for tasks that are waited for and carry no Idempotency-Key",
        )),
        (Some(Durability::Disk), _) | (None, true) => Ok(Durability::Disk),
        (Some(Durability::Memory) | None, false) => Ok(Durability::Memory),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn status(json: &str) -> u16 {
        let spec: TaskSpec = serde_json::from_str(json).unwrap();
        check_form(&spec).map_or_else(|problem| problem.status, |()| 200)
    }

    #[test]
    fn bounds_hold_at_their_edges() {
        for good in [
            r#"{"kind":"fib"}"#,
            r#"{"kind":"fib","priority":-100,"max_attempts":1,"timeout_ms":1,"deadline_ms":1,"rerun_after_ms":0}"#,
            r#"{"kind":"fib","priority":100,"max_attempts":100,"resources":{"cores":4096}}"#,
            r#"{"kind":"fib","retry_on":["timeout","task_error"],"resources":{"cores":0.01,"memory_bytes":1}}"#,
        ] {
            assert_eq!(status(good), 200, "{good}");
        }
        for bad in [
            r#"{"kind":""}"#,
            r#"{"kind":"a b"}"#,
            r#"{"kind":"fib","priority":101}"#,
            r#"{"kind":"fib","priority":-101}"#,
            r#"{"kind":"fib","max_attempts":0}"#,
            r#"{"kind":"fib","max_attempts":101}"#,
            r#"{"kind":"fib","timeout_ms":0}"#,
            r#"{"kind":"fib","deadline_ms":18446744073709551615}"#,
            r#"{"kind":"fib","retry_on":["cancelled"]}"#,
            r#"{"kind":"fib","resources":{"cores":0}}"#,
            r#"{"kind":"fib","resources":{"cores":-1}}"#,
            r#"{"kind":"fib","resources":{"cores":4097}}"#,
            r#"{"kind":"fib","labels":{"":"x"}}"#,
        ] {
            assert_eq!(status(bad), 422, "{bad}");
        }
    }

    #[test]
    fn what_is_promised_is_on_disk() {
        assert_eq!(durability(None, true).unwrap(), Durability::Disk);
        assert_eq!(durability(None, false).unwrap(), Durability::Memory);
        assert_eq!(durability(Some(Durability::Disk), false).unwrap(), Durability::Disk);
        assert_eq!(durability(Some(Durability::Memory), false).unwrap(), Durability::Memory);
        assert_eq!(durability(Some(Durability::Memory), true).unwrap_err().status, 422);
    }
}
