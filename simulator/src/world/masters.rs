//! The masters: processes that are killed and stopped, and what they write to the store that they share.

use super::{Caller, Ev, NodeAnswer, World};
use crate::{
    coverage::Fault,
    master::{ConnId, Master, Out, Start},
    plant::Plant,
};
use rand::Rng;
use scheduler::{effect::WriteSeq, record::Op};
use session::{
    lease::{Event, Lease},
    retry::Outcome,
};

/// How long a leader waits for the store at most, in microseconds; then it takes a write for failed.
const STORE_TIMEOUT_US: u64 = 5_000_000;

/// The place of one master: a process, or none.
#[derive(Default)]
pub(super) struct Machine {
    /// The brain, while this master leads.
    pub(super) brain: Option<Master>,
    /// Counts the lives of its process; events for an earlier one are dropped.
    pub(super) life: u64,
    is_up: bool,
    pub(super) lease: Option<Lease>,
    /// Number of the call that is under way.
    pub(super) call: u64,
    /// Until when it believes to lead, for the bug that counts from the answer.
    pub(super) believes_until_us: u64,
    /// By which epoch its lease lets it lead, or did last.
    pub(super) elected: u64,
    /// Whom it forwards to.
    pub(super) leader: Option<usize>,
    /// Nothing happens to it until this time.
    pub(super) stopped_until_us: u64,
    /// It does not reach the store until this time.
    pub(super) store_cut_us: u64,
    /// Nobody reaches it until this time.
    pub(super) cut_until_us: u64,
    /// It will be stopped for so long in the middle of its next step.
    pub(super) stops_halfway_us: Option<u64>,
    pub(super) wall_off_ms: i64,
    /// The newest time for which the brain of this epoch asked to be woken.
    wake: (u64, u64),
    pub(super) lease_wake_us: Option<u64>,
}

/// What a leader is told of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Durable,
    Failed,
    Deposed,
}

impl World {
    pub(super) fn start_process(&mut self, now_us: u64, at: usize) {
        let several = self.setup.masters > 1;
        let machine = &mut self.machines[at];
        if machine.is_up {
            return;
        }
        machine.is_up = true;
        machine.life += 1;
        if several {
            machine.lease = Some(Lease::new(self.setup.lease_ms));
            machine.lease_wake_us = None;
            return self.lease(now_us, at, Event::Tick);
        }
        let epoch = self.disk.next_epoch();
        self.lead(now_us, at, epoch);
    }

    /// It leads from now on, with what the store has.
    pub(super) fn lead(&mut self, now_us: u64, at: usize, epoch: u64) {
        // It may have lost that lead while it read, and won another one since.
        let is_over = self.machines[at].elected != epoch || !self.leads(now_us, at, epoch);
        if self.machines[at].lease.is_some() && is_over {
            return;
        }
        let recovered = self.disk.recover();
        self.trace(|| format!("master-{at} leads by epoch {epoch}, {} open tasks", recovered.tasks.len()));
        if self.led_by.replace(at).is_some_and(|before| before != at) {
            self.coverage.count(Fault::TakenOver);
        }
        let start = Start {
            epoch,
            seed: self.rng.random(),
            queue_max_tasks: self.setup.queue_max_tasks,
            recovered,
            wall_off_ms: self.machines[at].wall_off_ms,
            plant: self.setup.plant,
        };
        let mut out = Vec::new();
        self.machines[at].brain = Some(Master::start(now_us, start, &mut out));
        self.perform(now_us, at, out);
    }

    fn leads(&self, now_us: u64, at: usize, epoch: u64) -> bool {
        let machine = &self.machines[at];
        let believes = self.setup.plant == Some(Plant::LeaseFromReply) && now_us < machine.believes_until_us;
        machine.is_up
            && (believes || machine.lease.as_ref().is_none_or(|lease| lease.leads(now_us)))
            && (self.setup.masters == 1 || self.disk.epoch() >= epoch)
    }

    /// `kill -9`, perhaps of the whole machine: what it had not synced may be lost.
    pub(super) fn kill_process(&mut self, now_us: u64, at: usize) {
        if !std::mem::take(&mut self.machines[at].is_up) {
            return;
        }
        self.coverage.count(Fault::MasterKilled);
        self.trace(|| format!("master-{at} is killed"));
        self.machines[at].lease = None;
        self.machines[at].stopped_until_us = 0;
        self.machines[at].stops_halfway_us = None;
        self.machines[at].life += 1;
        if self.setup.masters == 1 && self.rng.random_bool(0.5) {
            self.disk.lose_unsynced();
        }
        self.drop_brain(now_us, at);
        let down_us = self.rng.random_range(50_000..8_000_000);
        self.agenda.at(now_us + down_us, Ev::ProcessStart(at));
    }

    /// Kills the only master, and starts it again after so long.
    pub fn restart_master(&mut self, down_us: u64) {
        let now_us = self.agenda.now_us();
        self.kill_process(now_us, 0);
        self.run_until(now_us + down_us);
        self.start_process(now_us + down_us, 0);
    }

    /// It leads no more: all its connections end.
    pub(super) fn drop_brain(&mut self, _now_us: u64, at: usize) {
        if self.machines[at].brain.take().is_none() {
            return;
        }
        let conns: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.machine == at)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            self.channels.remove(&conn);
            self.channel_lost(conn);
        }
        let replies: Vec<_> =
            self.waiting.iter().filter(|(_, (machine, _))| *machine == at).map(|(reply, _)| *reply).collect();
        for reply in replies {
            let delay = self.delay();
            match self.waiting.remove(&reply) {
                Some((_, Caller::Client(number, operation))) => {
                    self.agenda.after(delay, Ev::RequestBroke(number, operation, Outcome::Broken));
                }
                Some((_, Caller::Node(node, life))) => {
                    self.agenda.after(delay, Ev::ToNode(node, life, NodeAnswer::Registered(None)));
                }
                Some((_, Caller::Onlooker(..))) | None => {}
            }
        }
    }

    pub(super) fn channel_lost(&mut self, conn: ConnId) {
        let delay = self.delay();
        self.agenda.after(delay, Ev::ClosedAtNode(conn));
    }

    // --- the brain --------------------------------------------------------------------------------

    /// The master that leads and can be reached, if there is one.
    pub(super) fn leader(&self, now_us: u64) -> Option<usize> {
        (0..self.machines.len()).find(|at| {
            let machine = &self.machines[*at];
            machine.stopped_until_us <= now_us
                && machine.brain.as_ref().is_some_and(|brain| self.leads(now_us, *at, brain.epoch))
        })
    }

    /// Who answers what is sent to this one: itself if it leads, else the one that it believes to.
    pub(super) fn route(&self, now_us: u64, via: usize) -> Option<usize> {
        if self.machines[via].cut_until_us > now_us || !self.machines[via].is_up {
            return None;
        }
        if self.machines[via].brain.is_some() {
            return Some(via);
        }
        let leader = self.machines[via].leader?;
        self.machines[leader].brain.as_ref().map(|_| leader)
    }

    /// Lets the master act, if it leads: it looks at its lease before each thing that it does.
    pub(super) fn with_master(
        &mut self,
        now_us: u64,
        at: usize,
        act: impl FnOnce(&mut Master, &mut Vec<Out>),
    ) {
        if self.setup.plant != Some(Plant::LeaseNotLookedAt) {
            let runs_out = self.machines[at].lease.as_ref().is_some_and(|lease| {
                lease.wake_us().is_some_and(|wake_us| wake_us <= now_us) || !lease.leads(now_us)
            });
            if runs_out {
                self.lease(now_us, at, Event::Tick);
            }
        }
        let newest = self.disk.epoch();
        let Some(master) = self.machines[at].brain.as_mut() else { return };
        if master.epoch < newest {
            let epoch = master.epoch;
            self.history.violations.push(format!("epoch {epoch} acts after epoch {newest} has begun"));
            return self.drop_brain(now_us, at);
        }
        let mut out = Vec::new();
        act(master, &mut out);
        // Mostly in the middle of something that matters.
        let matters = out.iter().any(|out| matches!(out, Out::Commit(_) | Out::Answer(..)));
        if (matters || self.rng.random_bool(0.02))
            && let Some(stop_us) = self.machines[at].stops_halfway_us.take()
        {
            let (life, until_us) = (self.machines[at].life, now_us + stop_us);
            self.trace(|| format!("master-{at} is stopped halfway for {} ms", stop_us / 1_000));
            self.coverage.count(Fault::MasterStoppedHalfway);
            self.machines[at].stopped_until_us = until_us;
            return self.agenda.at(until_us, Ev::LateOut(at, life, newest, out));
        }
        self.perform(now_us, at, out);
    }

    /// What a master had decided before it was stopped is done now, whoever leads meanwhile.
    pub(super) fn late_out(&mut self, now_us: u64, at: usize, epoch: u64, out: Vec<Out>) {
        if self.machines[at].brain.as_ref().is_some_and(|brain| brain.epoch == epoch) {
            if epoch < self.disk.epoch() {
                self.coverage.count(Fault::OldLeaderSpoke);
            }
            self.perform(now_us, at, out);
        }
    }

    pub(super) fn wake_master(&mut self, now_us: u64, at: usize, epoch: u64) {
        let is_it = self.machines[at].brain.as_ref().is_some_and(|brain| brain.epoch == epoch);
        // Of a master that was stopped the timer comes late.
        if is_it && self.machines[at].wake.0 == epoch && self.machines[at].wake.1 <= now_us {
            self.machines[at].wake = (0, 0);
            self.with_master(now_us, at, |master, out| master.wake(now_us, out));
        }
    }

    /// A transaction reaches the disk, or does not.
    pub(super) fn durable(
        &mut self,
        now_us: u64,
        (at, life): (usize, u64),
        epoch: u64,
        ops: Vec<(WriteSeq, Op)>,
    ) {
        let Some(through) = ops.last().map(|(seq, _)| *seq) else { return };
        let dead = self.machines[at].life != life;
        let cut = self.setup.masters > 1 && self.machines[at].store_cut_us > now_us;
        let failing = self.disk_refuses_until_us > now_us;
        let written = if dead && self.rng.random_bool(0.5) {
            // What a dead master had not synced is lost; a transaction is there whole or not at all.
            return self.coverage.count(Fault::UnsyncedLost);
        } else if dead {
            if self.disk.commit_untold(epoch, ops) {
                self.coverage.count(Fault::UnsyncedKept);
            }
            return;
        } else if failing && self.disk_is_full || cut {
            self.coverage.count(Fault::DiskFull);
            Written::Failed
        } else if failing {
            // It is called failed, and may be there all the same.
            if self.rng.random_bool(0.5) && self.disk.commit_untold(epoch, ops) {
                self.coverage.count(Fault::SyncFailedWritten);
            } else {
                self.coverage.count(Fault::SyncFailedLost);
            }
            Written::Failed
        } else if self.disk.commit(epoch, ops) {
            Written::Durable
        } else {
            self.coverage.count(Fault::OldWriteRefused);
            Written::Deposed
        };
        let back_us = if cut { STORE_TIMEOUT_US } else { 0 };
        self.agenda.after(back_us, Ev::Written(at, life, epoch, through, written));
    }

    pub(super) fn written(
        &mut self,
        now_us: u64,
        at: usize,
        epoch: u64,
        through: WriteSeq,
        written: Written,
    ) {
        if self.machines[at].brain.as_ref().is_none_or(|brain| brain.epoch != epoch)
            || self.setup.plant == Some(Plant::AnswerBeforeCommit) && written == Written::Durable
        {
            return;
        }
        match written {
            Written::Durable => {
                self.with_master(now_us, at, |master, out| master.committed(now_us, through, out))
            }
            Written::Failed => {
                self.trace(|| "a transaction failed".to_owned());
                self.with_master(now_us, at, |master, out| master.commit_failed(now_us, through, out));
            }
            Written::Deposed => self.lease(now_us, at, Event::WriteRefused { epoch }),
        }
    }

    pub(super) fn perform(&mut self, now_us: u64, at: usize, out: Vec<Out>) {
        for effect in out {
            match effect {
                Out::Message(conn, message) => self.send_to_node(conn, Some(message)),
                Out::Ping(conn) => self.send_to_node(conn, None),
                Out::Close(conn) => self.channel_lost(conn),
                Out::Answer(reply, answer) => self.answer(now_us, reply, answer),
                Out::Commit(ops) => self.commit(now_us, at, ops),
            }
        }
        let wake = self.machines[at].brain.as_ref().and_then(|brain| Some((brain.epoch, brain.wake_us()?)));
        if let Some((epoch, at_us)) = wake {
            let wake = (epoch, at_us.max(now_us + 1));
            if self.machines[at].wake != wake {
                self.machines[at].wake = wake;
                self.agenda.at(wake.1, Ev::MasterWake(at, epoch));
            }
        }
    }

    fn commit(&mut self, now_us: u64, at: usize, ops: Vec<(WriteSeq, Op)>) {
        let Some(epoch) = self.machines[at].brain.as_ref().map(|brain| brain.epoch) else { return };
        let sync_us = self.rng.random_range(500..20_000);
        // None of one master overtakes another.
        self.disk_us = (now_us + sync_us).max(self.disk_us);
        let through = ops.last().map(|(seq, _)| *seq);
        let life = self.machines[at].life;
        self.agenda.at(self.disk_us, Ev::Durable(at, life, epoch, ops));
        if let (Some(Plant::AnswerBeforeCommit), Some(through)) = (self.setup.plant, through) {
            self.with_master(now_us, at, |master, out| master.committed(now_us, through, out));
        }
    }

    fn send_to_node(&mut self, conn: ConnId, message: Option<bytes::Bytes>) {
        let delay = self.delay();
        let now_us = self.agenda.now_us();
        let Some(channel) = self.channels.get_mut(&conn) else { return };
        let cut_us = self.nodes[channel.node].cut_to_node_us;
        channel.to_node_us = (now_us + delay).max(channel.to_node_us).max(cut_us);
        self.agenda.at(channel.to_node_us, Ev::AtNode(conn, message));
    }
}
