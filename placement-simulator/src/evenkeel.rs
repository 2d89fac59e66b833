//! The production scheduler as a balancer: events in, effects out, nothing between.
//!
//! It is fed what a master feeds it: registrations, open channels, submissions, results with samples, reports, signs
//! of life, evidence of exits. Its store is durable 3 ms after each write.

use crate::{
    balancer::{Balancer, End, Moment, Order},
    work::{Known, Task},
};
use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    node::{CpuSample, ExitReport, KindInfo, MemorySample, NodeRegistration, NodeStatus, Report},
    task::{Durability, ErrorCode, ResourceRequest, TaskError, TaskSpec, TaskState},
    work::{Outcome, RunRef},
};
use scheduler::{
    Config, Core, Policy,
    effect::{Answer, Effect, Order as CoreOrder, WriteSeq},
    event::{ClientId, Event, Now, ReplyId, RunEnded, Submission, Wait},
    record::Recovered,
};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use uuid::Uuid;

/// How long the store takes, in microseconds: one group commit.
const COMMIT_US: u64 = 3_000;
/// How long after a process died its manager's evidence comes, in microseconds.
const EVIDENCE_US: u64 = 100_000;
/// Memory of each node; tasks ask for none.
const MEMORY_BYTES: u64 = 256 << 20;
/// Kinds that are told apart by powers of two, for tasks whose size is learned: 1 ms … 4,194 s.
const LEARNED: u32 = 23;
/// The kind of tasks of which nothing is known.
const UNKNOWN: &str = "job";

/// The production scheduler.
pub struct Evenkeel {
    core: Core,
    /// Whether it is told what the CPU samples say.
    sees_cpu: bool,
    boots: Vec<u128>,
    reports: Vec<u64>,
    connected: Vec<bool>,
    dead: BTreeSet<usize>,
    /// When evidence of which node's end comes.
    evidence: VecDeque<(u64, usize)>,
    /// Runs handed out that have not ended, by node.
    out: Vec<BTreeMap<RunId, u32>>,
    written: Option<(u64, WriteSeq)>,
    tick_us: Option<u64>,
    asked_us: Option<u64>,
}

fn id(node: usize) -> NodeId {
    NodeId(Uuid::from_u128(node as u128 + 1))
}

fn index(id: NodeId) -> usize {
    // It was made from an index.
    (id.0.as_u128() - 1) as usize
}

const fn now(at: &Moment<'_>) -> Now {
    Now { mono_us: at.now_us, wall: Timestamp(1_795_232_400_000 + (at.now_us / 1_000) as i64) }
}

impl Evenkeel {
    /// With this policy; without `sees_cpu` samples say nothing of what others take.
    #[must_use]
    pub fn new(policy: Policy, sees_cpu: bool, seed: u64) -> Self {
        let most = 100_000_000;
        let config =
            Config { policy, seed, queue_max_tasks: most, queue_max_bytes: 1 << 40, ..Config::default() };
        Self {
            core: Core::new(config, Now::default(), Recovered::default()),
            sees_cpu,
            boots: Vec::new(),
            reports: Vec::new(),
            connected: Vec::new(),
            dead: BTreeSet::new(),
            evidence: VecDeque::new(),
            out: Vec::new(),
            written: None,
            tick_us: None,
            asked_us: None,
        }
    }

    fn tell(&mut self, event: Event, at: &mut Moment<'_>) {
        let mut effects = Vec::new();
        self.core.step(now(at), event, &mut effects);
        for effect in effects {
            self.perform(effect, at);
        }
    }

    fn perform(&mut self, effect: Effect, at: &mut Moment<'_>) {
        match effect {
            Effect::Write { seq, .. } => {
                let due_us = self.written.map_or(at.now_us + COMMIT_US, |(due_us, _)| due_us);
                self.written = Some((due_us, seq));
            }
            Effect::Send { node, order } => self.send(index(node), &order, at),
            Effect::CloseChannel { node } => self.connected[index(node)] = false,
            Effect::Answer { answer: Answer::Finished(task), .. } if task.state == TaskState::Failed => {
                // The number is that of the submission.
                at.orders.push(Order::GaveUp { task: (task.id.0.as_u128() - 1) as u32 });
            }
            Effect::Answer { .. } | Effect::Changed(_) => {}
            Effect::WakeAt { mono_us } => self.tick_us = Some(mono_us),
        }
    }

    fn send(&mut self, node: usize, order: &CoreOrder, at: &mut Moment<'_>) {
        match order {
            CoreOrder::Run { task, run, .. } => {
                let task = (task.0.as_u128() - 1) as u32;
                self.out[node].insert(*run, task);
                at.orders.push(Order::Run { task, node, tag: run.0 });
            }
            CoreOrder::Cancel { run } => {
                self.out[node].remove(run);
                at.orders.push(Order::Stop { node, tag: run.0 });
            }
            CoreOrder::Committed { .. } | CoreOrder::Drain { .. } | CoreOrder::Resume => {}
        }
    }

    /// Asks to be woken for what is due next.
    fn plan(&mut self, at: &mut Moment<'_>) {
        let evidence = self.evidence.front().map(|due| due.0);
        let next = [self.tick_us, self.written.map(|due| due.0), evidence].into_iter().flatten().min();
        if let Some(next_us) = next
            && self.asked_us.is_none_or(|asked_us| next_us < asked_us)
        {
            self.asked_us = Some(next_us);
            at.orders.push(Order::WakeAt { at_us: next_us });
        }
    }

    fn sample(&self, sample: &CpuSample) -> CpuSample {
        if self.sees_cpu {
            return *sample;
        }
        CpuSample { obtained_share: None, others_share: 0.0, used_cores: 0.0, own_cores: 0.0, ..*sample }
    }

    fn join(&mut self, node: usize, cores: f64, at: &mut Moment<'_>) {
        let learned = (0..LEARNED).map(learned_kind).chain([UNKNOWN.to_owned()]);
        let kinds = learned.map(|name| KindInfo { name, ..KindInfo::default() });
        let boot_id = BootId(Uuid::from_u128(self.boots[node]));
        let registration = NodeRegistration {
            name: format!("n{node}"),
            ip: [10, 0, 0, 1].into(),
            pool: protocol::node::default_pool(),
            allotted_cores: cores,
            memory_bytes: MEMORY_BYTES,
            kinds: protocol::kinds::built_in().into_iter().chain(kinds).collect(),
            labels: BTreeMap::new(),
            version: String::new(),
            boot_id,
            runtime_id: None,
        };
        let mut session_hash = [0; 32];
        session_hash[..16].copy_from_slice(&(node as u128 + 1).to_be_bytes());
        let event = Event::Register {
            node: id(node),
            session_hash,
            replaces: None,
            registration: Box::new(registration),
            reply: ReplyId(u64::MAX),
        };
        self.tell(event, at);
        self.connect(node, at);
    }

    fn connect(&mut self, node: usize, at: &mut Moment<'_>) {
        self.connected[node] = true;
        let runs =
            self.out[node].iter().map(|(run, task)| RunRef { task: task_id(*task), run: *run }).collect();
        let boot_id = BootId(Uuid::from_u128(self.boots[node]));
        self.tell(Event::ChannelUp { node: id(node), boot_id, runs, draining: false }, at);
    }
}

fn task_id(task: u32) -> TaskId {
    TaskId(Uuid::from_u128(u128::from(task) + 1))
}

fn learned_kind(class: u32) -> String {
    format!("job-{class}")
}

fn spec(task: &Task) -> TaskSpec {
    let ms = ((task.cpu_s + task.off_cpu_s) * 1e3).round();
    let input = |text: String| RawValue::from_string(text).ok().map(Into::into);
    let mut spec = match task.known {
        Known::Said if task.cpu_s == 0.0 => TaskSpec::new("sleep", input(format!("{{\"ms\":{ms}}}"))),
        Known::Said if task.off_cpu_s == 0.0 => TaskSpec::new("burn", input(format!("{{\"cpu_ms\":{ms}}}"))),
        Known::Said | Known::Learned => {
            // At most some thousand seconds.
            let class = (ms.max(1.0) as u32).ilog2().min(LEARNED - 1);
            TaskSpec::new(learned_kind(class), None)
        }
        Known::Nothing => TaskSpec::new(UNKNOWN, None),
    };
    if task.threads > 1 {
        spec.resources = Some(ResourceRequest { cores: Some(f64::from(task.threads)), memory_bytes: None });
    }
    spec
}

impl Balancer for Evenkeel {
    fn has_slots(&self) -> bool {
        true
    }

    fn start(&mut self, at: &mut Moment<'_>) {
        let many = at.cores.len();
        self.boots = (0..many as u128).map(|node| node + 1).collect();
        self.reports = vec![0; many];
        self.connected = vec![false; many];
        self.out = vec![BTreeMap::new(); many];
        let mut effects = Vec::new();
        self.core.start(now(at), &mut effects);
        effects.into_iter().for_each(|effect| self.perform(effect, at));
        for node in 0..many {
            self.join(node, at.cores[node], at);
        }
        self.plan(at);
    }

    fn arrived(&mut self, task: u32, at: &mut Moment<'_>) {
        let submission = Submission {
            id: task_id(task),
            spec: spec(&at.tasks[task as usize]),
            durability: Durability::Memory,
            client: ClientId(1),
            key: None,
            reply: ReplyId(u64::from(task)),
            wait: Wait::Stream { ack: false },
        };
        self.tell(Event::Submit(Box::new(submission)), at);
        self.plan(at);
    }

    fn ended(&mut self, end: &End, at: &mut Moment<'_>) {
        let run = RunId(end.tag);
        // A node that is dead or not connected says nothing; what was on its way to it is lost with it.
        if self.dead.contains(&end.node) || self.out[end.node].remove(&run).is_none() {
            return;
        }
        let outcome = if end.succeeded {
            Outcome::Succeeded
        } else {
            Outcome::Failed(TaskError { code: ErrorCode::NodeLost, message: "its node failed".to_owned() })
        };
        let ended = RunEnded {
            node: id(end.node),
            task: task_id(end.task),
            run,
            outcome,
            result: None,
            run_ms: end.run_s * 1e3,
            cpu_ms: end.cpu_s * 1e3,
            sample: end.sample.map(|sample| self.sample(&sample)),
            log: None,
        };
        self.tell(Event::RunEnded(Box::new(ended)), at);
        self.plan(at);
    }

    fn reported(&mut self, node: usize, sample: &CpuSample, at: &mut Moment<'_>) {
        if self.dead.contains(&node) {
            return;
        }
        self.reports[node] += 1;
        let report = Report {
            seq: self.reports[node],
            boot_id: BootId(Uuid::from_u128(self.boots[node])),
            ip: [10, 0, 0, 1].into(),
            status: NodeStatus::Ready,
            cpu: self.sample(sample),
            memory: MemorySample { used_bytes: 0, limit_bytes: MEMORY_BYTES },
            running: Vec::new(),
        };
        self.tell(Event::Report { node: id(node), report: Box::new(report) }, at);
        self.plan(at);
    }

    fn woke(&mut self, at: &mut Moment<'_>) {
        self.asked_us = None;
        if let Some((_, through)) = self.written.take_if(|due| due.0 <= at.now_us) {
            self.tell(Event::Written { through }, at);
        }
        while let Some((_, node)) = self.evidence.pop_front_if(|due| due.0 <= at.now_us) {
            let exit = ExitReport { exit_code: Some(137), oom_killed: false, reason: String::new() };
            self.tell(Event::Exited { node: id(node), exit }, at);
        }
        if self.tick_us.take_if(|due| *due <= at.now_us).is_some() {
            self.tell(Event::Tick, at);
        }
        self.plan(at);
    }

    fn died(&mut self, node: usize, _lost: &[(u32, u64)], at: &mut Moment<'_>) {
        self.dead.insert(node);
        self.out[node].clear();
        self.connected[node] = false;
        self.tell(Event::ChannelDown { node: id(node), by_node: true }, at);
        self.evidence.push_back((at.now_us + EVIDENCE_US, node));
        self.plan(at);
    }

    fn returned(&mut self, node: usize, at: &mut Moment<'_>) {
        self.dead.remove(&node);
        self.boots[node] += 1 << 64;
        self.reports[node] = 0;
        self.connect(node, at);
        self.plan(at);
    }

    fn heard(&mut self, node: usize, at: &mut Moment<'_>) {
        if self.dead.contains(&node) {
            return;
        }
        if self.connected[node] {
            self.tell(Event::Heard { node: id(node) }, at);
        } else {
            self.connect(node, at);
        }
        self.plan(at);
    }
}
