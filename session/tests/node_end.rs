//! Scenarios of the node's end alone: joining, epochs, slots, drains, hostile masters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::{put_frame, split_frames},
    log::{LOG_PIECE_BYTES, Stream, Tail, Tails},
    task::{ErrorCode, MAX_RESULT_BYTES},
    work::{
        Cancel, Committed, Drain, LogRead, LogState, Outcome, Resume, Run, ToMaster, ToNode, VERSION, Welcome,
    },
};
use session::{
    close::CloseReason,
    node::{
        Bearer, Config, ConnectFailure, Effect, Ended, ExitReason, GATHER_US, LOG_WINDOW_BYTES, LogPiece,
        MAX_LOG_READS, RegisterFailure, SILENCE_US, Session, WINDOW_BYTES,
    },
};

const EPOCH: u64 = 5;
const T0: u64 = 10_000_000;

fn node() -> NodeId {
    NodeId(uuid::Uuid::from_u128(7))
}

fn welcome(epoch: u64) -> ToNode {
    ToNode::Welcome(Welcome { epoch, version: VERSION, report_interval_ms: 700 })
}

fn order_at(epoch: u64, n: u64, cores: f64) -> ToNode {
    let header = Run {
        epoch,
        task: TaskId(uuid::Uuid::from_u128(u128::from(n))),
        run: RunId(n),
        kind: "fib".into(),
        timeout_ms: None,
        deadline_in_ms: Some(10_000),
        cores,
        memory_bytes: 0,
    };
    ToNode::Run(header, Bytes::from_static(b"{}"))
}

fn order(n: u64) -> ToNode {
    order_at(EPOCH, n, 1.0)
}

/// A session and the effects of what was done with it last; wake-ups left out.
struct Bench {
    session: Session,
    now_us: u64,
}

impl Bench {
    fn new(config: Config) -> Self {
        Self { session: Session::new(config, BootId(uuid::Uuid::from_u128(9))), now_us: T0 }
    }

    fn open(config: Config) -> Self {
        let mut bench = Self::new(config);
        assert_eq!(bench.act(|s, now, out| s.start(now, out)), [Effect::Register { bearer: Bearer::Join }]);
        let connect = bench.act(|s, now, out| s.registered(now, node(), 500, out));
        assert_eq!(connect, [Effect::Connect { node: node() }]);
        bench.greet(EPOCH);
        bench
    }

    fn greet(&mut self, epoch: u64) -> Vec<ToMaster> {
        let hello = self.act(|s, now, out| s.connected(now, out));
        let more = self.hear(&[welcome(epoch)]);
        said(&hello).into_iter().chain(said(&more)).collect()
    }

    fn act(&mut self, event: impl FnOnce(&mut Session, u64, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut out = Vec::new();
        event(&mut self.session, self.now_us, &mut out);
        self.session.flush(self.now_us, &mut out);
        out.retain(|effect| !matches!(effect, Effect::WakeAt(_)));
        out
    }

    fn hear(&mut self, orders: &[ToNode]) -> Vec<Effect> {
        let mut message = BytesMut::new();
        orders.iter().for_each(|order| order.put(&mut message));
        self.act(|s, now, out| s.receive(now, message.freeze(), out))
    }

    fn end(&mut self, n: u64, result: &[u8]) -> Vec<Effect> {
        let result = Bytes::copy_from_slice(result);
        let ended = Ended {
            outcome: Outcome::Succeeded,
            result,
            run_ms: f64::NAN,
            cpu_ms: f64::INFINITY,
            sample: None,
            log: None,
        };
        self.act(|s, now, out| s.ended(now, RunId(n), ended, out))
    }

    fn after(&mut self, us: u64) -> Vec<Effect> {
        self.now_us += us;
        self.act(|s, now, out| s.tick(now, out))
    }

    fn drop_and_reconnect(&mut self, epoch: u64) -> Vec<ToMaster> {
        self.act(|s, now, out| s.disconnected(now, 0.5, out));
        assert_eq!(self.after(2_000_000), [Effect::Connect { node: node() }]);
        self.greet(epoch)
    }
}

fn said(effects: &[Effect]) -> Vec<ToMaster> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some(split_frames(message.clone()).unwrap()),
        _ => None,
    });
    sent.flatten().map(|frame| ToMaster::read(&frame).unwrap().unwrap()).collect()
}

fn started(effects: &[Effect]) -> Vec<u64> {
    let runs =
        effects.iter().filter_map(|e| if let Effect::Start(run, _) = e { Some(run.run.0) } else { None });
    runs.collect()
}

fn handed_back(effects: &[Effect]) -> Vec<u64> {
    let backs =
        said(effects).into_iter().filter_map(|s| if let ToMaster::HandBack(b) = s { Some(b) } else { None });
    backs.flat_map(|back| back.runs).map(|run| run.run.0).collect()
}

fn close_code(effects: &[Effect]) -> Option<u16> {
    effects.iter().find_map(|e| if let Effect::Close(reason) = e { Some(reason.code()) } else { None })
}

#[test]
fn a_channel_of_a_master_that_stands_still_is_left_once_a_report_tells_of_the_next() {
    let mut bench = Bench::open(Config::new(2));
    for epoch in [0, EPOCH - 1, EPOCH] {
        assert_eq!(bench.act(|s, now, out| s.report_answered(now, 500, epoch, out)), []);
    }
    let left = bench.act(|s, now, out| s.report_answered(now, 500, EPOCH + 1, out));
    assert_eq!(left, [Effect::Close(CloseReason::Deposed { seen: EPOCH + 1, ours: EPOCH })]);
}

#[test]
fn a_lower_epoch_is_refused_in_the_welcome_and_in_every_frame() {
    let mut bench = Bench::open(Config::new(1));
    let effects = bench.hear(&[order_at(EPOCH - 1, 1, 1.0)]);
    assert_eq!((started(&effects).len(), close_code(&effects)), (0, Some(4002)));

    bench.act(|s, now, out| s.disconnected(now, 0.5, out));
    bench.after(2_000_000);
    bench.act(|s, now, out| s.connected(now, out));
    let effects = bench.hear(&[welcome(EPOCH - 1), order_at(EPOCH - 1, 2, 1.0)]);
    assert_eq!((started(&effects).len(), close_code(&effects)), (0, Some(4002)));
    assert_eq!(bench.session.epoch(), EPOCH);
}

#[test]
fn nothing_is_obeyed_before_the_welcome_and_the_welcome_must_come_in_time() {
    let mut bench = Bench::new(Config::new(1));
    bench.act(|s, now, out| s.start(now, out));
    bench.act(|s, now, out| s.registered(now, node(), 500, out));
    bench.act(|s, now, out| s.connected(now, out));
    assert_eq!(close_code(&bench.hear(&[order(1)])), Some(1002));
    bench.act(|s, now, out| s.disconnected(now, 0.0, out));
    bench.after(0);
    bench.act(|s, now, out| s.connected(now, out));
    assert_eq!(bench.after(5_000_000), [Effect::Close(CloseReason::NoGreeting)]);
}

#[test]
fn a_run_is_started_once_and_its_result_is_sent_on_every_channel_until_it_is_committed() {
    let mut bench = Bench::open(Config::new(1));
    assert_eq!(started(&bench.hear(&[order(1), order(1)])), [1]);
    let first = said(&bench.end(1, b"42"));
    assert!(
        matches!(&first[..], [ToMaster::Result(r, b)] if r.run == RunId(1) && r.run_ms == 0.0 && &b[..] == b"42")
    );
    assert!(bench.hear(&[order(1)]).is_empty(), "a duplicate of an ended run");
    let again = bench.drop_and_reconnect(EPOCH + 1);
    match &again[..] {
        [ToMaster::Hello(hello), ToMaster::Result(result, _)] => {
            assert_eq!((hello.epoch, hello.runs[0].run), (EPOCH, RunId(1)));
            assert_eq!(result.epoch, EPOCH + 1, "stamped with the epoch of the channel");
        }
        other => panic!("{other:?}"),
    }
    bench.hear(&[ToNode::Committed(Committed { epoch: EPOCH + 1, runs: vec![RunId(1), RunId(99)] })]);
    assert_eq!(bench.session.uncommitted(), 0);
    assert!(bench.hear(&[order_at(EPOCH + 1, 1, 1.0)]).is_empty(), "nor of a committed one");
    assert_eq!(bench.drop_and_reconnect(EPOCH + 1).len(), 1, "only the hello");
}

#[test]
fn runs_wait_for_slots_in_order_and_their_deadline_goes_on() {
    let mut bench = Bench::open(Config { max_waiting: 2, ..Config::new(2) });
    let effects =
        bench.hear(&[order(1), order_at(EPOCH, 2, 1.5), order(3), order_at(EPOCH, 4, 3.0), order(5)]);
    assert_eq!(started(&effects), [1]);
    assert_eq!(handed_back(&effects), [4, 5], "too wide; no room");
    bench.now_us += 4_000_000;
    match &bench.end(1, b"1")[..] {
        [Effect::Start(run, _)] => {
            assert_eq!((run.run, run.deadline_in_ms), (RunId(2), Some(6_000)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(started(&bench.end(2, b"1")), [3]);
}

#[test]
fn a_timeout_counts_from_the_start_of_its_run_and_not_while_it_waits_for_a_slot() {
    let mut bench = Bench::open(Config { max_waiting: 1, ..Config::new(1) });
    let ToNode::Run(mut header, input) = order(2) else { panic!("no run") };
    header.timeout_ms = Some(1_000);
    assert_eq!(started(&bench.hear(&[order(1), ToNode::Run(header, input)])), [1]);
    bench.now_us += 9_000_000;
    match &bench.end(1, b"1")[..] {
        [Effect::Start(run, _), Effect::Send(_)] => {
            assert_eq!((run.timeout_ms, run.deadline_in_ms), (Some(1_000), Some(1_000)));
        }
        other => panic!("{other:?}"),
    }
}

/// The runs that are given ahead.
fn ahead(effects: &[Effect]) -> Vec<u64> {
    let runs = effects.iter().filter_map(|e| match e {
        Effect::StartNext(run, _) => Some(run.run.0),
        _ => None,
    });
    runs.collect()
}

fn taken_back(effects: &[Effect]) -> Vec<u64> {
    let runs = effects.iter().filter_map(|e| if let Effect::TakeBack(run) = e { Some(run.0) } else { None });
    runs.collect()
}

#[test]
fn some_runs_are_given_ahead_and_a_slot_that_ends_one_goes_on_without_us() {
    let mut bench = Bench::open(Config { max_ahead: 2, ..Config::new(2) });
    let effects = bench.hear(&(1..=6).map(order).collect::<Vec<_>>());
    assert_eq!((started(&effects), ahead(&effects)), (vec![1, 2], vec![3, 4]));
    assert_eq!(bench.session.waiting(), 2);
    let effects = bench.end(2, b"1");
    assert_eq!((started(&effects), ahead(&effects)), (vec![], vec![5]), "3 has its slot");
    bench.end(1, b"1");
    let ends: Vec<_> = [3, 4, 5].into_iter().flat_map(|n| bench.end(n, b"1")).collect();
    assert_eq!((started(&ends), ahead(&ends)), (vec![], vec![]), "6 was given before");
    bench.end(6, b"1");
    assert_eq!(started(&bench.hear(&[order(7)])), [7], "nothing runs");
}

#[test]
fn nothing_is_given_ahead_of_or_beside_a_run_of_several_slots() {
    let mut bench = Bench::open(Config { max_ahead: 4, ..Config::new(2) });
    let effects = bench.hear(&[order(1), order_at(EPOCH, 2, 2.0), order(3)]);
    assert_eq!((started(&effects), ahead(&effects)), (vec![1], vec![]));
    let effects = bench.end(1, b"1");
    assert_eq!((started(&effects), ahead(&effects)), (vec![2], vec![]), "3 could begin only in a half of it");
    let effects = bench.end(2, b"1");
    assert_eq!((started(&effects), ahead(&effects)), (vec![3], vec![]));
}

#[test]
fn results_wait_for_others_also_while_all_that_waits_was_given_ahead() {
    let mut bench = Bench::open(Config { max_ahead: 8, ..Config::new(1) });
    bench.hear(&[order(1), order(2), order(3)]);
    assert_eq!(bench.session.waiting(), 0);
    assert!(said(&bench.end(1, b"1")).is_empty());
    assert_eq!(said(&bench.after(GATHER_US)).len(), 1);
    // What the executor gathered for as long goes at once.
    bench.now_us += GATHER_US;
    let result = Ended {
        outcome: Outcome::Succeeded,
        result: Bytes::from_static(b"2"),
        run_ms: 1.0,
        cpu_ms: 1.0,
        sample: None,
        log: None,
    };
    let effects = bench.act(|s, now, out| s.ended(now - GATHER_US, RunId(2), result, out));
    assert_eq!(said(&effects).len(), 1);
}

#[test]
fn what_was_given_ahead_is_wanted_back_by_a_drain_and_when_the_slots_change() {
    for way in 0..3 {
        let mut bench = Bench::open(Config { max_ahead: 2, ..Config::new(1) });
        assert_eq!(ahead(&bench.hear(&[order(1), order(2), order(3)])), [2, 3]);
        // The second has begun meanwhile, in the place of the first; the executor gives back the third.
        let effects = match way {
            0 => bench.hear(&[ToNode::Drain(Drain { epoch: EPOCH, deadline_ms: None })]),
            1 => bench.act(|s, now, out| s.leave(now, None, out)),
            _ => bench.act(|s, now, out| s.resize(now, 3, out)),
        };
        assert_eq!(taken_back(&effects), [2, 3]);
        let back = bench.act(|s, now, out| s.gave_back(now, RunId(3), "not begun", out));
        assert_eq!(handed_back(&back), [3]);
        bench.end(1, b"1");
        bench.end(2, b"1");
        let kept = bench.session.uncommitted();
        assert_eq!((kept, bench.session.running().count()), (2, 0));
    }
}

#[test]
fn what_was_given_ahead_is_cancelled_by_the_executor() {
    let mut bench = Bench::open(Config { max_ahead: 2, ..Config::new(1) });
    bench.hear(&[order(1), order(2), order(3)]);
    let cancel = ToNode::Cancel(Cancel { epoch: EPOCH, runs: vec![RunId(2)] });
    assert_eq!(bench.hear(&[cancel]), [Effect::Cancel(RunId(2))]);
    let committed = ToNode::Committed(Committed { epoch: EPOCH, runs: vec![RunId(3)] });
    assert_eq!(bench.hear(&[committed]), [Effect::Cancel(RunId(3))]);
}

#[test]
fn a_node_that_shrank_still_runs_what_it_took() {
    let mut bench = Bench::open(Config::new(2));
    assert_eq!(started(&bench.hear(&[order(1), order_at(EPOCH, 2, 2.0)])), [1]);
    bench.act(|s, now, out| s.resize(now, 1, out));
    assert_eq!(started(&bench.end(1, b"1")), [2], "alone");
}

#[test]
fn a_cancel_stops_what_runs_once_and_ends_what_waits() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1), order(2)]);
    let cancel = ToNode::Cancel(Cancel { epoch: EPOCH, runs: vec![RunId(1), RunId(2), RunId(77)] });
    let effects = bench.hear(&[cancel.clone(), cancel]);
    assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Cancel(RunId(1)))).count(), 1);
    assert!(
        matches!(&said(&effects)[..], [ToMaster::Result(r, _)] if r.run == RunId(2) && r.outcome == Outcome::Cancelled)
    );
}

#[test]
fn a_run_that_is_not_wanted_any_more_keeps_its_slot_until_it_ends_and_says_nothing() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1)]);
    let effects =
        bench.hear(&[ToNode::Committed(Committed { epoch: EPOCH, runs: vec![RunId(1)] }), order(2)]);
    assert_eq!(effects, [Effect::Cancel(RunId(1))]);
    let effects = bench.end(1, b"1");
    assert_eq!((started(&effects), said(&effects).len()), (vec![2], 0));
}

#[test]
fn results_that_are_too_large_fail_and_full_stores_take_no_more_runs() {
    let mut bench = Bench::open(Config { max_kept_bytes: 1_000, ..Config::new(4) });
    bench.hear(&[order(1), order(2)]);
    let big = said(&bench.end(1, &vec![b'1'; MAX_RESULT_BYTES + 1]));
    assert!(matches!(&big[..], [ToMaster::Result(r, b)] if b.is_empty()
        && matches!(&r.outcome, Outcome::Failed(e) if e.code == ErrorCode::ResultTooLarge)));
    bench.end(2, &vec![b'1'; 900]);
    assert_eq!(handed_back(&bench.hear(&[order(3)])), [3]);
    bench.hear(&[ToNode::Committed(Committed { epoch: EPOCH, runs: vec![RunId(2)] })]);
    assert_eq!(started(&bench.hear(&[order(4)])), [4]);
}

#[test]
fn results_past_the_window_wait_until_some_are_written() {
    let mut bench = Bench::open(Config { max_kept_bytes: 1 << 30, ..Config::new(20) });
    let orders: Vec<ToNode> = (1..=20).map(order).collect();
    bench.hear(&orders);
    let mut sent = Vec::new();
    for n in 1..=20 {
        sent.extend(bench.end(n, &vec![b'1'; MAX_RESULT_BYTES]));
    }
    let bytes: usize = sent.iter().map(|e| if let Effect::Send(m) = e { m.len() } else { 0 }).sum();
    assert!(bytes < WINDOW_BYTES + MAX_RESULT_BYTES + 4_096, "{bytes}");
    let before = said(&sent).len();
    let more = bench.act(|s, _, _| s.written(bytes));
    assert!(before < 20 && said(&more).len() + before > before);
}

#[test]
fn an_unknown_node_registers_anew_with_its_session_and_then_with_the_join_token() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1)]);
    bench.act(|s, now, out| s.disconnected(now, 0.5, out));
    bench.after(2_000_000);
    bench.act(|s, now, out| s.connect_failed(now, ConnectFailure::Unknown, 0.5, out));
    assert_eq!(bench.after(2_000_000), [Effect::Register { bearer: Bearer::Session }]);
    let refused = || RegisterFailure::NotAuthorised("expired".into());
    let effects = bench.act(|s, now, out| s.register_failed(now, refused(), 0.5, out));
    assert_eq!(effects, [Effect::Register { bearer: Bearer::Join }]);
    assert!(bench.act(|s, now, out| s.register_failed(now, RegisterFailure::Transient, 0.5, out)).is_empty());
    assert_eq!(bench.after(2_000_000), [Effect::Register { bearer: Bearer::Join }]);
    let effects = bench.act(|s, now, out| s.register_failed(now, refused(), 0.5, out));
    assert!(matches!(&effects[..], [Effect::Exit(ExitReason::NotAuthorised(_))]));
}

#[test]
fn a_silent_master_is_left_but_a_pause_of_our_own_is_not_its_fault() {
    let mut bench = Bench::open(Config::new(1));
    assert_eq!(bench.after(SILENCE_US), [Effect::Close(CloseReason::Silent)]);
    let mut bench = Bench::open(Config::new(1));
    assert!(bench.after(SILENCE_US * 10).is_empty(), "we were paused");
    assert_eq!(bench.after(5_000_000), [Effect::Close(CloseReason::Silent)]);
}

#[test]
fn a_leaving_node_hands_back_what_waits_finishes_what_runs_and_says_farewell() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1), order(2)]);
    let effects = bench.act(|s, now, out| s.leave(now, Some(60_000), out));
    assert_eq!(handed_back(&effects), [2]);
    assert!(matches!(&said(&effects)[..], [ToMaster::HandBack(b)] if b.draining));
    assert_eq!(handed_back(&bench.hear(&[order(3)])), [3]);
    bench.end(1, b"1");
    let effects = bench.hear(&[ToNode::Committed(Committed { epoch: EPOCH, runs: vec![RunId(1)] })]);
    assert!(matches!(&said(&effects)[..], [ToMaster::Leaving(_)]));
    assert_eq!(effects.last(), Some(&Effect::Exit(ExitReason::Left)));
    assert!(bench.hear(&[order(9)]).is_empty(), "gone is gone");
}

#[test]
fn a_leaving_node_with_nothing_to_do_still_says_that_it_drains() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1)]);
    let effects = bench.act(|s, now, out| s.leave(now, None, out));
    assert!(matches!(&said(&effects)[..], [ToMaster::HandBack(b)] if b.draining && b.runs.is_empty()));
    let hello = bench.drop_and_reconnect(EPOCH);
    assert!(matches!(&hello[..], [ToMaster::Hello(h)] if h.draining && h.runs.len() == 1));
}

#[test]
fn past_its_deadline_a_leaving_node_hands_back_what_runs_and_ends_even_if_nothing_answers() {
    let mut bench = Bench::open(Config::new(2));
    bench.hear(&[order(1), order(2)]);
    bench.end(2, b"1");
    bench.act(|s, now, out| s.leave(now, Some(1_000), out));
    let effects = bench.after(1_000_000);
    assert!(effects.contains(&Effect::Cancel(RunId(1))));
    assert_eq!(handed_back(&effects), [1]);
    let effects = bench.after(5_000_000);
    assert_eq!(effects, [Effect::Exit(ExitReason::Unfinished { running: 1, uncommitted: 1 })]);
}

#[test]
fn a_node_that_never_registered_or_has_no_channel_ends_soon() {
    let mut bench = Bench::new(Config::new(1));
    bench.act(|s, now, out| s.start(now, out));
    assert_eq!(bench.act(|s, now, out| s.leave(now, None, out)), [Effect::Exit(ExitReason::Left)]);
    let mut bench = Bench::open(Config::new(1));
    bench.act(|s, now, out| s.disconnected(now, 0.9, out));
    assert!(bench.act(|s, now, out| s.leave(now, None, out)).is_empty());
    assert!(bench.after(1_000_000).contains(&Effect::Exit(ExitReason::Left)));
}

#[test]
fn an_ordered_drain_ends_with_a_resume_or_with_its_master_and_does_not_end_the_process() {
    let mut bench = Bench::open(Config::new(1));
    let drain = |epoch| ToNode::Drain(Drain { epoch, deadline_ms: Some(1_000) });
    let effects = bench.hear(&[order(1), drain(EPOCH), order(2)]);
    assert_eq!((started(&effects), handed_back(&effects)), (vec![], vec![1, 2]));
    assert!(bench.session.is_draining());
    assert!(said(&effects).iter().all(|s| matches!(s, ToMaster::HandBack(b) if !b.draining)));
    bench.hear(&[ToNode::Resume(Resume { epoch: EPOCH })]);
    assert_eq!(started(&bench.hear(&[order(3)])), [3]);

    bench.hear(&[drain(EPOCH)]);
    let effects = bench.after(1_000_000);
    assert_eq!(handed_back(&effects), [3]);
    bench.drop_and_reconnect(EPOCH);
    assert!(bench.session.is_draining(), "the same master knows of its drain");
    bench.drop_and_reconnect(EPOCH + 1);
    assert!(!bench.session.is_draining(), "a new one orders its own");
}

#[test]
fn a_timer_that_fires_too_early_is_set_again() {
    let mut bench = Bench::open(Config::new(1));
    let mut out = Vec::new();
    bench.session.tick(T0 + SILENCE_US - 1, &mut out);
    assert_eq!(out, [Effect::WakeAt(T0 + SILENCE_US)]);
}

#[test]
fn thousands_of_refused_runs_go_back_in_frames_that_the_master_can_read() {
    let mut bench = Bench::open(Config { max_waiting: 0, ..Config::new(1) });
    let orders: Vec<ToNode> = (1..=20_000).map(order).collect();
    let effects = bench.hear(&orders);
    assert_eq!(started(&effects).len() + handed_back(&effects).len(), 20_000);
}

#[test]
fn a_leaving_node_holds_on_to_its_results_until_its_deadline() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1)]);
    bench.end(1, b"1");
    bench.act(|s, now, out| s.disconnected(now, 0.5, out));
    bench.act(|s, now, out| s.leave(now, Some(60_000), out));
    assert_eq!(bench.after(50_000_000), [Effect::Connect { node: node() }], "still trying");
    let effects = bench.after(10_000_000);
    assert_eq!(effects, [Effect::Exit(ExitReason::Unfinished { running: 0, uncommitted: 1 })]);
}

#[test]
fn an_impossible_report_interval_is_bounded() {
    let mut bench = Bench::open(Config::new(1));
    assert_eq!(bench.session.report_interval_ms(), 700);
    bench.act(|s, now, out| s.disconnected(now, 0.5, out));
    bench.after(2_000_000);
    bench.act(|s, now, out| s.connected(now, out));
    bench.hear(&[ToNode::Welcome(Welcome { epoch: EPOCH, version: VERSION, report_interval_ms: 0 })]);
    assert_eq!(bench.session.report_interval_ms(), 500);
    bench.act(|s, now, out| s.report_answered(now, 1_000, 0, out));
    assert_eq!(bench.session.report_interval_ms(), 1_000);
    bench.act(|s, now, out| s.report_answered(now, u64::MAX, 0, out));
    assert_eq!(bench.session.report_interval_ms(), 5_000);
}

proptest! {
    #[test]
    fn any_bytes_from_a_master_are_read_or_close_the_channel(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in 0_u8..9,
        header in "\\PC{0,80}",
    ) {
        let mut bench = Bench::open(Config::new(1));
        bench.act(|s, now, out| s.receive(now, Bytes::from(bytes), out));
        let mut bench = Bench::open(Config::new(1));
        let mut framed = BytesMut::new();
        put_frame(&mut framed, kind, header.as_bytes(), b"");
        bench.act(|s, now, out| s.receive(now, framed.freeze(), out));
    }
}

fn log_read(read: u64, n: u64, offset: u64, wait_ms: u64) -> ToNode {
    let (run, stream) = (RunId(n), Stream::Stdout);
    ToNode::LogRead(LogRead { epoch: EPOCH, read, run, stream, offset, wait_ms })
}

fn asked(effects: &[Effect]) -> Vec<u64> {
    let read = |effect: &Effect| match effect {
        Effect::ReadLog { read, .. } => Some(*read),
        _ => None,
    };
    effects.iter().filter_map(read).collect()
}

fn piece(offset: u64, bytes: usize) -> LogPiece {
    let tail = Tail { offset, bytes: vec![b'x'; bytes].into() };
    LogPiece { end: tail.end(), tail }
}

fn chunks(effects: &[Effect]) -> Vec<(u64, LogState, usize)> {
    said(effects)
        .into_iter()
        .map(|said| match said {
            ToMaster::LogChunk(chunk, bytes) => (chunk.read, chunk.state, bytes.len()),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_read_of_a_log_waits_for_output_for_as_long_as_it_says() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1)]);
    assert_eq!(asked(&bench.hear(&[log_read(1, 1, 0, 10_000)])), [1]);
    assert!(bench.act(|s, now, out| s.log_read(now, 1, Some(piece(0, 0)), out)).is_empty());
    assert!(bench.after(9_000_000).is_empty());
    let again = bench.act(|s, _, _| s.printed(RunId(1), Stream::Stdout));
    assert_eq!(asked(&again), [1], "there is output");
    let sent = bench.act(|s, now, out| s.log_read(now, 1, Some(piece(0, 5)), out));
    assert_eq!(chunks(&sent), [(1, LogState::Running, 5)]);
    bench.hear(&[log_read(2, 1, 5, 10_000)]);
    bench.act(|s, now, out| s.log_read(now, 2, Some(piece(5, 0)), out));
    assert_eq!(chunks(&bench.after(10_000_000)), [(2, LogState::Running, 0)], "its time is over");
}

#[test]
fn a_read_of_a_run_that_waits_for_a_slot_is_answered_once_it_has_started() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1), order(2)]);
    assert!(bench.hear(&[log_read(1, 2, 0, 10_000)]).is_empty());
    let ended = bench.end(1, b"1");
    assert_eq!(asked(&ended), [1]);
    assert_eq!(chunks(&bench.hear(&[log_read(2, 77, 0, 10_000)])), [(2, LogState::Unknown, 0)]);
}

#[test]
fn logs_are_sent_only_while_little_else_waits_to_be_written() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1)]);
    let reads: Vec<_> = (0..20).map(|read| log_read(read, 1, 0, 10_000)).collect();
    let first = asked(&bench.hear(&reads));
    assert_eq!(first.len(), LOG_WINDOW_BYTES / LOG_PIECE_BYTES);
    let mut sent = 0;
    for read in first {
        let effects = bench.act(|s, now, out| s.log_read(now, read, Some(piece(0, LOG_PIECE_BYTES)), out));
        assert!(asked(&effects).is_empty(), "nothing was written yet");
        sent += effects
            .iter()
            .map(|effect| if let Effect::Send(bytes) = effect { bytes.len() } else { 0 })
            .sum::<usize>();
    }
    let more = bench.act(|s, _, _| s.written(sent));
    assert_eq!(asked(&more).len(), LOG_WINDOW_BYTES / LOG_PIECE_BYTES);
}

#[test]
fn reads_past_the_bound_are_answered_at_once_and_a_new_channel_begins_without_any() {
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[order(1), order(2)]);
    let reads: Vec<_> = (0..=MAX_LOG_READS as u64).map(|read| log_read(read, 2, 0, 30_000)).collect();
    assert_eq!(chunks(&bench.hear(&reads)), [(MAX_LOG_READS as u64, LogState::Running, 0)]);
    bench.drop_and_reconnect(EPOCH);
    assert!(asked(&bench.end(1, b"1")).is_empty());
}

#[test]
fn past_their_bound_the_oldest_logs_of_ended_runs_are_dropped_and_no_result_is() {
    let mut bench = Bench::open(Config { max_kept_log_bytes: 100, ..Config::new(4) });
    for n in 1..=3 {
        bench.hear(&[order(n)]);
        let log = Some(Box::new(Tails { stdout: piece(0, 40).tail, ..Tails::default() }));
        let (outcome, result, sample) = (Outcome::Succeeded, Bytes::from_static(b"1"), None);
        let ended = Ended { outcome, result, run_ms: 1.0, cpu_ms: 1.0, sample, log };
        bench.act(|s, now, out| s.ended(now, RunId(n), ended, out));
    }
    let again = bench.drop_and_reconnect(EPOCH);
    let kinds: Vec<_> = again
        .iter()
        .filter_map(|said| match said {
            ToMaster::LogTail(header, _) => Some(("log", header.run.0)),
            ToMaster::Result(header, _) => Some(("result", header.run.0)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [("result", 1), ("log", 2), ("result", 2), ("log", 3), ("result", 3)]);
}

#[test]
fn results_wait_for_others_while_runs_wait_for_a_slot_but_not_for_long() {
    let results = |effects: &[Effect]| {
        let results = said(effects)
            .into_iter()
            .filter_map(|s| if let ToMaster::Result(r, _) = s { Some(r) } else { None });
        results.map(|result| result.run.0).collect::<Vec<_>>()
    };
    let mut bench = Bench::open(Config::new(1));
    bench.hear(&[1, 2, 3].map(|n| order_at(EPOCH, n, 1.0)));
    let effects = bench.end(1, b"1");
    assert_eq!((started(&effects), results(&effects)), (vec![2], vec![]));
    let effects = bench.end(2, b"2");
    assert_eq!((started(&effects), results(&effects)), (vec![3], vec![1, 2]), "nothing waits any more");
    bench.hear(&[4, 5].map(|n| order_at(EPOCH, n, 1.0)));
    assert_eq!(results(&bench.end(3, b"3")), [0; 0]);
    assert_eq!(results(&bench.after(GATHER_US - 1)), [0; 0]);
    assert_eq!(results(&bench.after(1)), [3]);
}
