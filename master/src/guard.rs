//! The one place that decides whether a request may go on.
//!
//! In this order, so that each check protects the ones after it: `Host` (421), cross-site (403), path
//! (404) and method (405), token (401) and scope (403). Then the handler runs; if it panics, the caller
//! gets a 500 that names the request, and the panic goes no further. What a token began ends when the token does:
//! a request that is still waited for with a 401, an answer that is still being written by cutting it.

use crate::{
    api::{
        app::App,
        failure::{Failure, finish},
    },
    auth::{self, Access, Principal},
    connections::Caller,
    hosts,
};
use axum::{
    body::{Body, HttpBody as _},
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::{FutureExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use protocol::{NodeId, Problem};
use std::panic::AssertUnwindSafe;
use tokio_util::sync::CancellationToken;

/// Said of what a token began and could not finish.
const TOKEN_ENDED: &str = "the token was revoked, or has expired, while this was going on";

/// Names a request in its answer and in the log.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// Wraps every request, known path or not.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let request_id = uuid::Uuid::now_v7().simple().to_string();
    let (mut parts, body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let has_coding = parts.headers.contains_key(header::TRANSFER_ENCODING);
    let response = match admit(&app, &parts).await {
        Err(Refused { problem, allow }) => {
            let mut response = Failure(problem).into_response();
            if let Some(allow) = allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
        Ok(principal) => {
            parts.extensions.insert(RequestId(request_id.clone()));
            parts.extensions.insert(app.intake().clone());
            if let (Some(_), Some(caller)) = (&principal, parts.extensions.get::<Caller>()) {
                caller.is_known();
            }
            // Where nothing is asked of the caller, nobody asks who it is.
            let over = principal.as_ref().and_then(Principal::over).cloned();
            parts.extensions.insert(principal.unwrap_or(Principal::Anyone));
            let handled = AssertUnwindSafe(next.run(Request::from_parts(parts, body))).catch_unwind();
            match unless(over.as_ref(), handled).await {
                Ok(response) => ending_with(over, TOKEN_ENDED, response),
                Err(panic) => {
                    let what = panic_text(panic.as_ref());
                    tracing::error!(request_id, %method, path, what, "a handler panicked");
                    Failure(Problem::internal(
                        "this is our fault; the master's log has more under the request's id",
                    ))
                    .into_response()
                }
            }
        }
    };
    let mut response = finish(as_problem(response), &request_id);
    if has_coding {
        // It may have had a Content-Length too, which hyper drops as RFC 9112 section 6.1 asks for; that also
        // asks to close, so that nobody before us who measures by the other header smuggles a request in.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    tracing::debug!(request_id, %method, path, status = response.status().as_u16(), "answered");
    response
}

/// What the handler answers, or a 401 if the token ends before. Waiting costs nothing until the handler does.
async fn unless<E>(
    over: Option<&CancellationToken>,
    handled: impl Future<Output = Result<Response, E>>,
) -> Result<Response, E> {
    let Some(over) = over else { return handled.await };
    tokio::select! {
        biased;
        response = handled => response,
        () = over.cancelled() => {
            Ok(Failure(Problem::unauthenticated(TOKEN_ENDED)).into_response())
        }
    }
}

/// The response, cut off when `over` is cancelled if it is a stream; `why` is said then.
pub(crate) fn ending_with(
    over: Option<CancellationToken>,
    why: &'static str,
    response: Response,
) -> Response {
    let Some(over) = over.filter(|_| response.body().size_hint().exact().is_none()) else { return response };
    response.map(|body| {
        let parts = (body.into_data_stream(), Box::pin(over.cancelled_owned()));
        Body::from_stream(futures_util::stream::unfold(parts, move |(mut body, mut over)| async move {
            let part = tokio::select! {
                () = &mut over => Err(axum::Error::new(why)),
                part = body.next() => part?,
            };
            Some((part, (body, over)))
        }))
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// An error that came from the framework and not from a handler is made a problem too.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error())
        || response.extensions().get::<Failure>().is_some()
    {
        return response;
    }
    let problem = match status {
        StatusCode::NOT_FOUND => Problem::not_found("there is no such path"),
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large("the body is too large"),
        status if status.is_server_error() => Problem::internal("this is our fault"),
        _ => Problem::malformed("the request cannot be read"),
    };
    Failure(problem).into_response()
}

struct Refused {
    problem: Problem,
    allow: Option<String>,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, allow: None }
    }
}

async fn admit(app: &App, request: &Parts) -> Result<Option<Principal>, Refused> {
    let host = app.hosts().check(&request.uri, &request.headers)?;
    hosts::check_same_site(&host, &request.headers)?;
    let path = request.uri.path();
    let Some(matched) = request.extensions.get::<MatchedPath>() else {
        return Err(Problem::not_found(format!("there is no path {:?}", shown(path))).into());
    };
    let matched = matched.as_str();
    let Some(access) = app.routes().access(matched, &request.method) else {
        let allow = app.routes().allow(matched);
        let problem = Problem::method_not_allowed(format!("this path takes {allow}"));
        return Err(Refused { problem, allow: Some(allow) });
    };
    if access == Access::Open {
        return Ok(None);
    }
    let principal = match bearer(&request.headers)? {
        Some(token) => app.identify(token).await.map_err(|failure| failure.0)?,
        None => None,
    };
    let principal = principal.or_else(|| app.is_open().then_some(Principal::Anyone));
    auth::check(access, principal.as_ref(), path_node(matched, path))?;
    Ok(principal)
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

/// The bearer token, if the request carries one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::unauthenticated("there is more than one Authorization header"));
    }
    let token = value.to_str().ok().and_then(|text| text.split_once(' '));
    match token {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(Problem::unauthenticated("Authorization must be `Bearer` and a token")),
    }
}

/// The node that a path below `/v1/nodes/{id}` names.
fn path_node(matched: &str, path: &str) -> Option<NodeId> {
    matched.starts_with("/v1/nodes/{id}").then(|| path.split('/').nth(3)?.parse().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_read_from_one_header_only() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers).unwrap(), None);
        headers.insert(header::AUTHORIZATION, "bearer ek_x".parse().unwrap());
        assert_eq!(bearer(&headers).unwrap(), Some("ek_x"));
        headers.append(header::AUTHORIZATION, "Bearer ek_y".parse().unwrap());
        assert_eq!(bearer(&headers).unwrap_err().status, 401);
        headers.insert(header::AUTHORIZATION, "Basic eDp5".parse().unwrap());
        assert_eq!(bearer(&headers).unwrap_err().status, 401);
    }

    #[test]
    fn the_node_of_a_path_is_read_from_its_place() {
        let id = uuid::Uuid::from_u128(7);
        let path = format!("/v1/nodes/{id}/report");
        assert_eq!(path_node("/v1/nodes/{id}/report", &path), Some(NodeId(id)));
        assert_eq!(path_node("/v1/nodes/{id}/report", "/v1/nodes/x/report"), None);
        assert_eq!(path_node("/v1/tasks/{id}", &format!("/v1/tasks/{id}")), None);
    }
}
