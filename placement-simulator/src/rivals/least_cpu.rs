//! The node with the lowest CPU use as last reported.
//!
//! Source: the usual practice (weights or order by an agent's idle CPU); Mitzenmacher, "How useful is old
//! information?", TPDS 2000, for what becomes of it: all tasks between two reports go to the same few nodes.

use super::{Pool, Rule};
use protocol::node::CpuSample;
use rand::rngs::SmallRng;

/// Lowest reported CPU use.
#[derive(Default)]
pub struct LeastCpu {
    used: Vec<f64>,
}

impl Rule for LeastCpu {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        self.used.resize(pool.cores.len(), 0.0);
        pool.least(rng, |node| self.used[node])
    }

    fn reported(&mut self, node: usize, sample: &CpuSample, pool: &Pool) {
        self.used.resize(pool.cores.len(), 0.0);
        self.used[node] = sample.percent();
    }
}

#[cfg(test)]
pub(super) fn sample(allotted_cores: f64, used_cores: f64) -> CpuSample {
    use protocol::node::CpuSource;
    CpuSample {
        allotted_cores,
        used_cores,
        own_cores: used_cores,
        obtained_share: None,
        others_share: 0.0,
        throttled_ratio: 0.0,
        source: CpuSource::CgroupV2,
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::{picks, pool_of};
    use super::*;

    #[test]
    fn until_the_next_report_all_go_to_the_one_that_looked_idle_whatever_it_has() {
        let mut rule = LeastCpu::default();
        let pool = pool_of(&[1.0, 0.5], &[0, 999]);
        rule.reported(0, &sample(1.0, 0.5), &pool);
        rule.reported(1, &sample(0.5, 0.1), &pool);
        assert_eq!(picks(&mut rule, &pool, 100), [0, 100]);
        rule.reported(1, &sample(0.5, 0.5), &pool);
        assert_eq!(picks(&mut rule, &pool, 100), [100, 0]);
    }
}
