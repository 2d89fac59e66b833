//! Which nodes could take a task, found without looking at all of them.
//!
//! Nodes with the same kinds share a profile; in it the free ones are ordered by what they have left
//! and all of them by their strength, both in buckets of 10 %, so that a report which changes little
//! moves nothing. A decision looks at a bounded number of nodes, whether there are 4 or 10,000.

use crate::queue::KindId;
use protocol::NodeId;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Ratio of neighbouring buckets.
const STEP: f64 = 1.1;

type Ordered = BTreeSet<(Reverse<u32>, NodeId)>;

#[derive(Clone, Debug, Default)]
struct Profile {
    free: Ordered,
    all: Ordered,
}

#[derive(Clone, Debug, PartialEq)]
struct Place {
    kinds: Arc<[KindId]>,
    free: Option<u32>,
    strength: u32,
    milli_cores: u64,
}

/// Nodes that take work.
#[derive(Clone, Debug, Default)]
pub struct Index {
    profiles: BTreeMap<Arc<[KindId]>, Profile>,
    places: BTreeMap<NodeId, Place>,
    milli_cores: u64,
}

/// Bucket of a number of cores: 0.001 and less is 0.
fn bucket(cores: f64) -> u32 {
    // At most 4,096 cores are 160 buckets.
    (cores.clamp(0.001, 5_000.0) / 0.001).log(STEP) as u32
}

impl Index {
    /// A node takes work: `effective_cores` is Ĉ, `left_cores` what is left of it for one task more, if
    /// it has a free slot.
    pub fn put(
        &mut self,
        node: NodeId,
        kinds: &Arc<[KindId]>,
        effective_cores: f64,
        left_cores: Option<f64>,
    ) {
        let place = Place {
            kinds: Arc::clone(kinds),
            free: left_cores.map(bucket),
            strength: bucket(effective_cores),
            // At most 4,096 cores.
            milli_cores: (effective_cores.clamp(0.0, 5_000.0) * 1e3) as u64,
        };
        if self.places.get(&node) == Some(&place) {
            return;
        }
        self.remove(node);
        let profile = self.profiles.entry(Arc::clone(kinds)).or_default();
        profile.all.insert((Reverse(place.strength), node));
        if let Some(free) = place.free {
            profile.free.insert((Reverse(free), node));
        }
        self.milli_cores += place.milli_cores;
        self.places.insert(node, place);
    }

    /// A node takes no work.
    pub fn remove(&mut self, node: NodeId) {
        let Some(place) = self.places.remove(&node) else { return };
        self.milli_cores -= place.milli_cores;
        if let Some(profile) = self.profiles.get_mut(&place.kinds) {
            profile.all.remove(&(Reverse(place.strength), node));
            if let Some(free) = place.free {
                profile.free.remove(&(Reverse(free), node));
            }
            if profile.all.is_empty() {
                self.profiles.remove(&place.kinds);
            }
        }
    }

    fn of_kind(&self, kind: KindId) -> impl Iterator<Item = &Profile> {
        self.profiles
            .iter()
            .filter(move |(kinds, _)| kinds.binary_search(&kind).is_ok())
            .map(|(_, profile)| profile)
    }

    fn best(
        sets: impl Iterator<Item = impl Iterator<Item = (Reverse<u32>, NodeId)>>,
        most: usize,
    ) -> Vec<NodeId> {
        let mut found: Vec<_> = sets.flat_map(|set| set.take(most)).collect();
        found.sort_unstable();
        found.truncate(most);
        found.into_iter().map(|(_, node)| node).collect()
    }

    /// At most so many nodes with a free slot, those with most left first.
    #[must_use]
    pub fn free(&self, kind: KindId, most: usize) -> Vec<NodeId> {
        Self::best(self.of_kind(kind).map(|profile| profile.free.iter().copied()), most)
    }

    /// At most so many nodes, free or not, the strongest first.
    #[must_use]
    pub fn strongest(&self, kind: KindId, most: usize) -> Vec<NodeId> {
        Self::best(self.of_kind(kind).map(|profile| profile.all.iter().copied()), most)
    }

    /// ΣĈ of all nodes that take work.
    #[must_use]
    pub fn effective_cores(&self) -> f64 {
        self.milli_cores as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    #[test]
    fn the_best_nodes_of_a_kind_are_found_and_the_busy_ones_are_not_free() {
        let mut index = Index::default();
        let (both, one): (Arc<[KindId]>, Arc<[KindId]>) = ([KindId(0), KindId(1)].into(), [KindId(0)].into());
        index.put(id(1), &both, 2.0, Some(2.0));
        index.put(id(2), &one, 4.0, Some(1.0));
        index.put(id(3), &one, 8.0, None);
        assert_eq!(index.free(KindId(0), 9), [id(1), id(2)]);
        assert_eq!(index.free(KindId(1), 9), [id(1)]);
        assert_eq!(index.strongest(KindId(0), 2), [id(3), id(2)]);
        assert_eq!(index.effective_cores(), 14.0);
        index.remove(id(3));
        index.put(id(1), &one, 2.0, None);
        assert_eq!(index.free(KindId(0), 9), [id(2)]);
        assert_eq!(index.effective_cores(), 6.0);
        assert!(index.free(KindId(1), 9).is_empty());
    }
}
