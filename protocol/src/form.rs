//! The form of what callers send: bounds that hold whatever it is meant for. Plain functions of values.

use crate::{
    Problem,
    task::{
        Durability, MAX_KEY_BYTES, MAX_LABEL_CHARS, MAX_LABELS, TaskSpec, attempts_fault, retry_fault,
        time_fault,
    },
};
use std::collections::BTreeMap;

/// Whether this is a name of a node, pool or kind: 1 … 128 of `[A-Za-z0-9._-]`.
///
/// # Errors
/// 422, naming the field.
pub fn check_name(field: &str, name: &str) -> Result<(), Problem> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=128).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    let shown: String = name.chars().take(140).collect();
    Err(Problem::invalid(format!("{field} is {shown:?}, must be 1 to 128 of A-Z a-z 0-9 . _ -")))
}

/// Refuses text that is longer than `most` characters.
///
/// # Errors
/// 422, naming the field.
pub fn check_length(field: &str, text: &str, most: usize) -> Result<(), Problem> {
    if text.chars().count() <= most {
        return Ok(());
    }
    Err(Problem::invalid(format!("{field} is longer than {most} characters")))
}

/// Refuses labels past their number and lengths, and with NUL, which not every database can keep in text.
///
/// # Errors
/// 422, naming the field.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    if labels.len() > MAX_LABELS {
        return Err(Problem::invalid(format!(
            "labels has {} entries, must be at most {MAX_LABELS}",
            labels.len()
        )));
    }
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Problem::invalid("labels has an empty key"));
        }
        check_length("a key of labels", key, MAX_LABEL_CHARS)?;
        check_length("a value of labels", value, MAX_LABEL_CHARS)?;
        if key.contains('\0') || value.contains('\0') {
            return Err(Problem::invalid("labels must not hold NUL"));
        }
    }
    Ok(())
}

/// Checks the form of a task: what holds for every kind.
///
/// # Errors
/// 422, naming the field.
pub fn check_form(spec: &TaskSpec) -> Result<(), Problem> {
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

/// Checks an idempotency key: 1 … 256 bytes, none of them NUL.
///
/// # Errors
/// 422, naming the field.
pub fn check_key(key: &str) -> Result<(), Problem> {
    if key.contains('\0') {
        return Err(Problem::invalid("Idempotency-Key must not hold NUL"));
    }
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        return check_length("Idempotency-Key", key, MAX_KEY_BYTES);
    }
    Err(Problem::invalid(format!("Idempotency-Key must be 1 to {MAX_KEY_BYTES} bytes")))
}

/// The durability of a task (contract section 4): what the way of submitting promises cannot be asked
/// away, and what it leaves open is `memory` unless asked otherwise.
///
/// # Errors
/// 422, naming the field.
pub fn durability(asked: Option<Durability>, promised: bool) -> Result<Durability, Problem> {
    match (asked, promised) {
        (Some(Durability::Memory), true) => Err(Problem::invalid(
            "durability \"memory\" is only for tasks that are waited for and carry no Idempotency-Key",
        )),
        (Some(Durability::Disk), _) | (None, true) => Ok(Durability::Disk),
        (Some(Durability::Memory) | None, false) => Ok(Durability::Memory),
    }
}
