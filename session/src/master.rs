//! The master's end of one open work channel.

pub use crate::result::Ended;

use crate::{
    close::CloseReason,
    outbox::Outbox,
    result::{checked, cut},
    tails::Gathering,
};
use bytes::Bytes;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::split_frames,
    log::{LOG_PIECE_BYTES, Stream},
    work::{
        Cancel, Committed, Drain, Hello, LogChunk, LogRead, PING_INTERVAL_MS, Resume, Run, RunRef, ToMaster,
        ToNode, VERSION, Welcome,
    },
};

/// The node's greeting must come within this after the channel opened.
pub const HELLO_TIMEOUT_US: u64 = 5_000_000;
/// A ping goes out this often.
pub const PING_INTERVAL_US: u64 = PING_INTERVAL_MS * 1_000;
/// Pings in a row without any sign of life after which, one interval later, the channel is closed: so after
/// 10 … 15 s of silence. Counted in pings that were really sent, so that a master that was stopped for a
/// while does not blame its nodes.
pub const SILENT_PINGS: u32 = 2;
/// Most bytes that may wait to be written to one node. Past this the channel is closed
/// ([`CloseReason::Overflow`]): the node reconnects and the scheduler sees at its greeting what never arrived.
/// It is more than a node of 100 slots can be sent at once.
pub const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;
/// Most ids in one frame, so that a header stays far below the bound of headers.
const MAX_IDS: usize = 16_384;

/// Something for the shell to do. Effects are done in order.
#[derive(Clone, Debug)]
pub enum LinkEffect {
    /// Tell the scheduler.
    Inbound(Inbound),
    /// Write this WebSocket message; once it is written, say so with [`Link::written`].
    Send(Bytes),
    /// Write a WebSocket ping.
    Ping,
    /// Close the channel, after what was sent before is written or a second has passed. Nothing comes from
    /// this link any more; the scheduler is told of the end by the shell, which knows who closed.
    Close(CloseReason),
    /// Call [`Link::tick`] at this time (monotonic microseconds); replaces the time named before.
    WakeAt(u64),
}

/// What a node said.
#[derive(Clone, Debug)]
pub enum Inbound {
    /// It said hello: the channel is up. Comes once, before all others.
    Up {
        /// This life of its process.
        boot_id: BootId,
        /// Runs that it has and that were not called committed.
        runs: Vec<RunRef>,
        /// Whether it drains of its own accord.
        draining: bool,
    },
    /// A run ended.
    Ended(Box<Ended>),
    /// It hands runs back without having ended them; the list may be empty when only `draining` is news.
    HandedBack {
        /// The runs.
        runs: Vec<RunRef>,
        /// Whether the node takes no work from now on.
        draining: bool,
        /// For people.
        reason: String,
    },
    /// It leaves in order.
    Leaving,
    /// The answer to a [`Link::read_log`], with at most `LOG_PIECE_BYTES`.
    Log(LogChunk, Bytes),
    /// A sign of life that carries nothing else.
    Heard,
}

/// An order for the node, without the epoch, which the link adds.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// Run this.
    Run {
        /// The task.
        task: TaskId,
        /// The hand-out.
        run: RunId,
        /// Name of the kind.
        kind: &'a str,
        /// Its input as JSON text, at most `MAX_BODY_BYTES`.
        input: &'a str,
        /// Bound of the running time.
        timeout_ms: Option<u64>,
        /// What is left of the deadline.
        deadline_in_ms: Option<u64>,
        /// Threads that it keeps busy.
        cores: f64,
        /// Memory set aside for it.
        memory_bytes: u64,
    },
    /// Stop this run.
    Cancel {
        /// The hand-out.
        run: RunId,
    },
    /// The run's result is recorded, or will never be wanted.
    Committed {
        /// The hand-out.
        run: RunId,
    },
    /// Take no new work.
    Drain {
        /// Running tasks may go on this long.
        deadline_ms: Option<u64>,
    },
    /// Take work again.
    Resume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitHello { until_us: u64 },
    Open,
    Closed,
}

/// The master's end of one open work channel. One for each channel; a reconnect makes a new one.
#[derive(Debug)]
pub struct Link {
    node: NodeId,
    epoch: u64,
    report_interval_ms: u64,
    phase: Phase,
    outbox: Outbox,
    cancels: Vec<RunId>,
    committed: Vec<RunId>,
    gathering: Gathering,
    waiting_bytes: usize,
    next_ping_us: u64,
    unanswered_pings: u32,
    wake_us: Option<u64>,
}

impl Link {
    /// A channel was opened for `node` (of the URL; its session token was checked). `epoch` is the master's,
    /// `report_interval_ms` goes into the welcome.
    pub fn new(
        node: NodeId,
        epoch: u64,
        report_interval_ms: u64,
        now_us: u64,
        out: &mut Vec<LinkEffect>,
    ) -> Self {
        let mut link = Self {
            node,
            epoch,
            report_interval_ms,
            phase: Phase::AwaitHello { until_us: now_us.saturating_add(HELLO_TIMEOUT_US) },
            outbox: Outbox::default(),
            cancels: Vec::new(),
            committed: Vec::new(),
            gathering: Gathering::default(),
            waiting_bytes: 0,
            next_ping_us: now_us.saturating_add(PING_INTERVAL_US),
            unanswered_pings: 0,
            wake_us: None,
        };
        link.schedule(out);
        link
    }

    /// The node of the URL.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Whether the greeting is done and the channel was not closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Bytes that were sent and not yet called written.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// A binary message came. What cannot be read closes the channel; frames before the bad one count.
    pub fn receive(&mut self, _now_us: u64, message: Bytes, out: &mut Vec<LinkEffect>) {
        if self.phase == Phase::Closed {
            return;
        }
        self.unanswered_pings = 0;
        let before = out.len();
        match split_frames(message) {
            Err(error) => self.close(CloseReason::Malformed(error.to_string()), out),
            Ok(frames) => {
                for frame in &frames {
                    match ToMaster::read(frame) {
                        Err(error) => self.close(CloseReason::Malformed(error.to_string()), out),
                        Ok(Some(said)) => self.said(said, out),
                        Ok(None) => {}
                    }
                    if self.phase == Phase::Closed {
                        return;
                    }
                }
            }
        }
        if self.phase == Phase::Open && out.len() == before {
            out.push(LinkEffect::Inbound(Inbound::Heard));
        }
        self.schedule(out);
    }

    /// A pong (or a ping) came.
    pub fn pong(&mut self, _now_us: u64, out: &mut Vec<LinkEffect>) {
        self.unanswered_pings = 0;
        if self.phase == Phase::Open {
            out.push(LinkEffect::Inbound(Inbound::Heard));
        }
    }

    /// So many bytes of what was sent are written to the socket.
    pub const fn written(&mut self, bytes: usize) {
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
    }

    /// Gathers an order; it goes out with the next [`Link::flush`]. Cancels and commits of one flush are
    /// merged and go after its runs, so a cancel never overtakes its run.
    ///
    /// Before the greeting orders are dropped: at [`Inbound::Up`] the node says what it has, and the
    /// scheduler gives out anew what is not there.
    pub fn order(&mut self, order: Order<'_>) {
        if self.phase != Phase::Open {
            return;
        }
        let epoch = self.epoch;
        match order {
            Order::Run { task, run, kind, input, timeout_ms, deadline_in_ms, cores, memory_bytes } => {
                let kind = kind.to_owned();
                let header = Run { epoch, task, run, kind, timeout_ms, deadline_in_ms, cores, memory_bytes };
                let frame = ToNode::Run(header, Bytes::copy_from_slice(input.as_bytes()));
                self.outbox.put(|message| frame.put(message));
            }
            Order::Cancel { run } => self.cancels.push(run),
            Order::Committed { run } => self.committed.push(run),
            Order::Drain { deadline_ms } => {
                self.outbox.put(|message| ToNode::Drain(Drain { epoch, deadline_ms }).put(message));
            }
            Order::Resume => self.outbox.put(|message| ToNode::Resume(Resume { epoch }).put(message)),
        }
    }

    /// Gathers a read of what a run prints, as [`Link::order`] does; `read` names it and is not used twice. It
    /// is answered by [`Inbound::Log`], but for a node that is older than this. Says whether the channel is open;
    /// if not, it is not asked.
    pub fn read_log(&mut self, (read, run): (u64, RunId), stream: Stream, offset: u64, wait_ms: u64) -> bool {
        let open = self.is_open();
        if open {
            let ask = LogRead { epoch: self.epoch, read, run, stream, offset, wait_ms };
            self.outbox.put(|message| ToNode::LogRead(ask).put(message));
        }
        open
    }

    /// Sends what was gathered, in as few messages as possible. Past [`MAX_WAITING_BYTES`] the channel is
    /// closed instead.
    pub fn flush(&mut self, out: &mut Vec<LinkEffect>) {
        if self.phase == Phase::Closed {
            return;
        }
        let epoch = self.epoch;
        let cancels = std::mem::take(&mut self.cancels);
        for runs in cancels.chunks(MAX_IDS).map(<[RunId]>::to_vec) {
            self.outbox.put(|message| ToNode::Cancel(Cancel { epoch, runs }).put(message));
        }
        let committed = std::mem::take(&mut self.committed);
        for runs in committed.chunks(MAX_IDS).map(<[RunId]>::to_vec) {
            self.outbox.put(|message| ToNode::Committed(Committed { epoch, runs }).put(message));
        }
        let bytes = self.waiting_bytes.saturating_add(self.outbox.bytes());
        if bytes > MAX_WAITING_BYTES {
            return self.close(CloseReason::Overflow { bytes }, out);
        }
        self.waiting_bytes = bytes;
        out.extend(self.outbox.take().into_iter().map(LinkEffect::Send));
    }

    /// Time passed.
    pub fn tick(&mut self, now_us: u64, out: &mut Vec<LinkEffect>) {
        // The shell's timer is used up, so the next time is named even if it is the same.
        self.wake_us = None;
        match self.phase {
            Phase::Closed => return,
            Phase::AwaitHello { until_us } if now_us >= until_us => {
                return self.close(CloseReason::NoGreeting, out);
            }
            Phase::AwaitHello { .. } | Phase::Open => {}
        }
        if now_us >= self.next_ping_us {
            if self.unanswered_pings >= SILENT_PINGS {
                return self.close(CloseReason::Silent, out);
            }
            self.unanswered_pings += 1;
            self.next_ping_us = now_us.saturating_add(PING_INTERVAL_US);
            out.push(LinkEffect::Ping);
        }
        self.schedule(out);
    }

    /// Closes the channel from the master's side; what was gathered and not flushed is dropped.
    pub fn close(&mut self, reason: CloseReason, out: &mut Vec<LinkEffect>) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            self.outbox.clear();
            self.cancels.clear();
            self.committed.clear();
            out.push(LinkEffect::Close(reason));
        }
    }

    fn schedule(&mut self, out: &mut Vec<LinkEffect>) {
        let wake_us = match self.phase {
            Phase::Closed => return,
            Phase::AwaitHello { until_us } => until_us.min(self.next_ping_us),
            Phase::Open => self.next_ping_us,
        };
        if self.wake_us != Some(wake_us) {
            self.wake_us = Some(wake_us);
            out.push(LinkEffect::WakeAt(wake_us));
        }
    }

    fn said(&mut self, said: ToMaster, out: &mut Vec<LinkEffect>) {
        let seen = said.epoch();
        if seen > self.epoch {
            return self.close(CloseReason::Deposed { seen, ours: self.epoch }, out);
        }
        let open = self.phase == Phase::Open;
        match said {
            ToMaster::Hello(hello) if !open => self.greet(hello, out),
            ToMaster::Hello(_) => self.close(CloseReason::Protocol("a second hello"), out),
            _ if !open => self.close(CloseReason::Protocol("the first frame is not a hello"), out),
            ToMaster::Result(header, body) => {
                let log = self.gathering.take(header.run);
                out.push(LinkEffect::Inbound(Inbound::Ended(Box::new(checked(header, &body, log)))));
            }
            ToMaster::LogTail(header, part) => self.gathering.add(header, &part),
            ToMaster::LogChunk(chunk, mut piece) => {
                piece.truncate(LOG_PIECE_BYTES);
                out.push(LinkEffect::Inbound(Inbound::Log(chunk, piece)));
            }
            ToMaster::HandBack(back) => out.push(LinkEffect::Inbound(Inbound::HandedBack {
                runs: back.runs,
                draining: back.draining,
                reason: cut(back.reason),
            })),
            ToMaster::Leaving(_) => out.push(LinkEffect::Inbound(Inbound::Leaving)),
        }
    }

    fn greet(&mut self, hello: Hello, out: &mut Vec<LinkEffect>) {
        if hello.node != self.node {
            return self.close(CloseReason::WrongNode { said: hello.node }, out);
        }
        // A node one version ahead speaks ours too; more than one apart in either direction does not.
        if hello.version == 0 || hello.version.abs_diff(VERSION) > 1 {
            return self.close(CloseReason::Version { theirs: hello.version, ours: VERSION }, out);
        }
        self.phase = Phase::Open;
        let welcome = ToNode::Welcome(Welcome {
            epoch: self.epoch,
            version: hello.version.min(VERSION),
            report_interval_ms: self.report_interval_ms,
        });
        self.outbox.put(|message| welcome.put(message));
        self.flush(out);
        out.push(LinkEffect::Inbound(Inbound::Up {
            boot_id: hello.boot_id,
            runs: hello.runs,
            draining: hello.draining,
        }));
    }
}
