//! What a session is made of, and what it can ask its shell for.

use crate::close::CloseReason;
use bytes::Bytes;
use protocol::{
    NodeId, RunId,
    log::{Stream, Tail},
    work::Run,
};

/// Bounds of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Slots: `protocol::node::slots_of(allotted_cores)`.
    pub slots: u32,
    /// Slots' worth of runs that may wait for a slot; a run past these is handed back.
    pub max_waiting: u32,
    /// Slots' worth of those that the executor is given ahead ([`Effect::StartNext`]), so that a slot goes on
    /// without waiting for us; 0 for one that cannot.
    pub max_ahead: u32,
    /// Runs taken and results kept, together; when full, new runs are handed back. At most 8,192, so that
    /// the list of them fits in the header of a hello.
    pub max_runs: usize,
    /// Bytes of results kept; when full, new runs are handed back. What already runs may pass it by its
    /// own results.
    pub max_kept_bytes: usize,
    /// Bytes of what ended runs have printed that are kept until their results are committed; past it the
    /// oldest are dropped. Results are not.
    pub max_kept_log_bytes: usize,
}

/// What a running program has printed, from some offset on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPiece {
    /// At most `protocol::log::LOG_PIECE_BYTES`; empty if there is nothing yet.
    pub tail: Tail,
    /// How much it has printed so far.
    pub end: u64,
}

impl Config {
    /// The bounds of a node with so many slots: as many runs may wait as run, at least 16. None goes ahead.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            slots,
            max_waiting: slots.max(16),
            max_ahead: 0,
            max_runs: 8_192,
            max_kept_bytes: 64 * 1024 * 1024,
            max_kept_log_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Which token goes with a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// The join token.
    Join,
    /// The session token of the registration before: it may take over its own name while the old
    /// registration counts as alive.
    Session,
}

/// Something for the shell to do. Effects are done in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// `POST /v1/nodes`; answered by [`Session::registered`](super::Session::registered) or [`Session::register_failed`](super::Session::register_failed).
    Register {
        /// With this token.
        bearer: Bearer,
    },
    /// Open the work channel; answered by [`Session::connected`](super::Session::connected) or [`Session::connect_failed`](super::Session::connect_failed).
    Connect {
        /// The node of the URL.
        node: NodeId,
    },
    /// Write this WebSocket message; once it is written, say so with [`Session::written`](super::Session::written).
    Send(Bytes),
    /// Close the channel, after what was sent is written or a second has passed; answered by
    /// [`Session::disconnected`](super::Session::disconnected) (unless an [`Effect::Exit`] follows).
    Close(CloseReason),
    /// Start this run with this input; answered by [`Session::ended`](super::Session::ended) or [`Session::gave_back`](super::Session::gave_back).
    Start(Box<Run>, Bytes),
    /// Start this run, of one slot, in the place of the next run of one slot that ends, in the order in which
    /// they were given; then as by [`Effect::Start`]. If one has ended that the session was not told of, that
    /// is at once.
    StartNext(Box<Run>, Bytes),
    /// Give this run back by [`Session::gave_back`](super::Session::gave_back) if it waits for the end of another
    /// one; if it does not, nothing is to be done.
    TakeBack(RunId),
    /// Stop this run, or end it if it waits for the end of another one; it is still answered by [`Session::ended`](super::Session::ended), once its slot is free.
    Cancel(RunId),
    /// Read what this run, which has started, has printed; answered by
    /// [`Session::log_read`](super::Session::log_read). Where there is nothing yet, the next that comes is told by
    /// [`Session::printed`](super::Session::printed).
    ReadLog {
        /// Which read.
        read: u64,
        /// The hand-out.
        run: RunId,
        /// Which stream.
        stream: Stream,
        /// From here on.
        offset: u64,
    },
    /// Call [`Session::tick`](super::Session::tick) at this time (monotonic microseconds); replaces the time named before.
    WakeAt(u64),
    /// End the process, after what was sent is written or a second has passed.
    Exit(ExitReason),
}

/// Why the node ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExitReason {
    /// In order: nothing was left, and the master knows.
    #[error("left in order")]
    Left,
    /// Asked to end, but this was left when the grace was over; those tasks run again elsewhere.
    #[error(
        "left with {running} running and {uncommitted} uncommitted results; these tasks run again elsewhere"
    )]
    Unfinished {
        /// Runs that had not ended.
        running: usize,
        /// Results that the master has not called committed.
        uncommitted: usize,
    },
    /// The token was refused.
    #[error("the master refuses the token: {0}; make a new one with `evenkeel token create --scope node`")]
    NotAuthorised(String),
    /// The registration was refused in a way that trying again does not change.
    #[error("the master refuses the registration: {0}")]
    Refused(String),
}

/// Why a registration failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterFailure {
    /// 401 or 403, with the detail.
    NotAuthorised(String),
    /// 400, 413, 415, 421, 422: will be the same next time; with the detail.
    Refused(String),
    /// Anything else, also 409 (the name's old bearer will be lost soon): tried again.
    Transient,
}

/// Why the channel could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// 401, 404 or 410: the master does not know this node or its token any more.
    Unknown,
    /// Anything else.
    Transient,
}
