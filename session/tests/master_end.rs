//! Scenarios of the master's end alone: greetings, hostile frames, silence, bounds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::{put_frame, split_frames},
    node::{CpuSampleFields, CpuSource},
    task::{ErrorCode, MAX_RESULT_BYTES, TaskError},
    work::{HandBack, Hello, Leaving, Outcome, RunRef, RunResult, ToMaster, ToNode, VERSION},
};
use session::{
    close::CloseReason,
    master::{Ended, Inbound, Link, LinkEffect, MAX_WAITING_BYTES, Order, PING_INTERVAL_US},
};

const EPOCH: u64 = 5;

fn node() -> NodeId {
    NodeId(uuid::Uuid::from_u128(7))
}

fn task() -> TaskId {
    TaskId(uuid::Uuid::from_u128(1))
}

fn run() -> RunId {
    RunId::new(EPOCH, 1)
}

fn hello() -> Hello {
    let boot_id = BootId(uuid::Uuid::from_u128(9));
    Hello { epoch: 0, version: VERSION, node: node(), boot_id, runs: Vec::new(), draining: false }
}

fn message(said: &[ToMaster]) -> Bytes {
    let mut message = BytesMut::new();
    said.iter().for_each(|said| said.put(&mut message));
    message.freeze()
}

fn receive(link: &mut Link, bytes: Bytes) -> Vec<LinkEffect> {
    let mut out = Vec::new();
    link.receive(0, bytes, &mut out);
    out.retain(|effect| !matches!(effect, LinkEffect::WakeAt(_)));
    out
}

fn new_link() -> Link {
    Link::new(node(), EPOCH, 500, 0, &mut Vec::new())
}

fn open_link() -> Link {
    let mut link = new_link();
    receive(&mut link, message(&[ToMaster::Hello(hello())]));
    assert!(link.is_open());
    link
}

fn closed(effects: &[LinkEffect]) -> Option<&CloseReason> {
    match effects.last() {
        Some(LinkEffect::Close(reason)) => Some(reason),
        _ => None,
    }
}

fn orders(effects: &[LinkEffect]) -> Vec<ToNode> {
    let sent = effects.iter().filter_map(|effect| match effect {
        LinkEffect::Send(message) => Some(split_frames(message.clone()).unwrap()),
        _ => None,
    });
    sent.flatten().map(|frame| ToNode::read(&frame).unwrap().unwrap()).collect()
}

fn result(body: &[u8], outcome: Outcome) -> ToMaster {
    let header =
        RunResult { epoch: EPOCH, task: task(), run: run(), outcome, run_ms: 1.0, cpu_ms: 1.0, sample: None };
    ToMaster::Result(header, Bytes::copy_from_slice(body))
}

fn ended(said: ToMaster) -> Ended {
    match receive(&mut open_link(), message(&[said])).pop() {
        Some(LinkEffect::Inbound(Inbound::Ended(ended))) => *ended,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_greeting_is_answered_by_a_welcome_before_the_scheduler_hears_of_it() {
    let runs = vec![RunRef { task: task(), run: run() }];
    let hello = Hello { runs: runs.clone(), draining: true, ..hello() };
    let mut link = new_link();
    let effects = receive(&mut link, message(&[ToMaster::Hello(hello)]));
    assert!(matches!(&effects[0], LinkEffect::Send(_)));
    assert!(
        matches!(&orders(&effects)[..], [ToNode::Welcome(w)] if w.epoch == EPOCH && w.version == VERSION)
    );
    assert!(
        matches!(&effects[1], LinkEffect::Inbound(Inbound::Up { runs: got, draining: true, .. }) if *got == runs)
    );
}

#[test]
fn whoever_does_not_greet_properly_is_closed() {
    let other = NodeId(uuid::Uuid::from_u128(8));
    for (said, code) in [
        (ToMaster::Leaving(Leaving { epoch: EPOCH }), 1002),
        (result(b"1", Outcome::Succeeded), 1002),
        (ToMaster::Hello(Hello { node: other, ..hello() }), 1008),
        (ToMaster::Hello(Hello { version: VERSION + 2, ..hello() }), 4001),
        (ToMaster::Hello(Hello { version: 0, ..hello() }), 4001),
        (ToMaster::Hello(Hello { epoch: EPOCH + 1, ..hello() }), 4002),
    ] {
        let mut link = new_link();
        let effects = receive(&mut link, message(std::slice::from_ref(&said)));
        assert_eq!(closed(&effects).map(CloseReason::code), Some(code), "{said:?}");
        assert!(receive(&mut link, message(&[ToMaster::Hello(hello())])).is_empty(), "closed is closed");
    }
    let mut out = Vec::new();
    new_link().tick(5_000_000, &mut out);
    assert_eq!(closed(&out), Some(&CloseReason::NoGreeting));
}

#[test]
fn a_node_one_version_ahead_is_spoken_to_in_ours() {
    let mut link = new_link();
    let effects = receive(&mut link, message(&[ToMaster::Hello(Hello { version: VERSION + 1, ..hello() })]));
    assert!(matches!(&orders(&effects)[..], [ToNode::Welcome(w)] if w.version == VERSION));
}

#[test]
fn a_second_hello_and_a_higher_epoch_close_an_open_channel() {
    let effects = receive(&mut open_link(), message(&[ToMaster::Hello(hello())]));
    assert_eq!(closed(&effects).map(CloseReason::code), Some(1002));
    let effects = receive(&mut open_link(), message(&[ToMaster::Leaving(Leaving { epoch: EPOCH + 1 })]));
    assert_eq!(closed(&effects), Some(&CloseReason::Deposed { seen: EPOCH + 1, ours: EPOCH }));
}

#[test]
fn frames_before_a_broken_one_count_and_those_after_do_not() {
    let mut bytes = BytesMut::new();
    ToMaster::Leaving(Leaving { epoch: EPOCH }).put(&mut bytes);
    put_frame(&mut bytes, 66, b"{\"task\":", b"");
    ToMaster::Leaving(Leaving { epoch: EPOCH }).put(&mut bytes);
    let effects = receive(&mut open_link(), bytes.freeze());
    assert!(matches!(
        &effects[..],
        [LinkEffect::Inbound(Inbound::Leaving), LinkEffect::Close(CloseReason::Malformed(_))]
    ));
}

#[test]
fn unknown_frame_types_are_skipped_and_count_as_a_sign_of_life() {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, 200, b"not even json", b"x");
    let effects = receive(&mut open_link(), bytes.freeze());
    assert!(matches!(effects[..], [LinkEffect::Inbound(Inbound::Heard)]));
}

#[test]
fn giant_and_endless_headers_are_refused_without_being_read() {
    for bytes in
        [&b"\xff\xff\xff\xff\x42\x00\x00\x00\x00"[..], b"\x00\x00\x00\x05\x42\xff\xff\xff\xff", b"\x00"]
    {
        let effects = receive(&mut open_link(), Bytes::from_static(bytes));
        assert_eq!(closed(&effects).map(CloseReason::code), Some(1002));
    }
    let deep = "[".repeat(500_000);
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, 67, format!("{{\"runs\":{deep}").as_bytes(), b"");
    assert!(closed(&receive(&mut open_link(), bytes.freeze())).is_some());
}

#[test]
fn results_are_checked_before_anybody_relies_on_them() {
    assert_eq!(ended(result(b"{\"a\":\n1}\n", Outcome::Succeeded)).result.unwrap().get(), "{\"a\": 1}");
    let code = |ended: Ended| match ended.outcome {
        Outcome::Failed(error) => error.code,
        other => panic!("{other:?}"),
    };
    for bad in [&b"{"[..], b"nan", b"\xff", b"1 2", b""] {
        let ended = ended(result(bad, Outcome::Succeeded));
        assert!(ended.result.is_none());
        assert_eq!(code(ended), ErrorCode::TaskError, "{bad:?}");
    }
    let huge = format!("\"{}\"", "x".repeat(MAX_RESULT_BYTES));
    assert_eq!(code(ended(result(huge.as_bytes(), Outcome::Succeeded))), ErrorCode::ResultTooLarge);
    let long = TaskError { code: ErrorCode::TaskError, message: "ä".repeat(100_000) };
    match ended(result(b"", Outcome::Failed(long))).outcome {
        Outcome::Failed(error) => assert_eq!(error.message.chars().count(), 4_096),
        other => panic!("{other:?}"),
    }
    for code in [ErrorCode::NodeLost, ErrorCode::AttemptsExhausted, ErrorCode::Cancelled] {
        let claimed = Outcome::Failed(TaskError { code, message: String::new() });
        assert!(
            matches!(ended(result(b"", claimed)).outcome, Outcome::Failed(e) if e.code == ErrorCode::TaskError)
        );
    }
    assert_eq!(ended(result(b"{", Outcome::Cancelled)).outcome, Outcome::Cancelled);
}

#[test]
fn figures_that_cannot_be_are_not_passed_on() {
    let sample = CpuSampleFields {
        allotted_cores: 0.5,
        used_cores: -1.0,
        own_cores: 0.1,
        obtained_share: None,
        others_share: 0.0,
        throttled_ratio: 0.0,
        source: CpuSource::CgroupV1,
    };
    let ToMaster::Result(header, body) = result(b"1", Outcome::Succeeded) else { unreachable!() };
    let header = RunResult { run_ms: -3.0, cpu_ms: -1e300, sample: Some(sample), ..header };
    let ended = ended(ToMaster::Result(header, body));
    assert_eq!((ended.run_ms, ended.cpu_ms, ended.sample), (0.0, 0.0, None));
}

#[test]
fn orders_of_one_flush_are_merged_and_a_cancel_never_overtakes_its_run() {
    let mut link = open_link();
    let mut out = Vec::new();
    link.order(Order::Cancel { run: RunId(1) });
    link.order(Order::Committed { run: RunId(2) });
    let (timeout_ms, deadline_in_ms, memory_bytes) = (None, Some(5), 0);
    let (kind, input, cores) = ("fib", "{}", 1.0);
    let (task, run) = (task(), run());
    link.order(Order::Run { task, run, kind, input, timeout_ms, deadline_in_ms, cores, memory_bytes });
    link.order(Order::Committed { run: RunId(3) });
    link.order(Order::Cancel { run });
    link.flush(&mut out);
    assert_eq!(out.len(), 1, "one message");
    match &orders(&out)[..] {
        [ToNode::Run(header, body), ToNode::Cancel(cancel), ToNode::Committed(committed)] => {
            assert_eq!((header.epoch, header.run, &body[..]), (EPOCH, run, &b"{}"[..]));
            assert_eq!(cancel.runs, [RunId(1), run]);
            assert_eq!(committed.runs, [RunId(2), RunId(3)]);
        }
        other => panic!("{other:?}"),
    }
    out.clear();
    link.flush(&mut out);
    assert!(out.is_empty(), "nothing to say, nothing sent");
}

#[test]
fn orders_before_the_greeting_are_dropped() {
    let mut link = new_link();
    link.order(Order::Resume);
    let effects = receive(&mut link, message(&[ToMaster::Hello(hello())]));
    assert_eq!(orders(&effects).len(), 1, "only the welcome");
}

#[test]
fn many_large_orders_are_split_and_too_many_close_the_channel() {
    let mut link = open_link();
    let input = format!("\"{}\"", "x".repeat(1_000_000));
    let order = |link: &mut Link| {
        let (task, run) = (task(), run());
        link.order(Order::Run {
            task,
            run,
            kind: "k",
            input: &input,
            timeout_ms: None,
            deadline_in_ms: None,
            cores: 1.0,
            memory_bytes: 0,
        });
    };
    (0..20).for_each(|_| order(&mut link));
    (0..40_000).for_each(|n| link.order(Order::Committed { run: RunId(n) }));
    let mut out = Vec::new();
    link.flush(&mut out);
    let got = orders(&out);
    assert_eq!(got.iter().filter(|order| matches!(order, ToNode::Run(..))).count(), 20);
    let sent: usize = out.iter().map(|e| if let LinkEffect::Send(m) = e { m.len() } else { 0 }).sum();
    assert_eq!(link.waiting_bytes() - sent, bytes_of_a_welcome());
    link.written(sent);

    (0..MAX_WAITING_BYTES / 1_000_000 + 1).for_each(|_| order(&mut link));
    out.clear();
    link.flush(&mut out);
    assert!(matches!(out[..], [LinkEffect::Close(CloseReason::Overflow { .. })]));
}

fn bytes_of_a_welcome() -> usize {
    open_link().waiting_bytes()
}

#[test]
fn a_silent_node_is_pinged_twice_and_then_closed_but_not_because_the_master_slept() {
    let mut link = open_link();
    let tick = |link: &mut Link, at: u64| {
        let mut out = Vec::new();
        link.tick(at, &mut out);
        out
    };
    assert!(matches!(tick(&mut link, PING_INTERVAL_US)[..], [LinkEffect::Ping, LinkEffect::WakeAt(_)]));
    link.pong(6_000_000, &mut Vec::new());
    // The master was stopped for an hour: that is one ping late, not an hour of silence.
    assert!(matches!(tick(&mut link, 3_600_000_000)[0], LinkEffect::Ping));
    assert!(matches!(tick(&mut link, 3_605_000_000)[0], LinkEffect::Ping));
    assert_eq!(closed(&tick(&mut link, 3_610_000_000)), Some(&CloseReason::Silent));
    assert!(tick(&mut link, 3_700_000_000).is_empty());
}

#[test]
fn the_text_of_a_close_fits_a_close_frame() {
    let reason = CloseReason::Malformed("ü".repeat(500));
    assert!(reason.text().len() <= 123);
}

#[test]
fn hand_backs_and_farewells_are_passed_on() {
    let runs = vec![RunRef { task: task(), run: run() }];
    let back = HandBack { epoch: EPOCH, runs: runs.clone(), reason: "draining".into(), draining: true };
    let effects = receive(
        &mut open_link(),
        message(&[ToMaster::HandBack(back), ToMaster::Leaving(Leaving { epoch: 0 })]),
    );
    assert!(matches!(
        &effects[..],
        [LinkEffect::Inbound(Inbound::HandedBack { runs: got, draining: true, .. }), LinkEffect::Inbound(Inbound::Leaving)]
            if *got == runs
    ));
}

proptest! {
    #[test]
    fn any_bytes_from_a_node_are_read_or_close_the_channel(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in 60_u8..72,
        header in "\\PC{0,80}",
    ) {
        let mut link = open_link();
        receive(&mut link, Bytes::from(bytes));
        let mut framed = BytesMut::new();
        put_frame(&mut framed, kind, header.as_bytes(), b"");
        receive(&mut open_link(), framed.freeze());
    }
}
