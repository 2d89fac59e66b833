//! Frames gathered into messages.

use bytes::{Bytes, BytesMut};
use protocol::frame::MAX_MESSAGE_BYTES;

/// A message is ended once it is this long, so that pings and small frames do not wait behind megabytes.
const SOFT_MESSAGE_BYTES: usize = 256 * 1024;

/// Frames gathered into messages of at most [`MAX_MESSAGE_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    open: BytesMut,
    sealed: Vec<Bytes>,
}

impl Outbox {
    /// Appends what `put` writes, which is one frame.
    ///
    /// One frame alone is below the bound: headers are bounded by their senders and bodies are at most
    /// `MAX_BODY_BYTES`, together below half of a message.
    pub(crate) fn put(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let before = self.open.len();
        put(&mut self.open);
        if self.open.len() > MAX_MESSAGE_BYTES && before > 0 {
            let last = self.open.split_off(before);
            self.seal();
            self.open = last;
        }
        if self.open.len() >= SOFT_MESSAGE_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push(self.open.split().freeze());
        }
    }

    /// Takes the messages, in order.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        self.seal();
        std::mem::take(&mut self.sealed)
    }

    /// Bytes gathered and not taken.
    pub(crate) fn bytes(&self) -> usize {
        self.open.len() + self.sealed.iter().map(Bytes::len).sum::<usize>()
    }

    /// Throws everything away.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.sealed.clear();
    }
}
