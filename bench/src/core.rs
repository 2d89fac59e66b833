//! The scheduler's core as its master drives it, without everything around it.

use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp, kinds,
    node::{KindInfo, NodeRegistration},
    task::{Durability, Json, ResourceRequest, TaskSpec},
    work::Outcome,
};
use rustix::time::{ClockId, clock_gettime};
use scheduler::{
    Config, Core,
    effect::{Effect, Order},
    event::{ClientId, Event, Now, ReplyId, RunEnded, Submission, Wait},
    record::Recovered,
};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    sync::Arc,
};
use uuid::Uuid;

/// Request classes of the tasks: kinds times priorities.
pub const CLASSES: u32 = KINDS * PRIORITIES;
const KINDS: u32 = 20;
const PRIORITIES: u32 = 5;
/// CPU time of a task, in milliseconds.
const TASK_MS: f64 = 100.0;
/// Virtual time between two events, in microseconds: millions of them take less than the silence after which a node
/// counts as lost.
const STEP_US: u64 = 1;

/// A cluster of nodes of one core, all of them there.
pub struct Cluster {
    core: Core,
    now_us: u64,
    next: u128,
    /// What runs, in the order in which it was handed out.
    running: VecDeque<(NodeId, TaskId, RunId)>,
    nodes: u32,
    out: Vec<Effect>,
}

impl Cluster {
    /// Of so many nodes, each of which has run a task of every kind.
    #[must_use]
    pub fn new(nodes: u32) -> Self {
        let config = Config {
            queue_max_tasks: u64::MAX / 2,
            queue_max_bytes: u64::MAX / 2,
            unwritten_max_bytes: u64::MAX,
            ..Config::default()
        };
        let now = Now { mono_us: 1_000_000, wall: Timestamp(0) };
        let mut cluster = Self {
            core: Core::new(config, now, Recovered::default()),
            now_us: now.mono_us,
            next: 1 << 64,
            running: VecDeque::new(),
            nodes,
            out: Vec::new(),
        };
        cluster.core.start(now, &mut cluster.out);
        for number in 0..nodes {
            cluster.join(number);
        }
        // Sizes are learnt, and every node has shown that it works.
        for number in 0..(2 * nodes).max(10 * KINDS) {
            cluster.submit(number);
            cluster.end_down_to(nodes / 2);
        }
        cluster
    }

    /// Tasks come while half of the nodes are free, and one ends for each; CPU time of an arrival in microseconds.
    ///
    /// # Errors
    /// One was not handed out at once.
    pub fn arrivals(&mut self, count: u32) -> anyhow::Result<f64> {
        let mut spent_us = 0.0;
        for number in 0..count {
            self.end_down_to(self.nodes / 2);
            let (running, before_us) = (self.running.len(), cpu_us());
            self.submit(number);
            spent_us += cpu_us() - before_us;
            anyhow::ensure!(self.running.len() == running + 1, "a task waits although nodes are free");
        }
        Ok(spent_us / f64::from(count))
    }

    /// Tasks come until so many wait; how many bytes this process grew by for each.
    pub fn wait(&mut self, count: u32) -> f64 {
        let before = resident_bytes();
        for number in 0..count + self.nodes {
            self.submit(number);
        }
        (resident_bytes() - before) / f64::from(count)
    }

    /// The oldest runs end, and what waits takes their places; CPU time of one in microseconds.
    ///
    /// # Errors
    /// The places were not taken.
    pub fn ends(&mut self, count: u32) -> anyhow::Result<f64> {
        let (running, before_us) = (self.running.len(), cpu_us());
        for _ in 0..count {
            self.end_oldest();
        }
        let spent_us = cpu_us() - before_us;
        let now = self.running.len();
        anyhow::ensure!(now == running && now > 0, "{running} tasks ran, and {now} after {count} have ended");
        Ok(spent_us / f64::from(count))
    }

    fn event(&mut self, event: Event) {
        self.now_us += STEP_US;
        let now = Now { mono_us: self.now_us, wall: Timestamp(0) };
        self.core.step(now, event, &mut self.out);
        // What is written is durable at once.
        let mut written = None;
        for effect in self.out.drain(..) {
            match effect {
                Effect::Send { node, order: Order::Run { task, run, .. } } => {
                    self.running.push_back((node, task, run))
                }
                Effect::Write { seq, .. } => written = Some(seq),
                _ => {}
            }
        }
        if let Some(through) = written {
            self.event(Event::Written { through });
        }
    }

    fn fresh(&mut self) -> Uuid {
        self.next += 1;
        Uuid::from_u128(self.next)
    }

    fn join(&mut self, number: u32) {
        let (node, boot_id) = (NodeId(self.fresh()), BootId(self.fresh()));
        let mut session_hash = [0; 32];
        session_hash[..16].copy_from_slice(node.0.as_bytes());
        let own = (0..KINDS).map(|kind| KindInfo { name: name(kind), ..KindInfo::default() });
        let registration = Box::new(NodeRegistration {
            name: format!("node-{number}"),
            ip: [127, 0, 0, 1].into(),
            pool: "default".to_owned(),
            allotted_cores: 1.0,
            memory_bytes: 1 << 30,
            kinds: kinds::built_in().into_iter().chain(own).collect(),
            labels: BTreeMap::new(),
            version: String::new(),
            boot_id,
            runtime_id: None,
        });
        let reply = ReplyId(u64::from(number));
        self.event(Event::Register { node, session_hash, replaces: None, registration, reply });
        self.event(Event::ChannelUp { node, boot_id, runs: Vec::new(), draining: false });
    }

    fn submit(&mut self, number: u32) {
        let mut spec = TaskSpec::new(name(number % KINDS), Some(input()));
        spec.priority = i8::try_from(number / KINDS % PRIORITIES).unwrap_or(0);
        spec.resources = Some(ResourceRequest { cores: None, memory_bytes: Some(1 << 20) });
        let id = TaskId(self.fresh());
        let reply = ReplyId(self.next as u64);
        let submission = Submission {
            id,
            spec,
            durability: Durability::Disk,
            client: ClientId(1),
            key: None,
            reply,
            wait: Wait::Accepted,
        };
        self.event(Event::Submit(Box::new(submission)));
    }

    fn end_down_to(&mut self, most: u32) {
        while self.running.len() > most as usize {
            self.end_oldest();
        }
    }

    fn end_oldest(&mut self) {
        let Some((node, task, run)) = self.running.pop_front() else { return };
        self.event(Event::RunEnded(Box::new(RunEnded {
            node,
            task,
            run,
            outcome: Outcome::Succeeded,
            result: Some(input()),
            run_ms: TASK_MS,
            cpu_ms: TASK_MS,
            sample: None,
            log: None,
        })));
    }
}

fn name(kind: u32) -> String {
    format!("kind-{kind}")
}

fn input() -> Json {
    RawValue::from_string(r#"{"file":"input-000000.dat"}"#.to_owned())
        .map_or_else(|_| RawValue::NULL.to_owned().into(), Arc::from)
}

/// CPU time of this thread, in microseconds.
fn cpu_us() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

/// Memory of this process (proc_pid_statm(5)).
fn resident_bytes() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(f64::NAN);
    pages * rustix::param::page_size() as f64
}
