//! A conversation on the work channel as each version had it (`wire/VERSION.txt`), one end of it replayed against the
//! other end of today: nodes and masters of a version and of the next one work together during a rolling upgrade.
//!
//! Each line is a WebSocket message, in hexadecimal digits, after who said it. `EVENKEEL_RECORD=1` records the present
//! version's if there is none; what a released version said never changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::split_frames,
    log::{Stream, Tail, Tails},
    node::{CpuSampleFields, CpuSource},
    task::{ErrorCode, TaskError},
    work::{Outcome, RunResult, ToMaster, ToNode},
};
use session::{
    close::CloseReason,
    master::{Inbound, Link, LinkEffect, Order},
    node::{Config, Effect, Ended, LogPiece, Session},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

const EPOCH: u64 = 5;
const NOW_US: u64 = 10_000_000;

fn node() -> NodeId {
    NodeId(uuid::Uuid::from_u128(7))
}

/// Who said something, and what.
type Said = (Side, Bytes);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Node,
    Master,
}

/// What a master makes of what a node says, in words.
fn heard(inbound: &Inbound) -> String {
    match inbound {
        Inbound::Up { runs, draining, .. } => format!("up with {} runs, draining {draining}", runs.len()),
        Inbound::Ended(ended) => {
            let result = ended.result.as_ref().map_or("nothing", |json| json.get());
            let log = ended.log.as_ref().map_or(0, |log| log.len());
            format!("{} ended {}: {result}, {log} bytes of log", ended.run.0, word(&ended.outcome))
        }
        Inbound::HandedBack { runs, draining, .. } => {
            let runs: Vec<u64> = runs.iter().map(|run| run.run.0).collect();
            format!("{runs:?} handed back, draining {draining}")
        }
        Inbound::Leaving => "leaving".to_owned(),
        Inbound::Log(chunk, bytes) => format!("read {} has {} bytes", chunk.read, bytes.len()),
        Inbound::Heard => "heard".to_owned(),
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

/// What a master of this version heard when the conversation was recorded, and has to hear for ever.
const HEARD: [&str; 8] = [
    "up with 0 runs, draining false",
    "read 12 has 4 bytes",
    "1 ended succeeded: {\"value\":\"1\"}, 7 bytes of log",
    "2 ended failed: nothing, 0 bytes of log",
    "3 ended cancelled: nothing, 0 bytes of log",
    "[4] handed back, draining false",
    "[] handed back, draining true",
    "leaving",
];

/// The same, as what a node of today has to say to what a master of that version said.
const SAID: [&str; 10] = [
    "hello",
    "log chunk of 4 bytes",
    "log tail of 4 bytes",
    "log tail of 3 bytes",
    "1 succeeded",
    "2 failed",
    "3 cancelled",
    "[4] back, draining false",
    "[] back, draining true",
    "leaving",
];

fn said(message: &ToMaster) -> String {
    match message {
        ToMaster::Hello(_) => "hello".to_owned(),
        ToMaster::Result(RunResult { run, outcome, .. }, _) => format!("{} {}", run.0, word(outcome)),
        ToMaster::HandBack(back) => {
            let runs: Vec<u64> = back.runs.iter().map(|run| run.run.0).collect();
            format!("{runs:?} back, draining {}", back.draining)
        }
        ToMaster::Leaving(_) => "leaving".to_owned(),
        ToMaster::LogChunk(_, bytes) => format!("log chunk of {} bytes", bytes.len()),
        ToMaster::LogTail(_, bytes) => format!("log tail of {} bytes", bytes.len()),
    }
}

fn order(n: u64) -> Order<'static> {
    Order::Run {
        task: TaskId(uuid::Uuid::from_u128(u128::from(n))),
        run: RunId(n),
        kind: "fib",
        input: "{\"n\":40}",
        timeout_ms: Some(1_000),
        deadline_in_ms: Some(60_000),
        cores: 1.0,
        memory_bytes: 64,
    }
}

/// How each run of the conversation ends.
fn ended(n: u64) -> Ended {
    let sample = CpuSampleFields {
        allotted_cores: 2.0,
        used_cores: 1.0,
        own_cores: 1.0,
        obtained_share: Some(0.75),
        others_share: 0.0,
        throttled_ratio: 0.0,
        source: CpuSource::CgroupV2,
    };
    let tail = |bytes| Tail { offset: 0, bytes: Bytes::from_static(bytes) };
    let (outcome, result, log) = match n {
        1 => {
            let log = Tails { stdout: tail(b"out\n"), stderr: tail(b"err") };
            (Outcome::Succeeded, Bytes::from_static(b"{\"value\":\"1\"}"), Some(Box::new(log)))
        }
        2 => {
            let error = TaskError { code: ErrorCode::TaskError, message: "exit 1".to_owned() };
            (Outcome::Failed(error), Bytes::new(), None)
        }
        _ => (Outcome::Cancelled, Bytes::new(), None),
    };
    Ended { outcome, result, run_ms: 12.5, cpu_ms: 11.0, sample: Some(sample), log }
}

/// A node's end and what it said.
struct NodeEnd {
    session: Session,
    said: Vec<Bytes>,
    started: BTreeMap<u64, Bytes>,
}

impl NodeEnd {
    /// It has a channel and has greeted.
    fn open() -> Self {
        let session = Session::new(Config::new(4), BootId(uuid::Uuid::from_u128(9)));
        let mut end = Self { session, said: Vec::new(), started: BTreeMap::new() };
        end.act(&mut |session, out| session.start(NOW_US, out));
        end.act(&mut |session, out| session.registered(NOW_US, node(), 500, out));
        end.act(&mut |session, out| session.connected(NOW_US, out));
        end
    }

    fn act(&mut self, event: &mut dyn FnMut(&mut Session, &mut Vec<Effect>)) {
        let mut out = Vec::new();
        event(&mut self.session, &mut out);
        self.session.flush(NOW_US, &mut out);
        for effect in out {
            match effect {
                Effect::Send(message) => self.said.push(message),
                Effect::Start(run, input) => drop(self.started.insert(run.run.0, input)),
                Effect::Cancel(run) => {
                    self.act(&mut |session, out| session.ended(NOW_US, run, ended(3), out))
                }
                Effect::ReadLog { read, .. } => {
                    let tail = Tail { offset: 0, bytes: Bytes::from_static(b"out\n") };
                    let piece = LogPiece { tail, end: 4 };
                    self.act(&mut |session, out| session.log_read(NOW_US, read, Some(piece.clone()), out));
                }
                Effect::Close(CloseReason::GoingAway) => {}
                Effect::Close(reason) => panic!("the node closes the channel: {reason:?}"),
                _ => {}
            }
        }
    }

    /// What its programs and its operator do after the master's message of this number.
    fn go_on(&mut self, message: usize) {
        match message {
            2 => {
                self.act(&mut |session, out| session.ended(NOW_US, RunId(1), ended(1), out));
                self.act(&mut |session, out| session.ended(NOW_US, RunId(2), ended(2), out));
            }
            6 => self.act(&mut |session, out| session.leave(NOW_US, Some(60_000), out)),
            _ => {}
        }
    }
}

/// What the master does before its message of this number; the first is its welcome.
fn command(link: &mut Link, message: usize) -> bool {
    match message {
        1 => (1..=3).for_each(|n| link.order(order(n))),
        2 => drop(link.read_log((12, RunId(1)), Stream::Stdout, 0, 5_000)),
        3 => [1, 2].into_iter().for_each(|n| link.order(Order::Committed { run: RunId(n) })),
        4 => {
            link.order(Order::Cancel { run: RunId(3) });
            link.order(Order::Drain { deadline_ms: Some(30_000) });
        }
        5 => link.order(order(4)),
        6 => {
            link.order(Order::Committed { run: RunId(3) });
            link.order(Order::Resume);
        }
        _ => return false,
    }
    true
}

/// The master's part of effects: what it sends and what it heard.
fn take(out: Vec<LinkEffect>, heard_all: &mut Vec<String>) -> Vec<Bytes> {
    let mut sent = Vec::new();
    for effect in out {
        match effect {
            LinkEffect::Send(message) => sent.push(message),
            LinkEffect::Inbound(inbound) => heard_all.push(heard(&inbound)),
            LinkEffect::Close(reason) => panic!("the master closes the channel: {reason:?}"),
            LinkEffect::Ping | LinkEffect::WakeAt(_) => {}
        }
    }
    sent
}

/// The conversation as both ends of today have it.
fn converse() -> Vec<Said> {
    let (mut all, mut heard_all, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let mut link = Link::new(node(), EPOCH, 500, NOW_US, &mut out);
    let mut end = NodeEnd::open();
    let mut number = 0;
    loop {
        for message in std::mem::take(&mut end.said) {
            all.push((Side::Node, message.clone()));
            link.receive(NOW_US, message, &mut out);
        }
        // The welcome comes by itself.
        if number > 0 && !command(&mut link, number) {
            return all;
        }
        link.flush(&mut out);
        for message in take(std::mem::take(&mut out), &mut heard_all) {
            all.push((Side::Master, message.clone()));
            end.act(&mut |session, out| session.receive(NOW_US, message.clone(), out));
        }
        end.go_on(number);
        number += 1;
    }
}

fn line((side, message): &Said) -> String {
    let who = if *side == Side::Node { "node" } else { "master" };
    message.iter().fold(format!("{who} "), |mut line, byte| {
        write!(line, "{byte:02x}").unwrap();
        line
    })
}

fn read(line: &str) -> Said {
    let (who, digits) = line.split_once(' ').unwrap();
    let side = if who == "node" { Side::Node } else { Side::Master };
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (side, (0..digits.len()).step_by(2).map(byte).collect())
}

/// The conversations of all versions, with their names.
fn recorded() -> Vec<(String, Vec<Said>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
    let own = folder.join(concat!(env!("CARGO_PKG_VERSION"), ".txt"));
    if std::env::var_os("EVENKEEL_RECORD").is_some() && !own.exists() {
        fs::create_dir_all(&folder).unwrap();
        let lines: Vec<String> = converse().iter().map(line).collect();
        // Whole or not at all: the tests beside this one read it too.
        let draft = folder.with_extension(std::process::id().to_string());
        fs::write(&draft, lines.join("\n") + "\n").unwrap();
        fs::rename(draft, own).unwrap();
    }
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = entries
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.display().to_string(), text.lines().map(read).collect())
        })
        .collect();
    assert!(!all.is_empty());
    all
}

#[test]
fn what_nodes_of_earlier_versions_said_is_heard_as_it_was_meant() {
    for (version, conversation) in recorded() {
        let (mut heard_all, mut out) = (Vec::new(), Vec::new());
        let mut link = Link::new(node(), EPOCH, 500, NOW_US, &mut out);
        for (_, message) in conversation.iter().filter(|(side, _)| *side == Side::Node) {
            link.receive(NOW_US, message.clone(), &mut out);
            take(std::mem::take(&mut out), &mut heard_all);
        }
        assert_eq!(heard_all, HEARD, "{version}");
    }
}

#[test]
fn what_masters_of_earlier_versions_said_is_obeyed_and_answered() {
    for (version, conversation) in recorded() {
        let mut end = NodeEnd::open();
        let masters = conversation.iter().filter(|(side, _)| *side == Side::Master);
        for (number, (_, message)) in masters.enumerate() {
            end.act(&mut |session, out| session.receive(NOW_US, message.clone(), out));
            end.go_on(number);
        }
        let frames = end.said.iter().flat_map(|message| split_frames(message.clone()).unwrap());
        let all: Vec<String> =
            frames.map(|frame| said(&ToMaster::read(&frame).unwrap().expect("a known frame"))).collect();
        assert_eq!(all, SAID, "{version}");
        assert!(end.started.values().all(|input| input == "{\"n\":40}"), "{version}: {:?}", end.started);
        assert_eq!(end.started.keys().copied().collect::<Vec<_>>(), [1, 2, 3], "{version}");
    }
}

#[test]
fn the_conversation_has_all_that_there_is_to_say() {
    let (mut to_node, mut to_master) = (BTreeSet::new(), BTreeSet::new());
    for (side, message) in converse() {
        for frame in split_frames(message).unwrap() {
            match side {
                Side::Node => {
                    ToMaster::read(&frame).unwrap().expect("a known frame");
                    to_master.insert(frame.kind);
                }
                Side::Master => {
                    ToNode::read(&frame).unwrap().expect("a known frame");
                    to_node.insert(frame.kind);
                }
            }
        }
    }
    assert_eq!((to_node.len(), to_master.len()), (7, 6), "{to_node:?} {to_master:?}");
}
