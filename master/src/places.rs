//! How many work channels there may be, whether they have greeted or not.
//!
//! A connection that was upgraded does not count among the server's any more, so it is counted here, from
//! before its upgrade until its socket is let go of.

use protocol::NodeId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most work channels of all nodes: above the 10,000 nodes that a master is made for.
const MAX_CHANNELS: usize = 16_384;
/// Most work channels of one node: the one that counts, one that has not greeted yet, and others that were
/// replaced and are closing, which takes at most 1 s.
const MAX_PER_NODE: usize = 4;

/// Why a node gets no further work channel now. Its next try, after its backoff, may get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// It has too many.
    #[error("this node has {MAX_PER_NODE} work channels open, which is the bound; try again in a moment")]
    OfNode,
    /// All together have too many.
    #[error("{MAX_CHANNELS} work channels are open, which is the bound; try again in a moment")]
    OfAll,
}

/// Counts the work channels; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    taken: Arc<Mutex<Taken>>,
}

/// Only nodes with a place are in the map.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_node: HashMap<NodeId, usize>,
}

/// One work channel's place, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    node: NodeId,
    places: Places,
}

impl Places {
    /// A place for one more channel of this node.
    pub(crate) fn take(&self, node: NodeId) -> Result<Place, NoPlace> {
        let mut taken = self.locked();
        if taken.all >= MAX_CHANNELS {
            return Err(NoPlace::OfAll);
        }
        let of_node = taken.of_node.entry(node).or_default();
        if *of_node >= MAX_PER_NODE {
            return Err(NoPlace::OfNode);
        }
        *of_node += 1;
        taken.all += 1;
        Ok(Place { node, places: self.clone() })
    }

    fn locked(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.locked();
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_node) = taken.of_node.get_mut(&self.node) {
            *of_node -= 1;
            if *of_node == 0 {
                taken.of_node.remove(&self.node);
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
        let places = Places::default();
        let mut held: Vec<_> = (0..MAX_PER_NODE).map(|_| places.take(node(1)).unwrap()).collect();
        assert_eq!(places.take(node(1)).err(), Some(NoPlace::OfNode));
        held.pop();
        held.push(places.take(node(1)).unwrap());
        drop(places.take(node(2)).unwrap());
        drop(held);
        let taken = places.locked();
        assert_eq!((taken.all, taken.of_node.len()), (0, 0));
    }

    #[test]
    fn all_nodes_together_are_bounded() {
        let places = Places::default();
        let held: Vec<_> = (0..MAX_CHANNELS).map(|number| places.take(node(number)).unwrap()).collect();
        assert_eq!(places.take(node(MAX_CHANNELS)).err(), Some(NoPlace::OfAll));
        assert_eq!(held.len(), MAX_CHANNELS);
    }
}
