//! What went wrong in a run, counted: a fault that never happens shows nothing.

use std::fmt;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Something that went wrong, counted where it takes effect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

faults! {
    /// `kill -9` of a master.
    MasterKilled,
    /// A master stood still for up to three leases.
    MasterStopped,
    /// A master stood still between deciding and doing; it did then what it had decided.
    MasterStoppedHalfway,
    /// Another master took over.
    TakenOver,
    /// A master could not reach the store.
    MasterCutFromStore,
    /// Clients and nodes could not reach a master.
    MasterCutOff,
    /// The store refused what an old leader wrote.
    OldWriteRefused,
    /// What an old leader had decided before it was stopped came out of it while another one led.
    OldLeaderSpoke,
    /// A wall clock jumped an hour ahead.
    ClockAhead,
    /// A wall clock jumped an hour back.
    ClockBack,
    /// `kill -9` of a node.
    NodeKilled,
    /// A node stood still.
    NodeStopped,
    /// What a node sent was held up.
    CutToMaster,
    /// What was sent to a node was held up.
    CutToNode,
    /// Both.
    CutBothWays,
    /// A node got a tenth of its CPU.
    NodeSlow,
    /// A run's process was killed.
    ChildKilled,
    /// A task ended its node.
    Poisoned,
    /// The manager was killed.
    ManagerKilled,
    /// The manager stood still.
    ManagerStopped,
    /// Fewer or more nodes were wanted.
    PoolScaled,
    /// A transaction was refused and not written.
    DiskFull,
    /// A transaction was written although it was called failed.
    SyncFailedWritten,
    /// A transaction was called failed, and was lost.
    SyncFailedLost,
    /// A transaction under way was lost with its master.
    UnsyncedLost,
    /// A transaction under way was written although its master died.
    UnsyncedKept,
    /// A result came twice.
    ResultTwice,
    /// A result came after its channel, or its node's life, had ended.
    ResultLate,
    /// Results came in another order.
    ResultsReordered,
    /// A node told a result of another one's run.
    ResultForged,
    /// A request was lost.
    RequestLost,
    /// An answer was lost.
    AnswerLost,
    /// The queue was full.
    QueueFull,
}

/// How often each fault happened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Coverage([u64; Fault::ALL.len()]);

impl Default for Coverage {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl Coverage {
    /// It happened once more.
    pub fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// With those of another run.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }

    /// Faults and how often each happened.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        Fault::ALL.iter().map(|fault| (*fault, self.0[*fault as usize]))
    }

    /// Those that never happened.
    #[must_use]
    pub fn missing(&self) -> Vec<Fault> {
        self.iter().filter(|(_, count)| *count == 0).map(|(fault, _)| fault).collect()
    }
}

impl fmt::Debug for Coverage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter().filter(|(_, count)| *count > 0)).finish()
    }
}
