//! The better of two drawn at random, by tasks in flight, or by tasks in flight per core.
//!
//! Source: Mitzenmacher, "The power of two choices in randomized load balancing", TPDS 2001; nginx `random two
//! least_conn`.

use super::{Pool, Rule};
use rand::rngs::SmallRng;

/// The better of two.
pub struct PowerOfTwo {
    /// Whether by capacity.
    pub weighted: bool,
}

impl Rule for PowerOfTwo {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        let weighted = self.weighted;
        pool.better_of_two(rng, |node| {
            let in_flight = f64::from(pool.in_flight[node]);
            if weighted { (in_flight + 1.0) / pool.cores[node] } else { in_flight }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::{picks, pool_of};
    use super::*;

    #[test]
    fn the_worst_of_all_is_never_taken_and_the_best_only_when_it_is_drawn() {
        let pool = pool_of(&[1.0; 4], &[0, 1, 2, 3]);
        let counts = picks(&mut PowerOfTwo { weighted: false }, &pool, 6_000);
        // The best is in half of all pairs, the next best in a third of them.
        assert_eq!(counts[3], 0);
        assert!((2_800..3_200).contains(&counts[0]) && (1_850..2_150).contains(&counts[1]), "{counts:?}");
    }
}
