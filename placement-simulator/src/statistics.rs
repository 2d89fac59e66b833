//! Figures of one run, and of several seeds together.
//!
//! Slowdown is the time from arrival to result ÷ the time that the task would have taken alone on the largest node.
//! A task that was given up or never ended counts with all the time until the run was over.

use crate::{
    cluster::Outcome,
    scenario::{Drawn, Scenario},
};

/// Figures of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Mean slowdown.
    pub mean: f64,
    /// Median slowdown.
    pub p50: f64,
    /// 95 of 100 are below it.
    pub p95: f64,
    /// 99 of 100 are below it.
    pub p99: f64,
    /// 999 of 1,000 are below it.
    pub p999: f64,
    /// Largest response time ÷ the same of nobody, in seconds.
    pub longest_s: f64,
    /// Part of the tasks without a result.
    pub lost: f64,
}

/// The value below which a part of the (sorted) values is.
#[must_use]
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    // Some hundred thousand values.
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

impl Figures {
    /// Of the outcomes of all tasks that arrived after the warm-up.
    #[must_use]
    pub fn of(scenario: &Scenario, drawn: &Drawn, outcomes: &[Outcome]) -> Self {
        let from_us = (scenario.warm_up_s * 1e6) as u64;
        let end_s = 3.0 * scenario.duration_s;
        let counted = || {
            drawn.tasks.iter().zip(outcomes).filter(|(task, _)| task.arrival_us >= from_us).map(
                |(task, outcome)| {
                    let response_s = match outcome {
                        Outcome::Done(took_s) | Outcome::Unfinished(took_s) => *took_s,
                        Outcome::Failed => end_s - task.arrival_us as f64 / 1e6,
                    };
                    (
                        response_s,
                        response_s / task.alone_s(drawn.largest),
                        !matches!(outcome, Outcome::Done(_)),
                    )
                },
            )
        };
        let mut slowdowns: Vec<f64> = counted().map(|one| one.1).collect();
        slowdowns.sort_by(f64::total_cmp);
        let many = slowdowns.len().max(1) as f64;
        Self {
            mean: slowdowns.iter().sum::<f64>() / many,
            p50: quantile(&slowdowns, 0.5),
            p95: quantile(&slowdowns, 0.95),
            p99: quantile(&slowdowns, 0.99),
            p999: quantile(&slowdowns, 0.999),
            longest_s: counted().map(|one| one.0).fold(0.0, f64::max),
            lost: counted().filter(|one| one.2).count() as f64 / many,
        }
    }
}

/// A mean of several seeds, with the bounds of its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Geometric mean.
    pub mean: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// 97.5 % quantiles of Student's t with 1 … 30 degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

impl Interval {
    /// Of one value per seed, all above 0; by their logarithms, because slowdowns and their ratios spread by
    /// factors.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let many = values.len().max(1) as f64;
        let logs: Vec<f64> = values.iter().map(|value| value.max(1e-12).ln()).collect();
        let mean = logs.iter().sum::<f64>() / many;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (many - 1.0).max(1.0);
        let student = match values.len() {
            0 | 1 => f64::INFINITY,
            seeds => STUDENT.get(seeds - 2).copied().unwrap_or(1.96),
        };
        let half = if values.len() < 2 { 0.0 } else { student * (variance / many).sqrt() };
        Self { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() }
    }

    /// Of the ratio of two policies, seed by seed: both met the same tasks.
    #[must_use]
    pub fn of_ratio(ours: &[f64], theirs: &[f64]) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(one, other)| one / other).collect();
        Self::of(&ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::{Known, Task};

    #[test]
    fn quantiles_are_values_that_were_there() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 0.999].map(|part| quantile(&values, part)), [50.0, 99.0, 100.0]);
    }

    #[test]
    fn a_task_that_never_ended_is_slow_and_the_warm_up_does_not_count() {
        let scenario = Scenario { warm_up_s: 1.0, duration_s: 10.0, ..Scenario::base("x") };
        let task =
            |arrival_us| Task { arrival_us, cpu_s: 0.1, off_cpu_s: 0.0, threads: 1, known: Known::Said };
        let drawn = Drawn {
            cores: vec![0.5],
            tasks: vec![task(0), task(2_000_000), task(3_000_000)],
            hogs: Vec::new(),
            faulty: Vec::new(),
            fault_us: 0,
            largest: 0.5,
        };
        let outcomes = [Outcome::Done(9.0), Outcome::Done(0.4), Outcome::Unfinished(27.0)];
        let figures = Figures::of(&scenario, &drawn, &outcomes);
        assert!((figures.p50 - 2.0).abs() < 1e-9 && (figures.p99 - 135.0).abs() < 1e-9, "{figures:?}");
        assert!((figures.lost - 0.5).abs() < 1e-9 && (figures.longest_s - 27.0).abs() < 1e-9);
    }

    #[test]
    fn the_interval_holds_the_mean_and_is_one_point_without_spread() {
        let same = Interval::of(&[2.0; 10]);
        assert!((same.mean - 2.0).abs() < 1e-9 && (same.high - same.low).abs() < 1e-9);
        let spread = Interval::of(&[1.0, 4.0]);
        // Geometric mean 2; one degree of freedom: 12.706 · ln 4 ÷ 2.
        assert!((spread.mean - 2.0).abs() < 1e-9);
        assert!((spread.high.ln() - 2f64.ln() - 12.706 * 4f64.ln() / 2.0).abs() < 1e-9);
    }
}
