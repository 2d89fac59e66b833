//! The kinds of work that a node runs.
//!
//! - [`fib`], [`sum`], [`sleep`], [`burn`]: built in, computed on a slot's own thread; each looks at its
//!   [`Cancel`] as it goes;
//! - [`command`]: programs, for the kind `run` and for own kinds; [`strays`] finds what they leave behind.
//!
//! All inputs are checked by the functions of `protocol::kinds`, with which the master checked them.

mod blame;
pub mod burn;
mod child;
pub mod command;
mod fence;
pub mod fib;
mod launch;
mod pipes;
mod removal;
pub mod sleep;
pub mod strays;
pub mod sum;
mod work_directory;

pub(crate) use work_directory::remove_spare;
pub use work_directory::tidy_between_commands;

use crate::cancel::{Cancel, Stop};
use protocol::{
    kinds::InputError,
    task::{ErrorCode, TaskError},
};
use serde_json::value::RawValue;

/// Most characters of an error's message.
pub const MAX_MESSAGE_CHARS: usize = 4_096;

/// Why an attempt has no good result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was told to stop.
    Stopped(Stop),
    /// The node cannot run it now, for this reason (no room for another process, a full disk): it is not the
    /// task's fault.
    NotHere(String),
    /// It failed. `result` is there for `run` only: the output of the program that failed.
    Failed {
        /// What went wrong.
        error: TaskError,
        /// JSON text.
        result: Option<String>,
    },
}

impl Failure {
    /// A failure without a result; a message that is too long is cut.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        let message = message.as_ref();
        let message = match message.char_indices().nth(MAX_MESSAGE_CHARS) {
            Some((at, _)) => &message[..at],
            None => message,
        };
        Self::Failed { error: TaskError { code, message: message.to_owned() }, result: None }
    }

    /// The work itself failed.
    #[must_use]
    pub fn task_error(message: impl AsRef<str>) -> Self {
        Self::new(ErrorCode::TaskError, message)
    }
}

/// A result of `bytes` bytes or more is over the bound.
pub(crate) fn too_large(bytes: u64, most_bytes: usize) -> Failure {
    let message = format!("the result has {bytes} bytes, at most {most_bytes} are kept: store it elsewhere");
    Failure::new(ErrorCode::ResultTooLarge, message)
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        Self::new(ErrorCode::BadInput, error.to_string())
    }
}

/// Runs a built-in kind on this thread; `None` if it is none of those that are computed here.
///
/// The result is JSON text.
#[must_use]
pub fn run_built_in(kind: &str, input: &RawValue, cancel: &Cancel) -> Option<Result<String, Failure>> {
    Some(match kind {
        "fib" => fib::run(input, cancel),
        "sum" => sum::run(input, cancel),
        "sleep" => sleep::run(input, cancel),
        "burn" => burn::run(input, cancel),
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
pub(crate) mod testing {
    use super::*;

    /// An input from JSON text.
    pub(crate) fn json(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    /// The error code of a run that must fail.
    pub(crate) fn code(result: Result<String, Failure>) -> ErrorCode {
        match result {
            Err(Failure::Failed { error, .. }) => error.code,
            other => panic!("not a failure: {other:?}"),
        }
    }
}
