//! A master's shell for tests: a clock that the test moves, a store that can fail, and what was said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    node::{CpuSample, CpuSource, KindInfo, MemorySample, NodeRegistration, NodeStatus, Report, RunningTask},
    task::{Durability, ErrorCode, ResourceRequest, Task, TaskError, TaskSpec, TaskState},
    work::{Outcome, RunRef},
};
use scheduler::{
    Config, Core,
    effect::{Answer, Change, Effect, Order, Refusal, WriteSeq},
    event::{ClientId, Event, Now, ReplyId, RunEnded, Submission, Wait},
    record::{Op, Recovered},
};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

pub fn node(number: u128) -> NodeId {
    NodeId(Uuid::from_u128(number))
}

pub fn boot(number: u128) -> BootId {
    BootId(Uuid::from_u128(number))
}

pub fn kind(name: &str) -> KindInfo {
    KindInfo { name: name.to_owned(), ..KindInfo::default() }
}

pub fn registration(number: u128, cores: f64) -> NodeRegistration {
    NodeRegistration {
        name: format!("n{number}"),
        ip: [10, 0, 0, 1].into(),
        pool: "default".to_owned(),
        allotted_cores: cores,
        memory_bytes: 256 << 20,
        kinds: protocol::kinds::built_in().into_iter().chain([kind("own")]).collect(),
        labels: BTreeMap::new(),
        version: "1".to_owned(),
        boot_id: boot(number),
        runtime_id: None,
    }
}

pub fn spec(kind: &str, input: &str) -> TaskSpec {
    TaskSpec::new(kind, Some(Arc::from(RawValue::from_string(input.to_owned()).unwrap())))
}

pub fn burn(cpu_ms: u64) -> TaskSpec {
    spec("burn", &format!(r#"{{"cpu_ms":{cpu_ms}}}"#))
}

pub fn sample(cores: f64, obtained: Option<f64>, others: f64) -> CpuSample {
    CpuSample {
        allotted_cores: cores,
        used_cores: 0.0,
        own_cores: 0.0,
        obtained_share: obtained,
        others_share: others,
        throttled_ratio: 0.0,
        source: CpuSource::CgroupV1,
    }
}

pub struct World {
    pub core: Core,
    pub now_us: u64,
    pub answers: Vec<(ReplyId, Answer, bool)>,
    pub sent: Vec<(NodeId, Order)>,
    pub ops: Vec<Op>,
    pub closed: Vec<NodeId>,
    pub changes: Vec<Change>,
    pub waiting_writes: Vec<(WriteSeq, Op)>,
    pub wake_us: Option<u64>,
    /// Whether writes are durable at once.
    pub store_works: bool,
    pub reports: BTreeMap<NodeId, u64>,
    next: u128,
}

impl Default for World {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl World {
    pub fn new(config: Config) -> Self {
        Self::recovered(config, Recovered::default())
    }

    pub fn recovered(config: Config, recovered: Recovered) -> Self {
        let now_us = 1_000_000;
        let mut world = Self {
            core: Core::new(config, at(now_us), recovered),
            now_us,
            answers: Vec::new(),
            sent: Vec::new(),
            ops: Vec::new(),
            closed: Vec::new(),
            changes: Vec::new(),
            waiting_writes: Vec::new(),
            wake_us: None,
            store_works: true,
            reports: BTreeMap::new(),
            next: 1_000,
        };
        let mut out = Vec::new();
        world.core.start(at(now_us), &mut out);
        world.perform(out);
        world
    }

    pub fn now(&self) -> Now {
        at(self.now_us)
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.core.step(self.now(), event, &mut out);
        self.perform(out);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write { seq, op } => {
                    self.ops.push(op.clone());
                    self.waiting_writes.push((seq, op));
                }
                Effect::Send { node, order } => self.sent.push((node, order)),
                Effect::CloseChannel { node } => self.closed.push(node),
                Effect::Answer { reply, answer, last } => self.answers.push((reply, answer, last)),
                Effect::Changed(change) => self.changes.push(change),
                Effect::WakeAt { mono_us } => self.wake_us = Some(mono_us),
            }
        }
        if self.store_works {
            self.commit();
        }
    }

    /// All writes so far are durable.
    pub fn commit(&mut self) {
        if let Some((through, _)) = self.waiting_writes.last().cloned() {
            self.waiting_writes.clear();
            self.event(Event::Written { through });
        }
    }

    /// All writes so far failed.
    pub fn fail(&mut self) {
        if let Some((through, _)) = self.waiting_writes.last().cloned() {
            self.waiting_writes.clear();
            self.event(Event::WriteFailed { through, why: "disk full".to_owned() });
        }
    }

    /// Time passes, with a tick whenever one was asked for; `speaking` nodes are heard of meanwhile.
    pub fn pass_ms(&mut self, ms: u64, speaking: &[NodeId]) {
        let end_us = self.now_us + ms * 1_000;
        let mut next_word_us = self.now_us;
        while self.now_us < end_us {
            let tick_us = self.wake_us.unwrap_or(end_us).max(self.now_us);
            self.now_us = tick_us.min(next_word_us).min(end_us);
            if self.now_us >= next_word_us {
                for id in speaking {
                    self.event(Event::Heard { node: *id });
                }
                next_word_us += 400_000;
            }
            if self.wake_us.is_some_and(|wake_us| wake_us <= self.now_us) {
                self.wake_us = None;
                self.event(Event::Tick);
            }
        }
    }

    pub fn next_id(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    pub fn reply(&mut self) -> ReplyId {
        ReplyId(self.next_id() as u64)
    }

    /// Registers a node and opens its channel.
    pub fn join(&mut self, number: u128, cores: f64) -> NodeId {
        self.register(registration(number, cores), number, None);
        self.up(number, &[]);
        node(number)
    }

    pub fn register(&mut self, registration: NodeRegistration, id: u128, replaces: Option<NodeId>) -> Answer {
        let reply = self.reply();
        let mut session_hash = [0; 32];
        session_hash[..16].copy_from_slice(&id.to_be_bytes());
        self.event(Event::Register {
            node: node(id),
            session_hash,
            replaces,
            registration: Box::new(registration),
            reply,
        });
        self.told(reply).unwrap()
    }

    pub fn up(&mut self, number: u128, runs: &[RunRef]) {
        let event = Event::ChannelUp {
            node: node(number),
            boot_id: boot(number),
            runs: runs.to_vec(),
            draining: false,
        };
        self.event(event);
    }

    pub fn report(&mut self, id: NodeId, cpu: CpuSample) {
        self.report_memory(id, cpu, 256 << 20, Vec::new());
    }

    /// A report with this limit of memory, and what is running.
    pub fn report_memory(&mut self, id: NodeId, cpu: CpuSample, limit_bytes: u64, running: Vec<RunningTask>) {
        let seq = self.reports.entry(id).or_default();
        *seq += 1;
        let report = Report {
            seq: *seq,
            boot_id: BootId(id.0),
            ip: [10, 0, 0, 1].into(),
            status: NodeStatus::Ready,
            cpu,
            memory: MemorySample { used_bytes: 0, limit_bytes },
            running,
        };
        self.event(Event::Report { node: id, report: Box::new(report) });
    }

    pub fn submission(&mut self, spec: TaskSpec, durability: Durability, wait: Wait) -> Submission {
        Submission {
            id: TaskId(Uuid::from_u128(self.next_id())),
            spec,
            durability,
            client: ClientId(1),
            key: None,
            reply: self.reply(),
            wait,
        }
    }

    /// Submits as `POST` without `wait` does.
    pub fn submit(&mut self, spec: TaskSpec) -> (TaskId, ReplyId) {
        let submission = self.submission(spec, Durability::Disk, Wait::Accepted);
        self.send(submission)
    }

    /// Submits as `POST` with `?wait=` does.
    pub fn submit_memory(&mut self, spec: TaskSpec, wait_ms: u64) -> (TaskId, ReplyId) {
        let wait = Wait::Until { until_us: self.now_us + wait_ms * 1_000 };
        let submission = self.submission(spec, Durability::Memory, wait);
        self.send(submission)
    }

    pub fn send(&mut self, submission: Submission) -> (TaskId, ReplyId) {
        let ids = (submission.id, submission.reply);
        self.event(Event::Submit(Box::new(submission)));
        ids
    }

    /// Waits for the end of a task.
    pub fn wait(&mut self, task: TaskId) -> ReplyId {
        let reply = self.reply();
        self.event(Event::Wait { task, reply, until_us: self.now_us + 3_600_000_000 });
        reply
    }

    /// The last thing that this caller was told.
    pub fn told(&self, reply: ReplyId) -> Option<Answer> {
        self.answers.iter().rev().find(|answer| answer.0 == reply).map(|answer| answer.1.clone())
    }

    pub fn refusal(&self, reply: ReplyId) -> Refusal {
        match self.told(reply) {
            Some(Answer::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    pub fn finished(&self, reply: ReplyId) -> Arc<Task> {
        match self.told(reply) {
            Some(Answer::Finished(task)) => task,
            other => panic!("{other:?}"),
        }
    }

    /// Where a task was handed out last.
    pub fn run_of(&self, task: TaskId) -> Option<(NodeId, RunId)> {
        self.runs_of(task).last().copied()
    }

    pub fn runs_of(&self, task: TaskId) -> Vec<(NodeId, RunId)> {
        self.sent
            .iter()
            .filter_map(|(node, order)| match order {
                Order::Run { task: sent, run, .. } if *sent == task => Some((*node, *run)),
                _ => None,
            })
            .collect()
    }

    pub fn cancelled(&self, run: RunId) -> bool {
        self.sent.iter().any(|(_, order)| matches!(order, Order::Cancel { run: sent } if *sent == run))
    }

    pub fn committed(&self, run: RunId) -> bool {
        self.sent.iter().any(|(_, order)| matches!(order, Order::Committed { run: sent } if *sent == run))
    }

    pub fn end(&mut self, node: NodeId, task: TaskId, run: RunId, outcome: Outcome) {
        let succeeded = outcome == Outcome::Succeeded;
        self.event(Event::RunEnded(Box::new(RunEnded {
            node,
            task,
            run,
            outcome,
            result: succeeded.then(|| Arc::from(RawValue::from_string("1".to_owned()).unwrap())),
            run_ms: 10.0,
            cpu_ms: 10.0,
            sample: None,
            log: None,
        })));
    }

    /// The task's last run succeeds.
    pub fn succeed(&mut self, task: TaskId) {
        let (node, run) = self.run_of(task).unwrap();
        self.end(node, task, run, Outcome::Succeeded);
    }

    /// The task's last run fails.
    pub fn fail_run(&mut self, task: TaskId, code: ErrorCode) {
        let (node, run) = self.run_of(task).unwrap();
        self.end(node, task, run, Outcome::Failed(TaskError { code, message: "no".to_owned() }));
    }

    pub fn task(&self, id: TaskId) -> Arc<Task> {
        self.core.task(id, self.now()).unwrap().0
    }

    pub fn state(&self, id: TaskId) -> TaskState {
        self.task(id).state
    }

    pub fn status(&self, id: NodeId) -> NodeStatus {
        self.core.node(id, self.now()).unwrap().status
    }

    pub fn kill(&mut self, id: NodeId) {
        let exit =
            protocol::node::ExitReport { exit_code: Some(137), oom_killed: false, reason: String::new() };
        self.event(Event::Exited { node: id, exit });
    }
}

pub fn with_memory(mut spec: TaskSpec, memory_bytes: u64) -> TaskSpec {
    spec.resources = Some(ResourceRequest { cores: None, memory_bytes: Some(memory_bytes) });
    spec
}

pub const fn at(now_us: u64) -> Now {
    Now { mono_us: now_us, wall: Timestamp(1_795_232_400_000 + (now_us / 1_000) as i64) }
}
