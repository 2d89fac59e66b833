//! The master's brain in miniature: the production scheduler and the production ends of the work channels,
//! with the same batching (all effects of a step together, one transaction at a time), and effects as data
//! for the world to carry out.

use crate::plant::Plant;
use bytes::Bytes;
use protocol::{NodeId, RunId, Timestamp, node::Report};
use scheduler::{
    config::Config,
    core::Core,
    effect::{Answer, Effect, Order, WriteSeq},
    event::{Event, Now, ReplyId, RunEnded},
    record::{Op, Recovered},
};
use session::master::{Inbound, Link, LinkEffect};
use std::collections::BTreeMap;

/// One open work channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Something for the world to carry out.
#[derive(Debug)]
pub enum Out {
    /// A message for the node's end of a channel.
    Message(ConnId, Bytes),
    /// A ping for the node's end of a channel; it is answered by whoever holds it.
    Ping(ConnId),
    /// The master's side closes a channel.
    Close(ConnId),
    /// An answer for a caller.
    Answer(ReplyId, Answer),
    /// A transaction begins; the world says when it is durable.
    Commit(Vec<(WriteSeq, Op)>),
}

/// A master that runs.
pub struct Master {
    /// The production scheduler.
    pub core: Core,
    /// Grows with every start.
    pub epoch: u64,
    started_us: u64,
    links: BTreeMap<ConnId, Link>,
    channel_of: BTreeMap<NodeId, ConnId>,
    gathered: Vec<(WriteSeq, Op)>,
    committing: bool,
    core_wake_us: Option<u64>,
    link_wake_us: BTreeMap<ConnId, u64>,
    effects: Vec<Effect>,
    /// Who has which run, for the bug that looks it up.
    given: BTreeMap<RunId, NodeId>,
    plant: Option<Plant>,
    /// How far its wall clock is off, in milliseconds.
    pub wall_off_ms: i64,
}

/// What a master is started with.
#[derive(Debug)]
pub struct Start {
    /// Grows with every leader.
    pub epoch: u64,
    /// Breaks ties.
    pub seed: u64,
    /// Bound of its queue.
    pub queue_max_tasks: u64,
    /// What the store has.
    pub recovered: Recovered,
    /// How far its wall clock is off, in milliseconds.
    pub wall_off_ms: i64,
    /// A bug that it has.
    pub plant: Option<Plant>,
}

impl Master {
    /// A master starts at this time with what the disk gave back.
    #[must_use]
    pub fn start(now_us: u64, start: Start, out: &mut Vec<Out>) -> Self {
        let Start { epoch, seed, queue_max_tasks, recovered, wall_off_ms, plant } = start;
        let config = Config { epoch, seed, queue_max_tasks, ..Config::default() };
        let now = time(now_us, now_us, wall_off_ms);
        let core = Core::new(config, now, recovered);
        let mut master = Self {
            core,
            epoch,
            started_us: now_us,
            links: BTreeMap::new(),
            channel_of: BTreeMap::new(),
            gathered: Vec::new(),
            committing: false,
            core_wake_us: None,
            link_wake_us: BTreeMap::new(),
            effects: Vec::new(),
            given: BTreeMap::new(),
            plant,
            wall_off_ms,
        };
        master.core.start(now, &mut master.effects);
        master.perform(now_us, out);
        master
    }

    /// The master's own time: its monotonic clock begins at its start.
    #[must_use]
    pub const fn now(&self, now_us: u64) -> Now {
        time(now_us, self.started_us, self.wall_off_ms)
    }

    /// Monotonic microseconds of this master for a time of the world.
    #[must_use]
    pub const fn mono_us(&self, world_us: u64) -> u64 {
        world_us - self.started_us
    }

    /// Something happens; everything that follows from it is done.
    pub fn event(&mut self, now_us: u64, event: Event, out: &mut Vec<Out>) {
        let now = self.now(now_us);
        self.core.step(now, event, &mut self.effects);
        self.perform(now_us, out);
    }

    /// A report arrives over REST; false if its node's session is not known.
    pub fn report(&mut self, now_us: u64, node: NodeId, report: Report, out: &mut Vec<Out>) -> bool {
        if self.core.node(node, self.now(now_us)).is_none() {
            return false;
        }
        self.event(now_us, Event::Report { node, report: Box::new(report) }, out);
        true
    }

    /// A node's channel arrives, its session token checked; an older one of the same node is closed.
    pub fn channel_opened(&mut self, now_us: u64, conn: ConnId, node: NodeId, out: &mut Vec<Out>) {
        if let Some(older) = self.channel_of.insert(node, conn) {
            self.forget(older);
            out.push(Out::Close(older));
            self.event(now_us, Event::ChannelDown { node, by_node: false }, out);
        }
        let (mono_us, mut effects) = (self.mono_us(now_us), Vec::new());
        let link = Link::new(node, self.epoch, self.core.report_interval_ms(), mono_us, &mut effects);
        self.links.insert(conn, link);
        self.link_effects(now_us, conn, effects, out);
    }

    /// A message arrives on a channel.
    pub fn message(&mut self, now_us: u64, conn: ConnId, message: Bytes, out: &mut Vec<Out>) {
        self.with_link(now_us, conn, out, |link, mono_us, effects| link.receive(mono_us, message, effects));
    }

    /// A pong arrives on a channel.
    pub fn pong(&mut self, now_us: u64, conn: ConnId, out: &mut Vec<Out>) {
        self.with_link(now_us, conn, out, |link, mono_us, effects| link.pong(mono_us, effects));
    }

    /// A channel is seen to be closed by the other side.
    pub fn channel_closed(&mut self, now_us: u64, conn: ConnId, out: &mut Vec<Out>) {
        if let Some(node) = self.forget(conn) {
            self.event(now_us, Event::ChannelDown { node, by_node: true }, out);
        }
    }

    /// The transaction that was on its way is durable.
    pub fn committed(&mut self, now_us: u64, through: WriteSeq, out: &mut Vec<Out>) {
        self.committing = false;
        self.event(now_us, Event::Written { through }, out);
    }

    /// The disk refused the transaction that was on its way, up to this write; what has gathered since is void
    /// too, as with the real store.
    pub fn commit_failed(&mut self, now_us: u64, through: WriteSeq, out: &mut Vec<Out>) {
        self.committing = false;
        let through = self.gathered.last().map_or(through, |(seq, _)| *seq);
        self.gathered.clear();
        self.event(now_us, Event::WriteFailed { through, why: "the disk refuses".to_owned() }, out);
    }

    /// When the master wants to be woken, in time of the world.
    #[must_use]
    pub fn wake_us(&self) -> Option<u64> {
        let wanted = self.link_wake_us.values().copied().chain(self.core_wake_us).min();
        wanted.map(|mono_us| mono_us.saturating_add(self.started_us))
    }

    /// Time has passed.
    pub fn wake(&mut self, now_us: u64, out: &mut Vec<Out>) {
        let mono_us = self.mono_us(now_us);
        let due: Vec<ConnId> =
            self.link_wake_us.iter().filter(|(_, at)| **at <= mono_us).map(|(conn, _)| *conn).collect();
        for conn in due {
            self.link_wake_us.remove(&conn);
            self.with_link(now_us, conn, out, Link::tick);
        }
        if self.core_wake_us.is_some_and(|at| at <= mono_us) {
            self.core_wake_us = None;
            self.event(now_us, Event::Tick, out);
        }
    }

    fn forget(&mut self, conn: ConnId) -> Option<NodeId> {
        self.link_wake_us.remove(&conn);
        let node = self.links.remove(&conn)?.node();
        if self.channel_of.get(&node) == Some(&conn) {
            self.channel_of.remove(&node);
            return Some(node);
        }
        None
    }

    fn with_link(
        &mut self,
        now_us: u64,
        conn: ConnId,
        out: &mut Vec<Out>,
        act: impl FnOnce(&mut Link, u64, &mut Vec<LinkEffect>),
    ) {
        let mono_us = self.mono_us(now_us);
        let Some(link) = self.links.get_mut(&conn) else { return };
        let mut effects = Vec::new();
        act(link, mono_us, &mut effects);
        self.link_effects(now_us, conn, effects, out);
    }

    fn link_effects(&mut self, now_us: u64, conn: ConnId, effects: Vec<LinkEffect>, out: &mut Vec<Out>) {
        for effect in effects {
            match effect {
                LinkEffect::Inbound(inbound) => self.inbound(now_us, conn, inbound, out),
                LinkEffect::Send(message) => self.sent(conn, message, out),
                LinkEffect::Ping => out.push(Out::Ping(conn)),
                LinkEffect::WakeAt(mono_us) => drop(self.link_wake_us.insert(conn, mono_us)),
                LinkEffect::Close(_) => {
                    out.push(Out::Close(conn));
                    if let Some(node) = self.forget(conn) {
                        self.event(now_us, Event::ChannelDown { node, by_node: false }, out);
                    }
                }
            }
        }
    }

    fn sent(&mut self, conn: ConnId, message: Bytes, out: &mut Vec<Out>) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.written(message.len());
        }
        out.push(Out::Message(conn, message));
    }

    fn inbound(&mut self, now_us: u64, conn: ConnId, inbound: Inbound, out: &mut Vec<Out>) {
        let Some(node) = self.links.get(&conn).map(Link::node) else { return };
        let event = match inbound {
            Inbound::Up { boot_id, runs, draining } => Event::ChannelUp { node, boot_id, runs, draining },
            Inbound::HandedBack { runs, draining, reason } => {
                Event::HandedBack { node, runs, draining, reason }
            }
            Inbound::Leaving => Event::Leaving { node },
            // Nobody reads logs of running tasks here.
            Inbound::Heard | Inbound::Log(..) => Event::Heard { node },
            Inbound::Ended(ended) => {
                let session::master::Ended { task, run, outcome, result, run_ms, cpu_ms, sample, log } =
                    *ended;
                let node = self.believed(node, run);
                Event::RunEnded(Box::new(RunEnded {
                    node,
                    task,
                    run,
                    outcome,
                    result,
                    run_ms,
                    cpu_ms,
                    sample,
                    log,
                }))
            }
        };
        self.event(now_us, event, out);
    }

    /// Who is taken to say that a run ended.
    fn believed(&self, node: NodeId, run: RunId) -> NodeId {
        if self.plant != Some(Plant::ForgedBelieved) {
            return node;
        }
        self.given.get(&run).copied().unwrap_or(node)
    }

    fn perform(&mut self, now_us: u64, out: &mut Vec<Out>) {
        let mut to_flush = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send { order: Order::Committed { .. }, .. }
                    if self.plant == Some(Plant::CommittedUntold) => {}
                Effect::Write { seq, op } => self.gathered.push((seq, op)),
                Effect::Send { node, order } => {
                    if let Order::Run { run, .. } = &order
                        && self.plant == Some(Plant::ForgedBelieved)
                    {
                        self.given.insert(*run, node);
                    }
                    if let Some((conn, link)) =
                        self.channel_of.get(&node).and_then(|conn| Some((*conn, self.links.get_mut(conn)?)))
                    {
                        link.order(borrowed(&order));
                        to_flush.push(conn);
                    }
                }
                Effect::CloseChannel { node } => {
                    if let Some(conn) = self.channel_of.get(&node).copied() {
                        self.forget(conn);
                        out.push(Out::Close(conn));
                    }
                }
                Effect::Answer { reply, answer, .. } => out.push(Out::Answer(reply, answer)),
                Effect::Changed(_) => {}
                Effect::WakeAt { mono_us } => self.core_wake_us = Some(mono_us),
            }
        }
        if !self.committing && !self.gathered.is_empty() {
            self.committing = true;
            out.push(Out::Commit(std::mem::take(&mut self.gathered)));
        }
        to_flush.sort_unstable();
        to_flush.dedup();
        for conn in to_flush {
            self.with_link(now_us, conn, out, |link, _, effects| link.flush(effects));
        }
    }
}

/// The wall clock of the simulated world begins at 2026-01-01; a master's may be off.
const fn time(now_us: u64, started_us: u64, wall_off_ms: i64) -> Now {
    // Simulated time is hours at most, so the cast is exact.
    let wall = Timestamp(1_767_225_600_000 + wall_off_ms + (now_us / 1_000) as i64);
    Now { mono_us: now_us - started_us, wall }
}

fn borrowed(order: &Order) -> session::master::Order<'_> {
    match order {
        Order::Run { task, run, kind, input, timeout_ms, deadline_in_ms, cores, memory_bytes } => {
            session::master::Order::Run {
                task: *task,
                run: *run,
                kind,
                input: input.get(),
                timeout_ms: *timeout_ms,
                deadline_in_ms: *deadline_in_ms,
                cores: *cores,
                memory_bytes: *memory_bytes,
            }
        }
        Order::Cancel { run } => session::master::Order::Cancel { run: *run },
        Order::Committed { run } => session::master::Order::Committed { run: *run },
        Order::Drain { deadline_ms } => session::master::Order::Drain { deadline_ms: *deadline_ms },
        Order::Resume => session::master::Order::Resume,
    }
}
