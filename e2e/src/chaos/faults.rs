//! What happens to a cluster when, decided by a seed.

use super::stage::{Actor, Stage};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::{collections::BTreeMap, thread, time::Duration};

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of a master, which is started again at once.
    KillMaster,
    /// `kill -9` of a master, which is started again only after a while.
    MasterAway,
    /// A master is stopped and goes on later.
    FreezeMaster,
    /// `kill -9` of a node; its manager makes another one.
    KillNode,
    /// A node is stopped and goes on later, before or after it counts as lost.
    FreezeNode,
    /// `kill -9` of the manager, which is started again at once.
    KillManager,
    /// `kill -9` of the database's server, where masters share one; it is started again at once.
    KillDatabase,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::KillMaster,
        Self::MasterAway,
        Self::FreezeMaster,
        Self::KillNode,
        Self::FreezeNode,
        Self::KillManager,
        Self::KillDatabase,
    ];
}

/// Faults from one seed.
#[derive(Debug)]
pub struct Faults {
    random: SmallRng,
    longest_pause: Duration,
    /// How often each happened, by name.
    pub played: BTreeMap<String, u32>,
}

impl Faults {
    /// The faults of this seed, with pauses of up to `longest_pause` between them.
    #[must_use]
    pub fn new(seed: u64, longest_pause: Duration) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), longest_pause, played: BTreeMap::new() }
    }

    fn pause(&mut self, longest: Duration) {
        thread::sleep(self.random.random_range(Duration::ZERO..=longest));
    }

    /// Waits a random time, then does something to somebody.
    pub fn play_next(&mut self, stage: &mut Stage) {
        self.pause(self.longest_pause);
        // The last is one of a shared database only.
        let faults = if stage.count() > 1 { &Fault::ALL[..] } else { &Fault::ALL[..6] };
        let fault = faults[self.random.random_range(0..faults.len())];
        let master = Actor::Master(self.random.random_range(0..stage.count()));
        match fault {
            Fault::KillMaster => stage.kill(master),
            Fault::MasterAway => {
                stage.kill(master);
                self.pause(Duration::from_secs(2));
            }
            Fault::FreezeMaster => {
                stage.signal_to(master, "STOP");
                // Up to twice the lease of masters that share a database.
                self.pause(Duration::from_secs(4));
                stage.signal_to(master, "CONT");
            }
            Fault::KillNode => {
                let which = self.random.random();
                stage.kill_node(which);
            }
            Fault::FreezeNode => {
                let which = self.random.random();
                if let Some(frozen) = stage.freeze_node(which) {
                    // Longer than it takes to count as lost, in half of the cases.
                    self.pause(Duration::from_secs(10));
                    stage.thaw_node(&frozen);
                }
            }
            Fault::KillManager => stage.kill(Actor::Manager),
            Fault::KillDatabase => stage.kill_database(),
        }
        stage.start_missing();
        *self.played.entry(format!("{fault:?}")).or_default() += 1;
    }
}
