//! `/v1/pools` and `/v1/managers`.

use super::{app::App, body, failure::Failure, params};
use crate::{pools::WriteIf, template_kinds};
use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use protocol::{
    Problem,
    node::MAX_CORES,
    pool::{ManagerHello, ManagerView, PoolSpec, PoolView, Template},
};
use std::time::Duration;
use tokio::time::Instant;

/// Most nodes of one pool.
const MAX_DESIRED: u32 = 10_000;
/// Most bytes of the text of a `kinds.toml`: it reaches a node as one variable of its environment, which
/// Linux bounds at 128 KiB.
const MAX_KINDS_BYTES: usize = 120 * 1024;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolQuery {
    wait: Option<String>,
    revision: Option<u64>,
}

/// `GET /v1/pools/{pool}`; with `wait` and `revision` it answers once the revision is another one.
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let query: PoolQuery = body::query(request.uri())?;
    let wait = params::wait(query.wait.as_deref(), request.headers())?;
    let until = Instant::now() + Duration::from_millis(wait.map_or(0, |wait| wait.ms));
    let mut changes = app.pools().changes();
    loop {
        let view = app
            .pools()
            .view(&name)
            .ok_or_else(|| Problem::not_found(format!("there is no pool {name:?}; PUT makes one")))?;
        if query.revision != Some(view.revision) || Instant::now() >= until {
            return Ok(tagged(StatusCode::OK, &view));
        }
        let shutdown = app.shutdown();
        tokio::select! {
            // A timeout leads to one more look, and an answer.
            _woken = tokio::time::timeout_at(until, changes.changed()) => {}
            // The master's end is not held up by those who only wait.
            () = shutdown.cancelled() => return Ok(tagged(StatusCode::OK, &view)),
        }
    }
}

fn tagged(status: StatusCode, view: &PoolView) -> Response {
    let mut response = (status, Json(view)).into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", view.revision)) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// `PUT /v1/pools/{pool}`.
pub(crate) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    params::check_name("the pool's name", &name)?;
    let (parts, body) = request.into_parts();
    let condition = condition(&parts.headers)?;
    let spec: PoolSpec = body::json(&parts, body).await?;
    check_spec(&spec)?;
    if let (Some(cpus), Some(manager)) =
        (spec.template.cpus, app.pools().view(&name).and_then(|view| view.manager))
        && cpus > manager.host_cores
    {
        return Err(Problem::invalid(format!(
            "template.cpus is {cpus}, and the host of this pool's manager has {} cores",
            manager.host_cores
        ))
        .into());
    }
    let (created, view) = app.put_pool(&name, spec, condition).await?;
    Ok(tagged(if created { StatusCode::CREATED } else { StatusCode::OK }, &view))
}

fn condition(headers: &HeaderMap) -> Result<WriteIf, Failure> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default().trim());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(WriteIf::Always),
        (Some("*"), None) => Ok(WriteIf::Exists),
        (None, Some("*")) => Ok(WriteIf::Absent),
        (Some(tags), None) => Ok(WriteIf::Revision(
            // A tag that is none of ours matches nothing, which is 412 and not an error of form.
            tags.split(',').filter_map(|tag| tag.trim().trim_matches('"').parse().ok()).collect(),
        )),
        (_, Some(_)) => {
            Err(Problem::invalid("If-None-Match is only understood as *, and not beside If-Match").into())
        }
    }
}

fn check_spec(spec: &PoolSpec) -> Result<(), Problem> {
    if spec.min.is_some() || spec.max.is_some() || spec.target_queue_ms.is_some() {
        return Err(Problem::invalid(
            "min, max and target_queue_ms are for autoscaling, which this version does not have; give desired",
        ));
    }
    match spec.desired {
        None => Err(Problem::invalid("desired is missing: how many nodes to keep")),
        Some(desired) if desired > MAX_DESIRED => {
            Err(Problem::invalid(format!("desired is {desired}, must be at most {MAX_DESIRED}")))
        }
        Some(_) => check_template(&spec.template),
    }
}

fn check_template(template: &Template) -> Result<(), Problem> {
    let invalid = |text: String| Err(Problem::invalid(text));
    if let Some(cpus) = template.cpus
        && !(0.01..=MAX_CORES).contains(&cpus)
    {
        return invalid(format!("template.cpus is {cpus}, must be 0.01 to {MAX_CORES}"));
    }
    if template.memory_bytes.is_some_and(|bytes| !(6 << 20..=1 << 60).contains(&bytes)) {
        return invalid(
            "template.memory_bytes must be at least 6 MiB, the least that Docker takes".to_owned(),
        );
    }
    if template.tmpfs_bytes.is_some_and(|bytes| bytes > 1 << 50) {
        return invalid("template.tmpfs_bytes must be at most 1 PiB".to_owned());
    }
    params::check_labels(&template.labels)?;
    params::check_length("template.image", template.image.as_deref().unwrap_or_default(), 512)?;
    params::check_length("template.user", template.user.as_deref().unwrap_or_default(), 64)?;
    if template.kinds.as_ref().is_some_and(|text| text.len() > MAX_KINDS_BYTES) {
        return invalid(format!("template.kinds is over {MAX_KINDS_BYTES} bytes"));
    }
    template_kinds::of(template).map_err(|why| Problem::invalid(format!("template.kinds: {why}")))?;
    if template.env.len() > 256 || template.mounts.len() > 64 {
        return invalid("template.env has at most 256 entries, template.mounts at most 64".to_owned());
    }
    if let Some(name) = template
        .env
        .keys()
        .find(|name| name.is_empty() || name.contains(['=', '\0']) || name.starts_with("EVENKEEL_"))
    {
        return invalid(format!(
            "template.env names {name:?}; a name is not empty, has no '=', and is not ours"
        ));
    }
    for mount in &template.mounts {
        let absolute = |path: &str| path.starts_with('/') && !path.split('/').any(|part| part == "..");
        if !absolute(&mount.source) || !absolute(&mount.target) {
            return invalid(format!(
                "template.mounts: {:?} to {:?} must both be absolute paths without '..'",
                mount.source, mount.target
            ));
        }
    }
    Ok(())
}

/// `POST /v1/managers`: holds the pool for this manager, and makes it, empty, if it is not there.
pub(crate) async fn hello(State(app): State<App>, request: Request) -> Result<Json<ManagerView>, Failure> {
    let (parts, body) = request.into_parts();
    let mut hello: ManagerHello = body::json(&parts, body).await?;
    params::check_name("pool", &hello.pool)?;
    params::check_length("runtime", &hello.runtime, 256)?;
    if !(f64::MIN_POSITIVE..=MAX_CORES).contains(&hello.host_cores) {
        return Err(Problem::invalid(format!("host_cores must be above 0 and at most {MAX_CORES}")).into());
    }
    hello.trouble = hello.trouble.chars().take(4_096).collect();
    Ok(Json(app.manager_hello(hello).await?))
}
