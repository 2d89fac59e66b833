//! The log of a run: the end of what its program prints, written by the slot that runs it and read by the
//! agent meanwhile.
//!
//! A stream takes memory only as it is written to, at most [`MAX_LOG_BYTES`]. What a result is made of is
//! always kept; what goes beyond that comes out of [`Room`], which all runs of the node share. A stream that
//! finds none there keeps less.

use protocol::{
    RunId,
    log::{LOG_PIECE_BYTES, MAX_LOG_BYTES, Stream, Tail, Tails},
};
use session::node::LogPiece;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Kept of each stream even where there is no room.
const SURE_BYTES: usize = 64 * 1024;
/// A stream that is written to takes at least this.
const LEAST_BYTES: usize = 1024;
/// Bounds of the room that the runs of one node share.
const ROOM_BYTES: (u64, u64) = (2 << 20, 32 << 20);

/// Called, on the slot's thread, when a stream has something that the agent waits for.
pub(crate) type OnOutput = Arc<dyn Fn(RunId, Stream) + Send + Sync>;

/// Bytes of a node that its logs may still take; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<AtomicUsize>);

impl Room {
    /// The bytes of a node with so much memory: a thirty-second part, from 2 MiB to 32 MiB. As many again are
    /// for the logs of runs that have ended and are not committed.
    pub(crate) fn bytes_of(memory_bytes: u64) -> usize {
        // At most 32 MiB, which fits.
        (memory_bytes / 32).clamp(ROOM_BYTES.0, ROOM_BYTES.1) as usize
    }

    /// So much room.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The end of one stream.
#[derive(Debug)]
struct Ring {
    kept: VecDeque<u8>,
    /// How much the program has written.
    end: u64,
    /// How much may be kept now.
    limit: usize,
    /// How much is kept whether there is room or not.
    sure: usize,
    /// Whether the agent waits for something.
    awaited: bool,
    /// Whether the run is over, and what was kept has been taken.
    taken: bool,
}

impl Ring {
    const fn new() -> Self {
        let (end, limit, sure) = (0, 0, SURE_BYTES);
        Self { kept: VecDeque::new(), end, limit, sure, awaited: false, taken: false }
    }

    fn push(&mut self, room: &Room, new: &[u8]) {
        self.end += new.len() as u64;
        self.widen(room, (self.kept.len() + new.len()).min(MAX_LOG_BYTES));
        let new = &new[new.len().saturating_sub(self.limit)..];
        let over = (self.kept.len() + new.len()).saturating_sub(self.limit);
        self.kept.drain(..over);
        self.kept.extend(new);
    }

    /// Makes the limit at least `wanted`, if there is room, in steps that double it.
    fn widen(&mut self, room: &Room, wanted: usize) {
        if wanted <= self.limit {
            return;
        }
        let step = (2 * self.limit).max(wanted).clamp(LEAST_BYTES, MAX_LOG_BYTES);
        let (beyond, beyond_before) = (step.saturating_sub(self.sure), self.limit.saturating_sub(self.sure));
        self.limit = if beyond == beyond_before || room.take(beyond - beyond_before) {
            step
        } else {
            self.limit.max(wanted.min(self.sure))
        };
        self.kept.reserve_exact(self.limit - self.kept.len());
    }

    fn release(&mut self, room: &Room) {
        room.give_back(self.limit.saturating_sub(self.sure));
        self.limit = 0;
    }

    fn start(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    fn copy(&self, from: usize, to: usize) -> Vec<u8> {
        let (first, second) = self.kept.as_slices();
        let of = |part: &[u8], before: usize| {
            let at = |index: usize| index.saturating_sub(before).min(part.len());
            part[at(from)..at(to)].to_vec()
        };
        let mut bytes = of(first, 0);
        bytes.extend_from_slice(&of(second, first.len()));
        bytes
    }

    fn piece(&mut self, from: u64) -> LogPiece {
        let offset = from.clamp(self.start(), self.end);
        // Below what is kept.
        let begin = (offset - self.start()) as usize;
        let bytes = self.copy(begin, self.kept.len().min(begin + LOG_PIECE_BYTES));
        self.awaited = bytes.is_empty();
        LogPiece { tail: Tail { offset, bytes: bytes.into() }, end: self.end }
    }
}

/// The log of one run.
pub(crate) struct Log {
    stdout: Mutex<Ring>,
    stderr: Mutex<Ring>,
    room: Room,
    on_output: Option<(RunId, OnOutput)>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Default for Log {
    /// A log that nobody reads while it is written, with room of its own.
    fn default() -> Self {
        Self::new(Room::new(2 * MAX_LOG_BYTES), None)
    }
}

impl Log {
    /// An empty log; `on_output` is told as which run.
    pub(crate) fn new(room: Room, on_output: Option<(RunId, OnOutput)>) -> Self {
        let (stdout, stderr) = (Mutex::new(Ring::new()), Mutex::new(Ring::new()));
        Self { stdout, stderr, room, on_output }
    }

    /// So much of standard output is kept whether there is room or not, because a result is made of it.
    pub(crate) fn keep_stdout(&self, bytes: usize) {
        self.ring(Stream::Stdout).sure = bytes.min(MAX_LOG_BYTES);
    }

    /// The program has written this.
    pub(crate) fn push(&self, stream: Stream, bytes: &[u8]) {
        let mut ring = self.ring(stream);
        ring.push(&self.room, bytes);
        let tell = std::mem::take(&mut ring.awaited);
        drop(ring);
        if tell && let Some((run, on_output)) = &self.on_output {
            on_output(*run, stream);
        }
    }

    /// The last bytes that were written, at most `most`, and whether that is not all.
    pub(crate) fn last(&self, stream: Stream, most: usize) -> (Vec<u8>, bool) {
        let ring = self.ring(stream);
        let kept = ring.kept.len();
        let bytes = ring.copy(kept.saturating_sub(most), kept);
        let cut = ring.end > bytes.len() as u64;
        (bytes, cut)
    }

    /// How much was written.
    pub(crate) fn written(&self, stream: Stream) -> u64 {
        self.ring(stream).end
    }

    /// What there is from this offset on. If there is nothing yet, the next that comes is told. `None` once
    /// the run is over.
    pub(crate) fn piece(&self, stream: Stream, from: u64) -> Option<LogPiece> {
        let mut ring = self.ring(stream);
        (!ring.taken).then(|| ring.piece(from))
    }

    /// Takes what was kept, at the end of the run; `None` if the program wrote nothing.
    pub(crate) fn take(&self) -> Option<Box<Tails>> {
        let take = |stream| {
            let mut ring = self.ring(stream);
            ring.taken = true;
            ring.release(&self.room);
            let offset = ring.start();
            // Exactly as long as what was kept, once it is made into bytes.
            Tail { offset, bytes: Vec::from(std::mem::take(&mut ring.kept)).into() }
        };
        let tails = Tails { stdout: take(Stream::Stdout), stderr: take(Stream::Stderr) };
        (!tails.is_empty()).then(|| Box::new(tails))
    }

    /// A ring is changed in one go, so a panic of another holder cannot have left it half changed.
    fn ring(&self, stream: Stream) -> MutexGuard<'_, Ring> {
        let ring = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        for stream in Stream::ALL {
            self.ring(stream).release(&self.room);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::mpsc::channel;

    fn left(room: &Room) -> usize {
        room.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_log_that_is_not_written_to_takes_no_memory() {
        let room = Room::new(1);
        let log = Log::new(room.clone(), None);
        assert_eq!(log.ring(Stream::Stdout).kept.capacity(), 0);
        assert_eq!(log.take(), None);
        assert_eq!(left(&room), 1);
    }

    #[test]
    fn ten_times_the_bound_takes_no_more_than_the_bound() {
        let room = Room::new(MAX_LOG_BYTES);
        let log = Log::new(room.clone(), None);
        let line: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
        let all = line.repeat(10 * MAX_LOG_BYTES / line.len());
        for part in all.chunks(line.len()) {
            log.push(Stream::Stdout, part);
        }
        assert!(log.ring(Stream::Stdout).kept.capacity() <= MAX_LOG_BYTES);
        assert_eq!(left(&room), SURE_BYTES);
        let tails = log.take().unwrap();
        assert_eq!(tails.stdout.end(), all.len() as u64);
        assert_eq!(&tails.stdout.bytes[..], &all[all.len() - MAX_LOG_BYTES..]);
        assert_eq!(left(&room), MAX_LOG_BYTES, "the room is there for others again");
    }

    #[test]
    fn without_room_a_stream_keeps_what_is_sure() {
        let room = Room::new(0);
        let log = Log::new(room.clone(), None);
        log.keep_stdout(200_000);
        for _ in 0..50 {
            log.push(Stream::Stdout, &[b'o'; 10_000]);
            log.push(Stream::Stderr, &[b'e'; 10_000]);
        }
        let tails = log.take().unwrap();
        assert_eq!((tails.stdout.bytes.len(), tails.stdout.end()), (200_000, 500_000));
        assert_eq!((tails.stderr.bytes.len(), tails.stderr.end()), (SURE_BYTES, 500_000));
        assert_eq!(left(&room), 0);
    }

    #[test]
    fn who_waits_for_output_is_told_once() {
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let on_output: OnOutput =
            Arc::new(move |run, stream| sender.lock().unwrap().send((run, stream)).unwrap());
        let log = Log::new(Room::new(0), Some((RunId(7), on_output)));
        log.push(Stream::Stdout, b"unasked");
        assert_eq!(log.piece(Stream::Stdout, 2).unwrap().tail.bytes, "asked"[..].to_owned());
        assert!(log.piece(Stream::Stdout, 7).unwrap().tail.bytes.is_empty());
        log.push(Stream::Stderr, b"another stream");
        log.push(Stream::Stdout, b"more");
        log.push(Stream::Stdout, b" and more");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(RunId(7), Stream::Stdout)]);
        let piece = log.piece(Stream::Stdout, 7).unwrap();
        assert_eq!((piece.tail.offset, &piece.tail.bytes[..], piece.end), (7, &b"more and more"[..], 20));
        log.take();
        assert!(log.piece(Stream::Stdout, 0).is_none(), "the session has it now");
    }

    proptest! {
        #[test]
        fn exactly_the_end_is_kept(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3_000), 0..40), room in 0_usize..20_000, sure in 0_usize..5_000, most in 0_usize..9_000) {
            let room = Room::new(room);
            let log = Log::new(room.clone(), None);
            log.keep_stdout(sure);
            for part in &parts {
                log.push(Stream::Stdout, part);
                let ring = log.ring(Stream::Stdout);
                prop_assert!(ring.kept.capacity() <= ring.limit.max(LEAST_BYTES));
            }
            let all = parts.concat();
            let least = all.len().min(sure);
            let (last, cut) = log.last(Stream::Stdout, most);
            prop_assert!(last.len() >= least.min(most) && last.len() <= most);
            prop_assert_eq!(&last[..], &all[all.len() - last.len()..]);
            prop_assert_eq!(cut, last.len() < all.len());
            let tails = log.take().unwrap_or_default();
            prop_assert!(tails.stdout.bytes.len() >= least);
            prop_assert_eq!(&tails.stdout.bytes[..], &all[all.len() - tails.stdout.bytes.len()..]);
        }
    }
}
