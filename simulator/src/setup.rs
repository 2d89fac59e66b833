//! How a run of the simulation is set up, and what it did.

use crate::{coverage::Coverage, plant::Plant};

/// How a run of the simulation is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Decides everything.
    pub seed: u64,
    /// Masters on the one store; with several, one at a time leads.
    pub masters: usize,
    /// Length of the lease of several masters.
    pub lease_ms: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How many tasks.
    pub tasks: u64,
    /// How many of the tasks end the nodes that run them.
    pub poisoned: u64,
    /// Whether these are copies of one.
    pub same_poison: bool,
    /// How long each task takes on one core; between 1 ms and 3 s by its number if absent.
    pub work_us: Option<u64>,
    /// How many tasks of each client are submitted at once; then a pause.
    pub burst: u64,
    /// Bound of the queue.
    pub queue_max_tasks: u64,
    /// How long faults happen and tasks are submitted; then all is left in peace.
    pub faults_us: u64,
    /// How long everything may take to end after that.
    pub peace_us: u64,
    /// Whether faults happen at all.
    pub faults: bool,
    /// Whether to print what happens.
    pub trace: bool,
    /// A bug that the shells of this run have, to show that the simulation would find it.
    pub plant: Option<Plant>,
}

impl Setup {
    /// A small cluster in a bad minute: every second has several masters, every fifth a task that ends its
    /// nodes, every eighth far more work at once than its queue takes.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let overloaded = seed % 8 == 5;
        Self {
            seed,
            masters: match seed % 4 {
                0 => 3,
                2 => 2,
                _ => 1,
            },
            lease_ms: if seed.is_multiple_of(3) { 5_000 } else { 2_000 },
            nodes: 4,
            tasks: 60,
            poisoned: if seed % 5 == 2 { 1 } else { 0 },
            same_poison: false,
            work_us: None,
            burst: if overloaded { 20 } else { 1 },
            queue_max_tasks: if overloaded { 8 } else { 100_000 },
            faults_us: 40_000_000,
            peace_us: 300_000_000,
            faults: true,
            trace: false,
            plant: None,
        }
    }
}

/// What a run of the simulation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub steps: u64,
    /// Tasks that were acknowledged.
    pub acknowledged: usize,
    /// Answers that were held against each other.
    pub operations: u64,
    /// Runs that were begun.
    pub begun: u64,
    /// Virtual time.
    pub simulated_us: u64,
    /// What went wrong meanwhile.
    pub coverage: Coverage,
}
