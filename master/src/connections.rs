//! The open HTTP connections: how many there may be, and which has to go when one more comes.
//!
//! A connection that waits for its caller's next request is *silent*; whoever opens connections and says
//! nothing, or drips a header byte by byte, holds silent ones only. When there is no room, the one that has
//! been silent longest is closed, and one whose caller never showed a valid token before all others. So
//! connections cannot be used up without a token, and a request that is being served is never cut.

use axum::body::Body;
use bytes::Bytes;
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// In place of a time: a request is being served.
const BUSY: u64 = u64::MAX;
/// Where no connection is silent, it is looked again this often whether one has become so.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The open connections; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    started: Instant,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<State>>,
}

#[derive(Debug)]
struct State {
    /// Microseconds from the start to the end of the last request, or [`BUSY`].
    silent_since_us: AtomicU64,
    /// Whether a request on it carried a valid token.
    known: AtomicBool,
    closed: CancellationToken,
}

/// One open connection; its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    state: Arc<State>,
    connections: Connections,
}

/// What serves a connection's requests; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    state: Arc<State>,
    started: Instant,
}

/// A request that is being served; the connection is silent again when this is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Requests);

/// The caller at the other end, as far as a request's handling may tell of it.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Arc<State>);

impl Caller {
    /// It showed a valid token.
    pub(crate) fn is_known(&self) {
        self.0.known.store(true, Ordering::Relaxed);
    }
}

impl Connections {
    /// None yet, at most `most`.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Shared {
            most,
            started: Instant::now(),
            table: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection. Where there is none, a silent one is closed for it; where none is
    /// silent, until one ends.
    pub(crate) async fn place(&self) -> Connection {
        loop {
            if let Some(connection) = self.try_place() {
                return connection;
            }
            self.close_one();
            // Either it is gone at once, or there was none that could go.
            let _looked_again = tokio::time::timeout(LOOK_AGAIN, self.0.freed.notified()).await;
        }
    }

    fn try_place(&self) -> Option<Connection> {
        let now_us = us_since(self.0.started);
        let mut table = self.table();
        if table.open.len() >= self.0.most {
            return None;
        }
        let id = table.next;
        table.next += 1;
        let state = Arc::new(State {
            silent_since_us: AtomicU64::new(now_us),
            known: AtomicBool::new(false),
            closed: CancellationToken::new(),
        });
        table.open.insert(id, Arc::clone(&state));
        Some(Connection { id, state, connections: self.clone() })
    }

    /// Closes the connection that has been silent longest, strangers' first; whether there was one.
    pub(crate) fn close_one(&self) -> bool {
        let table = self.table();
        let silent = table.open.values().filter_map(|state| {
            let since = state.silent_since_us.load(Ordering::Relaxed);
            let may_go = since != BUSY && !state.closed.is_cancelled();
            may_go.then(|| (state.known.load(Ordering::Relaxed), since, state))
        });
        let oldest = silent.min_by_key(|(known, since, _)| (*known, *since));
        if let Some((known, _, state)) = oldest {
            tracing::debug!(known, "a silent connection is closed to make room");
            state.closed.cancel();
        }
        oldest.is_some()
    }
}

fn us_since(start: Instant) -> u64 {
    // Half a million years fit.
    u64::try_from(start.elapsed().as_micros()).unwrap_or(BUSY - 1)
}

impl Connection {
    /// Until it has to be closed to make room for another.
    pub(crate) async fn closed(&self) {
        self.state.closed.cancelled().await;
    }

    /// What serves its requests.
    pub(crate) fn requests(&self) -> Requests {
        Requests { state: Arc::clone(&self.state), started: self.connections.0.started }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.table().open.remove(&self.id);
        self.connections.0.freed.notify_one();
    }
}

impl Requests {
    /// A request came: until the answer is dropped nobody closes the connection.
    pub(crate) fn begin(&self) -> Busy {
        self.state.silent_since_us.store(BUSY, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// The caller, for the request's handling.
    pub(crate) fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.state))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.silent_since_us.store(us_since(self.0.started), Ordering::Relaxed);
    }
}

/// A body that keeps its connection busy until it is written or given up.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Body,
    _busy: Busy,
}

impl Answer {
    /// This body.
    pub(crate) const fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// The place number `most` + 1 must come at once, by the closing of one that is named.
    async fn gone(connections: &Connections, held: &mut Vec<Connection>) -> u64 {
        let place = connections.place();
        let mut place = std::pin::pin!(place);
        let going = loop {
            tokio::select! {
                biased;
                _ = place.as_mut() => panic!("there was no room"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            if let Some(at) = held.iter().position(|c| c.state.closed.is_cancelled()) {
                break held.remove(at);
            }
        };
        let id = going.id;
        drop(going);
        held.push(place.await);
        id
    }

    #[tokio::test]
    async fn strangers_that_say_nothing_go_first_then_who_has_been_silent_longest() {
        let connections = Connections::new(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(connections.place().await);
        }
        let [zero, one, two] = [0, 1, 2].map(|at: usize| held[at].requests());
        drop(zero.begin());
        zero.caller().is_known();
        let serving = two.begin();
        assert_eq!(gone(&connections, &mut held).await, 1, "the only silent stranger");
        assert_eq!(gone(&connections, &mut held).await, 3, "the stranger that came for it");
        held.last().unwrap().requests().caller().is_known();
        assert_eq!(gone(&connections, &mut held).await, 0, "known, but silent for longer");
        held.last().unwrap().requests().caller().is_known();
        drop((one, serving));
        assert_eq!(gone(&connections, &mut held).await, 2, "served now, and still a stranger");
    }

    #[tokio::test]
    async fn a_request_that_is_served_is_never_cut() {
        let connections = Connections::new(1);
        let only = connections.place().await;
        let busy = only.requests().begin();
        assert!(!connections.close_one());
        drop(busy);
        assert!(connections.close_one() && !connections.close_one());
        only.closed().await;
    }
}
