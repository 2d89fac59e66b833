//! A node that has become idle, else any.
//!
//! Source: Lu, Xie, Kliot, Geller, Larus, Greenberg, "Join-Idle-Queue", Performance Evaluation 2011, with one
//! dispatcher: a processor that becomes idle joins the dispatcher's queue of idle ones; a task goes to the first of
//! them, and to a random processor if there is none. The paper's processors run one task at a time; here one with
//! fewer tasks than cores counts as idle.

use super::{Pool, Rule};
use protocol::node::slots_of;
use rand::rngs::SmallRng;
use std::collections::VecDeque;

/// Idle nodes in the order in which they became idle.
#[derive(Default)]
pub struct JoinIdleQueue {
    idle: VecDeque<usize>,
    queued: Vec<bool>,
}

impl JoinIdleQueue {
    fn join(&mut self, node: usize, pool: &Pool) {
        if !self.queued[node] && pool.in_flight[node] < slots_of(pool.cores[node]) {
            self.queued[node] = true;
            self.idle.push_back(node);
        }
    }

    fn begin(&mut self, pool: &Pool) {
        if self.queued.is_empty() {
            self.queued = vec![false; pool.cores.len()];
            (0..pool.cores.len()).for_each(|node| self.join(node, pool));
        }
    }
}

impl Rule for JoinIdleQueue {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        self.begin(pool);
        while let Some(node) = self.idle.pop_front() {
            self.queued[node] = false;
            // One that was taken at random meanwhile is not idle any more, and one that is down left.
            if pool.in_flight[node] < slots_of(pool.cores[node]) && pool.up.binary_search(&node).is_ok() {
                return node;
            }
        }
        pool.any(rng)
    }

    fn sent(&mut self, node: usize, pool: &Pool) {
        self.join(node, pool);
    }

    fn ended(&mut self, node: usize, _latency_s: f64, pool: &Pool) {
        self.begin(pool);
        self.join(node, pool);
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::{picks, pool_of};
    use super::*;

    #[test]
    fn idle_nodes_are_taken_in_the_order_in_which_they_became_idle_and_then_any() {
        let mut rule = JoinIdleQueue::default();
        let busy = pool_of(&[1.0; 3], &[1, 1, 1]);
        assert!(picks(&mut rule, &busy, 300).iter().all(|count| *count > 50));
        for (node, in_flight) in [(2, [1, 1, 0]), (0, [0, 1, 0])] {
            rule.ended(node, 0.1, &pool_of(&[1.0; 3], &in_flight));
        }
        let pool = pool_of(&[1.0; 3], &[0, 1, 0]);
        assert_eq!(picks(&mut rule, &pool, 1), [0, 0, 1]);
        assert_eq!(picks(&mut rule, &pool, 1), [1, 0, 0]);
    }
}
