//! `/v1/tasks`: submit, look, wait, list, cancel, explain.

use super::{
    app::App,
    body,
    failure::Failure,
    params::{self, WaitFor},
    spec,
};
use crate::auth::Principal;
use axum::{
    Extension, Json,
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use protocol::{
    Problem, TaskId,
    status::Explanation,
    task::{CancelByLabels, CancelledCount, Page, Task, TaskQuery, TaskSpec},
};
use scheduler::{
    core::TaskFilter,
    effect::{Answer, Refusal},
    event::{Event, Submission, Wait},
};
use std::{collections::BTreeMap, sync::Arc};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Items of a page when the query names no limit, and at most.
const LIMIT: (u32, u32) = (100, 1_000);
/// Most items of a page with inputs and results, whatever the query's limit: each may have 2 MiB. The
/// page's cursor leads on.
const FULL_LIMIT: u32 = 20;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitQuery {
    wait: Option<String>,
}

/// `POST /v1/tasks`.
pub(crate) async fn submit(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let query: WaitQuery = body::query(&parts.uri)?;
    let wait = params::wait(query.wait.as_deref(), &parts.headers)?;
    let key = key_of(&parts.headers)?;
    let spec: TaskSpec = body::json(&parts, body).await?;
    spec::check(&app, &spec).await?;
    let durability = spec::durability(spec.durability, wait.is_none() || key.is_some())?;
    let key = key.map(|key| (Arc::from(key), spec::fingerprint(&spec)));
    let wait_mode = match wait {
        Some(wait) => Wait::Until { until_us: app.until_us(wait.ms) },
        None => Wait::Accepted,
    };
    let submission = |reply| {
        Event::Submit(Box::new(Submission {
            id: TaskId(uuid::Uuid::now_v7()),
            spec,
            durability,
            client: principal.client(),
            key,
            reply,
            wait: wait_mode,
        }))
    };
    let answer = match wait_mode {
        Wait::Until { .. } => app.wait_for(submission).await?,
        Wait::Accepted | Wait::Stream { .. } => app.ask(submission).await?,
    };
    let mut response = match answer {
        Answer::Finished(task) => located(StatusCode::OK, &task),
        Answer::Accepted(task) | Answer::Unfinished(task) => located(StatusCode::ACCEPTED, &task),
        Answer::Stored(id) => {
            let status = if wait.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
            located(status, &*app.keyed_task(id).await?)
        }
        Answer::Refused(refusal) => return Err(refusal.into()),
        other => return Err(app.unexpected(&other)),
    };
    if let Some(WaitFor { ms, preferred: true }) = wait {
        let applied = format!("wait={}", ms / 1_000);
        if let Ok(value) = HeaderValue::from_str(&applied) {
            response.headers_mut().insert("preference-applied", value);
        }
    }
    Ok(response)
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().map_err(|_| Problem::invalid("Idempotency-Key must be visible ASCII"))?;
    spec::check_key(key)?;
    Ok(Some(key.to_owned()))
}

fn located(status: StatusCode, task: &Task) -> Response {
    let mut response = (status, Json(task)).into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id)) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// A task as the caller may see it: 404 for what is not theirs, 410 for what is no longer kept.
pub(super) async fn visible(app: &App, principal: &Principal, id: TaskId) -> Result<Arc<Task>, Failure> {
    let missing = || Failure::from(Problem::not_found(format!("there is no task {id}")));
    let (live, expired) = app.query(move |core, now| (core.task(id, now), core.expired(id))).await?;
    let found = match live {
        Some(found) => Some(found),
        None => app.ended_task(id).await?,
    };
    match found {
        Some((task, client)) if principal.sees_all() || client == principal.client() => Ok(task),
        Some(_) => Err(missing()),
        None if expired => {
            Err(Problem::gone(format!("task {id} has ended, and its result is no longer kept")).into())
        }
        None => Err(missing()),
    }
}

/// `GET /v1/tasks/{id}`.
pub(crate) async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let query: WaitQuery = body::query(&parts.uri)?;
    let wait = params::wait(query.wait.as_deref(), &parts.headers)?;
    let id: TaskId = params::id(&id, "task")?;
    let task = visible(&app, &principal, id).await?;
    let Some(wait) = wait.filter(|wait| wait.ms > 0 && !task.state.is_terminal()) else {
        return Ok(Json(task).into_response());
    };
    let until_us = app.until_us(wait.ms);
    match app.wait_for(|reply| Event::Wait { task: id, reply, until_us }).await? {
        Answer::Finished(task) | Answer::Unfinished(task) | Answer::Accepted(task) => {
            Ok(Json(task).into_response())
        }
        // It ended and left the scheduler's memory since it was looked up.
        Answer::Refused(Refusal::NotFound | Refusal::Gone) => {
            Ok(Json(visible(&app, &principal, id).await?).into_response())
        }
        Answer::Refused(refusal) => Err(refusal.into()),
        other => Err(app.unexpected(&other)),
    }
}

/// `DELETE /v1/tasks/{id}`.
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let id: TaskId = params::id(&id, "task")?;
    let ended = |task: &Task| Failure::from(Refusal::Ended { state: task.state });
    let task = visible(&app, &principal, id).await?;
    if task.state.is_terminal() {
        return Err(ended(&task));
    }
    match app.ask(|reply| Event::Cancel { task: id, reply }).await? {
        Answer::Cancelled(task) | Answer::Finished(task) => Ok(Json(task).into_response()),
        // It ended and left the scheduler's memory since it was looked up.
        Answer::Refused(Refusal::NotFound | Refusal::Gone) => {
            Err(ended(&*visible(&app, &principal, id).await?))
        }
        Answer::Refused(refusal) => Err(refusal.into()),
        other => Err(app.unexpected(&other)),
    }
}

/// `POST /v1/tasks/cancel`.
pub(crate) async fn cancel_labels(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Json<CancelledCount>, Failure> {
    let (parts, body) = request.into_parts();
    let CancelByLabels { labels } = body::json(&parts, body).await?;
    if labels.is_empty() {
        return Err(Problem::invalid(
            "labels is empty; name at least one, so that not everything is cancelled",
        )
        .into());
    }
    params::check_labels(&labels)?;
    let only = (!principal.sees_all()).then(|| principal.client());
    match app.ask(|reply| Event::CancelLabels { labels, only, reply }).await? {
        Answer::CancelledCount(cancelled) => Ok(Json(CancelledCount { cancelled })),
        Answer::Refused(refusal) => Err(refusal.into()),
        other => Err(app.unexpected(&other)),
    }
}

/// `GET /v1/tasks`: what the scheduler has in memory, merged with what only the store has.
pub(crate) async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Json<Page<Arc<Task>>>, Failure> {
    let query: TaskQuery = body::query(request.uri())?;
    let full = params::flag("full", query.full)?;
    let limit = query.limit.unwrap_or(LIMIT.0);
    if !(1..=LIMIT.1).contains(&limit) {
        return Err(Problem::invalid(format!("limit is {limit}, must be 1 to {}", LIMIT.1)).into());
    }
    let limit = if full { limit.min(FULL_LIMIT) } else { limit } as usize;
    let filter = TaskFilter {
        // One more than asked for tells whether there is a next page.
        limit: limit + 1,
        before: query.cursor.as_deref().map(cursor_id).transpose()?,
        label: query.label.as_deref().map(label).transpose()?,
        client: (!principal.sees_all()).then(|| principal.client()),
        state: query.state,
        kind: query.kind,
        node: query.node,
    };
    let stored = app.ended_tasks(&filter, full).await?;
    let live = app.query(move |core, now| core.tasks(&filter, now)).await?;
    // Newest first; what the scheduler has wins over what the store has of the same task.
    let mut merged: BTreeMap<TaskId, Arc<Task>> =
        stored.into_iter().chain(live).map(|(task, _)| (task.id, task)).collect();
    let mut items = Vec::with_capacity(limit.min(merged.len()));
    while items.len() < limit
        && let Some((_, task)) = merged.pop_last()
    {
        items.push(if full { task } else { Arc::new(without_bodies(&task)) });
    }
    let next_cursor = items.last().filter(|_| !merged.is_empty()).map(|task| task.id.to_string());
    Ok(Json(Page { items, next_cursor }))
}

fn cursor_id(cursor: &str) -> Result<TaskId, Problem> {
    cursor.parse().map_err(|_| Problem::invalid("cursor is none that a page before answered with"))
}

fn label(text: &str) -> Result<(String, String), Problem> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Problem::invalid(format!("label is {text:?}, must be key=value")))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn without_bodies(task: &Task) -> Task {
    Task { input: None, result: None, ..task.clone() }
}

/// `GET /v1/tasks/{id}/explain`.
pub(crate) async fn explain(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, Failure> {
    let id: TaskId = params::id(&id, "task")?;
    let task = visible(&app, &principal, id).await?;
    if let Some(explained) = app.query(move |core, now| core.explain(id, now)).await? {
        return Ok(Json(explained));
    }
    // What the scheduler does not have any more has ended, if not before it was looked up, then since.
    let task = if task.state.is_terminal() { task } else { visible(&app, &principal, id).await? };
    Ok(Json(Explanation {
        reason: "ended".to_owned(),
        message: format!("the task is {}; how it was placed is no longer kept", task.state.as_str()),
        position: None,
        estimated_cpu_ms: None,
        predicted_run_ms: None,
        remaining_ms: None,
        candidates: Vec::new(),
    }))
}
