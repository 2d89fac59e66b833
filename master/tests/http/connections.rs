//! What the server does with connections that do not behave.

use crate::{
    harness::{Master, PATIENCE, parse},
    node::Node,
};
use futures_util::StreamExt as _;
use session::close::CloseReason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

async fn send(master: &Master, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(master.address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _closed_early = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn headers_past_the_bound_are_431_and_garbage_is_400() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let long = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(64 * 1024));
    let answer = send(&master, long.as_bytes()).await;
    assert!(answer.is_empty() || parse(&answer).status == 431, "{}", String::from_utf8_lossy(&answer));
    let answer = send(&master, b"\x16\x03\x01 this is TLS, or nonsense\r\n\r\n").await;
    assert_eq!(parse(&answer).status, 400);
    assert_eq!(master.call("GET", "/livez", "").await.status, 200);
    master.stop().await;
}

#[tokio::test]
async fn requests_in_a_row_share_a_connection_and_each_has_its_own_id() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let one = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = String::from_utf8(send(&master, format!("{one}{one}{last}").as_bytes()).await).unwrap();
    let ids: std::collections::HashSet<&str> =
        answer.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!((answer.matches("200 OK").count(), ids.len()), (3, 3), "{answer}");
    master.stop().await;
}

#[tokio::test]
async fn a_request_without_host_is_400() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    for request in ["GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n", "GET /livez HTTP/1.0\r\n\r\n"] {
        parse(&send(&master, request.as_bytes()).await).problem(400, "malformed");
    }
    master.stop().await;
}

#[tokio::test]
async fn open_connections_do_not_keep_a_master_from_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut idle = TcpStream::connect(master.address).await.unwrap();
    let mut half = TcpStream::connect(master.address).await.unwrap();
    half.write_all(b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    master.stop().await;
    let mut rest = Vec::new();
    let _reset = idle.read_to_end(&mut rest).await;
    let _reset = half.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_node_has_at_most_one_channel_that_has_not_greeted() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::register(&master, "n-1").await;
    let mut older = node.dial(&master).await;
    for _ in 0..16 {
        let newer = node.dial(&master).await;
        let closed = async {
            loop {
                if let Message::Close(frame) = older.next().await.expect("a close comes first").unwrap() {
                    return frame.expect("the close says why").code;
                }
            }
        };
        let code = tokio::time::timeout(PATIENCE, closed).await.expect("the older channel is closed");
        assert_eq!(u16::from(code), CloseReason::SessionOver.code());
        older = newer;
    }
    // A newer one that greets takes the place of all.
    node.open(&master, vec![]).await;
    assert_eq!(node.report(&master, 1).await, 200);
    master.stop().await;
}
