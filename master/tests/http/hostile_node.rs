//! A node that has a session of its own, and does on its work channel what no node would.

use crate::{
    harness::{Master, PATIENCE},
    node::Node,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use protocol::{
    NodeId, RunId, TaskId,
    frame::{MAX_HEADER_BYTES, MAX_MESSAGE_BYTES, put_frame},
    work::{HandBack, Hello, Leaving, Outcome, RunRef, RunResult, ToMaster, VERSION},
};
use serde_json::json;
use session::close::CloseReason;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{
        Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn hello(node: &Node) -> Hello {
    let (node, boot_id) = (node.id, node.boot_id);
    Hello { epoch: 0, version: VERSION, node, boot_id, runs: vec![], draining: false }
}

fn message(frame: &ToMaster) -> Bytes {
    let mut message = BytesMut::new();
    frame.put(&mut message);
    message.freeze()
}

fn raw_frame(kind: u8, header: &[u8], body: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    put_frame(&mut message, kind, header, body);
    message.freeze()
}

/// A frame that says these lengths, whatever it is.
fn lying_frame(length: u32, header_length: u32, rest: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u32(length);
    message.put_u8(66);
    message.put_u32(header_length);
    message.put_slice(rest);
    message.freeze()
}

/// How the master ends it: the close code, or `None` for a connection that is cut without a word.
async fn end(socket: &mut Socket) -> Option<u16> {
    let closed = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the master ends the channel")
}

/// Opens a channel that has greeted.
async fn greeted(master: &Master, node: &Node) -> Socket {
    let mut socket = node.dial(master).await;
    socket.send(Message::Binary(message(&ToMaster::Hello(hello(node))))).await.unwrap();
    let welcome = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    assert!(matches!(welcome, Some(Ok(Message::Binary(_)))), "{welcome:?}");
    socket
}

#[tokio::test]
async fn a_message_that_is_no_message_ends_its_channel_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let node = Node::register(&master, "hostile").await;
    let mut neighbour = Node::join(&master, "neighbour").await;
    let (malformed, protocol) =
        (CloseReason::Malformed(String::new()).code(), CloseReason::Protocol("").code());
    let deposed = CloseReason::Deposed { seen: 0, ours: 0 }.code();
    let long_header = vec![b' '; MAX_HEADER_BYTES + 1];
    let other = Hello { node: NodeId(uuid::Uuid::now_v7()), ..hello(&node) };
    for (what, bytes, code) in [
        ("half a length", Bytes::from_static(&[0, 0]), malformed),
        ("a length below that of a header", lying_frame(4, 0, b""), malformed),
        ("a length past the end", lying_frame(500, 2, b"{}"), malformed),
        ("a length of 4 GiB", lying_frame(u32::MAX, 2, b"{}"), malformed),
        ("a header longer than its frame", lying_frame(7, 3, b"{}"), malformed),
        ("a header of 4 GiB", lying_frame(7, u32::MAX, b"{}"), malformed),
        ("a header over the bound", raw_frame(66, &long_header, b""), malformed),
        ("a header that is no JSON", raw_frame(66, b"{", b""), malformed),
        ("a header of other JSON", raw_frame(66, b"[1]", b""), malformed),
        ("a header that is no UTF-8", raw_frame(66, b"\"\xff\"", b""), malformed),
        ("a header that nests", raw_frame(66, "[".repeat(100_000).as_bytes(), b""), malformed),
        ("a second greeting", message(&ToMaster::Hello(hello(&node))), protocol),
        ("an epoch to come", message(&ToMaster::Leaving(Leaving { epoch: u64::MAX })), deposed),
    ] {
        let mut socket = greeted(&master, &node).await;
        socket.send(Message::Binary(bytes)).await.unwrap();
        assert_eq!(end(&mut socket).await, Some(code), "{what}");
    }
    for (what, bytes, code) in [
        ("a result before the greeting", message(&ToMaster::Leaving(Leaving { epoch: 0 })), protocol),
        ("the greeting of another", message(&ToMaster::Hello(other)), 1008),
        (
            "a version to come",
            message(&ToMaster::Hello(Hello { version: u32::MAX, ..hello(&node) })),
            CloseReason::Version { theirs: 0, ours: 0 }.code(),
        ),
    ] {
        let mut socket = node.dial(&master).await;
        socket.send(Message::Binary(bytes)).await.unwrap();
        assert_eq!(end(&mut socket).await, Some(code), "{what}");
    }
    // Types that are not known are for later versions: skipped, as are orders, which only a master gives.
    let mut socket = greeted(&master, &node).await;
    for kind in [0, 1, 2, 64, 80, 255] {
        socket.send(Message::Binary(raw_frame(kind, b"not even JSON", b"x"))).await.unwrap();
    }
    let many = raw_frame(200, b"", b"").repeat(MAX_MESSAGE_BYTES / 16);
    socket.send(Message::Binary(many.into())).await.unwrap();
    socket.send(Message::Binary(Bytes::new())).await.unwrap();
    assert_eq!(node.report(&master, 1).await, 200, "its session goes on");
    socket.close(None).await.unwrap();
    // The neighbour noticed nothing of all this.
    let task = master.submit("", r#"{"kind":"fib","input":{"n":10}}"#).await;
    let (run, _) = neighbour.next_run().await;
    neighbour.end(run.task, run.run, Outcome::Succeeded, r#"{"value":"55"}"#).await;
    assert_eq!(master.finished(task["id"].as_str().unwrap()).await["result"]["value"], "55");
    master.stop().await;
}

#[tokio::test]
async fn websocket_frames_against_the_rules_end_the_channel() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let node = Node::register(&master, "hostile").await;
    let binary = |bytes: Vec<u8>, last| Frame::message(bytes, OpCode::Data(Data::Binary), last);
    let more = |bytes: Vec<u8>, last| Frame::message(bytes, OpCode::Data(Data::Continue), last);
    let mut compressed = binary(vec![0; 10], true);
    compressed.header_mut().rsv1 = true;
    let text = Frame::message("{}", OpCode::Data(Data::Text), true);
    for (what, frames) in [
        ("text", vec![text.clone()]),
        ("text inside of a message", vec![binary(vec![0; 10], false), text]),
        ("a compressed frame", vec![compressed]),
        ("a message over the bound", vec![binary(vec![0; MAX_MESSAGE_BYTES + 1], true)]),
        ("fragments over the bound", {
            let part = vec![0; MAX_MESSAGE_BYTES / 2];
            vec![
                binary(part.clone(), false),
                more(part.clone(), false),
                more(part, false),
                more(vec![0], true),
            ]
        }),
        ("the rest of nothing", vec![more(vec![0; 10], true)]),
    ] {
        let mut socket = greeted(&master, &node).await;
        for frame in frames {
            // The master may be gone before all is sent.
            let _gone = socket.send(Message::Frame(frame)).await;
        }
        let code = end(&mut socket).await;
        assert!(code.is_none_or(|code| code != 1000), "{what}: {code:?}");
    }
    // A client that does not mask what it sends, RFC 6455 section 5.1.
    let mut socket = greeted(&master, &node).await;
    tokio::io::AsyncWriteExt::write_all(socket.get_mut(), &[0x82, 0x01, 0x00]).await.unwrap();
    end(&mut socket).await;
    // Fragments as such are allowed.
    let whole = message(&ToMaster::Hello(hello(&node))).to_vec();
    let mut socket = node.dial(&master).await;
    socket.send(Message::Frame(binary(whole[..5].to_vec(), false))).await.unwrap();
    socket.send(Message::Frame(more(whole[5..].to_vec(), true))).await.unwrap();
    let welcome = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    assert!(matches!(welcome, Some(Ok(Message::Binary(_)))), "{welcome:?}");
    assert_eq!(master.call("GET", "/livez", "").await.status, 200);
    master.stop().await;
}

#[tokio::test]
async fn a_result_counts_only_from_the_node_that_has_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut own = Node::join(&master, "own").await;
    let task = master.submit("", r#"{"kind":"fib","input":{"n":10}}"#).await;
    let id = task["id"].as_str().unwrap();
    let (run, _) = own.next_run().await;
    let mut thief = Node::join(&master, "thief").await;
    let stranger = TaskId(uuid::Uuid::now_v7());
    for (task, run) in [
        (run.task, run.run),
        (run.task, RunId(run.run.0 + 1)),
        (run.task, RunId(u64::MAX)),
        (stranger, run.run),
        (stranger, RunId(0)),
    ] {
        thief.end(task, run, Outcome::Succeeded, r#"{"value":"forged"}"#).await;
        thief.committed(run).await;
        let refs = vec![RunRef { task, run }];
        let (epoch, reason) = (thief.epoch, "forged".to_owned());
        thief.send(&ToMaster::HandBack(HandBack { epoch, runs: refs, reason, draining: false })).await;
    }
    // One that says at its greeting that it has the run has it no more than before.
    thief.open(&master, vec![RunRef { task: run.task, run: run.run }]).await;
    let header = RunResult {
        epoch: thief.epoch,
        task: run.task,
        run: run.run,
        outcome: Outcome::Succeeded,
        run_ms: 1.0,
        cpu_ms: 1.0,
        sample: None,
    };
    thief.send(&ToMaster::Result(header, Bytes::from_static(br#"{"value":"forged"}"#))).await;
    let now = master.call("GET", &format!("/v1/tasks/{id}"), "").await.json();
    assert_eq!((&now["state"], &now["result"]), (&json!("running"), &json!(null)), "{now}");
    own.end(run.task, run.run, Outcome::Succeeded, r#"{"value":"55"}"#).await;
    let task = master.finished(id).await;
    assert_eq!((&task["state"], &task["result"]["value"]), (&json!("succeeded"), &json!("55")), "{task}");
    assert_eq!(task["node"], json!(own.id), "{task}");
    assert_eq!(task["attempt"], 1, "{task}");
    master.stop().await;
}
