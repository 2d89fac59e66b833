//! A node's work channel opens and closes; what it says it has is held against what it should have.

use super::state::{Entry, Stored};
use super::{Attempt, Core, Effect, NodeId, Now, RunId, TaskId, TaskState, Timer};
use crate::{effect::Order, node::Channel, record::Op, task::Phase};
use protocol::{BootId, node::NodeStatus, work::RunRef};
use std::collections::BTreeSet;

impl Core {
    pub(super) fn channel_up(
        &mut self,
        now: Now,
        id: NodeId,
        boot_id: BootId,
        runs: &[RunRef],
        draining: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.removed) else {
            out.push(Effect::CloseChannel { node: id });
            return;
        };
        if node.status == NodeStatus::Stopped {
            node.status = NodeStatus::Lost;
        }
        if node.boot_id != boot_id {
            let lost: Vec<_> = node.ledger.iter().map(|(run, _)| run).collect();
            node.boot_id = boot_id;
            node.report_seq = None;
            node.health = Default::default();
            self.blame(now, id, None);
            for run in lost {
                self.lose_run(now, id, run, "its node started anew", out);
            }
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.channel = Channel::Up;
            node.drains_itself = draining;
            node.exited = false;
        }
        self.heard(now, id, out);
        self.reconcile(now, id, runs, out);
        match self.nodes.get(&id).map(|node| (node.drain, node.resumed)) {
            Some((Some(drain), _)) => {
                let left = drain.map(|until_us| until_us.saturating_sub(now.mono_us) / 1_000);
                self.order(id, Order::Drain { deadline_ms: left }, out);
            }
            // A resume that was lost with its connection would leave the node draining for good.
            Some((None, true)) if !draining => self.order(id, Order::Resume, out),
            _ => {}
        }
        self.update_status(now, id, out);
        self.touched.insert(id);
    }

    /// Holds what a node says it has against what it should have.
    fn reconcile(&mut self, now: Now, id: NodeId, runs: &[RunRef], out: &mut Vec<Effect>) {
        for RunRef { task, run } in runs {
            self.reconcile_run(now, id, (*task, *run), out);
        }
        let listed: BTreeSet<_> = runs.iter().map(|listed| listed.run).collect();
        let missing: Vec<_> = self
            .nodes
            .get(&id)
            .map(|node| {
                node.ledger
                    .iter()
                    .filter(|(run, _)| !listed.contains(run))
                    .map(|(run, e)| (run, e.task))
                    .collect()
            })
            .unwrap_or_default();
        for (run, task) in missing {
            self.release(id, run);
            if let Some(live) = self.live_mut(task)
                && live.life.accepts(run, id)
            {
                let next = live.life.handed_back(run, true, "it never arrived at its node");
                self.follow(now, task, next, out);
            }
        }
    }

    fn reconcile_run(&mut self, now: Now, id: NodeId, (task, run): (TaskId, RunId), out: &mut Vec<Effect>) {
        let known = self.nodes.get(&id).and_then(|node| node.ledger.get(run));
        if known.is_some_and(|entry| entry.cancelling) {
            return self.order(id, Order::Cancel { run }, out);
        }
        let older = run.epoch() < self.config.epoch;
        let attempt = Attempt { run, node: id, started_us: now.mono_us, started_at: now.wall };
        let counts = match self.tasks.get_mut(&task) {
            Some(Entry::Live(live)) if live.life.phase() != Phase::Accepting => {
                live.life.returned(attempt, older)
            }
            // Its result follows, or its commit is on the way.
            Some(Entry::Ended(ended)) if ended.winner == Some((run, id)) => {
                if !ended.writing {
                    self.order(id, Order::Committed { run }, out);
                }
                return;
            }
            _ => false,
        };
        if !counts {
            self.order(id, Order::Cancel { run }, out);
            return self.order(id, Order::Committed { run }, out);
        }
        self.came_back(task, id, run);
        self.unqueue(task);
        if self.nodes.get(&id).is_some_and(|node| node.ledger.get(run).is_some()) {
            return;
        }
        self.enter_ledger(task, attempt, now);
        let Some(Entry::Live(live)) = self.tasks.get_mut(&task) else { return };
        live.last_node = live.life.current().map(|current| current.node);
        live.started.get_or_insert((i64::try_from(now.mono_us).unwrap_or(i64::MAX), now.wall));
        let (attempt, stored) = (live.life.attempt(), live.stored != Stored::No);
        if stored && self.live(task).and_then(|live| live.life.current()).is_some_and(|c| c.run == run) {
            self.write(Op::TaskDispatched { task, run, node: id, attempt, at: now.wall }, out);
        }
        self.changed(task, TaskState::Running, out);
    }

    pub(super) fn channel_down(&mut self, now: Now, id: NodeId, by_node: bool, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.channel != Channel::Up {
            return;
        }
        node.channel = Channel::Closed { at_us: now.mono_us, by_node };
        self.update_status(now, id, out);
        if by_node {
            let at_us = now.mono_us + self.config.channel_lost_after_ms * 1_000;
            self.timers.insert((at_us, Timer::Node(id)));
        }
    }
}
