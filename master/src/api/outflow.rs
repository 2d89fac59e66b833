//! A body that is written line by line and knows how much of it nobody has read yet.

use axum::body::Body;
use bytes::Bytes;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::{Notify, mpsc};

/// Unread bytes past which there is no room (contract section 2).
pub(crate) const MAX_UNREAD_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug, Default)]
struct Gauge {
    unread: AtomicUsize,
    read: Notify,
}

/// The writing end. The channel has no bound of its own: its writer asks [`Outflow::has_room`] before
/// it takes up anything that may lead to a line, so at most one line goes past the bound.
#[derive(Debug)]
pub(crate) struct Outflow {
    lines: mpsc::UnboundedSender<Bytes>,
    gauge: Arc<Gauge>,
}

/// A writing end and the body that it feeds; the body ends when the writing end is dropped.
pub(crate) fn outflow() -> (Outflow, Body) {
    let (lines, receiver) = mpsc::unbounded_channel::<Bytes>();
    let gauge = Arc::new(Gauge::default());
    let body_gauge = Arc::clone(&gauge);
    let stream = futures_util::stream::unfold((receiver, body_gauge), |(mut receiver, gauge)| async move {
        let first = receiver.recv().await?;
        // Lines that wait already go out as one chunk.
        let mut chunk = Vec::from(first);
        while chunk.len() < 64 * 1024
            && let Ok(line) = receiver.try_recv()
        {
            chunk.extend_from_slice(&line);
        }
        gauge.unread.fetch_sub(chunk.len(), Ordering::Relaxed);
        gauge.read.notify_one();
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), (receiver, gauge)))
    });
    (Outflow { lines, gauge }, Body::from_stream(stream))
}

impl Outflow {
    /// Adds a line. One that nobody will read any more is dropped; [`Outflow::closed`] tells of it.
    pub(crate) fn put(&self, line: Vec<u8>) {
        self.gauge.unread.fetch_add(line.len(), Ordering::Relaxed);
        let _gone = self.lines.send(line.into());
    }

    /// Whether less than [`MAX_UNREAD_BYTES`] are unread.
    pub(crate) fn has_room(&self) -> bool {
        self.gauge.unread.load(Ordering::Relaxed) < MAX_UNREAD_BYTES
    }

    /// Until there is room.
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.gauge.read.notified().await;
        }
    }

    /// Until the reader has gone.
    pub(crate) async fn closed(&self) {
        self.lines.closed().await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn room_comes_back_as_the_body_is_read() {
        let (out, mut body) = outflow();
        out.put(vec![b'x'; MAX_UNREAD_BYTES]);
        assert!(!out.has_room());
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap().len(), MAX_UNREAD_BYTES);
        out.room().await;
        out.put(b"last\n".to_vec());
        drop(out);
        assert_eq!(&body.collect().await.unwrap().to_bytes()[..], b"last\n");
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_is_noticed() {
        let (out, body) = outflow();
        drop(body);
        out.closed().await;
        out.put(b"nobody\n".to_vec());
    }
}
