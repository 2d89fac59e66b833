//! Which of the programs that run side by side the kernel killed for its memory.
//!
//! The kernel only counts how often it killed something in this container; it does not say what. A program
//! that ended by signal 9 is taken for its victim if a kill was counted while it ran that was not laid to
//! another program's account, and not so long ago that the two have nothing to do with each other.

use crate::cpu::OomCounter;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A kill that no program ended by within this hit something else: a child whose parent went on.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// Most kills that are remembered.
const MOST_KILLS: u64 = 1_024;

/// The kills that were counted and not yet laid to anybody's account, oldest first, with the time at which
/// each was first seen.
#[derive(Debug, Default)]
struct Kills {
    counted: Option<u64>,
    open: VecDeque<Instant>,
}

impl Kills {
    /// The counter stands there now.
    fn look(&mut self, now: Instant, counted: Option<u64>) {
        let (Some(counted), before) = (counted, self.counted) else { return };
        self.counted = Some(counted);
        // What was counted before the first look concerns nobody.
        let fresh = counted.saturating_sub(before.unwrap_or(counted)).min(MOST_KILLS);
        self.open.extend((0..fresh).map(|_| now));
        while self.open.front().is_some_and(|seen| now.saturating_duration_since(*seen) > BELIEVED_FOR)
            || self.open.len() as u64 > MOST_KILLS
        {
            self.open.pop_front();
        }
    }

    /// Whether a program that started then can have been the victim of a kill; it is laid to its account.
    fn take(&mut self, started: Instant) -> bool {
        let Some(at) = self.open.iter().position(|seen| *seen > started) else { return false };
        self.open.remove(at);
        true
    }
}

/// The container's counter, and whom its kills are laid to.
#[derive(Debug)]
pub(super) struct Blame {
    counter: OomCounter,
    kills: Mutex<Kills>,
}

impl Blame {
    pub(super) fn new(counter: OomCounter) -> Self {
        let blame = Self { counter, kills: Mutex::default() };
        blame.look();
        blame
    }

    /// Looks at the counter; to be done before a program starts, and every now and then.
    pub(super) fn look(&self) {
        let mut kills = self.kills();
        kills.look(Instant::now(), self.counter.kills());
    }

    /// Whether a program that started then, and ended by signal 9 just now, was killed for its memory.
    pub(super) fn of_killed(&self, started: Instant) -> bool {
        let mut kills = self.kills();
        kills.look(Instant::now(), self.counter.kills());
        kills.take(started)
    }

    /// A panic of another holder cannot have left the list half changed.
    fn kills(&self) -> MutexGuard<'_, Kills> {
        self.kills.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    /// Kills that were looked at every so often; times in milliseconds.
    struct World(Kills, Instant);

    impl World {
        fn new() -> Self {
            let (mut kills, start) = (Kills::default(), Instant::now());
            kills.look(start, Some(7));
            Self(kills, start)
        }

        fn at(&self, ms: u64) -> Instant {
            self.1 + Duration::from_millis(ms)
        }

        fn look(&mut self, ms: u64, counted: u64) {
            self.0.look(self.at(ms), Some(counted));
        }

        fn blamed(&mut self, started_ms: u64) -> bool {
            self.0.take(self.at(started_ms))
        }
    }

    #[test]
    fn one_kill_is_laid_to_one_program() {
        let mut world = World::new();
        world.look(100, 8);
        assert!(world.blamed(10));
        assert!(!world.blamed(20), "another one that ended by signal 9 beside it");
        world.look(200, 10);
        assert!(
            world.blamed(20) && world.blamed(30) && !world.blamed(40),
            "two more kills, two more victims"
        );
    }

    #[test]
    fn a_kill_before_a_program_started_is_not_its_own() {
        let mut world = World::new();
        world.look(100, 8);
        assert!(!world.blamed(150));
        assert!(!World::new().blamed(0), "what was counted before the first look is nobody's");
    }

    #[test]
    fn a_kill_that_ended_no_program_is_forgotten() {
        let mut world = World::new();
        world.look(100, 8);
        world.look(5_000, 8);
        assert!(world.blamed(10));
        world.look(6_000, 9);
        world.look(11_100, 9);
        assert!(!world.blamed(10));
    }

    #[test]
    fn where_nobody_counts_nobody_is_blamed() {
        let mut kills = Kills::default();
        let now = Instant::now();
        kills.look(now, None);
        assert!(!kills.take(now));
    }
}
