//! All open work channels: each a [`session::master::Link`] and the way to its socket.

use super::{
    mailbox::{FromSocket, LinkId, LogAsk, LogReply, Socket, ToSocket},
    watchers::LogReads,
};
use protocol::NodeId;
use scheduler::{
    effect::Order,
    event::{Event, RunEnded},
};
use session::{
    close::CloseReason,
    master::{Inbound, Link, LinkEffect, Order as LinkOrder},
};
use std::collections::{BTreeSet, HashMap};

/// Most messages that wait for one socket; past it the channel is closed, because the node does not read.
pub(super) const SOCKET_QUEUE: usize = 1_024;

struct Channel {
    link: Link,
    node: NodeId,
    socket: Socket,
    wake_us: Option<u64>,
}

/// All open work channels. A node has at most two: the one that greeted last, which is the one that counts,
/// and the one that was opened last, if it has not greeted yet.
#[derive(Default)]
pub(super) struct Channels {
    channels: HashMap<LinkId, Channel>,
    current: HashMap<NodeId, LinkId>,
    ungreeted: HashMap<NodeId, LinkId>,
    timers: BTreeSet<(u64, LinkId)>,
    unflushed: BTreeSet<LinkId>,
    log_reads: LogReads,
    scratch: Vec<LinkEffect>,
}

impl Channels {
    /// When [`Channels::tick`] is due next.
    pub(super) fn wake_us(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// A channel was opened.
    pub(super) fn open(
        &mut self,
        id: LinkId,
        (node, epoch, report_interval_ms): (NodeId, u64, u64),
        socket: Socket,
        now_us: u64,
        events: &mut Vec<Event>,
    ) {
        if let Some(older) = self.ungreeted.insert(node, id) {
            self.with(older, events, |link, out| link.close(CloseReason::SessionOver, out));
        }
        let mut effects = std::mem::take(&mut self.scratch);
        let link = Link::new(node, epoch, report_interval_ms, now_us, &mut effects);
        self.channels.insert(id, Channel { link, node, socket, wake_us: None });
        self.perform(id, effects, events);
    }

    /// Something happened on a socket. A channel that was closed before is not asked any more.
    pub(super) fn socket(&mut self, id: LinkId, what: FromSocket, now_us: u64, events: &mut Vec<Event>) {
        match what {
            FromSocket::Message(message) => {
                self.with(id, events, |link, out| link.receive(now_us, message, out));
            }
            FromSocket::Pong => self.with(id, events, |link, out| link.pong(now_us, out)),
            FromSocket::Written(bytes) => self.with(id, events, |link, _| link.written(bytes)),
            FromSocket::Closed { by_node } => self.remove(id, by_node, events),
        }
    }

    /// Gathers an order for a node. Without a channel it is dropped: the scheduler learns from the next
    /// greeting what did not arrive.
    pub(super) fn order(&mut self, node: NodeId, order: &Order) {
        let Some(id) = self.current.get(&node) else { return };
        let Some(channel) = self.channels.get_mut(id) else { return };
        channel.link.order(link_order(order));
        self.unflushed.insert(*id);
    }

    /// Gathers a read of a log. Without an open channel nobody answers.
    pub(super) fn read_log(&mut self, ask: &LogAsk, reply: LogReply) {
        let LogAsk { node, run, stream, offset, wait_ms } = *ask;
        let Some(id) = self.current.get(&node) else { return };
        let Some(channel) = self.channels.get_mut(id) else { return };
        let read = self.log_reads.name();
        if channel.link.read_log((read, run), stream, offset, wait_ms) {
            self.log_reads.sent(read, *id, reply);
            self.unflushed.insert(*id);
        }
    }

    /// Closes a node's channel because the scheduler wants it; the scheduler is not told of the end.
    pub(super) fn close_node(&mut self, node: NodeId) {
        if let Some(id) = self.current.remove(&node) {
            self.with(id, &mut Vec::new(), |link, out| link.close(CloseReason::SessionOver, out));
        }
    }

    /// Closes all channels.
    pub(super) fn close_all(&mut self, reason: &CloseReason) {
        self.current.clear();
        for id in self.channels.keys().copied().collect::<Vec<_>>() {
            self.with(id, &mut Vec::new(), |link, out| link.close(reason.clone(), out));
        }
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now_us: u64, events: &mut Vec<Event>) {
        while let Some((_, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now_us) {
            self.set_timer(id, None);
            self.with(id, events, |link, out| link.tick(now_us, out));
        }
    }

    /// Sends what was gathered, as one message for each channel where it fits.
    pub(super) fn flush(&mut self, events: &mut Vec<Event>) {
        for id in std::mem::take(&mut self.unflushed) {
            self.with(id, events, Link::flush);
        }
    }

    fn with(
        &mut self,
        id: LinkId,
        events: &mut Vec<Event>,
        step: impl FnOnce(&mut Link, &mut Vec<LinkEffect>),
    ) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let mut effects = std::mem::take(&mut self.scratch);
        step(&mut channel.link, &mut effects);
        self.perform(id, effects, events);
    }

    fn perform(&mut self, id: LinkId, mut effects: Vec<LinkEffect>, events: &mut Vec<Event>) {
        for effect in effects.drain(..) {
            match effect {
                LinkEffect::Inbound(inbound) => self.inbound(id, inbound, events),
                LinkEffect::Send(message) => self.send(id, ToSocket::Message(message), events),
                LinkEffect::Ping => self.send(id, ToSocket::Ping, events),
                LinkEffect::Close(reason) => self.closed(id, reason, events),
                LinkEffect::WakeAt(at) => self.set_timer(id, Some(at)),
            }
        }
        self.scratch = effects;
    }

    fn send(&mut self, id: LinkId, message: ToSocket, events: &mut Vec<Event>) {
        let Some(channel) = self.channels.get(&id) else { return };
        if channel.socket.queue.try_send(message).is_err() {
            // Full: the node does not read. Closed: the socket's task has ended, and says so itself as well.
            let bytes = channel.link.waiting_bytes();
            self.closed(id, CloseReason::Overflow { bytes }, events);
        }
    }

    /// Our side closed a channel.
    fn closed(&mut self, id: LinkId, reason: CloseReason, events: &mut Vec<Event>) {
        let Some(channel) = self.channels.get(&id) else { return };
        tracing::info!(node = %channel.node, %reason, "work channel closed by us");
        // A queue without room for this is dropped with the channel below, which closes the socket too.
        let _full = channel.socket.queue.try_send(ToSocket::Close(reason));
        self.remove(id, false, events);
    }

    fn remove(&mut self, id: LinkId, by_node: bool, events: &mut Vec<Event>) {
        self.set_timer(id, None);
        self.unflushed.remove(&id);
        self.log_reads.over(id);
        let Some(channel) = self.channels.remove(&id) else { return };
        if self.ungreeted.get(&channel.node) == Some(&id) {
            self.ungreeted.remove(&channel.node);
        }
        if self.current.get(&channel.node) == Some(&id) {
            self.current.remove(&channel.node);
            events.push(Event::ChannelDown { node: channel.node, by_node });
        }
    }

    fn set_timer(&mut self, id: LinkId, at: Option<u64>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut channel.wake_us, at) {
            self.timers.remove(&(before, id));
        }
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
    }

    fn inbound(&mut self, id: LinkId, inbound: Inbound, events: &mut Vec<Event>) {
        if let Inbound::Log(chunk, piece) = inbound {
            return self.log_reads.answered(id, chunk, piece);
        }
        let Some(node) = self.channels.get(&id).map(|channel| channel.node) else { return };
        if let Inbound::Up { .. } = inbound {
            if self.ungreeted.get(&node) == Some(&id) {
                self.ungreeted.remove(&node);
            }
            self.supersede(node, id, events);
        }
        events.push(event(node, inbound));
    }

    /// The node greeted on this channel, so an older one is over, although its socket may not know yet.
    fn supersede(&mut self, node: NodeId, id: LinkId, events: &mut Vec<Event>) {
        if let Some(older) = self.current.insert(node, id) {
            events.push(Event::ChannelDown { node, by_node: true });
            if let Some(channel) = self.channels.get(&older) {
                let _full = channel.socket.queue.try_send(ToSocket::Close(CloseReason::SessionOver));
            }
            self.remove(older, true, events);
        }
    }
}

fn event(node: NodeId, inbound: Inbound) -> Event {
    match inbound {
        Inbound::Up { boot_id, runs, draining } => Event::ChannelUp { node, boot_id, runs, draining },
        Inbound::Ended(ended) => {
            let session::master::Ended { task, run, outcome, result, run_ms, cpu_ms, sample, log } = *ended;
            let ended = RunEnded { node, task, run, outcome, result, run_ms, cpu_ms, sample, log };
            Event::RunEnded(Box::new(ended))
        }
        Inbound::HandedBack { runs, draining, reason } => Event::HandedBack { node, runs, draining, reason },
        Inbound::Leaving => Event::Leaving { node },
        Inbound::Heard | Inbound::Log(..) => Event::Heard { node },
    }
}

fn link_order(order: &Order) -> LinkOrder<'_> {
    match order {
        Order::Run { task, run, kind, input, timeout_ms, deadline_in_ms, cores, memory_bytes } => {
            LinkOrder::Run {
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
        Order::Cancel { run } => LinkOrder::Cancel { run: *run },
        Order::Committed { run } => LinkOrder::Committed { run: *run },
        Order::Drain { deadline_ms } => LinkOrder::Drain { deadline_ms: *deadline_ms },
        Order::Resume => LinkOrder::Resume,
    }
}
