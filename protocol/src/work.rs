//! Messages of the work channel, `GET /v1/nodes/{id}/work`, subprotocol [`SUBPROTOCOL`].
//!
//! The node opens the channel and says [`Hello`]; the master answers [`Welcome`]. Then runs go out and
//! results come back. Every frame carries the master's epoch: a node refuses frames of a lower one than
//! it has seen, so that a master that was replaced can dispatch nothing. Unknown fields and frame types
//! are ignored, so that versions N and N−1 understand each other.

use crate::{
    BootId, NodeId, RunId, TaskId,
    frame::{RawFrame, put_frame},
    log::Stream,
    node::CpuSampleFields,
    task::TaskError,
};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "evenkeel.work.v1";
/// Version spoken; N and N−1 are understood.
pub const VERSION: u32 = 1;
/// The master pings this often; a pong counts as contact.
pub const PING_INTERVAL_MS: u64 = 5_000;

/// First frame of a node on a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Highest epoch that the node has seen; 0 if none.
    pub epoch: u64,
    /// Version of the protocol that the node speaks.
    pub version: u32,
    /// Who it says it is; must be the node of the URL.
    pub node: NodeId,
    /// This life of the process.
    pub boot_id: BootId,
    /// Every run that it has and that the master has not yet called committed: running ones and ended
    /// ones whose result follows.
    pub runs: Vec<RunRef>,
    /// Whether it is draining.
    #[serde(default)]
    pub draining: bool,
}

/// A run and its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunRef {
    /// The task.
    pub task: TaskId,
    /// The hand-out.
    pub run: RunId,
}

/// First frame of the master on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The master's epoch.
    pub epoch: u64,
    /// Version of the protocol that is spoken from here on.
    pub version: u32,
    /// How often to report, 500 … 5,000.
    pub report_interval_ms: u64,
}

/// Run this. The frame's body is the input as JSON text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The master's epoch.
    pub epoch: u64,
    /// The task.
    pub task: TaskId,
    /// The hand-out.
    pub run: RunId,
    /// Name of the kind.
    pub kind: String,
    /// Bound of the running time; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What is left of the deadline at sending; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_in_ms: Option<u64>,
    /// Threads that it keeps busy.
    pub cores: f64,
    /// Memory set aside for it; 0 if none.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// Stop these. A run that is not known is ignored. Each known one is answered by a [`RunResult`] that
/// says `cancelled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The master's epoch.
    pub epoch: u64,
    /// The hand-outs.
    pub runs: Vec<RunId>,
}

/// The results of these are recorded, or will never be wanted: the node forgets them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The master's epoch.
    pub epoch: u64,
    /// The hand-outs.
    pub runs: Vec<RunId>,
}

/// Take no new work; hand back what still runs after the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The master's epoch.
    pub epoch: u64,
    /// Running tasks may go on this long; no bound if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Take work again after a [`Drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The master's epoch.
    pub epoch: u64,
}

/// Send a piece of what a run has printed. Answered by one [`LogChunk`]. A node that does not know this frame
/// does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRead {
    /// The master's epoch.
    pub epoch: u64,
    /// Names this read in its answer; not used twice on one channel.
    pub read: u64,
    /// The hand-out.
    pub run: RunId,
    /// Which stream.
    pub stream: Stream,
    /// From this byte on, or from the first after it that is kept.
    pub offset: u64,
    /// If there is nothing yet, wait so long for something before answering; at most 30,000.
    #[serde(default)]
    pub wait_ms: u64,
}

/// How a run ended. The frame's body is the result as JSON text; empty if there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The epoch that the node believes in.
    pub epoch: u64,
    /// The task.
    pub task: TaskId,
    /// The hand-out.
    pub run: RunId,
    /// How.
    pub outcome: Outcome,
    /// Running time.
    pub run_ms: f64,
    /// CPU time of its thread or processes.
    pub cpu_ms: f64,
    /// A fresh CPU sample, where the node has one; the last of a message counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<CpuSampleFields>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With a result.
    Succeeded,
    /// With an error; `run` has a result all the same.
    Failed(TaskError),
    /// Because it was cancelled.
    Cancelled,
}

/// The answer to a [`LogRead`]. The frame's body is what was printed, at most
/// [`LOG_PIECE_BYTES`](crate::log::LOG_PIECE_BYTES); it may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// The epoch that the node believes in.
    pub epoch: u64,
    /// Which read.
    pub read: u64,
    /// Offset of the first byte.
    pub offset: u64,
    /// How much the run has printed so far: the offset past its last byte.
    pub end: u64,
    /// What the run is doing.
    pub state: LogState,
}

/// What a run whose log is read is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogState {
    /// It runs, or waits for a slot: there may be more later.
    Running,
    /// It has ended: there will not be more.
    Ended,
    /// The node does not have it (any more).
    Unknown,
}

/// A part of what an ended run has printed at its end. All parts come before the [`RunResult`] of the run, in
/// order, with no frame about another run in between. The frame's body is the part, at most
/// [`LOG_PIECE_BYTES`](crate::log::LOG_PIECE_BYTES). Of a run that printed nothing there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTail {
    /// The epoch that the node believes in.
    pub epoch: u64,
    /// The hand-out.
    pub run: RunId,
    /// Which stream.
    pub stream: Stream,
    /// Offset of the part's first byte.
    pub offset: u64,
}

/// These were not run, or not to the end, and cost no attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandBack {
    /// The epoch that the node believes in.
    pub epoch: u64,
    /// The hand-outs.
    pub runs: Vec<RunRef>,
    /// For people: draining, no free slot, unknown kind …
    pub reason: String,
    /// Whether the node will take no work from now on.
    #[serde(default)]
    pub draining: bool,
}

/// The node leaves in order: it has nothing left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The epoch that the node believes in.
    pub epoch: u64,
}

/// From the master to a node.
#[derive(Clone, Debug, PartialEq)]
pub enum ToNode {
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Run`]; with the input.
    Run(Run, Bytes),
    /// See [`Cancel`].
    Cancel(Cancel),
    /// See [`Committed`].
    Committed(Committed),
    /// See [`Drain`].
    Drain(Drain),
    /// See [`Resume`].
    Resume(Resume),
    /// See [`LogRead`].
    LogRead(LogRead),
}

/// From a node to the master.
#[derive(Clone, Debug, PartialEq)]
pub enum ToMaster {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`RunResult`]; with the result.
    Result(RunResult, Bytes),
    /// See [`HandBack`].
    HandBack(HandBack),
    /// See [`Leaving`].
    Leaving(Leaving),
    /// See [`LogChunk`]; with what was printed.
    LogChunk(LogChunk, Bytes),
    /// See [`LogTail`]; with what was printed.
    LogTail(LogTail, Bytes),
}

/// A frame whose header is not what its type says.
#[derive(Debug, thiserror::Error)]
#[error("frame of type {kind} has a header that cannot be read: {source}")]
pub struct HeaderError {
    /// The frame's type.
    pub kind: u8,
    /// What is wrong.
    pub source: serde_json::Error,
}

fn put<T: Serialize>(message: &mut BytesMut, kind: u8, header: &T, body: &[u8]) {
    // Headers are plain structs of strings, numbers and lists: serialising them to memory cannot fail.
    let header = serde_json::to_vec(header).unwrap_or_default();
    put_frame(message, kind, &header, body);
}

fn read<'a, T: Deserialize<'a>>(frame: &'a RawFrame) -> Result<T, HeaderError> {
    serde_json::from_slice(&frame.header).map_err(|source| HeaderError { kind: frame.kind, source })
}

impl ToNode {
    /// Appends this as one frame.
    pub fn put(&self, message: &mut BytesMut) {
        match self {
            Self::Welcome(header) => put(message, 1, header, &[]),
            Self::Run(header, input) => put(message, 2, header, input),
            Self::Cancel(header) => put(message, 3, header, &[]),
            Self::Committed(header) => put(message, 4, header, &[]),
            Self::Drain(header) => put(message, 5, header, &[]),
            Self::Resume(header) => put(message, 6, header, &[]),
            Self::LogRead(header) => put(message, 7, header, &[]),
        }
    }

    /// Reads one frame; `None` for a type that this version does not know.
    ///
    /// # Errors
    /// [`HeaderError`] if the header is not what the type says.
    pub fn read(frame: &RawFrame) -> Result<Option<Self>, HeaderError> {
        Ok(Some(match frame.kind {
            1 => Self::Welcome(read(frame)?),
            2 => Self::Run(read(frame)?, frame.body.clone()),
            3 => Self::Cancel(read(frame)?),
            4 => Self::Committed(read(frame)?),
            5 => Self::Drain(read(frame)?),
            6 => Self::Resume(read(frame)?),
            7 => Self::LogRead(read(frame)?),
            _ => return Ok(None),
        }))
    }

    /// The master's epoch in this frame.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        match self {
            Self::Welcome(header) => header.epoch,
            Self::Run(header, _) => header.epoch,
            Self::Cancel(header) => header.epoch,
            Self::Committed(header) => header.epoch,
            Self::Drain(header) => header.epoch,
            Self::Resume(header) => header.epoch,
            Self::LogRead(header) => header.epoch,
        }
    }
}

impl ToMaster {
    /// The epoch in this frame: the one that the node believes in, or in a [`Hello`] the highest it has seen.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        match self {
            Self::Hello(header) => header.epoch,
            Self::Result(header, _) => header.epoch,
            Self::HandBack(header) => header.epoch,
            Self::Leaving(header) => header.epoch,
            Self::LogChunk(header, _) => header.epoch,
            Self::LogTail(header, _) => header.epoch,
        }
    }

    /// Appends this as one frame.
    pub fn put(&self, message: &mut BytesMut) {
        match self {
            Self::Hello(header) => put(message, 65, header, &[]),
            Self::Result(header, result) => put(message, 66, header, result),
            Self::HandBack(header) => put(message, 67, header, &[]),
            Self::Leaving(header) => put(message, 68, header, &[]),
            Self::LogChunk(header, piece) => put(message, 69, header, piece),
            Self::LogTail(header, part) => put(message, 70, header, part),
        }
    }

    /// Reads one frame; `None` for a type that this version does not know.
    ///
    /// # Errors
    /// [`HeaderError`] if the header is not what the type says.
    pub fn read(frame: &RawFrame) -> Result<Option<Self>, HeaderError> {
        Ok(Some(match frame.kind {
            65 => Self::Hello(read(frame)?),
            66 => Self::Result(read(frame)?, frame.body.clone()),
            67 => Self::HandBack(read(frame)?),
            68 => Self::Leaving(read(frame)?),
            69 => Self::LogChunk(read(frame)?, frame.body.clone()),
            70 => Self::LogTail(read(frame)?, frame.body.clone()),
            _ => return Ok(None),
        }))
    }
}
