//! Who answers a request: the leadership of this process, or, while another master leads, that one.

use super::{
    forward::{FORWARDED, Following, Forwarder},
    tenure::Tenure,
};
use crate::{
    api::failure::{Failure, REQUEST_ID, finish},
    connections::Caller,
    guard::ending_with,
    hosts::{self, Hosts},
};
use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use http::Method;
use protocol::Problem;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tower::ServiceExt as _;

/// How long a request waits for a leader before it is refused: so one that comes while masters change is mostly
/// answered by the next, and nodes find it at once.
const LEADER_WITHIN: Duration = Duration::from_secs(2);
/// Said of what a leader had in hand when it was deposed.
const DEPOSED: &str = "this master does not lead any more";

/// Nobody who leads can be reached: nothing was done.
pub(super) fn no_leader(detail: impl Into<String>) -> Problem {
    Problem::no_leader(format!("{}; ask again in a moment", detail.into()))
}

/// What is said of a request that was under way when its leader was lost. One that is the same if it is done twice
/// is to be asked again; of the others nobody knows.
pub(super) fn leader_lost(method: &Method, why: &str) -> Problem {
    if method.is_idempotent() {
        return no_leader(why);
    }
    Problem::leader_lost(format!(
        "{why}, and whether this was done is not known; with an Idempotency-Key a submit may be repeated"
    ))
}

/// What this master is at the moment.
#[derive(Clone)]
enum Role {
    /// It leads.
    Leading(Arc<Leading>),
    /// Another one leads.
    Following(Arc<Following>),
    /// Nobody leads, as far as is known, or this master is about to.
    Vacant,
}

struct Leading {
    router: Router,
    tenure: Tenure,
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub(crate) struct Front(Arc<Shared>);

struct Shared {
    role: watch::Sender<Role>,
    hosts: Hosts,
    /// None of a master that shares its store with no other.
    forwarder: Option<Forwarder>,
}

impl Front {
    /// Nobody leads yet.
    pub(crate) fn new(hosts: Hosts, forwarder: Option<Forwarder>) -> Self {
        Self(Arc::new(Shared { role: watch::Sender::new(Role::Vacant), hosts, forwarder }))
    }

    /// For the server: answers everything, whoever leads.
    pub(crate) fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    /// This master leads.
    pub(crate) fn lead(&self, router: Router, tenure: Tenure) {
        self.turn_into(Role::Leading(Arc::new(Leading { router, tenure })));
    }

    /// Another one leads; whether that is news. Streams that were forwarded to the one before end.
    pub(crate) fn follow(&self, following: Following) -> bool {
        let known = matches!(self.role(), Role::Following(now) if now.leader.epoch == following.leader.epoch);
        if !known {
            self.turn_into(Role::Following(Arc::new(following)));
        }
        !known
    }

    /// Nobody leads, as far as is known.
    pub(crate) fn vacate(&self) {
        self.turn_into(Role::Vacant);
    }

    fn turn_into(&self, role: Role) {
        if let Role::Following(before) = self.0.role.send_replace(role) {
            before.end();
        }
    }

    fn role(&self) -> Role {
        self.0.role.borrow().clone()
    }

    async fn stand_by(&self, request: Request) -> Response {
        let request_id = uuid::Uuid::now_v7().simple().to_string();
        let response = match self.answer_as_standby(request).await {
            Ok(response) => response,
            Err(problem) => Failure(problem).into_response(),
        };
        // What the leader answered has its id, by which it is found in the leader's log.
        if response.headers().contains_key(REQUEST_ID) { response } else { finish(response, &request_id) }
    }

    async fn answer_as_standby(&self, request: Request) -> Result<Response, Problem> {
        let host = self.0.hosts.check(request.uri(), request.headers())?;
        hosts::check_same_site(&host, request.headers())?;
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/livez") => {
                return Ok(Json(serde_json::json!({"status": "ok"})).into_response());
            }
            (&Method::GET | &Method::HEAD, "/readyz") => return Err(self.not_ready()),
            _ => {}
        }
        let forwarded = request.headers().contains_key(FORWARDED);
        let (until, mut roles) = (Instant::now() + LEADER_WITHIN, self.0.role.subscribe());
        loop {
            let role = roles.borrow_and_update().clone();
            match (role, &self.0.forwarder) {
                (Role::Leading(leading), _) => return Ok(leading.answer(request).await),
                (Role::Following(following), Some(forwarder)) if !forwarded && following.is_reachable() => {
                    let caller = request.extensions().get::<Caller>().cloned();
                    let response = forwarder.forward(&following, request).await?;
                    // Who gets something has a token, so this connection is not a stranger's.
                    if let Some(caller) = caller.filter(|_| response.status().is_success()) {
                        caller.is_known();
                    }
                    return Ok(response);
                }
                _ => {}
            }
            if !matches!(timeout_at(until, roles.changed()).await, Ok(Ok(()))) {
                return Err(no_leader(if forwarded {
                    "another master took this one for the leader, which it is not"
                } else {
                    "no master leads now"
                }));
            }
        }
    }

    fn not_ready(&self) -> Problem {
        match self.role() {
            Role::Following(following) => {
                let crate::store::Leader { epoch, url } = &following.leader;
                Problem::standby(format!("{url} leads with epoch {epoch}; this master forwards to it"))
            }
            Role::Leading(_) | Role::Vacant => no_leader("no master leads now"),
        }
    }
}

async fn answer(State(front): State<Front>, request: Request) -> Response {
    match front.role() {
        Role::Leading(leading) => leading.answer(request).await,
        Role::Following(_) | Role::Vacant => front.stand_by(request).await,
    }
}

impl Leading {
    /// The answer, unless the leadership ends before it is there.
    async fn answer(&self, request: Request) -> Response {
        let method = request.method().clone();
        let answered = tokio::select! {
            biased;
            answered = self.router.clone().oneshot(request) => Some(answered),
            () = self.tenure.over().cancelled() => None,
        };
        match answered {
            Some(Ok(response)) if self.tenure.holds() => {
                ending_with(Some(self.tenure.over().clone()), DEPOSED, response)
            }
            _ => {
                let request_id = uuid::Uuid::now_v7().simple().to_string();
                finish(Failure(leader_lost(&method, DEPOSED)).into_response(), &request_id)
            }
        }
    }
}
