//! Why a work channel was closed.

use protocol::NodeId;

/// Why one side closed the channel. On the wire it is a WebSocket close code (RFC 6455 section 7.4; 4000 and
/// up are ours) and a text for people. The node reconnects whatever the reason; only a refused connect
/// (401, 404) makes it register again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// A message or header that cannot be read.
    #[error("cannot read what the other side sent: {0}")]
    Malformed(String),
    /// Something other than the protocol allows at this point.
    #[error("the other side broke the protocol: {0}")]
    Protocol(&'static str),
    /// The greeting did not come in time.
    #[error("no greeting came in time")]
    NoGreeting,
    /// The node of the greeting is not the node of the URL.
    #[error("the greeting names node {said}, but the channel was opened for another node")]
    WrongNode {
        /// Who it said it was.
        said: NodeId,
    },
    /// The other side speaks neither our version nor the one before.
    #[error(
        "the other side speaks version {theirs} of the protocol, we speak {ours} and the one before; update the older program"
    )]
    Version {
        /// Theirs.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The node has seen a higher epoch than ours: another master leads, we are old.
    #[error("a master with epoch {seen} leads, this one has {ours}")]
    Deposed {
        /// The highest epoch seen.
        seen: u64,
        /// That of the master that closes, or is closed on.
        ours: u64,
    },
    /// The master does not lead any more.
    #[error("this master does not lead any more")]
    LeaseLost,
    /// Nothing was heard for too long.
    #[error("nothing was heard for too long")]
    Silent,
    /// More waits to be sent than the bound allows: the other side does not read.
    #[error("{bytes} bytes wait to be sent, more than the bound: the other side does not read")]
    Overflow {
        /// Bytes that wait.
        bytes: usize,
    },
    /// The node opened a newer channel, or its session is over (removed, registered anew).
    #[error("the session on this channel is over")]
    SessionOver,
    /// The program ends.
    #[error("the program ends")]
    GoingAway,
}

impl CloseReason {
    /// The WebSocket close code.
    #[must_use]
    pub const fn code(&self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Malformed(_) | Self::Protocol(_) => 1002,
            Self::WrongNode { .. } => 1008,
            Self::NoGreeting => 4000,
            Self::Version { .. } => 4001,
            Self::Deposed { .. } => 4002,
            Self::Silent => 4003,
            Self::Overflow { .. } => 4004,
            Self::SessionOver => 4005,
            Self::LeaseLost => 4006,
        }
    }

    /// The text for people, cut to the 123 bytes that a close frame holds.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut end = text.len().min(123);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }
}
