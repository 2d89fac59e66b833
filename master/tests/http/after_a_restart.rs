//! What a master answers about tasks that its scheduler never knew or has forgotten, and the store has.

use crate::{
    harness::{Master, Reply},
    node::Node,
};
use protocol::work::Outcome;
use serde_json::json;
use std::path::Path;

const FIB: &str = r#"{"kind":"fib","input":{"n":40}}"#;

async fn submit(master: &Master, query: &str, extra: &[(&str, &str)], body: &str) -> Reply {
    let bearer = format!("Bearer {}", master.admin);
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", "k"),
    ];
    headers.extend(extra);
    master.raw("POST", &format!("/v1/tasks{query}"), &headers, body.as_bytes()).await
}

/// A master that was started anew after a task with the key `k` had ended, and the task's id.
async fn restarted(dir: &Path) -> (Master, String) {
    let master = Master::start(dir).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, "", &[], FIB).await.json()["id"].as_str().unwrap().to_owned();
    let (run, _) = node.next_run().await;
    node.end(run.task, run.run, Outcome::Succeeded, r#"{"value":"102334155"}"#).await;
    node.committed(run.run).await;
    master.stop().await;
    (Master::start(dir).await, id)
}

#[tokio::test]
async fn a_key_of_an_ended_task_gives_that_task_in_the_way_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (master, id) = restarted(dir.path()).await;
    for (query, extra, status) in [
        ("", &[][..], 202),
        ("?wait=5s", &[], 200),
        ("?wait=0s", &[], 200),
        ("", &[("prefer", "wait=5")], 200),
    ] {
        let again = submit(&master, query, extra, FIB).await;
        assert_eq!(again.status, status, "{query} {extra:?}: {again:?}");
        assert_eq!(again.headers["location"], format!("/v1/tasks/{id}"));
        assert_eq!(again.headers.contains_key("preference-applied"), !extra.is_empty());
        let task = again.json();
        assert_eq!((&task["id"], &task["state"]), (&json!(id), &json!("succeeded")), "{task}");
        assert_eq!(task["result"], json!({"value": "102334155"}));
    }
    let other = r#"{"kind":"fib","input":{"n":41}}"#;
    submit(&master, "", &[], other).await.problem(422, "key-reused");
    master.stop().await;
}

#[tokio::test]
async fn an_ended_task_is_shown_waited_for_explained_and_not_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (master, id) = restarted(dir.path()).await;
    let path = format!("/v1/tasks/{id}");
    for query in ["", "?wait=0s", "?wait=20s"] {
        let shown = master.call("GET", &format!("{path}{query}"), "").await;
        assert_eq!((shown.status, &shown.json()["state"]), (200, &json!("succeeded")), "{shown:?}");
    }
    let detail = master.call("DELETE", &path, "").await.problem(409, "conflict");
    assert!(detail.contains("succeeded"), "{detail}");
    let explained = master.call("GET", &format!("{path}/explain"), "").await;
    assert_eq!((explained.status, &explained.json()["reason"]), (200, &json!("ended")), "{explained:?}");
    // Others see nothing of it, as before.
    let token = master.token(r#"{"scopes":["submit"]}"#).await;
    for (method, path) in
        [("GET", path.clone()), ("DELETE", path.clone()), ("GET", format!("{path}/explain"))]
    {
        master.call_as(Some(&token), method, &path, "").await.problem(404, "not-found");
    }
    master.stop().await;
}
