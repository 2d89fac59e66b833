//! The node with the fewest tasks in flight, or the fewest per core.
//!
//! Source: HAProxy `leastconn` and nginx `least_conn`. By capacity it is `(in flight + 1) ÷ weight`, as HAProxy orders
//! busy servers: what the new task would find. Equals are drawn from at random.

use super::{Pool, Rule};
use rand::rngs::SmallRng;

/// Fewest in flight.
pub struct LeastConnections {
    /// Whether by capacity.
    pub weighted: bool,
}

impl Rule for LeastConnections {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        let weighted = self.weighted;
        pool.least(rng, |node| {
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
    fn the_one_with_fewest_is_taken_and_by_capacity_the_one_with_fewest_per_core() {
        let pool = pool_of(&[0.2, 1.0, 0.2], &[1, 2, 5]);
        assert_eq!(picks(&mut LeastConnections { weighted: false }, &pool, 9), [9, 0, 0]);
        assert_eq!(picks(&mut LeastConnections { weighted: true }, &pool, 9), [0, 9, 0]);
        let equal = pool_of(&[1.0, 1.0], &[3, 3]);
        let counts = picks(&mut LeastConnections { weighted: true }, &equal, 1_000);
        assert!(counts.iter().all(|count| *count > 400), "{counts:?}");
    }
}
