//! What is shown; nothing here changes anything.

use super::state::{Ended, Entry, Live};
use super::{Core, Node, NodeId, Now, TaskId, TaskState};
use crate::{
    event::ClientId,
    explain::{self, MOST_CANDIDATES},
    node::Channel,
    placement::Seen,
    task::Phase,
};
use protocol::{
    node::{CpuView, KindInfo, NodeStatus, NodeView},
    status::{Candidate, ClusterStatus, Explanation, NodeCounts},
    task::Task,
};
use std::{ops::Bound, sync::Arc};

/// Most tasks that are counted for a place in the queue.
const MOST_COUNTED: usize = 100_000;

/// Which tasks a listing wants; all given fields must match.
#[derive(Clone, Debug)]
pub struct TaskFilter {
    /// In this state.
    pub state: Option<TaskState>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Whose last attempt went to this node.
    pub node: Option<NodeId>,
    /// With this label and value.
    pub label: Option<(String, String)>,
    /// Of this submitter.
    pub client: Option<ClientId>,
    /// Older than this one.
    pub before: Option<TaskId>,
    /// At most so many.
    pub limit: usize,
}

impl Default for TaskFilter {
    fn default() -> Self {
        Self { state: None, kind: None, node: None, label: None, client: None, before: None, limit: 100 }
    }
}

impl TaskFilter {
    fn takes(&self, entry: &Entry) -> bool {
        let (state, kind, node, labels, client) = match entry {
            Entry::Live(live) => {
                let spec = &live.record.spec;
                (live.state(), &spec.kind, live.last_node, &spec.labels, live.record.client)
            }
            Entry::Ended(ended) => {
                let task = &ended.task;
                (ended.state(), &task.kind, task.node, &task.labels, ended.client)
            }
        };
        !entry.is_accepting()
            && self.state.is_none_or(|wanted| wanted == state)
            && self.kind.as_ref().is_none_or(|wanted| wanted == kind)
            && self.node.is_none_or(|wanted| Some(wanted) == node)
            && self.label.as_ref().is_none_or(|(key, value)| labels.get(key) == Some(value))
            && self.client.is_none_or(|wanted| wanted == client)
    }
}

impl Live {
    pub(super) fn state(&self) -> TaskState {
        if self.life.current().is_some() { TaskState::Running } else { TaskState::Queued }
    }

    pub(super) fn shown(&self, id: TaskId, now: Now) -> Task {
        let spec = &self.record.spec;
        let running = self.life.current().is_some();
        let now_us = i64::try_from(now.mono_us).unwrap_or(i64::MAX);
        let until_us =
            self.started.filter(|_| running || self.item.is_none()).map_or(now_us, |started| started.0);
        Task {
            id,
            kind: spec.kind.clone(),
            input: spec.input.clone(),
            state: self.state(),
            result: None,
            error: None,
            node: self.last_node,
            attempt: self.life.attempt(),
            max_attempts: self.life.max_attempts(),
            priority: spec.priority,
            labels: spec.labels.clone(),
            resources: self.resources,
            submitted_at: self.record.submitted_at,
            started_at: self.started.map(|started| started.1),
            finished_at: None,
            queue_ms: u64::try_from((until_us - self.arrival_us) / 1_000).unwrap_or(0),
            run_ms: None,
            cpu_ms: None,
        }
    }
}

impl Ended {
    /// Whether its end could still be undone by a crash, so that it is shown as if it had not ended.
    pub(super) const fn is_open(&self) -> bool {
        self.writing && self.durable
    }

    fn state(&self) -> TaskState {
        if self.is_open() { self.before } else { self.task.state }
    }

    pub(super) fn shown(&self) -> Arc<Task> {
        if !self.is_open() {
            return Arc::clone(&self.task);
        }
        Arc::new(Task {
            state: self.before,
            result: None,
            error: None,
            finished_at: None,
            run_ms: None,
            cpu_ms: None,
            ..Task::clone(&self.task)
        })
    }
}

impl Entry {
    fn is_accepting(&self) -> bool {
        matches!(self, Self::Live(live) if live.life.phase() == Phase::Accepting)
    }

    fn shown(&self, id: TaskId, now: Now) -> (Arc<Task>, ClientId) {
        match self {
            Self::Live(live) => (Arc::new(live.shown(id, now)), live.record.client),
            Self::Ended(ended) => (ended.shown(), ended.client),
        }
    }
}

impl Core {
    /// A task that has not ended, or that has and is still in memory, and its submitter.
    /// A `disk` task that is not committed yet is not shown; one whose end is not committed yet is shown as
    /// it was before.
    #[must_use]
    pub fn task(&self, id: TaskId, now: Now) -> Option<(Arc<Task>, ClientId)> {
        self.tasks.get(&id).filter(|entry| !entry.is_accepting()).map(|entry| entry.shown(id, now))
    }

    /// Tasks that have not ended, and those ended ones that are still in memory, newest id first.
    #[must_use]
    pub fn tasks(&self, filter: &TaskFilter, now: Now) -> Vec<(Arc<Task>, ClientId)> {
        let below = filter.before.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.tasks.range((Bound::Unbounded, below)).rev();
        let wanted = range.filter(|(_, entry)| filter.takes(entry)).take(filter.limit);
        wanted.map(|(id, entry)| entry.shown(*id, now)).collect()
    }

    /// Whether this was a task that ended without being stored and is not kept any longer (410).
    #[must_use]
    pub fn expired(&self, id: TaskId) -> bool {
        self.expired.contains(&id)
    }

    /// Whether the store has this task that has ended, or will: it can be read again later. One that left this
    /// memory and did not expire is there.
    #[must_use]
    pub fn is_stored(&self, id: TaskId) -> bool {
        match self.tasks.get(&id) {
            Some(Entry::Ended(ended)) => ended.stored,
            Some(Entry::Live(_)) => false,
            None => !self.expired(id),
        }
    }

    /// All nodes by name; lost and stopped ones stay for 60 s.
    #[must_use]
    pub fn nodes(&self, now: Now) -> Vec<NodeView> {
        let shown = self.nodes.values().filter(|node| node.is_shown(now.mono_us));
        let mut views: Vec<_> = shown.map(|node| self.view(node, now)).collect();
        views.sort_by(|one, other| one.name.cmp(&other.name).then(one.id.cmp(&other.id)));
        views
    }

    /// One node, as [`Core::nodes`] shows it.
    #[must_use]
    pub fn node(&self, id: NodeId, now: Now) -> Option<NodeView> {
        self.nodes.get(&id).filter(|node| node.is_shown(now.mono_us)).map(|node| self.view(node, now))
    }

    /// The name of a node whose session is valid, shown or not: the only one that its token may take.
    #[must_use]
    pub fn session_name(&self, id: NodeId, now: Now) -> Option<String> {
        let node = self.nodes.get(&id).filter(|node| node.session_valid(now.mono_us))?;
        Some(node.record.registration.name.clone())
    }

    fn view(&self, node: &Node, now: Now) -> NodeView {
        let registration = &node.record.registration;
        let mut ledger = node.ledger.clone();
        ledger.drain(now.mono_us, &node.expected_offer(now.mono_us));
        let cpu = node.cpu.map(|(sample, at_us)| CpuView {
            sample: sample.into(),
            percent: sample.percent(),
            sample_age_ms: now.mono_us.saturating_sub(at_us) / 1_000,
        });
        NodeView {
            id: node.id(),
            name: registration.name.clone(),
            ip: node.ip,
            pool: registration.pool.clone(),
            status: node.status,
            labels: registration.labels.clone(),
            kinds: registration.kinds.iter().map(|kind| kind.name.clone()).collect(),
            allotted_cores: node.capacity.allotted_cores(),
            cpu,
            memory: node.memory,
            slots: node.slots(),
            running: u32::try_from(ledger.len()).unwrap_or(u32::MAX),
            // Estimates are bounded, and the cast saturates.
            queued_cpu_ms: (ledger.cpu_left_s() * 1e3) as u64,
            completed: node.completed,
            failed: node.failed,
            registered_at: node.record.registered_at,
            last_report_at: node.last_report_at,
            runtime_id: registration.runtime_id.clone(),
            effective_cores: node.capacity.effective_cores(now.mono_us),
            reason: node.reason.clone(),
        }
    }

    /// Why a task is where it is.
    #[must_use]
    pub fn explain(&self, id: TaskId, now: Now) -> Option<Explanation> {
        let (live, decision) = match self.tasks.get(&id).filter(|entry| !entry.is_accepting())? {
            Entry::Live(live) => (Some(live), live.decision.as_deref()),
            Entry::Ended(ended) => (None, ended.decision.as_deref()),
        };
        if let Some(live) = live
            && let Some(item) = live.item
        {
            return Some(self.why_waiting(id, live, item, now));
        }
        let reason = match (live, decision) {
            (_, Some(decision)) => decision.reason,
            (Some(_), None) => "master_restarted",
            (None, None) => "ended",
        };
        let candidates = decision.map(|decision| {
            let verdict = |at: usize, one: &Seen| match (at, one.start_in_s > 0.0) {
                (0, _) => "chosen",
                (_, true) => "busy",
                (_, false) => "later",
            };
            let shown = decision.seen.iter().enumerate();
            shown.map(|(at, one)| self.candidate(one, verdict(at, one))).collect()
        });
        Some(Explanation {
            reason: reason.to_owned(),
            message: explain::message(reason).to_owned(),
            position: None,
            estimated_cpu_ms: decision.and_then(|decision| decision.cpu_s).map(|cpu_s| cpu_s * 1e3),
            predicted_run_ms: decision.and_then(|decision| decision.run_s).map(|run_s| run_s * 1e3),
            remaining_ms: live.and_then(|live| self.left_s(live, now)).map(|left_s| left_s * 1e3),
            candidates: candidates.unwrap_or_default(),
        })
    }

    /// What is left of a running task, in seconds, by what its node gave it so far and is expected to give it.
    fn left_s(&self, live: &Live, now: Now) -> Option<f64> {
        let attempt = live.life.current()?;
        let node = self.nodes.get(&attempt.node)?;
        node.ledger.get(attempt.run).filter(|entry| entry.estimate.is_known())?;
        let offer = node.expected_offer(now.mono_us);
        let mut ledger = node.ledger.clone();
        ledger.drain(now.mono_us, &offer);
        ledger.left_s(attempt.run, &offer)
    }

    fn candidate(&self, seen: &Seen, verdict: &str) -> Candidate {
        let name = self.nodes.get(&seen.node).map(|node| node.record.registration.name.clone());
        explain::candidate(seen, name.unwrap_or_default(), verdict)
    }

    fn why_waiting(&self, id: TaskId, live: &Live, item: crate::queue::Item, now: Now) -> Explanation {
        let estimate = self.estimates.of(&live.kind, live.size);
        let length_s = estimate.is_known().then_some(estimate.cpu_s + estimate.off_cpu_s);
        let (class, now_us) = (live.class, now.mono_us);
        let here = |node: &&Node| node.gone_us.is_none();
        let of_kind: Vec<_> = self
            .nodes
            .values()
            .filter(here)
            .filter(|node| node.kinds.binary_search(&class.kind).is_ok())
            .collect();
        let fit: Vec<_> = of_kind.iter().filter(|node| node.could_take(class)).collect();
        let ready: Vec<_> = fit.iter().filter(|node| node.status == NodeStatus::Ready).collect();
        let slots: Vec<_> = ready.iter().filter(|node| node.has_slots(class, now_us)).collect();
        let held = self.held(live, now);
        let reason = if held.is_some() {
            "quarantined"
        } else if of_kind.is_empty() {
            "no_node_for_kind"
        } else if fit.is_empty() {
            "too_large_for_nodes"
        } else if ready.is_empty() {
            "no_ready_node"
        } else if slots.is_empty() {
            "no_free_slot"
        } else if !slots.iter().any(|node| node.can_take(class, length_s, now_us)) {
            "not_enough_memory"
        } else {
            "waiting_for_better_node"
        };
        let look =
            |node: &Node| Seen::look(node, class, &estimate, node.can_take(class, length_s, now_us), now_us);
        let verdict = |node: &Node| match node.status {
            NodeStatus::Ready if node.can_take(class, length_s, now_us) => "slower",
            NodeStatus::Ready if !node.has_slots(class, now_us) => "busy",
            NodeStatus::Ready => "not_enough_memory",
            status => status.as_str(),
        };
        let mut seen: Vec<_> = fit.iter().map(|node| (look(node), verdict(node))).collect();
        seen.sort_by(|one, other| one.0.finish_s().total_cmp(&other.0.finish_s()));
        seen.truncate(MOST_CANDIDATES);
        Explanation {
            reason: reason.to_owned(),
            message: held.unwrap_or_else(|| explain::message(reason).to_owned()),
            position: Some(self.queue.position((class, live.record.client), id, item, MOST_COUNTED)),
            estimated_cpu_ms: estimate.is_known().then_some(estimate.cpu_s * 1e3),
            predicted_run_ms: None,
            remaining_ms: None,
            candidates: seen.iter().map(|(one, verdict)| self.candidate(one, verdict)).collect(),
        }
    }

    /// The cluster as a whole.
    #[must_use]
    pub fn status(&self, now: Now) -> ClusterStatus {
        let mut nodes = NodeCounts::default();
        let (mut allotted, mut effective, mut used) = (0.0, 0.0, 0.0);
        for node in self.nodes.values().filter(|node| node.is_shown(now.mono_us)) {
            match node.status {
                NodeStatus::Starting => nodes.starting += 1,
                NodeStatus::Ready => nodes.ready += 1,
                NodeStatus::Draining => nodes.draining += 1,
                NodeStatus::Suspect => nodes.suspect += 1,
                NodeStatus::Lost => nodes.lost += 1,
                NodeStatus::Stopped => {}
            }
            if node.status == NodeStatus::Ready && node.channel == Channel::Up {
                allotted += node.capacity.allotted_cores();
                effective += node.capacity.effective_cores(now.mono_us);
                used += node.cpu.map_or(0.0, |(sample, _)| sample.used_cores);
            }
        }
        ClusterStatus {
            leader: self.config.leader.clone(),
            epoch: self.config.epoch,
            version: self.config.version.clone(),
            nodes,
            queued: self.queue.len(),
            running: self.live - self.queue.len() - self.accepting,
            succeeded: self.counts.succeeded,
            failed: self.counts.failed,
            cancelled: self.counts.cancelled,
            late_results: self.counts.late,
            accepted_per_second: self.accepted_rate.per_second(now.mono_us),
            finished_per_second: self.finished_rate.per_second(now.mono_us),
            allotted_cores: allotted,
            effective_cores: effective,
            used_cores: used,
            uptime_ms: now.mono_us.saturating_sub(self.started_us) / 1_000,
        }
    }

    /// The kinds that are known: built in, of pool templates, or registered in the last 7 days.
    #[must_use]
    pub fn kinds(&self, now: Now) -> Vec<KindInfo> {
        self.kinds.all(now.mono_us)
    }

    /// Whose session token has this hash; valid for 24 h after the last contact.
    #[must_use]
    pub fn session(&self, hash: &[u8; 32], now: Now) -> Option<NodeId> {
        let id = *self.sessions.get(hash)?;
        self.nodes.get(&id).filter(|node| node.session_valid(now.mono_us)).map(|_| id)
    }
}
