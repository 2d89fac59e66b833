//! The life of a token: what it began ends with it, and a join token is good once.

use crate::{
    harness::{Master, PATIENCE, parse},
    node::registration,
};
use protocol::BootId;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn open(master: &Master, head: &str, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(master.address).await.unwrap();
    let head = format!("{head} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// A batch that has had its first answer, and goes on.
async fn batch(master: &Master, token: &str) -> TcpStream {
    let mut stream = open(master, "POST /v1/tasks/batch?detach=1", token).await;
    let line = "{\"kind\":\"fib\",\"input\":{\"n\":1}}\n";
    let rest = format!(
        "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{line}\r\n",
        line.len()
    );
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("accepted") {
        let mut part = [0; 4_096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut part)).await.expect("an answer in time");
        answer.extend_from_slice(&part[..read.unwrap()]);
    }
    stream
}

async fn made(master: &Master, body: &str) -> (String, String) {
    let made = master.call("POST", "/v1/tokens", body).await.json();
    (made["token"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
}

/// Reads to the end, which has to come.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // A stream that is cut may end by a reset.
    let _end_or_reset = ended.expect("it ends with its token");
    rest
}

#[tokio::test]
async fn revoking_a_token_ends_its_streams_and_waits_and_those_of_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let (token, id) = made(&master, r#"{"scopes":["submit"]}"#).await;
    let (other, _) = made(&master, r#"{"scopes":["submit"]}"#).await;
    let (stream, stays) = (batch(&master, &token).await, batch(&master, &other).await);
    let task = master.call_as(Some(&token), "POST", "/v1/tasks", r#"{"kind":"fib","input":{"n":1}}"#).await;
    let path = task.headers["location"].clone();
    let mut waits = open(&master, &format!("GET {path}?wait=300s"), &token).await;
    waits.write_all(b"connection: close\r\n\r\n").await.unwrap();
    // Nothing tells from outside that the wait has begun; one that begins later is refused all the same.
    tokio::time::sleep(Duration::from_millis(200)).await;

    assert_eq!(master.call("DELETE", &format!("/v1/tokens/{id}"), "").await.status, 204);
    let refused = parse(&rest(waits).await).problem(401, "unauthenticated");
    assert!(refused.contains("revoked"), "{refused}");
    let cut = rest(stream).await;
    assert!(!cut.ends_with(b"0\r\n\r\n"), "a stream that is cut does not look complete");

    // The task that it submitted is there still, and the other stream takes a line more.
    assert_eq!(master.call("GET", &path, "").await.status, 200);
    let mut stays = stays;
    let line = "{\"kind\":\"fib\",\"input\":{\"n\":2}}\n";
    stays.write_all(format!("{:x}\r\n{line}\r\n0\r\n\r\n", line.len()).as_bytes()).await.unwrap();
    let mut answer = [0; 4_096];
    let read = tokio::time::timeout(PATIENCE, stays.read(&mut answer)).await.expect("in time").unwrap();
    assert!(String::from_utf8_lossy(&answer[..read]).contains("accepted"));
    master.stop().await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let (token, id) = made(&master, r#"{"scopes":["submit"],"ttl_ms":3000}"#).await;
    let stream = batch(&master, &token).await;
    rest(stream).await;
    master.call_as(Some(&token), "GET", "/v1/tasks", "").await.problem(401, "unauthenticated");
    let listed = master.call("GET", "/v1/tokens", "").await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(&id), "an expired token is not listed");
    master.stop().await;
    // Nor is it there after a restart.
    let master = Master::start(dir.path()).await;
    let listed = master.call("GET", "/v1/tokens", "").await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(&id));
    master.stop().await;
}

#[tokio::test]
async fn who_revokes_the_own_token_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let (token, id) = made(&master, r#"{"scopes":["admin"]}"#).await;
    let reply = master.call_as(Some(&token), "DELETE", &format!("/v1/tokens/{id}"), "").await;
    assert_eq!(reply.status, 204, "{reply:?}");
    let again = master.call("DELETE", &format!("/v1/tokens/{id}"), "").await;
    again.problem(404, "not-found");
    master.stop().await;
}

#[tokio::test]
async fn a_join_token_that_is_used_up_says_so_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let join = master.token(r#"{"scopes":["node"],"single_use":true,"node_name":"n-1"}"#).await;
    let body = registration("n-1", BootId(uuid::Uuid::now_v7()));
    assert_eq!(master.call_as(Some(&join), "POST", "/v1/nodes", &body).await.status, 201);
    let again = master.call_as(Some(&join), "POST", "/v1/nodes", &body).await;
    let said = again.problem(401, "unauthenticated");
    assert!(said.contains("has been used") && said.contains("token create --scope node"), "{said}");
    master.stop().await;
    let master = Master::start(dir.path()).await;
    master.call_as(Some(&join), "POST", "/v1/nodes", &body).await.problem(401, "unauthenticated");
    master.stop().await;
}
