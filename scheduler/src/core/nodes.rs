//! Nodes come, report, fall silent, return and leave.

use super::submit::refuse;
use super::{Core, Effect, Node, NodeId, Now, Refusal, ReplyId, RunId, TaskId, Timer};
use crate::{
    effect::{Answer, Change, Order},
    event::RunEnded,
    node::{Channel, SESSION_US, SHOWN_US, report_interval_ms},
    record::{NodeRecord, Op},
};
use protocol::{
    BootId,
    node::{ExitReport, NodeRegistration, NodeStatus, Report},
    task::{ErrorCode, TaskError},
    work::{Outcome, RunRef},
};
use std::sync::Arc;

/// How long the median of what nodes lose is taken for the present one, in microseconds.
const MEDIAN_KEPT_US: u64 = 1_000_000;
/// Exit code of a process that was killed.
const KILLED: i64 = 137;

impl Core {
    /// ē of the middle node: what a new one is expected to lose (rule 6). Looked up once a second, so that a
    /// thousand nodes that come at once do not each look at all others.
    fn median_loss(&mut self, now: Now) -> f64 {
        if let Some((at_us, median)) = self.median
            && now.mono_us < at_us + MEDIAN_KEPT_US
        {
            return median;
        }
        let median = self.median_loss_now();
        self.median = Some((now.mono_us, median));
        median
    }

    fn median_loss_now(&self) -> f64 {
        let here = self.nodes.values().filter(|node| node.gone_us.is_none() && node.cpu.is_some());
        let mut losses: Vec<f64> = here.map(|node| node.capacity.long_loss()).collect();
        let middle = losses.len() / 2;
        if losses.is_empty() { 0.0 } else { *losses.select_nth_unstable_by(middle, f64::total_cmp).1 }
    }

    pub(super) fn register(
        &mut self,
        now: Now,
        (id, session_hash): (NodeId, [u8; 32]),
        replaces: Option<NodeId>,
        registration: NodeRegistration,
        reply: ReplyId,
        out: &mut Vec<Effect>,
    ) {
        let before = self.names.get(&registration.name).copied();
        let alive = |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.gone_us.is_none());
        if before.is_some_and(|before| alive(&before) && replaces != Some(before)) {
            return refuse(reply, Refusal::NameInUse { name: registration.name }, out);
        }
        if let Err(refusal) = self.has_room(now, &registration, before) {
            return refuse(reply, refusal, out);
        }
        self.alive += 1;
        let kinds = self.register_kinds(&registration, now.mono_us);
        let boot_id = registration.boot_id;
        let record =
            Arc::new(NodeRecord { id, session_hash, boot_id, registration, registered_at: now.wall });
        let interval_ms = self.report_interval_ms();
        let median = self.median_loss(now);
        self.nodes.insert(id, Node::new(Arc::clone(&record), kinds, median, now.mono_us, interval_ms, false));
        self.names.insert(record.registration.name.clone(), id);
        self.sessions.insert(session_hash, id);
        self.timers.insert((now.mono_us, Timer::Node(id)));
        if let Some(before) = before {
            self.replace(now, before, id, boot_id, out);
        }
        self.write(Op::NodeRegistered(record), out);
        out.push(Effect::Answer {
            reply,
            answer: Answer::Registered { node: id, report_interval_ms: interval_ms },
            last: true,
        });
        out.push(Effect::Changed(Change::Node { node: id, status: NodeStatus::Starting }));
    }

    /// Whether one more node can be remembered, if need be without the one that has been gone longest.
    fn has_room(
        &mut self,
        now: Now,
        registration: &NodeRegistration,
        before: Option<NodeId>,
    ) -> Result<(), Refusal> {
        if self.kinds.count_with(&registration.kinds) > self.config.kinds_max {
            return Err(Refusal::KindsFull { kinds: self.config.kinds_max as u64 });
        }
        if self.nodes.len() < self.config.nodes_max {
            return Ok(());
        }
        let may_go = |node: &&Node| {
            node.gone_us.is_some()
                && node.ledger.is_empty()
                && !node.is_shown(now.mono_us)
                && Some(node.id()) != before
        };
        let oldest = self.nodes.values().filter(may_go).min_by_key(|node| (node.gone_us, node.id()));
        let Some(oldest) = oldest.map(Node::id) else {
            return Err(Refusal::NodesFull { nodes: self.nodes.len() as u64 });
        };
        self.end_session(oldest);
        self.nodes.remove(&oldest);
        Ok(())
    }

    /// A name has a new node. The same process keeps its runs; those of another one are lost.
    fn replace(&mut self, now: Now, before: NodeId, id: NodeId, boot_id: BootId, out: &mut Vec<Effect>) {
        if self.nodes.get(&before).is_some_and(|node| node.boot_id == boot_id) {
            let orders = self.nodes.get(&before).map(|node| (node.drain, node.resumed));
            if let (Some(orders), Some(node)) = (orders, self.nodes.get_mut(&id)) {
                (node.drain, node.resumed) = orders;
            }
            let runs: Vec<_> = self
                .nodes
                .get(&before)
                .map(|node| node.ledger.iter().map(|(run, _)| run).collect())
                .unwrap_or_default();
            for run in runs {
                let entry = self.nodes.get_mut(&before).and_then(|node| node.ledger.remove(run));
                let Some(entry) = entry else { continue };
                if let Some(live) = self.live_mut(entry.task) {
                    live.life.moved(run, id);
                    live.last_node = Some(id);
                }
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.ledger.add(run, entry);
                }
            }
        }
        self.blame(now, before, None);
        self.lose(now, before, "a new process has taken its name", out);
        self.end_session(before);
        self.timers.insert((now.mono_us + SHOWN_US, Timer::Forget(before)));
    }

    fn end_session(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.removed = true;
            self.sessions.remove(&node.record.session_hash);
            if self.names.get(&node.record.registration.name) == Some(&id) {
                self.names.remove(&node.record.registration.name);
            }
        }
    }

    /// Contact: the clocks begin anew, and a node that was given up is back.
    pub(super) fn heard(&mut self, now: Now, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.removed || node.exited || node.status == NodeStatus::Stopped {
            return;
        }
        node.heard(now.mono_us);
        if node.gone_us.take().is_some() {
            self.alive += 1;
            let record = Arc::clone(&node.record);
            self.timers.insert((now.mono_us, Timer::Node(id)));
            self.write(Op::NodeRegistered(record), out);
        }
        if self
            .nodes
            .get(&id)
            .is_some_and(|node| matches!(node.status, NodeStatus::Suspect | NodeStatus::Lost))
        {
            self.update_status(now, id, out);
        }
    }

    pub(super) fn report(&mut self, now: Now, id: NodeId, report: Report, out: &mut Vec<Effect>) {
        let alive = self.alive;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = node.report_seq.is_some_and(|seq| report.seq <= seq);
        if node.removed || node.boot_id != report.boot_id || old || node.status == NodeStatus::Stopped {
            return;
        }
        node.report_seq = Some(report.seq);
        node.interval_ms = report_interval_ms(alive, node.ledger.is_empty());
        node.ip = report.ip;
        node.drains_itself = report.status == NodeStatus::Draining;
        let busy = node.ledger.busy_cores();
        node.capacity.observe(now.mono_us, &report.cpu, busy);
        node.cpu = Some((report.cpu, now.mono_us));
        node.memory = Some(report.memory);
        node.running = report.running;
        node.last_report_at = Some(now.wall);
        self.heard(now, id, out);
        self.update_status(now, id, out);
        self.touched.insert(id);
        if let Some(node) = self.nodes.get(&id) {
            out.push(Effect::Changed(Change::Node { node: id, status: node.status }));
        }
    }

    /// Brings a node's status up to what its clocks say.
    pub(super) fn update_status(&mut self, now: Now, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let (status, reason, next_us) = node.judge(&self.config, now.mono_us);
        if node.gone_us.is_some() {
            return;
        }
        if let Some(next_us) = next_us {
            self.timers.insert((next_us, Timer::Node(id)));
        }
        if status == NodeStatus::Lost && self.going_away {
            return;
        }
        if status == NodeStatus::Lost {
            self.blame(now, id, None);
            return self.lose(now, id, &reason, out);
        }
        node.reason = reason;
        if node.status == status {
            return;
        }
        node.status = status;
        self.touched.insert(id);
        out.push(Effect::Changed(Change::Node { node: id, status }));
        if status == NodeStatus::Suspect {
            self.arm_reruns(id);
        }
    }

    /// Contact is lost: tasks that say how long they wait then are looked at when that is over.
    fn arm_reruns(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let after = |task| self.live(task).and_then(|live| live.record.spec.rerun_after_ms);
        let due: Vec<_> = node
            .ledger
            .iter()
            .filter_map(|(run, entry)| Some((entry.task, run, after(entry.task)?)))
            .map(|(task, run, ms)| {
                (node.heard_us.saturating_add(ms.saturating_mul(1_000)), Timer::Rerun(task, run))
            })
            .collect();
        self.timers.extend(due);
    }

    /// A node is given up: its runs are elsewhere from now on.
    fn lose(&mut self, now: Now, id: NodeId, why: &str, out: &mut Vec<Effect>) {
        self.depart(now, id, NodeStatus::Lost, why, out);
        let runs: Vec<_> = self
            .nodes
            .get(&id)
            .map(|node| node.ledger.iter().map(|(run, _)| run).collect())
            .unwrap_or_default();
        let name = self.nodes.get(&id).map(|node| node.record.registration.name.clone()).unwrap_or_default();
        for run in runs {
            self.lose_run(now, id, run, &format!("node {name} was lost: {why}"), out);
        }
    }

    fn depart(&mut self, now: Now, id: NodeId, status: NodeStatus, why: &str, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.gone_us.is_some() {
            return;
        }
        node.gone_us = Some(now.mono_us);
        node.status = status;
        node.reason = why.to_owned();
        node.health = Default::default();
        node.reserved = None;
        let was_up = node.channel == Channel::Up;
        node.channel = Channel::Closed { at_us: now.mono_us, by_node: false };
        let forget_us = node.heard_us + SESSION_US;
        self.alive -= 1;
        self.touched.insert(id);
        self.timers.insert((forget_us.max(now.mono_us + 1), Timer::Forget(id)));
        if was_up {
            out.push(Effect::CloseChannel { node: id });
        }
        self.write(Op::NodeGone { node: id, at: now.wall }, out);
        out.push(Effect::Changed(Change::Node { node: id, status }));
    }

    /// A node that was gone for 24 h, or whose session is over, cannot come back.
    pub(super) fn forget(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.gone_us.is_none() {
            return;
        }
        if node.session_valid(now.mono_us) {
            self.timers.insert((node.heard_us + SESSION_US, Timer::Forget(id)));
            return;
        }
        if !node.ledger.is_empty() {
            // A task waits for its `rerun_after_ms` here.
            self.timers.insert((now.mono_us + SHOWN_US, Timer::Forget(id)));
            return;
        }
        self.end_session(id);
        self.nodes.remove(&id);
    }

    pub(super) fn leaving(&mut self, now: Now, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get(&id).filter(|node| node.gone_us.is_none()) else { return };
        let runs: Vec<_> = node.ledger.iter().map(|(run, entry)| RunRef { task: entry.task, run }).collect();
        self.handed_back(now, id, &runs, true, "its node leaves", out);
        self.depart(now, id, NodeStatus::Stopped, "it left in order", out);
    }

    pub(super) fn exited(&mut self, now: Now, id: NodeId, exit: &ExitReport, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get(&id).filter(|node| node.gone_us.is_none()) else { return };
        // The runtime blames memory also when only a child was killed, so its word counts with a kill only.
        let charged = (exit.oom_killed && exit.exit_code.is_none_or(|code| code == KILLED))
            .then(|| largest(node))
            .flatten();
        let code = exit.exit_code.map(|code| format!(" with code {code}")).unwrap_or_default();
        let reason = if exit.reason.is_empty() { String::new() } else { format!(": {}", exit.reason) };
        let why = format!("its process exited{code}{reason}");
        self.depart(now, id, NodeStatus::Lost, &why, out);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.exited = true;
        }
        self.blame(now, id, charged.map(|(run, _)| run));
        if let Some((run, task)) = charged {
            let message = "its node ran out of memory, and this was its largest task".to_owned();
            let outcome = Outcome::Failed(TaskError { code: ErrorCode::OutOfMemory, message });
            let (run_ms, cpu_ms) = (0.0, 0.0);
            let (result, sample, log) = (None, None, None);
            let ended = RunEnded { node: id, task, run, outcome, result, run_ms, cpu_ms, sample, log };
            self.settle(now, ended, out);
        }
        self.lose(now, id, &why, out);
    }

    pub(super) fn drain(&mut self, now: Now, id: NodeId, deadline_ms: Option<u64>, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.gone_us.is_none()) else { return };
        node.drain = Some(deadline_ms.map(|ms| now.mono_us.saturating_add(ms.saturating_mul(1_000))));
        self.order(id, Order::Drain { deadline_ms }, out);
        self.update_status(now, id, out);
    }

    pub(super) fn resume(&mut self, now: Now, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.gone_us.is_none()) else { return };
        node.drain = None;
        node.resumed = true;
        // It says so again with its next report if it still drains of its own accord.
        node.drains_itself = false;
        self.order(id, Order::Resume, out);
        self.update_status(now, id, out);
        self.touched.insert(id);
    }

    pub(super) fn remove(&mut self, now: Now, id: NodeId, out: &mut Vec<Effect>) {
        self.lose(now, id, "an operator removed it", out);
        self.end_session(id);
        self.timers.insert((now.mono_us + SHOWN_US, Timer::Forget(id)));
    }

    /// The node failed by itself (rule 7).
    pub(super) fn fault(&mut self, now: Now, id: NodeId) {
        let out_now = self.nodes.values().filter(|node| node.health.is_out(now.mono_us)).count();
        let may_eject = (out_now + 1) * 2 <= self.alive;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let slots = node.slots();
        let again_us = node.health.fault(now.mono_us, slots, may_eject);
        self.timers.insert((again_us, Timer::Look(id)));
        self.touched.insert(id);
    }

    /// A run has lived for half a second: its node works (rule 6).
    pub(super) fn proven(&mut self, id: NodeId, run: RunId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.gone_us.is_none() && node.ledger.get(run).is_some() {
            node.proven_by(run);
            self.touched.insert(id);
        }
    }
}

/// The run that takes most memory on a node, as last reported, else by what it asked for.
fn largest(node: &Node) -> Option<(RunId, TaskId)> {
    let wanted = node.ledger.iter().filter(|(_, entry)| !entry.cancelling);
    let largest = wanted.max_by_key(|(_, entry)| (node.rss_bytes(entry.task), entry.memory_bytes));
    largest.map(|(run, entry)| (run, entry.task))
}
