//! Reading what a caller sent: media type, size, time, depth, JSON, query.

use super::{
    failure::Failure,
    intake::{Held, Intake},
};
use axum::{body::Body, extract::Query};
use http::{HeaderMap, Uri, header, request::Parts};
use http_body_util::BodyExt as _;
use protocol::{
    Problem,
    json::{check_depth, classify},
    task::MAX_BODY_BYTES,
};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long a JSON body may take to arrive.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// What is still read of a body that is too large, so that a client that writes it all before it reads
/// sees the answer and not a broken connection.
const DRAIN_BYTES: usize = 8 * MAX_BODY_BYTES;

/// Checks that the body is of this media type; parameters do not matter.
pub(crate) fn check_media_type(headers: &HeaderMap, wanted: &'static str) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = given.map(|text| text.split(';').next().unwrap_or_default().trim());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case(wanted)) {
        let given = given.unwrap_or("nothing");
        return Err(Problem::unsupported_media_type(format!("Content-Type is {given}, must be {wanted}")));
    }
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Err(Problem::unsupported_media_type("Content-Encoding is not understood; send it plain"));
    }
    Ok(())
}

/// Reads a JSON body.
pub(crate) async fn json<T: DeserializeOwned>(parts: &Parts, body: Body) -> Result<T, Failure> {
    check_media_type(&parts.headers, "application/json")?;
    whole(parts, body, parse).await
}

/// Reads a JSON body; an absent one, whatever its media type, is the default.
pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(
    parts: &Parts,
    body: Body,
) -> Result<T, Failure> {
    let read = |bytes: &[u8]| {
        if bytes.is_empty() {
            return Ok(T::default());
        }
        check_media_type(&parts.headers, "application/json")?;
        parse(bytes)
    };
    whole(parts, body, read).await
}

/// Reads the whole body, within [`MAX_BODY_BYTES`], [`BODY_DEADLINE`] and the [`Intake`]; it is let go of
/// before the answer to it is waited for.
async fn whole<T>(
    parts: &Parts,
    body: Body,
    read: impl FnOnce(&[u8]) -> Result<T, Problem>,
) -> Result<T, Failure> {
    let intake = parts.extensions.get::<Intake>().cloned().unwrap_or_default();
    let mut held = intake.begin();
    let collected = tokio::time::timeout(BODY_DEADLINE, collect(body, &mut held)).await;
    let bytes = collected.map_err(|_| {
        let seconds = BODY_DEADLINE.as_secs();
        Problem::request_timeout(format!("the body did not arrive within {seconds} s"))
    })??;
    Ok(read(&bytes)?)
}

async fn collect(mut body: Body, held: &mut Held) -> Result<Vec<u8>, Problem> {
    let mut collected = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::malformed(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= MAX_BODY_BYTES {
            if !held.hold(seen) {
                return Err(no_room());
            }
            collected.extend_from_slice(&data);
        } else if seen > DRAIN_BYTES {
            break;
        }
    }
    if seen > MAX_BODY_BYTES {
        return Err(Problem::too_large(format!("the body is over {MAX_BODY_BYTES} bytes")));
    }
    Ok(collected)
}

/// Others hold too much.
pub(crate) fn no_room() -> Problem {
    Problem::unavailable(
        "too many large bodies are on their way to the master; send this one again in a moment",
    )
}

/// Reads JSON: 400 if it is not JSON or too deep, 422 naming the place if it is not the JSON that is meant.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Problem::malformed(format!("the body is not UTF-8: {error}")))?;
    check_depth(text)?;
    serde_json::from_str(text).map_err(|error| classify(text, &error))
}

/// Reads the query; unknown names and wrong values are 422.
pub(crate) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    let Query(query) = Query::<T>::try_from_uri(uri)
        .map_err(|rejection| Problem::invalid(format!("query: {}", rejection.body_text())))?;
    Ok(query)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code, reason = "only parsed")]
        cores: f64,
    }

    fn status(text: &str) -> u16 {
        parse::<Sample>(text.as_bytes()).map_or_else(|problem| problem.status, |_| 200)
    }

    #[test]
    fn what_is_not_json_is_400_and_what_is_the_wrong_json_is_422() {
        assert_eq!(status(r#"{"cores":1.5}"#), 200);
        for malformed in ["", "{", r#"{"cores":NaN}"#, r#"{"cores":1}x"#, r#"{"cores":"a",}"#, "\u{0}"] {
            assert_eq!(status(malformed), 400, "{malformed:?}");
        }
        for invalid in [r#"{"cores":1e999}"#, r#"{"cores":"1"}"#, r#"{"cores":1,"x":2}"#, "[]", "{}", "null"]
        {
            assert_eq!(status(invalid), 422, "{invalid:?}");
        }
        assert_eq!(parse::<Sample>(b"{\"cores\":\"\xff\"}").unwrap_err().status, 400);
    }

    #[test]
    fn what_nests_too_deep_is_400() {
        assert_eq!(check_depth(&"[".repeat(protocol::json::MAX_DEPTH + 1)).unwrap_err().status, 400);
    }

    #[test]
    fn an_unknown_field_is_named() {
        let problem = parse::<Sample>(br#"{"cores":1,"sores":2}"#).unwrap_err();
        assert!(problem.detail.contains("sores"), "{}", problem.detail);
    }
}
