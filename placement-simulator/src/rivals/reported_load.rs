//! Weighted round robin by reported load.
//!
//! Source: gRPC proposal A58 (client-side weighted round robin): weight = queries per second ÷ (CPU utilisation +
//! errors per second ÷ queries per second × penalty), from out-of-band reports; not used for the first 10 s after
//! a node's first report, renewed each second, void after 3 minutes; a node without one gets the mean of the others;
//! with fewer than two, plain round robin. Picks are spread by an earliest-deadline-first scheduler.

use super::{Pool, Rule};
use protocol::node::CpuSample;
use rand::{Rng, rngs::SmallRng};
use std::{cmp::Reverse, collections::BinaryHeap};

const BLACKOUT_US: u64 = 10_000_000;
const EXPIRES_US: u64 = 180_000_000;
const RENEWED_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    weight: f64,
    first_us: Option<u64>,
    at_us: u64,
    answered: u32,
    counted_us: u64,
}

impl Load {
    fn usable(&self, now_us: u64) -> Option<f64> {
        let first_us = self.first_us?;
        (now_us >= first_us + BLACKOUT_US && now_us < self.at_us + EXPIRES_US).then_some(self.weight)
    }
}

/// Weighted round robin by reported load.
#[derive(Default)]
pub struct ReportedLoad {
    loads: Vec<Load>,
    /// Deadlines (as bits: they are not negative, so bits are in their order) and nodes.
    turns: BinaryHeap<Reverse<(u64, usize)>>,
    periods: Vec<f64>,
    renewed_us: Option<u64>,
    up: usize,
}

impl ReportedLoad {
    fn renew(&mut self, pool: &Pool, rng: &mut SmallRng) {
        self.loads.resize(pool.cores.len(), Load::default());
        let usable: Vec<_> =
            pool.up.iter().filter_map(|node| self.loads[*node].usable(pool.now_us)).collect();
        let mean =
            if usable.len() < 2 { None } else { Some(usable.iter().sum::<f64>() / usable.len() as f64) };
        self.periods = vec![1.0; pool.cores.len()];
        if let Some(mean) = mean {
            for node in &pool.up {
                self.periods[*node] = mean / self.loads[*node].usable(pool.now_us).unwrap_or(mean);
            }
        }
        // Each begins somewhere in its period, so that a new order favours nobody.
        let turns = pool.up.iter().map(|node| {
            let at = self.periods[*node] * rng.random::<f64>();
            Reverse((at.to_bits(), *node))
        });
        self.turns = turns.collect();
        self.renewed_us = Some(pool.now_us);
        self.up = pool.up.len();
    }
}

impl Rule for ReportedLoad {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        let due = self.renewed_us.is_none_or(|at_us| pool.now_us >= at_us + RENEWED_US);
        if due || self.up != pool.up.len() {
            self.renew(pool, rng);
        }
        let Some(Reverse((at, node))) = self.turns.pop() else { return pool.any(rng) };
        let next = f64::from_bits(at) + self.periods[node];
        self.turns.push(Reverse((next.to_bits(), node)));
        node
    }

    fn ended(&mut self, node: usize, _latency_s: f64, pool: &Pool) {
        self.loads.resize(pool.cores.len(), Load::default());
        self.loads[node].answered += 1;
    }

    fn reported(&mut self, node: usize, sample: &CpuSample, pool: &Pool) {
        self.loads.resize(pool.cores.len(), Load::default());
        let load = &mut self.loads[node];
        let per_s = f64::from(load.answered) / ((pool.now_us - load.counted_us) as f64 / 1e6).max(1e-3);
        (load.answered, load.counted_us) = (0, pool.now_us);
        let utilisation = sample.percent() / 100.0;
        // A report without load or without use says nothing.
        if per_s > 0.0 && utilisation > 0.0 {
            load.weight = per_s / utilisation;
            load.at_us = pool.now_us;
            load.first_us.get_or_insert(pool.now_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{least_cpu::sample, push::picks, push::pool_of};
    use super::*;

    #[test]
    fn a_node_that_answers_as_much_with_half_the_use_gets_twice_as_many_after_the_blackout() {
        let mut rule = ReportedLoad::default();
        let mut pool = pool_of(&[1.0, 1.0], &[0, 0]);
        pool.now_us = 1_000_000;
        for node in [0, 1] {
            (0..100).for_each(|_| rule.ended(node, 0.1, &pool));
        }
        rule.reported(0, &sample(1.0, 0.8), &pool);
        rule.reported(1, &sample(1.0, 0.4), &pool);
        assert_eq!(picks(&mut rule, &pool, 300), [150, 150]);
        pool.now_us += BLACKOUT_US;
        let counts = picks(&mut rule, &pool, 300);
        assert!(counts[0].abs_diff(100) <= 1, "{counts:?}");
        pool.now_us += EXPIRES_US;
        let counts = picks(&mut rule, &pool, 300);
        assert!(counts[0].abs_diff(150) <= 1, "{counts:?}");
    }
}
