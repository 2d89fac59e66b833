//! The better of two drawn at random, by latency × (requests in flight + 1).
//!
//! Source: Finagle's PeakEWMA (and tower's): latency is an average that decays over 10 s, except that a higher one
//! counts at once; a node that has requests but never answered is avoided.

use super::{Pool, Rule};
use rand::rngs::SmallRng;

/// Time constant of the average, in seconds.
const DECAY_S: f64 = 10.0;
/// Cost of a node with requests in flight that never answered.
const PENALTY: f64 = 1e15;

/// Peak-sensitive average of latency.
#[derive(Default)]
pub struct PeakEwma {
    /// Average in seconds, and when it was last brought up to date.
    costs: Vec<(f64, u64)>,
}

impl PeakEwma {
    fn observe(&mut self, node: usize, latency_s: f64, pool: &Pool) {
        self.costs.resize(pool.cores.len(), (0.0, 0));
        let (cost, at_us) = self.costs[node];
        let new = if latency_s > cost {
            latency_s
        } else {
            let elapsed_s = pool.now_us.saturating_sub(at_us) as f64 / 1e6;
            let old = (-elapsed_s / DECAY_S).exp();
            cost * old + latency_s * (1.0 - old)
        };
        self.costs[node] = (new, pool.now_us);
    }

    fn load(&self, node: usize, pool: &Pool) -> f64 {
        let (cost, at_us) = self.costs.get(node).copied().unwrap_or_default();
        let in_flight = f64::from(pool.in_flight[node]);
        if cost == 0.0 && in_flight > 0.0 {
            return PENALTY + in_flight;
        }
        // Looking lets the average decay as an answer in no time would.
        let elapsed_s = pool.now_us.saturating_sub(at_us) as f64 / 1e6;
        cost * (-elapsed_s / DECAY_S).exp() * (in_flight + 1.0)
    }
}

impl Rule for PeakEwma {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        pool.better_of_two(rng, |node| self.load(node, pool))
    }

    fn ended(&mut self, node: usize, latency_s: f64, pool: &Pool) {
        self.observe(node, latency_s, pool);
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::{picks, pool_of};
    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_is_forgiven_slowly() {
        let mut rule = PeakEwma::default();
        let mut pool = pool_of(&[1.0, 1.0], &[0, 0]);
        rule.ended(0, 0.010, &pool);
        rule.ended(1, 0.020, &pool);
        assert_eq!(picks(&mut rule, &pool, 50), [50, 0]);
        rule.ended(0, 1.0, &pool);
        assert_eq!(picks(&mut rule, &pool, 50), [0, 50]);
        pool.now_us = 10_000_000;
        rule.ended(0, 0.010, &pool);
        // 1 s ÷ e is left of the peak.
        assert!((rule.load(0, &pool) - (0.010 + 0.990 / std::f64::consts::E)).abs() < 1e-3);
    }

    #[test]
    fn requests_in_flight_multiply_the_cost_and_a_silent_node_is_avoided() {
        let mut rule = PeakEwma::default();
        let pool = pool_of(&[1.0, 1.0], &[4, 0]);
        rule.ended(0, 0.010, &pool);
        rule.ended(1, 0.030, &pool);
        assert_eq!(picks(&mut rule, &pool, 50), [0, 50]);
        let fresh = pool_of(&[1.0, 1.0], &[1, 0]);
        assert_eq!(picks(&mut PeakEwma::default(), &fresh, 50), [0, 50]);
    }
}
