//! Probed requests in flight and latency, by the hot-cold rule.
//!
//! Source: Wydrowski, Kleinberg, Rumble, Archer, "Load is not what you should balance: Introducing Prequal", NSDI 2024
//! (arXiv 2312.10172). Each task sends three probes to random nodes; answers gather in a pool of 16. A node is hot if
//! it has more requests in flight than the quantile `q_rif` of recent answers. The cold one with the lowest latency
//! is taken; if all are hot, the one with the fewest in flight. An answer may be used again, as often as keeps the
//! pool filled; one is removed per task, the worst and the oldest in turn, and each after a second.

use super::{Pool, Rule};
use rand::{Rng, rngs::SmallRng};
use std::collections::VecDeque;

/// Probes per task.
const PROBES: usize = 3;
/// Answers kept.
const KEPT: usize = 16;
/// Answers removed per task.
const REMOVED: f64 = 1.0;
/// By how much more answers come than go.
const SURPLUS: f64 = 1.0;
/// How long an answer is used, in microseconds.
const AGE_US: u64 = 1_000_000;
/// Answers from which the quantile is estimated.
const RECENT: usize = 128;

#[derive(Clone, Copy, Debug)]
struct Answer {
    node: usize,
    in_flight: u32,
    latency_s: f64,
    at_us: u64,
    uses: u32,
}

/// Prequal.
pub struct Prequal {
    q_rif: f64,
    answers: VecDeque<Answer>,
    recent: VecDeque<u32>,
    oldest_next: bool,
}

impl Prequal {
    /// With this quantile: 0 is by requests in flight alone, 1 by latency alone; the paper has 0.6–0.9 in use.
    #[must_use]
    pub const fn new(q_rif: f64) -> Self {
        Self { q_rif, answers: VecDeque::new(), recent: VecDeque::new(), oldest_next: false }
    }

    /// How often an answer is used on average. The paper's pool is much smaller than the number of nodes; here it is
    /// at most half of it.
    fn uses(nodes: usize) -> f64 {
        let kept = (KEPT as f64 / nodes as f64).min(0.5);
        ((1.0 + SURPLUS) / ((1.0 - kept) * PROBES as f64 - REMOVED).max(0.1)).max(1.0)
    }

    /// Requests in flight above which a node is hot.
    fn threshold(&self) -> u32 {
        let mut recent: Vec<_> = self.recent.iter().copied().collect();
        recent.sort_unstable();
        // At most 128 answers.
        let at = ((recent.len() as f64 * self.q_rif) as usize).min(recent.len().saturating_sub(1));
        recent.get(at).copied().unwrap_or(0)
    }

    /// The best answer, or the worst.
    fn choose(&self, worst: bool) -> Option<usize> {
        let threshold = self.threshold();
        let key = |answer: &Answer| {
            let hot = answer.in_flight > threshold;
            (hot, if hot { f64::from(answer.in_flight) } else { answer.latency_s })
        };
        let order = |one: &(usize, &Answer), other: &(usize, &Answer)| {
            let (one, other) = (key(one.1), key(other.1));
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
        };
        let entries = self.answers.iter().enumerate();
        let found = if worst { entries.max_by(order) } else { entries.min_by(order) };
        found.map(|(at, _)| at)
    }

    fn forget(&mut self, pool: &Pool) {
        self.answers.retain(|answer| {
            pool.now_us < answer.at_us + AGE_US && pool.up.binary_search(&answer.node).is_ok()
        });
    }

    fn remove_one(&mut self) {
        let at = if self.oldest_next { Some(0) } else { self.choose(true) };
        self.oldest_next = !self.oldest_next;
        if let Some(at) = at {
            self.answers.remove(at);
        }
    }
}

impl Rule for Prequal {
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize {
        self.forget(pool);
        // With fewer than two answers there is no choice.
        if self.answers.len() < 2 {
            return pool.any(rng);
        }
        let Some(at) = self.choose(false) else { return pool.any(rng) };
        let answer = &mut self.answers[at];
        let node = answer.node;
        // What is sent there counts before the next probe sees it.
        answer.in_flight += 1;
        answer.uses -= 1;
        if answer.uses == 0 {
            self.answers.remove(at);
        }
        if self.answers.len() > 1 {
            self.remove_one();
        }
        node
    }

    fn probes(&mut self, pool: &Pool, rng: &mut SmallRng) -> Vec<usize> {
        let many = PROBES.min(pool.up.len());
        rand::seq::index::sample(rng, pool.up.len(), many).into_iter().map(|at| pool.up[at]).collect()
    }

    fn probed(&mut self, node: usize, in_flight: u32, latency_s: f64, pool: &Pool, rng: &mut SmallRng) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(in_flight);
        if self.answers.len() == KEPT {
            self.answers.pop_front();
        }
        let uses = Self::uses(pool.cores.len());
        // A number of a few, rounded at random so that its mean is kept.
        let uses = uses.floor() as u32 + u32::from(rng.random::<f64>() < uses.fract());
        self.answers.push_back(Answer { node, in_flight, latency_s, at_us: pool.now_us, uses });
    }
}

#[cfg(test)]
mod tests {
    use super::super::push::pool_of;
    use super::*;
    use rand::SeedableRng;

    fn after(answers: &[(usize, u32, f64)], q_rif: f64) -> usize {
        let (mut rule, mut rng) = (Prequal::new(q_rif), SmallRng::seed_from_u64(1));
        let pool = pool_of(&[1.0; 40], &[0; 40]);
        for (node, in_flight, latency_s) in answers {
            rule.probed(*node, *in_flight, *latency_s, &pool, &mut rng);
        }
        rule.pick(&pool, &mut rng)
    }

    #[test]
    fn the_cold_one_with_the_lowest_latency_is_taken_and_a_hot_one_never_while_one_is_cold() {
        // Of 0, 1, 2, 3, 9 in flight the quantile 0.6 is 3: only 9 is hot, although it is the fastest.
        let answers = [(1, 0, 0.5), (2, 1, 0.2), (3, 2, 0.1), (4, 3, 0.3), (5, 9, 0.01)];
        assert_eq!(after(&answers, 0.6), 3);
        // The quantile 0.2 is 1: cold are those with 0 and 1.
        assert_eq!(after(&answers, 0.2), 2);
    }

    #[test]
    fn an_answer_is_too_old_after_a_second_and_what_was_sent_counts_at_once() {
        let (mut rule, mut rng) = (Prequal::new(0.0), SmallRng::seed_from_u64(1));
        let mut pool = pool_of(&[1.0; 40], &[0; 40]);
        for node in [7, 8, 9] {
            rule.probed(node, 1, 0.1, &pool, &mut rng);
        }
        let first = rule.pick(&pool, &mut rng);
        assert!(rule.answers.iter().all(|answer| answer.node != first || answer.in_flight == 2));
        pool.now_us = AGE_US;
        rule.pick(&pool, &mut rng);
        assert!(rule.answers.is_empty());
    }

    #[test]
    fn answers_are_used_as_often_as_the_paper_says() {
        // m = 16 of n = 100, three probes, one removal, δ = 1: 2 ÷ (0.84 · 3 − 1).
        assert!((Prequal::uses(100) - 2.0 / 1.52).abs() < 1e-9);
    }
}
