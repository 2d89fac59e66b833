//! One queue for all, first come first served; a node gets a task when it has a free slot.
//!
//! Source: HAProxy `leastconn` with `maxconn 1` and its queue (the best of the peers on real containers); M/G/k with
//! one queue. Of several free nodes it takes any, or the one with most cores.

use crate::balancer::{Balancer, End, Moment, Order};
use protocol::node::slots_of;
use rand::Rng;
use std::collections::VecDeque;

/// First come, first served.
pub struct CentralFifo {
    /// Whether the free node with most cores comes first.
    strongest: bool,
    waiting: VecDeque<u32>,
    slots: Vec<u32>,
    taken: Vec<u32>,
    up: Vec<bool>,
    out_until_us: Vec<u64>,
    /// Where each task is, and which attempt that is.
    at: Vec<(usize, u64)>,
    next_tag: u64,
}

/// How long a node is left out after it failed a task, in microseconds: as the other rivals do.
const FAIL_TIMEOUT_US: u64 = 10_000_000;

impl CentralFifo {
    /// With the strongest free node first, or any.
    #[must_use]
    pub fn new(strongest: bool) -> Self {
        let (waiting, slots, taken) = (VecDeque::new(), Vec::new(), Vec::new());
        let (up, out_until_us, at) = (Vec::new(), Vec::new(), Vec::new());
        Self { strongest, waiting, slots, taken, up, out_until_us, at, next_tag: 0 }
    }

    fn free_node(&self, threads: u32, at: &mut Moment<'_>) -> Option<usize> {
        let fits = |node: &usize| {
            let (taken, slots) = (self.taken[*node], self.slots[*node]);
            self.up[*node]
                && self.out_until_us[*node] <= at.now_us
                && (taken == 0 || taken + threads <= slots)
        };
        let (mut best, mut equals): (Option<usize>, u32) = (None, 0);
        for node in (0..self.slots.len()).filter(fits) {
            let cores = |node: usize| if self.strongest { at.cores[node] } else { 0.0 };
            match best {
                Some(before) if cores(before) > cores(node) => {}
                Some(before) if cores(before) == cores(node) => {
                    equals += 1;
                    if at.rng.random_range(0..=equals) == 0 {
                        best = Some(node);
                    }
                }
                _ => (best, equals) = (Some(node), 0),
            }
        }
        best
    }

    fn fill(&mut self, at: &mut Moment<'_>) {
        while let Some(task) = self.waiting.front().copied() {
            let threads = at.tasks[task as usize].threads;
            let Some(node) = self.free_node(threads, at) else { return };
            self.waiting.pop_front();
            self.taken[node] += threads;
            self.next_tag += 1;
            self.at[task as usize] = (node, self.next_tag);
            at.orders.push(Order::Run { task, node, tag: self.next_tag });
        }
    }

    fn over(&mut self, node: usize, task: u32, tag: u64, at: &Moment<'_>) -> bool {
        let counts = self.at[task as usize] == (node, tag);
        if counts {
            self.at[task as usize].1 = 0;
            self.taken[node] -= at.tasks[task as usize].threads;
        }
        counts
    }
}

impl Balancer for CentralFifo {
    fn has_slots(&self) -> bool {
        true
    }

    fn start(&mut self, at: &mut Moment<'_>) {
        let many = at.cores.len();
        self.slots = at.cores.iter().map(|cores| slots_of(*cores)).collect();
        (self.taken, self.up, self.out_until_us) = (vec![0; many], vec![true; many], vec![0; many]);
        self.at = vec![(0, 0); at.tasks.len()];
    }

    fn arrived(&mut self, task: u32, at: &mut Moment<'_>) {
        self.waiting.push_back(task);
        if self.waiting.len() == 1 {
            self.fill(at);
        }
    }

    fn ended(&mut self, end: &End, at: &mut Moment<'_>) {
        if !self.over(end.node, end.task, end.tag, at) {
            return;
        }
        if !end.succeeded {
            self.out_until_us[end.node] = at.now_us + FAIL_TIMEOUT_US;
            at.orders.push(Order::WakeAt { at_us: at.now_us + FAIL_TIMEOUT_US });
            self.waiting.push_front(end.task);
        }
        self.fill(at);
    }

    fn woke(&mut self, at: &mut Moment<'_>) {
        self.fill(at);
    }

    fn died(&mut self, node: usize, lost: &[(u32, u64)], at: &mut Moment<'_>) {
        self.up[node] = false;
        for (task, tag) in lost {
            if self.over(node, *task, *tag, at) {
                self.waiting.push_front(*task);
            }
        }
        self.fill(at);
    }

    fn returned(&mut self, node: usize, at: &mut Moment<'_>) {
        self.checked(node, true, at);
    }

    fn checked(&mut self, node: usize, answers: bool, at: &mut Moment<'_>) {
        self.up[node] = answers;
        self.fill(at);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::work::{Known, Task};
    use rand::{SeedableRng, rngs::SmallRng};

    fn task(arrival_us: u64) -> Task {
        Task { arrival_us, cpu_s: 0.01, off_cpu_s: 0.0, threads: 1, known: Known::Nothing }
    }

    #[test]
    fn a_task_waits_until_a_slot_is_free_and_they_go_in_the_order_in_which_they_came() {
        let (cores, tasks) = ([0.2, 0.8], [task(0), task(1), task(2), task(3)]);
        let (mut rng, mut orders) = (SmallRng::seed_from_u64(1), Vec::new());
        let mut fifo = CentralFifo::new(true);
        let mut say = |what: &mut dyn FnMut(&mut CentralFifo, &mut Moment<'_>)| {
            orders.clear();
            let mut at = Moment {
                now_us: 0,
                cores: &cores,
                tasks: &tasks,
                truth: &[],
                rng: &mut rng,
                orders: &mut orders,
            };
            what(&mut fifo, &mut at);
            orders.clone()
        };
        say(&mut |fifo, at| fifo.start(at));
        let run = |task, node, tag| vec![Order::Run { task, node, tag }];
        assert_eq!(say(&mut |fifo, at| fifo.arrived(0, at)), run(0, 1, 1), "the strongest first");
        assert_eq!(say(&mut |fifo, at| fifo.arrived(1, at)), run(1, 0, 2));
        assert_eq!(say(&mut |fifo, at| fifo.arrived(2, at)), []);
        assert_eq!(say(&mut |fifo, at| fifo.arrived(3, at)), []);
        let end = End { task: 0, node: 1, tag: 1, succeeded: true, run_s: 0.0, cpu_s: 0.0, sample: None };
        assert_eq!(say(&mut |fifo, at| fifo.ended(&end, at)), run(2, 1, 3));
    }
}
