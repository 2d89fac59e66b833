//! The HTTP server: hyper's HTTP/1 with bounds that axum's own `serve` does not set.
//!
//! Every connection is bounded in number, in header size, in the time its handshake and its headers may take, and
//! ends at shutdown. The stream type is generic: TLS is one more step before [`serve_stream`], taken in the
//! connection's own task, so that a slow handshake keeps nobody else waiting.

use crate::{
    connections::{Answer, Connections, Requests},
    stall::StallGuard,
    tls::handshake::Handshakes,
};
use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most open HTTP connections; past it one that is silent is closed for one that comes, and where none
    /// is, new ones wait in the kernel's backlog. An upgraded connection (a work channel) no longer counts
    /// here: [`crate::places`] bounds those.
    pub(crate) connections: usize,
    /// Most bytes that are read ahead of what is worked on, for each connection.
    pub(crate) read_ahead_bytes: usize,
    /// Most bytes of a request's line and headers (431 past it).
    pub(crate) header_bytes: usize,
    /// Most TLS handshakes that are going on; when another one begins the oldest is cut.
    pub(crate) handshakes: usize,
    /// How long a connection may take for its TLS handshake, and to send its next whole header. hyper counts the idle time of a
    /// kept-alive connection the same way, so this is the idle bound too. Our own client lets go of idle
    /// connections before (`client::POOL_IDLE`), so that none is closed under a request.
    pub(crate) header_read: Duration,
    /// How long a peer may read nothing of what is written to it before the connection is lost.
    pub(crate) write_stall: Duration,
    /// How long requests in progress may go on after shutdown was asked for.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            read_ahead_bytes: 64 * 1024,
            handshakes: 512,
            header_bytes: 32 * 1024,
            write_stall: Duration::from_secs(60),
            header_read: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Accepts connections until `shutdown`, then gives those in progress [`Limits::drain`] to end.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tls: Option<Arc<rustls::ServerConfig>>,
    shutdown: CancellationToken,
) {
    let handshakes = tls.map(|tls| Handshakes::new(tls, limits.handshakes));
    let connections = Connections::new(limits.connections);
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that was reset before it was accepted: the
                // first does not go away by trying again at once, but by closing what nobody uses.
                let closed_one = connections.close_one();
                tracing::warn!(%error, closed_one, "accept failed; trying again in 50 ms");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = tokio::select! {
            () = shutdown.cancelled() => break,
            connection = connections.place() => connection,
        };
        // Small answers must not wait for the peer's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY on this connection");
        }
        let (router, shutdown, handshakes) = (router.clone(), shutdown.clone(), handshakes.clone());
        tracker.spawn(async move {
            let requests = connection.requests();
            let served = async move {
                let Some(handshakes) = handshakes else {
                    let stream = StallGuard::new(stream, limits.write_stall);
                    return serve_stream(stream, peer, requests, router, limits, shutdown).await;
                };
                let securing = handshakes.secure(stream, peer, limits.header_read, limits.write_stall);
                let secured = tokio::select! {
                    secured = securing => secured,
                    () = shutdown.cancelled() => None,
                };
                if let Some(stream) = secured {
                    serve_stream(stream, peer, requests, router, limits, shutdown).await;
                }
            };
            tokio::select! {
                () = connection.closed() => {}
                () = served => {}
            }
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(limits.drain, tracker.wait()).await.is_err() {
        tracing::info!(open = tracker.len(), "closing connections that did not end in time");
    }
}

/// Lets this process open as many files as it may: many systems begin with 1,024, fewer than
/// [`Limits::connections`].
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current < limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, now = limit.current, "the bound of open files stays");
    }
}

/// Serves one connection until it ends, is upgraded, or `shutdown` has been followed by
/// [`Limits::drain`].
async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    requests: Requests,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let busy = requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(requests.caller());
        let answer = router.clone().oneshot(request);
        async move { answer.await.map(|answer| answer.map(|body| Answer::new(body, busy))) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.read_ahead_bytes)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(limits.drain, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended with an error");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    #[tokio::test]
    async fn connections_that_say_nothing_do_not_keep_out_those_that_do() {
        let limits = Limits { connections: 4, header_read: Duration::from_secs(600), ..Limits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = Router::new().route("/", axum::routing::get(|| async { "hello" }));
        let server = tokio::spawn(serve(listener, router, limits, None, shutdown.clone()));
        let mut idle = Vec::new();
        for _ in 0..8 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        let answered = asking.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(30), answered).await.unwrap().unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
        drop(idle);
        shutdown.cancel();
        server.await.unwrap();
    }

    #[test]
    fn our_client_lets_go_of_idle_connections_before_the_server_does() {
        let spare = Duration::from_secs(1);
        assert!(client::POOL_IDLE + spare <= Limits::default().header_read);
    }
}
