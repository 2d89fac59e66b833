//! Rule 1: the effective capacity Ĉ of a node, what a new task would really get there.
//!
//! Source: design.md 3.1. The master knows its own dispatches exactly, so reports serve only to learn
//! how much of the node *others* take: the loss `e = max(e_g, o)`, where `e_g` (1 − the share that our
//! threads obtained, from schedstat) is seen only while we work, and `o` (what others use beside us,
//! from the cgroup) also while we do not. The node measures both; see
//! [`CpuSample`](protocol::node::CpuSample).
//!
//! A rise of e counts at once, because work sent to a node that is taken suffers; a fall follows with
//! time constant 1 s. With age a sample loses weight to the long mean: a node that was not heard of is
//! unknown, not idle.
//!
//! That is the careful figure, for who gets work. How long a run will take is told from the [`Level`] of the
//! same loss: careful at each moment would add up to a third too much over the seconds of a run.

use crate::level::Level;
use protocol::node::CpuSample;

/// Time constant of a falling loss, in seconds.
const FALL_TAU_S: f64 = 1.0;
/// Time constant of the long mean, in seconds.
const LONG_TAU_S: f64 = 60.0;
/// Time constant with which a sample loses weight to the long mean, in seconds.
const AGE_TAU_S: f64 = 5.0;
/// Part of the allotted cores that is always counted on: the kernel never starves a thread for good.
const LEAST_SHARE: f64 = 0.05;

/// What is known of a node's capacity.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    allotted_cores: f64,
    /// e, 0 … 1.
    loss: f64,
    /// ē, 0 … 1.
    long_loss: f64,
    /// Of our threads, the part that they got with no more of them than cores: s of rule 3.
    share: f64,
    /// The level of 1 − e.
    left_level: Level,
    /// The level of s.
    share_level: Level,
    sampled_us: Option<u64>,
}

fn weight(elapsed_s: f64, tau_s: f64) -> f64 {
    1.0 - (-elapsed_s / tau_s).exp()
}

impl Capacity {
    /// Of a node that was not measured yet: `long_loss` (0 … 1) is the cluster's median (rule 6).
    #[must_use]
    pub fn new(allotted_cores: f64, long_loss: f64) -> Self {
        let long_loss = long_loss.clamp(0.0, 1.0);
        let (left_level, share_level) = (Level::default(), Level::default());
        let (loss, share, sampled_us) = (long_loss, 1.0, None);
        Self { allotted_cores, loss, long_loss, share, left_level, share_level, sampled_us }
    }

    /// A sample arrived. `busy_cores` is the number of threads that our tasks there keep busy, by the ledger.
    pub fn observe(&mut self, now_us: u64, sample: &CpuSample, busy_cores: f64) {
        self.allotted_cores = sample.allotted_cores;
        let obtained = sample.obtained_share.unwrap_or(1.0);
        let loss = (1.0 - obtained).max(sample.others_share).clamp(0.0, 1.0);
        match self.sampled_us {
            None => {
                self.loss = loss;
                // The first sample says as much as the median of the others that we started with.
                self.long_loss = (self.long_loss + loss) / 2.0;
            }
            Some(before_us) => {
                let elapsed_s = now_us.saturating_sub(before_us) as f64 / 1e6;
                let fall = weight(elapsed_s, FALL_TAU_S);
                self.loss = if loss >= self.loss { loss } else { self.loss + fall * (loss - self.loss) };
                self.long_loss += weight(elapsed_s, LONG_TAU_S) * (loss - self.long_loss);
            }
        }
        self.left_level.observe(now_us, 1.0 - loss);
        if let Some(obtained) = sample.obtained_share
            && busy_cores <= self.allotted_cores
        {
            self.share = obtained;
            self.share_level.observe(now_us, obtained);
        }
        self.sampled_us = Some(now_us);
    }

    /// What of a sample's word is left at this age, 0 … 1.
    fn freshness(&self, now_us: u64) -> f64 {
        self.sampled_us.map_or(0.0, |at| (-(now_us.saturating_sub(at) as f64) / 1e6 / AGE_TAU_S).exp())
    }

    /// The loss as of now, 0 … 1.
    #[must_use]
    pub fn loss(&self, now_us: u64) -> f64 {
        let fresh = self.freshness(now_us);
        self.loss * fresh + self.long_loss * (1.0 - fresh)
    }

    /// ē, 0 … 1.
    #[must_use]
    pub const fn long_loss(&self) -> f64 {
        self.long_loss
    }

    /// c, in cores.
    #[must_use]
    pub const fn allotted_cores(&self) -> f64 {
        self.allotted_cores
    }

    /// Ĉ, in cores.
    #[must_use]
    pub fn effective_cores(&self, now_us: u64) -> f64 {
        self.allotted_cores * (1.0 - self.loss(now_us)).max(LEAST_SHARE)
    }

    /// s of rule 3: what one thread of ours gets of a core when no more of them run than there are
    /// cores, 0.05 … 1; 1 if that was never measured, and towards 1 − ē as the measurement ages.
    #[must_use]
    pub fn thread_share(&self, now_us: u64) -> f64 {
        self.aged(now_us, self.share)
    }

    /// What Ĉ is expected to be over the next seconds, in cores.
    #[must_use]
    pub fn expected_cores(&self, now_us: u64) -> f64 {
        self.allotted_cores * self.aged(now_us, self.left_level.mean().unwrap_or(1.0 - self.loss))
    }

    /// What [`Capacity::thread_share`] is expected to be over the next seconds.
    #[must_use]
    pub fn expected_thread_share(&self, now_us: u64) -> f64 {
        self.aged(now_us, self.share_level.mean().unwrap_or(self.share))
    }

    /// A part that is left to us, as of the last sample, with its age taken into account.
    fn aged(&self, now_us: u64, left: f64) -> f64 {
        let fresh = self.freshness(now_us);
        (left * fresh + (1.0 - self.long_loss) * (1.0 - fresh)).clamp(LEAST_SHARE, 1.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::node::CpuSource;

    fn sample(allotted_cores: f64, obtained_share: Option<f64>, others_share: f64) -> CpuSample {
        CpuSample {
            allotted_cores,
            used_cores: 0.0,
            own_cores: 0.0,
            obtained_share,
            others_share,
            throttled_ratio: 0.0,
            source: CpuSource::CgroupV2,
        }
    }

    #[test]
    fn an_idle_node_and_one_that_only_sleeps_keep_all_their_cores() {
        let mut capacity = Capacity::new(2.0, 0.0);
        for at in 1..10 {
            capacity.observe(at * 500_000, &sample(2.0, None, 0.0), 0.0);
        }
        assert!(capacity.effective_cores(4_500_000) >= 0.9 * 2.0);
    }

    #[test]
    fn one_busy_slot_of_two_costs_nothing() {
        let mut capacity = Capacity::new(2.0, 0.0);
        capacity.observe(500_000, &sample(2.0, Some(1.0), 0.02), 1.0);
        assert!(capacity.effective_cores(500_000) >= 0.9 * 2.0);
    }

    #[test]
    fn a_hog_counts_at_once_and_is_forgiven_slowly() {
        let mut capacity = Capacity::new(0.4, 0.0);
        capacity.observe(500_000, &sample(0.4, Some(1.0), 0.0), 1.0);
        capacity.observe(1_000_000, &sample(0.4, Some(0.5), 0.1), 1.0);
        assert!((capacity.effective_cores(1_000_000) - 0.2).abs() < 0.001);
        capacity.observe(1_500_000, &sample(0.4, Some(1.0), 0.0), 1.0);
        let after_half_a_second = capacity.effective_cores(1_500_000);
        assert!((0.25..0.32).contains(&after_half_a_second), "{after_half_a_second}");
        for at in 4..14 {
            capacity.observe(at * 500_000, &sample(0.4, Some(1.0), 0.0), 1.0);
        }
        assert!(capacity.effective_cores(6_500_000) > 0.39);
    }

    #[test]
    fn what_is_expected_is_the_mean_while_what_is_careful_is_the_worst() {
        let mut capacity = Capacity::new(1.0, 0.0);
        for at in 0..20 {
            // The hog and our thread on one CPU, and for a moment on two.
            let obtained = if at % 5 == 0 { 0.5 } else { 0.3 };
            capacity.observe(at * 500_000, &sample(1.0, Some(obtained), 0.5), 1.0);
        }
        let (careful, expected) = (capacity.effective_cores(9_500_000), capacity.expected_cores(9_500_000));
        assert!((expected - 0.34).abs() < 0.01, "{expected}");
        assert!((0.3..0.33).contains(&careful), "{careful}");
        let share = capacity.expected_thread_share(9_500_000);
        assert!((share - 0.34).abs() < 0.01, "{share}");
        // Not heard of for a minute: the long mean, whatever it was.
        let unknown = 1.0 - capacity.long_loss();
        assert!((capacity.expected_cores(69_500_000) - unknown).abs() < 0.001);
    }

    #[test]
    fn what_others_take_beside_an_idle_node_of_ours_counts_too() {
        let mut capacity = Capacity::new(1.0, 0.0);
        capacity.observe(500_000, &sample(1.0, None, 0.5), 0.0);
        assert!((capacity.effective_cores(500_000) - 0.5).abs() < 0.001);
    }

    #[test]
    fn a_node_that_was_not_heard_of_falls_back_to_its_long_mean() {
        let mut capacity = Capacity::new(1.0, 0.4);
        capacity.observe(500_000, &sample(1.0, None, 0.0), 0.0);
        assert!(capacity.effective_cores(500_000) > 0.99);
        assert!((capacity.effective_cores(60_000_000) - 0.8).abs() < 0.01);
    }

    proptest! {
        #[test]
        fn capacity_stays_between_a_twentieth_and_all_of_the_allotted_cores(
            start in 0.0..1.0f64,
            samples in prop::collection::vec((0u64..3_000_000, 0.01..64.0f64, prop::option::of(0.0..=1.0f64), 0.0..=1.0f64, 0.0..70.0f64), 0..40),
            later in 0u64..100_000_000,
        ) {
            let mut capacity = Capacity::new(1.0, start);
            let mut now = 0;
            for (step, allotted, obtained, others, busy) in samples {
                now += step;
                let before = capacity.loss(now);
                capacity.observe(now, &sample(allotted, obtained, others), busy);
                let told = (1.0 - obtained.unwrap_or(1.0)).max(others);
                if told > before {
                    // A rise counts at once and in full; the first sample does in any case.
                    prop_assert!(capacity.loss(now) >= told - 1e-9);
                }
            }
            for at in [now, now + later] {
                let cores = capacity.effective_cores(at);
                let allotted = capacity.allotted_cores();
                prop_assert!(cores >= 0.05 * allotted - 1e-9 && cores <= allotted + 1e-9);
                prop_assert!((0.05..=1.0).contains(&capacity.thread_share(at)));
                let expected = capacity.expected_cores(at);
                prop_assert!(expected >= 0.05 * allotted - 1e-9 && expected <= allotted + 1e-9);
                prop_assert!((0.05..=1.0).contains(&capacity.expected_thread_share(at)));
            }
        }
    }
}
