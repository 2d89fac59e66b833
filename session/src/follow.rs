//! Reading a log piece by piece: which byte is next, and when the answer is over.
//!
//! One answer holds bytes that follow on each other without a gap: where some were dropped before they could be
//! sent, because the reader is slower than the program, the answer ends. Whoever wants the rest asks again, and
//! is told with which byte the next answer begins.

use protocol::{log::Tail, work::LogState};

/// How long a node may wait for output before it answers that there is none.
pub const LOG_WAIT_MS: u64 = 10_000;

/// What to do after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read again, from [`Follow::offset`].
    Again,
    /// All is there, or something is missing: the answer ends.
    Done,
    /// Whoever was asked does not have the run: look where it is.
    Elsewhere,
}

/// One answer under way.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    follow: bool,
    offset: u64,
    begun: bool,
    /// Without following: what there was when the answer began.
    until: Option<u64>,
}

impl Follow {
    /// An answer that begins with this byte, or with the first after it that is kept.
    #[must_use]
    pub const fn new(follow: bool, offset: u64) -> Self {
        Self { follow, offset, begun: false, until: None }
    }

    /// The next byte.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The beginning was told: an answer that does not begin with this byte has a gap.
    pub const fn begin(&mut self) {
        self.begun = true;
    }

    /// How long the next read waits for output, in milliseconds. The first does not: it says where the answer
    /// begins.
    #[must_use]
    pub const fn wait_ms(&self) -> u64 {
        if self.follow && self.begun { LOG_WAIT_MS } else { 0 }
    }

    /// A piece has come, of a run that had printed `end` bytes then and was doing `state`. Says what of it to hand
    /// on.
    pub fn took(&mut self, piece: Tail, end: u64, state: LogState) -> (Tail, Next) {
        if state == LogState::Unknown {
            return (Tail { offset: self.offset, ..Tail::default() }, Next::Elsewhere);
        }
        if !self.begun {
            self.offset = piece.offset;
            self.begun = true;
        }
        if piece.offset != self.offset {
            return (Tail { offset: self.offset, ..Tail::default() }, Next::Done);
        }
        self.offset = piece.end();
        let until = *self.until.get_or_insert(end);
        let done = match state {
            LogState::Running => !self.follow && self.offset >= until,
            LogState::Ended | LogState::Unknown => self.offset >= end,
        };
        (piece, if done { Next::Done } else { Next::Again })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::log::LOG_PIECE_BYTES;

    fn tail(offset: u64, text: &'static str) -> Tail {
        Tail { offset, bytes: text.into() }
    }

    #[test]
    fn without_following_it_ends_with_what_there_was_at_the_beginning() {
        let mut follow = Follow::new(false, 0);
        assert_eq!(follow.wait_ms(), 0);
        assert_eq!(follow.took(tail(5, "abc"), 10, LogState::Running).1, Next::Again);
        assert_eq!((follow.offset(), follow.wait_ms()), (8, 0));
        let (piece, next) = follow.took(tail(8, "de"), 1_000, LogState::Running);
        assert_eq!((piece, next), (tail(8, "de"), Next::Done));
        let mut quiet = Follow::new(false, 0);
        assert_eq!(quiet.took(tail(0, ""), 0, LogState::Running).1, Next::Done);
    }

    #[test]
    fn following_ends_with_the_run() {
        let mut follow = Follow::new(true, 0);
        assert_eq!(follow.wait_ms(), 0, "the beginning is told at once");
        assert_eq!(follow.took(tail(0, ""), 0, LogState::Running).1, Next::Again);
        assert_eq!(follow.wait_ms(), LOG_WAIT_MS);
        assert_eq!(follow.took(tail(0, "ab"), 2, LogState::Running).1, Next::Again);
        assert_eq!(follow.took(tail(2, "c"), 4, LogState::Ended).1, Next::Again);
        assert_eq!(follow.took(tail(3, "d"), 4, LogState::Ended).1, Next::Done);
    }

    #[test]
    fn it_ends_where_something_is_missing() {
        let mut follow = Follow::new(true, 0);
        assert_eq!(follow.took(tail(0, "ab"), 2, LogState::Running).1, Next::Again);
        let (piece, next) = follow.took(tail(900, "late"), 904, LogState::Running);
        assert_eq!((piece, next, follow.offset()), (tail(2, ""), Next::Done, 2));
        let mut told = Follow::new(true, 0);
        told.begin();
        assert_eq!(told.took(tail(7, "late"), 11, LogState::Running).1, Next::Done);
    }

    #[test]
    fn a_run_that_is_not_there_is_looked_for() {
        let mut follow = Follow::new(true, 4);
        assert_eq!(follow.took(tail(0, ""), 0, LogState::Unknown).1, Next::Elsewhere);
        assert_eq!(follow.took(tail(4, "x"), 5, LogState::Ended), (tail(4, "x"), Next::Done));
    }

    proptest! {
        #[test]
        fn a_kept_log_is_read_whole_from_any_byte(offset in 0_u64..1_000, bytes in 0_usize..3 * LOG_PIECE_BYTES, from in 0_u64..300_000, follow in any::<bool>()) {
            let kept = Tail { offset, bytes: (0..bytes).map(|n| n as u8).collect::<Vec<_>>().into() };
            let mut reading = Follow::new(follow, from);
            let mut read = Vec::new();
            for _ in 0..5 {
                let (piece, next) = reading.took(kept.piece(reading.offset()), kept.end(), LogState::Ended);
                read.extend_from_slice(&piece.bytes);
                if next == Next::Done {
                    break;
                }
            }
            let begin = (from.clamp(offset, kept.end()) - offset) as usize;
            prop_assert_eq!(&read[..], &kept.bytes[begin..]);
            prop_assert_eq!(reading.offset(), kept.end());
        }
    }
}
