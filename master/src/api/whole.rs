//! The cluster as a whole: status, kinds, health.

use super::{app::App, failure::Failure};
use axum::{Json, extract::State};
use protocol::{node::KindInfo, status::ClusterStatus, task::Page};

/// `GET /v1/status`.
pub(crate) async fn status(State(app): State<App>) -> Result<Json<ClusterStatus>, Failure> {
    Ok(Json(app.query(|core, now| core.status(now)).await?))
}

/// `GET /v1/kinds`.
pub(crate) async fn kinds(State(app): State<App>) -> Result<Json<Page<KindInfo>>, Failure> {
    let items = app.query(|core, now| core.kinds(now)).await?;
    Ok(Json(Page { items, next_cursor: None }))
}

/// Answer of the health checks.
#[derive(serde::Serialize)]
pub(crate) struct Health {
    status: &'static str,
}

/// `GET /livez`: the process answers.
pub(crate) async fn livez() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// `GET /readyz`: the scheduler answers and the store takes writes; else 503.
pub(crate) async fn readyz(State(app): State<App>) -> Result<Json<Health>, Failure> {
    app.check_ready().await?;
    Ok(Json(Health { status: "ok" }))
}
