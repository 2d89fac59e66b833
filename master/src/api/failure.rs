//! Problems as answers.
//!
//! A handler that fails returns a [`Failure`]. The answer carries the problem as an extension, without
//! a body; the guard adds the request's id and writes the document, so that this is done in one place.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use protocol::{Problem, problem::PROBLEM_JSON};
use scheduler::effect::Refusal;

/// Names the request in the answer, in the problem document and in the log.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A problem on its way to the caller.
#[derive(Clone, Debug)]
pub(crate) struct Failure(pub(crate) Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        Self(match refusal {
            Refusal::QueueFull { retry_after_s, .. } => {
                let mut problem = Problem::queue_full(detail);
                problem.retry_after_s = Some(retry_after_s.max(1));
                problem
            }
            Refusal::KeysFull { retry_after_s, .. } => {
                let mut problem = Problem::queue_full(detail);
                problem.retry_after_s = Some(retry_after_s.max(1));
                problem
            }
            Refusal::NodesFull { .. } | Refusal::KindsFull { .. } => Problem::unavailable(detail),
            Refusal::UnknownKind { .. } => Problem::unknown_kind(detail),
            Refusal::NeverFits { .. } => Problem::never_fits(detail),
            Refusal::KeyReused => Problem::key_reused(detail),
            Refusal::NotFound => Problem::not_found(detail),
            Refusal::Gone => Problem::gone(detail),
            Refusal::Ended { .. } => Problem::conflict(detail),
            Refusal::NameInUse { .. } => Problem::name_in_use(detail),
            Refusal::StoreFailed { .. } => Problem::unavailable(detail),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the problem document, if the answer is a failure, and names the request.
pub(crate) fn finish(mut response: Response, request_id: &str) -> Response {
    if let Some(Failure(mut problem)) = response.extensions_mut().remove::<Failure>() {
        problem.request_id = request_id.to_owned();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = problem.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if problem.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // A struct of strings and a number: serialising it to memory cannot fail.
        *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
