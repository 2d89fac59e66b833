//! How many of something there may be, in all and for each one that they belong to: work channels of nodes,
//! whether they have greeted or not, and readers of tasks' logs.
//!
//! A connection that was upgraded does not count among the server's any more, so it is counted here, from
//! before its upgrade until its socket is let go of.

use protocol::{NodeId, TaskId};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most work channels of all nodes: above the 10,000 nodes that a master is made for.
const MAX_CHANNELS: usize = 16_384;
/// Most work channels of one node: the one that counts, one that has not greeted yet, and others that were
/// replaced and are closing, which takes at most 1 s.
const MAX_PER_NODE: usize = 4;

/// Most logs that are read at once, and most of them of one task. Each has a piece of at most 64 KiB in hand,
/// beside what its connection holds.
const MAX_READERS: usize = 256;
const MAX_PER_TASK: usize = 16;

/// Why there is no further place now. The next try may get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// This one has too many.
    #[error("this {owner} has {most} {what}, which is the bound; try again in a moment")]
    OfOne {
        /// Whose they are.
        owner: &'static str,
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// All together have too many.
    #[error("there are {most} {what}, which is the bound; try again in a moment")]
    OfAll {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        most: usize,
    },
}

/// What is counted, and how many there may be.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    owner: &'static str,
    what: &'static str,
    of_all: usize,
    of_one: usize,
}

/// Counts things by whom they belong to; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Places<K> {
    bounds: Bounds,
    taken: Arc<Mutex<Taken<K>>>,
}

/// Only who has a place is in the map.
#[derive(Debug)]
struct Taken<K> {
    all: usize,
    of_one: HashMap<K, usize>,
}

/// One place, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Copy + Eq + Hash> {
    of: K,
    places: Places<K>,
}

impl Places<NodeId> {
    /// Places of work channels.
    pub(crate) fn of_channels() -> Self {
        let (owner, what) = ("node", "work channels open");
        Self::new(Bounds { owner, what, of_all: MAX_CHANNELS, of_one: MAX_PER_NODE })
    }
}

impl Places<TaskId> {
    /// Places of those who read logs.
    pub(crate) fn of_log_readers() -> Self {
        let (owner, what) = ("task", "readers of logs");
        Self::new(Bounds { owner, what, of_all: MAX_READERS, of_one: MAX_PER_TASK })
    }
}

impl<K: Copy + Eq + Hash> Places<K> {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, taken: Arc::new(Mutex::new(Taken { all: 0, of_one: HashMap::new() })) }
    }

    /// A place for one more of these.
    pub(crate) fn take(&self, of: K) -> Result<Place<K>, NoPlace> {
        let Bounds { owner, what, of_all, of_one } = self.bounds;
        let mut taken = self.locked();
        if taken.all >= of_all {
            return Err(NoPlace::OfAll { what, most: of_all });
        }
        let has = taken.of_one.entry(of).or_default();
        if *has >= of_one {
            return Err(NoPlace::OfOne { owner, what, most: of_one });
        }
        *has += 1;
        taken.all += 1;
        Ok(Place { of, places: self.clone() })
    }

    fn locked(&self) -> MutexGuard<'_, Taken<K>> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.locked();
        taken.all = taken.all.saturating_sub(1);
        if let Some(has) = taken.of_one.get_mut(&self.of) {
            *has -= 1;
            if *has == 0 {
                taken.of_one.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        NodeId(uuid::Uuid::from_u128(number as u128))
    }

    #[test]
    fn a_node_has_few_places_and_gets_one_back_when_a_channel_ends() {
        let places = Places::of_channels();
        let mut held: Vec<_> = (0..MAX_PER_NODE).map(|_| places.take(node(1)).unwrap()).collect();
        assert_eq!(
            places.take(node(1)).err(),
            Some(NoPlace::OfOne { owner: "node", what: "work channels open", most: MAX_PER_NODE })
        );
        held.pop();
        held.push(places.take(node(1)).unwrap());
        drop(places.take(node(2)).unwrap());
        drop(held);
        let taken = places.locked();
        assert_eq!((taken.all, taken.of_one.len()), (0, 0));
    }

    #[test]
    fn all_nodes_together_are_bounded() {
        let places = Places::of_channels();
        let held: Vec<_> = (0..MAX_CHANNELS).map(|number| places.take(node(number)).unwrap()).collect();
        assert_eq!(
            places.take(node(MAX_CHANNELS)).err(),
            Some(NoPlace::OfAll { what: "work channels open", most: MAX_CHANNELS })
        );
        assert_eq!(held.len(), MAX_CHANNELS);
    }
}
