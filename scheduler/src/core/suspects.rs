//! Tasks that end their nodes: who is suspected, runs alone, and ends (the rule is `crate::suspects`).

use super::end::End;
use super::state::{Entry, Live};
use super::{Class, Core, Effect, NodeId, Now, RunId, TaskId, Timer};
use crate::{
    suspects::{Fingerprint, Verdict},
    task::Attempt,
};
use protocol::{
    task::{ErrorCode, TaskError},
    work::Outcome,
};
use std::collections::BTreeMap;

/// Tasks that are diverted in one step; the others follow in the next ones.
const MOST_DIVERTED: u32 = 1_000;

/// What became of a task that was held against what is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Diverted {
    /// It is where it belongs.
    Not,
    /// It is in another class, or has ended.
    Away,
    /// Its turn to be looked at comes with the next step.
    Later,
}

impl Core {
    /// A node is lost: what ran there may have been the reason. If it is known which run was, only that.
    pub(super) fn blame(&mut self, now: Now, id: NodeId, culprit: Option<RunId>) {
        let Some(node) = self.nodes.get(&id) else { return };
        let mut dead = BTreeMap::<Fingerprint, (bool, u64)>::new();
        for (_, entry) in node.ledger.iter().filter(|(run, _)| culprit.is_none_or(|culprit| culprit == *run))
        {
            let Some(live) = self.live(entry.task) else { continue };
            let lived_us = now.mono_us.saturating_sub(entry.started_us);
            let before = dead.entry(live.print).or_default();
            *before = (before.0 || entry.alone, before.1.max(lived_us));
        }
        for (print, (alone, lived_us)) in dead {
            self.suspects.died(now.mono_us, print, alone, lived_us);
            self.look_again(print);
        }
    }

    /// A run ended with a result: it did not end its node.
    pub(super) fn spoke(&mut self, id: TaskId, outcome: &Outcome) {
        let lives = match outcome {
            Outcome::Succeeded => true,
            Outcome::Failed(error) => !matches!(error.code, ErrorCode::NodeLost | ErrorCode::OutOfMemory),
            Outcome::Cancelled => false,
        };
        if let Some(print) = self.live(id).map(|live| live.print).filter(|_| lives) {
            self.clear(print);
        }
    }

    /// A node has a run that was taken from it: it had not died.
    pub(super) fn came_back(&mut self, id: TaskId, node: NodeId, run: RunId) {
        let taken = self.nodes.get(&node).is_some_and(|node| node.ledger.get(run).is_none());
        if let Some(print) = self.live(id).map(|live| live.print).filter(|_| taken) {
            self.suspects.forgiven(print);
            self.look_again(print);
        }
    }

    fn clear(&mut self, print: Fingerprint) {
        if self.suspects.cleared(print) {
            self.look_again(print);
        }
    }

    /// Those of this that wait may be treated otherwise now.
    fn look_again(&mut self, print: Fingerprint) {
        self.fresh.extend(self.queue.held(print).collect::<Vec<_>>());
    }

    /// A task that is to run alone was handed out.
    pub(super) fn watch(&mut self, now: Now, id: TaskId, attempt: Attempt) {
        let Some(print) = self.live(id).and_then(|live| live.class.alone) else { return };
        let trusted_us = self.suspects.runs_alone(now.mono_us, print, (attempt.node, attempt.run));
        self.timers.insert((trusted_us, Timer::Trusted(attempt.node, attempt.run)));
    }

    /// Whether one of this class has to end before the next may run.
    pub(super) fn runs_alone(&self, class: Class) -> bool {
        let running = class.alone.and_then(|print| self.suspects.alone(print));
        running.is_some_and(|(node, run)| {
            self.nodes.get(&node).is_some_and(|node| node.ledger.get(run).is_some())
        })
    }

    /// It has outlived what it was suspected for: its node is shared again, and the others may go.
    pub(super) fn trusted(&mut self, node: NodeId, run: RunId) {
        let Some(entry) = self.nodes.get(&node).and_then(|node| node.ledger.get(run)) else { return };
        let (id, client) = (entry.task, entry.client);
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        let (slots, print) = (live.class.slots(), live.print);
        live.class.alone = None;
        let Some(before) = self.nodes.get_mut(&node).and_then(|node| node.ledger.shares(run, slots)) else {
            return;
        };
        self.queue.ended(client, before.saturating_sub(slots));
        self.touched.insert(node);
        self.clear(print);
    }

    /// Treats the next task of its class as is right now.
    pub(super) fn divert(&mut self, now: Now, id: TaskId, out: &mut Vec<Effect>) -> Diverted {
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return Diverted::Not };
        let class = live.class;
        let verdict = self.suspects.verdict(now.mono_us, live.print);
        let alone = match verdict {
            Verdict::Free => None,
            Verdict::Alone { .. } | Verdict::Ended { .. } => Some(live.print),
        };
        let ends = matches!(verdict, Verdict::Ended { .. });
        if !ends && class.alone == alone {
            return Diverted::Not;
        }
        if self.diverted >= MOST_DIVERTED {
            self.timers.insert((now.mono_us, Timer::Divert(class)));
            return Diverted::Later;
        }
        self.diverted += 1;
        if let Verdict::Ended { deaths, alone } = verdict {
            let message = format!(
                "{deaths} nodes in a row were lost while they ran this kind with this input, {alone} of them while \
                 they ran nothing else: it is not tried again, nor is any like it for ten minutes"
            );
            let error = TaskError { code: ErrorCode::AttemptsExhausted, message };
            self.end(now, id, End::failed(error), out);
            return Diverted::Away;
        }
        self.unqueue(id);
        if let Some(live) = self.live_mut(id) {
            live.class.alone = alone;
        }
        self.enqueue(id);
        Diverted::Away
    }

    /// Why a task is held back, if it is.
    pub(super) fn held(&self, live: &Live, now: Now) -> Option<String> {
        let (Verdict::Alone { deaths } | Verdict::Ended { deaths, .. }) =
            self.suspects.verdict(now.mono_us, live.print)
        else {
            return None;
        };
        Some(format!(
            "{deaths} nodes in a row were lost while they ran this kind with this input: its tasks run one at a \
             time, each alone on a node, until one of them ends otherwise"
        ))
    }
}
