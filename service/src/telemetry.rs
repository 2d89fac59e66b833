//! Logs: to standard error, because standard output is data.

use std::io::{self, IsTerminal};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("{filter:?} is not a log level: {why}; write error, warn, info, debug or trace")]
pub struct TelemetryError {
    filter: String,
    why: String,
}

/// Sets up logging for the process. `filter` is a level (`info`) or a list as `info,master=debug`. Colours
/// are used if `colour` says so, for text. Called again it changes nothing.
///
/// # Errors
/// [`TelemetryError`] if the filter cannot be read.
pub fn init(filter: &str, format: Format, colour: bool) -> Result<(), TelemetryError> {
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TelemetryError { filter: filter.to_owned(), why: error.to_string() })?;
    let registry = tracing_subscriber::registry().with(parsed);
    // An error only says that it was set up before.
    let _ = match format {
        Format::Text => {
            let layer = fmt::layer().with_writer(io::stderr).with_ansi(colour).with_target(false);
            registry.with(layer).try_init()
        }
        Format::Json => registry.with(fmt::layer().json().with_writer(io::stderr)).try_init(),
    };
    Ok(())
}

/// Whether standard error takes colours when nobody says: a terminal, and `NO_COLOR` (no-color.org) is not
/// set.
#[must_use]
pub fn stderr_takes_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_level_says_which_there_are() {
        let error = init("info,=,=", Format::Text, false).unwrap_err().to_string();
        assert!(error.contains("error, warn, info, debug or trace"), "{error}");
        init("debug", Format::Json, false).unwrap();
        init("warn", Format::Text, false).unwrap();
    }
}
