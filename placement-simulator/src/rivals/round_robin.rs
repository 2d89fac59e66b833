//! One node after the other, plain or weighted by cores.
//!
//! Source: nginx's smooth weighted round robin (commit 52327e0627f4 of 2012): each time, every node's credit grows
//! by its weight; the one with most is taken and pays the sum of all weights. So picks of a heavy node are
//! spread instead of coming in a row.

use super::{Pool, Rule};
use rand::rngs::SmallRng;

/// One after the other.
pub struct RoundRobin {
    weighted: bool,
    credit: Vec<f64>,
}

impl RoundRobin {
    /// Weighted by cores, or not.
    #[must_use]
    pub const fn new(weighted: bool) -> Self {
        Self { weighted, credit: Vec::new() }
    }
}

impl Rule for RoundRobin {
    fn pick(&mut self, pool: &Pool, _rng: &mut SmallRng) -> usize {
        self.credit.resize(pool.cores.len(), 0.0);
        let (mut best, mut sum) = (pool.up[0], 0.0);
        for node in &pool.up {
            let weight = if self.weighted { pool.cores[*node] } else { 1.0 };
            self.credit[*node] += weight;
            sum += weight;
            if self.credit[*node] > self.credit[best] + 1e-9 {
                best = *node;
            }
        }
        self.credit[best] -= sum;
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::{picks, pool_of};
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn plain_it_takes_turns_and_weighted_each_gets_its_share() {
        let pool = pool_of(&[0.1, 0.3, 0.6], &[0, 0, 0]);
        assert_eq!(picks(&mut RoundRobin::new(false), &pool, 30), [10, 10, 10]);
        assert_eq!(picks(&mut RoundRobin::new(true), &pool, 100), [10, 30, 60]);
    }

    #[test]
    fn picks_of_a_heavy_node_are_spread_as_in_the_commits_example() {
        // Weights 5, 1, 1 give a a b a c a a.
        let pool = pool_of(&[5.0, 1.0, 1.0], &[0, 0, 0]);
        let (mut rule, mut rng) = (RoundRobin::new(true), SmallRng::seed_from_u64(0));
        let order: Vec<_> = (0..7).map(|_| rule.pick(&pool, &mut rng)).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }
}
