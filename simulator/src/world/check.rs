//! What must hold at the end of a run: nothing is left anywhere, and the disk agrees with what clients were told.

use super::World;
use crate::{node::SimNode, setup::Summary};

impl World {
    pub(super) fn at_rest(&self) -> bool {
        self.history.entries.len() as u64 == self.setup.tasks
            && self.history.entries.values().all(|entry| entry.ended.is_some() || entry.refused)
            && self.nodes.iter().all(SimNode::is_empty)
            && self.pool_is_right()
            && self.left_at_master().is_some_and(|left| left == (0, 0))
    }

    /// Tasks that wait and run at the master that leads.
    fn left_at_master(&self) -> Option<(u64, u64)> {
        let now_us = self.agenda.now_us();
        let master = self.machines[self.leader(now_us)?].brain.as_ref()?;
        let status = master.core.status(master.now(now_us));
        Some((status.queued, status.running))
    }

    /// Virtual microseconds since the start.
    #[must_use]
    pub const fn now_us(&self) -> u64 {
        self.agenda.now_us()
    }

    /// Events so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Nodes that died so far.
    #[must_use]
    pub const fn deaths(&self) -> u64 {
        self.deaths
    }

    /// Tasks of which the store has the end.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.disk.ended_tasks()
    }

    /// Nodes that the master takes to be ready.
    #[must_use]
    pub fn nodes_ready(&self) -> u32 {
        let now_us = self.agenda.now_us();
        let brain = self.leader(now_us).and_then(|at| self.machines[at].brain.as_ref());
        brain.map_or(0, |brain| brain.core.status(brain.now(now_us)).nodes.ready)
    }

    /// Says what may not be, when all is over.
    ///
    /// # Errors
    /// Every violation that was seen.
    pub fn finish(mut self) -> Result<Summary, Vec<String>> {
        self.history.check_complete();
        let mut violations = std::mem::take(&mut self.history.violations);
        violations.append(&mut self.disk.violations);
        violations.append(&mut self.manager.violations);
        for entry in self.history.entries.values().filter(|entry| entry.is_certain()) {
            let (Some(id), Some((state, result))) = (entry.id, &entry.ended) else { continue };
            let stored = self
                .disk
                .ended(id)
                .map(|task| (task.state, task.result.as_ref().map(|json| json.get().to_owned())));
            // Of a `memory` task the end may have been told before the promise.
            let must = entry.end_seen_us.is_some();
            if must && stored.as_ref() != Some(&(*state, result.clone())) {
                violations.push(format!(
                    "task {id}: the client was told {state:?} {result:?}, the disk says {stored:?}"
                ));
            }
        }
        if !self.pool_is_right() {
            violations.push("the pool does not have the nodes that are wanted at the end".to_owned());
        }
        for node in self.nodes.iter().filter(|node| !node.is_empty()) {
            violations.push(format!("{} is not empty at the end", node.name));
        }
        match self.left_at_master() {
            Some((0, 0)) => {}
            Some((queued, running)) => violations
                .push(format!("the master is not empty at the end: {queued} queued, {running} running")),
            None => violations.push("nobody leads at the end".to_owned()),
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        let begun = self.nodes.iter().flat_map(|node| node.begun.values()).chain(self.begun_before.values());
        let entries = self.history.entries.values();
        Ok(Summary {
            steps: self.steps,
            acknowledged: entries.filter(|entry| entry.acknowledged_us.is_some()).count(),
            operations: self.history.operations,
            begun: begun.map(|count| u64::from(*count)).sum(),
            simulated_us: self.agenda.now_us(),
            coverage: self.coverage,
        })
    }
}
