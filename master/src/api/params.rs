//! Small values in paths, queries and headers.

pub(crate) use protocol::form::{check_labels, check_length, check_name};

use super::failure::Failure;
use http::HeaderMap;
use protocol::{Problem, task::MAX_WAIT_MS};
use std::str::FromStr;

/// The id in a path. One that cannot be an id names nothing: 404.
pub(crate) fn id<T: FromStr>(text: &str, what: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| Problem::not_found(format!("there is no {what} {text:?}")).into())
}

/// How long the caller wants to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitFor {
    /// 0 … [`MAX_WAIT_MS`].
    pub(crate) ms: u64,
    /// Whether it came as `Prefer`, which is then answered by `Preference-Applied`.
    pub(crate) preferred: bool,
}

/// `?wait=30s`, or `Prefer: wait=30` (seconds, RFC 7240); the query wins.
pub(crate) fn wait(query: Option<&str>, headers: &HeaderMap) -> Result<Option<WaitFor>, Failure> {
    let (ms, preferred) = if let Some(text) = query {
        let ms =
            service::duration::parse_ms(text).map_err(|error| Problem::invalid(format!("wait: {error}")))?;
        (ms, false)
    } else if let Some(ms) = prefer_wait_ms(headers) {
        (ms, true)
    } else {
        return Ok(None);
    };
    if ms > MAX_WAIT_MS {
        let most = MAX_WAIT_MS / 1_000;
        return Err(Problem::invalid(format!(
            "wait is {ms} ms, must be at most {most}s; ask again after it"
        ))
        .into());
    }
    Ok(Some(WaitFor { ms, preferred }))
}

// Preferences that cannot be read are ignored, as RFC 7240 section 2 asks.
fn prefer_wait_ms(headers: &HeaderMap) -> Option<u64> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .find_map(|part| {
            let seconds = part.trim().strip_prefix("wait=")?.trim_matches('"');
            let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
            // A number that none of ours holds is a number all the same: too long.
            is_number.then(|| seconds.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1_000))
        })
}

/// A flag of a query: absent or 0 is no, 1 is yes.
pub(crate) fn flag(name: &str, value: Option<u8>) -> Result<bool, Failure> {
    match value {
        None | Some(0) => Ok(false),
        Some(1) => Ok(true),
        Some(other) => Err(Problem::invalid(format!("{name} is {other}, must be 0 or 1")).into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_query_wins_over_prefer_and_both_are_bounded() {
        let mut headers = HeaderMap::new();
        headers.insert("prefer", "respond-async, wait=30".parse().unwrap());
        assert_eq!(wait(None, &headers).unwrap(), Some(WaitFor { ms: 30_000, preferred: true }));
        assert_eq!(wait(Some("1s"), &headers).unwrap(), Some(WaitFor { ms: 1_000, preferred: false }));
        assert_eq!(wait(Some("301s"), &headers).unwrap_err().0.status, 422);
        headers.insert("prefer", "wait=301".parse().unwrap());
        assert_eq!(wait(None, &headers).unwrap_err().0.status, 422);
        headers.insert("prefer", "wait=99999999999999999999999".parse().unwrap());
        assert_eq!(wait(None, &headers).unwrap_err().0.status, 422);
        headers.insert("prefer", "wait=soon".parse().unwrap());
        assert_eq!(wait(None, &headers).unwrap(), None);
    }
}
