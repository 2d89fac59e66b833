//! `sleep`: holds a slot without using CPU.

use super::Failure;
use crate::cancel::Cancel;
use protocol::kinds::sleep_input;
use serde_json::value::RawValue;
use std::time::{Duration, Instant};

/// Runs `sleep`. The result is `{}`.
///
/// # Errors
/// `bad_input`, or why it was stopped.
pub fn run(input: &RawValue, cancel: &Cancel) -> Result<String, Failure> {
    let input = sleep_input(input)?;
    cancel.sleep_until(Instant::now() + Duration::from_millis(input.ms))?;
    Ok("{}".to_owned())
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

    #[test]
    fn it_sleeps_as_long_as_told() {
        let start = Instant::now();
        assert_eq!(run(&json(r#"{"ms":30}"#), &Cancel::unlimited()).unwrap(), "{}");
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn it_ends_at_its_timeout_and_refuses_bad_input() {
        let cancel = Cancel::new(Instant::now(), Some(Duration::from_millis(10)), None);
        let stopped = run(&json(r#"{"ms":3600000}"#), &cancel).unwrap_err();
        assert_eq!(stopped, Failure::Stopped(Stop::Timeout));
        for bad in [r#"{"ms":-1}"#, r#"{"ms":86400001}"#, r#"{"seconds":1}"#] {
            assert_eq!(code(run(&json(bad), &Cancel::unlimited())), ErrorCode::BadInput);
        }
    }
}
