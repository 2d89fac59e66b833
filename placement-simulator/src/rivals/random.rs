//! Any node.
//!
//! Source: the base line of every paper on balancing; nginx `random`.

use super::{Pool, Rule};
use rand::rngs::SmallRng;

/// Any node.
pub struct Random;

impl Rule for Random {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        pool.any(rng)
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::{picks, pool_of};
    use super::*;

    #[test]
    fn every_node_gets_about_as_many_however_strong_it_is() {
        let counts = picks(&mut Random, &pool_of(&[0.1, 1.0], &[9, 0]), 10_000);
        assert!(counts.iter().all(|count| (4_800..5_200).contains(count)), "{counts:?}");
    }
}
