//! Quarantine: tasks that end the nodes they run on are held back before they end them all.
//!
//! What is suspected is a kind with its input, whoever submits it and however often, because the tenth copy of a
//! task does what the first nine did. Each node that is lost counts against all that ran on it, once for each
//! print; a result of any kind, or the node's coming back with the run, speaks for it again.
//!
//! 1. From the second node in a row on, its tasks run one at a time, each alone on a node: then nothing else
//!    loses an attempt, at most one node is at stake, and the next death is evidence instead of chance.
//! 2. A run that outlives the earlier ones twice over (and ten seconds) is trusted: it shares its node again, and
//!    the others may go.
//! 3. After three that were alone, all its tasks that wait end as `attempts_exhausted`, and for ten minutes so do
//!    those that come. Then one is tried, alone: its death begins the next ten minutes.
//!
//! All this is forgotten an hour after the last death, and by a master that starts anew.

use protocol::{NodeId, RunId};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Nodes lost in a row from which on a print is suspected.
const SUSPECTED_AFTER: u32 = 2;
/// Of these, runs that were alone, from which on its tasks end.
const ENDED_AFTER: u32 = 3;
/// For how long tasks of such a print end at once, in microseconds.
const HELD_US: u64 = 600_000_000;
/// How long after its last death a print is forgotten, in microseconds.
const KEPT_US: u64 = 3_600_000_000;
/// Most prints that are remembered; the one whose last death is longest ago is forgotten first.
const MOST: usize = 10_000;
/// How long a run has to live at least before it is trusted, in microseconds.
const LEAST_TRUST_US: u64 = 10_000_000;

/// What tells a kind with its input from others. Two that differ may share one by chance (1 in 2⁶⁴); a task that
/// does runs alone for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Of a kind and its input as JSON text.
    #[must_use]
    pub fn of(kind: &str, input: Option<&str>) -> Self {
        let mut hasher = DefaultHasher::new();
        (kind, input).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// How a task is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As any other.
    Free,
    /// Alone on a node, and one at a time.
    Alone {
        /// Nodes lost in a row.
        deaths: u32,
    },
    /// Not at all: it ends.
    Ended {
        /// Nodes lost in a row.
        deaths: u32,
        /// Of these, those on which it was alone.
        alone: u32,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Suspect {
    deaths: u32,
    alone: u32,
    /// How long a run lived at most before its node was lost.
    longest_us: u64,
    last_us: u64,
    /// The one that runs alone.
    running: Option<(NodeId, RunId)>,
}

impl Suspect {
    fn verdict(&self, now_us: u64) -> Verdict {
        let Self { deaths, alone, .. } = *self;
        if deaths < SUSPECTED_AFTER || now_us.saturating_sub(self.last_us) >= KEPT_US {
            Verdict::Free
        } else if alone >= ENDED_AFTER && now_us.saturating_sub(self.last_us) < HELD_US {
            Verdict::Ended { deaths, alone }
        } else {
            Verdict::Alone { deaths }
        }
    }
}

/// What was on nodes that were lost. Every call costs O(log n) in the prints that are remembered.
#[derive(Clone, Debug, Default)]
pub struct Suspects {
    known: BTreeMap<Fingerprint, Suspect>,
    /// By last death.
    order: BTreeSet<(u64, Fingerprint)>,
}

impl Suspects {
    /// A node was lost on which this ran, alone or not, for so long at most.
    pub fn died(&mut self, now_us: u64, print: Fingerprint, alone: bool, lived_us: u64) {
        let suspect = self.known.entry(print).or_default();
        self.order.remove(&(suspect.last_us, print));
        if now_us.saturating_sub(suspect.last_us) >= KEPT_US {
            *suspect = Suspect::default();
        }
        suspect.deaths += 1;
        suspect.alone += u32::from(alone);
        suspect.longest_us = suspect.longest_us.max(lived_us);
        suspect.last_us = now_us;
        self.order.insert((now_us, print));
        if self.order.len() > MOST
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.known.remove(&oldest);
        }
    }

    /// A node that was lost is back with a run of this: it had not died.
    pub fn forgiven(&mut self, print: Fingerprint) {
        if let Some(suspect) = self.known.get_mut(&print) {
            suspect.deaths = suspect.deaths.saturating_sub(1);
            suspect.alone = suspect.alone.min(suspect.deaths);
        }
    }

    /// A run of this ended and its node lives, or it outlived what it was suspected for. Says whether it was
    /// suspected.
    pub fn cleared(&mut self, print: Fingerprint) -> bool {
        let Some(suspect) = self.known.remove(&print) else { return false };
        self.order.remove(&(suspect.last_us, print));
        suspect.deaths >= SUSPECTED_AFTER
    }

    /// How a task is to be treated now.
    #[must_use]
    pub fn verdict(&self, now_us: u64, print: Fingerprint) -> Verdict {
        self.known.get(&print).map_or(Verdict::Free, |suspect| suspect.verdict(now_us))
    }

    /// One of this runs alone from now on. Gives when it is trusted.
    pub fn runs_alone(&mut self, now_us: u64, print: Fingerprint, at: (NodeId, RunId)) -> u64 {
        let suspect = self.known.entry(print).or_default();
        suspect.running = Some(at);
        now_us.saturating_add(suspect.longest_us.saturating_mul(2).max(LEAST_TRUST_US))
    }

    /// The last one of this that ran alone; it may have ended.
    #[must_use]
    pub fn alone(&self, print: Fingerprint) -> Option<(NodeId, RunId)> {
        self.known.get(&print)?.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn print() -> Fingerprint {
        Fingerprint::of("run", Some(r#"{"argv":["boom"]}"#))
    }

    fn after(deaths: &[bool]) -> Suspects {
        let mut suspects = Suspects::default();
        for (at, alone) in deaths.iter().enumerate() {
            suspects.died(at as u64 * SECOND, print(), *alone, SECOND);
        }
        suspects
    }

    #[test]
    fn the_second_node_in_a_row_makes_a_suspect_and_the_third_alone_ends_it() {
        assert_eq!(after(&[false]).verdict(SECOND, print()), Verdict::Free);
        assert_eq!(after(&[false; 2]).verdict(SECOND, print()), Verdict::Alone { deaths: 2 });
        assert_eq!(after(&[false; 9]).verdict(9 * SECOND, print()), Verdict::Alone { deaths: 9 });
        let ended = after(&[false, false, true, true, true]);
        assert_eq!(ended.verdict(5 * SECOND, print()), Verdict::Ended { deaths: 5, alone: 3 });
        assert_eq!(ended.verdict(5 * SECOND, Fingerprint::of("run", None)), Verdict::Free);
    }

    #[test]
    fn one_more_is_tried_after_ten_minutes_and_all_is_forgotten_after_an_hour() {
        let mut suspects = after(&[false, false, true, true, true]);
        assert_eq!(suspects.verdict(4 * SECOND + HELD_US, print()), Verdict::Alone { deaths: 5 });
        suspects.died(5 * SECOND + HELD_US, print(), true, SECOND);
        assert_eq!(suspects.verdict(6 * SECOND + HELD_US, print()), Verdict::Ended { deaths: 6, alone: 4 });
        assert_eq!(suspects.verdict(5 * SECOND + HELD_US + KEPT_US, print()), Verdict::Free);
        suspects.died(5 * SECOND + HELD_US + KEPT_US, print(), true, SECOND);
        assert_eq!(suspects.verdict(6 * SECOND + HELD_US + KEPT_US, print()), Verdict::Free);
    }

    #[test]
    fn a_result_or_a_node_that_comes_back_speaks_for_it() {
        let mut suspects = after(&[false; 2]);
        suspects.forgiven(print());
        assert_eq!(suspects.verdict(SECOND, print()), Verdict::Free);
        assert!(!suspects.cleared(print()));
        assert!(after(&[false; 2]).cleared(print()));
    }

    #[test]
    fn who_outlives_the_dead_twice_over_is_trusted() {
        let at = (NodeId(uuid::Uuid::nil()), RunId::new(1, 1));
        let mut suspects = after(&[false; 2]);
        assert_eq!(suspects.runs_alone(0, print(), at), LEAST_TRUST_US);
        suspects.died(SECOND, print(), false, 60 * SECOND);
        assert_eq!(suspects.runs_alone(0, print(), at), 120 * SECOND);
        assert_eq!(suspects.alone(print()), Some(at));
    }

    #[test]
    fn the_prints_that_are_remembered_are_bounded() {
        let mut suspects = Suspects::default();
        for number in 0..MOST as u64 + 9 {
            suspects.died(number, Fingerprint(number), false, 0);
        }
        assert_eq!((suspects.known.len(), suspects.order.len()), (MOST, MOST));
    }
}
