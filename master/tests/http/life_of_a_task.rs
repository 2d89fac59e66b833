//! From the submission over a node to the result, and what may come in between.

use crate::{
    harness::{Master, PATIENCE, parse},
    node::{Node, registration},
};
use protocol::{
    BootId, RunId,
    task::{ErrorCode, TaskError},
    work::{Outcome, RunRef, SUBPROTOCOL, ToNode},
};
use serde_json::json;

const FIB: &str = r#"{"kind":"fib","input":{"n":40}}"#;
const RESULT: &str = r#"{"value":"102334155"}"#;

#[tokio::test]
async fn a_task_goes_to_a_node_and_its_result_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let accepted = master.call("POST", "/v1/tasks", FIB).await;
    assert_eq!(accepted.status, 202);
    let task = accepted.json();
    assert_eq!(accepted.headers["location"], format!("/v1/tasks/{}", task["id"].as_str().unwrap()));
    assert_eq!((&task["state"], &task["attempt"]), (&json!("queued"), &json!(0)));
    let id = task["id"].as_str().unwrap();
    let waiting = master.call("GET", &format!("/v1/tasks/{id}/explain"), "").await.json();
    assert!(!waiting["reason"].as_str().unwrap().is_empty(), "{waiting}");

    let mut node = Node::join(&master, "n-1").await;
    let (run, input) = node.next_run().await;
    assert_eq!((run.task.to_string(), run.kind.as_str(), input), (id.to_owned(), "fib", json!({"n": 40})));
    assert_eq!(run.epoch, node.epoch);
    let running = master.call("GET", &format!("/v1/tasks/{id}"), "").await.json();
    assert_eq!((&running["state"], &running["node"]), (&json!("running"), &json!(node.id)));
    node.end(run.task, run.run, Outcome::Succeeded, RESULT).await;
    node.committed(run.run).await;
    let task = master.finished(id).await;
    assert_eq!((&task["state"], &task["attempt"]), (&json!("succeeded"), &json!(1)));
    assert_eq!(task["result"].to_string(), RESULT);
    assert!(task["error"].is_null() && task["finished_at"].is_string(), "{task}");

    let page = master.call("GET", "/v1/tasks?kind=fib&state=succeeded", "").await.json();
    let [listed] = &page["items"].as_array().unwrap()[..] else { panic!("{page}") };
    assert!(listed["result"].is_null() && listed.get("input").is_none(), "{listed}");
    let page = master.call("GET", "/v1/tasks?full=1", "").await.json();
    assert_eq!(page["items"][0]["input"], json!({"n": 40}));
    master.call("DELETE", &format!("/v1/tasks/{id}"), "").await.problem(409, "conflict");
    let status = master.call("GET", "/v1/status", "").await.json();
    assert_eq!((&status["succeeded"], &status["running"]), (&json!(1), &json!(0)), "{status}");
    master.stop().await;
}

#[tokio::test]
async fn a_wait_answers_200_at_the_end_and_202_when_it_is_over_first() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let early = master.call("POST", "/v1/tasks?wait=50ms", FIB).await;
    assert_eq!((early.status, early.json()["state"].clone()), (202, json!("queued")));
    let id = early.json()["id"].as_str().unwrap().to_owned();
    let still = master.call("GET", &format!("/v1/tasks/{id}?wait=50ms"), "").await;
    assert_eq!((still.status, still.json()["state"].clone()), (200, json!("queued")));

    let mut node = Node::join(&master, "n-1").await;
    let (run, _) = node.next_run().await;
    node.end(run.task, run.run, Outcome::Succeeded, RESULT).await;
    assert_eq!(master.finished(&id).await["state"], "succeeded");

    // A failed task is a 200 too: the answer is whole, look at its state.
    let bearer = format!("Bearer {}", master.admin);
    let headers =
        [("authorization", bearer.as_str()), ("content-type", "application/json"), ("prefer", "wait=20")];
    let (reply, ()) = tokio::join!(master.raw("POST", "/v1/tasks", &headers, FIB.as_bytes()), async {
        let (run, _) = node.next_run().await;
        let error = TaskError { code: ErrorCode::TaskError, message: "no".to_owned() };
        node.end(run.task, run.run, Outcome::Failed(error), "").await;
    });
    assert_eq!((reply.status, reply.headers["preference-applied"].as_str()), (200, "wait=20"));
    let task = reply.json();
    assert_eq!((&task["state"], &task["error"]["code"]), (&json!("failed"), &json!("task_error")));
    master.stop().await;
}

#[tokio::test]
async fn results_that_are_forged_late_or_repeated_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let mut rogue = Node::join(&master, "n-2").await;
    let id = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let (run, mut holder, mut other) = tokio::select! {
        (run, _) = node.next_run() => (run, node, rogue),
        (run, _) = rogue.next_run() => (run, rogue, node),
    };
    let forged = r#"{"value":"1"}"#;
    // A node that was not given the run, a run that was never handed out, one of a later epoch.
    other.end(run.task, run.run, Outcome::Succeeded, forged).await;
    other.end(run.task, RunId(run.run.0 + 1), Outcome::Succeeded, forged).await;
    holder.end(run.task, RunId::new(run.run.epoch() + 1, 1), Outcome::Succeeded, forged).await;
    let nobody = protocol::TaskId(uuid::Uuid::now_v7());
    holder.end(nobody, run.run, Outcome::Succeeded, forged).await;
    holder.end(run.task, run.run, Outcome::Succeeded, RESULT).await;
    let task = master.finished(&id).await;
    assert_eq!(task["result"].to_string(), RESULT, "{task}");
    holder.end(run.task, run.run, Outcome::Succeeded, forged).await;
    // Any later answer of the master shows that it has read what came before.
    holder.committed(run.run).await;
    let next = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let cancelled = master.call("DELETE", &format!("/v1/tasks/{next}"), "").await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(master.finished(&id).await["result"].to_string(), RESULT);
    let late = async {
        loop {
            let status = master.call("GET", "/v1/status", "").await.json();
            if status["late_results"].as_u64().unwrap() >= 1 {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, late).await.expect("refused results are counted");
    assert_eq!(status["succeeded"], 1, "{status}");
    master.stop().await;
}

#[tokio::test]
async fn a_cancel_reaches_the_node_and_ends_the_task_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let (run, _) = node.next_run().await;
    let cancelled = master.call("DELETE", &format!("/v1/tasks/{id}"), "").await;
    assert_eq!((cancelled.status, cancelled.json()["state"].clone()), (200, json!("cancelled")));
    loop {
        if let ToNode::Cancel(cancel) = node.next().await {
            assert_eq!(cancel.runs, [run.run]);
            break;
        }
    }
    node.end(run.task, run.run, Outcome::Cancelled, "").await;
    node.committed(run.run).await;
    let task = master.finished(&id).await;
    assert_eq!(
        (&task["state"], &task["error"]["code"]),
        (&json!("cancelled"), &json!("cancelled")),
        "{task}"
    );
    master.call("DELETE", &format!("/v1/tasks/{id}"), "").await.problem(409, "conflict");
    master.stop().await;
}

#[tokio::test]
async fn the_same_key_and_body_is_the_same_task_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let submit = async |master: &Master, key: &str, body: &str| {
        let bearer = format!("Bearer {}", master.admin);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ];
        master.raw("POST", "/v1/tasks", &headers, body.as_bytes()).await
    };
    let first = submit(&master, "k", FIB).await;
    assert_eq!(first.status, 202);
    let spaced = r#"{ "input": {"n":40}, "kind": "fib" }"#;
    assert_eq!(submit(&master, "k", spaced).await.json()["id"], first.json()["id"]);
    assert_ne!(submit(&master, "other", FIB).await.json()["id"], first.json()["id"]);
    submit(&master, "k", r#"{"kind":"fib","input":{"n":41}}"#).await.problem(422, "key-reused");
    let many = futures_util::future::join_all((0..8).map(|_| submit(&master, "race", FIB))).await;
    let ids: std::collections::HashSet<String> = many.iter().map(|r| r.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    master.stop().await;
    let master = Master::start(dir.path()).await;
    assert_eq!(submit(&master, "k", FIB).await.json()["id"], first.json()["id"]);
    submit(&master, "k", r#"{"kind":"fib","input":{"n":41}}"#).await.problem(422, "key-reused");
    master.stop().await;
}

#[tokio::test]
async fn what_was_accepted_is_there_after_a_restart_and_a_running_task_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let done = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let (run, _) = node.next_run().await;
    node.end(run.task, run.run, Outcome::Succeeded, RESULT).await;
    node.committed(run.run).await;
    let running = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let (run, _) = node.next_run().await;
    let queued = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let epoch = node.epoch;
    master.stop().await;

    let master = Master::start(dir.path()).await;
    let state =
        async |id: &str| master.call("GET", &format!("/v1/tasks/{id}"), "").await.json()["state"].clone();
    assert_eq!(master.finished(&done).await["result"].to_string(), RESULT);
    assert_eq!(state(&running).await, "running");
    assert_eq!(state(&queued).await, "queued");
    let page = master.call("GET", "/v1/tasks?limit=2", "").await.json();
    let next = page["next_cursor"].as_str().unwrap().to_owned();
    let ids = |page: &serde_json::Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&page), [queued.clone(), running.clone()]);
    let page = master.call("GET", &format!("/v1/tasks?limit=2&cursor={next}"), "").await.json();
    assert_eq!((ids(&page), page["next_cursor"].is_null()), (vec![done], true));

    // The node's session is still good; it comes back with its run, which is not handed out again.
    node.open(&master, vec![RunRef { task: run.task, run: run.run }]).await;
    assert!(node.epoch > epoch);
    node.end(run.task, run.run, Outcome::Succeeded, RESULT).await;
    let task = master.finished(&running).await;
    assert_eq!((&task["state"], &task["attempt"]), (&json!("succeeded"), &json!(1)), "{task}");
    let (last, _) = node.next_run().await;
    assert_eq!(last.task.to_string(), queued);
    master.stop().await;
}

#[tokio::test]
async fn a_node_that_dies_costs_an_attempt_and_the_task_runs_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut first = Node::join(&master, "n-1").await;
    let id = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let (lost, _) = first.next_run().await;
    let mut second = Node::join(&master, "n-2").await;
    let exit = r#"{"exit_code":137,"oom_killed":false,"reason":"killed by a test"}"#;
    let reply = master.call("POST", &format!("/v1/nodes/{}/exited", first.id), exit).await;
    assert_eq!(reply.status, 204);
    let (run, _) = second.next_run().await;
    assert_eq!(run.task, lost.task);
    assert!(run.run > lost.run);
    second.end(run.task, run.run, Outcome::Succeeded, RESULT).await;
    let task = master.finished(&id).await;
    assert_eq!((&task["state"], &task["attempt"]), (&json!("succeeded"), &json!(2)));
    let shown = master.call("GET", &format!("/v1/nodes/{}", first.id), "").await.json();
    assert_eq!(shown["status"], "lost", "{shown}");
    master.stop().await;
}

#[tokio::test]
async fn a_drained_node_takes_no_work_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let path = format!("/v1/nodes/{}", node.id);
    let drained = master.call("POST", &format!("{path}/drain"), r#"{"deadline_ms":1000}"#).await;
    assert_eq!((drained.status, drained.json()["status"].clone()), (200, json!("draining")));
    assert!(matches!(node.next().await, ToNode::Drain(_)));
    let id = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let resumed = master.call("POST", &format!("{path}/resume"), "").await;
    assert_eq!((resumed.status, resumed.json()["status"].clone()), (200, json!("ready")));
    let (run, _) = node.next_run().await;
    assert_eq!(run.task.to_string(), id);
    master.call("POST", &format!("{path}/drain"), r#"{"deadline":1}"#).await.problem(422, "invalid");
    assert_eq!(master.call("DELETE", &path, "").await.status, 204);
    master.stop().await;
}

#[tokio::test]
async fn the_work_channel_is_only_for_the_node_itself_and_only_with_its_subprotocol() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let node = Node::register(&master, "n-1").await;
    let other = Node::register(&master, "n-2").await;
    let path = format!("/v1/nodes/{}/work", node.id);
    let upgrade = |token: &str| {
        vec![
            ("authorization".to_owned(), format!("Bearer {token}")),
            ("connection".to_owned(), "close, upgrade".to_owned()),
            ("upgrade".to_owned(), "websocket".to_owned()),
            ("sec-websocket-version".to_owned(), "13".to_owned()),
            ("sec-websocket-key".to_owned(), "dGhlIHNhbXBsZSBub25jZQ==".to_owned()),
        ]
    };
    let ask = async |headers: Vec<(String, String)>| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        master.raw("GET", &path, &headers, b"").await
    };
    ask(upgrade(&other.session)).await.problem(403, "forbidden");
    ask(upgrade(&master.admin)).await.problem(403, "forbidden");
    ask(upgrade("ek_wrong")).await.problem(401, "unauthenticated");
    let detail = ask(upgrade(&node.session)).await.problem(400, "malformed");
    assert!(detail.contains(SUBPROTOCOL), "{detail}");
    ask(upgrade(&node.session)[..1].to_vec()).await.problem(400, "malformed");
    master.stop().await;
}

#[tokio::test]
async fn a_channel_that_speaks_nonsense_is_closed_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    node.send_raw(bytes::Bytes::from_static(b"\xff\xff\xff\xff nonsense")).await;
    let closed = tokio::time::timeout(PATIENCE, async { while node.read().await.is_some() {} }).await;
    assert!(closed.is_ok(), "the channel is closed");
    assert_eq!(master.call("GET", "/readyz", "").await.status, 200);
    master.stop().await;
}

#[tokio::test]
async fn an_own_kind_is_checked_against_the_schema_it_was_registered_with() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut body: serde_json::Value =
        serde_json::from_str(&registration("n-1", BootId(uuid::Uuid::now_v7()))).unwrap();
    body["kinds"] = json!([{
        "name": "resize", "description": "makes pictures smaller",
        "schema": {"type": "object", "properties": {"width": {"type": "integer", "minimum": 1}}, "required": ["width"]},
    }]);
    assert_eq!(master.call("POST", "/v1/nodes", &body.to_string()).await.status, 201);
    let kinds = master.call("GET", "/v1/kinds", "").await.json();
    assert!(kinds["items"].as_array().unwrap().iter().any(|kind| kind["name"] == "resize"), "{kinds}");
    for bad in [r#"{"width":0}"#, r#"{"width":"1"}"#, "{}", "[]"] {
        let task = format!(r#"{{"kind":"resize","input":{bad}}}"#);
        let detail = master.call("POST", "/v1/tasks", &task).await.problem(422, "invalid");
        assert!(detail.contains("resize"), "{detail}");
    }
    master.submit("", r#"{"kind":"resize","input":{"width":10}}"#).await;
    master.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_429_and_says_when_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start_with(dir.path(), |config| config.queue_max_tasks = 2).await;
    let first = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    master.submit("", FIB).await;
    let full = master.call("POST", "/v1/tasks", FIB).await;
    full.problem(429, "queue-full");
    assert!(full.headers["retry-after"].parse::<u32>().unwrap() >= 1);
    assert_eq!(master.call("DELETE", &format!("/v1/tasks/{first}"), "").await.status, 200);
    master.submit("", FIB).await;
    master.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_memory_task_along() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let caller = async {
        let reply = master.call("POST", "/v1/tasks?wait=20s", FIB).await;
        panic!("nobody answers this: {reply:?}");
    };
    let run = tokio::select! {
        () = caller => unreachable!(),
        (run, _) = node.next_run() => run,
    };
    // The connection is closed by now, and no 202 was sent: nothing was promised.
    loop {
        if let ToNode::Cancel(cancel) = node.next().await {
            assert_eq!(cancel.runs, [run.run]);
            break;
        }
    }
    let task = master.finished(&run.task.to_string()).await;
    assert_eq!(task["state"], "cancelled", "{task}");
    master.stop().await;
}

#[tokio::test]
async fn long_polls_do_not_keep_a_master_from_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let id = master.submit("", FIB).await["id"].as_str().unwrap().to_owned();
    let mut poll = tokio::net::TcpStream::connect(master.address).await.unwrap();
    let request = format!(
        "GET /v1/tasks/{id}?wait=300s HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        master.admin
    );
    tokio::io::AsyncWriteExt::write_all(&mut poll, request.as_bytes()).await.unwrap();
    // Nothing shows from outside that the poll has begun; if it has not, the connection just ends.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let begun = std::time::Instant::now();
    master.stop().await;
    assert!(begun.elapsed() < PATIENCE / 2);
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut poll, &mut answer).await;
    if read.is_ok_and(|bytes| bytes > 0) {
        parse(&answer).problem(503, "unavailable");
    }
}
