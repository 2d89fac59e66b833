//! Makers of what is stored.

use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    auth::{Scope, TokenInfo},
    node::NodeRegistration,
    task::{Json, Resources, Task, TaskError, TaskSpec, TaskState},
};
use scheduler::{
    event::ClientId,
    record::{NodeRecord, Op, TaskRecord},
};
use serde_json::value::RawValue;
use std::sync::Arc;
use uuid::Uuid;

/// A recent instant, so that nothing written here is old.
pub(super) fn now() -> Timestamp {
    service::clock::wall()
}

pub(crate) fn task_id(n: u64) -> TaskId {
    TaskId(Uuid::from_u64_pair(0, n))
}

pub(super) fn node_id(n: u64) -> NodeId {
    NodeId(Uuid::from_u64_pair(1, n))
}

/// An administrator's token.
pub(super) fn token(n: u128) -> TokenInfo {
    TokenInfo {
        id: Uuid::from_u128(n),
        scopes: vec![Scope::Admin],
        created_at: now(),
        expires_at: None,
        single_use: false,
        node_name: None,
        note: "test".to_owned(),
    }
}

pub(super) fn json(text: &str) -> Json {
    Arc::from(RawValue::from_string(text.to_owned()).unwrap())
}

pub(crate) fn accepted(n: u64, key: Option<&str>) -> Op {
    let spec = TaskSpec::new("fib", Some(json(r#"{"n": 4.0e1}"#)));
    let key = key.map(|key| (Arc::from(key), [n as u8; 32]));
    Op::TaskAccepted(Arc::new(TaskRecord {
        id: task_id(n),
        spec,
        client: ClientId(7),
        key,
        submitted_at: now(),
    }))
}

pub(crate) fn dispatched(n: u64, run: u64) -> Op {
    Op::TaskDispatched { task: task_id(n), run: RunId::new(3, run), node: node_id(1), attempt: 1, at: now() }
}

pub(crate) fn requeued(n: u64) -> Op {
    Op::TaskRequeued { task: task_id(n), attempt: 1 }
}

pub(super) fn task(n: u64, state: TaskState) -> Task {
    Task {
        id: task_id(n),
        kind: "fib".to_owned(),
        input: Some(json(r#"{"n": 4.0e1}"#)),
        state,
        result: (state == TaskState::Succeeded).then(|| json(r#"{"value":"102334155"}"#)),
        error: (state == TaskState::Failed)
            .then(|| TaskError { code: protocol::task::ErrorCode::TaskError, message: "no".to_owned() }),
        node: Some(node_id(1)),
        attempt: 1,
        max_attempts: 3,
        priority: 0,
        labels: [("batch".to_owned(), (n % 2).to_string())].into(),
        resources: Resources::default(),
        submitted_at: now(),
        started_at: Some(now()),
        finished_at: Some(now()),
        queue_ms: 1,
        run_ms: Some(2),
        cpu_ms: Some(3),
    }
}

pub(super) fn ended_as(n: u64, state: TaskState) -> Op {
    Op::TaskEnded { task: Arc::new(task(n, state)), client: ClientId(7), log: None }
}

pub(crate) fn ended(n: u64) -> Op {
    ended_as(n, TaskState::Succeeded)
}

pub(super) fn ended_at(n: u64, at: Timestamp) -> Op {
    let task = Task { finished_at: Some(at), ..task(n, TaskState::Succeeded) };
    Op::TaskEnded { task: Arc::new(task), client: ClientId(7), log: None }
}

pub(super) fn node_record(n: u64) -> NodeRecord {
    NodeRecord {
        id: node_id(n),
        session_hash: [n as u8; 32],
        boot_id: BootId(Uuid::from_u64_pair(2, n)),
        registration: NodeRegistration {
            name: format!("n{n}"),
            ip: "10.0.0.1".parse().unwrap(),
            pool: "default".to_owned(),
            allotted_cores: 0.5,
            memory_bytes: 1 << 28,
            kinds: protocol::kinds::built_in(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            version: "0.1.0".to_owned(),
            boot_id: BootId(Uuid::from_u64_pair(2, n)),
            runtime_id: None,
        },
        registered_at: now(),
    }
}
