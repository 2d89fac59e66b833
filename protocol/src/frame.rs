//! Framing of the work channel: a WebSocket message is a run of frames
//! `[u32 BE length of what follows][u8 type][u32 BE header length][JSON header][raw body]`.
//!
//! The body is outside of the JSON, so that inputs and results are passed through without being parsed.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most bytes of one WebSocket message.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of one frame's JSON header.
pub const MAX_HEADER_BYTES: usize = 1024 * 1024;
/// Bytes of a frame beside header and body.
pub const FRAME_OVERHEAD_BYTES: usize = 9;

/// One frame, its header not parsed yet. Both slices share the message's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// The type; unknown ones are skipped by the reader.
    pub kind: u8,
    /// JSON.
    pub header: Bytes,
    /// Raw; may be empty.
    pub body: Bytes,
}

/// A message that is not a run of frames. The channel is closed on it: there is no way to find the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message ends inside a frame.
    #[error("message ends inside a frame at byte {at}: the sender is broken or speaks another protocol")]
    Truncated {
        /// Offset of the frame.
        at: usize,
    },
    /// The header is longer than the frame, or than the bound.
    #[error(
        "frame at byte {at} names a header of {header_bytes} bytes, more than the frame or the bound holds"
    )]
    Header {
        /// Offset of the frame.
        at: usize,
        /// What it names.
        header_bytes: usize,
    },
    /// The message is longer than the bound.
    #[error("message of {bytes} bytes is over the bound of {MAX_MESSAGE_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

/// Appends one frame to a message.
///
/// The caller keeps the message below [`MAX_MESSAGE_BYTES`].
pub fn put_frame(message: &mut BytesMut, kind: u8, header: &[u8], body: &[u8]) {
    let length = 1 + 4 + header.len() + body.len();
    message.reserve(4 + length);
    // Both fit u32: a message is at most 4 MiB, which the receiver checks as well.
    message.put_u32(length as u32);
    message.put_u8(kind);
    message.put_u32(header.len() as u32);
    message.put_slice(header);
    message.put_slice(body);
}

/// Takes a message apart.
///
/// # Errors
/// [`FrameError`] if it is not a run of whole frames within the bounds; no frame of it is used then.
pub fn split_frames(mut message: Bytes) -> Result<Vec<RawFrame>, FrameError> {
    let total = message.len();
    if total > MAX_MESSAGE_BYTES {
        return Err(FrameError::TooLarge { bytes: total });
    }
    let mut frames = Vec::new();
    while message.has_remaining() {
        let at = total - message.remaining();
        if message.remaining() < FRAME_OVERHEAD_BYTES {
            return Err(FrameError::Truncated { at });
        }
        let length = message.get_u32() as usize;
        if length < 5 || message.remaining() < length {
            return Err(FrameError::Truncated { at });
        }
        let kind = message.get_u8();
        let header_bytes = message.get_u32() as usize;
        if header_bytes > length - 5 || header_bytes > MAX_HEADER_BYTES {
            return Err(FrameError::Header { at, header_bytes });
        }
        let header = message.split_to(header_bytes);
        let body = message.split_to(length - 5 - header_bytes);
        frames.push(RawFrame { kind, header, body });
    }
    Ok(frames)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_the_one_of_the_contract() {
        let mut message = BytesMut::new();
        put_frame(&mut message, 7, b"{}", b"xyz");
        assert_eq!(&message[..], b"\x00\x00\x00\x0a\x07\x00\x00\x00\x02{}xyz");
    }

    proptest! {
        #[test]
        fn what_was_put_comes_out(parts in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut message = BytesMut::new();
            for (kind, header, body) in &parts {
                put_frame(&mut message, *kind, header, body);
            }
            let frames = split_frames(message.freeze()).unwrap();
            let back: Vec<_> = frames.into_iter().map(|f| (f.kind, f.header.to_vec(), f.body.to_vec())).collect();
            prop_assert_eq!(back, parts);
        }

        #[test]
        fn any_bytes_are_refused_or_read_whole(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let total = bytes.len();
            if let Ok(frames) = split_frames(Bytes::from(bytes)) {
                let read: usize = frames.iter().map(|f| FRAME_OVERHEAD_BYTES + f.header.len() + f.body.len()).sum();
                prop_assert_eq!(read, total);
            }
        }
    }
}
