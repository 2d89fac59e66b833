//! Rule 5, second half: which node a task goes to.
//!
//! Source: design.md 3.5. Choice by finish time: what is left before enough slots are free, and how long
//! the task would run there. A free node is taken unless it is 3 times slower than waiting for the best
//! one; with a queue that keeps every node busy for longer than the slow one would need it is taken all
//! the same, because then throughput counts and waiting would only idle it. Tasks of unknown size go at
//! once to the smallest `(in flight + 1) ÷ Ĉ`, random among equals (a longer look at sizes that nobody
//! knows buys nothing).

use crate::{estimate::Estimate, ledger::Offer, node::Node, policy::Policy, queue::Class};
use protocol::NodeId;
use rand::{Rng, rngs::SmallRng, seq::IteratorRandom};

/// A free node is refused if waiting for the best one is this many times faster.
const TIMES_SLOWER: f64 = 3.0;
/// Differences below this part are ties.
const TIE: f64 = 0.001;

/// A node that was looked at, with the figures that decide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// The node.
    pub node: NodeId,
    /// Ĉ, in cores.
    pub effective_cores: f64,
    /// Tasks in flight.
    pub in_flight: u32,
    /// Free slots.
    pub free_slots: u32,
    /// A: how long until enough slots are free, in seconds; 0 if they are.
    pub start_in_s: f64,
    /// τ: how long the task would run, in seconds.
    pub run_s: f64,
    /// At what rate, in cores.
    pub rate_cores: f64,
    /// used ÷ allotted as last reported.
    pub used_share: f64,
}

impl Seen {
    /// Looks at a node for a task. `can_take` is whether it can be handed out there at once.
    #[must_use]
    pub fn look(node: &Node, class: Class, estimate: &Estimate, can_take: bool, now_us: u64) -> Self {
        let offer: Offer = node.offer(now_us);
        let (run_s, rate_cores) = node.ledger.run_s(class.cores(), estimate, &offer, now_us);
        let start_in_s =
            if can_take { 0.0 } else { node.ledger.free_in_s(class.slots(), node.slots(), &offer) };
        Self {
            node: node.id(),
            effective_cores: offer.effective_cores,
            // Ledgers hold at most some thousand runs.
            in_flight: node.ledger.len() as u32,
            free_slots: node.slots_free(now_us),
            start_in_s,
            run_s,
            rate_cores,
            used_share: node.cpu.map_or(0.0, |(sample, _)| sample.percent() / 100.0),
        }
    }

    /// `A + τ`, in seconds.
    #[must_use]
    pub fn finish_s(&self) -> f64 {
        self.start_in_s + self.run_s
    }

    fn per_core(&self) -> f64 {
        f64::from(self.in_flight + 1) / self.effective_cores.max(0.001)
    }
}

/// What is to be done with a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// Hand it out to this one of those that were looked at.
    Take(usize),
    /// Wait: this busy one would still be done much earlier than any free one.
    Wait(usize),
    /// None is free.
    None,
}

/// Chooses among nodes that fit; those with `start_in_s` 0 are free. `backlog_s` is how long the queue
/// keeps all nodes busy; `turn` grows by one with each hand-out (for `round-robin`).
pub fn choose(
    seen: &[Seen],
    policy: Policy,
    known: bool,
    backlog_s: f64,
    turn: u64,
    rng: &mut SmallRng,
) -> Choice {
    let free = || seen.iter().enumerate().filter(|(_, one)| one.start_in_s <= 0.0);
    let taken = |at: Option<(usize, &Seen)>| at.map_or(Choice::None, |(at, _)| Choice::Take(at));
    match policy {
        Policy::FinishTime if known => by_finish_time(seen, backlog_s, rng),
        Policy::FinishTime | Policy::LeastConnections => least(seen, Seen::per_core, rng),
        Policy::LeastCpu => least(seen, |one| one.used_share, rng),
        Policy::Random => taken(free().choose(rng)),
        Policy::RoundRobin => {
            let mut ids: Vec<_> = free().collect();
            ids.sort_by_key(|(_, one)| one.node);
            let count = ids.len() as u64;
            // The remainder is below the length.
            if count == 0 { Choice::None } else { Choice::Take(ids[(turn % count) as usize].0) }
        }
        Policy::P2c => {
            let mut two = free().choose_multiple(rng, 2);
            two.sort_by(|one, other| one.1.per_core().total_cmp(&other.1.per_core()));
            taken(two.first().copied())
        }
    }
}

/// The free one with the least figure, random among equals.
fn least(seen: &[Seen], figure: impl Fn(&Seen) -> f64, rng: &mut SmallRng) -> Choice {
    let mut best: Option<(usize, f64)> = None;
    let mut equals = 0u32;
    for (at, one) in seen.iter().enumerate().filter(|(_, one)| one.start_in_s <= 0.0) {
        let value = figure(one);
        match best {
            Some((_, least)) if value > least * (1.0 + TIE) + 1e-9 => {}
            Some((_, least)) if value >= least * (1.0 - TIE) - 1e-9 => {
                equals += 1;
                // Each of n equals is kept with probability 1/n (reservoir sampling).
                if rng.random_range(0..=equals) == 0 {
                    best = Some((at, least.min(value)));
                }
            }
            _ => {
                equals = 0;
                best = Some((at, value));
            }
        }
    }
    best.map_or(Choice::None, |(at, _)| Choice::Take(at))
}

fn by_finish_time(seen: &[Seen], backlog_s: f64, rng: &mut SmallRng) -> Choice {
    let Choice::Take(free) = least(seen, Seen::finish_s, rng) else { return Choice::None };
    let busy = seen.iter().enumerate().filter(|(_, one)| one.start_in_s > 0.0);
    let soonest = busy.min_by(|one, other| one.1.finish_s().total_cmp(&other.1.finish_s()));
    match soonest {
        Some((at, one))
            if seen[free].finish_s() > TIMES_SLOWER * one.finish_s() && backlog_s < seen[free].finish_s() =>
        {
            Choice::Wait(at)
        }
        _ => Choice::Take(free),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use uuid::Uuid;

    fn seen(number: u128, start_in_s: f64, run_s: f64) -> Seen {
        Seen {
            node: NodeId(Uuid::from_u128(number)),
            effective_cores: 1.0 / run_s,
            in_flight: u32::from(start_in_s > 0.0),
            free_slots: u32::from(start_in_s <= 0.0),
            start_in_s,
            run_s,
            rate_cores: 1.0 / run_s,
            used_share: 1.0 / (1.0 + number as f64),
        }
    }

    fn choice(seen: &[Seen], policy: Policy, known: bool, backlog_s: f64) -> Choice {
        choose(seen, policy, known, backlog_s, 4, &mut SmallRng::seed_from_u64(1))
    }

    #[test]
    fn the_free_node_that_ends_first_is_taken() {
        let nodes = [seen(0, 0.0, 2.0), seen(1, 0.0, 1.0), seen(2, 0.5, 0.9)];
        assert_eq!(choice(&nodes, Policy::FinishTime, true, 0.0), Choice::Take(1));
    }

    #[test]
    fn a_task_waits_for_a_node_that_is_done_three_times_earlier_but_not_with_a_long_queue() {
        let nodes = [seen(0, 0.0, 5.0), seen(1, 0.1, 1.0)];
        assert_eq!(choice(&nodes, Policy::FinishTime, true, 0.0), Choice::Wait(1));
        assert_eq!(choice(&nodes, Policy::FinishTime, true, 60.0), Choice::Take(0));
        assert_eq!(choice(&nodes, Policy::FinishTime, false, 0.0), Choice::Take(0));
        let nodes = [seen(0, 0.0, 2.5), seen(1, 0.1, 1.0)];
        assert_eq!(choice(&nodes, Policy::FinishTime, true, 0.0), Choice::Take(0));
    }

    #[test]
    fn nothing_is_chosen_when_nothing_is_free() {
        for policy in Policy::ALL {
            assert_eq!(choice(&[seen(0, 1.0, 1.0)], policy, true, 0.0), Choice::None);
            assert_eq!(choice(&[], policy, true, 0.0), Choice::None);
        }
    }

    #[test]
    fn the_rivals_do_as_their_names_say() {
        let nodes = [seen(0, 0.0, 1.0), seen(1, 0.0, 2.0), seen(2, 0.0, 4.0)];
        assert_eq!(choice(&nodes, Policy::LeastCpu, true, 0.0), Choice::Take(2));
        assert_eq!(choice(&nodes, Policy::LeastConnections, true, 0.0), Choice::Take(0));
        assert_eq!(choice(&nodes, Policy::RoundRobin, true, 0.0), Choice::Take(1));
        assert!(matches!(choice(&nodes, Policy::Random, true, 0.0), Choice::Take(_)));
        assert!(matches!(choice(&nodes, Policy::P2c, true, 0.0), Choice::Take(0 | 1)));
    }

    #[test]
    fn equals_are_taken_in_turn_by_chance() {
        let nodes = [seen(0, 0.0, 1.0), seen(1, 0.0, 1.0), seen(2, 0.0, 1.0)];
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = [0; 3];
        for turn in 0..3_000 {
            let Choice::Take(at) = choose(&nodes, Policy::FinishTime, true, 0.0, turn, &mut rng) else {
                panic!()
            };
            counts[at] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
