//! The master reads what runs print: each read is answered by one chunk, once there is something, the run has
//! ended, or the read's time is over.
//!
//! Logs are sent only while little else waits to be written, so that they never hold results up.

use super::{Effect, Session, effect::LogPiece, runs::LogPlace};
use protocol::{
    RunId,
    log::{LOG_PIECE_BYTES, Stream, Tail, Tails},
    work::{LogChunk, LogRead, LogState, LogTail, ToMaster},
};
use std::collections::BTreeMap;

/// Reads that may wait; past these one is answered at once, with nothing.
pub const MAX_LOG_READS: usize = 256;
/// Logs of running tasks are sent only while less than this waits to be written.
pub const LOG_WINDOW_BYTES: usize = 256 * 1024;
/// The end of a run that is over is told within this; a read waits for it, however long it was to wait.
const END_WITHIN_US: u64 = 1_000_000;
/// Longest that a read may wait.
pub const MAX_LOG_WAIT_MS: u64 = 30_000;

/// What a read waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// To be looked at.
    Look,
    /// The executor's answer.
    Answer,
    /// Output; with the offsets of what it was answered last.
    Output { offset: u64, end: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Read {
    run: RunId,
    stream: Stream,
    offset: u64,
    until_us: u64,
    wants: Wants,
}

/// The reads that wait; ids grow, so the oldest comes first.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiting: BTreeMap<u64, Read>,
}

impl Reads {
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// When the first of those that wait for output has waited long enough.
    pub(super) fn wake_us(&self) -> Option<u64> {
        let waits = self.waiting.values().filter(|read| matches!(read.wants, Wants::Output { .. }));
        waits.map(|read| read.until_us).min()
    }

    /// Something changed about this run, or about one stream of it.
    pub(super) fn look(&mut self, run: RunId, stream: Option<Stream>) {
        for read in self.waiting.values_mut() {
            let is_meant = read.run == run && stream.is_none_or(|stream| stream == read.stream);
            // What was asked of the executor comes back by itself.
            if is_meant && read.wants != Wants::Answer {
                read.wants = Wants::Look;
            }
        }
    }

    fn asked(&self) -> usize {
        self.waiting.values().filter(|read| read.wants == Wants::Answer).count()
    }

    fn next(&self) -> Option<(u64, Read)> {
        let next = self.waiting.iter().find(|(_, read)| read.wants == Wants::Look);
        next.map(|(id, read)| (*id, *read))
    }
}

impl Session {
    /// The answer to [`Effect::ReadLog`]; `None` if the run is over, and its end about to be told.
    /// What is to be sent goes out with the next [`Session::flush`].
    pub fn log_read(&mut self, now_us: u64, read: u64, piece: Option<LogPiece>, out: &mut Vec<Effect>) {
        if let (Some(waiting), None) = (self.reads.waiting.get_mut(&read), &piece) {
            waiting.until_us = waiting.until_us.max(now_us.saturating_add(END_WITHIN_US));
            waiting.wants = Wants::Output { offset: waiting.offset, end: waiting.offset };
        } else if let (Some(waiting), Some(LogPiece { tail, end })) =
            (self.reads.waiting.get_mut(&read), piece)
        {
            if tail.bytes.is_empty() && now_us < waiting.until_us {
                waiting.wants = Wants::Output { offset: tail.offset, end };
            } else {
                self.answer(read, tail, end, LogState::Running);
            }
        }
        self.settle(now_us, out);
    }

    /// A run has printed something, after a read of it that found nothing.
    pub fn printed(&mut self, run: RunId, stream: Stream) {
        self.reads.look(run, Some(stream));
    }

    pub(super) fn log_asked(&mut self, now_us: u64, asked: LogRead) {
        let LogRead { read, run, stream, offset, wait_ms, .. } = asked;
        let full = self.reads.waiting.len() >= MAX_LOG_READS;
        let wait_ms = if full { 0 } else { wait_ms.min(MAX_LOG_WAIT_MS) };
        let until_us = now_us.saturating_add(wait_ms * 1_000);
        self.reads.waiting.insert(read, Read { run, stream, offset, until_us, wants: Wants::Look });
        if full {
            self.answer(read, Tail { offset, ..Tail::default() }, offset, LogState::Running);
        }
    }

    /// Reads that have waited long enough are answered with nothing.
    pub(super) fn log_waits_over(&mut self, now_us: u64) {
        let over: Vec<_> = self
            .reads
            .waiting
            .iter()
            .filter_map(|(&id, read)| match read.wants {
                Wants::Output { offset, end } if read.until_us <= now_us => Some((id, offset, end)),
                _ => None,
            })
            .collect();
        for (read, offset, end) in over {
            self.answer(read, Tail { offset, ..Tail::default() }, end, LogState::Running);
        }
    }

    /// Looks at reads while there is room for their answers.
    pub(super) fn serve_reads(&mut self, out: &mut Vec<Effect>) {
        while self.waiting_bytes + self.outbox.bytes() + self.reads.asked() * LOG_PIECE_BYTES
            < LOG_WINDOW_BYTES
            && let Some((id, read)) = self.reads.next()
        {
            match self.runs.log_of(read.run) {
                LogPlace::Running => {
                    if let Some(waiting) = self.reads.waiting.get_mut(&id) {
                        waiting.wants = Wants::Answer;
                    }
                    let Read { run, stream, offset, .. } = read;
                    out.push(Effect::ReadLog { read: id, run, stream, offset });
                }
                LogPlace::Waiting => {
                    if let Some(waiting) = self.reads.waiting.get_mut(&id) {
                        waiting.wants = Wants::Output { offset: 0, end: 0 };
                    }
                }
                LogPlace::Kept(tails) => {
                    let tail = tails.map(|tails| tails.of(read.stream)).cloned().unwrap_or_default();
                    self.answer(id, tail.piece(read.offset), tail.end(), LogState::Ended);
                }
                LogPlace::Unknown => self.answer(id, Tail::default(), 0, LogState::Unknown),
            }
        }
    }

    fn answer(&mut self, read: u64, piece: Tail, end: u64, state: LogState) {
        if self.reads.waiting.remove(&read).is_some() {
            let chunk = LogChunk { epoch: self.epoch, read, offset: piece.offset, end, state };
            self.outbox.put(|message| ToMaster::LogChunk(chunk, piece.bytes).put(message));
        }
    }

    /// What an ended run has printed, ahead of its result.
    pub(super) fn send_tails(&mut self, run: RunId, tails: &Tails) {
        let epoch = self.epoch;
        for stream in Stream::ALL {
            let tail = tails.of(stream);
            let mut offset = tail.offset;
            while offset < tail.end() {
                let part = tail.piece(offset);
                let header = LogTail { epoch, run, stream, offset };
                offset = part.end();
                self.outbox.put(|message| ToMaster::LogTail(header, part.bytes).put(message));
            }
        }
    }
}
