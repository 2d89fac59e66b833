//! The end of a task, and cancels.

use super::state::{Ended, Entry, Live, Stored, Want};
use super::submit::refuse;
use super::{Core, Effect, NodeId, Now, Refusal, RunId, TaskId, TaskState};
use crate::{
    effect::{Answer, Order},
    event::{ClientId, ReplyId},
    record::Op,
    task::Phase,
};
use protocol::task::{ErrorCode, Json, TaskError};
use std::{collections::BTreeMap, sync::Arc};

/// Ids of tasks that are not kept any longer which are remembered as such.
const EXPIRED_KEPT: usize = 100_000;

/// How a task ended.
pub(super) struct End {
    pub(super) state: TaskState,
    pub(super) result: Option<Json>,
    pub(super) error: Option<TaskError>,
    /// The run that ended it, with its running and CPU time.
    pub(super) ran: Option<(RunId, NodeId, f64, f64)>,
}

impl End {
    pub(super) fn failed(error: TaskError) -> Self {
        Self { state: TaskState::Failed, result: None, error: Some(error), ran: None }
    }
}

fn whole_ms(ms: f64) -> u64 {
    // The wire bounds nothing here, so the cast saturates.
    ms.max(0.0).round() as u64
}

impl Core {
    /// A task ends, exactly once: it is not live any more.
    pub(super) fn end(&mut self, now: Now, id: TaskId, end: End, out: &mut Vec<Effect>) {
        self.unqueue(id);
        if self.live(id).is_none() {
            return;
        }
        let Some(Entry::Live(mut live)) = self.tasks.remove(&id) else { return };
        if live.life.phase() == Phase::Accepting {
            self.accepting -= 1;
        }
        let winner = end.ran.map(|(run, node, ..)| (run, node));
        for run in live.life.runs().map(|attempt| (attempt.run, attempt.node)).collect::<Vec<_>>() {
            if Some(run) == winner {
                self.release(run.1, run.0);
            } else {
                self.stop_run(now, run.1, run.0, out);
            }
        }
        if let Some((run, node)) = winner {
            // The task may have been taken from the run already, by a failure that ended it.
            self.release(node, run);
            live.last_node = Some(node);
        }
        self.live -= 1;
        self.live_bytes -= live.bytes;
        self.finished_rate.count(now.mono_us);
        match end.state {
            TaskState::Succeeded => self.counts.succeeded += 1,
            TaskState::Cancelled => self.counts.cancelled += 1,
            _ => self.counts.failed += 1,
        }
        self.changed(id, end.state, out);
        self.record_end(now, id, *live, end, out);
    }

    fn record_end(&mut self, now: Now, id: TaskId, live: Live, end: End, out: &mut Vec<Effect>) {
        let mut task = live.shown(id, now);
        task.state = end.state;
        task.result = end.result;
        task.error = end.error;
        task.finished_at = Some(now.wall);
        if let Some((_, _, run_ms, cpu_ms)) = end.ran {
            task.run_ms = Some(whole_ms(run_ms));
            task.cpu_ms = Some(whole_ms(cpu_ms));
        }
        let stored = live.stored != Stored::No;
        let log = if stored { self.log_to_write(id) } else { None };
        let winner = end.ran.map(|(run, node, ..)| (run, node));
        let before = if end.ran.is_some() { TaskState::Running } else { live.state() };
        let result_bytes = task.result.as_ref().map_or(0, |result| result.get().len() as u64);
        let mut ended = Ended {
            task: Arc::new(task),
            client: live.record.client,
            winner,
            last_run: winner.or_else(|| live.life.current().map(|last| (last.run, last.node))),
            stored,
            log: log.clone(),
            writing: stored,
            // Whoever has a 202 was told of a stored task: its end is told from the store too.
            durable: live.durable || live.promised && stored,
            before,
            waiters: live.waiters,
            decision: live.decision,
        };
        if !ended.durable {
            self.answer_ended(&mut ended, out);
        }
        if stored {
            let op = Op::TaskEnded { task: Arc::clone(&ended.task), client: ended.client, log };
            self.tasks.insert(id, Entry::Ended(Box::new(ended)));
            self.write(op, out);
            return;
        }
        if let Some((run, node)) = ended.winner {
            self.order(node, Order::Committed { run }, out);
        }
        self.tasks.insert(id, Entry::Ended(Box::new(ended)));
        self.keep_in_memory(id, live.bytes + result_bytes);
    }

    /// A task that ended without being stored stays readable for a while.
    fn keep_in_memory(&mut self, id: TaskId, bytes: u64) {
        self.ended_memory.push_back((id, bytes));
        self.ended_memory_bytes += bytes;
        while self.ended_memory.len() > self.config.ended_memory_kept
            || self.ended_memory_bytes > self.config.ended_memory_max_bytes && self.ended_memory.len() > 1
        {
            let Some((oldest, bytes)) = self.ended_memory.pop_front() else { return };
            self.ended_memory_bytes -= bytes;
            self.tasks.remove(&oldest);
            self.logs.take(oldest);
            self.expired.insert(oldest);
            self.expired_order.push_back(oldest);
            if self.expired_order.len() > EXPIRED_KEPT
                && let Some(forgotten) = self.expired_order.pop_front()
            {
                self.expired.remove(&forgotten);
            }
        }
    }

    pub(super) fn end_cancelled(&mut self, now: Now, id: TaskId, why: &str, out: &mut Vec<Effect>) {
        let error = TaskError { code: ErrorCode::Cancelled, message: why.to_owned() };
        let end = End { state: TaskState::Cancelled, result: None, error: Some(error), ran: None };
        self.end(now, id, end, out);
    }

    pub(super) fn cancel(&mut self, now: Now, id: TaskId, reply: ReplyId, out: &mut Vec<Effect>) {
        match self.tasks.get(&id) {
            None => refuse(reply, self.unknown(id), out),
            // A crash could undo an end that is still being written, so nobody is told of it yet.
            Some(Entry::Ended(ended)) if ended.is_open() => self.push_waiter(id, reply, Want::TooLate),
            Some(Entry::Ended(ended)) => refuse(reply, Refusal::Ended { state: ended.task.state }, out),
            Some(Entry::Live(live)) if live.life.phase() == Phase::Accepting => {
                refuse(reply, Refusal::NotFound, out);
            }
            Some(Entry::Live(_)) => {
                self.push_waiter(id, reply, Want::Cancelled);
                self.end_cancelled(now, id, "it was cancelled on request", out);
            }
        }
    }

    pub(super) fn cancel_labels(
        &mut self,
        now: Now,
        labels: &BTreeMap<String, String>,
        only: Option<ClientId>,
        reply: ReplyId,
        out: &mut Vec<Effect>,
    ) {
        let wanted = |live: &Live| {
            let has = |(key, value)| live.record.spec.labels.get(key) == Some(value);
            live.life.phase() != Phase::Accepting
                && only.is_none_or(|only| only == live.record.client)
                && !labels.is_empty()
                && labels.iter().all(has)
        };
        let found: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|(id, entry)| matches!(entry, Entry::Live(live) if wanted(live)).then_some(*id))
            .collect();
        let before = self.store.last;
        for id in &found {
            self.end_cancelled(now, *id, "it was cancelled by its labels", out);
        }
        let count = found.len() as u64;
        if self.store.last == before {
            out.push(Effect::Answer { reply, answer: Answer::CancelledCount(count), last: true });
        } else {
            self.store.counts.push((self.store.last, reply, count));
        }
    }
}
