//! What is sent wrongly is refused with the status and the type that the contract names.

use crate::{
    harness::Master,
    node::{Node, registration, report},
};
use protocol::BootId;
use serde_json::json;

const NOBODY: &str = "01930000-0000-7000-8000-000000000000";

#[tokio::test]
async fn inputs_that_a_kind_does_not_take_are_422_and_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for input in [
        r#"{"n":-1}"#,
        r#"{"n":61}"#,
        r#"{"n":61,"algorithm":"recursive"}"#,
        r#"{"n":1000000000}"#,
        r#"{"n":18446744073709551616}"#,
        r#"{"n":1.5}"#,
        r#"{"n":"10"}"#,
        r#"{"n":null}"#,
        r#"{}"#,
        r#"{"n":1,"m":1}"#,
        r#"{"n":1000001,"algorithm":"doubling"}"#,
    ] {
        let reply = master.call("POST", "/v1/tasks", &format!(r#"{{"kind":"fib","input":{input}}}"#)).await;
        let detail = reply.problem(422, "invalid");
        assert!(detail.contains("fib"), "{input}: {detail}");
    }
    master.call("POST", "/v1/tasks", r#"{"kind":"fib"}"#).await.problem(422, "invalid");
    for numbers in ["[1e999999999]", r#"["1e10001"]"#, "[null]", r#"["NaN"]"#] {
        let body = format!(r#"{{"kind":"sum","input":{{"numbers":{numbers}}}}}"#);
        master.call("POST", "/v1/tasks", &body).await.problem(422, "invalid");
    }
    master.stop().await;
}

#[tokio::test]
async fn unknown_kinds_fields_nodes_tasks_and_paths_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let detail = master
        .call("POST", "/v1/tasks", r#"{"kind":"fibb","input":{"n":1}}"#)
        .await
        .problem(422, "unknown-kind");
    assert!(detail.contains("fibb"), "{detail}");
    let body = r#"{"kind":"fib","input":{"n":1},"prioritty":1}"#;
    let detail = master.call("POST", "/v1/tasks", body).await.problem(422, "invalid");
    assert!(detail.contains("prioritty"), "{detail}");
    for path in [
        format!("/v1/tasks/{NOBODY}"),
        "/v1/tasks/x".to_owned(),
        format!("/v1/tasks/{NOBODY}/explain"),
        format!("/v1/nodes/{NOBODY}"),
        "/v1/nodes/x".to_owned(),
        "/v1/pools/nowhere".to_owned(),
        "/v1/nothing".to_owned(),
        "/".to_owned(),
        "/v1/tasks/".to_owned(),
    ] {
        master.call("GET", &path, "").await.problem(404, "not-found");
    }
    master.call("DELETE", &format!("/v1/tasks/{NOBODY}"), "").await.problem(404, "not-found");
    master.call("DELETE", &format!("/v1/tokens/{NOBODY}"), "").await.problem(404, "not-found");
    master.call("POST", &format!("/v1/nodes/{NOBODY}/drain"), "{}").await.problem(404, "not-found");
    let exit = r#"{"exit_code":137,"oom_killed":false,"reason":""}"#;
    master.call("POST", &format!("/v1/nodes/{NOBODY}/exited"), exit).await.problem(404, "not-found");
    for query in
        ["?states=queued", "?state=lost", "?limit=0", "?limit=1001", "?cursor=x", "?label=x", "?full=2"]
    {
        master.call("GET", &format!("/v1/tasks{query}"), "").await.problem(422, "invalid");
    }
    master.stop().await;
}

#[tokio::test]
async fn bodies_that_are_not_json_or_too_large_or_of_another_type_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for body in ["{", "nonsense", r#"{"kind":"fib","input":{"n":NaN}}"#, r#"{"kind":"fib"}}"#, "\u{feff}{}"] {
        master.call("POST", "/v1/tasks", body).await.problem(400, "malformed");
    }
    let deep = format!(r#"{{"kind":"fib","input":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    master.call("POST", "/v1/tasks", &deep).await.problem(400, "malformed");
    let bearer = format!("Bearer {}", master.admin);
    let auth = ("authorization", bearer.as_str());
    let bad_utf8 = b"{\"kind\":\"\xff\"}";
    let typed = [auth, ("content-type", "application/json; charset=utf-8")];
    master.raw("POST", "/v1/tasks", &typed, bad_utf8).await.problem(400, "malformed");
    for body in ["[]", "null", "1", r#"{"kind":1}"#, "{}"] {
        master.call("POST", "/v1/tasks", body).await.problem(422, "invalid");
    }
    let large = format!(r#"{{"kind":"sum","input":{{"numbers":["{}"]}}}}"#, "1".repeat(1024 * 1024));
    master.call("POST", "/v1/tasks", &large).await.problem(413, "too-large");
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/x-ndjson"] {
        let headers = [auth, ("content-type", content_type)];
        let reply = master.raw("POST", "/v1/tasks", &headers, b"{}").await;
        reply.problem(415, "unsupported-media-type");
    }
    master.raw("POST", "/v1/tasks", &[auth], b"{}").await.problem(415, "unsupported-media-type");
    let headers = [auth, ("content-type", "application/json"), ("content-encoding", "gzip")];
    master.raw("POST", "/v1/tasks", &headers, b"{}").await.problem(415, "unsupported-media-type");
    master.call("POST", "/v1/tasks/batch", "{}").await.problem(415, "unsupported-media-type");
    master.stop().await;
}

#[tokio::test]
async fn a_method_that_a_path_does_not_have_is_405_and_names_those_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for (method, path, allow) in [
        ("PUT", "/v1/tasks", "GET, HEAD, POST"),
        ("GET", "/v1/tasks/batch", "POST"),
        ("OPTIONS", "/v1/nodes", "GET, HEAD, POST"),
        ("POST", "/livez", "GET, HEAD"),
    ] {
        let reply = master.call(method, path, "").await;
        reply.problem(405, "method-not-allowed");
        assert_eq!(reply.headers["allow"], allow, "{method} {path}");
    }
    master.stop().await;
}

#[tokio::test]
async fn bounds_of_a_submission_are_held() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let many: String = (0..33).map(|i| format!(r#""l{i}":"x","#)).collect();
    let fields = [
        r#""priority":101"#.to_owned(),
        r#""priority":-101"#.to_owned(),
        r#""priority":1000"#.to_owned(),
        r#""max_attempts":0"#.to_owned(),
        r#""max_attempts":101"#.to_owned(),
        r#""timeout_ms":-1"#.to_owned(),
        r#""timeout_ms":0"#.to_owned(),
        r#""deadline_ms":18446744073709551615"#.to_owned(),
        r#""retry_on":["sometimes"]"#.to_owned(),
        r#""resources":{"cores":0}"#.to_owned(),
        r#""resources":{"cores":1e999}"#.to_owned(),
        r#""resources":{"cores":5000}"#.to_owned(),
        r#""resources":{"threads":1}"#.to_owned(),
        r#""durability":"memory""#.to_owned(),
        r#""durability":"paper""#.to_owned(),
        format!(r#""labels":{{{}}}"#, many.trim_end_matches(',')),
        format!(r#""labels":{{"{}":"x"}}"#, "k".repeat(129)),
    ];
    for field in fields {
        let body = format!(r#"{{"kind":"fib","input":{{"n":1}},{field}}}"#);
        master.call("POST", "/v1/tasks", &body).await.problem(422, "invalid");
    }
    let fib = r#"{"kind":"fib","input":{"n":1}}"#;
    for query in ["?wait=301s", "?wait=30", "?wait=-1s", "?wait=soon", "?wiat=1s"] {
        master.call("POST", &format!("/v1/tasks{query}"), fib).await.problem(422, "invalid");
    }
    let bearer = format!("Bearer {}", master.admin);
    let common = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let long_key = "k".repeat(257);
    for extra in [("prefer", "wait=301"), ("idempotency-key", ""), ("idempotency-key", long_key.as_str())] {
        let headers = [common[0], common[1], extra];
        master.raw("POST", "/v1/tasks", &headers, fib.as_bytes()).await.problem(422, "invalid");
    }
    master.call("POST", "/v1/tasks/cancel", r#"{"labels":{}}"#).await.problem(422, "invalid");
    master.call("POST", "/v1/tasks/cancel", r#"{}"#).await.problem(422, "invalid");
    master.stop().await;
}

#[tokio::test]
async fn reports_with_impossible_figures_or_of_another_node_are_refused_and_old_ones_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let node = Node::register(&master, "n-1").await;
    let other = Node::register(&master, "n-2").await;
    let path = format!("/v1/nodes/{}/report", node.id);
    let good = report(node.boot_id, 5).to_string();
    let send = async |body: &str| master.call_as(Some(&node.session), "POST", &path, body).await;
    let reply = send(&good).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!((500..=5_000).contains(&reply.json()["report_interval_ms"].as_u64().unwrap()));
    for (field, value) in [
        ("used_cores", "-0.1"),
        ("used_cores", "4097"),
        ("used_cores", "1e999"),
        ("used_cores", "\"1\""),
        ("own_cores", "-1"),
        ("allotted_cores", "0"),
        ("allotted_cores", "1e300"),
        ("obtained_share", "1.5"),
        ("throttled_ratio", "-0.5"),
        ("source", "\"guess\""),
        ("surplus", "1"),
    ] {
        let mut body = report(node.boot_id, 6);
        body["cpu"][field] = json!("@");
        let body = body.to_string().replace("\"@\"", value);
        send(&body).await.problem(422, "invalid");
    }
    let mut body = report(node.boot_id, 6);
    body["cpu"]["used_cores"] = json!("@");
    for not_json in ["NaN", "Infinity", "-Infinity"] {
        send(&body.to_string().replace("\"@\"", not_json)).await.problem(400, "malformed");
    }
    let mut stopped = report(node.boot_id, 6);
    stopped["status"] = json!("lost");
    send(&stopped.to_string()).await.problem(422, "invalid");

    // An old report is answered as any other, and changes nothing.
    let mut old = report(node.boot_id, 4);
    old["cpu"]["used_cores"] = json!(0.75);
    assert_eq!(send(&old.to_string()).await.status, 200);
    let shown = master.call("GET", &format!("/v1/nodes/{}", node.id), "").await.json();
    assert_eq!(shown["cpu"]["used_cores"], 0.25, "{shown}");
    assert_eq!(shown["cpu"]["percent"], 25.0);

    let reply = master.call_as(Some(&other.session), "POST", &path, &good).await;
    reply.problem(403, "forbidden");
    master.call("POST", &path, &good).await.problem(403, "forbidden");
    master.call_as(None, "POST", &path, &good).await.problem(401, "unauthenticated");
    master.stop().await;
}

#[tokio::test]
async fn registrations_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let boot = BootId(uuid::Uuid::now_v7());
    let good: serde_json::Value = serde_json::from_str(&registration("n", boot)).unwrap();
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("a b")),
        ("name", json!("a/../b")),
        ("name", json!("x".repeat(129))),
        ("ip", json!("nowhere")),
        ("allotted_cores", json!(0)),
        ("allotted_cores", json!(-1)),
        ("allotted_cores", json!(4097)),
        ("memory_bytes", json!(0)),
        ("memory_bytes", json!(-5)),
        ("boot_id", json!("x")),
        ("kinds", json!([{"name": "own", "schema": {"type": "nonsense"}}])),
        ("kinds", json!([{"name": "a b"}])),
        ("kinds", json!([{"name": "own", "resources": {"cores": 0}}])),
        ("kinds", json!([{"name": "own", "resources": {"memory_bytes": -1}}])),
        ("kinds", json!([{"name": "own", "timeout_ms": 0}])),
        ("kinds", json!([{"name": "own", "max_attempts": 101}])),
        ("kinds", json!([{"name": "own", "retry_on": ["deadline"]}])),
        ("kinds", json!([{"name": "own", "max_result_bytes": 2_000_000}])),
        ("surplus", json!(1)),
    ] {
        let mut body = good.clone();
        body[field] = value;
        let detail = master.call("POST", "/v1/nodes", &body.to_string()).await.problem(422, "invalid");
        assert!(!detail.is_empty());
    }
    assert_eq!(master.call("POST", "/v1/nodes", &good.to_string()).await.status, 201);
    master.call("POST", "/v1/nodes", &good.to_string()).await.problem(409, "name-in-use");
    master.stop().await;
}

#[tokio::test]
async fn a_schema_whose_check_could_go_on_for_ever_is_refused_at_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut defs = serde_json::Map::new();
    for level in 0..45 {
        let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
        defs.insert(format!("a{level}"), json!({"allOf": [next, next]}));
    }
    defs.insert("a45".to_owned(), json!({"type": "object"}));
    let schema = json!({"$defs": defs, "$ref": "#/$defs/a0"});
    let boot_id = BootId(uuid::Uuid::now_v7());
    let mut body: serde_json::Value = serde_json::from_str(&registration("n-1", boot_id)).unwrap();
    body["kinds"] = json!([{"name": "own", "description": "", "schema": schema}]);
    let detail = master.call("POST", "/v1/nodes", &body.to_string()).await.problem(422, "invalid");
    assert!(detail.contains("own"), "{detail}");
    let text = format!("[[kind]]\nname = \"own\"\ncommand = [\"x\"]\nschema = '{schema}'\n");
    let pool = json!({"desired": 1, "template": {"kinds": text}}).to_string();
    master.call("PUT", "/v1/pools/default", &pool).await.problem(422, "invalid");
    let kind = |number| json!({"name": format!("own-{number}"), "description": "", "schema": null});
    body["kinds"] = (0..257).map(kind).collect();
    master.call("POST", "/v1/nodes", &body.to_string()).await.problem(422, "invalid");
    body["kinds"] = json!([]);
    body["allotted_cores"] = json!(5e-324);
    master.call("POST", "/v1/nodes", &body.to_string()).await.problem(422, "invalid");
    master.stop().await;
}
