//! `burn`: uses up thread CPU time.

use super::Failure;
use crate::{burn::spin, cancel::Cancel, thread_clock::thread_cpu};
use protocol::kinds::burn_input;
use serde_json::value::RawValue;
use std::time::Duration;

/// Runs `burn`. The result is `{"cpu_ms":…}`, what was really used: at least what was asked for.
///
/// # Errors
/// `bad_input`, or why it was stopped.
pub fn run(input: &RawValue, cancel: &Cancel) -> Result<String, Failure> {
    let wanted = Duration::from_millis(burn_input(input)?.cpu_ms);
    let start = thread_cpu();
    loop {
        cancel.check()?;
        let used = thread_cpu().saturating_sub(start);
        if used >= wanted {
            return Ok(format!(r#"{{"cpu_ms":{}}}"#, used.as_millis()));
        }
        spin();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        cancel::Stop,
        kinds::testing::{code, json},
    };
    use protocol::task::ErrorCode;
    use std::time::Instant;

    #[test]
    fn it_uses_the_cpu_time_asked_for() {
        let before = thread_cpu();
        let result = run(&json(r#"{"cpu_ms":50}"#), &Cancel::unlimited()).unwrap();
        assert!(thread_cpu() - before >= Duration::from_millis(50));
        let result: serde_json::Value = serde_json::from_str(&result).unwrap();
        assert!((50..1_000).contains(&result["cpu_ms"].as_u64().unwrap()));
    }

    #[test]
    fn it_ends_at_its_deadline_and_refuses_bad_input() {
        let cancel = Cancel::new(Instant::now(), None, Some(Duration::from_millis(10)));
        let stopped = run(&json(r#"{"cpu_ms":3600000}"#), &cancel).unwrap_err();
        assert_eq!(stopped, Failure::Stopped(Stop::Deadline));
        assert_eq!(code(run(&json(r#"{"cpu_ms":1e3}"#), &Cancel::unlimited())), ErrorCode::BadInput);
    }
}
