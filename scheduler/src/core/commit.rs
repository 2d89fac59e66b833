//! The order of write and answer: `disk` means on disk first, and a store that fails loses nothing that
//! was promised.
//!
//! While the store fails, changes of tasks that were accepted wait in order and are written again after
//! a pause; results stay with their nodes meanwhile. New `disk` tasks are tried at once and refused.

use super::state::{Entry, Store, Stored, Want};
use super::submit::refuse;
use super::{Core, Effect, Now, Refusal, ReplyId, TaskId, Timer};
use crate::{
    effect::{Answer, Order, WriteSeq},
    record::Op,
    task::Phase,
};
use protocol::task::Json;

/// First pause before the store is tried again, in microseconds.
const PAUSE_US: u64 = 250_000;
/// Longest pause, in microseconds.
const MOST_PAUSE_US: u64 = 5_000_000;

impl Core {
    /// Writes at once, even while the store fails: for what is refused if it cannot be written.
    pub(super) fn write_through(&mut self, op: Op, out: &mut Vec<Effect>) {
        self.store.unwritten_bytes += Store::bytes_of(&op);
        self.emit(op, out);
    }

    fn emit(&mut self, op: Op, out: &mut Vec<Effect>) {
        self.store.last.0 += 1;
        let seq = self.store.last;
        self.store.outstanding.push_back((seq, op.clone()));
        out.push(Effect::Write { seq, op });
    }

    /// Writes in the order of what happened.
    pub(super) fn write(&mut self, op: Op, out: &mut Vec<Effect>) {
        if self.store.pause_us > 0 && !self.store.void.is_empty() {
            self.store.unwritten_bytes += Store::bytes_of(&op);
            self.store.void.push_back(op);
        } else {
            self.write_through(op, out);
        }
    }

    pub(super) fn written(&mut self, now: Now, through: WriteSeq, out: &mut Vec<Effect>) {
        while let Some((_, op)) = self.store.outstanding.pop_front_if(|(seq, _)| *seq <= through) {
            self.store.done(&op);
            match op {
                Op::TaskAccepted(record) => self.accepted(now, record.id, out),
                Op::TaskEnded { task, log, .. } => {
                    self.end_written(task.id, out);
                    self.log_written(task.id, log.as_deref());
                }
                Op::TaskLog { task, log } => self.log_written(task, Some(&log)),
                _ => {}
            }
        }
        if self.store.void.is_empty() {
            self.store.pause_us = 0;
        }
        self.store.counts.retain(|(seq, reply, count)| {
            let due = *seq <= through;
            if due {
                let answer = Answer::CancelledCount(*count);
                out.push(Effect::Answer { reply: *reply, answer, last: true });
            }
            !due
        });
    }

    fn accepted(&mut self, now: Now, id: TaskId, out: &mut Vec<Effect>) {
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        live.stored = Stored::Yes;
        if live.life.phase() == Phase::Accepting {
            live.life.accepted();
            self.accepting -= 1;
            self.accepted_rate.count(now.mono_us);
            self.begin(id, out);
        }
        self.answer_stored(now, id, out);
    }

    fn end_written(&mut self, id: TaskId, out: &mut Vec<Effect>) {
        let Some(Entry::Ended(mut ended)) = self.tasks.remove(&id) else { return };
        ended.writing = false;
        self.answer_ended(&mut ended, out);
        if let Some((run, node)) = ended.winner {
            self.order(node, Order::Committed { run }, out);
        }
        let json = |json: &Option<Json>| json.as_ref().map_or(0, |json| json.get().len() as u64);
        let bytes = json(&ended.task.input) + json(&ended.task.result);
        self.tasks.insert(id, Entry::Ended(ended));
        self.keep_stored(id, bytes);
    }

    /// A stored task that has ended stays here for a while, so that most reads need no store.
    fn keep_stored(&mut self, id: TaskId, bytes: u64) {
        self.ended_stored.push_back((id, bytes));
        self.ended_stored_bytes += bytes;
        while self.ended_stored.len() > self.config.ended_stored_kept
            || self.ended_stored_bytes > self.config.ended_stored_max_bytes && self.ended_stored.len() > 1
        {
            let Some((oldest, bytes)) = self.ended_stored.pop_front() else { return };
            self.ended_stored_bytes -= bytes;
            self.tasks.remove(&oldest);
        }
    }

    pub(super) fn write_failed(&mut self, now: Now, through: WriteSeq, why: &str, out: &mut Vec<Effect>) {
        let mut void = Vec::new();
        while let Some((_, op)) = self.store.outstanding.pop_front_if(|(seq, _)| *seq <= through) {
            match op {
                Op::TaskAccepted(ref record) if self.live(record.id).is_some_and(|live| live.durable) => {
                    self.store.done(&op);
                    self.refuse_acceptance(record.id, why, out);
                }
                op => void.push(op),
            }
        }
        for op in void.into_iter().rev() {
            self.store.void.push_front(op);
        }
        self.refuse_waiting(now, why, out);
        let refused = |reply| Effect::Answer {
            reply,
            answer: Answer::Refused(Refusal::StoreFailed { why: why.to_owned() }),
            last: true,
        };
        out.extend(std::mem::take(&mut self.store.counts).into_iter().map(|(_, reply, _)| refused(reply)));
        if self.store.void.is_empty() {
            return;
        }
        self.timers.retain(|(_, timer)| *timer != Timer::Store);
        self.store.pause_us = (self.store.pause_us * 2).clamp(PAUSE_US, MOST_PAUSE_US);
        self.timers.insert((now.mono_us + self.store.pause_us, Timer::Store));
    }

    fn refuse_acceptance(&mut self, id: TaskId, why: &str, out: &mut Vec<Effect>) {
        let Some(Entry::Live(live)) = self.tasks.remove(&id) else { return };
        self.accepting -= 1;
        self.live -= 1;
        self.live_bytes -= live.bytes;
        if let Some((key, _)) = &live.record.key {
            self.keys.release(live.record.client, key, id);
        }
        for (reply, want) in live.waiters {
            self.drop_wait(reply, want);
            refuse(reply, Refusal::StoreFailed { why: why.to_owned() }, out);
        }
    }

    /// Callers of `memory` tasks whose wait is over cannot be promised anything now: they are refused. A task
    /// whose submitter is refused is cancelled, since they will submit it again.
    fn refuse_waiting(&mut self, now: Now, why: &str, out: &mut Vec<Effect>) {
        let accepting = self.store.void.iter().filter_map(|op| match op {
            Op::TaskAccepted(record) => Some(record.id),
            _ => None,
        });
        for id in accepting.collect::<Vec<_>>() {
            let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { continue };
            let waiters = std::mem::take(&mut live.waiters);
            let (due, rest): (Vec<_>, _) = waiters.into_iter().partition(|waiter| waiter.1 == Want::Due);
            live.waiters = rest;
            let owner = live.owner.filter(|_| !live.promised).map(|owner| owner.0);
            for (reply, want) in &due {
                self.drop_wait(*reply, *want);
                refuse(*reply, Refusal::StoreFailed { why: why.to_owned() }, out);
            }
            if due.iter().any(|(reply, _)| Some(*reply) == owner) {
                self.end_cancelled(now, id, "the store refuses writes, so it could not be promised", out);
            }
        }
    }

    fn drop_wait(&mut self, reply: ReplyId, want: Want) {
        self.replies.remove(&reply);
        if let Want::Until { until_us } = want {
            self.timers.remove(&(until_us, Timer::Until(reply)));
        }
    }

    /// The store is tried again with what is still to be kept.
    pub(super) fn store_again(&mut self, out: &mut Vec<Effect>) {
        for op in std::mem::take(&mut self.store.void) {
            let wanted = match &op {
                // Of a task that has ended meanwhile, its end says all.
                Op::TaskAccepted(record) => self.live(record.id).is_some(),
                Op::TaskDispatched { task, .. } | Op::TaskRequeued { task, .. } => self.live(*task).is_some(),
                Op::TaskEnded { .. } | Op::TaskLog { .. } | Op::NodeRegistered(_) | Op::NodeGone { .. } => {
                    true
                }
            };
            if wanted {
                self.emit(op, out);
            } else {
                self.store.done(&op);
            }
        }
    }
}
