//! Draining: by order of a master, after which the node may resume; or by its own wish, after which it leaves.

use super::{Effect, ExitReason, Session};
use crate::close::CloseReason;
use protocol::work::{Leaving, ToMaster};

/// A node that leaves waits so long, and at least until its deadline, for its last results to be committed,
/// and so long after the deadline for the runs that it cancelled to end.
pub const LEAVE_GRACE_US: u64 = 5_000_000;
/// A node that leaves with nothing left waits so long for a channel to say so.
const FAREWELL_GRACE_US: u64 = 1_000_000;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draining {
    /// By our own wish (SIGTERM): the process ends afterwards. Else by order of this epoch.
    pub(super) own: bool,
    pub(super) epoch: u64,
    pub(super) deadline_us: Option<u64>,
    pub(super) expired: bool,
    /// When a leaving node gives up what is left.
    pub(super) give_up_us: Option<u64>,
}

impl Session {
    pub(super) fn drain(&mut self, now_us: u64, own: bool, deadline_ms: Option<u64>, out: &mut Vec<Effect>) {
        let deadline_us = deadline_ms.map(|ms| now_us.saturating_add(ms.saturating_mul(1_000)));
        let epoch = self.epoch;
        self.draining = Some(Draining { own, epoch, deadline_us, expired: false, give_up_us: None });
        let waiting = self.runs.give_back_waiting();
        if !waiting.is_empty() {
            self.hand_back("draining", waiting);
        }
        self.take_back_ahead(out);
    }

    pub(super) fn drain_on(&mut self, now_us: u64, drain: &mut Draining, out: &mut Vec<Effect>) {
        if !drain.expired && drain.deadline_us.is_some_and(|deadline| now_us >= deadline) {
            drain.expired = true;
            let late = self.runs.abandon_running();
            out.extend(late.iter().map(|back| Effect::Cancel(back.run)));
            if !late.is_empty() {
                self.hand_back("the drain's deadline passed", late);
            }
        }
        if !drain.own {
            return;
        }
        let (running, uncommitted) = (self.runs.active(), self.runs.kept());
        if running == 0 && uncommitted == 0 && self.is_open() {
            self.flush(now_us, out);
            let leaving = ToMaster::Leaving(Leaving { epoch: self.epoch });
            self.outbox.put(|message| leaving.put(message));
            self.send_gathered(out);
            out.push(Effect::Close(CloseReason::GoingAway));
            return self.exit(ExitReason::Left, out);
        }
        if running == 0 || drain.expired {
            let nothing_left = running == 0 && uncommitted == 0;
            let end_us = if nothing_left {
                now_us.saturating_add(FAREWELL_GRACE_US)
            } else {
                now_us.saturating_add(LEAVE_GRACE_US).max(drain.deadline_us.unwrap_or(0))
            };
            let give_up_us = *drain.give_up_us.get_or_insert(end_us);
            if now_us >= give_up_us || (nothing_left && self.node.is_none()) {
                let reason = match nothing_left {
                    true => ExitReason::Left,
                    false => ExitReason::Unfinished { running, uncommitted },
                };
                self.exit(reason, out);
            }
        }
    }
}
