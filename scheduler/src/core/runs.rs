//! A task's runs: how they end, are stopped, handed back or lost.

use super::end::End;
use super::state::{Entry, Stored};
use super::{Core, Effect, Node, Now, RunId, TaskId, TaskState, Timer};
use crate::{
    effect::{Change, Order},
    event::RunEnded,
    node::Channel,
    record::Op,
    task::Next,
};
use protocol::{
    NodeId,
    node::NodeStatus,
    task::{ErrorCode, Json, TaskError},
    work::{Outcome, RunRef},
};
use std::sync::Arc;

/// How much longer than its `timeout_ms` a run may take to be reported, in microseconds.
const TIMEOUT_GRACE_US: u64 = 10_000_000;
/// How long a slot stays taken by a run that was told to stop, in microseconds.
const STOP_GRACE_US: u64 = 30_000_000;

impl Core {
    pub(super) fn run_ended(&mut self, now: Now, mut ended: RunEnded, out: &mut Vec<Effect>) {
        let (node, run) = (ended.node, ended.run);
        self.heard(now, node, out);
        let Some(state) = self.nodes.get_mut(&node) else { return };
        // Up to now it was there, however it ended.
        state.drain(now.mono_us);
        if let Some(sample) = &ended.sample {
            let busy = state.ledger.busy_cores();
            state.capacity.observe(now.mono_us, sample, busy);
            state.cpu = Some((*sample, now.mono_us));
        }
        self.touched.insert(node);
        let stopped = self.take_stopped(node, run);
        match self.tasks.get(&ended.task) {
            Some(Entry::Live(live)) if !stopped && live.life.accepts(run, node) => {
                return self.settle(now, ended, out);
            }
            // Sent again: its commit is on the way, or was lost.
            Some(Entry::Ended(task)) if task.winner == Some((run, node)) => {
                if !task.writing {
                    self.order(node, Order::Committed { run }, out);
                }
                return;
            }
            _ => {}
        }
        self.late_log(ended.task, (run, node), ended.log.take(), out);
        if !(stopped && ended.outcome == Outcome::Cancelled) {
            self.counts.late += 1;
            out.push(Effect::Changed(Change::LateResult { node }));
        }
        self.order(node, Order::Committed { run }, out);
    }

    /// A run that we told to stop has: its slot is free.
    fn take_stopped(&mut self, node: NodeId, run: RunId) -> bool {
        let Some(state) = self.nodes.get(&node) else { return false };
        let stopped = state.ledger.get(run).is_some_and(|entry| entry.cancelling);
        if stopped {
            self.release(node, run);
        }
        stopped
    }

    pub(super) fn settle(&mut self, now: Now, ended: RunEnded, out: &mut Vec<Effect>) {
        let RunEnded { node, task: id, run, outcome, result, run_ms, cpu_ms, log, .. } = ended;
        self.keep_log(id, run, log);
        self.spoke(id, &outcome);
        let ran = Some((run, node, run_ms, cpu_ms));
        match outcome {
            Outcome::Succeeded => {
                self.learn(id, node, run, run_ms, cpu_ms);
                if let Some(state) = self.nodes.get_mut(&node) {
                    state.ledger.learn(run, cpu_ms / 1e3);
                    state.completed += 1;
                    state.proven_by(run);
                }
                self.end(now, id, End { state: TaskState::Succeeded, result, error: None, ran }, out);
            }
            Outcome::Failed(error) => {
                let own_fault = error.code == ErrorCode::NodeLost;
                if let Some(state) = self.nodes.get_mut(&node) {
                    state.failed += 1;
                    if !own_fault {
                        state.proven_by(run);
                    }
                }
                if own_fault {
                    self.fault(now, node);
                }
                self.fail_attempt(now, id, (error, result), (run, node, run_ms, cpu_ms), out);
            }
            Outcome::Cancelled => {
                self.release(node, run);
                self.order(node, Order::Committed { run }, out);
                self.fault(now, node);
                if let Some(live) = self.live_mut(id) {
                    let next = live.life.node_lost(run, "its node stopped it unasked");
                    self.follow(now, id, next, out);
                }
            }
        }
    }

    fn learn(&mut self, id: TaskId, node: NodeId, run: RunId, run_ms: f64, cpu_ms: f64) {
        let rate =
            self.nodes.get(&node).and_then(|state| state.ledger.get(run)).map(|entry| entry.rate_cores);
        let Some(Entry::Live(live)) = self.tasks.get(&id) else { return };
        self.estimates.learn(&live.kind, live.size, cpu_ms / 1e3, run_ms / 1e3, rate.unwrap_or(1.0));
    }

    /// An attempt ended with an error: tried again or the end.
    fn fail_attempt(
        &mut self,
        now: Now,
        id: TaskId,
        (error, result): (TaskError, Option<Json>),
        (run, node, run_ms, cpu_ms): (RunId, NodeId, f64, f64),
        out: &mut Vec<Effect>,
    ) {
        let code = error.code;
        let Some(live) = self.live_mut(id) else { return };
        let others: Vec<_> = live.life.runs().filter(|other| other.run != run).collect();
        let record = Arc::clone(&live.record);
        let mut next = live.life.failed(error.clone(), &record.spec.retry_on);
        if next == Next::Requeue && code == ErrorCode::OutOfMemory && !self.ask_more_memory(id, node, run) {
            next = Next::Fail(error);
        }
        for other in others {
            self.stop_run(now, other.node, other.run, out);
        }
        match next {
            Next::Fail(error) => {
                let ran = Some((run, node, run_ms, cpu_ms));
                self.end(now, id, End { state: TaskState::Failed, result, error: Some(error), ran }, out);
            }
            next => {
                self.release(node, run);
                if let Some(live) = self.live_mut(id) {
                    live.life.give_up(run);
                }
                self.order(node, Order::Committed { run }, out);
                if code != ErrorCode::NodeLost {
                    self.charge_retry(now, id);
                }
                self.follow(now, id, next, out);
            }
        }
    }

    /// Past the budget of retries a task queues as if it came only now.
    fn charge_retry(&mut self, now: Now, id: TaskId) {
        if !self.retries.spend(now.mono_us)
            && let Some(live) = self.live_mut(id)
        {
            live.queued_as_us = i64::try_from(now.mono_us).unwrap_or(i64::MAX);
        }
    }

    /// After `out_of_memory` a task goes only where more memory is free. Says whether there is such a node.
    fn ask_more_memory(&mut self, id: TaskId, node: NodeId, run: RunId) -> bool {
        let Some(state) = self.nodes.get(&node) else { return true };
        let free_bytes = state.memory_free(Some(run)) + 1;
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return true };
        let class = crate::queue::Class { free_bytes, ..live.class };
        if !self.nodes.values().any(|other| other.gone_us.is_none() && other.could_take(class)) {
            return false;
        }
        live.class = class;
        true
    }

    /// What follows from the end of an attempt without a result.
    pub(super) fn follow(&mut self, now: Now, id: TaskId, next: Next, out: &mut Vec<Effect>) {
        match next {
            Next::GoesOn => {}
            Next::Fail(error) => self.end(now, id, End::failed(error), out),
            Next::Requeue => {
                self.enqueue(id);
                let Some(live) = self.live(id) else { return };
                let attempt = live.life.attempt();
                if live.stored != Stored::No {
                    self.write(Op::TaskRequeued { task: id, attempt }, out);
                }
                self.changed(id, TaskState::Queued, out);
            }
        }
    }

    /// A run is no longer on its node.
    pub(super) fn release(&mut self, node: NodeId, run: RunId) {
        if let Some(state) = self.nodes.get_mut(&node) {
            if let Some(entry) = state.ledger.remove(run) {
                self.queue.ended(entry.client, entry.slots);
            }
            self.touched.insert(node);
        }
    }

    /// A run is told to stop; its slot stays taken until it has.
    pub(super) fn stop_run(&mut self, now: Now, node: NodeId, run: RunId, out: &mut Vec<Effect>) {
        let Some(state) = self.nodes.get_mut(&node) else { return };
        if state.ledger.cancelling(run) {
            self.timers.insert((now.mono_us + STOP_GRACE_US, Timer::Stopped(node, run)));
        }
        self.order(node, Order::Cancel { run }, out);
    }

    /// A run that was told to stop has had its time: the node's next hello says whether it has it still.
    pub(super) fn stopped(&mut self, node: NodeId, run: RunId) {
        self.take_stopped(node, run);
    }

    pub(super) fn deadline(&mut self, now: Now, id: TaskId, out: &mut Vec<Effect>) {
        let Some(live) = self.live(id) else { return };
        let doing = if live.life.current().is_some() { "running" } else { "waiting" };
        let message = format!("its deadline passed while it was {doing}");
        self.end(now, id, End::failed(TaskError { code: ErrorCode::Deadline, message }), out);
    }

    /// A backstop: the node itself ends a run at its `timeout_ms`, counted from when it begins, and says so. One that was
    /// handed out ahead and waits there for a slot has not begun.
    pub(super) fn timed_out(&mut self, now: Now, id: TaskId, run: RunId, out: &mut Vec<Effect>) {
        let Some(live) = self.live(id) else { return };
        let Some(attempt) = live.life.runs().find(|attempt| attempt.run == run) else { return };
        let record = Arc::clone(&live.record);
        let waits = |node: &Node| node.ledger.waits_behind_others(run, node.slots());
        if self.nodes.get(&attempt.node).is_some_and(waits) {
            return self.arm_timeout(now, id, run, record.spec.timeout_ms);
        }
        let Some(live) = self.live_mut(id) else { return };
        let others: Vec<_> = live.life.runs().collect();
        let message = "the attempt ran longer than its timeout, and its node did not say so".to_owned();
        let next = live.life.failed(TaskError { code: ErrorCode::Timeout, message }, &record.spec.retry_on);
        live.life.give_up(attempt.run);
        for other in others {
            self.stop_run(now, other.node, other.run, out);
        }
        if next == Next::Requeue {
            self.charge_retry(now, id);
        }
        self.follow(now, id, next, out);
    }

    /// Counts from now on also for a run that was found on its node: no less than the node allows it.
    pub(super) fn arm_timeout(&mut self, now: Now, id: TaskId, run: RunId, timeout_ms: Option<u64>) {
        if let Some(timeout_ms) = timeout_ms {
            let at_us =
                now.mono_us.saturating_add(timeout_ms.saturating_mul(1_000)).saturating_add(TIMEOUT_GRACE_US);
            self.timers.insert((at_us, Timer::Timeout(id, run)));
        }
    }

    pub(super) fn handed_back(
        &mut self,
        now: Now,
        node: NodeId,
        runs: &[RunRef],
        draining: bool,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        self.heard(now, node, out);
        let Some(state) = self.nodes.get_mut(&node) else { return };
        state.drain(now.mono_us);
        state.drains_itself |= draining;
        let excused = draining || state.drain.is_some();
        let mut given_back = 0;
        for RunRef { task, run } in runs {
            let stopped = self.take_stopped(node, *run);
            self.release(node, *run);
            if let Some(live) = self.live_mut(*task)
                && !stopped
                && live.life.accepts(*run, node)
            {
                given_back += 1;
                let next = live.life.handed_back(*run, excused, reason);
                self.follow(now, *task, next, out);
            }
        }
        if given_back > 0 && !excused {
            self.fault(now, node);
        }
        self.update_status(now, node, out);
    }

    /// The node of a run is out of reach for good, or for as long as its task allows.
    pub(super) fn lose_run(&mut self, now: Now, node: NodeId, run: RunId, why: &str, out: &mut Vec<Effect>) {
        let Some(state) = self.nodes.get(&node) else { return };
        let heard_us = state.heard_us;
        let Some(entry) = state.ledger.get(run) else { return };
        let id = entry.task;
        let not_before_us = self
            .live(id)
            .and_then(|live| live.record.spec.rerun_after_ms)
            .map(|after_ms| heard_us.saturating_add(after_ms.saturating_mul(1_000)));
        if let Some(at_us) = not_before_us.filter(|at_us| *at_us > now.mono_us) {
            self.timers.insert((at_us, Timer::Rerun(id, run)));
            return;
        }
        self.release(node, run);
        if let Some(live) = self.live_mut(id)
            && live.life.accepts(run, node)
        {
            let next = live.life.node_lost(run, why);
            self.follow(now, id, next, out);
        }
    }

    /// A task with `rerun_after_ms` has waited that long since contact to its node was lost.
    pub(super) fn rerun(&mut self, now: Now, id: TaskId, run: RunId, out: &mut Vec<Effect>) {
        let Some(attempt) =
            self.live(id).and_then(|live| live.life.runs().find(|attempt| attempt.run == run))
        else {
            return;
        };
        let out_of_reach =
            |status| matches!(status, NodeStatus::Suspect | NodeStatus::Lost | NodeStatus::Stopped);
        if self.nodes.get(&attempt.node).is_none_or(|node| out_of_reach(node.status)) {
            let why = "its node has been out of reach for its rerun_after_ms";
            self.lose_run(now, attempt.node, run, why, out);
            self.have_it_greet(now, attempt.node, run, out);
        }
    }

    /// A run was taken from a node that may only be silent: on its open channel it would hear nothing of it
    /// and go on. When it greets anew, the run counts as a rival or is cancelled.
    fn have_it_greet(&mut self, now: Now, id: NodeId, run: RunId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.channel == Channel::Up && node.ledger.get(run).is_none() {
            node.channel = Channel::Closed { at_us: now.mono_us, by_node: false };
            out.push(Effect::CloseChannel { node: id });
        }
    }
}
