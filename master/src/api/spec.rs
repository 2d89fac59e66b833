//! The form of a submitted task: bounds that hold for every kind, and which durability it has.

pub(crate) use protocol::form::{check_form, check_key, durability};

use super::{app::App, failure::Failure};
use protocol::task::TaskSpec;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// Checks a task: first its form, then its input against its kind.
pub(crate) async fn check(app: &App, spec: &TaskSpec) -> Result<(), Failure> {
    check_form(spec)?;
    check_input(app, spec).await
}

/// Checks the input of a task against its kind.
pub(crate) async fn check_input(app: &App, spec: &TaskSpec) -> Result<(), Failure> {
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

/// Hash of what was asked for, to tell whether an idempotency key comes with the same task again. White
/// space and the order of fields do not matter, except inside of `input`.
pub(crate) fn fingerprint(spec: &TaskSpec) -> [u8; 32] {
    // A struct of strings, numbers and lists: serialising it to memory cannot fail.
    Sha256::digest(serde_json::to_vec(spec).unwrap_or_default()).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use protocol::task::Durability;

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
