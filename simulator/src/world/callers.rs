//! The callers: they submit, wait, read, cancel, and try again as the production policy says.

use super::{Caller, Ev, NodeAnswer, Request, World, summary_of};
use crate::{coverage::Fault, history::Entry, node::SimInput};
use protocol::{
    TaskId,
    task::{Durability, Task, TaskSpec},
};
use rand::Rng;
use scheduler::{
    effect::{Answer, Refusal},
    event::{ClientId, Event, Now, ReplyId, Submission, Wait},
};
use session::retry::{Decision, Outcome, Policy, Retry};
use std::sync::Arc;

/// How long a client waits for an answer, in microseconds.
const PATIENCE_US: u64 = 8_000_000;

impl World {
    pub(super) fn reply(&mut self, master: usize, caller: Caller) -> ReplyId {
        self.next_reply += 1;
        let reply = ReplyId(self.next_reply);
        self.waiting.insert(reply, (master, caller));
        reply
    }

    /// A request reaches a master: the one that leads, or one that forwards it.
    pub(super) fn request(&mut self, now_us: u64, request: Request, via: usize) {
        let Some(master) = self.route(now_us, via) else {
            return self.fail_request(&request, Outcome::Refused { retry_after_ms: None });
        };
        let stopped_us = self.machines[master].stopped_until_us;
        if stopped_us > now_us {
            return self.agenda.at(stopped_us, Ev::Request(request, via));
        }
        // The master looks at its lease before it answers.
        self.with_master(now_us, master, |_, _| {});
        let Some(brain) = self.machines[master].brain.as_ref() else {
            return self.fail_request(&request, Outcome::Refused { retry_after_ms: None });
        };
        let (until_us, now) = (brain.mono_us(now_us) + 5_000_000, brain.now(now_us));
        let (Request::Submit(number, operation)
        | Request::Wait(number, operation, _)
        | Request::Read(number, operation, _)
        | Request::Cancel(number, operation, _)
        | Request::Onlook(number, operation, _)) = request;
        let caller = match request {
            Request::Onlook(..) => Caller::Onlooker(number, operation),
            _ => Caller::Client(number, operation),
        };
        if let Request::Read(_, _, task) | Request::Onlook(_, _, task) = request {
            let answer = self.read(master, now, task);
            let reply = self.reply(master, caller);
            return self.answer(now_us, reply, answer);
        }
        // The shell of the real master looks into the store for what the scheduler has forgotten.
        if let Request::Wait(_, _, task) | Request::Cancel(_, _, task) = request
            && brain.core.task(task, now).is_none()
            && let Some(ended) = self.disk.ended(task).cloned()
        {
            let reply = self.reply(master, caller);
            return self.answer(now_us, reply, Answer::Finished(ended));
        }
        if self.is_lost(Fault::RequestLost) {
            return self.fail_request(&request, Outcome::Broken);
        }
        let reply = self.reply(master, caller);
        let event = match request {
            Request::Submit(..) => Event::Submit(Box::new(self.submission(now_us, number, reply, until_us))),
            Request::Cancel(_, _, task) => Event::Cancel { task, reply },
            Request::Wait(_, _, task) | Request::Read(_, _, task) | Request::Onlook(_, _, task) => {
                Event::Wait { task, reply, until_us }
            }
        };
        self.with_master(now_us, master, |master, out| master.event(now_us, event, out));
        // The connection breaks before the answer: both sides see it.
        if self.is_lost(Fault::AnswerLost) && self.waiting.remove(&reply).is_some() {
            self.fail_request(&request, Outcome::Broken);
            let gone = Event::ReplyGone { reply };
            self.with_master(now_us, master, |master, out| master.event(now_us, gone, out));
        }
    }

    fn fail_request(&mut self, request: &Request, outcome: Outcome) {
        let (Request::Submit(number, operation)
        | Request::Wait(number, operation, _)
        | Request::Read(number, operation, _)
        | Request::Cancel(number, operation, _)) = *request
        else {
            return;
        };
        let seen_us = self.delay();
        self.agenda.after(seen_us, Ev::RequestBroke(number, operation, outcome));
    }

    /// What the real master's shell answers to a `GET`: what the scheduler shows, else what the store has.
    fn read(&self, master: usize, now: Now, task: TaskId) -> Answer {
        let brain = self.machines[master].brain.as_ref();
        let live = brain.and_then(|brain| brain.core.task(task, now)).map(|(task, _)| task);
        match live.or_else(|| self.disk.ended(task).cloned()) {
            Some(task) if task.state.is_terminal() => Answer::Finished(task),
            Some(task) => Answer::Unfinished(task),
            None => Answer::Refused(Refusal::NotFound),
        }
    }

    /// Somebody who is not its client looks at some task, by some master.
    pub(super) fn look_on(&mut self, now_us: u64) {
        let pause_us = self.rng.random_range(50_000..500_000);
        self.agenda.after(pause_us, Ev::LookOn);
        let known = self.history.entries.iter().filter_map(|(number, entry)| Some((*number, entry.id?)));
        let known: Vec<_> = known.collect();
        if known.is_empty() {
            return;
        }
        let (number, task) = known[self.rng.random_range(0..known.len())];
        let via = self.rng.random_range(0..self.machines.len());
        let delay = self.delay();
        self.agenda.after(delay, Ev::Request(Request::Onlook(number, now_us, task), via));
    }

    pub(super) fn looked_on(&mut self, now_us: u64, number: u64, begun_us: u64, answer: &Answer) {
        match answer {
            Answer::Finished(task) | Answer::Unfinished(task) => {
                self.history.told(number, task, (begun_us, now_us));
            }
            Answer::Refused(Refusal::NotFound) => self.history.not_found(number, begun_us),
            _ => {}
        }
    }

    fn remember(&mut self, number: u64) {
        let poison = number < self.setup.poisoned;
        let fails = !poison && self.rng.random_bool(0.1);
        let durability = if self.setup.faults && self.rng.random_bool(0.25) {
            Durability::Memory
        } else {
            Durability::Disk
        };
        self.history.entries.entry(number).or_insert(Entry {
            id: None,
            value: if poison && self.setup.same_poison { 1 } else { number * 7 + 1 },
            fails,
            poison,
            child_killed: false,
            durability,
            acknowledged_us: None,
            promised: false,
            cancel_asked: false,
            refused: false,
            ended: None,
            end_seen_us: None,
        });
    }

    fn submission(&mut self, now_us: u64, number: u64, reply: ReplyId, until_us: u64) -> Submission {
        let entry = &self.history.entries[&number];
        // A task's size follows from its number, so that a repeated submit is the same body.
        let of_number = || 1_000 + (number * 7_919 % 40) * (number * 7_919 % 40) * 2_000;
        let same = entry.poison && self.setup.same_poison;
        let work_us = if same { 20_000 } else { self.setup.work_us.unwrap_or_else(of_number) };
        let input = SimInput { value: entry.value, work_us, fails: entry.fails, poison: entry.poison };
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

    pub(super) fn answer(&mut self, now_us: u64, reply: ReplyId, answer: Answer) {
        let delay = self.delay();
        let Some((master, caller)) = self.waiting.remove(&reply) else { return };
        // What is cut off sends nothing; whoever waits gives up after a while.
        if self.machines[master].cut_until_us > now_us && !matches!(caller, Caller::Node(..)) {
            return;
        }
        match caller {
            Caller::Client(number, operation) => {
                self.check_told(number, &answer);
                self.agenda.after(delay, Ev::Answered(number, operation, Box::new(answer)))
            }
            Caller::Onlooker(number, begun_us) => {
                self.check_told(number, &answer);
                self.agenda.after(delay, Ev::LookedOn(number, begun_us, Box::new(answer)));
            }
            Caller::Node(at, life) => {
                let node = match answer {
                    Answer::Registered { node, .. } => Some(node),
                    _ => None,
                };
                let back_us = (now_us + delay).max(self.nodes[at].cut_to_node_us);
                self.agenda.at(back_us, Ev::ToNode(at, life, NodeAnswer::Registered(node)));
            }
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

    pub(super) fn answered(&mut self, number: u64, operation: u64, answer: Answer) {
        // It may have given this one up, and asked another master.
        let Some((_, begun_us)) = self.operations.get(&number).copied().filter(|(at, _)| *at == operation)
        else {
            return;
        };
        self.operations.remove(&number);
        self.retries.remove(&number);
        let during = (begun_us, self.agenda.now_us());
        self.trace(|| format!("client of {number} is told {}", summary_of(&answer)));
        match answer {
            Answer::Accepted(task) | Answer::Unfinished(task) => {
                self.acknowledge(number, &task, during);
                let think_us = self.rng.random_range(1_000..3_000_000);
                self.agenda.after(think_us, Ev::Ask(number));
            }
            Answer::Finished(task) | Answer::Cancelled(task) => {
                let is_news = self.history.entries.get(&number).is_some_and(|entry| entry.ended.is_none());
                self.acknowledge(number, &task, during);
                // Some look again later, and must see the same.
                if is_news && self.rng.random_bool(0.3) {
                    let think_us = self.rng.random_range(1_000..3_000_000);
                    self.agenda.after(think_us, Ev::Ask(number));
                }
            }
            Answer::Refused(
                ref
                refusal @ (Refusal::Ended { .. } | Refusal::QueueFull { .. } | Refusal::StoreFailed { .. }),
            ) => {
                if matches!(refusal, Refusal::QueueFull { .. }) {
                    self.coverage.count(Fault::QueueFull);
                }
                self.agenda.after(1_000_000, Ev::Ask(number));
            }
            Answer::Refused(refusal) => self.refused(number, &refusal, begun_us),
            // The shell of the real master answers with what the store has.
            Answer::Stored(task) => match self.disk.ended(task).cloned() {
                Some(ended) => self.acknowledge(number, &ended, during),
                None => self
                    .history
                    .violations
                    .push(format!("submission {number} is task {task}, which no store has")),
            },
            Answer::CancelledCount(_) | Answer::Registered { .. } => {}
        }
    }

    fn acknowledge(&mut self, number: u64, task: &Task, during: (u64, u64)) {
        if let Some(entry) = self.history.entries.get_mut(&number) {
            entry.acknowledged_us.get_or_insert(during.1);
        }
        self.history.told(number, task, during);
    }

    fn refused(&mut self, number: u64, refusal: &Refusal, begun_us: u64) {
        self.history.not_found(number, begun_us);
        let Some(entry) = self.history.entries.get_mut(&number) else { return };
        if entry.acknowledged_us.is_some() && entry.ended.is_none() {
            self.history
                .violations
                .push(format!("submission {number} was acknowledged and is now refused: {refusal}"));
            return;
        }
        // A kind that no node has registered yet is a refusal that time mends.
        if matches!(refusal, Refusal::UnknownKind { .. }) {
            return self.agenda.after(500_000, Ev::Ask(number));
        }
        entry.refused = true;
    }

    /// A request broke: the production policy says whether it is sent again. A client that gives up on a task
    /// that it knows to be accepted comes back later all the same, as people do.
    pub(super) fn broke(&mut self, now_us: u64, number: u64, operation: u64, outcome: Outcome) {
        if self.operations.get(&number).is_none_or(|(at, _)| *at != operation) {
            return;
        }
        self.operations.remove(&number);
        let masters = self.machines.len() as u32;
        let fraction = self.rng.random();
        let Some(entry) = self.history.entries.get_mut(&number) else { return };
        let repeatable = entry.durability == Durability::Disk || entry.acknowledged_us.is_some();
        let (retry, since_us) = self
            .retries
            .entry(number)
            .or_insert_with(|| (Retry::new(Policy::PATIENT, repeatable, masters), now_us));
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

    pub(super) fn ask(&mut self, now_us: u64, number: u64) {
        if self.operations.contains_key(&number) {
            return;
        }
        self.remember(number);
        self.next_operation += 1;
        let operation = self.next_operation;
        let Some(entry) = self.history.entries.get_mut(&number) else { return };
        let request = match entry.id {
            Some(id) if entry.ended.is_some() => Request::Read(number, operation, id),
            None => Request::Submit(number, operation),
            Some(id) if !entry.cancel_asked && number % 13 == 5 => {
                entry.cancel_asked = true;
                Request::Cancel(number, operation, id)
            }
            // A client that started anew knows its key, not its task.
            Some(_) if entry.durability == Durability::Disk && self.rng.random_bool(0.2) => {
                Request::Submit(number, operation)
            }
            Some(id) if self.rng.random_bool(0.4) => Request::Read(number, operation, id),
            Some(id) => Request::Wait(number, operation, id),
        };
        self.operations.insert(number, (operation, now_us));
        let via = self.rng.random_range(0..self.machines.len());
        let delay = self.delay();
        self.agenda.after(delay, Ev::Request(request, via));
        self.agenda.after(PATIENCE_US, Ev::RequestBroke(number, operation, Outcome::Broken));
    }
}
