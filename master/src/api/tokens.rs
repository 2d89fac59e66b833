//! `/v1/tokens`.

use super::{app::App, body, failure::Failure, params};
use crate::auth::Principal;
use axum::{
    Extension, Json,
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header};
use protocol::{
    Problem,
    auth::{Scope, TokenCreated, TokenInfo, TokenRequest},
    task::Page,
};

/// A join token for one use lives this long unless it says otherwise, and at most this long when a
/// manager mints it.
const SINGLE_USE_MS: u64 = 10 * 60_000;
/// A join token that is not for one use lives this long unless it says otherwise.
const JOIN_MS: u64 = 24 * 3_600_000;
/// Longest life that can be asked for: ten years.
const MAX_TTL_MS: u64 = 10 * 366 * 86_400_000;

/// `POST /v1/tokens`.
pub(crate) async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let mut wanted: TokenRequest = body::json(&parts, body).await?;
    wanted.scopes.sort_unstable();
    wanted.scopes.dedup();
    check_form(&wanted)?;
    let ttl_ms = life(&wanted, principal.has(&[Scope::Admin]))?;
    let (token, hash) = app.new_secret()?;
    let created_at = app.now().wall;
    let info = TokenInfo {
        id: uuid::Uuid::now_v7(),
        scopes: wanted.scopes,
        created_at,
        expires_at: ttl_ms.map(|ttl_ms| created_at.plus_ms(ttl_ms)),
        single_use: wanted.single_use,
        node_name: wanted.node_name,
        note: wanted.note,
    };
    app.add_token(hash, &info).await?;
    let location = HeaderValue::from_str(&format!("/v1/tokens/{}", info.id));
    let mut response =
        (StatusCode::CREATED, Json(TokenCreated { token: token.expose().to_owned(), info })).into_response();
    // The answer holds a secret.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

fn check_form(wanted: &TokenRequest) -> Result<(), Problem> {
    if wanted.scopes.is_empty() {
        return Err(Problem::invalid("scopes is empty; name at least one"));
    }
    params::check_length("note", &wanted.note, 256)?;
    let only_node = wanted.scopes == [Scope::Node];
    if (wanted.single_use || wanted.node_name.is_some()) && !only_node {
        return Err(Problem::invalid("single_use and node_name are only for tokens of scope node alone"));
    }
    if let Some(name) = &wanted.node_name {
        params::check_name("node_name", name)?;
    }
    match wanted.ttl_ms {
        Some(ttl_ms) if !(1..=MAX_TTL_MS).contains(&ttl_ms) => {
            Err(Problem::invalid(format!("ttl_ms is {ttl_ms}, must be 1 to {MAX_TTL_MS}")))
        }
        _ => Ok(()),
    }
}

/// How long the token lives. Who is not `admin` is a manager, which mints join tokens for one use only.
fn life(wanted: &TokenRequest, admin: bool) -> Result<Option<u64>, Problem> {
    let only_node = wanted.scopes == [Scope::Node];
    let ttl_ms = match (wanted.ttl_ms, wanted.single_use, only_node) {
        (Some(ttl_ms), _, _) => Some(ttl_ms),
        (None, true, _) => Some(SINGLE_USE_MS),
        (None, false, true) => Some(JOIN_MS),
        (None, false, false) => None,
    };
    if admin {
        return Ok(ttl_ms);
    }
    if !only_node || !wanted.single_use || ttl_ms.is_none_or(|ttl_ms| ttl_ms > SINGLE_USE_MS) {
        return Err(Problem::forbidden(format!(
            "scope manager mints only tokens of scope node for one use, valid for at most {SINGLE_USE_MS} ms"
        )));
    }
    Ok(ttl_ms)
}

/// `GET /v1/tokens`.
pub(crate) async fn list(State(app): State<App>) -> Json<Page<TokenInfo>> {
    Json(Page { items: app.tokens().list(app.now().wall), next_cursor: None })
}

/// `GET /v1/tokens/current`: the token that the caller has.
pub(crate) async fn current(Extension(principal): Extension<Principal>) -> Result<Json<TokenInfo>, Failure> {
    match principal {
        Principal::Token { info, .. } => Ok(Json((*info).clone())),
        Principal::Anyone | Principal::Node(_) => {
            Err(Problem::not_found("this master serves without tokens, so there is none to tell of").into())
        }
    }
}

/// `DELETE /v1/tokens/{id}`.
pub(crate) async fn revoke(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let id: uuid::Uuid = params::id(&id, "token")?;
    app.remove_token(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn wanted(json: &str) -> TokenRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_manager_mints_join_tokens_for_one_use_and_nothing_else() {
        let life_of = |json, admin| life(&wanted(json), admin).map_err(|problem| problem.status);
        assert_eq!(life_of(r#"{"scopes":["node"],"single_use":true}"#, false), Ok(Some(SINGLE_USE_MS)));
        for bad in [
            r#"{"scopes":["node"]}"#,
            r#"{"scopes":["admin"]}"#,
            r#"{"scopes":["node","submit"],"single_use":true}"#,
            r#"{"scopes":["node"],"single_use":true,"ttl_ms":600001}"#,
        ] {
            assert_eq!(life_of(bad, false), Err(403), "{bad}");
        }
        assert_eq!(life_of(r#"{"scopes":["node"]}"#, true), Ok(Some(JOIN_MS)));
        assert_eq!(life_of(r#"{"scopes":["submit"]}"#, true), Ok(None));
    }

    #[test]
    fn single_use_and_node_name_are_only_for_join_tokens() {
        let status = |json| check_form(&wanted(json)).map_or_else(|problem| problem.status, |()| 200);
        assert_eq!(status(r#"{"scopes":["node"],"single_use":true,"node_name":"n-1"}"#), 200);
        for bad in [
            r#"{"scopes":[]}"#,
            r#"{"scopes":["submit"],"single_use":true}"#,
            r#"{"scopes":["node","read"],"node_name":"n"}"#,
            r#"{"scopes":["node"],"node_name":"a b"}"#,
            r#"{"scopes":["read"],"ttl_ms":0}"#,
        ] {
            assert_eq!(status(bad), 422, "{bad}");
        }
    }
}
