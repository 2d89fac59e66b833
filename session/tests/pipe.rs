//! The two ends joined by a pipe that loses whatever is in it when it breaks, that breaks at any time, and
//! that can deliver a message twice. A small model of the scheduler hands runs out and takes results.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use proptest::prelude::*;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    log::{LOG_PIECE_BYTES, Stream, Tail, Tails},
    work::{LogState, Outcome, RunRef},
};
use session::{
    close::CloseReason,
    master::{Inbound, Link, LinkEffect, Order},
    node::{Config, ConnectFailure, Effect, Ended, LogPiece, RegisterFailure, Session, slots_of_run},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}

/// What the master knows of a run.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    HandedOut,
    Recorded(Bytes),
    HandedBack,
    /// The node did not have it at a greeting: given out anew under another id.
    Requeued,
}

#[derive(Debug)]
struct World {
    now_us: u64,
    epoch: u64,
    counter: u64,
    link: Option<Link>,
    connected: bool,
    session: Session,
    to_node: VecDeque<Bytes>,
    to_master: VecDeque<Bytes>,
    last_to_node: Option<Bytes>,
    fates: BTreeMap<RunId, Fate>,
    uncommitted: BTreeSet<RunId>,
    starts: BTreeSet<RunId>,
    running: Vec<RunId>,
    /// The executor: its slots, those that each run takes, runs that wait for the end of another one, and ends
    /// that the session was not told of.
    slots: u32,
    takes: BTreeMap<RunId, u32>,
    next: VecDeque<RunId>,
    untold: VecDeque<(RunId, Ended)>,
    /// Runs that the session asked to stop.
    stopped: BTreeSet<RunId>,
    /// Runs that ended on the node without having been stopped.
    finished: BTreeSet<RunId>,
    wants_connect: bool,
    wants_register: bool,
    node_wake_us: Option<u64>,
    link_wake_us: Option<u64>,
    left: bool,
    /// How much each run has printed.
    printed: BTreeMap<RunId, u64>,
    /// Runs of which the executor was asked for output that there was not.
    awaited: BTreeSet<RunId>,
    /// Reads on the present channel that were not answered.
    reads: BTreeMap<u64, (RunId, u64)>,
    next_read: u64,
}

/// Bytes of a log that the executor keeps: more than goes into a frame.
const KEPT_BYTES: u64 = LOG_PIECE_BYTES as u64 + 1_000;

/// What a run prints there.
fn byte_at(run: RunId, offset: u64) -> u8 {
    (offset % 251) as u8 ^ run.0 as u8
}

fn tail_of(run: RunId, printed: u64) -> Tail {
    let offset = printed.saturating_sub(KEPT_BYTES);
    Tail { offset, bytes: (offset..printed).map(|at| byte_at(run, at)).collect::<Vec<_>>().into() }
}

fn ended(outcome: Outcome, result: Bytes) -> Ended {
    Ended { outcome, result, run_ms: 1.0, cpu_ms: 1.0, sample: None, log: None }
}

fn assert_printed(run: RunId, tail: &Tail) {
    assert!(tail.bytes.iter().zip(tail.offset..).all(|(&byte, at)| byte == byte_at(run, at)), "run {run}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    HandOut { cores: f64 },
    ToNode,
    ToMaster,
    Again,
    Break,
    Reconnect,
    ConnectFails { unknown: bool },
    Finish(usize),
    Tell,
    GiveBack(usize),
    Cancel(usize),
    Commit(usize),
    Print(usize, u64),
    ReadLog(usize, u64, u64),
    Drain { deadline_ms: Option<u64> },
    Resume,
    NewMaster,
    OldMaster,
    Wait(u64),
}

impl World {
    fn new(slots: u32, max_ahead: u32) -> Self {
        let config = Config { max_waiting: 2, max_ahead, ..Config::new(slots) };
        let mut world = Self {
            now_us: 1_000_000,
            epoch: 5,
            counter: 0,
            link: None,
            connected: false,
            session: Session::new(config, BootId(uuid(9))),
            to_node: VecDeque::new(),
            to_master: VecDeque::new(),
            last_to_node: None,
            fates: BTreeMap::new(),
            uncommitted: BTreeSet::new(),
            starts: BTreeSet::new(),
            running: Vec::new(),
            slots,
            takes: BTreeMap::new(),
            next: VecDeque::new(),
            untold: VecDeque::new(),
            stopped: BTreeSet::new(),
            finished: BTreeSet::new(),
            wants_connect: false,
            wants_register: false,
            node_wake_us: None,
            link_wake_us: None,
            left: false,
            printed: BTreeMap::new(),
            awaited: BTreeSet::new(),
            reads: BTreeMap::new(),
            next_read: 0,
        };
        world.node(|session, now, out| session.start(now, out));
        world
    }

    fn node(&mut self, event: impl FnOnce(&mut Session, u64, &mut Vec<Effect>)) {
        let mut out = Vec::new();
        event(&mut self.session, self.now_us, &mut out);
        self.session.flush(self.now_us, &mut out);
        while !out.is_empty() {
            for effect in std::mem::take(&mut out) {
                self.node_effect(effect, &mut out);
            }
            self.session.flush(self.now_us, &mut out);
        }
    }

    fn node_effect(&mut self, effect: Effect, out: &mut Vec<Effect>) {
        match effect {
            Effect::Register { .. } => self.wants_register = true,
            Effect::Connect { .. } => self.wants_connect = true,
            Effect::Send(message) if self.connected => self.to_master.push_back(message),
            Effect::Send(_) => panic!("sent without a channel"),
            Effect::Close(_) => self.cut(),
            Effect::Start(run, _) => {
                self.given(run.run);
                self.begin(run.run);
            }
            Effect::StartNext(run, _) => {
                assert_eq!(self.takes[&run.run], 1, "of one slot");
                self.given(run.run);
                self.next.push_back(run.run);
                self.begin_next();
            }
            Effect::TakeBack(run) => {
                if self.no_more_next(run) {
                    self.session.gave_back(self.now_us, run, "not begun", out);
                }
            }
            Effect::Cancel(run) => {
                assert!(self.has(run), "cancel of what the executor does not have");
                self.stopped.insert(run);
                if self.no_more_next(run) {
                    self.untold.push_back((run, ended(Outcome::Cancelled, Bytes::new())));
                }
            }
            Effect::ReadLog { read, run, offset, .. } => {
                assert!(self.has(run), "read of what the executor does not have");
                if self.untold.iter().any(|(over, _)| *over == run) {
                    return self.session.log_read(self.now_us, read, None, out);
                }
                let end = self.printed.get(&run).copied().unwrap_or(0);
                let tail = tail_of(run, end).piece(offset);
                if tail.bytes.is_empty() {
                    self.awaited.insert(run);
                }
                self.session.log_read(self.now_us, read, Some(LogPiece { tail, end }), out);
            }
            Effect::WakeAt(us) => self.node_wake_us = Some(us),
            Effect::Exit(_) => self.left = true,
        }
    }

    fn given(&mut self, run: RunId) {
        assert!(self.starts.insert(run), "run {run} was started twice");
        assert_ne!(self.fates[&run], Fate::HandedBack, "started after it was handed back");
    }

    fn begin(&mut self, run: RunId) {
        self.running.push(run);
        assert!(self.taken() <= self.slots, "more runs than slots");
    }

    /// Slots that are left begin what waits for them.
    fn begin_next(&mut self) {
        while self.taken() < self.slots
            && let Some(run) = self.next.pop_front()
        {
            self.begin(run);
        }
    }

    fn taken(&self) -> u32 {
        self.running.iter().map(|run| self.takes[run]).sum()
    }

    fn no_more_next(&mut self, run: RunId) -> bool {
        let before = self.next.len();
        self.next.retain(|&known| known != run);
        self.next.len() < before
    }

    /// Whether the session was not told of its end.
    fn has(&self, run: RunId) -> bool {
        let is_untold = self.untold.iter().any(|(over, _)| *over == run);
        is_untold || self.running.contains(&run) || self.next.contains(&run)
    }

    /// The session is told what is over.
    fn tell(&mut self) {
        let since_us = self.now_us;
        while let Some((run, ended)) = self.untold.pop_front() {
            if !self.stopped.contains(&run) {
                self.finished.insert(run);
            }
            self.node(|session, _, out| session.ended(since_us, run, ended, out));
        }
    }

    fn master(&mut self, event: impl FnOnce(&mut Link, u64, &mut Vec<LinkEffect>)) {
        let Some(mut link) = self.link.take() else { return };
        let mut out = Vec::new();
        event(&mut link, self.now_us, &mut out);
        let mut close = false;
        let mut i = 0;
        while i < out.len() {
            match out[i].clone() {
                LinkEffect::Inbound(inbound) => {
                    self.inbound(inbound, &mut link);
                    link.flush(&mut out);
                }
                LinkEffect::Send(message) => self.to_node.push_back(message),
                LinkEffect::Ping => {
                    self.session.heard(self.now_us);
                    link.pong(self.now_us, &mut out);
                }
                LinkEffect::Close(_) => close = true,
                LinkEffect::WakeAt(us) => self.link_wake_us = Some(us),
            }
            i += 1;
        }
        link.flush(&mut out);
        for effect in out.drain(i..) {
            if let LinkEffect::Send(message) = effect {
                self.to_node.push_back(message);
            }
        }
        self.link = Some(link);
        if close {
            self.cut();
        }
    }

    fn inbound(&mut self, inbound: Inbound, link: &mut Link) {
        match inbound {
            Inbound::Up { runs, .. } => {
                let has: BTreeSet<RunId> = runs.iter().map(|run| run.run).collect();
                for (run, fate) in &mut self.fates {
                    if *fate == Fate::HandedOut && !has.contains(run) {
                        *fate = Fate::Requeued;
                    }
                }
                for run in has {
                    if matches!(self.fates[&run], Fate::Requeued | Fate::HandedBack) {
                        link.order(Order::Cancel { run });
                        link.order(Order::Committed { run });
                    }
                }
            }
            Inbound::Ended(ended) => {
                let printed = self.printed.get(&ended.run).copied().unwrap_or(0);
                let log = ended.log.unwrap_or_default();
                assert_eq!(log.stderr, tail_of(ended.run, printed), "the log of run {}", ended.run);
                assert!(log.stdout.bytes.is_empty());
                let result = Bytes::from(ended.result.map_or(String::new(), |json| json.get().to_owned()));
                match self.fates.get_mut(&ended.run).expect("a result of a run that was handed out") {
                    fate @ Fate::HandedOut => {
                        *fate = Fate::Recorded(result);
                        self.uncommitted.insert(ended.run);
                    }
                    Fate::Recorded(before) => {
                        assert_eq!(*before, result, "a resent result differs");
                        self.uncommitted.insert(ended.run);
                    }
                    Fate::HandedBack => panic!("a result after a hand-back"),
                    Fate::Requeued => link.order(Order::Committed { run: ended.run }),
                }
            }
            Inbound::HandedBack { runs, .. } => {
                for RunRef { run, .. } in runs {
                    match self.fates.get_mut(&run).unwrap() {
                        fate @ Fate::HandedOut => *fate = Fate::HandedBack,
                        Fate::Requeued => {}
                        other => panic!("handed back when it was {other:?}"),
                    }
                }
            }
            Inbound::Log(chunk, bytes) => {
                // One that was delivered twice is answered twice.
                let Some((run, asked)) = self.reads.remove(&chunk.read) else { return };
                let tail = Tail { offset: chunk.offset, bytes };
                assert!(tail.offset >= asked.min(chunk.end) && tail.end() <= chunk.end, "{chunk:?}");
                assert_printed(run, &tail);
                if chunk.state == LogState::Ended && tail.bytes.is_empty() {
                    assert!(asked >= chunk.end, "nothing is sent only where there is nothing");
                }
            }
            Inbound::Leaving | Inbound::Heard => {}
        }
    }

    /// The pipe breaks: all in it is lost.
    fn cut(&mut self) {
        self.to_node.clear();
        self.to_master.clear();
        self.reads.clear();
        self.link = None;
        self.link_wake_us = None;
        if std::mem::take(&mut self.connected) {
            self.node(|session, now, out| session.disconnected(now, 0.5, out));
        }
    }

    fn reconnect(&mut self, epoch: u64) {
        if std::mem::take(&mut self.wants_register) {
            self.node(|session, now, out| session.registered(now, NodeId(uuid(7)), 500, out));
        }
        if std::mem::take(&mut self.wants_connect) {
            self.connected = true;
            let mut out = Vec::new();
            self.link = Some(Link::new(NodeId(uuid(7)), epoch, 500, self.now_us, &mut out));
            self.node(|session, now, out| session.connected(now, out));
        }
    }

    fn pass(&mut self, us: u64) {
        let until = self.now_us + us;
        while self.now_us < until {
            self.now_us = (self.now_us + 250_000).min(until);
            if self.node_wake_us.is_some_and(|at| at <= self.now_us) {
                self.node_wake_us = None;
                self.node(|session, now, out| session.tick(now, out));
            }
            if self.link_wake_us.is_some_and(|at| at <= self.now_us) {
                self.link_wake_us = None;
                self.master(|link, now, out| link.tick(now, out));
            }
        }
    }

    fn finish(&mut self, run: RunId) {
        self.running.retain(|&known| known != run);
        let log = self
            .printed
            .get(&run)
            .map(|&printed| Box::new(Tails { stderr: tail_of(run, printed), ..Tails::default() }));
        let result = Bytes::from(format!("{{\"value\":\"{run}\"}}"));
        self.untold.push_back((run, Ended { log, ..ended(Outcome::Succeeded, result) }));
        self.begin_next();
    }

    fn nth<T: Copy>(items: impl IntoIterator<Item = T>, n: usize) -> Option<T> {
        let items: Vec<T> = items.into_iter().collect();
        (!items.is_empty()).then(|| items[n % items.len()])
    }

    fn step(&mut self, step: Step) {
        self.now_us += 1_000;
        match step {
            Step::HandOut { cores } if self.link.as_ref().is_some_and(Link::is_open) => {
                self.counter += 1;
                let run = RunId::new(self.epoch, self.counter);
                self.fates.insert(run, Fate::HandedOut);
                self.takes.insert(run, slots_of_run(cores));
                let order = Order::Run {
                    task: TaskId(uuid(u128::from(self.counter))),
                    run,
                    kind: "fib",
                    input: "{}",
                    timeout_ms: None,
                    deadline_in_ms: Some(60_000),
                    cores,
                    memory_bytes: 0,
                };
                self.master(|link, _, _| link.order(order));
            }
            Step::HandOut { .. } => {}
            Step::ToNode => {
                if let Some(message) = self.to_node.pop_front() {
                    self.last_to_node = Some(message.clone());
                    self.master(|link, _, _| link.written(message.len()));
                    self.node(|session, now, out| session.receive(now, message, out));
                }
            }
            Step::ToMaster => {
                if let Some(message) = self.to_master.pop_front() {
                    self.session.written(message.len());
                    self.master(|link, now, out| link.receive(now, message, out));
                }
            }
            Step::Again => {
                if let Some(message) = self.last_to_node.clone() {
                    self.node(|session, now, out| session.receive(now, message, out));
                }
            }
            Step::Break => self.cut(),
            Step::Reconnect => self.reconnect(self.epoch),
            Step::ConnectFails { unknown } => {
                if std::mem::take(&mut self.wants_connect) {
                    let why = if unknown { ConnectFailure::Unknown } else { ConnectFailure::Transient };
                    self.node(|session, now, out| session.connect_failed(now, why, 0.9, out));
                } else if std::mem::take(&mut self.wants_register) {
                    let why = RegisterFailure::Transient;
                    self.node(|session, now, out| session.register_failed(now, why, 0.9, out));
                }
            }
            Step::Finish(n) => {
                if let Some(run) = Self::nth(self.running.clone(), n) {
                    self.finish(run);
                }
            }
            Step::Tell => self.tell(),
            Step::GiveBack(n) => {
                if let Some(run) = Self::nth(self.running.clone(), n) {
                    self.running.retain(|&known| known != run);
                    self.begin_next();
                    self.node(|session, now, out| session.gave_back(now, run, "unknown kind", out));
                }
            }
            Step::Cancel(n) => {
                if let Some(run) = Self::nth(self.fates.keys().copied(), n) {
                    self.master(|link, _, _| link.order(Order::Cancel { run }));
                }
            }
            Step::Commit(n) => {
                if let Some(run) = Self::nth(self.uncommitted.iter().copied(), n)
                    && self.link.as_ref().is_some_and(Link::is_open)
                {
                    self.uncommitted.remove(&run);
                    self.master(|link, _, _| link.order(Order::Committed { run }));
                }
            }
            Step::Print(n, bytes) => {
                if let Some(run) = Self::nth(self.running.clone(), n) {
                    *self.printed.entry(run).or_default() += bytes;
                    if self.awaited.remove(&run) {
                        self.node(|session, _, _| session.printed(run, Stream::Stderr));
                    }
                }
            }
            Step::ReadLog(n, offset, wait_ms) => {
                let Some(run) = Self::nth(self.fates.keys().copied(), n) else { return };
                self.next_read += 1;
                let read = self.next_read;
                let mut open = false;
                self.master(|link, _, _| {
                    open = link.read_log((read, run), Stream::Stderr, offset, wait_ms);
                });
                if open {
                    self.reads.insert(read, (run, offset));
                }
            }
            Step::Drain { deadline_ms } => {
                self.master(|link, _, _| link.order(Order::Drain { deadline_ms }));
            }
            Step::Resume => self.master(|link, _, _| link.order(Order::Resume)),
            Step::NewMaster => {
                self.cut();
                self.epoch += 1;
            }
            Step::OldMaster => self.old_master(),
            Step::Wait(us) => self.pass(us),
        }
    }

    /// A master of an older epoch is still there and the node reaches it: neither obeys the other.
    fn old_master(&mut self) {
        self.cut();
        self.pass(3_000_000);
        if self.session.epoch() < 2 || !(self.wants_connect || self.wants_register) {
            return;
        }
        let old = self.session.epoch() - 1;
        self.reconnect(old);
        let hello = self.to_master.pop_front().expect("a hello");
        let mut out = Vec::new();
        self.link.as_mut().unwrap().receive(self.now_us, hello, &mut out);
        assert!(matches!(out[..], [LinkEffect::Close(CloseReason::Deposed { .. })]), "{out:?}");
        self.cut();
    }

    /// The network is good again and everybody does what they should: all must be settled.
    fn quiesce(&mut self) {
        self.cut();
        self.pass(5_000_000);
        self.reconnect(self.epoch);
        self.pass(1_000_000);
        for _ in 0..40 {
            if !self.connected {
                self.pass(3_000_000);
                self.reconnect(self.epoch);
            }
            while let Some(run) = self.running.first().copied() {
                self.finish(run);
            }
            self.tell();
            for _ in 0..20 {
                self.step(Step::ToMaster);
                self.step(Step::ToNode);
            }
            while !self.uncommitted.is_empty() && self.link.as_ref().is_some_and(Link::is_open) {
                self.step(Step::Commit(0));
            }
        }
        assert!(self.connected && self.session.is_open(), "the channel is open again");
        assert!(self.reads.is_empty(), "all reads were answered: {:?}", self.reads);
        assert_eq!(self.session.uncommitted(), 0, "all results were committed");
        assert_eq!((self.session.waiting(), self.session.running().count()), (0, 0));
        for (run, fate) in &self.fates {
            assert_ne!(*fate, Fate::HandedOut, "run {run} has no end");
            if self.finished.contains(run) {
                assert!(matches!(fate, Fate::Recorded(_)), "the result of run {run} was lost: {fate:?}");
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![Just(0.5), Just(1.0), Just(2.0), Just(64.0)].prop_map(|cores| Step::HandOut { cores }),
        12 => Just(Step::ToNode),
        12 => Just(Step::ToMaster),
        2 => Just(Step::Again),
        1 => Just(Step::Break),
        6 => Just(Step::Reconnect),
        1 => any::<bool>().prop_map(|unknown| Step::ConnectFails { unknown }),
        6 => any::<usize>().prop_map(Step::Finish),
        4 => Just(Step::Tell),
        1 => any::<usize>().prop_map(Step::GiveBack),
        2 => any::<usize>().prop_map(Step::Cancel),
        4 => any::<usize>().prop_map(Step::Commit),
        3 => (any::<usize>(), 1_u64..2 * KEPT_BYTES).prop_map(|(n, bytes)| Step::Print(n, bytes)),
        3 => (any::<usize>(), 0_u64..3 * KEPT_BYTES, 0_u64..40_000)
            .prop_map(|(n, offset, wait_ms)| Step::ReadLog(n, offset, wait_ms)),
        1 => prop_oneof![Just(None), Just(Some(0)), Just(Some(2_000))]
            .prop_map(|deadline_ms| Step::Drain { deadline_ms }),
        1 => Just(Step::Resume),
        1 => Just(Step::NewMaster),
        1 => Just(Step::OldMaster),
        3 => (1_000_u64..8_000_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_run_ends_once_whatever_the_pipe_does(
        slots in 1_u32..4,
        max_ahead in 0_u32..4,
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let mut world = World::new(slots, max_ahead);
        for step in steps {
            world.step(step);
        }
        world.quiesce();
    }

    #[test]
    fn a_leaving_node_ends_and_loses_no_result_while_it_is_connected(
        steps in prop::collection::vec(step(), 0..60),
        deadline_ms in 0_u64..5_000,
    ) {
        let mut world = World::new(2, 2);
        for step in steps {
            world.step(step);
        }
        world.node(|session, now, out| session.leave(now, Some(deadline_ms), out));
        for _ in 0..400 {
            if world.left {
                break;
            }
            if !world.connected {
                world.reconnect(world.epoch);
            }
            world.step(Step::ToMaster);
            world.step(Step::ToNode);
            world.step(Step::Finish(0));
            world.step(Step::Tell);
            world.step(Step::Commit(0));
            world.pass(50_000);
        }
        prop_assert!(world.left, "the node left");
    }
}
