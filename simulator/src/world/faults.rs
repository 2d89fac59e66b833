//! What breaks.

use super::{Ev, World};
use crate::coverage::Fault;
use protocol::task::ErrorCode;
use rand::Rng;

/// An hour, in milliseconds.
const HOUR_MS: i64 = 3_600_000;

impl World {
    /// Something breaks, as the seed wants it.
    pub(super) fn fault(&mut self, now_us: u64) {
        let long_us = self.rng.random_range(100_000..15_000_000);
        match self.rng.random_range(0..24_u32) {
            0..=6 => self.master_fault(now_us, long_us),
            7..=14 => self.node_fault(now_us, long_us),
            15..=17 => self.disk_fault(now_us, long_us),
            18..=20 => self.manager_fault(now_us, long_us),
            _ => self.falsify(now_us),
        }
    }

    fn master_fault(&mut self, now_us: u64, long_us: u64) {
        let mut at = self.rng.random_range(0..self.machines.len());
        // Mostly the one that leads: with the others there is less to break.
        if let Some(leader) = self.leader(now_us).filter(|_| self.rng.random_bool(0.7)) {
            at = leader;
        }
        let lease_us = self.setup.lease_ms * 1_000;
        let stop_us = self.rng.random_range(lease_us / 2..3 * lease_us);
        match self.rng.random_range(0..8_u32) {
            0..=2 => self.kill_process(now_us, at),
            3 => {
                self.trace(|| format!("master-{at} is stopped for {} ms", stop_us / 1_000));
                self.coverage.count(Fault::MasterStopped);
                self.machines[at].stopped_until_us = now_us + stop_us;
            }
            4 if self.machines[at].brain.is_some() => self.machines[at].stops_halfway_us = Some(stop_us),
            5 if self.machines.len() > 1 => {
                self.trace(|| format!("master-{at} is cut off from the store for {} ms", long_us / 1_000));
                self.coverage.count(Fault::MasterCutFromStore);
                self.machines[at].store_cut_us = now_us + long_us;
            }
            6 => {
                self.trace(|| format!("master-{at} is cut off for {} ms", long_us / 1_000));
                self.coverage.count(Fault::MasterCutOff);
                self.machines[at].cut_until_us = now_us + long_us;
            }
            _ => self.turn_clock(at),
        }
    }

    /// Somebody sets a wall clock; monotonic ones go on.
    fn turn_clock(&mut self, at: usize) {
        let (fault, by_ms) =
            if self.rng.random() { (Fault::ClockAhead, HOUR_MS) } else { (Fault::ClockBack, -HOUR_MS) };
        self.trace(|| format!("the clock of master-{at} jumps by {by_ms} ms"));
        self.coverage.count(fault);
        let machine = &mut self.machines[at];
        machine.wall_off_ms += by_ms;
        if let Some(brain) = machine.brain.as_mut() {
            brain.wall_off_ms = machine.wall_off_ms;
        }
    }

    fn node_fault(&mut self, now_us: u64, long_us: u64) {
        let at = self.rng.random_range(0..self.nodes.len());
        let until_us = now_us + long_us;
        match self.rng.random_range(0..8_u32) {
            0..=1 if self.nodes[at].session.is_some() => {
                self.coverage.count(Fault::NodeKilled);
                self.kill_node(now_us, at);
            }
            2 => {
                self.trace(|| format!("node-{at} is stopped for {} ms", long_us / 1_000));
                self.coverage.count(Fault::NodeStopped);
                self.nodes[at].stopped_until_us = until_us;
            }
            3 => self.cut(at, Fault::CutToMaster, (until_us, 0)),
            4 => self.cut(at, Fault::CutToNode, (0, until_us)),
            5 => self.cut(at, Fault::CutBothWays, (until_us, until_us)),
            6 => {
                self.trace(|| format!("node-{at} is slow for {} ms", long_us / 1_000));
                self.coverage.count(Fault::NodeSlow);
                self.nodes[at].slow_until_us = until_us;
            }
            _ => self.kill_child(at),
        }
    }

    fn cut(&mut self, at: usize, fault: Fault, (to_master_us, to_node_us): (u64, u64)) {
        self.trace(|| format!("node-{at}: {fault:?}"));
        self.coverage.count(fault);
        let node = &mut self.nodes[at];
        node.cut_to_master_us = node.cut_to_master_us.max(to_master_us);
        node.cut_to_node_us = node.cut_to_node_us.max(to_node_us);
    }

    /// The kernel or somebody kills the process of a run; its node tells it by how it died.
    fn kill_child(&mut self, at: usize) {
        let code = if self.rng.random() { ErrorCode::OutOfMemory } else { ErrorCode::TaskError };
        let places = (0..self.nodes.len()).map(|more| (at + more) % self.nodes.len());
        let places: Vec<_> = places.filter(|at| self.nodes[*at].session.is_some()).collect();
        for at in places {
            let Some((run, task)) = self.nodes[at].kill_child(code) else { continue };
            self.trace(|| format!("the process of {run} on node-{at} is killed"));
            self.coverage.count(Fault::ChildKilled);
            let entries = self.history.entries.values_mut();
            // The client may not know its id yet; then its input says whose it is.
            let known = self.nodes[at].value_of(run);
            for entry in entries.filter(|entry| entry.id == Some(task) || Some(entry.value) == known) {
                entry.child_killed = true;
            }
            return self.agenda.after(1_000, Ev::RunEnds(at, self.nodes[at].life, run));
        }
    }

    fn disk_fault(&mut self, now_us: u64, long_us: u64) {
        self.disk_is_full = self.rng.random();
        self.trace(|| {
            let what = if self.disk_is_full { "is full" } else { "fails to sync" };
            format!("the disk {what} for {} ms", long_us / 3_000)
        });
        self.disk_refuses_until_us = now_us + long_us / 3;
    }

    fn manager_fault(&mut self, now_us: u64, long_us: u64) {
        match self.rng.random_range(0..3_u32) {
            0 => {
                self.trace(|| "manager is killed".to_owned());
                self.coverage.count(Fault::ManagerKilled);
                self.manager.kill(now_us + long_us / 4);
            }
            1 => {
                self.trace(|| "manager is stopped".to_owned());
                self.coverage.count(Fault::ManagerStopped);
                self.manager.stopped_until_us = now_us + long_us;
            }
            _ => {
                self.coverage.count(Fault::PoolScaled);
                self.manager.desired = self.rng.random_range(1..=self.nodes.len() as u32);
                self.trace(|| format!("{} nodes are wanted", self.manager.desired));
            }
        }
    }
}
