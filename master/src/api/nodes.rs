//! `/v1/nodes`: register, report, work, exits, drain.

use super::{app::App, body, failure::Failure, params, schemas};
use crate::{auth::Principal, guard::RequestId};
use axum::{
    Extension, Json,
    extract::{
        FromRequestParts as _, Path, Request, State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header};
use protocol::{
    NodeId, Problem,
    frame::MAX_MESSAGE_BYTES,
    node::{
        DrainRequest, ExitReport, MAX_CORES, MIN_CORES, NodeRegistration, NodeStatus, NodeView, Registered,
        Report, ReportReply,
    },
    task::Page,
    work::SUBPROTOCOL,
};
use scheduler::{effect::Answer, event::Event};

/// Most memory that a node may name: 1 EiB.
const MAX_NODE_MEMORY: u64 = 1 << 60;
/// Longest drain: a year.
const MAX_DRAIN_MS: u64 = 366 * 86_400_000;
/// Buffers of a work channel: each read clears the whole of one first, and most messages are small. Messages
/// may be longer.
const BUFFER_BYTES: usize = 16 * 1024;

fn unknown(id: NodeId) -> Failure {
    Problem::not_found(format!("there is no node {id}; a node that was forgotten registers again")).into()
}

/// `POST /v1/nodes`.
pub(crate) async fn register(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let registration: NodeRegistration = body::json(&parts, body).await?;
    check_registration(&registration)?;
    let replaces = may_use_name(&app, &principal, &registration.name).await?;
    // A token for one use is spent, durably, before anything is answered: a crash in between costs the
    // token, never lets it be used twice.
    let spent = app.spend(&principal).await?;
    let (session, session_hash) = app.new_secret()?;
    let node = NodeId(uuid::Uuid::now_v7());
    let answer = app
        .ask(|reply| Event::Register {
            node,
            session_hash,
            replaces,
            registration: Box::new(registration),
            reply,
        })
        .await;
    match answer {
        Ok(Answer::Registered { node, report_interval_ms }) => {
            let registered =
                Registered { node_id: node, session_token: session.expose().to_owned(), report_interval_ms };
            let mut response = (StatusCode::CREATED, Json(registered)).into_response();
            if let Ok(value) = HeaderValue::from_str(&format!("/v1/nodes/{node}")) {
                response.headers_mut().insert(header::LOCATION, value);
            }
            Ok(response)
        }
        refused => {
            if let Some(spent) = spent {
                app.give_back(spent).await;
            }
            match refused {
                Ok(Answer::Refused(refusal)) => Err(refusal.into()),
                Ok(other) => Err(app.unexpected(&other)),
                Err(failure) => Err(failure),
            }
        }
    }
}

/// The node whose name this registration may take over, if its session token came as the bearer.
async fn may_use_name(app: &App, principal: &Principal, name: &str) -> Result<Option<NodeId>, Failure> {
    match principal {
        Principal::Anyone => Ok(None),
        Principal::Token { info, .. } => match &info.node_name {
            Some(bound) if bound != name => {
                Err(Problem::forbidden(format!("this token is only for a node named {bound:?}")).into())
            }
            _ => Ok(None),
        },
        Principal::Node(old) => {
            let old = *old;
            let own = app.query(move |core, now| core.session_name(old, now)).await?;
            match own {
                Some(own) if own != name => Err(Problem::forbidden(format!(
                    "this session token is of node {own:?}; it cannot register another name"
                ))
                .into()),
                _ => Ok(Some(old)),
            }
        }
    }
}

fn check_registration(registration: &NodeRegistration) -> Result<(), Problem> {
    let invalid = |text: String| Err(Problem::invalid(text));
    params::check_name("name", &registration.name)?;
    params::check_name("pool", &registration.pool)?;
    params::check_labels(&registration.labels)?;
    params::check_length("version", &registration.version, 64)?;
    params::check_length("runtime_id", registration.runtime_id.as_deref().unwrap_or_default(), 128)?;
    let cores = registration.allotted_cores;
    if !(MIN_CORES..=MAX_CORES).contains(&cores) {
        return invalid(format!("allotted_cores is {cores}, must be {MIN_CORES} to {MAX_CORES}"));
    }
    if !(1..=MAX_NODE_MEMORY).contains(&registration.memory_bytes) {
        return invalid(format!("memory_bytes must be 1 to {MAX_NODE_MEMORY}"));
    }
    if registration.kinds.len() > schemas::MAX_KINDS {
        return invalid(format!("kinds has more than {} entries", schemas::MAX_KINDS));
    }
    let mut schemas_bytes = 0;
    for kind in &registration.kinds {
        params::check_name("a kind's name", &kind.name)?;
        params::check_length("a kind's description", &kind.description, 1_024)?;
        if let Some(fault) = kind.first_fault() {
            return invalid(format!("kind {}: {fault}", kind.name));
        }
        let Some(schema) = &kind.schema else { continue };
        let bytes = schema.to_string().len();
        schemas_bytes += bytes;
        if schemas_bytes > schemas::MAX_SCHEMAS_BYTES {
            return invalid(format!(
                "the schemas of all kinds are over {} bytes",
                schemas::MAX_SCHEMAS_BYTES
            ));
        }
        if bytes > schemas::MAX_SCHEMA_BYTES {
            return invalid(format!(
                "the schema of kind {} is over {} bytes",
                kind.name,
                schemas::MAX_SCHEMA_BYTES
            ));
        }
        schemas::compile(schema)
            .map_err(|error| Problem::invalid(format!("the schema of kind {}: {error}", kind.name)))?;
    }
    Ok(())
}

/// `POST /v1/nodes/{id}/report`.
pub(crate) async fn report(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<ReportReply>, Failure> {
    let id: NodeId = params::id(&id, "node")?;
    let (parts, body) = request.into_parts();
    let report: Report = body::json(&parts, body).await?;
    if let Some((field, fault)) = report.cpu.first_fault() {
        return Err(Problem::invalid(format!("{field} {fault}")).into());
    }
    if !matches!(report.status, NodeStatus::Ready | NodeStatus::Draining) {
        return Err(Problem::invalid("status must be ready or draining").into());
    }
    let report_interval_ms =
        app.query(move |core, now| core.report_interval_of(id, now)).await?.ok_or_else(|| unknown(id))?;
    app.tell(Event::Report { node: id, report: Box::new(report) }).await?;
    Ok(Json(ReportReply { report_interval_ms, epoch: app.epoch() }))
}

/// `GET /v1/nodes/{id}/work`: the upgrade; what follows is the link's business.
pub(crate) async fn work(
    State(app): State<App>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let id: NodeId = params::id(&id, "node")?;
    if app.query(move |core, now| core.node(id, now)).await?.is_none() {
        return Err(unknown(id));
    }
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &app).await.map_err(
        |rejection: WebSocketUpgradeRejection| {
            Problem::malformed(format!("this is a WebSocket: {}", rejection.body_text()))
        },
    )?;
    if !upgrade.requested_protocols().any(|protocol| protocol == SUBPROTOCOL) {
        return Err(
            Problem::malformed(format!("the WebSocket must offer the subprotocol {SUBPROTOCOL}")).into()
        );
    }
    let place = app.channel_place(id)?;
    let link = app.clone();
    Ok(upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_failed_upgrade(move |error| tracing::debug!(request_id, %error, "work channel not upgraded"))
        .on_upgrade(move |socket| async move {
            link.serve_link(id, socket).await;
            drop(place);
        }))
}

/// `POST /v1/nodes/{id}/exited`.
pub(crate) async fn exited(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let id = existing(&app, &id).await?;
    let (parts, body) = request.into_parts();
    let mut exit: ExitReport = body::json(&parts, body).await?;
    exit.reason = exit.reason.chars().take(4_096).collect();
    app.tell(Event::Exited { node: id, exit }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn existing(app: &App, id: &str) -> Result<NodeId, Failure> {
    let id: NodeId = params::id(id, "node")?;
    match app.query(move |core, now| core.node(id, now)).await? {
        Some(_) => Ok(id),
        None => Err(unknown(id)),
    }
}

/// `GET /v1/nodes`.
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Page<NodeView>>, Failure> {
    let items = app.query(|core, now| core.nodes(now)).await?;
    Ok(Json(Page { items, next_cursor: None }))
}

/// `GET /v1/nodes/{id}`.
pub(crate) async fn get(State(app): State<App>, Path(id): Path<String>) -> Result<Json<NodeView>, Failure> {
    let id: NodeId = params::id(&id, "node")?;
    view(&app, id).await
}

async fn view(app: &App, id: NodeId) -> Result<Json<NodeView>, Failure> {
    app.query(move |core, now| core.node(id, now)).await?.map(Json).ok_or_else(|| unknown(id))
}

/// `POST /v1/nodes/{id}/drain`.
pub(crate) async fn drain(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<NodeView>, Failure> {
    let id = existing(&app, &id).await?;
    let (parts, body) = request.into_parts();
    let DrainRequest { deadline_ms } = body::json_or_default(&parts, body).await?;
    if deadline_ms.is_some_and(|ms| ms > MAX_DRAIN_MS) {
        return Err(Problem::invalid(format!("deadline_ms must be at most {MAX_DRAIN_MS}")).into());
    }
    app.tell(Event::Drain { node: id, deadline_ms }).await?;
    view(&app, id).await
}

/// `POST /v1/nodes/{id}/resume`.
pub(crate) async fn resume(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<NodeView>, Failure> {
    let id = existing(&app, &id).await?;
    // What comes along does not matter.
    drop(request);
    app.tell(Event::Resume { node: id }).await?;
    view(&app, id).await
}

/// `DELETE /v1/nodes/{id}`.
pub(crate) async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let id = existing(&app, &id).await?;
    app.tell(Event::Remove { node: id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
