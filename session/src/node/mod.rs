//! The node's end of the work channel. It lives as long as the process and survives reconnects.
//!
//! The life of a connection: register → connect → say hello → wait for the welcome → open; from anywhere
//! back to a jittered back-off, and to registering again when the master does not know the node.
//! The life of a run: taken → (waits for a slot) → started → ended, its result kept → committed; or handed
//! back. `runs` keeps these, `drain` ends them early, `logs` answers who reads what they print, `hear` does what
//! the master says, and this module keeps the connection.

mod drain;
mod effect;
mod hear;
mod logs;
mod runs;

pub use drain::LEAVE_GRACE_US;
pub use effect::{Bearer, Config, ConnectFailure, Effect, ExitReason, LogPiece, RegisterFailure};
pub use logs::{LOG_WINDOW_BYTES, MAX_LOG_READS, MAX_LOG_WAIT_MS};
pub use runs::{Ended, slots_of_run};

use crate::{backoff::Backoff, close::CloseReason, outbox::Outbox};
use bytes::Bytes;
use drain::Draining;
use logs::Reads;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::split_frames,
    work::{HandBack, Hello, PING_INTERVAL_MS, RunRef, ToMaster, ToNode, VERSION},
};
use runs::{Runs, Startable, Unsent};

/// The welcome must come within this after the channel opened.
pub const WELCOME_TIMEOUT_US: u64 = 5_000_000;
/// The channel is closed when nothing, not even a ping, came for so long.
pub const SILENCE_US: u64 = 3 * PING_INTERVAL_MS * 1_000;
/// A channel that was open for so long makes the next back-off start anew.
const STABLE_US: u64 = 5_000_000;
/// Bytes that may wait to be written; further results stay where they are kept until some are written.
pub const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// Results are gathered for so long while other runs wait here for a slot: the node has work, so the master
/// need not hurry, and a message of its own would cost as much as a short run.
pub const GATHER_US: u64 = 8_000;
/// So many results are enough for a message.
const GATHERED: usize = 16;
/// Most runs in one frame, so that its header stays below the bound of headers.
const MAX_IDS: usize = 8_192;
/// Longest reason that is sent, in characters.
const MAX_REASON_CHARS: usize = 1_024;
/// A timer that fires so much too late means that this process was stopped, not that the master was silent.
const LATE_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    RegisterAt { us: u64, bearer: Bearer },
    Registering { bearer: Bearer },
    ConnectAt { us: u64 },
    Connecting,
    Greeting { until_us: u64 },
    Open { since_us: u64 },
    Closing,
    Exited,
}

/// The node's end of the work channel.
#[derive(Debug)]
pub struct Session {
    boot_id: BootId,
    phase: Phase,
    node: Option<NodeId>,
    /// Highest epoch seen.
    epoch: u64,
    report_interval_ms: u64,
    backoff: Backoff,
    runs: Runs,
    /// Reads of this channel.
    reads: Reads,
    draining: Option<Draining>,
    /// Whether our own drain is still to be told on this channel.
    tell_draining: bool,
    handbacks: Vec<(String, Vec<RunRef>)>,
    /// When the results that are being gathered have to go.
    results_due_us: Option<u64>,
    outbox: Outbox,
    waiting_bytes: usize,
    last_heard_us: u64,
    wake_us: Option<u64>,
}

impl Session {
    /// The session of one life of the process. [`Session::start`] begins it.
    #[must_use]
    pub fn new(config: Config, boot_id: BootId) -> Self {
        Self {
            boot_id,
            phase: Phase::Idle,
            node: None,
            epoch: 0,
            report_interval_ms: 500,
            backoff: Backoff::new(250, 2_000),
            runs: Runs::new(config),
            reads: Reads::default(),
            draining: None,
            tell_draining: false,
            handbacks: Vec::new(),
            results_due_us: None,
            outbox: Outbox::default(),
            waiting_bytes: 0,
            last_heard_us: 0,
            wake_us: None,
        }
    }

    /// Begins: registers with the join token.
    pub fn start(&mut self, now_us: u64, out: &mut Vec<Effect>) {
        if self.phase == Phase::Idle {
            self.register(Bearer::Join, out);
        }
        self.settle(now_us, out);
    }

    /// The registration was accepted.
    pub fn registered(&mut self, now_us: u64, node: NodeId, report_interval_ms: u64, out: &mut Vec<Effect>) {
        if let Phase::Registering { .. } = self.phase {
            self.node = Some(node);
            self.report_interval_ms = hear::bounded_interval(report_interval_ms);
            self.connect(out);
        }
        self.settle(now_us, out);
    }

    /// The registration failed. `fraction` is random, 0 ≤ f < 1.
    pub fn register_failed(
        &mut self,
        now_us: u64,
        failure: RegisterFailure,
        fraction: f64,
        out: &mut Vec<Effect>,
    ) {
        if let Phase::Registering { bearer } = self.phase {
            match (failure, bearer) {
                // The old session may simply be forgotten: the join token decides.
                (RegisterFailure::NotAuthorised(_), Bearer::Session) => self.register(Bearer::Join, out),
                (RegisterFailure::NotAuthorised(why), Bearer::Join) => {
                    self.exit(ExitReason::NotAuthorised(why), out);
                }
                (RegisterFailure::Refused(why), _) => self.exit(ExitReason::Refused(why), out),
                (RegisterFailure::Transient, bearer) => {
                    let us = now_us.saturating_add(self.backoff.fail(fraction));
                    self.phase = Phase::RegisterAt { us, bearer };
                }
            }
        }
        self.settle(now_us, out);
    }

    /// The channel is open: says hello.
    pub fn connected(&mut self, now_us: u64, out: &mut Vec<Effect>) {
        if let (Phase::Connecting, Some(node)) = (self.phase, self.node) {
            self.phase = Phase::Greeting { until_us: now_us.saturating_add(WELCOME_TIMEOUT_US) };
            self.last_heard_us = now_us;
            self.waiting_bytes = 0;
            self.outbox.clear();
            self.reads.clear();
            // What the list does not hold is handed back already by not being in it.
            self.handbacks.clear();
            self.tell_draining = false;
            let hello = ToMaster::Hello(Hello {
                epoch: self.epoch,
                version: VERSION,
                node,
                boot_id: self.boot_id,
                runs: self.runs.all(),
                draining: self.own_drain(),
            });
            self.outbox.put(|message| hello.put(message));
            self.send_gathered(out);
        }
        self.settle(now_us, out);
    }

    /// The channel could not be opened. `fraction` is random, 0 ≤ f < 1.
    pub fn connect_failed(
        &mut self,
        now_us: u64,
        failure: ConnectFailure,
        fraction: f64,
        out: &mut Vec<Effect>,
    ) {
        if self.phase == Phase::Connecting {
            let us = now_us.saturating_add(self.backoff.fail(fraction));
            self.phase = match failure {
                ConnectFailure::Unknown => Phase::RegisterAt { us, bearer: Bearer::Session },
                ConnectFailure::Transient => Phase::ConnectAt { us },
            };
        }
        self.settle(now_us, out);
    }

    /// The channel ended, whoever closed it. `fraction` is random, 0 ≤ f < 1.
    pub fn disconnected(&mut self, now_us: u64, fraction: f64, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Open { since_us } if now_us.saturating_sub(since_us) >= STABLE_US => self.backoff.reset(),
            Phase::Open { .. } | Phase::Greeting { .. } | Phase::Closing => {}
            _ => return,
        }
        self.outbox.clear();
        self.reads.clear();
        self.waiting_bytes = 0;
        self.phase = Phase::ConnectAt { us: now_us.saturating_add(self.backoff.fail(fraction)) };
        self.settle(now_us, out);
    }

    /// A sign of life without a message: the master's ping came.
    pub const fn heard(&mut self, now_us: u64) {
        self.last_heard_us = now_us;
    }

    /// A binary message came. What cannot be read closes the channel; frames before the bad one count.
    pub fn receive(&mut self, now_us: u64, message: Bytes, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Greeting { .. } | Phase::Open { .. }) {
            return;
        }
        self.last_heard_us = now_us;
        match split_frames(message) {
            Err(error) => self.close(CloseReason::Malformed(error.to_string()), out),
            Ok(frames) => {
                for frame in &frames {
                    match ToNode::read(frame) {
                        Err(error) => self.close(CloseReason::Malformed(error.to_string()), out),
                        Ok(Some(said)) => self.said(now_us, said, out),
                        Ok(None) => {}
                    }
                    if self.phase == Phase::Closing {
                        break;
                    }
                }
            }
        }
        self.settle(now_us, out);
    }

    /// So many bytes of what was sent are written to the socket.
    pub const fn written(&mut self, bytes: usize) {
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
    }

    /// A started run ended. A result over `MAX_RESULT_BYTES` fails it with `result_too_large`.
    /// Its result goes out with the next [`Session::flush`]. Of an executor that gathers ends itself `now_us` is
    /// when it began to.
    pub fn ended(&mut self, now_us: u64, run: RunId, ended: Ended, out: &mut Vec<Effect>) {
        self.runs.ended(run, ended);
        self.reads.look(run, None);
        self.results_due_us.get_or_insert(now_us.saturating_add(GATHER_US));
        self.settle(now_us, out);
    }

    /// A started run could not be run here (its kind is not here, the agent is at fault): it goes back to
    /// the master and costs no attempt.
    pub fn gave_back(&mut self, now_us: u64, run: RunId, reason: &str, out: &mut Vec<Effect>) {
        self.reads.look(run, None);
        if let Some(back) = self.runs.gave_back(run) {
            let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
            self.hand_back(&reason, [back]);
        }
        self.settle(now_us, out);
    }

    /// The node has so many slots now. Runs that have started are not touched; those that were given ahead go
    /// back to the master, as they were meant for the slots that there were.
    pub fn resize(&mut self, now_us: u64, slots: u32, out: &mut Vec<Effect>) {
        self.runs.resize(slots);
        self.take_back_ahead(out);
        self.settle(now_us, out);
    }

    /// The process was asked to end: takes no more work, finishes what runs, hands back what has not
    /// started, and after `deadline_ms` also what runs; then leaves ([`Effect::Exit`]).
    pub fn leave(&mut self, now_us: u64, deadline_ms: Option<u64>, out: &mut Vec<Effect>) {
        if !self.own_drain() {
            self.tell_draining = true;
            self.drain(now_us, true, deadline_ms, out);
        }
        self.settle(now_us, out);
    }

    /// Time passed.
    pub fn tick(&mut self, now_us: u64, out: &mut Vec<Effect>) {
        // The shell's timer is used up, so the next time is named even if it is the same.
        self.wake_us = None;
        match self.phase {
            Phase::RegisterAt { us, bearer } if now_us >= us => self.register(bearer, out),
            Phase::ConnectAt { us } if now_us >= us => self.connect(out),
            Phase::Greeting { until_us } if now_us >= until_us => self.close(CloseReason::NoGreeting, out),
            Phase::Open { .. } => {
                let due_us = self.last_heard_us.saturating_add(SILENCE_US);
                if now_us >= due_us.saturating_add(LATE_US) {
                    self.last_heard_us = now_us.saturating_sub(SILENCE_US - PING_INTERVAL_MS * 1_000);
                } else if now_us >= due_us {
                    self.close(CloseReason::Silent, out);
                }
                self.log_waits_over(now_us);
            }
            _ => {}
        }
        self.settle(now_us, out);
    }

    /// Sends what was gathered, in as few messages as possible: call it after each batch of events. Results
    /// past [`WINDOW_BYTES`] stay until some are written; while runs wait for a slot, results wait for others
    /// for up to [`GATHER_US`].
    pub fn flush(&mut self, now_us: u64, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Open { .. }) {
            return;
        }
        let (epoch, draining) = (self.epoch, self.own_drain());
        if self.tell_draining && self.handbacks.is_empty() {
            self.handbacks.push(("draining".to_owned(), Vec::new()));
        }
        self.tell_draining = false;
        for (reason, runs) in std::mem::take(&mut self.handbacks) {
            // Of an empty list one frame goes out all the same: it says that the node drains.
            let mut rest = runs.as_slice();
            loop {
                let (now, later) = rest.split_at(rest.len().min(MAX_IDS));
                let (runs, reason) = (now.to_vec(), reason.clone());
                let back = ToMaster::HandBack(HandBack { epoch, runs, reason, draining });
                self.outbox.put(|message| back.put(message));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        if !self.gathers(now_us) {
            self.results_due_us = None;
            while self.waiting_bytes.saturating_add(self.outbox.bytes()) < WINDOW_BYTES {
                let Some(Unsent { header, body, log }) = self.runs.next_unsent(epoch) else { break };
                if let Some(tails) = log {
                    self.send_tails(header.run, &tails);
                }
                self.outbox.put(|message| ToMaster::Result(header, body).put(message));
            }
        }
        self.serve_reads(out);
        self.send_gathered(out);
        self.schedule(out);
    }

    /// Whether results wait for others to go with.
    fn gathers(&self, now_us: u64) -> bool {
        self.results_due_us.is_some_and(|due_us| now_us < due_us)
            && self.runs.has_backlog()
            && self.runs.unsent() < GATHERED
            && self.draining.is_none()
    }

    /// Whether the greeting is done.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// The node's id, once it has registered.
    #[must_use]
    pub const fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Highest epoch seen.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A master answered a report, and said how often to report from now on, and by which epoch it leads (0 if it
    /// did not). If that is higher than the one of the channel, another master leads while the one at the channel's
    /// other end stands still or is cut off: the channel is of no use any more.
    pub fn report_answered(
        &mut self,
        now_us: u64,
        report_interval_ms: u64,
        epoch: u64,
        out: &mut Vec<Effect>,
    ) {
        self.report_interval_ms = hear::bounded_interval(report_interval_ms);
        if epoch > self.epoch && self.is_open() {
            self.close(CloseReason::Deposed { seen: epoch, ours: self.epoch }, out);
            self.settle(now_us, out);
        }
    }

    /// How often to report, as the master said last.
    #[must_use]
    pub const fn report_interval_ms(&self) -> u64 {
        self.report_interval_ms
    }

    /// Whether it takes no new work, of its own accord or by order.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Runs that have started and not ended, for reports.
    pub fn running(&self) -> impl Iterator<Item = (RunId, TaskId)> + '_ {
        self.runs.running()
    }

    /// Runs that were taken and wait for a slot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.runs.waiting()
    }

    /// Results that were not called committed.
    #[must_use]
    pub fn uncommitted(&self) -> usize {
        self.runs.kept()
    }

    fn own_drain(&self) -> bool {
        self.draining.is_some_and(|drain| drain.own)
    }

    fn register(&mut self, bearer: Bearer, out: &mut Vec<Effect>) {
        self.phase = Phase::Registering { bearer };
        out.push(Effect::Register { bearer });
    }

    fn connect(&mut self, out: &mut Vec<Effect>) {
        if let Some(node) = self.node {
            self.phase = Phase::Connecting;
            out.push(Effect::Connect { node });
        }
    }

    fn close(&mut self, reason: CloseReason, out: &mut Vec<Effect>) {
        self.phase = Phase::Closing;
        self.outbox.clear();
        out.push(Effect::Close(reason));
    }

    fn exit(&mut self, reason: ExitReason, out: &mut Vec<Effect>) {
        self.phase = Phase::Exited;
        out.push(Effect::Exit(reason));
    }

    fn send_gathered(&mut self, out: &mut Vec<Effect>) {
        for message in self.outbox.take() {
            self.waiting_bytes = self.waiting_bytes.saturating_add(message.len());
            out.push(Effect::Send(message));
        }
    }

    /// Wants all runs back that were given ahead and have not begun.
    fn take_back_ahead(&mut self, out: &mut Vec<Effect>) {
        out.extend(self.runs.take_back_ahead().into_iter().map(Effect::TakeBack));
    }

    fn hand_back(&mut self, reason: &str, runs: impl IntoIterator<Item = RunRef>) {
        match self.handbacks.iter_mut().find(|(known, _)| known == reason) {
            Some((_, list)) => list.extend(runs),
            None => self.handbacks.push((reason.to_owned(), runs.into_iter().collect())),
        }
    }

    /// What follows from the state after every event: slots are filled, a drain goes on, timers are set.
    fn settle(&mut self, now_us: u64, out: &mut Vec<Effect>) {
        if self.phase == Phase::Exited {
            return;
        }
        for Startable { header, input, ahead } in self.runs.startable(now_us) {
            self.reads.look(header.run, None);
            let header = Box::new(header);
            out.push(if ahead { Effect::StartNext(header, input) } else { Effect::Start(header, input) });
        }
        if let Some(mut drain) = self.draining {
            self.drain_on(now_us, &mut drain, out);
            self.draining = Some(drain);
            if self.phase == Phase::Exited {
                return;
            }
        }
        self.schedule(out);
    }

    fn schedule(&mut self, out: &mut Vec<Effect>) {
        let phase = match self.phase {
            Phase::RegisterAt { us, .. } | Phase::ConnectAt { us } => Some(us),
            Phase::Greeting { until_us } => Some(until_us),
            Phase::Open { .. } => {
                let silence_us = self.last_heard_us.saturating_add(SILENCE_US);
                Some(self.reads.wake_us().map_or(silence_us, |read_us| read_us.min(silence_us)))
            }
            _ => None,
        };
        let drain = self.draining.and_then(|drain| match drain.give_up_us {
            Some(us) => Some(us),
            None => drain.deadline_us.filter(|_| !drain.expired),
        });
        let results = self.results_due_us.filter(|_| self.is_open());
        let wake_us = phase.into_iter().chain(drain).chain(results).min();
        if self.wake_us != wake_us {
            self.wake_us = wake_us;
            out.extend(wake_us.map(Effect::WakeAt));
        }
    }
}
