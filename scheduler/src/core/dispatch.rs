//! Brings waiting tasks and nodes together, at the end of each step.
//!
//! Two ways in: a class that began to wait looks for a free node in the index; a node at which something
//! changed looks at the first tasks of the classes that it can serve. A class that has waited already
//! is looked at only through nodes, so a full cluster costs nothing per submit.

use super::state::{Entry, Stored};
use super::suspects::Diverted;
use super::{Attempt, Class, Core, Effect, NodeId, Now, RunId, TaskId, TaskState, Timer};
use crate::{
    effect::Order,
    event::ClientId,
    explain::Decision,
    health::PROVEN_AFTER_US,
    ledger,
    placement::{self, Choice, Seen},
    policy::Policy,
    record::Op,
};
use protocol::{node::NodeStatus, task::Json};
use serde_json::value::RawValue;
use std::sync::Arc;

/// Classes that a freed slot looks at.
const MOST_CLASSES: usize = 16;
/// Free nodes that are held against each other.
const MOST_FREE: usize = 64;
/// Busy nodes that a task looks at.
const MOST_BUSY: usize = 8;
/// After how long a task of several slots, or of much memory, has a node kept free for it, in microseconds.
const RESERVE_AFTER_US: i64 = 1_000_000;
/// When a node that was refused for a better one is looked at again, in microseconds.
const LOOK_AGAIN_US: u64 = 50_000;

impl Core {
    pub(super) fn dispatch(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.diverted = 0;
        for node in std::mem::take(&mut self.touched) {
            self.refresh(now, node);
            self.fill(now, node, out);
        }
        while let Some(class) = self.fresh.pop_first() {
            while let Some(client) = self.queue.first_client(class)
                && self.place(now, (class, client), None, out)
            {}
        }
    }

    /// Brings a node's place in the index up to date.
    pub(super) fn refresh(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return self.index.remove(id) };
        let offer = node.offer(now.mono_us);
        node.drain(now.mono_us);
        if let Some(class) = node.reserved
            && (self.queue.reserved(class) != Some(id) || node.status != NodeStatus::Ready)
        {
            node.reserved = None;
            self.queue.reserve(class, None);
        }
        if node.status != NodeStatus::Ready {
            return self.index.remove(id);
        }
        let free = node.slots_free(now.mono_us) > 0 && node.reserved.is_none();
        let left = offer.effective_cores - node.ledger.busy_cores();
        let alone = offer.rate(1.0, node.ledger.busy_cores() + 1.0);
        self.index.put(id, &node.kinds, offer.effective_cores, free.then_some(left.max(alone)));
    }

    /// Something changed at a node: gives it what it can take.
    fn fill(&mut self, now: Now, id: NodeId, out: &mut Vec<Effect>) {
        'again: while let Some(node) = self.nodes.get(&id)
            && node.status == NodeStatus::Ready
            && !self.queue.is_empty()
        {
            // Most often it is the first that goes, so that the others need not be found.
            let first = self.queue.first(&node.kinds).filter(|flow| node.could_take(flow.0));
            if first.is_some_and(|first| self.place(now, first, Some(id), out)) {
                continue 'again;
            }
            let Some(node) = self.nodes.get(&id) else { return };
            let flows = self.queue.classes(&node.kinds, MOST_CLASSES);
            let could: Vec<_> =
                flows.into_iter().filter(|flow| node.could_take(flow.0)).take(MOST_CLASSES).collect();
            for flow in could {
                if first != Some(flow) && self.place(now, flow, Some(id), out) {
                    continue 'again;
                }
                if self.keep_free(now, id, flow) {
                    break;
                }
            }
            return;
        }
    }

    /// A class that needs more than one slot, or memory, would starve behind small tasks: once its first
    /// has waited long enough this node is kept free for it.
    fn keep_free(&mut self, now: Now, id: NodeId, (class, client): (Class, ClientId)) -> bool {
        let is_small = class.slots() == 1 && class.memory_bytes == 0 && class.free_bytes == 0;
        if is_small && class.alone.is_none() || self.runs_alone(class) {
            return false;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        if node.reserved.is_some() || self.queue.reserved(class).is_some() {
            return node.reserved == Some(class);
        }
        let waits_since = self.queue.first_order_us(class, client).unwrap_or(i64::MAX);
        if waits_since.saturating_add(RESERVE_AFTER_US) > i64::try_from(now.mono_us).unwrap_or(i64::MAX) {
            return false;
        }
        node.reserved = Some(class);
        self.queue.reserve(class, Some(id));
        self.refresh(now, id);
        true
    }

    /// Hands the next task of a client in a class out, if there is a node for it; says whether to look again. `at`
    /// is a node that has to be among those looked at, and without which there is no need to look.
    fn place(
        &mut self,
        now: Now,
        (class, client): (Class, ClientId),
        at: Option<NodeId>,
        out: &mut Vec<Effect>,
    ) -> bool {
        if self.runs_alone(class) {
            return false;
        }
        let cores = self.index.effective_cores().max(0.001);
        let best = self.index.strongest(class.kind, 1).first().and_then(|best| self.nodes.get(best));
        let best_rate = best.map_or(1.0, |node| node.offer(now.mono_us).rate(class.cores(), class.cores()));
        let queued_s = self.queue.cpu_s();
        let decides = |cpu_us: u64| {
            let cpu_s = cpu_us as f64 / 1e6;
            cpu_s > 0.0 && cpu_s / best_rate >= (queued_s - cpu_s) / cores
        };
        let Some(id) = self.queue.next(class, client, decides) else { return false };
        match self.divert(now, id, out) {
            Diverted::Not => {}
            Diverted::Away => return true,
            Diverted::Later => return false,
        }
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return false };
        live.estimate = self.estimates.of(&live.kind, live.size);
        let estimate = live.estimate;
        let known = estimate.is_known();
        let length_s = known.then_some(estimate.cpu_s + estimate.off_cpu_s);
        if at.is_some_and(|at| !self.nodes.get(&at).is_some_and(|n| n.can_take(class, length_s, now.mono_us)))
        {
            return false;
        }
        let seen = self.look(now, class, &estimate, length_s, at);
        let backlog_s = (queued_s - estimate.cpu_s).max(0.0) / cores;
        let policy = self.config.policy;
        match placement::choose(&seen, policy, known, backlog_s, self.turn, &mut self.rng) {
            Choice::Take(chosen) => {
                let reason = match policy {
                    Policy::FinishTime if known => "earliest_finish",
                    Policy::FinishTime => "size_unknown",
                    _ => "policy",
                };
                let taken = seen[chosen];
                let run_s = self.nodes.get(&taken.node).filter(|_| known).map(|node| {
                    node.ledger
                        .run_s(class.cores(), &estimate, &node.expected_offer(now.mono_us), now.mono_us)
                        .0
                });
                let decision = Decision::of(reason, known.then_some(estimate.cpu_s), run_s, seen, chosen);
                self.hand_out(now, id, taken, decision, out);
                true
            }
            Choice::Wait(_) => {
                for one in seen.iter().filter(|one| one.start_in_s <= 0.0) {
                    self.timers.insert((
                        now.mono_us.next_multiple_of(LOOK_AGAIN_US) + LOOK_AGAIN_US,
                        Timer::Look(one.node),
                    ));
                }
                false
            }
            Choice::None => false,
        }
    }

    /// The nodes that could take a task now, and some busy ones that might be done with it earlier.
    fn look(
        &self,
        now: Now,
        class: Class,
        estimate: &crate::estimate::Estimate,
        length_s: Option<f64>,
        at: Option<NodeId>,
    ) -> Vec<Seen> {
        // The rivals are compared as they are written: they look at every node.
        let most = if self.config.policy == Policy::FinishTime { MOST_FREE } else { usize::MAX };
        let mut ids = self.index.free(class.kind, most);
        // The node that changed comes first, so that it is among the candidates.
        ids.retain(|id| at != Some(*id));
        ids.splice(..0, at);
        let see = |id: &NodeId, only_free: bool| {
            let node = self.nodes.get(id)?;
            let can_take = node.can_take(class, length_s, now.mono_us);
            (can_take || !only_free && node.could_take(class) && node.reserved.is_none())
                .then(|| Seen::look(node, class, estimate, can_take, now.mono_us))
        };
        let mut seen: Vec<_> = ids.iter().filter_map(|id| see(id, true)).collect();
        if seen.is_empty() {
            return seen;
        }
        let busy = self.index.strongest(class.kind, MOST_BUSY);
        seen.extend(busy.iter().filter(|id| !ids.contains(id)).filter_map(|id| see(id, false)));
        seen
    }

    fn hand_out(&mut self, now: Now, id: TaskId, taken: Seen, decision: Decision, out: &mut Vec<Effect>) {
        self.unqueue(id);
        self.turn += 1;
        self.run_counter += 1;
        let run = RunId::new(self.config.epoch, self.run_counter);
        let attempt = Attempt { run, node: taken.node, started_us: now.mono_us, started_at: now.wall };
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        live.life.dispatched(attempt);
        live.last_node = Some(taken.node);
        live.started = Some((i64::try_from(now.mono_us).unwrap_or(i64::MAX), now.wall));
        live.decision = Some(Box::new(decision));
        let spec = &live.record.spec;
        let order = Order::Run {
            task: id,
            run,
            kind: Arc::clone(&live.kind),
            input: spec.input.clone().unwrap_or_else(empty_object),
            timeout_ms: spec.timeout_ms,
            deadline_in_ms: live.deadline_us.map(|at_us| at_us.saturating_sub(now.mono_us) / 1_000),
            cores: live.resources.cores,
            memory_bytes: live.resources.memory_bytes,
        };
        let stored = (live.stored != Stored::No).then(|| live.life.attempt());
        if live.life.attempt() == 1 {
            self.retries.earn();
        }
        self.enter_ledger(id, attempt, now);
        self.watch(now, id, attempt);
        self.order(taken.node, order, out);
        if let Some(attempt) = stored {
            self.write(Op::TaskDispatched { task: id, run, node: taken.node, attempt, at: now.wall }, out);
        }
        self.changed(id, TaskState::Running, out);
    }

    /// A run is on its node, handed out by us or found there.
    pub(super) fn enter_ledger(&mut self, id: TaskId, attempt: Attempt, now: Now) {
        let Some(Entry::Live(live)) = self.tasks.get(&id) else { return };
        let class = live.class;
        let estimate = self.estimates.of(&live.kind, live.size);
        let client = live.record.client;
        let timeout_ms = live.record.spec.timeout_ms;
        self.arm_timeout(now, id, attempt.run, timeout_ms);
        let Some(node) = self.nodes.get_mut(&attempt.node) else { return };
        node.drain(now.mono_us);
        let expected = node.expected_offer(now.mono_us);
        let (_, rate) = node.ledger.run_s(class.cores(), &estimate, &expected, now.mono_us);
        let alone = class.alone.is_some();
        let slots = if alone { node.slots() } else { class.slots() };
        let needs = (class.cores(), slots, class.memory_bytes);
        let mut entry = ledger::Entry::new(id, needs, estimate, attempt.started_us, rate);
        (entry.client, entry.alone) = (client, alone);
        node.ledger.add(attempt.run, entry);
        self.queue.began(client, slots);
        if !node.health.is_full(node.slots()) {
            self.timers.insert((now.mono_us + PROVEN_AFTER_US, Timer::Proven(attempt.node, attempt.run)));
        }
        self.refresh(now, attempt.node);
    }

    /// Sends an order, if the channel is open; a node that comes back says hello, and is told then.
    pub(super) fn order(&self, node: NodeId, order: Order, out: &mut Vec<Effect>) {
        if self.nodes.get(&node).is_some_and(|state| state.channel == crate::node::Channel::Up) {
            out.push(Effect::Send { node, order });
        }
    }
}

fn empty_object() -> Json {
    // "{}" is JSON.
    RawValue::from_string("{}".to_owned()).map_or_else(|_| RawValue::NULL.to_owned().into(), Arc::from)
}
