//! Perfect information: a dispatcher that knows all sizes and looks into every node.
//!
//! It has the means of any dispatcher (a task runs where it was sent, to its end; a round trip is a round
//! trip), but no ignorance: for every node it works out from the true state of its CPU when a task would be done there,
//! hogs and quota included. Tasks wait in one queue, the shortest first. The first goes where it is done first; if
//! that is a node without a free slot it is kept for it, unless a free one is not much slower. What it does not know
//! is the future.

use crate::{
    balancer::{Balancer, End, Moment, Order},
    host::seconds,
};
use protocol::node::slots_of;
use std::collections::BTreeSet;

/// How many of the shortest waiting tasks look for a node at each event.
const LOOKED_AT: usize = 32;

/// A dispatcher without ignorance.
pub struct Perfect {
    /// A free node is refused if waiting for the best one is so many times faster.
    times_slower: f64,
    /// Weight of size against arrival in the queue; infinite is the shortest first.
    short_first: f64,
    /// By rank (bits of a float that is not negative) and number.
    waiting: BTreeSet<(u64, u32)>,
    slots: Vec<u32>,
    taken: Vec<u32>,
    at: Vec<usize>,
}

impl Perfect {
    /// Refuses a free node if waiting is `times_slower` faster; in the queue a second of size weighs as much as
    /// `short_first` seconds of waiting.
    #[must_use]
    pub fn new(times_slower: f64, short_first: f64) -> Self {
        let (waiting, slots, taken, at) = (BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
        Self { times_slower, short_first, waiting, slots, taken, at }
    }

    fn rank(&self, task: u32, at: &Moment<'_>) -> u64 {
        let task = at.tasks[task as usize];
        let alone_s = task.alone_s(f64::MAX);
        let rank = if self.short_first.is_finite() {
            seconds(task.arrival_us) + self.short_first * alone_s
        } else {
            alone_s
        };
        rank.to_bits()
    }

    fn fits(&self, node: usize, threads: u32) -> bool {
        self.taken[node] == 0 || self.taken[node] + threads <= self.slots[node]
    }

    /// When a task would be done on a node, in seconds from now.
    fn finish_s(&self, node: usize, task: u32, at: &Moment<'_>) -> f64 {
        let (now_s, task) = (seconds(at.now_us), &at.tasks[task as usize]);
        let machine = &at.truth[node].machine;
        if self.fits(node, task.threads) {
            return task.off_cpu_s + machine.would_take_s(now_s, task.cpu_s, task.threads);
        }
        let mut then = machine.clone();
        let Some(free_s) = then.next_done_s() else { return f64::INFINITY };
        while then.pop_done(free_s).is_some() {}
        let begins_s = free_s.max(now_s);
        begins_s - now_s + task.off_cpu_s + then.would_take_s(begins_s, task.cpu_s, task.threads)
    }

    fn fill(&mut self, at: &mut Moment<'_>) {
        loop {
            let works = |node: &usize| at.truth[*node].alive && !at.truth[*node].fails_fast;
            let free: Vec<_> = (0..self.slots.len())
                .filter(|node| self.taken[*node] < self.slots[*node])
                .filter(works)
                .collect();
            let shortest: Vec<_> = self.waiting.iter().copied().take(LOOKED_AT).collect();
            let found = shortest.into_iter().find_map(|entry| {
                if free.is_empty() {
                    return None;
                }
                self.node_for(entry.1, &free, at).map(|node| (entry, node))
            });
            let Some((entry, node)) = found else { return };
            self.waiting.remove(&entry);
            let task = entry.1;
            self.taken[node] += at.tasks[task as usize].threads;
            self.at[task as usize] = node;
            at.orders.push(Order::Run { task, node, tag: u64::from(task) });
            // What was sent now shows in the truth only when it arrives: the next one must not count on it.
        }
    }

    fn node_for(&self, task: u32, free: &[usize], at: &Moment<'_>) -> Option<usize> {
        let threads = at.tasks[task as usize].threads;
        let fits = free.iter().copied().filter(|node| self.fits(*node, threads));
        let finish = |node: usize| (node, self.finish_s(node, task, at));
        let best = fits.map(finish).min_by(|one, other| one.1.total_cmp(&other.1))?;
        if best.1.is_infinite() {
            return None;
        }
        let could_wait = at.cores.len() > free.len();
        if could_wait && self.times_slower.is_finite() {
            let least_s = best.1 / self.times_slower;
            let sooner = (0..self.slots.len()).filter(|node| !self.fits(*node, threads)).any(|node| {
                at.tasks[task as usize].alone_s(at.cores[node]) < least_s && finish(node).1 < least_s
            });
            if sooner {
                return None;
            }
        }
        Some(best.0)
    }
}

impl Balancer for Perfect {
    fn has_slots(&self) -> bool {
        true
    }

    fn start(&mut self, at: &mut Moment<'_>) {
        self.slots = at.cores.iter().map(|cores| slots_of(*cores)).collect();
        self.taken = vec![0; at.cores.len()];
        self.at = vec![usize::MAX; at.tasks.len()];
    }

    fn arrived(&mut self, task: u32, at: &mut Moment<'_>) {
        let rank = self.rank(task, at);
        self.waiting.insert((rank, task));
        self.fill(at);
    }

    fn ended(&mut self, end: &End, at: &mut Moment<'_>) {
        if std::mem::replace(&mut self.at[end.task as usize], usize::MAX) != end.node {
            return;
        }
        self.taken[end.node] -= at.tasks[end.task as usize].threads;
        if end.succeeded {
            return self.fill(at);
        }
        self.arrived(end.task, at);
    }

    fn died(&mut self, node: usize, lost: &[(u32, u64)], at: &mut Moment<'_>) {
        for (task, _) in lost {
            self.at[*task as usize] = usize::MAX;
            self.taken[node] -= at.tasks[*task as usize].threads;
            let rank = self.rank(*task, at);
            self.waiting.insert((rank, *task));
        }
        self.fill(at);
    }

    fn returned(&mut self, _node: usize, at: &mut Moment<'_>) {
        self.fill(at);
    }

    fn hogs_changed(&mut self, _node: usize, at: &mut Moment<'_>) {
        self.fill(at);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        host::Host,
        work::{Known, Task},
    };
    use rand::{SeedableRng, rngs::SmallRng};

    #[test]
    fn the_node_that_really_is_faster_is_taken_although_it_has_fewer_cores() {
        let cores = [0.8, 0.6];
        let task = Task { arrival_us: 0, cpu_s: 1.0, off_cpu_s: 0.0, threads: 1, known: Known::Nothing };
        let mut truth: Vec<_> = cores.iter().map(|cores| Host::new(*cores, 0.1, true)).collect();
        truth[0].machine.set_hogs(0.0, 1.0);
        let (mut rng, mut orders) = (SmallRng::seed_from_u64(1), Vec::new());
        let tasks = [task];
        let mut at = Moment {
            now_us: 0,
            cores: &cores,
            tasks: &tasks,
            truth: &truth,
            rng: &mut rng,
            orders: &mut orders,
        };
        let mut perfect = Perfect::new(3.0, f64::INFINITY);
        perfect.start(&mut at);
        perfect.arrived(0, &mut at);
        assert_eq!(orders, [Order::Run { task: 0, node: 1, tag: 0 }]);
    }
}
