//! From an accepted connection to one that is secured, within bounds of time and number.
//!
//! A handshake that is not finished holds a place among a bounded number. When all places are taken the oldest
//! handshake is cut: one that says nothing is always older than one that goes on, so those that say nothing do not
//! keep out those that do.

use crate::stall::StallGuard;
use protocol::{Problem, problem::PROBLEM_JSON};
use rustls::ServerConfig;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// First byte of every TLS handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 0x16;
/// Most bytes that are read and forgotten after a plain request was refused, so that the answer is not lost.
const FORGET_BYTES: u64 = 64 * 1024;

/// A secured connection. The bound on writes is below TLS, where bytes really wait.
pub(crate) type Secured = TlsStream<StallGuard<TcpStream>>;

/// Handshakes that are going on.
#[derive(Clone)]
pub(crate) struct Handshakes {
    acceptor: TlsAcceptor,
    most: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// In the order of their beginning.
    cuts: BTreeMap<u64, CancellationToken>,
}

/// A handshake's place, free again when this is dropped.
struct Place {
    number: u64,
    cut: CancellationToken,
    open: Arc<Mutex<Open>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).cuts.remove(&self.number);
    }
}

impl Handshakes {
    /// At most `most` at a time.
    pub(crate) fn new(server: Arc<ServerConfig>, most: usize) -> Self {
        Self { acceptor: TlsAcceptor::from(server), most: most.max(1), open: Arc::default() }
    }

    /// A place; cuts the oldest handshake if there is none.
    fn place(&self) -> Place {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.cuts.len() >= self.most
            && let Some((_, oldest)) = open.cuts.pop_first()
        {
            oldest.cancel();
        }
        let number = open.next;
        open.next += 1;
        let cut = CancellationToken::new();
        open.cuts.insert(number, cut.clone());
        Place { number, cut, open: Arc::clone(&self.open) }
    }

    /// Secures a connection within `within`; `None` if that did not succeed, for which there is nothing more to
    /// do. Who speaks plain HTTP is told so.
    pub(crate) async fn secure(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        within: Duration,
        write_stall: Duration,
    ) -> Option<Secured> {
        let place = self.place();
        let shaking = tokio::time::timeout(within, self.shake(stream, write_stall));
        let why = tokio::select! {
            shaken = shaking => match shaken {
                Ok(Ok(secured)) => return secured,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            },
            () = place.cut.cancelled() => "too many others came after it".to_owned(),
        };
        tracing::debug!(%peer, why, "no TLS on this connection");
        None
    }

    async fn shake(&self, stream: TcpStream, write_stall: Duration) -> io::Result<Option<Secured>> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(None);
        }
        if first[0] != HANDSHAKE {
            refuse_plain(stream).await?;
            return Ok(None);
        }
        self.acceptor.accept(StallGuard::new(stream, write_stall)).await.map(Some)
    }
}

/// Tells who speaks plain HTTP what to do instead, and closes.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let problem =
        Problem::malformed("this master speaks TLS only: begin its URL with https:// instead of http://");
    let body = serde_json::to_string(&problem)?;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What came and is not read would make the kernel reset the connection, and the answer with it.
    tokio::io::copy(&mut stream.take(FORGET_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}
