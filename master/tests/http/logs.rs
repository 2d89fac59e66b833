//! `GET /v1/tasks/{id}/log`, with a node written by hand: while a task runs, after it, and after a restart.

use crate::{
    harness::{Master, PATIENCE, Reply},
    node::Node,
};
use bytes::Bytes;
use client::{Client, ClientConfig, LogPart, LogReader, Token};
use protocol::{
    RunId, TaskId,
    log::{LogQuery, Stream},
    task::{ErrorCode, TaskError},
    work::{LogChunk, LogRead, LogState, LogTail, Outcome, Run, ToMaster, ToNode},
};
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};

const FIB: &str = r#"{"kind":"fib","input":{"n":40}}"#;
const DONE: &str = r#"{"value":"1"}"#;

fn client(master: &Master) -> Client {
    let url = format!("http://{}", master.address);
    Client::new(ClientConfig::new(&url).with_token(Token::new(&master.admin))).unwrap()
}

async fn submit(master: &Master, body: &str) -> TaskId {
    master.submit("", body).await["id"].as_str().unwrap().parse().unwrap()
}

/// The log as it is, or from some byte on: the query after the `?`.
async fn log(master: &Master, id: TaskId, query: &str) -> Reply {
    master.call("GET", &format!("/v1/tasks/{id}/log?{query}"), "").await
}

fn text(reply: &Reply) -> &str {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.headers["content-type"], "application/octet-stream");
    std::str::from_utf8(&reply.body).unwrap()
}

/// Run, attempt and offset of an answer.
fn head(reply: &Reply) -> (Option<String>, Option<String>, String) {
    let header = |name: &str| reply.headers.get(name).cloned();
    let offset = header("evenkeel-log-offset").unwrap();
    (header("evenkeel-log-run"), header("evenkeel-log-attempt"), offset)
}

impl Node {
    /// The next read of a log; other frames are passed over.
    async fn next_read(&mut self) -> LogRead {
        loop {
            if let ToNode::LogRead(read) = self.next().await {
                return read;
            }
        }
    }

    async fn answer(&mut self, read: LogRead, state: LogState, offset: u64, piece: &'static str) {
        let end = offset + piece.len() as u64;
        self.answer_of(read, state, offset, end, piece).await;
    }

    async fn answer_of(
        &mut self,
        read: LogRead,
        state: LogState,
        offset: u64,
        end: u64,
        piece: &'static str,
    ) {
        let chunk = LogChunk { epoch: self.epoch, read: read.read, offset, end, state };
        self.send(&ToMaster::LogChunk(chunk, Bytes::from_static(piece.as_bytes()))).await;
    }

    /// Sends the end of a stream, as goes ahead of a result.
    async fn tail(&mut self, run: RunId, stream: Stream, offset: u64, part: &'static str) {
        let header = LogTail { epoch: self.epoch, run, stream, offset };
        self.send(&ToMaster::LogTail(header, Bytes::from_static(part.as_bytes()))).await;
    }

    /// Ends a run that has printed this, and waits until it is committed.
    async fn end_with(&mut self, run: &Run, stdout: &'static str, outcome: Outcome) {
        self.tail(run.run, Stream::Stdout, 0, stdout).await;
        self.end(run.task, run.run, outcome, DONE).await;
        self.committed(run.run).await;
    }
}

/// Reads all parts, on a task of its own.
fn read_all(mut reader: LogReader) -> JoinHandle<Vec<LogPart>> {
    tokio::spawn(async move {
        let mut parts = Vec::new();
        while let Some(part) = timeout(PATIENCE, reader.next()).await.expect("a part in time").unwrap() {
            parts.push(part);
        }
        parts
    })
}

fn bytes(text: &'static str) -> LogPart {
    LogPart::Bytes(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn a_follower_gets_what_is_printed_until_the_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    let (run, _) = node.next_run().await;
    let query = LogQuery { follow: Some(1), ..LogQuery::default() };
    let (answer, ()) = tokio::join!(async { client(&master).task_log(id, &query).await.unwrap() }, async {
        let read = node.next_read().await;
        assert_eq!((read.run, read.stream, read.offset, read.wait_ms), (run.run, Stream::Stdout, 0, 0));
        node.answer(read, LogState::Running, 0, "").await;
    });
    let mut answer = answer;
    assert_eq!((answer.offset, answer.run, answer.attempt), (0, Some(run.run.0), Some(1)));
    let read = node.next_read().await;
    assert!(read.offset == 0 && read.wait_ms > 0, "the node waits for output: {read:?}");
    node.answer(read, LogState::Running, 0, "one\n").await;
    assert_eq!(answer.next().await.unwrap().unwrap(), "one\n");
    let read = node.next_read().await;
    assert_eq!(read.offset, 4);
    node.answer(read, LogState::Ended, 4, "two\n").await;
    assert_eq!(answer.next().await.unwrap().unwrap(), "two\n");
    assert!(answer.next().await.unwrap().is_none());
    master.stop().await;
}

#[tokio::test]
async fn without_following_it_ends_with_what_there_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    let queued = submit(&master, r#"{"kind":"fib","input":{"n":40},"priority":-1}"#).await;
    let (run, _) = node.next_run().await;
    assert_eq!(run.task, id);
    let (reply, ()) = tokio::join!(log(&master, id, "offset=3"), async {
        let read = node.next_read().await;
        assert_eq!((read.offset, read.wait_ms), (3, 0));
        node.answer_of(read, LogState::Running, 10, 18, "more").await;
        let read = node.next_read().await;
        assert_eq!(read.offset, 14);
        node.answer_of(read, LogState::Running, 14, 900, "than").await;
    });
    assert_eq!(text(&reply), "morethan");
    let told = (Some(run.run.0.to_string()), Some("1".to_owned()), "10".to_owned());
    assert_eq!(head(&reply), told, "what was asked for before is not kept");
    let nothing = log(&master, queued, "").await;
    assert_eq!((text(&nothing), head(&nothing)), ("", (None, None, "0".to_owned())));
    master.stop().await;
}

#[tokio::test]
async fn after_the_end_the_log_is_in_the_store_also_for_the_next_master() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    let (run, _) = node.next_run().await;
    node.tail(run.run, Stream::Stdout, 1_000, "hello ").await;
    node.tail(run.run, Stream::Stdout, 1_006, "world\n").await;
    node.tail(run.run, Stream::Stderr, 0, "oh\n").await;
    node.end(run.task, run.run, Outcome::Succeeded, DONE).await;
    node.committed(run.run).await;
    let silent = submit(&master, FIB).await;
    let (quiet, _) = node.next_run().await;
    node.end(quiet.task, quiet.run, Outcome::Succeeded, DONE).await;
    node.committed(quiet.run).await;
    drop(node);
    let other = master.token(r#"{"scopes":["submit"]}"#).await;
    let path = format!("/v1/tasks/{id}/log");
    master.call_as(Some(&other), "GET", &path, "").await.problem(404, "not-found");
    let operator = master.token(r#"{"scopes":["operate"]}"#).await;
    assert_eq!(text(&master.call_as(Some(&operator), "GET", &path, "").await), "hello world\n");
    let reader = master.token(r#"{"scopes":["read"]}"#).await;
    master.call_as(Some(&reader), "GET", &path, "").await.problem(403, "forbidden");
    master.stop().await;

    let master = Master::start(dir.path()).await;
    let (of_run, attempt) = (Some(run.run.0.to_string()), Some("1".to_owned()));
    for (query, expected, offset) in [
        ("", "hello world\n", 1_000),
        ("follow=1", "hello world\n", 1_000),
        ("stream=stdout&offset=5", "hello world\n", 1_000),
        ("stream=stdout&offset=1006", "world\n", 1_006),
        ("offset=18446744073709551615", "", 1_012),
        ("stream=stderr", "oh\n", 0),
        (&format!("offset=1006&run={}", run.run.0), "world\n", 1_006),
        ("offset=1006&run=1", "hello world\n", 1_000),
    ] {
        let reply = log(&master, id, query).await;
        assert_eq!(text(&reply), expected, "{query}");
        assert_eq!(head(&reply), (of_run.clone(), attempt.clone(), offset.to_string()), "{query}");
    }
    assert_eq!(text(&log(&master, silent, "follow=1").await), "");
    let parts = read_all(client(&master).log_reader(id, Stream::Stdout, true)).await.unwrap();
    assert_eq!(parts, [LogPart::Dropped(1_000), bytes("hello world\n")]);
    master.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let id = submit(&master, FIB).await;
    for query in ["stream=both", "follow=2", "follow=yes", "offset=-1", "run=x", "tail=5"] {
        log(&master, id, query).await.problem(422, "invalid");
    }
    let unknown = TaskId(uuid::Uuid::now_v7());
    log(&master, unknown, "follow=1").await.problem(404, "not-found");
    master.call("GET", "/v1/tasks/x/log", "").await.problem(404, "not-found");
    master.call("POST", &format!("/v1/tasks/{id}/log"), "{}").await.problem(405, "method-not-allowed");
    master.call_as(None, "GET", &format!("/v1/tasks/{id}/log"), "").await.problem(401, "unauthenticated");
    master.stop().await;
}

#[tokio::test]
async fn a_task_that_is_not_stored_has_its_log_too() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let (task, ()) = tokio::join!(master.submit("?wait=25s", FIB), async {
        let (run, _) = node.next_run().await;
        node.end_with(&run, "not stored\n", Outcome::Succeeded).await;
    });
    let id = task["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(text(&log(&master, id, "follow=1").await), "not stored\n");
    assert_eq!(text(&log(&master, id, "offset=4").await), "stored\n");
    assert_eq!(text(&log(&master, id, "stream=stderr").await), "");
    master.stop().await;
}

#[tokio::test]
async fn a_follower_of_a_queued_task_waits_until_it_starts_and_goes_on_with_the_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let body = r#"{"kind":"fib","input":{"n":40},"retry_on":["task_error"]}"#;
    let id = submit(&master, body).await;
    let parts = read_all(client(&master).log_reader(id, Stream::Stdout, true));
    // It waits; that it was not answered yet only makes this test weaker, never wrong.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!parts.is_finished());
    let mut node = Node::join(&master, "n-1").await;
    let (first, _) = node.next_run().await;
    // The answer that waited for the start does not tell the run, so it is asked for anew; meanwhile it may have
    // asked for more.
    let mut begun = 0;
    while begun < 2 {
        let read = node.next_read().await;
        assert_eq!(read.run, first.run);
        if read.offset == 0 {
            node.answer(read, LogState::Running, 0, "first\n").await;
            begun += 1;
        }
    }
    let waiting = node.next_read().await;
    let failed = Outcome::Failed(TaskError { code: ErrorCode::TaskError, message: "no".to_owned() });
    node.tail(first.run, Stream::Stdout, 0, "first\nfailed\n").await;
    node.end(first.task, first.run, failed, "").await;
    node.answer_of(waiting, LogState::Unknown, 0, 0, "").await;
    let (second, _) = node.next_run().await;
    assert_eq!(second.task, id);
    let read = node.next_read().await;
    assert_eq!((read.run, read.offset), (second.run, 0));
    node.answer(read, LogState::Running, 0, "second\n").await;
    let read = node.next_read().await;
    node.answer_of(read, LogState::Ended, 7, 7, "").await;
    node.end_with(&second, "second\n", Outcome::Succeeded).await;
    let expected = [bytes("first\n"), bytes("failed\n"), LogPart::Attempt(2), bytes("second\n")];
    assert_eq!(parts.await.unwrap(), expected);
    let reply = log(&master, id, "").await;
    assert_eq!((text(&reply), head(&reply).1.as_deref()), ("second\n", Some("2")));
    master.stop().await;
}

#[tokio::test]
async fn an_attempt_that_is_over_is_shown_until_the_next_begins() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, r#"{"kind":"fib","input":{"n":40},"retry_on":["task_error"]}"#).await;
    let (first, _) = node.next_run().await;
    let drain = master.call("POST", &format!("/v1/nodes/{}/drain", node.id), "{}").await;
    assert!(drain.status < 300, "{drain:?}");
    let failed = Outcome::Failed(TaskError { code: ErrorCode::TaskError, message: "no".to_owned() });
    node.end_with(&first, "first\n", failed).await;
    let reply = log(&master, id, "").await;
    assert_eq!((text(&reply), head(&reply).1.as_deref()), ("first\n", Some("1")));
    let reply = log(&master, id, &format!("follow=1&offset=2&run={}", first.run.0)).await;
    assert_eq!(text(&reply), "rst\n", "who is in the middle of it goes on with it");
    master.stop().await;
}

#[tokio::test]
async fn a_cancelled_task_keeps_what_it_printed() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    let (run, _) = node.next_run().await;
    assert_eq!(master.call("DELETE", &format!("/v1/tasks/{id}"), "").await.status, 200);
    // The node has not said that it has stopped, so it is still asked.
    let (reply, ()) = tokio::join!(log(&master, id, "follow=1"), async {
        let read = node.next_read().await;
        node.answer(read, LogState::Running, 0, "last ").await;
        node.next_read().await;
        node.tail(run.run, Stream::Stdout, 0, "last words\n").await;
        node.end(run.task, run.run, Outcome::Cancelled, "").await;
        node.committed(run.run).await;
        // Gone with its answer: what is left is had from the store.
        node.open(&master, vec![]).await;
    });
    assert_eq!(text(&reply), "last words\n");
    assert_eq!(text(&log(&master, id, "").await), "last words\n");
    master.stop().await;
    let master = Master::start(dir.path()).await;
    assert_eq!(text(&log(&master, id, "").await), "last words\n");
    master.stop().await;
}

#[tokio::test]
async fn a_program_that_prints_faster_than_it_is_read_leaves_a_gap_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    let (run, _) = node.next_run().await;
    let parts = read_all(client(&master).log_reader(id, Stream::Stdout, true));
    let read = node.next_read().await;
    node.answer_of(read, LogState::Running, 0, 5_000, "begin").await;
    let read = node.next_read().await;
    assert_eq!(read.offset, 5);
    node.answer_of(read, LogState::Running, 900, 5_000, "not shown").await;
    // The answer has ended, and another one begun.
    let read = node.next_read().await;
    assert_eq!((read.offset, read.wait_ms), (5, 0));
    node.answer_of(read, LogState::Ended, 4_997, 5_000, "end").await;
    node.tail(run.run, Stream::Stdout, 4_997, "end").await;
    node.end(run.task, run.run, Outcome::Succeeded, DONE).await;
    assert_eq!(parts.await.unwrap(), [bytes("begin"), LogPart::Dropped(4_992), bytes("end")]);
    master.stop().await;
}

#[tokio::test]
async fn a_follower_goes_on_where_it_was_when_the_master_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let address = master.address;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    let (run, _) = node.next_run().await;
    let parts = read_all(client(&master).log_reader(id, Stream::Stdout, true));
    let read = node.next_read().await;
    node.answer(read, LogState::Running, 0, "before ").await;
    node.next_read().await;
    master.stop().await;
    let master = Master::start_with(dir.path(), |config| config.listen = address).await;
    let held = protocol::work::RunRef { task: run.task, run: run.run };
    node.open(&master, vec![held]).await;
    let read = node.next_read().await;
    assert_eq!((read.run, read.offset, read.wait_ms), (run.run, 7, 0));
    node.answer(read, LogState::Running, 7, "after").await;
    let read = node.next_read().await;
    node.answer(read, LogState::Ended, 12, "").await;
    node.end_with(&run, "before after", Outcome::Succeeded).await;
    assert_eq!(parts.await.unwrap(), [bytes("before "), bytes("after")]);
    master.stop().await;
}

#[tokio::test]
async fn readers_are_bounded_and_one_that_goes_away_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let client = client(&master);
    let (id, other) = (submit(&master, FIB).await, submit(&master, FIB).await);
    let query = LogQuery { follow: Some(1), ..LogQuery::default() };
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(client.task_log(id, &query).await.unwrap());
    }
    let detail = log(&master, id, "follow=1").await.problem(429, "too-many-readers");
    assert!(detail.contains("16"), "{detail}");
    assert_eq!(text(&log(&master, other, "").await), "", "others are read all the same");
    held.pop();
    // That the connection was closed has to be noticed first.
    let room = async {
        while log(&master, id, "").await.status == 429 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, room).await.expect("there is room again");
    drop(held);
    master.stop().await;
}

#[tokio::test]
async fn a_node_that_is_away_or_does_not_answer_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut node = Node::join(&master, "n-1").await;
    let id = submit(&master, FIB).await;
    node.next_run().await;
    // An older node passes over what it does not know; it lives all the same.
    let (reply, ()) = tokio::join!(log(&master, id, ""), async {
        for seq in 2..20 {
            assert_eq!(node.report(&master, seq).await, 200);
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    });
    let detail = reply.problem(503, "unavailable");
    assert!(detail.contains("does not answer"), "{detail}");
    drop(node);
    let reply = log(&master, id, "").await;
    // If the node was lost meanwhile the task waits again, and has no log.
    if reply.status != 200 {
        let detail = reply.problem(503, "unavailable");
        assert!(detail.contains("not connected"), "{detail}");
    }
    master.stop().await;
}
