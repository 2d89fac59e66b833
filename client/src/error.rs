//! What can go wrong, and what to do next.

use protocol::Problem;
use session::retry::Outcome;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// No connection.
    #[error("no connection to the master at {url}: {why}; is it running there, and is the URL right?")]
    Unreachable {
        /// The last URL that was tried.
        url: String,
        /// Why.
        why: String,
    },
    /// No connection that can be trusted.
    #[error("no trusted connection to the master at {url}: {why}")]
    Untrusted {
        /// The last URL that was tried.
        url: String,
        /// Why, and what to do.
        why: String,
    },
    /// Connected, but no whole answer in time.
    #[error("the master at {url} did not answer within {after_ms} ms; it may be overloaded or stopped")]
    Timeout {
        /// The last URL that was tried.
        url: String,
        /// The bound.
        after_ms: u64,
    },
    /// The connection broke before the whole answer was there: whether the request was carried out is not
    /// known.
    #[error(
        "the connection to the master at {url} broke: {why}; whether the request was carried out is not known"
    )]
    Broken {
        /// The last URL that was tried.
        url: String,
        /// Why.
        why: String,
    },
    /// The master says no, and why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The answer is not one of the contract's.
    #[error(
        "the answer of {url} (status {status}) is not one of Evenkeel's: {why}; is this the URL of a master of this version?"
    )]
    Answer {
        /// Who answered.
        url: String,
        /// HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
    /// The batch stream is over: no more lines can be sent.
    #[error("the batch stream has ended; what was accepted goes on, look at the answers read so far")]
    BatchClosed,
}

/// Kinds of errors, for those who decide by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// No master could be reached, or none would serve: exit code 3.
    Unreachable,
    /// 401 or 403: exit code 4.
    NotAuthorised,
    /// The request is wrong, or names what is not there: exit code 2.
    BadInput,
    /// Anything else: exit code 1.
    Other,
}

impl Error {
    /// The kind of this error.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. } => ErrorClass::Unreachable,
            Self::Config(_) => ErrorClass::BadInput,
            Self::Answer { .. } | Self::BatchClosed => ErrorClass::Other,
            Self::Problem(problem) => match problem.status {
                401 | 403 => ErrorClass::NotAuthorised,
                400 | 404 | 405 | 410 | 413 | 415 | 421 | 422 => ErrorClass::BadInput,
                // Of several masters the leader was lost meanwhile, or there is none.
                502 | 503 => ErrorClass::Unreachable,
                _ => ErrorClass::Other,
            },
        }
    }

    /// The exit code of a command that ends on this error (contract section 1).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.class() {
            ErrorClass::Unreachable => 3,
            ErrorClass::NotAuthorised => 4,
            ErrorClass::BadInput => 2,
            ErrorClass::Other => 1,
        }
    }

    /// The HTTP status, if there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The problem document, if there was one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Unreachable { .. } | Self::Untrusted { .. } => Outcome::NotConnected,
            Self::Timeout { .. } | Self::Broken { .. } => Outcome::Broken,
            Self::Problem(problem) => {
                let retry_after_ms = problem.retry_after_s.map(|s| u64::from(s) * 1_000);
                Outcome::of_status(problem.status, true, retry_after_ms)
            }
            Self::Answer { status, .. } => Outcome::of_status(*status, false, None),
            Self::Config(_) | Self::BatchClosed => Outcome::Final,
        }
    }

    /// An error of the HTTP client, with the whole chain of causes in one line.
    pub(crate) fn of_reqwest(url: &reqwest::Url, error: &reqwest::Error, after_ms: u64) -> Self {
        let url = url.origin().ascii_serialization();
        if error.is_timeout() && !error.is_connect() {
            return Self::Timeout { url, after_ms };
        }
        if let Some(why) = crate::tls::explain(error) {
            return if error.is_connect() { Self::Untrusted { url, why } } else { Self::Broken { url, why } };
        }
        let mut why = String::new();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let text = error.to_string();
            if !why.ends_with(&text) {
                why = if why.is_empty() { text } else { format!("{why}: {text}") };
            }
            cause = error.source();
        }
        if why.is_empty() {
            why = error.to_string();
        }
        if error.is_connect() { Self::Unreachable { url, why } } else { Self::Broken { url, why } }
    }
}
