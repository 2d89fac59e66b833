//! Messages of the work channel.

use crate::within;
use bytes::{Bytes, BytesMut};
use protocol::{
    BootId, NodeId,
    frame::{FRAME_OVERHEAD_BYTES, RawFrame, put_frame, split_frames},
    log::{Tail, Tails},
    task::MAX_RESULT_BYTES,
    work::{Hello, Outcome, ToMaster, ToNode, VERSION, Welcome},
};
use session::{
    master::{Inbound, Link, LinkEffect, Order},
    node::{Config, Effect, Ended, LogPiece, Session},
};

const EPOCH: u64 = 5;
/// Stands between two messages of one input.
const BETWEEN: &[u8] = b"\n--\n";
/// Reads of logs that are answered after one message.
const MOST_READS: u32 = 100;
/// What JSON becomes in memory, and what is kept of it, is larger than its text.
const TIMES: usize = 100;

/// The input is messages with [`BETWEEN`] between them. Each is taken apart, and they come in one after the
/// other at both ends of a channel.
pub fn frames(input: &[u8]) {
    let messages: Vec<Bytes> = split(input).into_iter().map(Bytes::copy_from_slice).collect();
    within(input, TIMES, || {
        for message in &messages {
            taken_apart(message);
        }
    });
    within(input, TIMES, || at_the_master(&messages));
    within(input, TIMES, || at_the_node(&messages));
}

fn split(input: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut messages) = (input, Vec::new());
    while let Some(at) = rest.windows(BETWEEN.len()).position(|part| part == BETWEEN) {
        messages.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    messages.push(rest);
    messages
}

/// What is a run of frames says the same when it is put together again, and shares the message's bytes.
fn taken_apart(message: &Bytes) {
    let Ok(frames) = split_frames(message.clone()) else { return };
    assert!(frames.len() <= message.len() / FRAME_OVERHEAD_BYTES);
    let mut again = BytesMut::new();
    for frame in &frames {
        for part in [&frame.header, &frame.body] {
            assert!(part.is_empty() || message.as_ptr_range().contains(&part.as_ptr()), "copied");
        }
        put_frame(&mut again, frame.kind, &frame.header, &frame.body);
        says_the_same(frame);
    }
    assert_eq!(again, message);
}

/// What can be read is read as the same when it is written again.
fn says_the_same(frame: &RawFrame) {
    let reread = |message: BytesMut| split_frames(message.freeze()).unwrap().remove(0);
    let mut message = BytesMut::new();
    if let Ok(Some(said)) = ToNode::read(frame) {
        said.put(&mut message);
        let frame = reread(message);
        let again = ToNode::read(&frame).unwrap().unwrap();
        assert_eq!(steady(&again), steady(&said));
    } else if let Ok(Some(said)) = ToMaster::read(frame) {
        said.put(&mut message);
        let frame = reread(message);
        let again = ToMaster::read(&frame).unwrap().unwrap();
        assert_eq!(steady(&again), steady(&said));
    }
}

/// As text, numbers with a fraction cut: reading one is exact only to about 15 digits.
fn steady(said: &impl std::fmt::Debug) -> String {
    let mut text = format!("{said:?}");
    while let Some(at) = text.find('.') {
        let digits = text[at + 1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        text.replace_range(at..digits.map_or(text.len(), |digits| at + 1 + digits), "");
    }
    text
}

fn node() -> NodeId {
    NodeId(uuid::Uuid::from_u128(7))
}

fn hello() -> ToMaster {
    let boot_id = BootId(uuid::Uuid::from_u128(9));
    ToMaster::Hello(Hello {
        epoch: 0,
        version: VERSION,
        node: node(),
        boot_id,
        runs: Vec::new(),
        draining: false,
    })
}

fn message(put: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut message = BytesMut::new();
    put(&mut message);
    message.freeze()
}

/// Messages of a hostile node, before its greeting and after it.
fn at_the_master(messages: &[Bytes]) {
    for greets in [false, true] {
        let mut out = Vec::new();
        let mut link = Link::new(node(), EPOCH, 500, 0, &mut out);
        if greets {
            link.receive(0, message(|message| hello().put(message)), &mut out);
            assert!(link.is_open());
        }
        let mut closed = false;
        for (at, bytes) in messages.iter().enumerate() {
            let mut out = Vec::new();
            let now_us = at as u64 * 1_000_000;
            link.receive(now_us, bytes.clone(), &mut out);
            assert!(!closed || out.is_empty(), "a closed link says nothing");
            for effect in &out {
                match effect {
                    LinkEffect::Close(_) => closed = true,
                    LinkEffect::Inbound(Inbound::Ended(ended)) => check_ended(ended),
                    LinkEffect::Send(bytes) => link.written(bytes.len()),
                    _ => {}
                }
            }
            link.order(Order::Resume);
            link.flush(&mut Vec::new());
            link.tick(now_us, &mut Vec::new());
        }
        assert!(!closed || !link.is_open());
    }
}

fn check_ended(ended: &session::master::Ended) {
    assert!(
        ended.run_ms.is_finite() && ended.run_ms >= 0.0 && ended.cpu_ms.is_finite() && ended.cpu_ms >= 0.0
    );
    if let Some(result) = &ended.result {
        assert!(result.get().len() <= MAX_RESULT_BYTES && !result.get().contains(['\n', '\r']));
        serde_json::from_str::<serde_json::Value>(result.get())
            .expect("a result that is passed on can be read");
    }
    if let Outcome::Failed(error) = &ended.outcome {
        assert!(error.message.chars().count() <= 4_096);
    }
}

/// Messages of a hostile master; every second run that the node starts ends at once, and the channel breaks
/// once and is opened again.
fn at_the_node(messages: &[Bytes]) {
    let config = Config {
        slots: 2,
        max_waiting: 4,
        max_ahead: 2,
        max_runs: 8,
        max_kept_bytes: 4_096,
        max_kept_log_bytes: 4_096,
    };
    let mut session = Session::new(config, BootId(uuid::Uuid::from_u128(9)));
    let mut out = Vec::new();
    session.start(0, &mut out);
    session.registered(0, node(), 500, &mut out);
    open(&mut session, 0);
    for (at, bytes) in messages.iter().enumerate() {
        let (mut out, now_us, epoch) = (Vec::new(), at as u64 * 1_000_000, session.epoch());
        session.receive(now_us, bytes.clone(), &mut out);
        session.flush(now_us, &mut out);
        let (mut ends, mut reads) = (at % 2 == 0, MOST_READS);
        while let Some(effect) = out.pop() {
            match effect {
                Effect::Start(run, _) | Effect::StartNext(run, _) if ends => {
                    let result = Bytes::from_static(b"1");
                    let log = Tails { stdout: printed(0), stderr: Tail::default() };
                    let (outcome, run_ms, cpu_ms) = (Outcome::Succeeded, 1.0, 1.0);
                    let log = Some(Box::new(log));
                    let ended = Ended { outcome, result, run_ms, cpu_ms, sample: None, log };
                    session.ended(now_us, run.run, ended, &mut out);
                }
                Effect::Start(run, _) | Effect::StartNext(run, _) => {
                    session.gave_back(now_us, run.run, "no", &mut out)
                }
                Effect::Send(bytes) => session.written(bytes.len()),
                Effect::ReadLog { read, offset, .. } if reads > 0 => {
                    reads -= 1;
                    let tail = printed(offset);
                    let piece = LogPiece { end: tail.end(), tail };
                    session.log_read(now_us, read, ends.then_some(piece), &mut out);
                }
                _ => {}
            }
            ends = !ends;
        }
        assert!(session.epoch() >= epoch, "an epoch never goes back");
        assert!(session.waiting() <= 4 && session.running().count() <= 8 && session.uncommitted() <= 8);
        session.tick(now_us, &mut Vec::new());
        if !session.is_open() {
            session.disconnected(now_us, 0.5, &mut Vec::new());
            session.tick(now_us + 60_000_000, &mut Vec::new());
            open(&mut session, now_us + 60_000_000);
        }
    }
}

/// What a program has printed, as it is read from this offset on.
fn printed(offset: u64) -> Tail {
    Tail { offset, bytes: Bytes::from_static(b"printed") }
}

fn open(session: &mut Session, now_us: u64) {
    let mut out = Vec::new();
    session.connected(now_us, &mut out);
    let welcome = Welcome { epoch: session.epoch(), version: VERSION, report_interval_ms: 500 };
    session.receive(now_us, message(|message| ToNode::Welcome(welcome).put(message)), &mut out);
}
