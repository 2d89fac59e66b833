//! The leases of several masters: calls to the store that they share, which may be late, or lost.

use super::{Ev, World};
use crate::plant::Plant;
use rand::Rng;
use session::lease::{Answer, Call, Effect, Event, Lease, Lost, safe_us};

impl World {
    pub(super) fn lease(&mut self, now_us: u64, at: usize, event: Event) {
        let Some(lease) = self.machines[at].lease.as_mut() else { return };
        let mut effects = Vec::new();
        lease.step(now_us, event, &mut effects);
        let call_us = lease.call_us();
        let life = self.machines[at].life;
        for effect in effects {
            match effect {
                Effect::Call(call) => {
                    self.machines[at].call += 1;
                    let number = self.machines[at].call;
                    let sent_us = self.store_delay();
                    self.agenda.after(sent_us, Ev::StoreCall(at, life, number, call));
                    self.agenda.after(call_us, Ev::StoreAnswer(at, life, number, Answer::Failed));
                }
                Effect::Lead { epoch, .. } => {
                    self.believe(now_us, at);
                    self.machines[at].elected = epoch;
                    self.drop_brain(now_us, at);
                    let read_us = self.store_delay();
                    self.agenda.after(read_us, Ev::Loaded(at, life, epoch));
                }
                Effect::Prolong { .. } => self.believe(now_us, at),
                Effect::StepDown { why, .. } => {
                    let believes = self.setup.plant == Some(Plant::LeaseFromReply)
                        && now_us < self.machines[at].believes_until_us;
                    if why != Lost::RanOut || !believes {
                        self.trace(|| format!("master-{at} steps down: {why}"));
                        self.drop_brain(now_us, at);
                    }
                }
            }
        }
        let wake_us = self.machines[at].lease.as_ref().and_then(Lease::wake_us);
        if let Some(wake_us) = wake_us.filter(|_| wake_us != self.machines[at].lease_wake_us) {
            self.machines[at].lease_wake_us = Some(wake_us);
            self.agenda.at(wake_us, Ev::LeaseWake(at, life));
        }
    }

    fn believe(&mut self, now_us: u64, at: usize) {
        self.machines[at].believes_until_us = now_us + safe_us(self.setup.lease_ms * 1_000);
    }

    pub(super) fn lease_wake(&mut self, now_us: u64, at: usize) {
        self.machines[at].lease_wake_us = None;
        self.lease(now_us, at, Event::Tick);
    }

    /// A call reaches the store.
    pub(super) fn store_call(&mut self, now_us: u64, (at, life): (usize, u64), number: u64, call: Call) {
        if self.machines[at].store_cut_us > now_us {
            return;
        }
        let lease_us = self.setup.lease_ms * 1_000;
        let answer = match call {
            Call::Campaign => self.disk.campaign(now_us, at, lease_us),
            Call::Renew { epoch } => self.disk.renew(now_us, epoch, lease_us),
            Call::Resign { epoch } => self.disk.resign(epoch),
        };
        self.machines[at].leader = self.disk.leader();
        let back_us = self.store_delay();
        // A cut that begins meanwhile keeps the answer back.
        if !self.rng.random_bool(0.01) {
            self.agenda.after(back_us, Ev::StoreAnswer(at, life, number, answer));
        }
    }

    pub(super) fn store_answer(&mut self, now_us: u64, at: usize, number: u64, answer: Answer) {
        if self.machines[at].call == number {
            self.machines[at].call += 1;
            let fraction = self.rng.random();
            self.lease(now_us, at, Event::Answered { answer, fraction });
        }
    }

    /// To the store and back: mostly soon, sometimes a bad moment.
    fn store_delay(&mut self) -> u64 {
        if self.setup.faults && self.rng.random_bool(0.05) {
            self.rng.random_range(10_000..1_500_000)
        } else {
            self.rng.random_range(200..4_000)
        }
    }
}
