//! JSON of each version as it was recorded (`wire/VERSION/*.json`), held against this one. During a rolling upgrade
//! programs of a version and of the next one talk to each other, in both directions:
//!
//! - what is asked (by nodes, managers and clients) is refused by a master that does not know all of it, so that a
//!   misspelt field is an error: so this version asks an earlier master in its very words;
//! - what is answered is read by whoever knows less: so nothing that an earlier version was told is left out, and
//!   what is new beside it is passed over.
//!
//! `EVENKEEL_RECORD=1` writes the files of the present version that are missing, and no other. Files of a version
//! that was released never change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use protocol::{
    BootId, NodeId, Problem, TaskId, Timestamp,
    auth::{Scope, TokenCreated, TokenInfo, TokenRequest},
    batch::{BatchAnswer, BatchEvent},
    node::{
        CpuSample, CpuSource, CpuView, DrainRequest, ExitReport, KindInfo, MemorySample, NodeRegistration,
        NodeStatus, NodeView, Registered, Report, ReportReply, RunningTask,
    },
    pool::{ManagerHello, ManagerView, Mount, PoolSpec, PoolView, Template},
    status::{Candidate, ClusterStatus, Explanation, NodeCounts},
    task::{
        CancelByLabels, CancelledCount, Durability, ErrorCode, Json, Page, ResourceRequest, Resources, Task,
        TaskError, TaskSpec, TaskState,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::PathBuf};

/// A field that no version has.
const LATER: &str = "added_by_a_later_version";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire")
}

/// What was recorded under this name, by version; this version's first, if it is to be.
fn recorded(name: &str, today: &impl Serialize) -> Vec<(String, Value)> {
    let file = format!("{name}.json");
    let own = folder().join(env!("CARGO_PKG_VERSION")).join(&file);
    if std::env::var_os("EVENKEEL_RECORD").is_some() && !own.exists() {
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, serde_json::to_string_pretty(today).unwrap() + "\n").unwrap();
    }
    let versions = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let read = |version: fs::DirEntry| {
        let text = fs::read_to_string(version.path().join(&file)).ok()?;
        Some((version.file_name().into_string().unwrap(), serde_json::from_str(&text).unwrap()))
    };
    let found: Vec<_> = versions.filter_map(read).collect();
    assert!(!found.is_empty(), "{file} was never recorded: run this with EVENKEEL_RECORD=1");
    found
}

/// What an earlier version asks is understood, and what this one asks in its place an earlier one understands.
fn asked<T: Serialize + DeserializeOwned>(name: &str, today: &T) {
    for (version, recorded) in recorded(name, today) {
        let read: T = serde_json::from_value(recorded.clone())
            .unwrap_or_else(|error| panic!("{name} of {version} is refused: {error}"));
        assert_eq!(serde_json::to_value(&read).unwrap(), recorded, "{name} is asked as {version} does");
        if version == env!("CARGO_PKG_VERSION") {
            assert_eq!(serde_json::to_value(today).unwrap(), recorded, "{name} as it was recorded");
        }
    }
}

/// What an earlier version answers is understood, what this one answers has all of it, and more of it does not matter
/// but at these places, where it is refused.
fn answered<T: Serialize + DeserializeOwned>(name: &str, today: &T, strict: &[&str]) {
    answered_by(name, today, strict, |value| serde_json::from_value(value));
}

fn answered_by<T: Serialize>(
    name: &str,
    today: &T,
    strict: &[&str],
    read_by: impl Fn(Value) -> serde_json::Result<T>,
) {
    for (version, recorded) in recorded(name, today) {
        let read: T = read_by(recorded.clone())
            .unwrap_or_else(|error| panic!("{name} of {version} is not understood: {error}"));
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(missing(&recorded, &written), None, "{name} has all that {version} was told");
        for place in objects(&recorded, "") {
            let mut more = recorded.clone();
            more.pointer_mut(&place).unwrap()[LATER] = json!({"of": "it"});
            let read = read_by(more);
            assert_eq!(read.is_err(), strict.contains(&place.as_str()), "{name} with more at {place:?}");
            if let Ok(read) = read {
                assert_eq!(
                    missing(&written, &serde_json::to_value(&read).unwrap()),
                    None,
                    "{name} {place:?}"
                );
            }
        }
    }
}

/// Where `less` has something that `more` has not.
fn missing(less: &Value, more: &Value) -> Option<String> {
    match (less, more) {
        (Value::Object(less), Value::Object(more)) => less.iter().find_map(|(key, value)| {
            let of = |inside| format!("/{key}{inside}");
            more.get(key).map_or_else(|| Some(of(String::new())), |other| missing(value, other).map(of))
        }),
        (Value::Array(less), Value::Array(more)) if less.len() == more.len() => {
            less.iter().zip(more).find_map(|(less, more)| missing(less, more))
        }
        (less, more) => (less != more).then(|| format!(": {less} is {more}")),
    }
}

/// Pointers to all objects in it that are not what a user named.
fn objects(value: &Value, at: &str) -> Vec<String> {
    let inside: Vec<_> = match value {
        Value::Object(fields) => {
            let own = |key: &&String| !["labels", "env", "input", "result"].contains(&key.as_str());
            fields.keys().filter(own).map(|key| (key.clone(), &fields[key])).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect(),
        _ => return Vec::new(),
    };
    let below = inside.into_iter().flat_map(|(key, value)| objects(value, &format!("{at}/{key}")));
    value.is_object().then(|| at.to_owned()).into_iter().chain(below).collect()
}

fn id(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + n)
}

fn raw(text: &str) -> Json {
    serde_json::value::RawValue::from_string(text.to_owned()).unwrap().into()
}

fn pairs(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

const AT: Timestamp = Timestamp(1_795_000_000_123);
const MEMORY: MemorySample = MemorySample { used_bytes: 1_000, limit_bytes: 64_000_000 };

fn sample() -> CpuSample {
    CpuSample {
        allotted_cores: 0.5,
        used_cores: 0.25,
        own_cores: 0.125,
        obtained_share: Some(0.75),
        others_share: 0.0625,
        throttled_ratio: 0.5,
        source: CpuSource::CgroupV2,
    }
}

fn template() -> Template {
    Template {
        image: Some("debian:12".to_owned()),
        cpus: Some(0.5),
        memory_bytes: Some(64_000_000),
        labels: pairs("disk", "fast"),
        env: pairs("LANG", "C"),
        mounts: vec![Mount { source: "/a".to_owned(), target: "/b".to_owned(), read_only: true }],
        kinds: Some("[kinds.x]\ncommand = [\"/x\"]\n".to_owned()),
        user: Some("1000:1000".to_owned()),
        tmpfs_bytes: Some(1_000_000),
        allow_commands: true,
    }
}

fn pool_spec() -> PoolSpec {
    PoolSpec {
        desired: Some(3),
        min: Some(1),
        max: Some(9),
        target_queue_ms: Some(5_000),
        template: template(),
    }
}

fn task() -> Task {
    Task {
        id: TaskId(id(1)),
        kind: "fib".to_owned(),
        input: Some(raw("{\"n\":40}")),
        state: TaskState::Failed,
        result: Some(raw("{\"value\":\"1\"}")),
        error: Some(TaskError { code: ErrorCode::Timeout, message: "it took too long".to_owned() }),
        node: Some(NodeId(id(2))),
        attempt: 2,
        max_attempts: 3,
        priority: -5,
        labels: pairs("job", "7"),
        resources: Resources { cores: 1.5, memory_bytes: 1_000 },
        submitted_at: AT,
        started_at: Some(AT),
        finished_at: Some(AT),
        queue_ms: 1,
        run_ms: Some(2),
        cpu_ms: Some(3),
    }
}

#[test]
fn what_nodes_and_managers_ask_is_asked_as_before() {
    let kind = KindInfo {
        name: "own".to_owned(),
        description: "what it does".to_owned(),
        schema: Some(json!({"type": "object"})),
        resources: Some(ResourceRequest { cores: Some(2.0), memory_bytes: Some(1_000) }),
        timeout_ms: Some(1_000),
        max_attempts: Some(5),
        retry_on: vec![ErrorCode::Timeout],
        max_result_bytes: Some(100),
    };
    let registration = NodeRegistration {
        name: "n-1".to_owned(),
        ip: [192, 0, 2, 7].into(),
        pool: "big".to_owned(),
        allotted_cores: 0.5,
        memory_bytes: 64_000_000,
        kinds: vec![kind, KindInfo { name: "plain".to_owned(), ..KindInfo::default() }],
        labels: pairs("disk", "fast"),
        version: "0.1.0".to_owned(),
        boot_id: BootId(id(9)),
        runtime_id: Some("abc".to_owned()),
    };
    asked("registration", &registration);
    let report = Report {
        seq: 7,
        boot_id: BootId(id(9)),
        ip: [192, 0, 2, 7].into(),
        status: NodeStatus::Draining,
        cpu: sample(),
        memory: MEMORY,
        running: vec![RunningTask { task: TaskId(id(1)), rss_bytes: 5 }],
    };
    asked("report", &report);
    asked("exit-report", &ExitReport { exit_code: Some(137), oom_killed: true, reason: "killed".to_owned() });
    let hello = ManagerHello {
        pool: "big".to_owned(),
        instance: id(8),
        host_cores: 2.0,
        host_memory_bytes: 8_000_000_000,
        runtime: "docker 27.0".to_owned(),
        trouble: "no such image".to_owned(),
    };
    asked("manager-hello", &hello);
}

#[test]
fn what_clients_ask_is_asked_as_before() {
    let spec = TaskSpec {
        timeout_ms: Some(1_000),
        deadline_ms: Some(2_000),
        max_attempts: Some(5),
        retry_on: vec![ErrorCode::TaskError],
        priority: 9,
        labels: pairs("job", "7"),
        resources: Some(ResourceRequest { cores: Some(1.5), memory_bytes: Some(1_000) }),
        rerun_after_ms: Some(60_000),
        durability: Some(Durability::Memory),
        ..TaskSpec::new("fib", Some(raw("{\"n\":40}")))
    };
    asked("task-spec", &spec);
    asked("task-spec-least", &TaskSpec::new("fib", None));
    asked("cancel-by-labels", &CancelByLabels { labels: pairs("job", "7") });
    asked("drain-request", &DrainRequest { deadline_ms: Some(30_000) });
    asked("pool-spec", &pool_spec());
    let request = TokenRequest {
        scopes: vec![Scope::Submit, Scope::Read],
        ttl_ms: Some(60_000),
        single_use: true,
        node_name: Some("n-1".to_owned()),
        note: "for x".to_owned(),
    };
    asked("token-request", &request);
}

#[test]
fn what_nodes_and_managers_are_told_may_grow() {
    let registered = Registered {
        node_id: NodeId(id(2)),
        session_token: "ek_not-a-secret".to_owned(),
        report_interval_ms: 500,
    };
    answered("registered", &registered, &[]);
    answered("report-reply", &ReportReply { report_interval_ms: 500, epoch: 5 }, &[]);
    let manager = ManagerView {
        instance: id(8),
        host_cores: 2.0,
        host_memory_bytes: 8_000_000_000,
        runtime: "docker 27.0".to_owned(),
        trouble: "no such image".to_owned(),
        last_seen_at: AT,
    };
    let view =
        PoolView { name: "big".to_owned(), revision: 7, spec: pool_spec().into(), manager: Some(manager) };
    // A manager that does not know all of a template makes no nodes of it, rather than half of what is wanted.
    answered("pool-view", &view, &["/template", "/template/mounts/0"]);
}

#[test]
fn what_clients_are_told_may_grow() {
    answered("task", &task(), &[]);
    answered("task-page", &Page { items: vec![task()], next_cursor: Some("x".to_owned()) }, &[]);
    let node = NodeView {
        id: NodeId(id(2)),
        name: "n-1".to_owned(),
        ip: [192, 0, 2, 7].into(),
        pool: "big".to_owned(),
        status: NodeStatus::Suspect,
        labels: pairs("disk", "fast"),
        kinds: vec!["fib".to_owned()],
        allotted_cores: 0.5,
        cpu: Some(CpuView { sample: sample().into(), percent: 50.0, sample_age_ms: 7 }),
        memory: Some(MEMORY),
        slots: 1,
        running: 1,
        queued_cpu_ms: 3,
        completed: 4,
        failed: 5,
        registered_at: AT,
        last_report_at: Some(AT),
        runtime_id: Some("abc".to_owned()),
        effective_cores: 0.25,
        reason: "silent".to_owned(),
    };
    answered("node", &node, &[]);
    let problem = Problem { request_id: "q".to_owned(), ..Problem::no_leader("ask again") };
    let events = [
        ("batch-accepted", BatchEvent::Accepted { id: TaskId(id(1)) }),
        ("batch-finished", BatchEvent::Finished { task: Box::new(task()) }),
        ("batch-error", BatchEvent::Error { problem: problem.clone() }),
    ];
    for (name, event) in events {
        let line = BatchAnswer { r#ref: Some("r".to_owned()), line: 3, event };
        answered_by(name, &line, &[], |value| BatchAnswer::parse(value.to_string().as_bytes()));
    }
    answered("problem", &problem, &[]);
    answered("cancelled-count", &CancelledCount { cancelled: 7 }, &[]);
    let candidate = Candidate {
        node: NodeId(id(2)),
        name: "n-1".to_owned(),
        effective_cores: 0.25,
        in_flight: 1,
        free_slots: 0,
        finish_ms: 12.5,
        verdict: "busy".to_owned(),
    };
    let explanation = Explanation {
        reason: "waiting".to_owned(),
        message: "all nodes are busy".to_owned(),
        position: Some(3),
        estimated_cpu_ms: Some(1.5),
        predicted_run_ms: Some(2.5),
        remaining_ms: Some(3.5),
        candidates: vec![candidate],
    };
    answered("explanation", &explanation, &[]);
    let status = ClusterStatus {
        leader: "http://127.0.0.1:7400".to_owned(),
        epoch: 5,
        version: "0.1.0".to_owned(),
        nodes: NodeCounts { starting: 1, ready: 2, draining: 3, suspect: 4, lost: 5 },
        queued: 1,
        running: 2,
        succeeded: 3,
        failed: 4,
        cancelled: 5,
        late_results: 6,
        accepted_per_second: 0.5,
        finished_per_second: 0.25,
        allotted_cores: 2.0,
        effective_cores: 1.5,
        used_cores: 1.0,
        uptime_ms: 7,
    };
    answered("status", &status, &[]);
    let info = TokenInfo {
        id: id(4),
        scopes: vec![Scope::Node],
        created_at: AT,
        expires_at: Some(AT),
        single_use: true,
        node_name: Some("n-1".to_owned()),
        note: "for x".to_owned(),
    };
    answered("token-info", &info, &[]);
    answered("token-created", &TokenCreated { token: "ek_not-a-secret".to_owned(), info }, &[]);
}

#[test]
fn the_comparisons_see_what_is_gone_or_other() {
    let less = json!({"a": {"b": [1, {"c": 2}]}});
    assert_eq!(missing(&less, &json!({"a": {"b": [1, {"c": 2, "d": 3}]}, "e": 4})), None);
    assert!(missing(&less, &json!({"a": {"b": [1, {}]}})).is_some());
    assert!(missing(&less, &json!({"a": {"b": [1, {"c": 9}]}})).is_some());
    assert!(missing(&less, &json!({"a": {"b": [1]}})).is_some());
    assert_eq!(objects(&less, ""), ["", "/a", "/a/b/1"]);
}
