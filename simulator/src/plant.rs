//! Bugs to order: a simulation that never fails shows nothing, unless it is known to fail when it should.

/// A bug in the simulated shells around the production logic, of the kind that a real shell could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The store says that a transaction is durable as soon as it has begun.
    AnswerBeforeCommit,
    /// The last change of a transaction of several is lost.
    TornTransaction,
    /// A master that starts again takes the epoch of the one before.
    SameEpoch,
    /// Idempotency keys are not read back after a restart.
    KeysForgotten,
    /// Nodes are never told that a result is safe.
    CommittedUntold,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::AnswerBeforeCommit,
        Self::TornTransaction,
        Self::SameEpoch,
        Self::KeysForgotten,
        Self::CommittedUntold,
    ];
}
