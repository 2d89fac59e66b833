//! Frames of version 1 of the work channel, as they were recorded on 2026-11-21 (`golden/*.bin`), with what
//! they say in words of Rust. They must be read as this, and this must be written as them, byte for byte, for
//! as long as version 1 is spoken: a change here breaks clusters in the middle of a rolling upgrade.
//!
//! A frame that is added is recorded by running this test with `EVENKEEL_RECORD=1`, which writes only files
//! that are missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::{Bytes, BytesMut};
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::{put_frame, split_frames},
    log::Stream,
    node::{CpuSampleFields, CpuSource},
    task::{ErrorCode, TaskError},
    work::{
        Cancel, Committed, Drain, HandBack, Hello, Leaving, LogChunk, LogRead, LogState, LogTail, Outcome,
        Resume, Run, RunRef, RunResult, ToMaster, ToNode, Welcome,
    },
};
use std::path::PathBuf;

fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + n)
}

fn run_ref(n: u64) -> RunRef {
    RunRef { task: TaskId(uuid(u128::from(n))), run: RunId::new(5, n) }
}

fn check<T: PartialEq + std::fmt::Debug>(
    name: &str,
    says: &[T],
    put: impl Fn(&T, &mut BytesMut),
    read: impl Fn(&protocol::frame::RawFrame) -> T,
) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.bin"));
    let mut written = BytesMut::new();
    says.iter().for_each(|said| put(said, &mut written));
    if std::env::var_os("EVENKEEL_RECORD").is_some() && !path.exists() {
        std::fs::write(&path, &written).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let frames = split_frames(Bytes::from(golden.clone())).unwrap();
    assert_eq!(frames.iter().map(read).collect::<Vec<T>>(), says, "{name} is read as it was meant");
    assert_eq!(
        String::from_utf8_lossy(&written),
        String::from_utf8_lossy(&golden),
        "{name} is written as it was recorded"
    );
    assert_eq!(written, golden, "{name} is written byte for byte as it was recorded");
}

fn to_node(name: &str, says: &[ToNode]) {
    check(name, says, ToNode::put, |frame| ToNode::read(frame).unwrap().expect("a known type"));
}

fn to_master(name: &str, says: &[ToMaster]) {
    check(name, says, ToMaster::put, |frame| ToMaster::read(frame).unwrap().expect("a known type"));
}

fn run(n: u64, timeout_ms: Option<u64>, deadline_in_ms: Option<u64>) -> Run {
    let RunRef { task, run } = run_ref(n);
    Run { epoch: 5, task, run, kind: "fib".into(), timeout_ms, deadline_in_ms, cores: 1.5, memory_bytes: 64 }
}

fn result(n: u64, outcome: Outcome, sample: Option<CpuSampleFields>) -> RunResult {
    let RunRef { task, run } = run_ref(n);
    RunResult { epoch: 5, task, run, outcome, run_ms: 12.5, cpu_ms: 11.0, sample }
}

#[test]
fn what_a_master_of_version_1_says() {
    to_node("welcome", &[ToNode::Welcome(Welcome { epoch: 5, version: 1, report_interval_ms: 500 })]);
    to_node("run", &[ToNode::Run(run(1, Some(1_000), Some(60_000)), Bytes::from_static(b"{\"n\":40}"))]);
    to_node("run_unbounded", &[ToNode::Run(run(2, None, None), Bytes::from_static(b"{}"))]);
    to_node("cancel", &[ToNode::Cancel(Cancel { epoch: 5, runs: vec![RunId::new(5, 1), RunId::new(4, 9)] })]);
    to_node("committed", &[ToNode::Committed(Committed { epoch: 5, runs: vec![RunId::new(5, 3)] })]);
    to_node("drain", &[ToNode::Drain(Drain { epoch: 5, deadline_ms: Some(30_000) })]);
    to_node("drain_unbounded", &[ToNode::Drain(Drain { epoch: 5, deadline_ms: None })]);
    to_node("resume", &[ToNode::Resume(Resume { epoch: 5 })]);
    let read = LogRead {
        epoch: 5,
        read: 12,
        run: RunId::new(5, 1),
        stream: Stream::Stderr,
        offset: 70_000,
        wait_ms: 5_000,
    };
    to_node("log_read", &[ToNode::LogRead(read)]);
    to_node(
        "several_to_node",
        &[
            ToNode::Run(run(1, None, None), Bytes::from_static(b"{}")),
            ToNode::Run(run(2, None, None), Bytes::new()),
            ToNode::Cancel(Cancel { epoch: 5, runs: vec![RunId::new(5, 1)] }),
        ],
    );
}

#[test]
fn what_a_node_of_version_1_says() {
    let hello = Hello {
        epoch: 4,
        version: 1,
        node: NodeId(uuid(100)),
        boot_id: BootId(uuid(200)),
        runs: vec![run_ref(1), run_ref(2)],
        draining: true,
    };
    to_master("hello", &[ToMaster::Hello(hello.clone())]);
    to_master(
        "hello_new",
        &[ToMaster::Hello(Hello { epoch: 0, runs: Vec::new(), draining: false, ..hello })],
    );
    let sample = CpuSampleFields {
        allotted_cores: 0.5,
        used_cores: 0.25,
        own_cores: 0.125,
        obtained_share: Some(0.75),
        others_share: 0.0625,
        throttled_ratio: 0.5,
        source: CpuSource::CgroupV1,
    };
    let value = Bytes::from_static(b"{\"value\":\"102334155\"}");
    to_master("succeeded", &[ToMaster::Result(result(1, Outcome::Succeeded, Some(sample)), value)]);
    let error = TaskError { code: ErrorCode::TaskError, message: "exit 1: \"ä\"\n".into() };
    to_master(
        "failed",
        &[ToMaster::Result(result(2, Outcome::Failed(error), None), Bytes::from_static(b"{}"))],
    );
    to_master("cancelled", &[ToMaster::Result(result(3, Outcome::Cancelled, None), Bytes::new())]);
    to_master(
        "hand_back",
        &[ToMaster::HandBack(HandBack {
            epoch: 5,
            runs: vec![run_ref(4)],
            reason: "no free slot".into(),
            draining: false,
        })],
    );
    to_master("leaving", &[ToMaster::Leaving(Leaving { epoch: 5 })]);
    let chunk = |read, state| LogChunk { epoch: 5, read, offset: 70_000, end: 70_003, state };
    to_master(
        "log_chunks",
        &[
            ToMaster::LogChunk(chunk(12, LogState::Running), Bytes::from_static(b"\xff\n ")),
            ToMaster::LogChunk(chunk(13, LogState::Ended), Bytes::new()),
            ToMaster::LogChunk(chunk(14, LogState::Unknown), Bytes::new()),
        ],
    );
    let tail = |stream, offset| LogTail { epoch: 5, run: RunId::new(5, 1), stream, offset };
    to_master(
        "log_tails_and_result",
        &[
            ToMaster::LogTail(tail(Stream::Stdout, 1_000), Bytes::from_static(b"out\n")),
            ToMaster::LogTail(tail(Stream::Stderr, 0), Bytes::from_static(b"err\n")),
            ToMaster::Result(result(1, Outcome::Succeeded, None), Bytes::from_static(b"{}")),
        ],
    );
}

#[test]
fn the_error_codes_of_version_1_keep_their_words() {
    let words = "bad_input task_error timeout deadline node_lost out_of_memory attempts_exhausted \
                 result_too_large cancelled";
    for word in words.split_whitespace() {
        let code: ErrorCode = serde_json::from_str(&format!("{word:?}")).unwrap();
        assert_eq!(code.as_str(), word);
    }
}

#[test]
fn a_newer_version_may_add_fields_and_frame_types() {
    let mut message = BytesMut::new();
    let header = br#"{"epoch":5,"version":2,"report_interval_ms":500,"colour":"blue"}"#;
    put_frame(&mut message, 1, header, b"");
    put_frame(&mut message, 99, b"\xff not json", b"body");
    put_frame(&mut message, 66, br#"{"epoch":5,"task":"01930000-0000-7000-8000-000000000001","run":1,"outcome":"succeeded","run_ms":1,"cpu_ms":1,"sample":{"allotted_cores":1,"used_cores":1,"own_cores":1,"obtained_share":null,"others_share":0,"throttled_ratio":0,"source":"cgroup_v2","extra":1}}"#, b"1");
    let frames = split_frames(message.freeze()).unwrap();
    assert!(matches!(ToNode::read(&frames[0]), Ok(Some(ToNode::Welcome(w))) if w.version == 2));
    assert!(matches!(ToNode::read(&frames[1]), Ok(None)));
    assert!(matches!(ToMaster::read(&frames[1]), Ok(None)));
    assert!(matches!(ToMaster::read(&frames[2]), Ok(Some(ToMaster::Result(r, _))) if r.sample.is_some()));
}

#[test]
fn an_older_version_may_leave_out_what_has_a_default() {
    let mut message = BytesMut::new();
    put_frame(&mut message, 65, br#"{"epoch":0,"version":1,"node":"01930000-0000-7000-8000-000000000001","boot_id":"01930000-0000-7000-8000-000000000002","runs":[]}"#, b"");
    put_frame(&mut message, 66, br#"{"epoch":5,"task":"01930000-0000-7000-8000-000000000001","run":1,"outcome":{"failed":{"code":"timeout","message":"m"}},"run_ms":1.0,"cpu_ms":1.0}"#, b"");
    put_frame(&mut message, 67, br#"{"epoch":5,"runs":[],"reason":"r"}"#, b"");
    for frame in split_frames(message.freeze()).unwrap() {
        assert!(ToMaster::read(&frame).unwrap().is_some());
    }
}
