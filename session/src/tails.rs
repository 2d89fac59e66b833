//! What a node sends of an ended run's log, put together until its result comes.

use bytes::BytesMut;
use protocol::{
    RunId,
    log::{MAX_LOG_BYTES, Stream, Tail, Tails},
    work::LogTail,
};

/// The parts of one run's log that have come: at most twice [`MAX_LOG_BYTES`], whatever the node sends.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    run: Option<RunId>,
    stdout: Part,
    stderr: Part,
}

#[derive(Debug, Default)]
struct Part {
    offset: u64,
    bytes: BytesMut,
}

impl Part {
    /// Of parts that do not follow on each other the later counts; what goes past the bound is dropped.
    fn add(&mut self, offset: u64, bytes: &[u8]) {
        if offset != self.offset.saturating_add(self.bytes.len() as u64) {
            self.bytes.clear();
        }
        if self.bytes.is_empty() {
            self.offset = offset;
        }
        let room = MAX_LOG_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn into_tail(self) -> Tail {
        // A copy of exactly its length: the buffer has grown by doubling, and this may be kept for long.
        Tail { offset: self.offset, bytes: Box::<[u8]>::from(&self.bytes[..]).into() }
    }
}

impl Gathering {
    /// A part has come. One of another run ends what was gathered before: its result did not follow.
    pub(crate) fn add(&mut self, header: LogTail, bytes: &[u8]) {
        if self.run != Some(header.run) {
            *self = Self { run: Some(header.run), ..Self::default() };
        }
        let part = match header.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        part.add(header.offset, bytes);
    }

    /// The result of this run has come.
    pub(crate) fn take(&mut self, run: RunId) -> Option<Box<Tails>> {
        let Self { run: of, stdout, stderr } = std::mem::take(self);
        let tails = Tails { stdout: stdout.into_tail(), stderr: stderr.into_tail() };
        (of == Some(run) && !tails.is_empty()).then(|| Box::new(tails))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(run: u64, stream: Stream, offset: u64) -> LogTail {
        LogTail { epoch: 1, run: RunId(run), stream, offset }
    }

    #[test]
    fn parts_of_both_streams_are_put_together() {
        let mut gathering = Gathering::default();
        gathering.add(header(1, Stream::Stdout, 7), b"ab");
        gathering.add(header(1, Stream::Stderr, 0), b"x");
        gathering.add(header(1, Stream::Stdout, 9), b"cd");
        let tails = gathering.take(RunId(1)).unwrap_or_default();
        assert_eq!((tails.stdout.offset, &tails.stdout.bytes[..]), (7, &b"abcd"[..]));
        assert_eq!((tails.stderr.offset, &tails.stderr.bytes[..]), (0, &b"x"[..]));
        assert!(gathering.take(RunId(1)).is_none(), "it was taken");
    }

    #[test]
    fn what_belongs_to_another_run_is_not_mixed_in() {
        let mut gathering = Gathering::default();
        gathering.add(header(1, Stream::Stdout, 0), b"one");
        gathering.add(header(2, Stream::Stdout, 0), b"two");
        let tails = gathering.take(RunId(2)).unwrap_or_default();
        assert_eq!(&tails.stdout.bytes[..], b"two");
        gathering.add(header(3, Stream::Stdout, 0), b"three");
        assert!(gathering.take(RunId(4)).is_none());
        assert!(gathering.take(RunId(3)).is_none(), "its result did not follow");
    }

    #[test]
    fn a_node_that_sends_without_end_or_out_of_order_is_held_to_the_bound() {
        let mut gathering = Gathering::default();
        let part = vec![b'x'; 700_000];
        for at in 0..5 {
            gathering.add(header(1, Stream::Stdout, at * 700_000), &part);
        }
        gathering.add(header(1, Stream::Stderr, 5), b"early");
        gathering.add(header(1, Stream::Stderr, u64::MAX), b"late");
        let tails = gathering.take(RunId(1)).unwrap_or_default();
        assert!(tails.stdout.bytes.len() <= MAX_LOG_BYTES);
        assert_eq!((tails.stderr.offset, &tails.stderr.bytes[..]), (u64::MAX, &b"late"[..]));
    }
}
