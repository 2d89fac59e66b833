//! Bugs to order: a simulation that never fails shows nothing, unless it is known to fail when it should.

/// A bug in the simulated shells around the production logic, of the kind that a real shell could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The store says that a transaction is durable as soon as it has begun: results and acceptances are
    /// acknowledged before they are committed.
    AnswerBeforeCommit,
    /// The store does not sync: what it called durable is lost when power fails.
    MissingSync,
    /// The last change of a transaction of several is lost.
    TornTransaction,
    /// A master that starts again takes the epoch of the one before.
    SameEpoch,
    /// The store takes writes of any epoch.
    MissingEpochCheck,
    /// A lease counts from when the answer to its renewal came, not from when the renewal was sent.
    LeaseFromReply,
    /// A master looks at its lease when a timer says so, not before each thing that it does.
    LeaseNotLookedAt,
    /// Idempotency keys are not read back after a restart.
    KeysForgotten,
    /// A task that is read back is queued twice.
    DoubleRequeue,
    /// Nodes are never told that a result is safe.
    CommittedUntold,
    /// A result counts whichever node tells it.
    ForgedBelieved,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::AnswerBeforeCommit,
        Self::MissingSync,
        Self::TornTransaction,
        Self::SameEpoch,
        Self::MissingEpochCheck,
        Self::LeaseFromReply,
        Self::LeaseNotLookedAt,
        Self::KeysForgotten,
        Self::DoubleRequeue,
        Self::CommittedUntold,
        Self::ForgedBelieved,
    ];
}
