//! Accepting tasks, and the callers that wait for them.

use super::state::{Ended, Entry, Live, Stored, Want};
use super::{Core, Effect, KindId, Now, Refusal, TaskId, TaskState, Timer, size_of};
use crate::{
    effect::Answer,
    estimate::Estimate,
    event::{ClientId, ReplyId, Submission, Wait},
    idempotency::Seen,
    queue::{Class, Item},
    record::{Op, TaskRecord},
    suspects::Fingerprint,
    task::{Life, Phase},
};
use protocol::task::{Durability, Resources, TaskSpec};
use std::{cmp::Reverse, sync::Arc};

/// How long a `memory` task lives before it is stored, in microseconds.
const PERSIST_AFTER_US: u64 = 100_000;
/// What a waiting task takes beside its input, in bytes.
const TASK_BYTES: u64 = 1_024;
/// A client with less than this part of the queue's bound in it …
const LITTLE_PART: u64 = 100;
/// … is admitted past the bound, up to this part of it more.
const ROOM_PART: u64 = 10;
/// Longest advice to try again, in seconds.
const MOST_RETRY_AFTER_S: f64 = 60.0;

pub(super) fn bytes_of(spec: &TaskSpec) -> u64 {
    let labels: usize = spec.labels.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
    TASK_BYTES + (spec.kind.len() + labels + spec.input.as_ref().map_or(0, |input| input.get().len())) as u64
}

impl Core {
    pub(super) fn submit(&mut self, now: Now, submission: Submission, out: &mut Vec<Effect>) {
        let Submission { id, mut spec, durability, client, key, reply, wait } = submission;
        if let Some((key, body)) = &key {
            match self.keys.seen(client, key, body) {
                Seen::New => {}
                Seen::Same(task) => return self.attach(now, task, reply, wait, out),
                Seen::OtherBody => return refuse(reply, Refusal::KeyReused, out),
            }
        }
        // Before it is stored, so that the task stays as it was accepted whatever is said of its kind later.
        if let Some(kind) = self.kinds.get(&spec.kind, now.mono_us) {
            spec.fill_from(kind);
        }
        if let Err(refusal) = self.admit(&spec, client, now.mono_us) {
            return refuse(reply, refusal, out);
        }
        // A key that was promised 24 h is never forgotten for a new one.
        if key.is_some()
            && let Some((keys, left_us)) = self.keys.full(now.mono_us, self.config.keys_max)
        {
            // At most 24 h and at most the bound, so the casts are exact.
            let (keys, retry_after_s) = (keys as u64, (left_us / 1_000_000) as u32 + 1);
            return refuse(reply, Refusal::KeysFull { keys, retry_after_s }, out);
        }
        // What is promised before it ends has to be stored first, whatever the class.
        let durable = durability == Durability::Disk
            || key.is_some()
            || matches!(wait, Wait::Accepted | Wait::Stream { ack: true });
        if let Some((key, body)) = &key {
            self.keys.insert(now.mono_us, client, Arc::clone(key), *body, id);
        }
        let record = Arc::new(TaskRecord { id, spec, client, key, submitted_at: now.wall });
        let life = Life::new(&record.spec, !durable);
        let arrival_us = i64::try_from(now.mono_us).unwrap_or(i64::MAX);
        let mut live = self.make_live(Arc::clone(&record), life, arrival_us, durable);
        live.owner = (!durable).then_some((reply, matches!(wait, Wait::Stream { .. })));
        live.stored = if durable { Stored::Writing } else { Stored::No };
        self.live += 1;
        self.live_bytes += live.bytes;
        self.tasks.insert(id, Entry::Live(Box::new(live)));
        self.add_waiter(id, reply, wait);
        if durable {
            self.accepting += 1;
            self.write_through(Op::TaskAccepted(record), out);
        } else {
            self.accepted_rate.count(now.mono_us);
            // Rounded up to 10 ms, so that many tasks share one wake-up.
            let persist_us = (now.mono_us + PERSIST_AFTER_US).next_multiple_of(10_000);
            self.timers.insert((persist_us, Timer::Persist(id)));
            self.begin(id, out);
        }
    }

    /// A task is accepted: its deadline runs, and it waits.
    pub(super) fn begin(&mut self, id: TaskId, out: &mut Vec<Effect>) {
        if let Some(deadline_us) = self.live(id).and_then(|live| live.deadline_us) {
            self.timers.insert((deadline_us, Timer::Deadline(id)));
        }
        self.enqueue(id);
        self.changed(id, TaskState::Queued, out);
    }

    fn admit(&self, spec: &TaskSpec, client: ClientId, now_us: u64) -> Result<(), Refusal> {
        if self.kinds.get(&spec.kind, now_us).is_none() {
            let near = self.kinds.nearest(&spec.kind, now_us);
            return Err(Refusal::UnknownKind { kind: spec.kind.clone(), near });
        }
        self.could_ever_fit(spec, now_us)?;
        let tasks = self.queue.len() + self.accepting;
        // Whoever has little here finds room although others have filled the queue.
        let has_little = self.queue.len_of(client) < self.config.queue_max_tasks / LITTLE_PART;
        let bound = |most: u64| if has_little { most + most / ROOM_PART } else { most };
        if tasks >= bound(self.config.queue_max_tasks)
            || self.live_bytes + bytes_of(spec) > bound(self.config.queue_max_bytes)
        {
            // Half of the queue's time: a caller that comes back then finds room.
            let half_s = self.queue.cpu_s() / self.index.effective_cores().max(0.1) / 2.0;
            let retry_after_s = half_s.clamp(1.0, MOST_RETRY_AFTER_S) as u32;
            return Err(Refusal::QueueFull { tasks, bytes: self.live_bytes, retry_after_s });
        }
        if self.store.unwritten_bytes >= self.config.unwritten_max_bytes {
            let why = format!("{} bytes of changes wait to be written", self.store.unwritten_bytes);
            return Err(Refusal::StoreFailed { why });
        }
        Ok(())
    }

    pub(super) fn make_live(
        &mut self,
        record: Arc<TaskRecord>,
        life: Life,
        arrival_us: i64,
        durable: bool,
    ) -> Live {
        let kind_id = self.kinds.id(&record.spec.kind);
        let deadline_us = record.spec.deadline_ms.map(|deadline_ms| {
            let after = i64::try_from(deadline_ms.saturating_mul(1_000)).unwrap_or(i64::MAX / 2);
            u64::try_from(arrival_us.saturating_add(after)).unwrap_or(0)
        });
        let class = class_of(&record.spec, kind_id);
        let size = size_of(&record.spec.kind, record.spec.input.as_deref(), class.slots());
        Live {
            kind: self.kinds.name(kind_id),
            resources: record.spec.resources.unwrap_or_default().into(),
            class,
            print: Fingerprint::of(&record.spec.kind, record.spec.input.as_ref().map(|input| input.get())),
            size,
            estimate: Estimate { cpu_s: 0.0, off_cpu_s: 0.0, sigma: f64::INFINITY },
            item: None,
            arrival_us,
            queued_as_us: arrival_us,
            deadline_us,
            bytes: bytes_of(&record.spec),
            durable,
            stored: Stored::No,
            promised: false,
            owner: None,
            waiters: Vec::new(),
            last_node: life.current().map(|attempt| attempt.node),
            started: life.current().map(|attempt| (arrival_us, attempt.started_at)),
            decision: None,
            life,
            record,
        }
    }

    /// A task waits for a node.
    pub(super) fn enqueue(&mut self, id: TaskId) {
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        live.estimate = self.estimates.of(&live.kind, live.size);
        let item = Item::new(live.queued_as_us, &live.estimate);
        live.item = Some(item);
        if self.queue.push((live.class, live.record.client), id, item) {
            self.fresh.insert(live.class);
        }
    }

    /// A task waits no longer.
    pub(super) fn unqueue(&mut self, id: TaskId) {
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        if let Some(item) = live.item.take()
            && let Some(reserved) = self.queue.remove((live.class, live.record.client), id, item)
        {
            self.touched.insert(reserved);
        }
    }

    fn add_waiter(&mut self, id: TaskId, reply: ReplyId, wait: Wait) {
        let want = match wait {
            Wait::Accepted => Want::Accepted,
            Wait::Stream { ack } => Want::Stream { ack },
            Wait::Until { until_us } => {
                self.timers.insert((until_us, Timer::Until(reply)));
                Want::Until { until_us }
            }
        };
        self.push_waiter(id, reply, want);
    }

    pub(super) fn push_waiter(&mut self, id: TaskId, reply: ReplyId, want: Want) {
        self.replies.insert(reply, id);
        match self.tasks.get_mut(&id) {
            Some(Entry::Live(live)) => live.waiters.push((reply, want)),
            Some(Entry::Ended(ended)) => ended.waiters.push((reply, want)),
            None => {}
        }
    }

    /// A caller comes to a task that is there already, by its idempotency key.
    fn attach(&mut self, now: Now, id: TaskId, reply: ReplyId, wait: Wait, out: &mut Vec<Effect>) {
        let say = |answer, last, out: &mut Vec<Effect>| out.push(Effect::Answer { reply, answer, last });
        match self.tasks.get(&id) {
            None => say(Answer::Stored(id), true, out),
            Some(Entry::Ended(ended)) if !ended.is_open() => {
                let task = Arc::clone(&ended.task);
                match wait {
                    Wait::Accepted => say(Answer::Accepted(task), true, out),
                    Wait::Stream { ack } => {
                        if ack {
                            say(Answer::Accepted(Arc::clone(&task)), false, out);
                        }
                        say(Answer::Finished(task), true, out);
                    }
                    Wait::Until { .. } => say(Answer::Finished(task), true, out),
                }
            }
            Some(Entry::Live(live)) if live.stored == Stored::Yes => match wait {
                Wait::Accepted => say(Answer::Accepted(Arc::new(live.shown(id, now))), true, out),
                Wait::Stream { ack } => {
                    if ack {
                        say(Answer::Accepted(Arc::new(live.shown(id, now))), false, out);
                    }
                    self.add_waiter(id, reply, Wait::Stream { ack: false });
                }
                Wait::Until { .. } => self.add_waiter(id, reply, wait),
            },
            Some(_) => self.add_waiter(id, reply, wait),
        }
    }

    pub(super) fn wait(
        &mut self,
        now: Now,
        id: TaskId,
        reply: ReplyId,
        until_us: u64,
        out: &mut Vec<Effect>,
    ) {
        match self.tasks.get(&id) {
            None => refuse(reply, self.unknown(id), out),
            Some(Entry::Live(live)) if live.life.phase() == Phase::Accepting => {
                refuse(reply, Refusal::NotFound, out);
            }
            Some(_) => self.attach(now, id, reply, Wait::Until { until_us }, out),
        }
    }

    pub(super) fn unknown(&self, id: TaskId) -> Refusal {
        if self.expired(id) { Refusal::Gone } else { Refusal::NotFound }
    }

    /// A caller has waited long enough: told how the task is, once it is stored.
    pub(super) fn until(&mut self, now: Now, reply: ReplyId, out: &mut Vec<Effect>) {
        let Some(id) = self.replies.get(&reply).copied() else { return };
        match self.tasks.get_mut(&id) {
            Some(Entry::Live(live)) => {
                if let Some(waiter) = live.waiters.iter_mut().find(|waiter| waiter.0 == reply) {
                    waiter.1 = Want::Due;
                }
                self.persist(id, out);
                self.answer_stored(now, id, out);
            }
            // Its end is not certain yet, and may not be for as long as the store fails.
            Some(Entry::Ended(ended)) if ended.is_open() => {
                ended.waiters.retain(|waiter| waiter.0 != reply);
                let answer = Answer::Unfinished(ended.shown());
                self.replies.remove(&reply);
                out.push(Effect::Answer { reply, answer, last: true });
            }
            Some(Entry::Ended(_)) | None => {}
        }
    }

    /// Tells those who wait for no more than a task's being stored.
    pub(super) fn answer_stored(&mut self, now: Now, id: TaskId, out: &mut Vec<Effect>) {
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        let due = |want: &Want| matches!(want, Want::Accepted | Want::Due | Want::Stream { ack: true });
        if live.stored != Stored::Yes || !live.waiters.iter().any(|waiter| due(&waiter.1)) {
            return;
        }
        let task = Arc::new(live.shown(id, now));
        live.promised = true;
        live.waiters.retain_mut(|(reply, want)| {
            let (answer, last) = match want {
                Want::Accepted => (Answer::Accepted(Arc::clone(&task)), true),
                Want::Due => (Answer::Unfinished(Arc::clone(&task)), true),
                Want::Stream { ack: true } => (Answer::Accepted(Arc::clone(&task)), false),
                _ => return true,
            };
            out.push(Effect::Answer { reply: *reply, answer, last });
            if last {
                self.replies.remove(reply);
            } else {
                *want = Want::Stream { ack: false };
            }
            !last
        });
    }

    /// Tells everybody that a task has ended.
    pub(super) fn answer_ended(&mut self, ended: &mut Ended, out: &mut Vec<Effect>) {
        for (reply, want) in std::mem::take(&mut ended.waiters) {
            self.replies.remove(&reply);
            if let Want::Until { until_us } = want {
                self.timers.remove(&(until_us, Timer::Until(reply)));
            }
            let task = Arc::clone(&ended.task);
            if want == (Want::Stream { ack: true }) {
                out.push(Effect::Answer { reply, answer: Answer::Accepted(Arc::clone(&task)), last: false });
            }
            let answer = match want {
                Want::Accepted => Answer::Accepted(task),
                Want::Cancelled => Answer::Cancelled(task),
                Want::TooLate => Answer::Refused(Refusal::Ended { state: task.state }),
                Want::Stream { .. } | Want::Until { .. } | Want::Due => Answer::Finished(task),
            };
            out.push(Effect::Answer { reply, answer, last: true });
        }
    }

    pub(super) fn reply_gone(&mut self, now: Now, reply: ReplyId, out: &mut Vec<Effect>) {
        self.store.counts.retain(|waiting| waiting.1 != reply);
        let Some(id) = self.replies.remove(&reply) else { return };
        let waiters = match self.tasks.get_mut(&id) {
            Some(Entry::Live(live)) => &mut live.waiters,
            Some(Entry::Ended(ended)) => &mut ended.waiters,
            None => return,
        };
        if let Some(at) = waiters.iter().position(|waiter| waiter.0 == reply)
            && let (_, Want::Until { until_us }) = waiters.swap_remove(at)
        {
            self.timers.remove(&(until_us, Timer::Until(reply)));
        }
        if let Some(live) = self.live(id)
            && let Some((owner, stream)) = live.owner
            && owner == reply
            && !live.promised
            // A stream's tasks are the cluster's once they are stored; a single wait's once it was told so.
            && !(stream && live.stored == Stored::Yes)
        {
            self.end_cancelled(now, id, "its caller went away before it was promised", out);
        }
    }

    /// Stores a `memory` task that lives on.
    pub(super) fn persist(&mut self, id: TaskId, out: &mut Vec<Effect>) {
        let Some(Entry::Live(live)) = self.tasks.get_mut(&id) else { return };
        if live.stored != Stored::No {
            return;
        }
        live.stored = Stored::Writing;
        let record = Arc::clone(&live.record);
        let attempt = live.life.attempt();
        let dispatched = live.life.current().map(|current| Op::TaskDispatched {
            task: id,
            run: current.run,
            node: current.node,
            attempt,
            at: current.started_at,
        });
        self.write(Op::TaskAccepted(record), out);
        if let Some(op) = dispatched {
            self.write(op, out);
        } else if attempt > 0 {
            self.write(Op::TaskRequeued { task: id, attempt }, out);
        }
    }
}

pub(super) fn class_of(spec: &TaskSpec, kind: KindId) -> Class {
    let resources = Resources::from(spec.resources.unwrap_or_default());
    Class {
        priority: Reverse(spec.priority),
        kind,
        // At most 4,096 cores; the shell has checked it.
        milli_cores: (resources.cores.clamp(0.001, protocol::node::MAX_CORES) * 1e3).ceil() as u64,
        memory_bytes: resources.memory_bytes,
        free_bytes: 0,
        alone: None,
    }
}

pub(super) fn refuse(reply: ReplyId, refusal: Refusal, out: &mut Vec<Effect>) {
    out.push(Effect::Answer { reply, answer: Answer::Refused(refusal), last: true });
}
