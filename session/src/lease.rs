//! Who of several masters leads, as one of them sees it.
//!
//! All share one row of a database: who leads, by which epoch, and until when by the *database's* clock. A master
//! asks for that row ([`Call::Campaign`]), prolongs it while it leads ([`Call::Renew`]) and gives it up when it
//! ends in order ([`Call::Resign`]). [`Lease`] decides when, and until when this master may lead by its *own*
//! clock, which is never compared with another one's.
//!
//! What holds, whatever the database and the process's scheduling do:
//! 1. it leads for at most [`safe_us`] after the last renewal that succeeded was **sent**. The database counts
//!    the lease from when it got the renewal, which is later, so the lease outlives the leading;
//! 2. [`Lease::leads`] asks nobody and needs no step: a process that stood still, however long, finds itself
//!    deposed by the first look at its clock;
//! 3. one call is under way at a time, so that an answer belongs to the call before it.
//!
//! `tests/lease.rs` holds several of them against a model of the row.

use crate::backoff::{Backoff, jittered};

/// Shortest lease, in milliseconds: below it a busy machine loses the lead for nothing.
pub const MIN_LEASE_MS: u64 = 1_000;
/// Longest lease, in milliseconds: for so long nobody serves after a leader died.
pub const MAX_LEASE_MS: u64 = 60_000;

/// First wait after a call that failed, in milliseconds.
const RETRY_BASE_MS: u64 = 100;
/// Longest, in milliseconds.
const RETRY_CAP_MS: u64 = 2_000;

/// For how long after a renewal was sent a master may lead, of a lease of this length; both in microseconds. A
/// second, or of a short lease a fifth, is kept for stopping and for clocks that run at different speed.
#[must_use]
pub const fn safe_us(lease_us: u64) -> u64 {
    let (less_a_second, four_fifths) = (lease_us.saturating_sub(1_000_000), lease_us / 5 * 4);
    if less_a_second > four_fifths { less_a_second } else { four_fifths }
}

/// A call to the database. It has to be answered within [`Lease::call_us`], by [`Answer::Failed`] if by nothing
/// else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Take the lead if it is free.
    Campaign,
    /// Prolong the lease of this epoch.
    Renew {
        /// Ours.
        epoch: u64,
    },
    /// Give the lease of this epoch up.
    Resign {
        /// Ours.
        epoch: u64,
    },
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A campaign: we lead, by this epoch.
    Won {
        /// Higher than any before.
        epoch: u64,
    },
    /// A campaign: another one leads.
    Held {
        /// What the database says is left of its lease, in microseconds.
        left_us: u64,
    },
    /// A renewal is durable.
    Renewed,
    /// A renewal: the epoch is not ours any more.
    Deposed,
    /// The lease is given up, or was not ours any more.
    Resigned,
    /// Nothing is known: the database failed, or did not answer in time.
    Failed,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// It begins, or time passed.
    Tick,
    /// The call that is under way is over.
    Answered {
        /// How.
        answer: Answer,
        /// Random, 0 ≤ f < 1: spreads masters that try at the same time.
        fraction: f64,
    },
    /// The database refused a write of this epoch, because another one is the current.
    WriteRefused {
        /// The epoch of the write.
        epoch: u64,
    },
    /// What there is to lead could not be taken up, as the store cannot be read: another master may do better.
    CannotLead {
        /// Of which epoch.
        epoch: u64,
        /// Random, 0 ≤ f < 1.
        fraction: f64,
    },
    /// The program ends, and what it led is ended in order: the lease is given up, and no other asked for.
    Stop,
}

/// Why a master stops leading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// No renewal succeeded in time, or this process stood still.
    #[error("its lease was not renewed in time")]
    RanOut,
    /// The database says that the epoch is not the current one any more.
    #[error("another master has taken over")]
    Deposed,
    /// It could not take up what there is to lead.
    #[error("it could not read the store")]
    Unable,
    /// It was asked to.
    #[error("it ends")]
    Stopped,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this call.
    Call(Call),
    /// Lead, by this epoch, until this instant at the latest.
    Lead {
        /// Stamps every order and every write.
        epoch: u64,
        /// On our own clock, in microseconds.
        until_us: u64,
    },
    /// The lease was prolonged: lead until this instant at the latest.
    Prolong {
        /// On our own clock, in microseconds.
        until_us: u64,
    },
    /// Stop leading at once: no answer, no write, no order more.
    StepDown {
        /// The epoch that is over for us.
        epoch: u64,
        /// Why.
        why: Lost,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Another one leads, or nobody: asks again then.
    Standby { campaign_us: u64 },
    /// We lead.
    Leading { epoch: u64, until_us: u64, renew_us: u64 },
    /// The program ends.
    Stopped,
}

/// One master's part in it. Times are its own monotonic microseconds; a clock that also counts while the machine
/// is suspended is the right one.
#[derive(Clone, Debug)]
pub struct Lease {
    lease_us: u64,
    phase: Phase,
    /// The call that is under way, and when it was sent.
    calling: Option<(Call, u64)>,
    /// A lease that the database may still hold for us although we do not lead.
    to_resign: Option<u64>,
    backoff: Backoff,
}

impl Lease {
    /// A standby that has not asked yet; the first [`Event::Tick`] begins. `lease_ms` is brought within
    /// [`MIN_LEASE_MS`] … [`MAX_LEASE_MS`].
    #[must_use]
    pub fn new(lease_ms: u64) -> Self {
        Self {
            lease_us: lease_ms.clamp(MIN_LEASE_MS, MAX_LEASE_MS) * 1_000,
            phase: Phase::Standby { campaign_us: 0 },
            calling: None,
            to_resign: None,
            backoff: Backoff::new(RETRY_BASE_MS, RETRY_CAP_MS),
        }
    }

    /// Whether this master may lead at this instant.
    #[must_use]
    pub const fn leads(&self, now_us: u64) -> bool {
        matches!(self.phase, Phase::Leading { until_us, .. } if now_us < until_us)
    }

    /// The lease's length, in microseconds.
    #[must_use]
    pub const fn lease_us(&self) -> u64 {
        self.lease_us
    }

    /// Longest that a call may take, in microseconds: two of a leader's fit into what it may lead without.
    #[must_use]
    pub const fn call_us(&self) -> u64 {
        self.lease_us / 3
    }

    /// Whether a call is under way.
    #[must_use]
    pub const fn is_calling(&self) -> bool {
        self.calling.is_some()
    }

    /// When [`Event::Tick`] is due next; `None` while only an answer can change something.
    #[must_use]
    pub fn wake_us(&self) -> Option<u64> {
        let idle = self.calling.is_none();
        match self.phase {
            Phase::Standby { campaign_us } => idle.then_some(campaign_us),
            Phase::Leading { until_us, renew_us, .. } => {
                Some(if idle { renew_us.min(until_us) } else { until_us })
            }
            Phase::Stopped => None,
        }
    }

    /// Decides. Whatever the event, a lease that has run out is over before it is looked at.
    pub fn step(&mut self, now_us: u64, event: Event, out: &mut Vec<Effect>) {
        if let Phase::Leading { until_us, .. } = self.phase
            && now_us >= until_us
        {
            self.step_down(now_us, Lost::RanOut, out);
        }
        match event {
            Event::Tick => {}
            Event::Answered { answer, fraction } => self.answered(now_us, answer, fraction, out),
            Event::WriteRefused { epoch } => {
                if matches!(self.phase, Phase::Leading { epoch: ours, .. } if ours == epoch) {
                    self.step_down(now_us, Lost::Deposed, out);
                }
            }
            Event::CannotLead { epoch, fraction } => {
                if matches!(self.phase, Phase::Leading { epoch: ours, .. } if ours == epoch) {
                    self.to_resign = Some(epoch);
                    self.step_down(now_us, Lost::Unable, out);
                    self.try_again(now_us, fraction);
                }
            }
            Event::Stop => {
                if let Phase::Leading { epoch, .. } = self.phase {
                    self.to_resign = Some(epoch);
                    self.step_down(now_us, Lost::Stopped, out);
                }
                self.phase = Phase::Stopped;
            }
        }
        self.call(now_us, out);
    }

    fn answered(&mut self, now_us: u64, answer: Answer, fraction: f64, out: &mut Vec<Effect>) {
        let Some((call, sent_us)) = self.calling.take() else { return };
        let until_us = sent_us.saturating_add(safe_us(self.lease_us));
        if answer != Answer::Failed {
            self.backoff.reset();
        }
        match (call, answer) {
            (Call::Campaign, Answer::Won { epoch }) => {
                if self.phase == Phase::Stopped || now_us >= until_us {
                    // Too late to be of use: others need not wait for it to run out.
                    self.to_resign = Some(epoch);
                } else {
                    self.lead(epoch, sent_us, until_us);
                    out.push(Effect::Lead { epoch, until_us });
                }
            }
            (Call::Campaign, Answer::Held { left_us }) => self.ask_again(now_us, left_us, fraction),
            (Call::Renew { epoch }, Answer::Renewed) => match self.phase {
                Phase::Leading { epoch: ours, .. } if ours == epoch => {
                    self.lead(epoch, sent_us, until_us);
                    out.push(Effect::Prolong { until_us });
                }
                // We stepped down while it was under way, and hold up everybody.
                _ => self.to_resign = self.to_resign.or(Some(epoch)),
            },
            (Call::Renew { epoch }, Answer::Deposed) => {
                if matches!(self.phase, Phase::Leading { epoch: ours, .. } if ours == epoch) {
                    self.step_down(now_us, Lost::Deposed, out);
                }
            }
            (Call::Resign { .. }, Answer::Resigned) => {}
            _ => self.try_again(now_us, fraction),
        }
    }

    const fn lead(&mut self, epoch: u64, sent_us: u64, until_us: u64) {
        let renew_us = sent_us.saturating_add(self.lease_us / 3);
        self.phase = Phase::Leading { epoch, until_us, renew_us };
    }

    /// Another one leads: asks again often, to notice that it gave up, and when its lease is over at the latest.
    fn ask_again(&mut self, now_us: u64, left_us: u64, fraction: f64) {
        let often_us = (self.lease_us / 10).min(1_000_000);
        let wait_us = (often_us / 2 + jittered(often_us / 2, fraction))
            .min(left_us.saturating_add(jittered(often_us / 5, fraction)));
        if let Phase::Standby { campaign_us } = &mut self.phase {
            *campaign_us = now_us.saturating_add(wait_us);
        }
    }

    fn try_again(&mut self, now_us: u64, fraction: f64) {
        let at_us = now_us.saturating_add(self.backoff.fail(fraction));
        match &mut self.phase {
            Phase::Standby { campaign_us } => *campaign_us = at_us,
            Phase::Leading { renew_us, .. } => *renew_us = at_us,
            Phase::Stopped => {}
        }
    }

    fn step_down(&mut self, now_us: u64, why: Lost, out: &mut Vec<Effect>) {
        if let Phase::Leading { epoch, .. } = self.phase {
            out.push(Effect::StepDown { epoch, why });
            // At once: whoever asks us wants to know who leads now.
            self.phase = Phase::Standby { campaign_us: now_us };
        }
    }

    /// The next call that is due, if none is under way.
    fn call(&mut self, now_us: u64, out: &mut Vec<Effect>) {
        if self.calling.is_some() {
            return;
        }
        let call = match (self.to_resign.take(), self.phase) {
            (Some(epoch), _) => Call::Resign { epoch },
            (None, Phase::Standby { campaign_us }) if now_us >= campaign_us => Call::Campaign,
            (None, Phase::Leading { epoch, renew_us, .. }) if now_us >= renew_us => Call::Renew { epoch },
            _ => return,
        };
        self.calling = Some((call, now_us));
        out.push(Effect::Call(call));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn step(lease: &mut Lease, now_us: u64, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        lease.step(now_us, event, &mut out);
        out
    }

    fn answered(lease: &mut Lease, now_us: u64, answer: Answer) -> Vec<Effect> {
        step(lease, now_us, Event::Answered { answer, fraction: 0.5 })
    }

    /// Leads by epoch 7 since 0, of a lease of 5 s.
    fn leader() -> Lease {
        let mut lease = Lease::new(5_000);
        assert_eq!(step(&mut lease, 0, Event::Tick), [Effect::Call(Call::Campaign)]);
        let lead = Effect::Lead { epoch: 7, until_us: 4 * SECOND };
        assert_eq!(answered(&mut lease, SECOND / 2, Answer::Won { epoch: 7 }), [lead]);
        lease
    }

    #[test]
    fn what_is_safe_is_a_second_less_and_of_a_short_lease_a_fifth() {
        let safe = [1, 2, 5, 10, 60].map(|seconds| safe_us(seconds * SECOND) / 100_000);
        assert_eq!(safe, [8, 16, 40, 90, 590]);
    }

    #[test]
    fn a_lease_counts_from_when_its_renewal_was_sent() {
        let mut lease = leader();
        let sent = lease.wake_us().unwrap_or_default();
        assert_eq!(step(&mut lease, sent, Event::Tick), [Effect::Call(Call::Renew { epoch: 7 })]);
        let prolong = Effect::Prolong { until_us: sent + 4 * SECOND };
        assert_eq!(answered(&mut lease, sent + SECOND, Answer::Renewed), [prolong]);
        assert!(lease.leads(sent + 4 * SECOND - 1) && !lease.leads(sent + 4 * SECOND));
    }

    #[test]
    fn a_leader_that_stood_still_steps_down_before_anything_else() {
        let late = 9 * SECOND;
        let down = Effect::StepDown { epoch: 7, why: Lost::RanOut };
        assert_eq!(step(&mut leader(), late, Event::Tick), [down, Effect::Call(Call::Campaign)]);
        let mut stopping = leader();
        assert_eq!(step(&mut stopping, late, Event::Stop), [down]);
        // Even with the answer in hand that prolongs it: that the next look is at the answer is chance.
        let mut lease = leader();
        step(&mut lease, 2 * SECOND, Event::Tick);
        let resign = Effect::Call(Call::Resign { epoch: 7 });
        assert_eq!(answered(&mut lease, late, Answer::Renewed), [down, resign]);
    }

    #[test]
    fn a_refused_write_or_renewal_deposes_at_once_and_one_of_an_older_epoch_does_not() {
        let down = Effect::StepDown { epoch: 7, why: Lost::Deposed };
        let mut lease = leader();
        assert_eq!(step(&mut lease, SECOND, Event::WriteRefused { epoch: 6 }), []);
        assert_eq!(step(&mut lease, SECOND, Event::WriteRefused { epoch: 7 })[0], down);
        let mut lease = leader();
        step(&mut lease, 2 * SECOND, Event::Tick);
        assert_eq!(answered(&mut lease, 2 * SECOND, Answer::Deposed)[0], down);
    }

    #[test]
    fn a_leader_that_cannot_read_the_store_gives_way_and_waits_before_it_asks_again() {
        let mut lease = leader();
        let down = Effect::StepDown { epoch: 7, why: Lost::Unable };
        let resign = Effect::Call(Call::Resign { epoch: 7 });
        let out = step(&mut lease, SECOND, Event::CannotLead { epoch: 7, fraction: 0.5 });
        assert_eq!(out, [down, resign]);
        assert_eq!(answered(&mut lease, SECOND, Answer::Resigned), []);
        assert_eq!(lease.wake_us(), Some(SECOND + 50_000));
    }

    #[test]
    fn a_victory_that_is_told_too_late_is_given_up() {
        let mut lease = Lease::new(5_000);
        step(&mut lease, 0, Event::Tick);
        let resign = Effect::Call(Call::Resign { epoch: 7 });
        assert_eq!(answered(&mut lease, 4 * SECOND, Answer::Won { epoch: 7 }), [resign]);
        assert_eq!(answered(&mut lease, 4 * SECOND, Answer::Resigned), [Effect::Call(Call::Campaign)]);
    }

    #[test]
    fn a_leader_that_ends_gives_up_its_lease_and_asks_for_none() {
        let mut lease = leader();
        let down = Effect::StepDown { epoch: 7, why: Lost::Stopped };
        let resign = Effect::Call(Call::Resign { epoch: 7 });
        assert_eq!(step(&mut lease, SECOND, Event::Stop), [down, resign]);
        assert_eq!(answered(&mut lease, SECOND, Answer::Resigned), []);
        assert_eq!((lease.wake_us(), step(&mut lease, 9 * SECOND, Event::Tick)), (None, vec![]));
        // A campaign that was under way may be won yet.
        let mut standby = Lease::new(5_000);
        step(&mut standby, 0, Event::Tick);
        assert_eq!(step(&mut standby, 1, Event::Stop), []);
        assert_eq!(
            answered(&mut standby, 2, Answer::Won { epoch: 8 }),
            [Effect::Call(Call::Resign { epoch: 8 })]
        );
    }

    #[test]
    fn a_standby_asks_often_and_not_before_the_end_of_a_short_rest() {
        let mut lease = Lease::new(5_000);
        step(&mut lease, 0, Event::Tick);
        answered(&mut lease, 0, Answer::Held { left_us: 3 * SECOND });
        assert_eq!(lease.wake_us(), Some(375_000));
        step(&mut lease, 375_000, Event::Tick);
        answered(&mut lease, 400_000, Answer::Held { left_us: 30_000 });
        assert_eq!(lease.wake_us(), Some(400_000 + 30_000 + 50_000));
    }

    #[test]
    fn a_database_that_fails_is_asked_with_back_off_and_the_lead_ends_in_time_all_the_same() {
        let mut lease = leader();
        let (mut now, mut calls) = (0, 0);
        while lease.leads(now) {
            now = lease.wake_us().unwrap_or(u64::MAX);
            let out = step(&mut lease, now, Event::Tick);
            if out.iter().any(|effect| matches!(effect, Effect::Call(Call::Renew { .. }))) {
                calls += 1;
                answered(&mut lease, now, Answer::Failed);
            }
        }
        assert_eq!(now, 4 * SECOND);
        assert!((2..30).contains(&calls), "{calls}");
    }
}
