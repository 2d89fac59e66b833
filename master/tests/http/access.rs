//! Who may do what, and from where.

use crate::{
    harness::Master,
    node::{Node, registration},
};
use protocol::BootId;
use serde_json::json;

fn concrete(path: &str) -> String {
    path.replace("{id}", "01930000-0000-7000-8000-000000000000").replace("{pool}", "default")
}

#[tokio::test]
async fn every_route_but_the_health_checks_refuses_a_caller_without_a_valid_token() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut seen = 0;
    for route in master::routes() {
        let path = concrete(route.path);
        for token in [None, Some("ek_wrong"), Some("")] {
            let reply = master.call_as(token, route.method, &path, "").await;
            if route.open {
                assert_eq!(reply.status, 200, "{} {path}", route.method);
            } else {
                reply.problem(401, "unauthenticated");
                assert_eq!(reply.headers["www-authenticate"], "Bearer");
            }
        }
        seen += 1;
    }
    assert!(seen >= 26, "{seen} routes");
    master.stop().await;
}

#[tokio::test]
async fn a_token_opens_the_routes_of_its_scopes_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for scope in ["read", "submit", "operate", "node", "manager"] {
        let token = master.token(&format!(r#"{{"scopes":["{scope}"]}}"#)).await;
        for route in master::routes().into_iter().filter(|route| !route.open) {
            let reply = master.call_as(Some(&token), route.method, &concrete(route.path), "").await;
            if route.scopes.contains(&scope) {
                assert!(!matches!(reply.status, 401 | 403 | 500), "{scope} {} {}", route.method, route.path);
            } else {
                reply.problem(403, "forbidden");
            }
        }
    }
    master.stop().await;
}

#[tokio::test]
async fn a_foreign_host_is_421_before_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let master =
        Master::start_with(dir.path(), |config| config.allow_hosts = vec!["my-master".to_owned()]).await;
    let ask = async |host: &str| master.raw("GET", "/livez", &[("host", host)], b"").await;
    for bad in ["evil.example", "evil.example:7400", "localhost.evil.example", "127.0.0.1.nip.io"] {
        ask(bad).await.problem(421, "foreign-host");
        let reply = master.raw("GET", "/nowhere", &[("host", bad)], b"").await;
        reply.problem(421, "foreign-host");
    }
    for good in ["localhost", "LOCALHOST:1", "[::1]:7400", "10.0.0.1", "my-master:7400"] {
        assert_eq!(ask(good).await.status, 200, "{good}");
    }
    ask("").await.problem(400, "malformed");
    master.stop().await;
}

#[tokio::test]
async fn the_name_of_the_clusters_master_container_is_answered_to() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let host = |host| [("host", host)];
    let own = master.raw("GET", "/livez", &host("evenkeel-default-master:7400"), b"").await;
    assert_eq!(own.status, 200);
    master.raw("GET", "/livez", &host("evenkeel-blue-master:7400"), b"").await.problem(421, "foreign-host");
    master.stop().await;
    let master = Master::start_with(dir.path(), |config| config.cluster = "blue".to_owned()).await;
    assert_eq!(master.raw("GET", "/livez", &host("evenkeel-blue-master:7400"), b"").await.status, 200);
    let other = master.raw("GET", "/livez", &host("evenkeel-default-master:7400"), b"").await;
    other.problem(421, "foreign-host");
    master.stop().await;
}

#[tokio::test]
async fn what_a_browser_sends_for_another_site_is_403_even_with_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let own = format!("http://{}", master.address);
    let bearer = format!("Bearer {}", master.admin);
    let ask = async |name: &str, value: &str| {
        master.raw("GET", "/v1/status", &[("authorization", &bearer), (name, value)], b"").await
    };
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        ask(name, value).await.problem(403, "cross-site");
    }
    assert_eq!(ask("origin", &own).await.status, 200);
    assert_eq!(ask("sec-fetch-site", "same-origin").await.status, 200);
    let reply = ask("origin", &own).await;
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
    master.stop().await;
}

#[tokio::test]
async fn a_token_lives_until_it_is_revoked_or_expires_and_its_secret_is_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let made = master.call("POST", "/v1/tokens", r#"{"scopes":["read"],"note":"for a test"}"#).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.headers["cache-control"], "no-store");
    let made = made.json();
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(token.starts_with("ek_") && token.len() == 46, "{token}");
    let listed = master.call("GET", "/v1/tokens", "").await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(token));
    let listed = listed.json();
    assert!(listed["items"].as_array().unwrap().iter().any(|item| item["id"] == id), "{listed}");
    assert_eq!(master.call_as(Some(token), "GET", "/v1/status", "").await.status, 200);
    assert_eq!(master.call("DELETE", &format!("/v1/tokens/{id}"), "").await.status, 204);
    master.call_as(Some(token), "GET", "/v1/status", "").await.problem(401, "unauthenticated");

    let short = master.token(r#"{"scopes":["read"],"ttl_ms":1}"#).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    master.call_as(Some(&short), "GET", "/v1/status", "").await.problem(401, "unauthenticated");

    for bad in [
        r#"{"scopes":[]}"#,
        r#"{"scopes":["root"]}"#,
        r#"{"scopes":["read"],"single_use":true}"#,
        r#"{"scopes":["read"],"ttl_ms":0}"#,
        r#"{"scopes":["node"],"name":"x"}"#,
    ] {
        master.call("POST", "/v1/tokens", bad).await.problem(422, "invalid");
    }
    master.stop().await;
}

#[tokio::test]
async fn tokens_survive_a_restart_and_are_not_in_the_state_directory_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let token = master.token(r#"{"scopes":["read"]}"#).await;
    master.stop().await;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() {
            let bytes = std::fs::read(&file).unwrap();
            let found = bytes.windows(token.len()).any(|window| window == token.as_bytes());
            assert!(!found, "{}", file.display());
        }
    }
    let master = Master::start(dir.path()).await;
    assert_eq!(master.call_as(Some(&token), "GET", "/v1/status", "").await.status, 200);
    // A token file that changes takes its old token's place.
    master.stop().await;
    let old = std::fs::read_to_string(dir.path().join("admin.token")).unwrap();
    std::fs::write(dir.path().join("admin.token"), "a-token-of-the-operators-own-choice-0123").unwrap();
    let master = Master::start(dir.path()).await;
    assert_eq!(master.call("GET", "/v1/status", "").await.status, 200);
    master.call_as(Some(old.trim()), "GET", "/v1/status", "").await.problem(401, "unauthenticated");
    master.stop().await;
}

#[tokio::test]
async fn a_join_token_for_one_use_is_good_for_one_registration_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let manager = master.token(r#"{"scopes":["manager"]}"#).await;
    let mint = async |body: &str| master.call_as(Some(&manager), "POST", "/v1/tokens", body).await;
    for bad in [
        r#"{"scopes":["node"]}"#,
        r#"{"scopes":["submit"]}"#,
        r#"{"scopes":["admin"]}"#,
        r#"{"scopes":["node"],"single_use":true,"ttl_ms":600001}"#,
    ] {
        mint(bad).await.problem(403, "forbidden");
    }
    let minted = mint(r#"{"scopes":["node"],"single_use":true,"node_name":"n-1"}"#).await;
    assert_eq!(minted.status, 201);
    let minted = minted.json();
    assert!(minted["expires_at"].is_string());
    let join = minted["token"].as_str().unwrap();
    let register = async |name: &str| {
        let body = registration(name, BootId(uuid::Uuid::now_v7()));
        master.call_as(Some(join), "POST", "/v1/nodes", &body).await
    };
    register("n-2").await.problem(403, "forbidden");
    assert_eq!(register("n-1").await.status, 201);
    register("n-1").await.problem(401, "unauthenticated");

    // Of many at once exactly one gets through, and a refused registration does not cost the token.
    let minted = mint(r#"{"scopes":["node"],"single_use":true}"#).await.json();
    let join = minted["token"].as_str().unwrap();
    let taken = registration("n-1", BootId(uuid::Uuid::now_v7()));
    master.call_as(Some(join), "POST", "/v1/nodes", &taken).await.problem(409, "name-in-use");
    let names: Vec<String> =
        (0..8).map(|i| registration(&format!("m-{i}"), BootId(uuid::Uuid::now_v7()))).collect();
    let calls = names.iter().map(|body| master.call_as(Some(join), "POST", "/v1/nodes", body));
    let statuses: Vec<u16> = futures_util::future::join_all(calls).await.iter().map(|r| r.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 201 | 401)), "{statuses:?}");
    master.stop().await;
}

#[tokio::test]
async fn a_live_node_keeps_its_name_unless_its_own_session_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let node = Node::join(&master, "n-1").await;
    let again = registration("n-1", BootId(uuid::Uuid::now_v7()));
    master.call("POST", "/v1/nodes", &again).await.problem(409, "name-in-use");
    let other = registration("n-9", BootId(uuid::Uuid::now_v7()));
    master.call_as(Some(&node.session), "POST", "/v1/nodes", &other).await.problem(403, "forbidden");
    let reply = master.call_as(Some(&node.session), "POST", "/v1/nodes", &again).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    assert_ne!(reply.json()["node_id"], json!(node.id));
    master.stop().await;
}

#[tokio::test]
async fn a_task_is_seen_by_its_submitter_by_operate_and_by_admin_only() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let owner = master.token(r#"{"scopes":["submit"]}"#).await;
    let stranger = master.token(r#"{"scopes":["submit"]}"#).await;
    let operator = master.token(r#"{"scopes":["operate"]}"#).await;
    let body = r#"{"kind":"fib","input":{"n":1},"labels":{"who":"owner"}}"#;
    let reply = master.call_as(Some(&owner), "POST", "/v1/tasks", body).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let path = reply.headers["location"].clone();
    for path in [path.clone(), format!("{path}/explain")] {
        for (token, status) in [(&owner, 200), (&operator, 200), (&master.admin, 200), (&stranger, 404)] {
            assert_eq!(master.call_as(Some(token), "GET", &path, "").await.status, status, "{path}");
        }
    }
    master.call_as(Some(&stranger), "DELETE", &path, "").await.problem(404, "not-found");
    let count = async |token: &str| {
        let page = master.call_as(Some(token), "GET", "/v1/tasks", "").await.json();
        page["items"].as_array().unwrap().len()
    };
    assert_eq!((count(&owner).await, count(&stranger).await, count(&operator).await), (1, 0, 1));
    let cancel = r#"{"labels":{"who":"owner"}}"#;
    let reply = master.call_as(Some(&stranger), "POST", "/v1/tasks/cancel", cancel).await;
    assert_eq!(reply.json()["cancelled"], 0);
    let reply = master.call_as(Some(&owner), "POST", "/v1/tasks/cancel", cancel).await;
    assert_eq!(reply.json()["cancelled"], 1);
    master.call_as(Some(&owner), "DELETE", &path, "").await.problem(409, "conflict");
    master.stop().await;
}

#[tokio::test]
async fn without_tokens_the_master_serves_loopback_only_and_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let mut config = master::Config::new(dir.path());
    config.listen = "0.0.0.0:0".parse().unwrap();
    config.insecure_loopback = true;
    let error = master::run(config, stop.clone()).await.unwrap_err();
    assert!(matches!(error, master::Error::InsecureOffLoopback { .. }), "{error}");
    for listen in ["0.0.0.0:0", "127.0.0.1:0"] {
        let mut config = master::Config::new(dir.path());
        config.listen = listen.parse().unwrap();
        let error = master::run(config, stop.clone()).await.unwrap_err();
        assert!(matches!(error, master::Error::NoTokens), "{error}");
        assert!(error.to_string().contains("--bootstrap-token-file"), "{error}");
    }
    let master = Master::start_with(dir.path(), |config| {
        config.bootstrap_token_file = None;
        config.insecure_loopback = true;
    })
    .await;
    assert_eq!(master.call_as(None, "GET", "/v1/tokens", "").await.status, 200);
    let reply = master.raw("GET", "/v1/tokens", &[("host", "evil.example")], b"").await;
    reply.problem(421, "foreign-host");
    master.stop().await;
}

#[tokio::test]
async fn the_bootstrap_writes_a_context_that_a_client_can_use() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("admin.token"), mode("context.toml")), (0o600, 0o600));
    let context = std::fs::read_to_string(dir.path().join("context.toml")).unwrap();
    assert!(context.contains(&format!("http://{}", master.address)), "{context}");
    assert!(context.contains("admin.token"), "{context}");
    assert!(!context.contains(&master.admin));
    master.stop().await;
}
