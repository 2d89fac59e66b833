//! From a standby to the leader: requests, answers, and work channels, as streams.
//!
//! This is the one place from which a master dials, and it dials one address: that of the leader's row in the
//! store, which only masters write. Nothing is held of a body but what is on its way. What was checked here of `Host`
//! and `Origin` is checked no more at the leader, which is addressed by its own name.

use super::front::{leader_lost, no_leader};
use crate::{
    guard::ending_with,
    places::{Place, Places},
    stall::StallGuard,
    store::Leader,
};
use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
    response::Response,
};
use client::{Trust, tls};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use protocol::{NodeId, Problem};
use reqwest::Url;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// To connect, TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// From a request to the head of its answer: the longest `wait` that may be asked for, and time to spare.
const HEAD_WITHIN: Duration = Duration::from_secs(330);
/// Both ends of an upgraded connection must be there within this.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);
/// How long one end of an upgraded connection may read nothing of what the other wrote.
const STALL: Duration = Duration::from_secs(60);
/// A leader that could not be reached is not tried again for so long: whoever comes waits for another one.
const AVOIDED: Duration = Duration::from_millis(500);
/// Connections that are kept for the next requests; below the time that a master keeps one.
const KEPT: (usize, Duration) = (256, client::POOL_IDLE);
/// Marks what a standby forwarded, so that it is never forwarded twice.
pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("evenkeel-forwarded");
/// Said of a stream that ended with its leader.
const LEADER_CHANGED: &str = "the leader changed while this was going on";
/// Headers of one connection, which are not passed on (RFC 9110 section 7.6.1), and those that are made anew.
const OF_A_CONNECTION: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::HOST,
];

/// The leader that is followed.
#[derive(Debug)]
pub(crate) struct Following {
    /// As the store has it.
    pub(crate) leader: Leader,
    base: Url,
    /// Another one leads.
    over: CancellationToken,
    avoided_until: Mutex<Option<Instant>>,
}

impl Following {
    /// Follows this leader; `None` if its address is none.
    pub(crate) fn new(leader: Leader) -> Option<Self> {
        let base = master_url(&leader.url).ok()?;
        Some(Self { leader, base, over: CancellationToken::new(), avoided_until: Mutex::default() })
    }

    fn avoided(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // Nothing panics while it is held.
        self.avoided_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It leads no more: what was forwarded to it ends.
    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    /// Whether it is worth a try.
    pub(crate) fn is_reachable(&self) -> bool {
        self.avoided().is_none_or(|until| Instant::now() >= until)
    }
}

/// The URL of a master: scheme, host and port, nothing else.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn master_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "it is no URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("it must begin with http:// or https:// and name a host");
    }
    let plain = url.username().is_empty() && url.password().is_none();
    if !plain || url.query().is_some() || url.fragment().is_some() || !matches!(url.path(), "" | "/") {
        return Err("it must be a scheme, a host and a port, and nothing else");
    }
    Ok(url)
}

/// The way to the leader.
#[derive(Debug)]
pub(crate) struct Forwarder {
    http: reqwest::Client,
    channels: Places<NodeId>,
    shutdown: CancellationToken,
}

impl Forwarder {
    /// With this trust in the leader's certificate. Does not connect yet.
    ///
    /// # Errors
    /// If the trust cannot be used.
    pub(crate) fn new(trust: Option<&Trust>, shutdown: CancellationToken) -> Result<Self, client::Error> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // Who asked decides whether it is asked again.
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_WITHIN)
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_nodelay(true)
            .pool_max_idle_per_host(KEPT.0)
            .pool_idle_timeout(KEPT.1)
            .tls_backend_preconfigured(tls::config(trust)?)
            .build()
            .map_err(|error| client::Error::Config(format!("no requests can be forwarded: {error}")))?;
        Ok(Self { http, channels: Places::of_channels(), shutdown })
    }

    /// Passes a request on, and the answer back.
    ///
    /// # Errors
    /// 503 `no-leader` if the request did not reach the leader or may be repeated, 502 `leader-lost` if nobody
    /// knows what became of it.
    pub(crate) async fn forward(
        &self,
        following: &Arc<Following>,
        request: Request,
    ) -> Result<Response, Problem> {
        let (mut parts, body) = request.into_parts();
        let node = channel_of(parts.uri.path()).filter(|_| is_websocket(&parts.headers));
        let near = node.and_then(|node| Some((node, parts.extensions.remove::<OnUpgrade>()?)));
        let channel = match near {
            Some((node, near)) => {
                let full = |error: crate::places::NoPlace| Problem::unavailable(error.to_string());
                Some((self.channels.take(node).map_err(full)?, near))
            }
            None => None,
        };
        let method = parts.method.clone();
        let mut url = following.base.clone();
        url.set_path(parts.uri.path());
        url.set_query(parts.uri.query());
        if url.path() != parts.uri.path() {
            // `..` and the like: no route is written so, and it does not become one on the way.
            return Err(Problem::not_found("there is no such path"));
        }
        let mut onward = reqwest::Request::new(parts.method, url);
        *onward.headers_mut() = request_headers(&parts.headers, channel.is_some());
        if !body.is_end_stream() {
            *onward.body_mut() = Some(reqwest::Body::wrap_stream(body.into_data_stream()));
        }
        let response = self.send(following, &method, onward).await?;
        match channel {
            Some((place, near)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Ok(self.join(following, place, near, response))
            }
            _ => Ok(passed_back(following, response)),
        }
    }

    async fn send(
        &self,
        following: &Following,
        method: &Method,
        onward: reqwest::Request,
    ) -> Result<reqwest::Response, Problem> {
        let url = &following.leader.url;
        let sent = tokio::time::timeout(HEAD_WITHIN, self.http.execute(onward));
        let sent = tokio::select! {
            sent = sent => sent,
            () = following.over.cancelled() => return Err(leader_lost(method, LEADER_CHANGED)),
        };
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                let why = tls::explain(&error).unwrap_or_else(|| "it cannot be reached".to_owned());
                tracing::warn!(leader = url, why, %error, "cannot forward to the leader");
                *following.avoided() = Some(Instant::now() + AVOIDED);
                Err(no_leader(format!("{url} leads, but {why}")))
            }
            Ok(Err(error)) => {
                tracing::debug!(leader = url, %error, "the leader was lost during a request");
                Err(leader_lost(method, "the connection to the leader broke"))
            }
            Err(_) => Err(leader_lost(method, "the leader did not answer")),
        }
    }

    /// Joins the two ends of a work channel until one of them ends, or the leader changes.
    fn join(
        &self,
        following: &Following,
        place: Place<NodeId>,
        near: OnUpgrade,
        response: reqwest::Response,
    ) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = without_connection(response.headers());
        as_upgrade(answer.headers_mut());
        let (over, shutdown) = (following.over.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let _place = place;
            let ends = async {
                let near = near.await.ok()?;
                Some((near, response.upgrade().await.ok()?))
            };
            let Ok(Some((near, far))) = tokio::time::timeout(UPGRADE_WITHIN, ends).await else { return };
            let mut near = StallGuard::new(TokioIo::new(near), STALL);
            let mut far = StallGuard::new(far, STALL);
            tokio::select! {
                // However it ended: the node comes back, and the leader notices.
                _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = over.cancelled() => {}
                () = shutdown.cancelled() => {}
            }
        });
        answer
    }
}

/// The answer as it comes, cut off when the leader changes.
fn passed_back(following: &Arc<Following>, response: reqwest::Response) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = without_connection(response.headers());
    let whole = response.content_length() == Some(0);
    if !whole {
        *answer.body_mut() = Body::from_stream(response.bytes_stream());
    }
    ending_with(Some(following.over.clone()), LEADER_CHANGED, answer)
}

/// The node that a work channel is opened for.
fn channel_of(path: &str) -> Option<NodeId> {
    path.strip_prefix("/v1/nodes/")?.strip_suffix("/work")?.parse().ok()
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn as_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

fn request_headers(from: &HeaderMap, upgrades: bool) -> HeaderMap {
    let mut headers = without_connection(from);
    // Held against the `Host` that this master was addressed by, which the leader does not see.
    headers.remove(header::ORIGIN);
    headers.insert(FORWARDED, HeaderValue::from_static("1"));
    if upgrades {
        as_upgrade(&mut headers);
    }
    headers
}

/// All but those of the connection, and those that `Connection` names.
fn without_connection(from: &HeaderMap) -> HeaderMap {
    let mut headers = from.clone();
    for value in from.get_all(header::CONNECTION) {
        for name in value.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    for name in &OF_A_CONNECTION {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_an_address_and_nothing_else() {
        for good in ["http://10.0.0.1:7400", "https://master-a.example", "http://[::1]:7400/"] {
            assert!(master_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1:7400",
            "ftp://a",
            "http://user:pass@a",
            "http://a/path",
            "http://a?x=1",
            "http://a#f",
            "file:///etc/passwd",
        ] {
            assert!(master_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_of_a_connection_stay_on_it_and_the_token_goes_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "standby:7400"),
            ("authorization", "Bearer ek_x"),
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("origin", "http://standby:7400"),
            ("idempotency-key", "k"),
        ] {
            headers.insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        let onward = request_headers(&headers, false);
        let mut names: Vec<&str> = onward.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "evenkeel-forwarded", "idempotency-key"]);
    }

    #[test]
    fn only_work_channels_are_upgraded() {
        let id = uuid::Uuid::from_u128(7);
        assert_eq!(channel_of(&format!("/v1/nodes/{id}/work")), Some(NodeId(id)));
        for path in ["/v1/nodes/x/work", "/v1/tasks", "/v1/nodes//work"] {
            assert_eq!(channel_of(path), None);
        }
    }
}
