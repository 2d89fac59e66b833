//! One setting: nodes, hogs, work, reports, faults.

use crate::work::{self, Arrivals, Nature, Sizes, Task};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// How many cores nodes have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Caps {
    /// Each something between.
    Between(f64, f64),
    /// All the same.
    Same(f64),
}

/// Hogs on a part of the nodes: CPU that others take inside a node's container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hogs {
    /// Part of the nodes that have one now and then.
    pub part: f64,
    /// Its threads.
    pub threads: f64,
    /// How long it runs, mean of an exponential, in seconds.
    pub on_s: f64,
    /// How long it rests, mean of an exponential, in seconds.
    pub off_s: f64,
}

impl Hogs {
    /// What they take of the cluster on average, from one busy task on each node.
    fn taken(&self) -> f64 {
        self.part * self.on_s / (self.on_s + self.off_s) * self.threads / (self.threads + 1.0)
    }
}

/// What goes wrong with a part of the nodes, a third of the way through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies and comes back after 10 s.
    Crash,
    /// The process stands still for 10 s.
    Hang,
    /// Every task fails at once, by the node's fault, for 10 s.
    FailFast,
    /// Its reports say the same for ever.
    FrozenReports,
}

/// One setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name on the command line and in tables.
    pub name: String,
    /// Nodes.
    pub nodes: usize,
    /// Their cores.
    pub caps: Caps,
    /// CPU-seconds that arrive ÷ CPU-seconds that there are, less what hogs take of them on average.
    pub load: f64,
    /// Sizes of tasks.
    pub sizes: Sizes,
    /// When they come.
    pub arrivals: Arrivals,
    /// What they do.
    pub nature: Nature,
    /// Hogs, if any.
    pub hogs: Option<Hogs>,
    /// How often nodes report, in seconds.
    pub report_s: f64,
    /// What goes wrong with which part of the nodes.
    pub fault: Option<(Fault, f64)>,
    /// How long tasks arrive, in seconds.
    pub duration_s: f64,
    /// How long from the start tasks are not counted, in seconds.
    pub warm_up_s: f64,
}

/// When a fault begins, as a part of the duration.
const FAULT_AT: f64 = 1.0 / 3.0;
/// How long it lasts, in seconds.
pub const FAULT_S: f64 = 10.0;

/// What is drawn from a seed: the same for every balancer.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Cores of each node.
    pub cores: Vec<f64>,
    /// All tasks, by arrival.
    pub tasks: Vec<Task>,
    /// When (µs) which node has how many hog threads from then on, by time.
    pub hogs: Vec<(u64, usize, f64)>,
    /// Nodes with the fault.
    pub faulty: Vec<usize>,
    /// When the fault begins.
    pub fault_us: u64,
    /// Cores of the largest node.
    pub largest: f64,
}

impl Scenario {
    /// That of the goals: 100 nodes of 0.1–1 core, bounded Pareto, load 0.85, reports each 0.5 s.
    #[must_use]
    pub fn base(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 100,
            caps: Caps::Between(0.1, 1.0),
            load: 0.85,
            sizes: work::PARETO,
            arrivals: Arrivals::Poisson,
            nature: work::PLAIN,
            hogs: None,
            report_s: 0.5,
            fault: None,
            duration_s: 40.0,
            warm_up_s: 10.0,
        }
    }

    /// The load at a time.
    #[must_use]
    pub fn load_at(&self, at_s: f64) -> f64 {
        match self.arrivals {
            Arrivals::Ramp { peak } => {
                let way = 1.0 - (2.0 * at_s / self.duration_s - 1.0).abs();
                self.load + (peak - self.load) * way
            }
            _ => self.load,
        }
    }

    /// Draws everything that does not depend on the balancer.
    #[must_use]
    pub fn draw(&self, seed: u64) -> Drawn {
        let mut rng = SmallRng::seed_from_u64(seed);
        let cores: Vec<f64> = (0..self.nodes).map(|_| self.draw_cores(&mut rng)).collect();
        let all: f64 = cores.iter().sum::<f64>() * (1.0 - self.hogs.map_or(0.0, |hogs| hogs.taken()));
        let peak = if let Arrivals::Ramp { peak } = self.arrivals { peak } else { self.load };
        let (sizes, arrivals, nature) = (self.sizes, self.arrivals, self.nature);
        let load_at = |at_s| self.load_at(at_s);
        let tasks = work::tasks(sizes, arrivals, nature, all * peak, load_at, self.duration_s, &mut rng);
        let hogs = self.draw_hogs(&mut rng);
        let part = self.fault.map_or(0.0, |(_, part)| part);
        // A part of at most 10,000 nodes.
        let many = (part * self.nodes as f64).round() as usize;
        let mut faulty = rand::seq::index::sample(&mut rng, self.nodes, many).into_vec();
        faulty.sort_unstable();
        let largest = cores.iter().copied().fold(0.0, f64::max);
        let fault_us = (self.duration_s * FAULT_AT * 1e6) as u64;
        Drawn { cores, tasks, hogs, faulty, fault_us, largest }
    }

    fn draw_cores(&self, rng: &mut SmallRng) -> f64 {
        match self.caps {
            // To a hundredth, as people give them.
            Caps::Between(least, most) => (rng.random_range(least..=most) * 100.0).round() / 100.0,
            Caps::Same(cores) => cores,
        }
    }

    fn draw_hogs(&self, rng: &mut SmallRng) -> Vec<(u64, usize, f64)> {
        let Some(hogs) = self.hogs else { return Vec::new() };
        let many = (hogs.part * self.nodes as f64).round() as usize;
        let mut changes = Vec::new();
        for node in rand::seq::index::sample(rng, self.nodes, many) {
            let mut on = rng.random::<f64>() < hogs.on_s / (hogs.on_s + hogs.off_s);
            let mut at_s = 0.0;
            // Until well after the last task has ended.
            while at_s < 4.0 * self.duration_s {
                changes.push(((at_s * 1e6) as u64, node, if on { hogs.threads } else { 0.0 }));
                let mean_s = if on { hogs.on_s } else { hogs.off_s };
                at_s += -mean_s * (1.0 - rng.random::<f64>()).ln();
                on = !on;
            }
        }
        changes.sort_by_key(|change| (change.0, change.1));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_hogs_run_as_long_as_they_should() {
        let hogs = Hogs { part: 0.5, threads: 1.0, on_s: 5.0, off_s: 5.0 };
        let scenario = Scenario { hogs: Some(hogs), duration_s: 100.0, ..Scenario::base("x") };
        let (one, same, other) = (scenario.draw(1), scenario.draw(1), scenario.draw(2));
        assert_eq!((&one.cores, &one.tasks, &one.hogs), (&same.cores, &same.tasks, &same.hogs));
        assert_ne!(one.tasks, other.tasks);
        assert!(one.cores.iter().all(|cores| (0.1..=1.0).contains(cores)));
        // Half of the nodes, half of the time.
        let mut on_s = 0.0;
        for node in 0..scenario.nodes {
            let mut since = None;
            for (at_us, _, threads) in one.hogs.iter().filter(|change| change.1 == node) {
                if let Some(from_us) = since.take() {
                    on_s += (at_us - from_us) as f64 / 1e6;
                }
                since = (*threads > 0.0).then_some(*at_us);
            }
        }
        assert!((0.8..1.2).contains(&(on_s / (50.0 * 400.0 / 2.0))), "{on_s}");
    }
}
