//! What arrives: when, how long, of which kind.

use rand::{Rng, rngs::SmallRng};

/// How much CPU tasks need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sizes {
    /// All the same, in milliseconds.
    Constant(f64),
    /// Exponential with this mean, in milliseconds.
    Exponential(f64),
    /// Nine of ten short, one long, in milliseconds.
    Bimodal {
        /// Of nine in ten.
        short_ms: f64,
        /// Of one in ten.
        long_ms: f64,
    },
    /// Bounded Pareto, in milliseconds: most are short, and half of the work is in a few that are long.
    Pareto {
        /// Shape.
        alpha: f64,
        /// Shortest.
        from_ms: f64,
        /// Longest.
        to_ms: f64,
    },
}

/// That of the bench on real containers: α 1.1, 5 … 500 ms, mean 20 ms.
pub const PARETO: Sizes = Sizes::Pareto { alpha: 1.1, from_ms: 5.0, to_ms: 500.0 };

impl Sizes {
    /// Draws one, in seconds; whole milliseconds, because that is how `burn` says it.
    pub fn draw_s(&self, rng: &mut SmallRng) -> f64 {
        let uniform: f64 = rng.random();
        let ms = match *self {
            Self::Constant(ms) => ms,
            Self::Exponential(mean_ms) => -mean_ms * (1.0 - uniform).ln(),
            Self::Bimodal { short_ms, long_ms } => {
                if uniform < 0.9 {
                    short_ms
                } else {
                    long_ms
                }
            }
            Self::Pareto { alpha, from_ms, to_ms } => {
                let cut = 1.0 - (from_ms / to_ms).powf(alpha);
                from_ms / (1.0 - uniform * cut).powf(1.0 / alpha)
            }
        };
        ms.round().max(1.0) / 1e3
    }

    /// Mean, in seconds.
    #[must_use]
    pub fn mean_s(&self) -> f64 {
        let ms = match *self {
            Self::Constant(ms) | Self::Exponential(ms) => ms,
            Self::Bimodal { short_ms, long_ms } => 0.9 * short_ms + 0.1 * long_ms,
            Self::Pareto { alpha, from_ms, to_ms } => {
                let cut = 1.0 - (from_ms / to_ms).powf(alpha);
                from_ms.powf(alpha) / cut * alpha / (alpha - 1.0)
                    * (from_ms.powf(1.0 - alpha) - to_ms.powf(1.0 - alpha))
            }
        };
        ms / 1e3
    }
}

/// When tasks come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Poisson, at the scenario's load.
    Poisson,
    /// Poisson batches of so many at once, at the scenario's load.
    Bursts(u32),
    /// Poisson with a load that rises from the scenario's to `peak` in the middle and falls back.
    Ramp {
        /// Highest load.
        peak: f64,
    },
}

/// What tasks do beside computing, and what is known of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nature {
    /// Threads that a task keeps busy: the chance of each number.
    pub threads: &'static [(u32, f64)],
    /// Time that a task waits for I/O, as a multiple of its CPU time.
    pub off_cpu: f64,
    /// Part of the tasks that only wait (for as long as their size says).
    pub sleepers: f64,
    /// What the scheduler may know.
    pub known: Known,
}

/// What a task says of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its input says it (`burn`, `sleep`).
    Said,
    /// There is a kind for each power of two: learned from results.
    Learned,
    /// One kind for all sizes.
    Nothing,
}

/// Tasks of one thread that compute, and say how much.
pub const PLAIN: Nature = Nature { threads: &[(1, 1.0)], off_cpu: 0.0, sleepers: 0.0, known: Known::Said };

/// One task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Task {
    /// When it arrives.
    pub arrival_us: u64,
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Time without CPU, in seconds; half of it before and half of it after the middle of the CPU time.
    pub off_cpu_s: f64,
    /// Threads that it keeps busy while it computes.
    pub threads: u32,
    /// What it says of its size.
    pub known: Known,
}

impl Task {
    /// How long it would take alone on a node of so many cores, in seconds.
    #[must_use]
    pub fn alone_s(&self, cores: f64) -> f64 {
        self.off_cpu_s + self.cpu_s / f64::from(self.threads).min(cores)
    }
}

/// All tasks of a run: `rate_at` says how many CPU-seconds are to arrive per second at a time.
#[must_use]
pub fn tasks(
    sizes: Sizes,
    arrivals: Arrivals,
    nature: Nature,
    most_cpu_per_s: f64,
    load_at: impl Fn(f64) -> f64,
    duration_s: f64,
    rng: &mut SmallRng,
) -> Vec<Task> {
    let batch = if let Arrivals::Bursts(batch) = arrivals { batch } else { 1 };
    let cpu_per_task_s = sizes.mean_s() * (1.0 - nature.sleepers);
    let per_s = most_cpu_per_s / cpu_per_task_s / f64::from(batch);
    let mut tasks = Vec::new();
    let mut at_s = 0.0;
    loop {
        // A Poisson process whose rate varies, by thinning.
        at_s += -(1.0 - rng.random::<f64>()).ln() / per_s;
        if at_s >= duration_s {
            return tasks;
        }
        if rng.random::<f64>() * most_load(arrivals, &load_at) > load_at(at_s) {
            continue;
        }
        for _ in 0..batch {
            tasks.push(draw(sizes, nature, at_s, rng));
        }
    }
}

fn most_load(arrivals: Arrivals, load_at: &impl Fn(f64) -> f64) -> f64 {
    if let Arrivals::Ramp { peak } = arrivals { peak } else { load_at(0.0) }
}

fn draw(sizes: Sizes, nature: Nature, at_s: f64, rng: &mut SmallRng) -> Task {
    let size_s = sizes.draw_s(rng);
    let mut left: f64 = rng.random();
    let last = nature.threads.last().map_or(1, |(threads, _)| *threads);
    let threads = nature.threads.iter().find(|(_, chance)| {
        left -= chance;
        left < 0.0
    });
    let sleeps = rng.random::<f64>() < nature.sleepers;
    Task {
        // Simulated times are some minutes.
        arrival_us: (at_s * 1e6) as u64,
        cpu_s: if sleeps { 0.0 } else { size_s },
        off_cpu_s: if sleeps { size_s } else { nature.off_cpu * size_s },
        threads: threads.map_or(last, |(threads, _)| *threads),
        known: nature.known,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_mean_of_what_is_drawn_is_the_mean_that_is_told() {
        let mut rng = SmallRng::seed_from_u64(1);
        let bimodal = Sizes::Bimodal { short_ms: 10.0, long_ms: 200.0 };
        for sizes in [Sizes::Constant(20.0), Sizes::Exponential(40.0), bimodal, PARETO] {
            let drawn: f64 = (0..200_000).map(|_| sizes.draw_s(&mut rng)).sum::<f64>() / 200_000.0;
            assert!((drawn / sizes.mean_s() - 1.0).abs() < 0.03, "{sizes:?} {drawn}");
        }
        assert!((PARETO.mean_s() - 0.0204).abs() < 0.0005);
    }

    #[test]
    fn as_much_work_arrives_as_the_load_says_and_most_at_the_peak() {
        let mut rng = SmallRng::seed_from_u64(2);
        let burst = Arrivals::Bursts(20);
        for arrivals in [Arrivals::Poisson, burst] {
            let tasks = tasks(PARETO, arrivals, PLAIN, 8.0, |_| 0.8, 1_000.0, &mut rng);
            let cpu_s: f64 = tasks.iter().map(|task| task.cpu_s).sum();
            assert!((cpu_s / 8_000.0 - 1.0).abs() < 0.05, "{arrivals:?} {cpu_s}");
        }
        let ramp = Arrivals::Ramp { peak: 1.2 };
        let load_at = |at_s: f64| if at_s < 50.0 { 0.2 } else { 1.2 };
        let ramped = tasks(PARETO, ramp, PLAIN, 12.0, load_at, 100.0, &mut rng);
        let early = ramped.iter().filter(|task| task.arrival_us < 50_000_000).count();
        assert!((4.5..7.5).contains(&((ramped.len() - early) as f64 / early as f64)));
    }
}
