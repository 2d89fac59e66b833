//! What all rivals that send each task on at once have in common: who is up, what is in flight, retries.
//!
//! Source: nginx `ngx_http_upstream_module` (a server with a failed attempt is left out for `fail_timeout`, 10 s, and
//! the request goes to the next one) and HAProxy's health checks. A reset connection is noticed at once.

use crate::{
    balancer::{Balancer, End, Moment, Order},
    host::seconds,
};
use protocol::node::CpuSample;
use rand::{Rng, rngs::SmallRng};

/// How long a server is left out after a failed attempt, in microseconds.
const FAIL_TIMEOUT_US: u64 = 10_000_000;

/// What a rule sees of the nodes.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Cores of each node.
    pub cores: Vec<f64>,
    /// Tasks in flight at each node.
    pub in_flight: Vec<u32>,
    /// Nodes that are up; never empty.
    pub up: Vec<usize>,
    /// The time, in microseconds.
    pub now_us: u64,
}

impl Pool {
    /// Any node that is up.
    pub fn any(&self, rng: &mut SmallRng) -> usize {
        self.up[rng.random_range(0..self.up.len())]
    }

    /// The node with the least figure, random among equals.
    pub fn least(&self, rng: &mut SmallRng, figure: impl Fn(usize) -> f64) -> usize {
        let (mut best, mut least, mut equals) = (self.up[0], f64::INFINITY, 0u32);
        for node in &self.up {
            let value = figure(*node);
            if value < least {
                (best, least, equals) = (*node, value, 0);
            } else if value == least {
                equals += 1;
                // Each of n equals is kept with probability 1/n (reservoir sampling).
                if rng.random_range(0..=equals) == 0 {
                    best = *node;
                }
            }
        }
        best
    }

    /// The better of two different nodes drawn at random.
    pub fn better_of_two(&self, rng: &mut SmallRng, figure: impl Fn(usize) -> f64) -> usize {
        if self.up.len() < 2 {
            return self.up[0];
        }
        let first = rng.random_range(0..self.up.len());
        let second = (first + rng.random_range(1..self.up.len())) % self.up.len();
        let (first, second) = (self.up[first], self.up[second]);
        if figure(second) < figure(first) { second } else { first }
    }
}

/// Which node gets the next task.
pub trait Rule {
    /// Picks one of those that are up.
    fn pick(&mut self, pool: &Pool, rng: &mut SmallRng) -> usize;
    /// A task went there.
    fn sent(&mut self, _node: usize, _pool: &Pool) {}
    /// A task came back from there, so many seconds after it was sent.
    fn ended(&mut self, _node: usize, _latency_s: f64, _pool: &Pool) {}
    /// A node reported.
    fn reported(&mut self, _node: usize, _sample: &CpuSample, _pool: &Pool) {}
    /// Nodes to be probed with this task.
    fn probes(&mut self, _pool: &Pool, _rng: &mut SmallRng) -> Vec<usize> {
        Vec::new()
    }
    /// A node answered a probe.
    fn probed(&mut self, _node: usize, _in_flight: u32, _latency_s: f64, _pool: &Pool, _rng: &mut SmallRng) {}
}

/// Sends each task on at once, by a rule.
pub struct Push<R> {
    rule: R,
    pool: Pool,
    down: Vec<bool>,
    out_until_us: Vec<u64>,
    /// When each task was last sent.
    sent_us: Vec<u64>,
    /// Where each task is, and which attempt that is.
    at: Vec<(usize, u64)>,
    next_tag: u64,
}

impl<R: Rule> Push<R> {
    /// A balancer by this rule.
    pub fn new(rule: R) -> Self {
        let pool = Pool::default();
        let (down, out_until_us, sent_us, at) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { rule, pool, down, out_until_us, sent_us, at, next_tag: 0 }
    }

    fn refresh(&mut self) {
        let pool = &mut self.pool;
        let now_us = pool.now_us;
        pool.up.clear();
        pool.up.extend(
            (0..pool.cores.len()).filter(|node| !self.down[*node] && self.out_until_us[*node] <= now_us),
        );
        if pool.up.is_empty() {
            pool.up.extend(0..pool.cores.len());
        }
    }

    fn send(&mut self, task: u32, at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        at.orders.extend(self.rule.probes(&self.pool, at.rng).into_iter().map(|node| Order::Probe { node }));
        let node = self.rule.pick(&self.pool, at.rng);
        self.next_tag += 1;
        self.pool.in_flight[node] += 1;
        self.rule.sent(node, &self.pool);
        self.sent_us[task as usize] = at.now_us;
        self.at[task as usize] = (node, self.next_tag);
        at.orders.push(Order::Run { task, node, tag: self.next_tag });
    }

    /// An attempt is over. Says whether it was the one that counts.
    fn over(&mut self, node: usize, task: u32, tag: u64) -> bool {
        let counts = self.at[task as usize] == (node, tag);
        if counts {
            self.at[task as usize].1 = 0;
            self.pool.in_flight[node] -= 1;
        }
        counts
    }
}

impl<R: Rule> Balancer for Push<R> {
    fn start(&mut self, at: &mut Moment<'_>) {
        let many = at.cores.len();
        self.pool.cores = at.cores.to_vec();
        self.pool.in_flight = vec![0; many];
        self.down = vec![false; many];
        self.out_until_us = vec![0; many];
        self.sent_us = vec![0; at.tasks.len()];
        self.at = vec![(0, 0); at.tasks.len()];
        self.refresh();
    }

    fn arrived(&mut self, task: u32, at: &mut Moment<'_>) {
        self.send(task, at);
    }

    fn ended(&mut self, end: &End, at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        if !self.over(end.node, end.task, end.tag) {
            return;
        }
        if end.succeeded {
            let latency_s = seconds(at.now_us - self.sent_us[end.task as usize]);
            return self.rule.ended(end.node, latency_s, &self.pool);
        }
        self.out_until_us[end.node] = at.now_us + FAIL_TIMEOUT_US;
        at.orders.push(Order::WakeAt { at_us: at.now_us + FAIL_TIMEOUT_US });
        self.refresh();
        self.send(end.task, at);
    }

    fn reported(&mut self, node: usize, sample: &CpuSample, at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        self.rule.reported(node, sample, &self.pool);
    }

    fn probed(&mut self, node: usize, in_flight: u32, latency_s: f64, at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        self.rule.probed(node, in_flight, latency_s, &self.pool, at.rng);
    }

    fn woke(&mut self, at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        self.refresh();
    }

    fn died(&mut self, node: usize, lost: &[(u32, u64)], at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        self.down[node] = true;
        self.refresh();
        for (task, tag) in lost {
            if self.over(node, *task, *tag) {
                self.send(*task, at);
            }
        }
    }

    fn returned(&mut self, node: usize, at: &mut Moment<'_>) {
        self.checked(node, true, at);
    }

    fn checked(&mut self, node: usize, answers: bool, at: &mut Moment<'_>) {
        self.pool.now_us = at.now_us;
        self.down[node] = !answers;
        self.refresh();
    }
}

#[cfg(test)]
pub(super) fn pool_of(cores: &[f64], in_flight: &[u32]) -> Pool {
    let up = (0..cores.len()).collect();
    Pool { cores: cores.to_vec(), in_flight: in_flight.to_vec(), up, now_us: 0 }
}

/// How often a rule picks each node in so many picks, when nothing changes.
#[cfg(test)]
pub(super) fn picks(rule: &mut impl Rule, pool: &Pool, many: usize) -> Vec<usize> {
    use rand::SeedableRng;
    let mut rng = SmallRng::seed_from_u64(7);
    let mut counts = vec![0; pool.cores.len()];
    for _ in 0..many {
        counts[rule.pick(pool, &mut rng)] += 1;
    }
    counts
}
