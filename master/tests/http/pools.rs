//! Pools and their managers.

use crate::harness::{Master, Reply};
use serde_json::json;
use std::time::Instant;

async fn put(master: &Master, condition: Option<(&str, &str)>, body: &str) -> Reply {
    let bearer = format!("Bearer {}", master.admin);
    let mut headers = vec![("authorization", bearer.as_str()), ("content-type", "application/json")];
    headers.extend(condition);
    master.raw("PUT", "/v1/pools/default", &headers, body.as_bytes()).await
}

fn hello(instance: u128, host_cores: f64) -> String {
    json!({
        "pool": "default", "instance": uuid::Uuid::from_u128(instance), "host_cores": host_cores,
        "host_memory_bytes": 1_u64 << 30, "runtime": "test",
    })
    .to_string()
}

#[tokio::test]
async fn a_pool_is_written_under_conditions_and_read_back_with_its_tag() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    put(&master, Some(("if-match", "\"1\"")), r#"{"desired":1}"#).await.problem(412, "precondition-failed");
    let made = put(&master, Some(("if-none-match", "*")), r#"{"desired":1}"#).await;
    assert_eq!((made.status, made.headers["etag"].as_str()), (201, "\"1\""));
    put(&master, Some(("if-none-match", "*")), r#"{"desired":1}"#).await.problem(412, "precondition-failed");
    let changed = put(&master, Some(("if-match", "\"1\"")), r#"{"desired":2,"template":{"cpus":0.5}}"#).await;
    assert_eq!((changed.status, changed.headers["etag"].as_str()), (200, "\"2\""));
    put(&master, Some(("if-match", "\"1\"")), r#"{"desired":9}"#).await.problem(412, "precondition-failed");
    let read = master.call("GET", "/v1/pools/default", "").await;
    assert_eq!(read.headers["etag"], "\"2\"");
    let read = read.json();
    assert_eq!((&read["desired"], &read["template"]["cpus"]), (&json!(2), &json!(0.5)));

    // It outlives the master.
    master.stop().await;
    let master = Master::start(dir.path()).await;
    let read = master.call("GET", "/v1/pools/default", "").await.json();
    assert_eq!((&read["desired"], &read["revision"]), (&json!(2), &json!(2)));
    master.stop().await;
}

#[tokio::test]
async fn what_no_pool_can_be_is_422() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for bad in [
        r#"{}"#,
        r#"{"desired":-1}"#,
        r#"{"desired":10001}"#,
        r#"{"desired":1.5}"#,
        r#"{"desired":1,"wanted":2}"#,
        r#"{"desired":1,"template":{"cpus":0}}"#,
        r#"{"desired":1,"template":{"cpus":-1}}"#,
        r#"{"desired":1,"template":{"memory_bytes":1}}"#,
        r#"{"desired":1,"template":{"colour":"red"}}"#,
        r#"{"desired":1,"template":{"env":{"EVENKEEL_TOKEN":"x"}}}"#,
        r#"{"desired":1,"template":{"kinds":"nonsense"}}"#,
        r#"{"desired":1,"template":{"kinds":"[[kind]]\nname = \"a\"\ncommand = [\"b\"]\ntimeout = 5"}}"#,
        r#"{"desired":1,"template":{"mounts":[{"source":"a","target":"/b"}]}}"#,
        r#"{"desired":1,"template":{"mounts":[{"source":"/a/../etc","target":"/b"}]}}"#,
    ] {
        put(&master, None, bad).await.problem(422, "invalid");
    }
    let detail = put(&master, None, r#"{"min":1,"max":3}"#).await.problem(422, "invalid");
    assert!(detail.contains("autoscaling"), "{detail}");
    assert_eq!(master.call("POST", "/v1/managers", &hello(1, 2.0)).await.status, 200);
    let detail = put(&master, None, r#"{"desired":1,"template":{"cpus":2.5}}"#).await.problem(422, "invalid");
    assert!(detail.contains("2 cores"), "{detail}");
    let reply = master.call("PUT", "/v1/pools/a%20b", r#"{"desired":1}"#).await;
    reply.problem(422, "invalid");
    master.stop().await;
}

#[tokio::test]
async fn a_pool_has_one_manager_and_a_hello_makes_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let reply = master.call("POST", "/v1/managers", &hello(1, 2.0)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let read = master.call("GET", "/v1/pools/default", "").await.json();
    assert_eq!((&read["desired"], &read["manager"]["runtime"]), (&json!(0), &json!("test")));
    master.call("POST", "/v1/managers", &hello(2, 2.0)).await.problem(409, "conflict");
    assert_eq!(master.call("POST", "/v1/managers", &hello(1, 2.0)).await.status, 200);
    master.call("POST", "/v1/managers", &hello(1, 0.0)).await.problem(422, "invalid");
    master.stop().await;
}

#[tokio::test]
async fn a_long_poll_answers_at_once_when_the_pool_changes_and_at_its_end_when_not() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    assert_eq!(put(&master, None, r#"{"desired":1}"#).await.status, 201);
    let begun = Instant::now();
    let (polled, changed) =
        tokio::join!(master.call("GET", "/v1/pools/default?wait=20s&revision=1", ""), async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            put(&master, None, r#"{"desired":2}"#).await
        });
    assert_eq!((changed.status, polled.status), (200, 200));
    assert_eq!(polled.json()["revision"], 2);
    assert!(begun.elapsed().as_secs() < 15, "it did not wait for its whole time");
    let same = master.call("GET", "/v1/pools/default?wait=100ms&revision=2", "").await.json();
    assert_eq!(same["revision"], 2);
    let other = master.call("GET", "/v1/pools/default?wait=20s&revision=1", "").await.json();
    assert_eq!(other["revision"], 2);
    master.call("GET", "/v1/pools/default?wait=301s&revision=2", "").await.problem(422, "invalid");
    master.stop().await;
}

#[tokio::test]
async fn a_kind_of_a_template_is_known_before_any_node_has_it_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let own = r#"{"kind":"own","input":{"size":1}}"#;
    master.call("POST", "/v1/tasks", own).await.problem(422, "unknown-kind");
    let kinds = "[[kind]]\nname = \"own\"\ncommand = [\"x\"]\ncores = 2.0\ntimeout_ms = 5000\nmax_attempts = 7\nretry_on = [\"timeout\"]\nschema = { type = \"object\", required = [\"size\"] }\n";
    let spec = json!({"desired": 0, "template": {"kinds": kinds, "cpus": 4.0, "memory_bytes": 1_u64 << 30}});
    assert_eq!(put(&master, None, &spec.to_string()).await.status, 201);
    let asked = async |master: &Master| {
        let task = master.submit("", own).await;
        assert_eq!(task["resources"], json!({"cores": 2.0, "memory_bytes": 0}), "{task}");
        assert_eq!(task["max_attempts"], 7, "{task}");
        let larger = r#"{"kind":"own","input":{"size":1},"resources":{"cores":5}}"#;
        let detail = master.call("POST", "/v1/tasks", larger).await.problem(422, "never-fits");
        assert!(detail.contains("4 cores"), "{detail}");
        let shown = master.call("GET", "/v1/kinds", "").await.json();
        let shown =
            shown["items"].as_array().unwrap().iter().find(|kind| kind["name"] == "own").unwrap().clone();
        assert_eq!(shown["resources"], json!({"cores": 2.0}), "{shown}");
        assert_eq!(
            (&shown["timeout_ms"], &shown["retry_on"]),
            (&json!(5_000), &json!(["timeout"])),
            "{shown}"
        );
    };
    asked(&master).await;
    master.call("POST", "/v1/tasks", r#"{"kind":"own","input":{}}"#).await.problem(422, "invalid");
    master.stop().await;
    let master = Master::start(dir.path()).await;
    asked(&master).await;
    master.stop().await;
}
