//! Messages of the work channel, `GET /v1/nodes/{id}/work`, subprotocol [`SUBPROTOCOL`].
//!
//! The node opens the channel and says [`Hello`]; the master answers [`Welcome`]. Then runs go out and
//! results come back. Every frame carries the master's epoch: a node refuses frames of a lower one than
//! it has seen, so that a master that was replaced can dispatch nothing. Unknown fields and frame types
//! are ignored, so that versions N and N−1 understand each other.

use crate::{
    BootId, NodeId, RunId, TaskId,
    frame::{RawFrame, put_frame},
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
        }
    }

    /// Appends this as one frame.
    pub fn put(&self, message: &mut BytesMut) {
        match self {
            Self::Hello(header) => put(message, 65, header, &[]),
            Self::Result(header, result) => put(message, 66, header, result),
            Self::HandBack(header) => put(message, 67, header, &[]),
            Self::Leaving(header) => put(message, 68, header, &[]),
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
            _ => return Ok(None),
        }))
    }
}
