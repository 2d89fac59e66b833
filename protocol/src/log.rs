//! Logs of tasks: the end of what a program wrote to its standard output and to its standard error.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes that are kept of each stream of a run: the last ones.
pub const MAX_LOG_BYTES: usize = 1024 * 1024;
/// Most bytes of a log in one frame, and read at once.
pub const LOG_PIECE_BYTES: usize = 64 * 1024;

/// Header of an answer with a log: the offset of its first byte, counted from the first that the program
/// wrote. What is asked for and lies before it was dropped.
pub const OFFSET_HEADER: &str = "evenkeel-log-offset";
/// Header of an answer with a log: which attempt of the task it is of, counted from 1; absent if there is none.
pub const ATTEMPT_HEADER: &str = "evenkeel-log-attempt";
/// Header of an answer with a log: which run it is of. Given back as `run`, it says what `offset` counts in.
pub const RUN_HEADER: &str = "evenkeel-log-run";

/// One of the two streams of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// As it is written in a query.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The query of `GET /v1/tasks/{id}/log`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// Which stream; standard output if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// 1: goes on while the attempt runs. 0 if absent: what there is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<u8>,
    /// Begins with this byte, or with the first after it that is kept; the first if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The run in which `offset` counts, from [`RUN_HEADER`]; if the log is of another run by now, the answer
    /// begins with that one's first byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
}

/// The end of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes, at most [`MAX_LOG_BYTES`].
    pub bytes: Bytes,
}

impl Tail {
    /// Offset past the last byte: how much the program has written.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }

    /// What there is from this offset on, or from the first byte that is kept: at most [`LOG_PIECE_BYTES`],
    /// which share this tail's memory.
    #[must_use]
    pub fn piece(&self, from: u64) -> Self {
        let offset = from.clamp(self.offset, self.end());
        // Below the length, which is a usize.
        let begin = (offset - self.offset) as usize;
        let end = self.bytes.len().min(begin + LOG_PIECE_BYTES);
        Self { offset, bytes: self.bytes.slice(begin..end) }
    }
}

/// The ends of both streams of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tails {
    /// Of standard output.
    pub stdout: Tail,
    /// Of standard error.
    pub stderr: Tail,
}

impl Tails {
    /// One of them.
    #[must_use]
    pub const fn of(&self, stream: Stream) -> &Tail {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// Bytes of both.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.stdout.bytes.len() + self.stderr.bytes.len()
    }

    /// Whether the program wrote nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_begins_where_it_is_asked_to_or_where_something_is_kept() {
        let tail = Tail { offset: 10, bytes: Bytes::from(vec![b'x'; LOG_PIECE_BYTES + 5]) };
        let end = tail.end();
        let piece = |from| {
            let piece = tail.piece(from);
            (piece.offset, piece.bytes.len())
        };
        assert_eq!(piece(0), (10, LOG_PIECE_BYTES));
        assert_eq!(piece(15), (15, LOG_PIECE_BYTES));
        assert_eq!(piece(end - 1), (end - 1, 1));
        assert_eq!(piece(u64::MAX), (end, 0));
    }
}
