//! What somebody without a token sends to get further than they may.

use crate::{
    harness::{Master, PATIENCE, parse},
    node::{Node, registration},
};
use protocol::{BootId, work::SUBPROTOCOL};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Sends these bytes, and nothing more; everything that comes back until the master closes.
async fn exchange(master: &Master, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(master.address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _closed_early = stream.write_all(bytes).await;
    let _closed_early = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = async {
        let _reset = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the master closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_inside_of_another_is_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    // What a proxy that measures by the other header, or reads a number otherwise, would let through.
    let inner = "GET /livez HTTP/1.1\r\nhost: localhost\r\nx-inner: 1\r\n\r\n";
    let after = format!("0\r\n\r\n{inner}");
    for (headers, body) in [
        ("content-length: 6\r\ntransfer-encoding: chunked", &after),
        ("transfer-encoding: chunked\r\ncontent-length: 6", &after),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", &after),
        ("transfer-encoding: identity, chunked", &after),
        ("transfer-encoding: chunked, identity", &after),
        ("transfer-encoding: xchunked", &after),
        ("transfer-encoding : chunked", &after),
        ("transfer-encoding:\x0bchunked", &after),
        ("x: y\r\n transfer-encoding: chunked\r\ncontent-length: 5", &after),
        ("content-length: 0\r\ncontent-length: 4", &inner.to_owned()),
        ("content-length: 0, 4", &inner.to_owned()),
        ("content-length: +0", &inner.to_owned()),
        ("content-length: -1", &inner.to_owned()),
        ("content-length: 0x0", &inner.to_owned()),
        ("content-length: 18446744073709551616", &inner.to_owned()),
        ("transfer-encoding: chunked", &format!("fffffffffffffffff\r\n{inner}")),
        ("transfer-encoding: chunked", &format!("0x0\r\n\r\n{inner}")),
        ("transfer-encoding: chunked", &format!("-1\r\n\r\n{inner}")),
        ("transfer-encoding: chunked", &format!("0;a\n\r\n{inner}")),
    ] {
        for (method, path) in [("POST", "/v1/tasks"), ("GET", "/livez")] {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n{body}");
            let answer = exchange(&master, request.as_bytes()).await;
            assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{request:?} is answered by {answer:?}");
        }
    }
    // The same in the language of 1.0, where bodies have no chunks.
    let old = format!("POST /livez HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{after}");
    assert!(exchange(&master, old.as_bytes()).await.matches("HTTP/1.").count() <= 1);
    master.stop().await;
}

#[tokio::test]
async fn no_writing_of_a_path_and_no_header_stands_in_for_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for path in [
        "/v1/tokens/",
        "//v1/tokens",
        "/v1//tokens",
        "/./v1/tokens",
        "/livez/../v1/tokens",
        "/livez/..%2fv1/tokens",
        "/livez/%2e%2e/v1/tokens",
        "/%76%31/tokens",
        "/v1/tokens%00",
        "/v1/tokens;/livez",
        "/v1/tokens%3f/livez",
        "/V1/TOKENS",
        "http://localhost/v1/tokens",
        "*",
    ] {
        let reply = master.call_as(None, "GET", path, "").await;
        assert!(matches!(reply.status, 401 | 404), "{path}: {reply:?}");
    }
    // Proxies and frameworks have headers of their own; none of them counts here.
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1;proto=https"),
        ("x-forwarded-user", "admin"),
        ("x-remote-user", "admin"),
        ("x-original-url", "/livez"),
        ("x-rewrite-url", "/livez"),
        ("x-http-method-override", "HEAD"),
        ("cookie", &format!("token={}; session={}", master.admin, master.admin)),
        ("x-api-key", &master.admin),
        ("proxy-authorization", &format!("Bearer {}", master.admin)),
        ("authorization", &master.admin),
        ("authorization", &format!("Basic {}", master.admin)),
    ] {
        let reply = master.raw("GET", "/v1/tokens", &[(name, value)], b"").await;
        assert_eq!(reply.status, 401, "{name}: {reply:?}");
    }
    // A token in a URL would stand in the logs of everything on the way.
    for query in ["token", "access_token", "api_key", "bearer"] {
        let path = format!("/v1/status?{query}={}", master.admin);
        assert_eq!(master.call_as(None, "GET", &path, "").await.status, 401, "{query}");
    }
    // And what names a host elsewhere than in `Host` is not believed.
    let bearer = format!("Bearer {}", master.admin);
    let elsewhere =
        [("authorization", &*bearer), ("x-forwarded-host", "localhost"), ("host", "evil.example")];
    master.raw("GET", "/v1/status", &elsewhere, b"").await.problem(421, "foreign-host");
    let absolute = "http://evil.example/v1/status";
    let reply = master.raw("GET", absolute, &[("authorization", &bearer), ("host", "localhost")], b"").await;
    reply.problem(421, "foreign-host");
    master.stop().await;
}

#[tokio::test]
async fn a_node_is_forged_neither_without_a_token_nor_with_that_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let (own, other) = (Node::join(&master, "own").await, Node::join(&master, "other").await);
    let submitter = master.token(r#"{"scopes":["submit","read","operate"]}"#).await;
    let join = master.token(r#"{"scopes":["node"]}"#).await;
    let fake = registration("fake", BootId(uuid::Uuid::now_v7()));
    for (token, status) in [(None, 401), (Some("ek_guessed"), 401), (Some(&*submitter), 403)] {
        assert_eq!(master.call_as(token, "POST", "/v1/nodes", &fake).await.status, status, "{token:?}");
    }
    let tokens = [(None, 401), (Some(&*submitter), 403), (Some(&*join), 403), (Some(&*own.session), 403)];
    for (token, status) in tokens {
        let path = format!("/v1/nodes/{}/report", other.id);
        let report = crate::node::report(other.boot_id, 99).to_string();
        assert_eq!(master.call_as(token, "POST", &path, &report).await.status, status, "{token:?}");
        let path = format!("/v1/nodes/{}/exited", other.id);
        let exit = r#"{"exit_code":137,"oom_killed":true,"reason":"forged"}"#;
        assert_eq!(master.call_as(token, "POST", &path, exit).await.status, status, "{token:?}");
        let path = format!("/v1/nodes/{}/work", other.id);
        let bearer = format!("Bearer {}", token.unwrap_or_default());
        let mut headers = vec![
            ("connection", "upgrade, close"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", SUBPROTOCOL),
        ];
        headers.extend(token.is_some().then_some(("authorization", &*bearer)));
        assert_eq!(master.raw("GET", &path, &headers, b"").await.status, status, "{token:?}");
    }
    let nodes = master.call("GET", "/v1/nodes", "").await.json();
    assert_eq!(nodes["items"].as_array().unwrap().len(), 2, "{nodes}");
    assert!(nodes["items"].as_array().unwrap().iter().all(|node| node["status"] != "lost"), "{nodes}");
    master.stop().await;
}

#[tokio::test]
async fn headers_without_end_and_in_great_number_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let many: String = (0..5_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(100_000));
    for request in [
        format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
        format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{}", "x: y\r\n".repeat(1_000_000)),
        format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{}", "x".repeat(4_000_000)),
        long_path,
    ] {
        let answer = exchange(&master, request.as_bytes()).await;
        // Written by one who does not read, the answer may be lost with the connection.
        let status = if answer.is_empty() { 431 } else { parse(answer.as_bytes()).status };
        assert!(matches!(status, 400 | 414 | 431), "{answer}");
    }
    assert_eq!(master.call("GET", "/livez", "").await.status, 200);
    master.stop().await;
}

#[tokio::test]
async fn a_body_that_drips_gets_408_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let stream = TcpStream::connect(master.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n",
        master.admin
    );
    write.write_all(head.as_bytes()).await.unwrap();
    let drip = async {
        // Never silent for long, and never done.
        while write.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let read = async {
        let mut part = [0; 4096];
        while !answer.windows(8).any(|part| part == b"problems") {
            let bytes = read.read(&mut part).await.unwrap();
            assert!(bytes > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..bytes]);
        }
    };
    tokio::select! {
        () = drip => {}
        answered = tokio::time::timeout(PATIENCE * 3, read) => answered.expect("an answer in time"),
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("/problems/request-timeout"), "{answer}");
    // Others are served meanwhile and after it.
    assert_eq!(master.call("GET", "/v1/status", "").await.status, 200);
    master.stop().await;
}
