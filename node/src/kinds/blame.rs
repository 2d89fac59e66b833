//! Which of the programs that run side by side the kernel kills for its memory, and which one it was.
//!
//! It kills the one with the highest score: its resident memory, and `oom_score_adj` thousandths of the
//! container's limit (proc(5)). With 1000 for what asked for no memory, and less by the part of the limit that
//! is set aside for it, that is the program that is furthest above what it asked for.
//!
//! The kernel only counts how often it killed something in this container; it does not say what. A program
//! that ended by signal 9 is taken for its victim if a kill was counted while it ran that was not laid to
//! another program's account, and not so long ago that the two have nothing to do with each other.

use crate::cpu::OomCounter;
use protocol::node::memory_for_tasks;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A kill that no program ended by within this hit something else: a child whose parent went on.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// Most kills that are remembered.
const MOST_KILLS: u64 = 1_024;

/// The score of a program that asked for no memory.
const MOST_SCORE: u64 = 1_000;

/// [`MOST_SCORE`] less the part of the limit that is set aside. That part leaves room for the node itself,
/// whose score is 0 and its memory, so that the node is never the first.
fn oom_score_adj(memory_bytes: u64, limit_bytes: u64) -> u64 {
    let part = memory_bytes.min(memory_for_tasks(limit_bytes));
    let thousandths = u128::from(part) * u128::from(MOST_SCORE) / u128::from(limit_bytes.max(1));
    // At most 1,000.
    MOST_SCORE - thousandths as u64
}

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
    memory_limit_bytes: Option<u64>,
    kills: Mutex<Kills>,
}

impl Blame {
    pub(super) fn new(counter: OomCounter) -> Self {
        let blame = Self { counter, memory_limit_bytes: None, kills: Mutex::default() };
        blame.look();
        blame
    }

    pub(super) const fn set_memory_limit(&mut self, bytes: Option<u64>) {
        self.memory_limit_bytes = bytes;
    }

    /// The score to give to a program for which so much memory is set aside.
    pub(super) fn oom_score_adj(&self, memory_bytes: u64) -> u64 {
        self.memory_limit_bytes.map_or(MOST_SCORE, |limit_bytes| oom_score_adj(memory_bytes, limit_bytes))
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
    fn the_program_furthest_above_what_it_asked_for_has_the_highest_score() {
        const MIB: u64 = 1 << 20;
        let limit = 256 * MIB;
        let score = |asked: u64, rss: u64| rss + oom_score_adj(asked, limit) * limit / 1_000;
        assert_eq!(oom_score_adj(0, limit), 1_000);
        assert!(score(150 * MIB, 140 * MIB) < score(0, 90 * MIB), "it keeps to what it asked for");
        assert!(score(150 * MIB, 170 * MIB) > score(0, 15 * MIB), "it does not");
        for asked in [0, MIB, 240 * MIB, 256 * MIB, u64::MAX] {
            let least = oom_score_adj(asked, limit) * limit / 1_000;
            assert!(least >= 16 * MIB, "a program of no size at all goes before the node: {asked}");
        }
        assert_eq!(oom_score_adj(5, 0), 1_000);
    }

    #[test]
    fn where_nobody_counts_nobody_is_blamed() {
        let mut kills = Kills::default();
        let now = Instant::now();
        kills.look(now, None);
        assert!(!kills.take(now));
    }
}
