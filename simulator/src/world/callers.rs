//! The callers: they submit, wait, read, cancel, and try again as the production policy says.

use super::{Caller, Ev, NodeAnswer, Request, World, summary_of};
use crate::{history::Entry, node::SimInput};
use protocol::{
    TaskId,
    task::{Durability, Task, TaskSpec},
};
use rand::Rng;
use scheduler::{
    effect::{Answer, Refusal},
    event::{ClientId, Event, ReplyId, Submission, Wait},
};
use session::retry::{Decision, Outcome, Policy, Retry};
use std::sync::Arc;

impl World {
    pub(super) fn reply(&mut self, caller: Caller) -> ReplyId {
        self.next_reply += 1;
        let reply = ReplyId(self.next_reply);
        self.waiting.insert(reply, caller);
        reply
    }

    pub(super) fn request(&mut self, now_us: u64, request: &Request) {
        let number = match request {
            Request::Submit(number)
            | Request::Wait(number, _)
            | Request::Read(number, _)
            | Request::Cancel(number, _) => *number,
        };
        if matches!(request, Request::Submit(_)) {
            self.remember(number);
        }
        let Some(master) = self.master.as_ref() else {
            let delay = self.delay();
            return self.agenda.after(delay, Ev::RequestBroke(number, Outcome::NotConnected));
        };
        let until_us = master.mono_us(now_us) + 5_000_000;
        if let Request::Read(_, task) = request {
            return self.read(now_us, number, *task);
        }
        // The shell of the real master looks into the store for what the scheduler has forgotten.
        if let Request::Wait(_, task) | Request::Cancel(_, task) = request
            && master.core.task(*task, master.now(now_us)).is_none()
            && let Some(ended) = self.disk.ended(*task).cloned()
        {
            let reply = self.reply(Caller::Client(number));
            return self.answer(reply, Answer::Finished(ended));
        }
        if self.is_lost() {
            let seen_us = self.delay();
            return self.agenda.after(seen_us, Ev::RequestBroke(number, Outcome::Broken));
        }
        let reply = self.reply(Caller::Client(number));
        let event = match request {
            Request::Submit(_) => Event::Submit(Box::new(self.submission(now_us, number, reply, until_us))),
            Request::Wait(_, task) | Request::Read(_, task) => Event::Wait { task: *task, reply, until_us },
            Request::Cancel(_, task) => Event::Cancel { task: *task, reply },
        };
        self.with_master(now_us, |master, out| master.event(now_us, event, out));
        // The connection breaks before the answer: both sides see it.
        if self.is_lost() && self.waiting.remove(&reply).is_some() {
            let seen_us = self.delay();
            self.agenda.after(seen_us, Ev::RequestBroke(number, Outcome::Broken));
            self.with_master(now_us, |master, out| master.event(now_us, Event::ReplyGone { reply }, out));
        }
    }

    /// What the real master's shell answers to a `GET`: what the scheduler shows, else what the store has.
    fn read(&mut self, now_us: u64, number: u64, task: TaskId) {
        let Some(master) = self.master.as_ref() else { return };
        let live = master.core.task(task, master.now(now_us)).map(|(task, _)| task);
        let answer = match live.or_else(|| self.disk.ended(task).cloned()) {
            Some(task) if task.state.is_terminal() => Answer::Finished(task),
            Some(task) => Answer::Unfinished(task),
            None => Answer::Refused(Refusal::NotFound),
        };
        let reply = self.reply(Caller::Client(number));
        self.answer(reply, answer);
    }

    fn remember(&mut self, number: u64) {
        let fails = self.rng.random_bool(0.1);
        let durability = if self.rng.random_bool(0.25) { Durability::Memory } else { Durability::Disk };
        self.history.entries.entry(number).or_insert(Entry {
            id: None,
            value: number * 7 + 1,
            fails,
            durability,
            acknowledged: false,
            promised: false,
            cancel_asked: false,
            refused: false,
            ended: None,
        });
    }

    fn submission(&mut self, now_us: u64, number: u64, reply: ReplyId, until_us: u64) -> Submission {
        let entry = &self.history.entries[&number];
        // A task's size follows from its number, so that a repeated submit is the same body.
        let work_us = 1_000 + (number * 7_919 % 40) * (number * 7_919 % 40) * 2_000;
        let input = SimInput { value: entry.value, work_us, fails: entry.fails };
        let input = serde_json::value::to_raw_value(&input).ok().map(Arc::from);
        let durability = entry.durability;
        let mut spec = TaskSpec::new("work", input);
        spec.max_attempts = Some(10);
        let keyed = durability == Durability::Disk;
        Submission {
            id: self.task_id(now_us),
            spec,
            durability,
            client: ClientId(u128::from(number % 3)),
            key: keyed
                .then(|| (Arc::from(format!("key-{number}")), [u8::try_from(number % 251).unwrap_or(0); 32])),
            reply,
            wait: if keyed { Wait::Accepted } else { Wait::Until { until_us } },
        }
    }

    pub(super) fn task_id(&mut self, now_us: u64) -> TaskId {
        let millis = 1_767_225_600_000 + now_us / 1_000;
        TaskId(uuid::Builder::from_unix_timestamp_millis(millis, &self.rng.random()).into_uuid())
    }

    pub(super) fn answer(&mut self, reply: ReplyId, answer: Answer) {
        let delay = self.delay();
        match self.waiting.remove(&reply) {
            Some(Caller::Client(number)) => {
                self.check_told(number, &answer);
                self.agenda.after(delay, Ev::Answered(number, Box::new(answer)))
            }
            Some(Caller::Node(at, life)) => {
                let node = match answer {
                    Answer::Registered { node, .. } => Some(node),
                    _ => None,
                };
                self.agenda.after(delay, Ev::ToNode(at, life, NodeAnswer::Registered(node)));
            }
            None => {}
        }
    }

    /// Of a `disk` task, or one that was promised, nobody is told of an end that a crash could undo.
    fn check_told(&mut self, number: u64, answer: &Answer) {
        let Some(entry) = self.history.entries.get(&number) else { return };
        let ended = match answer {
            Answer::Accepted(task)
            | Answer::Finished(task)
            | Answer::Unfinished(task)
            | Answer::Cancelled(task) => Some(task.id).filter(|_| task.state.is_terminal()),
            Answer::Refused(Refusal::Ended { .. }) => entry.id,
            _ => None,
        };
        if let Some(id) = ended.filter(|id| entry.is_certain() && self.disk.ended(*id).is_none()) {
            self.history.violations.push(format!("the client of {id} is told of an end that is not on disk"));
        }
    }

    pub(super) fn answered(&mut self, number: u64, answer: Answer) {
        self.retries.remove(&number);
        self.trace(|| format!("client of {number} is told {}", summary_of(&answer)));
        match answer {
            Answer::Accepted(task) | Answer::Unfinished(task) => {
                self.acknowledge(number, &task);
                let think_us = self.rng.random_range(1_000..3_000_000);
                self.agenda.after(think_us, Ev::Ask(number));
            }
            Answer::Finished(task) | Answer::Cancelled(task) => {
                let is_news = self.history.entries.get(&number).is_some_and(|entry| entry.ended.is_none());
                self.acknowledge(number, &task);
                // Some look again later, and must see the same.
                if is_news && self.rng.random_bool(0.3) {
                    let think_us = self.rng.random_range(1_000..3_000_000);
                    self.agenda.after(think_us, Ev::Request(Request::Read(number, task.id)));
                }
            }
            Answer::Refused(
                Refusal::Ended { .. } | Refusal::QueueFull { .. } | Refusal::StoreFailed { .. },
            ) => {
                self.agenda.after(1_000_000, Ev::Ask(number));
            }
            Answer::Refused(refusal) => self.refused(number, &refusal),
            // The shell of the real master answers with what the store has.
            Answer::Stored(task) => match self.disk.ended(task).cloned() {
                Some(ended) => self.acknowledge(number, &ended),
                None => self
                    .history
                    .violations
                    .push(format!("submission {number} is task {task}, which no store has")),
            },
            Answer::CancelledCount(_) | Answer::Registered { .. } => {}
        }
    }

    fn acknowledge(&mut self, number: u64, task: &Task) {
        if let Some(entry) = self.history.entries.get_mut(&number) {
            entry.acknowledged = true;
        }
        self.history.told(number, task);
    }

    fn refused(&mut self, number: u64, refusal: &Refusal) {
        let Some(entry) = self.history.entries.get_mut(&number) else { return };
        if entry.acknowledged && entry.ended.is_none() {
            self.history
                .violations
                .push(format!("submission {number} was acknowledged and is now refused: {refusal}"));
            return;
        }
        // A kind that no node has registered yet is a refusal that time mends.
        if matches!(refusal, Refusal::UnknownKind { .. }) {
            return self.agenda.after(500_000, Ev::Request(Request::Submit(number)));
        }
        entry.refused = true;
    }

    /// A request broke: the production policy says whether it is sent again. A client that gives up on a task
    /// that it knows to be accepted comes back later all the same, as people do.
    pub(super) fn broke(&mut self, now_us: u64, number: u64, outcome: Outcome) {
        let fraction = self.rng.random();
        let Some(entry) = self.history.entries.get_mut(&number) else { return };
        let repeatable = entry.durability == Durability::Disk || entry.acknowledged;
        let (retry, since_us) = self
            .retries
            .entry(number)
            .or_insert_with(|| (Retry::new(Policy::PATIENT, repeatable, 1), now_us));
        match retry.decide((now_us - *since_us) / 1_000, outcome, fraction) {
            Decision::Again { after_ms, .. } => self.agenda.after(after_ms * 1_000 + 1_000, Ev::Ask(number)),
            Decision::GiveUp => {
                self.retries.remove(&number);
                if repeatable {
                    self.agenda.after(1_000_000, Ev::Ask(number));
                } else {
                    entry.refused = true;
                }
            }
        }
    }

    pub(super) fn ask(&mut self, number: u64) {
        let Some(entry) = self.history.entries.get_mut(&number) else { return };
        if entry.ended.is_some() {
            return;
        }
        let request = match entry.id {
            None => Request::Submit(number),
            Some(id) if !entry.cancel_asked && number % 13 == 5 => {
                entry.cancel_asked = true;
                Request::Cancel(number, id)
            }
            // A client that started anew knows its key, not its task.
            Some(_) if entry.durability == Durability::Disk && self.rng.random_bool(0.2) => {
                Request::Submit(number)
            }
            Some(id) if self.rng.random_bool(0.4) => Request::Read(number, id),
            Some(id) => Request::Wait(number, id),
        };
        let delay = self.delay();
        self.agenda.after(delay, Ev::Request(request));
    }
}
