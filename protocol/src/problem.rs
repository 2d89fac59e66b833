//! Errors over HTTP: RFC 9457 problem documents with stable types.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// Stable: `/problems/queue-full` …; a program may branch on it.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Short, the same for every problem of this type.
    pub title: Cow<'static, str>,
    /// The HTTP status, again.
    pub status: u16,
    /// What failed, why, and what to do next.
    pub detail: String,
    /// Finds the request in the master's log.
    #[serde(default)]
    pub request_id: String,
    /// Seconds for `Retry-After`; 429 and 503 always have it.
    #[serde(skip)]
    pub retry_after_s: Option<u32>,
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $slug:literal, $title:literal;)*) => {
        impl Problem {
            $($(#[$doc])* #[must_use] pub fn $name(detail: impl Into<String>) -> Self {
                Self::new($status, concat!("/problems/", $slug), $title, detail.into())
            })*
        }
    };
}

impl Problem {
    fn new(status: u16, kind: &'static str, title: &'static str, detail: String) -> Self {
        let retry_after_s = matches!(status, 429 | 503).then_some(1);
        Self {
            kind: kind.into(),
            title: title.into(),
            status,
            detail,
            request_id: String::new(),
            retry_after_s,
        }
    }

    /// The last part of the type, as `queue-full`.
    #[must_use]
    pub fn slug(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }
}

problems! {
    /// 400: not JSON, or not the JSON that is meant.
    malformed = 400, "malformed", "Malformed request";
    /// 401: no token, or one that is unknown, revoked or expired.
    unauthenticated = 401, "unauthenticated", "Token missing or not valid";
    /// 403: the token lacks the scope.
    forbidden = 403, "forbidden", "Not allowed";
    /// 403: a browser sent this from another site.
    cross_site = 403, "cross-site", "Cross-site request";
    /// 404: no such thing.
    not_found = 404, "not-found", "Not found";
    /// 405: no such method here.
    method_not_allowed = 405, "method-not-allowed", "Method not allowed";
    /// 408: the request did not arrive in time.
    request_timeout = 408, "request-timeout", "Request took too long to arrive";
    /// 409: in conflict with the present state.
    conflict = 409, "conflict", "Conflict";
    /// 409: a live node has this name.
    name_in_use = 409, "name-in-use", "Name in use";
    /// 410: it was here, and is not kept any longer.
    gone = 410, "gone", "No longer kept";
    /// 412: changed since it was read.
    precondition_failed = 412, "precondition-failed", "Changed meanwhile";
    /// 413: too many bytes.
    too_large = 413, "too-large", "Body too large";
    /// 415: the wrong media type.
    unsupported_media_type = 415, "unsupported-media-type", "Unsupported media type";
    /// 421: a `Host` that this master does not answer to.
    foreign_host = 421, "foreign-host", "Host not served here";
    /// 422: well-formed, with a wrong value.
    invalid = 422, "invalid", "Value not valid";
    /// 422: a kind that nobody has registered.
    unknown_kind = 422, "unknown-kind", "Unknown kind";
    /// 422: no node or template that is known could ever run it.
    never_fits = 422, "never-fits", "Fits no node";
    /// 422: the key was used with another body.
    key_reused = 422, "key-reused", "Idempotency key used with another body";
    /// 429: the bound of the queue is reached.
    queue_full = 429, "queue-full", "Queue full";
    /// 429: as many logs are being read as there may be.
    too_many_readers = 429, "too-many-readers", "Too many readers";
    /// 500: our fault.
    internal = 500, "internal", "Internal error";
    /// 502: the leader was lost while the request was under way, and nobody knows whether it was done.
    leader_lost = 502, "leader-lost", "Leader lost meanwhile";
    /// 503: of several masters none leads now, or none that can be reached. Nothing was done.
    no_leader = 503, "no-leader", "No leader now";
    /// 503: the master serves, by another one that leads.
    standby = 503, "standby", "Another master leads";
    /// 503: cannot be served now.
    unavailable = 503, "unavailable", "Not available now";
}
