//! The whole cluster in one thread: masters on one store, nodes, clients, and a network between them, all moved by
//! one agenda and one seed.
//!
//! What the network may do: delay everything; hold back what is sent while a node is cut off in one direction or
//! both (as TCP does) and break the channel if it lasts; lose requests and answers, of callers and of nodes, at any
//! time. What the disk may do: take its time, refuse writes, call a write failed that is there or is not, and lose
//! what was not synced when the master dies. All that may go wrong: [`crate::coverage::Fault`].

use crate::{
    agenda::Agenda,
    coverage::{Coverage, Fault},
    disk::Disk,
    history::History,
    master::{ConnId, Out},
    node::SimNode,
    setup::{Setup, Summary},
};
use bytes::Bytes;
use protocol::{NodeId, RunId, TaskId, node::Report};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use scheduler::{
    effect::{Answer, WriteSeq},
    event::ReplyId,
    record::Op,
};
use session::{
    lease,
    node::Bearer,
    retry::{Outcome, Retry},
};
use std::collections::BTreeMap;

/// How many of all requests, or their answers, are lost on the way although nobody died.
const LOST_RATIO: f64 = 0.03;

/// Something that comes. Masters are named by their place, and by the life of their process.
enum Ev {
    /// A master's process starts.
    ProcessStart(usize),
    /// A master's lease asked to be woken.
    LeaseWake(usize, u64),
    /// A call of a lease reaches the store.
    StoreCall(usize, u64, u64, lease::Call),
    /// Its answer, or that none came in time, reaches the master.
    StoreAnswer(usize, u64, u64, lease::Answer),
    /// A new leader of this epoch has read the store.
    Loaded(usize, u64, u64),
    /// The brain of this epoch asked to be woken; only the newest such request counts.
    MasterWake(usize, u64),
    /// A transaction of the leader of this epoch reaches the disk.
    Durable(usize, u64, u64, Vec<(WriteSeq, Op)>),
    /// What became of it reaches the leader.
    Written(usize, u64, u64, WriteSeq, Written),
    /// What a master of this epoch had decided before it was stopped is carried out.
    LateOut(usize, u64, u64, Vec<Out>),
    /// A caller's request reaches a master.
    Request(Request, usize),
    /// An answer reaches its caller: number of the submission and of the operation, and what it says.
    Answered(u64, u64, Box<Answer>),
    /// A caller sees that its request broke.
    RequestBroke(u64, u64, Outcome),
    /// A client asks (again) for its task.
    Ask(u64),
    /// Somebody looks at some task.
    LookOn,
    /// An answer for them: number of the submission, when they asked, and what it says.
    LookedOn(u64, u64, Box<Answer>),
    /// A node's request to register or to connect, or its report, reaches a master.
    FromNode(usize, u64, NodeRequest, usize),
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
    /// A run ends its node of this life.
    RunEndsNode(usize, u64, RunId),
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

/// A client's request: number of the submission, of the operation, and the task.
#[derive(Clone, Copy)]
enum Request {
    Submit(u64, u64),
    Wait(u64, u64, TaskId),
    /// `GET` without `wait`: what the scheduler shows, or the store.
    Read(u64, u64, TaskId),
    Cancel(u64, u64, TaskId),
    /// The same as a read, by somebody else: when they asked.
    Onlook(u64, u64, TaskId),
}

enum NodeRequest {
    Register(Bearer),
    Connect(NodeId),
    Report(NodeId, Box<Report>),
}

enum NodeAnswer {
    Registered(Option<NodeId>),
    Connected(Result<ConnId, ConnectFailure>),
}

#[derive(Clone, Copy)]
enum ConnectFailure {
    Unknown,
    Transient,
}

struct Channel {
    node: usize,
    machine: usize,
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
    /// Whether that is because there is no room; else it is not known whether they are there.
    disk_is_full: bool,
    /// When the last transaction is durable: none overtakes another.
    disk_us: u64,
    machines: Vec<Machine>,
    /// Who led last.
    led_by: Option<usize>,
    /// The nodes.
    pub nodes: Vec<SimNode>,
    channels: BTreeMap<ConnId, Channel>,
    next_conn: u64,
    waiting: BTreeMap<ReplyId, (usize, Caller)>,
    next_reply: u64,
    /// What the clients saw.
    pub history: History,
    /// The operation of each client that is under way, and when it began.
    operations: BTreeMap<u64, (u64, u64)>,
    next_operation: u64,
    /// Tasks begun by nodes that are dead now.
    begun_before: BTreeMap<TaskId, u32>,
    manager: Manager,
    retries: BTreeMap<u64, (Retry, u64)>,
    /// What went wrong.
    pub coverage: Coverage,
    steps: u64,
    deaths: u64,
}

enum Caller {
    /// Number of the submission, and of the operation.
    Client(u64, u64),
    Node(usize, u64),
    /// Number of the submission, and when they asked.
    Onlooker(u64, u64),
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
            disk_is_full: false,
            disk_us: 0,
            machines: (0..setup.masters.max(1)).map(|_| Machine::default()).collect(),
            led_by: None,
            nodes,
            channels: BTreeMap::new(),
            next_conn: 0,
            waiting: BTreeMap::new(),
            next_reply: 0,
            history: History::default(),
            operations: BTreeMap::new(),
            next_operation: 0,
            begun_before: BTreeMap::new(),
            manager,
            retries: BTreeMap::new(),
            coverage: Coverage::default(),
            steps: 0,
            deaths: 0,
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        for at in 0..self.machines.len() {
            self.agenda.at(at as u64 * 1_000, Ev::ProcessStart(at));
        }
        self.agenda.at(0, Ev::Manage);
        self.agenda.at(self.setup.faults_us, Ev::Peace);
        let mut submit_us = 0;
        for number in 0..self.setup.tasks {
            if number % self.setup.burst == 0 {
                submit_us = self.rng.random_range(100_000..self.setup.faults_us);
            }
            self.agenda.at(submit_us, Ev::Ask(number));
        }
        if !self.setup.faults {
            return;
        }
        self.agenda.at(1_000_000, Ev::LookOn);
        let mut fault_us = 3_000_000;
        while fault_us < self.setup.faults_us {
            self.agenda.at(fault_us, Ev::Fault);
            fault_us += self.rng.random_range(200_000..4_000_000);
        }
    }

    /// Runs to the end, and says what may not be.
    ///
    /// # Errors
    /// Every violation that was seen.
    pub fn run(mut self) -> Result<Summary, Vec<String>> {
        self.run_until_rest();
        self.finish()
    }

    /// Lets everything happen until nothing is left to do, or all time is over.
    pub fn run_until_rest(&mut self) {
        let end_us = self.setup.faults_us + self.setup.peace_us;
        while self.agenda.now_us() <= self.setup.faults_us || !self.at_rest() {
            let Some(event) = self.agenda.pop_before(end_us) else { break };
            self.steps += 1;
            self.happen(event);
        }
    }

    /// Lets everything happen that happens up to this time.
    pub fn run_until(&mut self, end_us: u64) {
        while let Some(event) = self.agenda.pop_before(end_us) {
            self.steps += 1;
            self.happen(event);
        }
        self.agenda.pass_to(end_us);
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.setup.trace {
            crate::say(&format!("{:>12.6} {}", self.agenda.now_us() as f64 / 1e6, what()));
        }
    }

    /// Whether something gets lost on its way now.
    fn is_lost(&mut self, what: Fault) -> bool {
        let lost = self.setup.faults
            && self.agenda.now_us() < self.setup.faults_us
            && self.rng.random_bool(LOST_RATIO);
        if lost {
            self.coverage.count(what);
        }
        lost
    }

    fn delay(&mut self) -> u64 {
        // Mostly a local network, sometimes a bad moment.
        if self.rng.random_bool(0.02) {
            self.rng.random_range(10_000..400_000)
        } else {
            self.rng.random_range(50..3_000)
        }
    }

    /// Which master something comes to, and of which life; a master that is stopped sees it when it goes on.
    fn master_of(&self, event: &Ev) -> Option<(usize, Option<u64>)> {
        match event {
            Ev::LeaseWake(at, life)
            | Ev::StoreAnswer(at, life, ..)
            | Ev::Loaded(at, life, _)
            | Ev::Written(at, life, ..)
            | Ev::LateOut(at, life, ..) => Some((*at, Some(*life))),
            Ev::MasterWake(at, _) | Ev::Request(_, at) | Ev::FromNode(_, _, _, at) => Some((*at, None)),
            Ev::AtMaster(conn, _) | Ev::PongAtMaster(conn) | Ev::ClosedAtMaster(conn) => {
                self.channels.get(conn).map(|channel| (channel.machine, None))
            }
            _ => None,
        }
    }

    fn happen(&mut self, event: Ev) {
        let now_us = self.agenda.now_us();
        if let Some((at, life)) = self.master_of(&event) {
            if life.is_some_and(|life| life != self.machines[at].life) {
                return;
            }
            let stopped_us = self.machines[at].stopped_until_us;
            if stopped_us > now_us {
                return self.agenda.at(stopped_us, event);
            }
        }
        match event {
            Ev::ProcessStart(at) => self.start_process(now_us, at),
            Ev::LeaseWake(at, _) => self.lease_wake(now_us, at),
            Ev::StoreCall(at, life, number, call) => self.store_call(now_us, (at, life), number, call),
            Ev::StoreAnswer(at, _, number, answer) => self.store_answer(now_us, at, number, answer),
            Ev::Loaded(at, _, epoch) => self.lead(now_us, at, epoch),
            Ev::MasterWake(at, epoch) => self.wake_master(now_us, at, epoch),
            Ev::Durable(at, life, epoch, ops) => self.durable(now_us, (at, life), epoch, ops),
            Ev::Written(at, _, epoch, through, written) => self.written(now_us, at, epoch, through, written),
            Ev::LateOut(at, _, epoch, out) => self.late_out(now_us, at, epoch, out),
            Ev::Request(request, via) => self.request(now_us, request, via),
            Ev::Answered(number, operation, answer) => self.answered(number, operation, *answer),
            Ev::RequestBroke(number, operation, outcome) => self.broke(now_us, number, operation, outcome),
            Ev::Ask(number) => self.ask(now_us, number),
            Ev::LookOn => self.look_on(now_us),
            Ev::LookedOn(number, begun_us, answer) => self.looked_on(now_us, number, begun_us, &answer),
            Ev::FromNode(at, life, request, via) => self.node_asks(now_us, (at, life), request, via),
            Ev::ToNode(at, life, answer) => self.node_is_told(now_us, at, life, &answer),
            Ev::AtMaster(conn, message) => self.at_master(now_us, conn, |master, out| {
                master.message(now_us, conn, message, out);
            }),
            Ev::PongAtMaster(conn) => {
                self.at_master(now_us, conn, |master, out| master.pong(now_us, conn, out))
            }
            Ev::ClosedAtMaster(conn) => {
                self.at_master(now_us, conn, |master, out| master.channel_closed(now_us, conn, out));
                self.channels.remove(&conn);
            }
            Ev::AtNode(conn, message) => self.at_node(now_us, conn, message),
            Ev::ClosedAtNode(conn) => self.closed_at_node(now_us, conn),
            Ev::NodeWake(at, life) => {
                self.node_event(now_us, at, life, Ev::NodeWake(at, life), |session, out| {
                    session.tick(now_us, out)
                })
            }
            Ev::RunEnds(at, life, run) => self.run_ends(now_us, at, life, run),
            Ev::RunEndsNode(at, life, run) => self.run_ends_node(now_us, at, life, run),
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

    fn at_master(
        &mut self,
        now_us: u64,
        conn: ConnId,
        act: impl FnOnce(&mut crate::master::Master, &mut Vec<Out>),
    ) {
        if let Some(at) = self.channels.get(&conn).map(|channel| channel.machine) {
            self.with_master(now_us, at, act);
        }
    }
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
mod check;
mod faults;
mod forged;
mod leases;
mod manager;
mod masters;
mod nodes;

use manager::Manager;
use masters::{Machine, Written};
