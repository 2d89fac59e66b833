//! The whole cluster in one thread: one master at a time on one disk, nodes, clients, and a network between
//! them, all moved by one agenda and one seed.
//!
//! What the network may do: delay everything; hold back what is sent while a node is cut off (as TCP does) and
//! break the channel if it lasts; lose requests and answers, of callers and of nodes, at any time. What the disk
//! may do: take its time, refuse writes for a while, and lose what was not synced when the master dies.

use crate::{
    agenda::Agenda,
    disk::Disk,
    history::History,
    master::{ConnId, Master, Out},
    node::SimNode,
    plant::Plant,
};
use bytes::Bytes;
use protocol::{NodeId, RunId, TaskId, node::Report, task::Durability};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use scheduler::{
    effect::{Answer, WriteSeq},
    event::ReplyId,
    record::Op,
};
use session::{
    node::Bearer,
    retry::{Outcome, Retry},
};
use std::collections::BTreeMap;

/// How many of all requests, or their answers, are lost on the way although nobody died.
const LOST_RATIO: f64 = 0.03;

/// How a run of the simulation is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Decides everything.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How many tasks.
    pub tasks: u64,
    /// How long faults happen and tasks are submitted; then all is left in peace.
    pub faults_us: u64,
    /// How long everything may take to end after that.
    pub peace_us: u64,
    /// Whether to print what happens.
    pub trace: bool,
    /// A bug that the shells of this run have, to show that the simulation would find it.
    pub plant: Option<Plant>,
}

impl Setup {
    /// A small cluster in a bad minute.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 4,
            tasks: 60,
            faults_us: 40_000_000,
            peace_us: 300_000_000,
            trace: false,
            plant: None,
        }
    }
}

/// Something that comes.
enum Ev {
    /// The master's process starts.
    MasterStart,
    /// The master asked to be woken; only the newest such request of this epoch counts.
    MasterWake(u64),
    /// A transaction is durable, of the master with this epoch.
    Durable(u64, Vec<(WriteSeq, Op)>),
    /// A caller's request reaches the master.
    Request(Request),
    /// An answer reaches its caller: number of the submission, and what it says.
    Answered(u64, Box<Answer>),
    /// A caller sees that its request broke.
    RequestBroke(u64, Outcome),
    /// A client asks (again) for its task.
    Ask(u64),
    /// A node's request to register or to connect, or its report, reaches the master.
    FromNode(usize, u64, NodeRequest),
    /// The answer reaches the node: its life, and what it says.
    ToNode(usize, u64, NodeAnswer),
    /// A message reaches the master on this channel.
    AtMaster(ConnId, Bytes),
    /// A pong reaches the master.
    PongAtMaster(ConnId),
    /// A message, or a ping, reaches the node's end.
    AtNode(ConnId, Option<Bytes>),
    /// One end of a channel sees that the other is gone.
    ClosedAtMaster(ConnId),
    /// The same at the node.
    ClosedAtNode(ConnId),
    /// A node's session asked to be woken.
    NodeWake(usize, u64),
    /// A run ends on a node of this life.
    RunEnds(usize, u64, RunId),
    /// A node reports.
    ReportDue(usize, u64),
    /// The manager looks after the pool.
    Manage,
    /// The same, at once, because the engine told of something.
    Look,
    /// A container was created.
    Created(String),
    /// A container of this id was removed.
    Removed(String, String),
    /// Something breaks.
    Fault,
    /// Nothing breaks any more, and all nodes are wanted.
    Peace,
}

enum Request {
    Submit(u64),
    Wait(u64, TaskId),
    /// `GET` without `wait`: what the scheduler shows, or the store.
    Read(u64, TaskId),
    Cancel(u64, TaskId),
}

enum NodeRequest {
    Register(Bearer),
    Connect(NodeId),
    Report(NodeId, Box<Report>),
}

enum NodeAnswer {
    Registered(Option<NodeId>),
    Connected(Option<ConnId>),
}

struct Channel {
    node: usize,
    life: u64,
    /// When the last message of each direction arrives, so that none overtakes another.
    to_master_us: u64,
    to_node_us: u64,
}

/// The cluster.
pub struct World {
    setup: Setup,
    agenda: Agenda<Ev>,
    rng: SmallRng,
    /// The disk outlives every master.
    pub disk: Disk,
    /// Every transaction that ends before this time fails.
    disk_refuses_until_us: u64,
    /// When the last transaction is durable: none overtakes another.
    disk_us: u64,
    master: Option<Master>,
    /// The newest time for which the master of this epoch asked to be woken.
    wake: (u64, u64),
    /// The nodes.
    pub nodes: Vec<SimNode>,
    channels: BTreeMap<ConnId, Channel>,
    next_conn: u64,
    waiting: BTreeMap<ReplyId, Caller>,
    next_reply: u64,
    /// What the clients saw.
    pub history: History,
    /// Tasks begun by nodes that are dead now.
    begun_before: BTreeMap<TaskId, u32>,
    manager: Manager,
    retries: BTreeMap<u64, (Retry, u64)>,
}

enum Caller {
    Client(u64),
    Node(usize, u64),
}

impl World {
    /// A cluster that has not started.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let mut rng = SmallRng::seed_from_u64(setup.seed);
        let manager = Manager::new(setup.nodes as u32).unwrap_or_else(|| unreachable!("a fixed name"));
        let cores = |rng: &mut SmallRng| f64::from(rng.random_range(1..=8_u32)) * 0.25;
        let nodes = (0..setup.nodes).map(|at| SimNode::new(manager.name(at), cores(&mut rng))).collect();
        let mut world = Self {
            setup,
            agenda: Agenda::default(),
            rng,
            disk: Disk::new(setup.plant),
            disk_refuses_until_us: 0,
            disk_us: 0,
            master: None,
            wake: (0, 0),
            nodes,
            channels: BTreeMap::new(),
            next_conn: 0,
            waiting: BTreeMap::new(),
            next_reply: 0,
            history: History::default(),
            begun_before: BTreeMap::new(),
            manager,
            retries: BTreeMap::new(),
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        self.agenda.at(0, Ev::MasterStart);
        self.agenda.at(0, Ev::Manage);
        self.agenda.at(self.setup.faults_us, Ev::Peace);
        for number in 0..self.setup.tasks {
            let submit_us = self.rng.random_range(100_000..self.setup.faults_us);
            self.agenda.at(submit_us, Ev::Request(Request::Submit(number)));
        }
        let mut fault_us = 3_000_000;
        while fault_us < self.setup.faults_us {
            self.agenda.at(fault_us, Ev::Fault);
            fault_us += self.rng.random_range(200_000..6_000_000);
        }
    }

    /// Runs to the end, and says what may not be.
    ///
    /// # Errors
    /// Every violation that was seen.
    pub fn run(mut self) -> Result<Summary, Vec<String>> {
        let end_us = self.setup.faults_us + self.setup.peace_us;
        let mut steps = 0_u64;
        while let Some(event) = self.agenda.pop() {
            if self.agenda.now_us() > end_us {
                break;
            }
            steps += 1;
            self.happen(event);
            if self.agenda.now_us() > self.setup.faults_us && self.at_rest() {
                break;
            }
        }
        self.check(steps)
    }

    fn at_rest(&self) -> bool {
        self.history.entries.len() as u64 == self.setup.tasks
            && self.history.entries.values().all(|entry| entry.ended.is_some() || entry.refused)
            && self.nodes.iter().all(SimNode::is_empty)
            && self.pool_is_right()
            && self.master.as_ref().is_some_and(|master| {
                let status = master.core.status(master.now(self.agenda.now_us()));
                status.queued + status.running == 0
            })
    }

    fn check(mut self, steps: u64) -> Result<Summary, Vec<String>> {
        self.history.check_complete();
        let mut violations = std::mem::take(&mut self.history.violations);
        violations.append(&mut self.disk.violations);
        for entry in self.history.entries.values() {
            let (Some(id), Durability::Disk, Some((state, result))) =
                (entry.id, entry.durability, &entry.ended)
            else {
                continue;
            };
            let stored = self
                .disk
                .ended(id)
                .map(|task| (task.state, task.result.as_ref().map(|json| json.get().to_owned())));
            if stored.as_ref() != Some(&(*state, result.clone())) {
                violations.push(format!(
                    "task {id}: the client was told {state:?} {result:?}, the disk says {stored:?}"
                ));
            }
        }
        if !self.pool_is_right() {
            violations.push("the pool does not have the nodes that are wanted at the end".to_owned());
        }
        for node in self.nodes.iter().filter(|node| !node.is_empty()) {
            violations.push(format!("{} is not empty at the end", node.name));
        }
        if let Some(master) = &self.master {
            let status = master.core.status(master.now(self.agenda.now_us()));
            if status.queued + status.running != 0 {
                violations.push(format!(
                    "the master is not empty at the end: {} queued, {} running",
                    status.queued, status.running
                ));
            }
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        let begun = self.nodes.iter().flat_map(|node| node.begun.values()).chain(self.begun_before.values());
        let acknowledged = self.history.entries.values().filter(|entry| entry.acknowledged).count();
        Ok(Summary {
            steps,
            acknowledged,
            begun: begun.map(|count| u64::from(*count)).sum(),
            simulated_us: self.agenda.now_us(),
        })
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.setup.trace {
            crate::say(&format!("{:>12.6} {}", self.agenda.now_us() as f64 / 1e6, what()));
        }
    }

    /// Whether something gets lost on its way now.
    fn is_lost(&mut self) -> bool {
        self.agenda.now_us() < self.setup.faults_us && self.rng.random_bool(LOST_RATIO)
    }

    fn delay(&mut self) -> u64 {
        // Mostly a local network, sometimes a bad moment.
        if self.rng.random_bool(0.02) {
            self.rng.random_range(10_000..400_000)
        } else {
            self.rng.random_range(50..3_000)
        }
    }

    fn happen(&mut self, event: Ev) {
        let now_us = self.agenda.now_us();
        match event {
            Ev::MasterStart => self.start_master(now_us),
            Ev::MasterWake(epoch) => self.wake_master(now_us, epoch),
            Ev::Durable(epoch, ops) => self.durable(now_us, epoch, ops),
            Ev::Request(request) => self.request(now_us, &request),
            Ev::Answered(number, answer) => self.answered(number, *answer),
            Ev::RequestBroke(number, outcome) => self.broke(now_us, number, outcome),
            Ev::Ask(number) => self.ask(number),
            Ev::FromNode(at, life, request) => self.node_asks(now_us, at, life, request),
            Ev::ToNode(at, life, answer) => self.node_is_told(now_us, at, life, &answer),
            Ev::AtMaster(conn, message) => {
                self.with_master(now_us, |master, out| master.message(now_us, conn, message, out))
            }
            Ev::PongAtMaster(conn) => self.with_master(now_us, |master, out| master.pong(now_us, conn, out)),
            Ev::ClosedAtMaster(conn) => {
                self.with_master(now_us, |master, out| master.channel_closed(now_us, conn, out))
            }
            Ev::AtNode(conn, message) => self.at_node(now_us, conn, message),
            Ev::ClosedAtNode(conn) => self.closed_at_node(now_us, conn),
            Ev::NodeWake(at, life) => {
                self.node_event(now_us, at, life, Ev::NodeWake(at, life), |session, out| {
                    session.tick(now_us, out)
                })
            }
            Ev::RunEnds(at, life, run) => self.run_ends(now_us, at, life, run),
            Ev::ReportDue(at, life) => self.report_due(now_us, at, life),
            Ev::Manage => {
                self.agenda.after(1_000_000, Ev::Manage);
                self.manage(now_us);
            }
            Ev::Look => self.manage(now_us),
            Ev::Created(name) => self.created(now_us, &name),
            Ev::Removed(name, id) => self.removed(now_us, &name, &id),
            Ev::Fault => self.fault(now_us),
            Ev::Peace => self.manager.desired = self.nodes.len() as u32,
        }
    }

    // --- the master -------------------------------------------------------------------------------

    fn start_master(&mut self, now_us: u64) {
        let (epoch, recovered) = self.disk.start_master();
        self.trace(|| format!("master starts with epoch {epoch}, {} open tasks", recovered.tasks.len()));
        let mut out = Vec::new();
        let seed = self.rng.random();
        let plant = self.setup.plant;
        self.master = Some(Master::start(now_us, epoch, seed, recovered, plant, &mut out));
        self.perform(now_us, out);
    }

    fn kill_master(&mut self, now_us: u64) {
        if self.master.take().is_none() {
            return;
        }
        self.trace(|| "master is killed".to_owned());
        for (conn, _) in std::mem::take(&mut self.channels) {
            self.channels_lost(conn);
        }
        for (_, caller) in std::mem::take(&mut self.waiting) {
            let delay = self.delay();
            match caller {
                Caller::Client(number) => self.agenda.after(delay, Ev::RequestBroke(number, Outcome::Broken)),
                Caller::Node(at, life) => {
                    self.agenda.after(delay, Ev::ToNode(at, life, NodeAnswer::Registered(None)))
                }
            }
        }
        let down_us = self.rng.random_range(50_000..8_000_000);
        self.agenda.at(now_us + down_us, Ev::MasterStart);
    }

    fn channels_lost(&mut self, conn: ConnId) {
        let delay = self.delay();
        self.agenda.after(delay, Ev::ClosedAtNode(conn));
    }

    fn wake_master(&mut self, now_us: u64, epoch: u64) {
        if self.master.as_ref().is_some_and(|master| master.epoch == epoch) && self.wake == (epoch, now_us) {
            self.with_master(now_us, |master, out| master.wake(now_us, out));
        }
    }

    fn durable(&mut self, now_us: u64, epoch: u64, ops: Vec<(WriteSeq, Op)>) {
        // What a dead master had not synced is lost; a transaction is there whole or not at all.
        if self.master.as_ref().is_none_or(|master| master.epoch != epoch) {
            return;
        }
        let Some(through) = ops.last().map(|(seq, _)| *seq) else { return };
        if self.setup.plant == Some(Plant::AnswerBeforeCommit) {
            return self.disk.commit(ops);
        }
        if self.disk_refuses_until_us > now_us {
            self.trace(|| "the disk refuses a transaction".to_owned());
            return self.with_master(now_us, |master, out| master.commit_failed(now_us, through, out));
        }
        self.disk.commit(ops);
        self.with_master(now_us, |master, out| master.committed(now_us, through, out));
    }

    fn with_master(&mut self, now_us: u64, act: impl FnOnce(&mut Master, &mut Vec<Out>)) {
        let Some(master) = self.master.as_mut() else { return };
        let mut out = Vec::new();
        act(master, &mut out);
        self.perform(now_us, out);
    }

    fn perform(&mut self, now_us: u64, out: Vec<Out>) {
        for effect in out {
            match effect {
                Out::Message(conn, message) => self.send_to_node(conn, Some(message)),
                Out::Ping(conn) => self.send_to_node(conn, None),
                Out::Close(conn) => {
                    self.channels_lost(conn);
                }
                Out::Answer(reply, answer) => self.answer(reply, answer),
                Out::Commit(ops) => {
                    let epoch = self.master.as_ref().map_or(0, |master| master.epoch);
                    let sync_us = self.rng.random_range(500..20_000);
                    self.disk_us = (now_us + sync_us).max(self.disk_us);
                    let through = ops.last().map(|(seq, _)| *seq);
                    self.agenda.at(self.disk_us, Ev::Durable(epoch, ops));
                    if let (Some(Plant::AnswerBeforeCommit), Some(through)) = (self.setup.plant, through) {
                        self.with_master(now_us, |master, out| master.committed(now_us, through, out));
                    }
                }
            }
        }
        let wake = self.master.as_ref().and_then(|master| Some((master.epoch, master.wake_us()?)));
        if let Some((epoch, at_us)) = wake {
            let wake = (epoch, at_us.max(now_us + 1));
            if self.wake != wake {
                self.wake = wake;
                self.agenda.at(wake.1, Ev::MasterWake(epoch));
            }
        }
    }

    fn send_to_node(&mut self, conn: ConnId, message: Option<Bytes>) {
        let delay = self.delay();
        let now_us = self.agenda.now_us();
        let Some(channel) = self.channels.get_mut(&conn) else { return };
        let cut_us = self.nodes[channel.node].cut_until_us;
        channel.to_node_us = (now_us + delay).max(channel.to_node_us).max(cut_us);
        self.agenda.at(channel.to_node_us, Ev::AtNode(conn, message));
    }
}

/// What a run of the simulation did.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Events.
    pub steps: u64,
    /// Tasks that were acknowledged.
    pub acknowledged: usize,
    /// Runs that were begun.
    pub begun: u64,
    /// Virtual time.
    pub simulated_us: u64,
}

fn summary_of(answer: &Answer) -> String {
    match answer {
        Answer::Accepted(task) => format!("accepted {}", task.id),
        Answer::Finished(task) => format!("finished {} {:?}", task.id, task.state),
        Answer::Unfinished(task) => format!("unfinished {} {:?}", task.id, task.state),
        Answer::Cancelled(task) => format!("cancelled {}", task.id),
        other => format!("{other:?}"),
    }
}

mod callers;
mod manager;
mod nodes;

use manager::Manager;
