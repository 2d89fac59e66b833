//! From the daemon's errors to ours, and the outer bound of every call.

use crate::engine::{ContainerSpec, EngineError, Outcome};
use bollard::errors::Error;
use std::{future::Future, time::Duration};

/// Waits for an answer, but not for ever.
pub(super) async fn bounded<T>(
    what: &str,
    seconds: u64,
    call: impl Future<Output = Result<T, Error>>,
) -> Outcome<T> {
    match tokio::time::timeout(Duration::from_secs(seconds), call).await {
        Ok(answer) => answer.map_err(|error| from_daemon(what, error)),
        Err(_) => Err(EngineError::Timeout { what: what.to_owned(), seconds }),
    }
}

pub(super) fn from_daemon(what: &str, error: Error) -> EngineError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => EngineError::NotFound(message),
        Error::DockerResponseServerError { status_code: 409, message } => EngineError::NameTaken(message),
        Error::DockerResponseServerError { message, .. } => {
            EngineError::Failed { what: what.to_owned(), reason: message }
        }
        Error::RequestTimeoutError => {
            EngineError::Timeout { what: what.to_owned(), seconds: super::ACT_SECONDS }
        }
        error if is_connection(&error) => unreachable(&error),
        error => EngineError::Failed { what: what.to_owned(), reason: error.to_string() },
    }
}

fn is_connection(error: &Error) -> bool {
    matches!(
        error,
        Error::SocketNotFoundError(_)
            | Error::HyperLegacyError { .. }
            | Error::HyperResponseError { .. }
            | Error::IOError { .. }
    )
}

pub(super) fn unreachable(error: &Error) -> EngineError {
    EngineError::Unreachable { runtime: "the Docker daemon".to_owned(), reason: error.to_string() }
}

/// At the first contact whatever goes wrong means: not reachable.
pub(super) fn as_unreachable(error: EngineError) -> EngineError {
    match error {
        EngineError::Unreachable { .. } => error,
        other => {
            EngineError::Unreachable { runtime: "the Docker daemon".to_owned(), reason: other.to_string() }
        }
    }
}

/// Errors of a creation, told so that one knows what to do.
pub(super) fn of_creation(wanted: &ContainerSpec, error: EngineError) -> EngineError {
    match error {
        EngineError::NotFound(message) if message.contains("image") => EngineError::NotFound(format!(
            "the image {} (pull it first, or run `evenkeel image build` for our own)",
            wanted.image
        )),
        EngineError::NameTaken(_) => EngineError::NameTaken(wanted.name.clone()),
        other => other,
    }
}

pub(super) fn is_absent(error: &EngineError) -> bool {
    matches!(error, EngineError::NotFound(_))
}

/// The daemon's 409 beyond creation: already ended, already being removed.
pub(super) fn is_conflict(error: &EngineError) -> bool {
    matches!(error, EngineError::NameTaken(_))
}

/// Takes an error for success with this value, where it says that there is nothing left to do.
pub(super) fn fine_if<T>(outcome: Outcome<T>, fine: impl Fn(&EngineError) -> bool, value: T) -> Outcome<T> {
    match outcome {
        Err(error) if fine(&error) => Ok(value),
        other => other,
    }
}
