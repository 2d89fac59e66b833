//! One module a command: its arguments, and what it does.

pub(crate) mod batch;
pub(crate) mod burn;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod image;
mod input;
pub(crate) mod kinds;
pub(crate) mod manager;
pub(crate) mod master;
pub(crate) mod node;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod task;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod update;
pub(crate) mod waiting;

/// A label as `key=value`.
///
/// # Errors
/// What it should look like.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label; write it as key=value")),
    }
}

/// Cores, above 0 and at most 4,096.
///
/// # Errors
/// What it should be.
pub(crate) fn parse_cores(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cores) if cores > 0.0 && cores <= protocol::node::MAX_CORES => Ok(cores),
        _ => Err(format!("{text:?} is not a number of cores: above 0, at most 4096, as 0.5")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn labels_and_cores() {
        assert_eq!(parse_label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert!(parse_label("a").is_err() && parse_label("=b").is_err());
        assert_eq!(parse_cores("0.25").unwrap(), 0.25);
        for wrong in ["0", "-1", "NaN", "inf", "4097", "x"] {
            assert!(parse_cores(wrong).is_err(), "{wrong}");
        }
    }
}
