//! Identifiers. Each is its own type, so that a node can never be mistaken for a task.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id!(
    /// A task. A UUIDv7 (RFC 9562), so that ids sort by the time of submission.
    TaskId
);
uuid_id!(
    /// A registered node; a new one for each registration.
    NodeId
);
uuid_id!(
    /// One life of a node process; a new one at each start. What a node says it is running
    /// counts only while this stays the same.
    BootId
);

/// One hand-out of a task to a node: `epoch << 40 | counter`. Grows with every hand-out and is never
/// reused, not even by a later master, so a larger one is always the newer. This is the fence that
/// keeps a late result of an older attempt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl RunId {
    /// The `counter`-th hand-out (below 2⁴⁰) of the master with this `epoch` (below 2²⁴).
    #[must_use]
    pub const fn new(epoch: u64, counter: u64) -> Self {
        Self((epoch << 40) | (counter & ((1 << 40) - 1)))
    }

    /// The epoch of the master that handed the task out.
    #[must_use]
    pub const fn epoch(self) -> u64 {
        self.0 >> 40
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.0 & ((1 << 40) - 1))
    }
}
