//! A whole node against a master of the test's own, over real HTTP and WebSocket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use axum::{
    Json, Router,
    extract::{
        Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::{Bytes, BytesMut};
use client::Token;
use node::Config;
use protocol::{
    NodeId, RunId, TaskId,
    frame::split_frames,
    log::{LOG_PIECE_BYTES, MAX_LOG_BYTES, Stream},
    node::{NodeRegistration, NodeStatus, Registered, Report, ReportReply},
    task::ErrorCode,
    work::{
        Committed, Drain, Hello, LogChunk, LogRead, LogState, Outcome, Run, RunRef, RunResult, ToMaster,
        ToNode, VERSION, Welcome,
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const EPOCH: u64 = 7;

/// What the master saw and how it answers.
struct Shared {
    registrations: Mutex<Vec<(String, NodeRegistration)>>,
    reports: Mutex<Vec<(String, Report)>>,
    channels: Sender<Line>,
    /// Status of the next registrations and channels; 0 for success.
    refuse_register: AtomicU16,
    refuse_channel: AtomicU16,
    node: NodeId,
}

/// One work channel, the master's end. Dropping it cuts the connection.
struct Line {
    from_node: Receiver<ToMaster>,
    to_node: Sender<ToNode>,
}

struct Master {
    shared: Arc<Shared>,
    lines: Receiver<Line>,
    url: String,
    server: JoinHandle<()>,
}

impl Drop for Master {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn bearer(headers: &HeaderMap) -> String {
    let value = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    value.unwrap_or_default().trim_start_matches("Bearer").trim().to_owned()
}

async fn register(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(registration): Json<NodeRegistration>,
) -> Response {
    let count = {
        let mut registrations = shared.registrations.lock().unwrap();
        registrations.push((bearer(&headers), registration));
        registrations.len()
    };
    match shared.refuse_register.load(Ordering::SeqCst) {
        0 => {
            let session_token = format!("session-{count}");
            let registered = Registered { node_id: shared.node, session_token, report_interval_ms: 500 };
            (StatusCode::CREATED, Json(registered)).into_response()
        }
        status => StatusCode::from_u16(status).unwrap().into_response(),
    }
}

async fn report(
    State(shared): State<Arc<Shared>>,
    Path(node): Path<NodeId>,
    headers: HeaderMap,
    Json(report): Json<Report>,
) -> Json<ReportReply> {
    assert_eq!(node, shared.node);
    shared.reports.lock().unwrap().push((bearer(&headers), report));
    Json(ReportReply { report_interval_ms: 500, epoch: 0 })
}

async fn work(
    State(shared): State<Arc<Shared>>,
    Path(node): Path<NodeId>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    assert_eq!(node, shared.node);
    let registrations = shared.registrations.lock().unwrap().len();
    assert_eq!(bearer(&headers), format!("session-{registrations}"));
    match shared.refuse_channel.swap(0, Ordering::SeqCst) {
        0 => upgrade.protocols([protocol::work::SUBPROTOCOL]).on_upgrade(move |socket| carry(socket, shared)),
        status => StatusCode::from_u16(status).unwrap().into_response(),
    }
}

async fn carry(mut socket: WebSocket, shared: Arc<Shared>) {
    let (to_test, from_node) = channel(64);
    let (to_node, mut from_test) = channel::<ToNode>(64);
    shared.channels.send(Line { from_node, to_node }).await.unwrap();
    loop {
        tokio::select! {
            order = from_test.recv() => {
                let Some(order) = order else { return };
                let mut message = BytesMut::new();
                order.put(&mut message);
                if socket.send(Message::Binary(message.freeze())).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(message))) => {
                    for frame in split_frames(message).unwrap() {
                        let _ = to_test.send(ToMaster::read(&frame).unwrap().unwrap()).await;
                    }
                }
                Some(Ok(_)) => {}
                _ => return,
            },
        }
    }
}

impl Master {
    async fn start() -> Self {
        let (channels, lines) = channel(16);
        let shared = Arc::new(Shared {
            registrations: Mutex::default(),
            reports: Mutex::default(),
            channels,
            refuse_register: AtomicU16::new(0),
            refuse_channel: AtomicU16::new(0),
            node: NodeId(uuid::Uuid::now_v7()),
        });
        let app = Router::new()
            .route("/v1/nodes", post(register))
            .route("/v1/nodes/{id}/report", post(report))
            .route("/v1/nodes/{id}/work", get(work))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { shared, lines, url, server }
    }

    fn config(&self) -> Config {
        let mut config = Config::new(&self.url);
        config.name = "node-1".to_owned();
        config.cores = Some(2.0);
        config.join_token = Some(Token::new("join"));
        config
    }

    /// The next channel, greeted.
    async fn line(&mut self) -> (Line, Hello) {
        let mut line = timeout(PATIENCE, self.lines.recv()).await.expect("no channel in time").unwrap();
        let ToMaster::Hello(hello) = line.next().await else { panic!("the first frame is no hello") };
        assert_eq!(hello.node, self.shared.node);
        line.say(ToNode::Welcome(Welcome { epoch: EPOCH, version: VERSION, report_interval_ms: 500 })).await;
        (line, hello)
    }

    fn registrations(&self) -> Vec<(String, NodeRegistration)> {
        self.shared.registrations.lock().unwrap().clone()
    }

    async fn reports(&self, count: usize) -> Vec<(String, Report)> {
        let enough = async {
            loop {
                let reports = self.shared.reports.lock().unwrap().clone();
                if reports.len() >= count {
                    return reports;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, enough).await.expect("no reports in time")
    }
}

impl Line {
    async fn next(&mut self) -> ToMaster {
        timeout(PATIENCE, self.from_node.recv()).await.expect("nothing said in time").expect("closed")
    }

    async fn say(&self, order: ToNode) {
        self.to_node.send(order).await.unwrap();
    }

    async fn result(&mut self) -> (RunResult, Bytes) {
        let (header, body, _) = self.result_with_log().await;
        (header, body)
    }

    /// The next result, and what came ahead of it of the two streams of its run.
    async fn result_with_log(&mut self) -> (RunResult, Bytes, [Vec<(u64, Bytes)>; 2]) {
        let mut log = [Vec::new(), Vec::new()];
        loop {
            match self.next().await {
                ToMaster::Result(header, body) => return (header, body, log),
                ToMaster::LogTail(header, part) => {
                    log[usize::from(header.stream == Stream::Stderr)].push((header.offset, part));
                }
                other => panic!("not a result: {other:?}"),
            }
        }
    }

    /// Reads a piece of a log.
    async fn read_log(&mut self, read: u64, run: RunRef, offset: u64, wait_ms: u64) -> (LogChunk, Bytes) {
        let stream = Stream::Stdout;
        self.say(ToNode::LogRead(LogRead { epoch: EPOCH, read, run: run.run, stream, offset, wait_ms }))
            .await;
        match self.next().await {
            ToMaster::LogChunk(chunk, piece) => {
                assert_eq!(chunk.read, read);
                (chunk, piece)
            }
            other => panic!("not a chunk: {other:?}"),
        }
    }

    async fn run(&self, counter: u64, kind: &str, input: &str) -> RunRef {
        let (task, run) = (TaskId(uuid::Uuid::now_v7()), RunId::new(EPOCH, counter));
        let header = Run {
            epoch: EPOCH,
            task,
            run,
            kind: kind.to_owned(),
            timeout_ms: None,
            deadline_in_ms: None,
            cores: 1.0,
            memory_bytes: 0,
        };
        self.say(ToNode::Run(header, Bytes::from(input.to_owned()))).await;
        RunRef { task, run }
    }

    async fn commit(&self, run: RunRef) {
        self.say(ToNode::Committed(Committed { epoch: EPOCH, runs: vec![run.run] })).await;
    }
}

struct Node {
    shutdown: CancellationToken,
    life: JoinHandle<Result<(), node::Error>>,
}

impl Node {
    fn start(config: Config) -> Self {
        let shutdown = CancellationToken::new();
        let life = tokio::spawn(node::run(config, shutdown.clone()));
        Self { shutdown, life }
    }

    async fn ended(self) -> Result<(), node::Error> {
        timeout(PATIENCE, self.life).await.expect("it did not end in time").unwrap()
    }
}

#[tokio::test]
async fn a_result_is_sent_again_until_it_is_committed() {
    let mut master = Master::start().await;
    let node = Node::start(master.config());
    let (mut line, hello) = master.line().await;
    assert_eq!(hello.runs, []);
    let run = line.run(1, "fib", r#"{"n":20}"#).await;
    let (first, body) = line.result().await;
    assert_eq!((first.task, first.run, &first.outcome), (run.task, run.run, &Outcome::Succeeded));
    assert_eq!(&body[..], br#"{"value":"6765"}"#);
    assert!(first.run_ms > 0.0 && first.cpu_ms > 0.0);

    drop(line);
    let (mut line, hello) = master.line().await;
    assert_eq!((hello.epoch, hello.runs), (EPOCH, vec![run]));
    let (second, body) = line.result().await;
    assert_eq!((second.run, second.outcome), (first.run, first.outcome));
    assert_eq!(&body[..], br#"{"value":"6765"}"#);
    line.commit(run).await;

    drop(line);
    let (mut line, hello) = master.line().await;
    assert_eq!(hello.runs, [], "what is committed is forgotten");
    node.shutdown.cancel();
    loop {
        match line.next().await {
            ToMaster::HandBack(back) => assert!(back.draining && back.runs.is_empty()),
            ToMaster::Leaving(_) => break,
            other => panic!("{other:?}"),
        }
    }
    node.ended().await.unwrap();
    assert_eq!(master.registrations().len(), 1);
}

#[tokio::test]
async fn it_registers_and_reports_what_it_is_and_has() {
    let mut master = Master::start().await;
    let mut config = master.config();
    config.allow_commands = true;
    config.labels.insert("zone".into(), "a".into());
    config.kinds = node::kinds_file::parse("[[kind]]\nname = \"own\"\ncommand = [\"true\"]").unwrap();
    let node = Node::start(config);
    let (mut line, hello) = master.line().await;
    let (token, registration) = master.registrations().remove(0);
    assert_eq!(token, "join");
    assert_eq!(registration.name, "node-1");
    assert_eq!(registration.ip.to_string(), "127.0.0.1");
    assert!(registration.allotted_cores > 0.0 && registration.allotted_cores <= 2.0);
    assert!(registration.memory_bytes > 0);
    assert_eq!(registration.boot_id, hello.boot_id);
    assert_eq!(registration.labels["zone"], "a");
    let kinds: Vec<_> = registration.kinds.iter().map(|kind| kind.name.as_str()).collect();
    assert_eq!(kinds, ["fib", "sum", "sleep", "burn", "run", "own"]);

    let sleeping = line.run(1, "sleep", r#"{"ms":3600000}"#).await;
    let reports = master.reports(4).await;
    let last = &reports[3].1;
    assert!(reports.iter().all(|(token, report)| token == "session-1" && report.boot_id == hello.boot_id));
    assert!(reports.windows(2).all(|pair| pair[0].1.seq < pair[1].1.seq));
    assert_eq!(last.status, NodeStatus::Ready);
    assert_eq!(last.cpu.first_fault(), None);
    assert!(last.memory.used_bytes > 0);
    assert_eq!(last.running.iter().map(|running| running.task).collect::<Vec<_>>(), [sleeping.task]);

    line.say(ToNode::Cancel(protocol::work::Cancel { epoch: EPOCH, runs: vec![sleeping.run] })).await;
    assert_eq!(line.result().await.0.outcome, Outcome::Cancelled);
    line.say(ToNode::Drain(Drain { epoch: EPOCH, deadline_ms: None })).await;
    let before = master.reports(1).await.len();
    assert_eq!(master.reports(before + 2).await.last().unwrap().1.status, NodeStatus::Draining);
    node.life.abort();
}

#[tokio::test]
async fn runs_end_with_the_right_outcome() {
    let mut master = Master::start().await;
    let mut config = master.config();
    config.allow_commands = true;
    let node = Node::start(config);
    let (mut line, _) = master.line().await;
    let code = |outcome: Outcome| match outcome {
        Outcome::Failed(error) => error.code,
        other => panic!("{other:?}"),
    };

    line.run(1, "run", r#"{"argv":["sh","-c","echo out; exit 4"]}"#).await;
    let (header, body) = line.result().await;
    assert_eq!(code(header.outcome), ErrorCode::TaskError);
    assert_eq!(&body[..], br#"{"exit_code":4,"stdout":"out\n","truncated":false}"#);

    line.run(2, "fib", r#"{"n":-1}"#).await;
    assert_eq!(code(line.result().await.0.outcome), ErrorCode::BadInput);
    line.run(3, "fib", "{").await;
    assert_eq!(code(line.result().await.0.outcome), ErrorCode::BadInput);

    // Killed by the agent, or by its slot, whichever comes first.
    let sleeping = line.run(7, "run", r#"{"argv":["sleep","3600"]}"#).await;
    while !master.reports(1).await.iter().any(|(_, report)| report.running.iter().any(|r| r.rss_bytes > 0)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    line.say(ToNode::Cancel(protocol::work::Cancel { epoch: EPOCH, runs: vec![sleeping.run] })).await;
    assert_eq!(line.result().await.0.outcome, Outcome::Cancelled);

    let limited = |counter, timeout_ms, deadline_in_ms| {
        let run = RunId::new(EPOCH, counter);
        let (task, kind) = (TaskId(uuid::Uuid::now_v7()), "fib".to_owned());
        let (cores, memory_bytes) = (1.0, 0);
        let header = Run { epoch: EPOCH, task, run, kind, timeout_ms, deadline_in_ms, cores, memory_bytes };
        ToNode::Run(header, Bytes::from_static(br#"{"n":60}"#))
    };
    line.say(limited(4, Some(50), None)).await;
    assert_eq!(code(line.result().await.0.outcome), ErrorCode::Timeout);
    line.say(limited(5, Some(3_600_000), Some(50))).await;
    assert_eq!(code(line.result().await.0.outcome), ErrorCode::Deadline);

    let unknown = line.run(6, "nothing", "{}").await;
    match line.next().await {
        ToMaster::HandBack(back) => {
            assert_eq!(back.runs, [unknown]);
            assert!(!back.draining && back.reason.contains("nothing"), "{}", back.reason);
        }
        other => panic!("{other:?}"),
    }
    node.life.abort();
}

#[tokio::test]
async fn a_node_that_ends_finishes_what_runs() {
    let mut master = Master::start().await;
    let node = Node::start(master.config());
    let (mut line, _) = master.line().await;
    let run = line.run(1, "sleep", r#"{"ms":700}"#).await;
    // A report that shows the run says that it has started.
    while !master.reports(1).await.iter().any(|(_, report)| !report.running.is_empty()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.shutdown.cancel();
    let mut said = Vec::new();
    loop {
        match line.next().await {
            ToMaster::HandBack(back) => said.extend(back.runs),
            ToMaster::Result(header, _) => {
                assert_eq!((header.run, header.outcome), (run.run, Outcome::Succeeded));
                line.commit(run).await;
            }
            ToMaster::Leaving(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(said, [], "nothing was handed back");
    node.ended().await.unwrap();
}

#[tokio::test]
async fn what_does_not_end_by_the_drain_deadline_is_handed_back_and_stopped() {
    let mut master = Master::start().await;
    let mut config = master.config();
    config.allow_commands = true;
    config.drain_deadline = Duration::from_millis(200);
    let work_root = tempfile::tempdir().unwrap();
    config.work_root = work_root.path().to_owned();
    let node = Node::start(config);
    let (mut line, _) = master.line().await;
    let runs = [
        line.run(1, "fib", r#"{"n":60}"#).await,
        line.run(2, "run", r#"{"argv":["sh","-c","trap '' TERM; sleep 3600"]}"#).await,
        line.run(3, "sleep", r#"{"ms":1}"#).await,
    ];
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.shutdown.cancel();
    let mut back = Vec::new();
    loop {
        match line.next().await {
            ToMaster::HandBack(said) => back.extend(said.runs),
            ToMaster::Leaving(_) => break,
            // The third ran if a slot was free.
            ToMaster::Result(header, _) => {
                assert_eq!(header.run, runs[2].run);
                line.commit(runs[2]).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(back.contains(&runs[0]) && back.contains(&runs[1]), "{back:?}");
    node.ended().await.unwrap();
    assert_eq!(work_root.path().read_dir().unwrap().count(), 0, "the command's directory is gone");
}

#[tokio::test]
async fn a_master_that_forgot_the_node_gets_it_anew() {
    let mut master = Master::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut config = master.config();
    config.session_file = Some(directory.path().join("session.json"));
    let node = Node::start(config.clone());
    let (line, first) = master.line().await;
    master.shared.refuse_channel.store(401, Ordering::SeqCst);
    drop(line);
    let (line, second) = master.line().await;
    assert_eq!(first.boot_id, second.boot_id);
    let tokens: Vec<_> = master.registrations().into_iter().map(|(token, _)| token).collect();
    assert_eq!(tokens, ["join", "session-1"], "its old session lets it take its own name");
    node.life.abort();
    drop(line);

    // A later life of the same node shows the session that it kept.
    let _again = Node::start(config);
    let (_line, third) = master.line().await;
    assert_ne!(third.boot_id, first.boot_id);
    assert_eq!(master.registrations()[2].0, "session-2");
}

#[tokio::test]
async fn a_refused_token_ends_the_node_and_says_what_to_do() {
    let master = Master::start().await;
    master.shared.refuse_register.store(401, Ordering::SeqCst);
    let error = Node::start(master.config()).ended().await.unwrap_err();
    assert!(error.to_string().contains("evenkeel token create"), "{error}");
}

#[tokio::test]
async fn a_master_that_is_away_is_tried_again() {
    let mut master = Master::start().await;
    master.shared.refuse_register.store(503, Ordering::SeqCst);
    let node = Node::start(master.config());
    while master.registrations().len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    master.shared.refuse_register.store(0, Ordering::SeqCst);
    let _line = master.line().await;
    node.life.abort();
}

#[tokio::test]
async fn what_a_command_prints_is_read_while_it_runs_and_comes_ahead_of_its_result() {
    let mut master = Master::start().await;
    let mut config = master.config();
    config.allow_commands = true;
    let node = Node::start(config);
    let (mut line, _) = master.line().await;
    let go_on = tempfile::tempdir().unwrap();
    let script = format!(
        "echo one; until [ -e {0}/1 ]; do sleep 0.01; done; echo two; echo err >&2; until [ -e {0}/2 ]; do sleep 0.01; done",
        go_on.path().display()
    );
    let input = serde_json::json!({"argv": ["sh", "-c", script]}).to_string();
    let run = line.run(1, "run", &input).await;
    let (chunk, piece) = line.read_log(1, run, 0, 30_000).await;
    assert_eq!((chunk.offset, chunk.end, chunk.state, &piece[..]), (0, 4, LogState::Running, &b"one\n"[..]));
    let (chunk, piece) = line.read_log(2, run, 4, 0).await;
    assert_eq!((chunk.offset, chunk.end, piece.len()), (4, 4, 0), "who does not wait is answered at once");
    std::fs::write(go_on.path().join("1"), "").unwrap();
    let (chunk, piece) = line.read_log(3, run, 4, 30_000).await;
    assert_eq!((chunk.offset, &piece[..]), (4, &b"two\n"[..]), "and who waits once there is something");
    std::fs::write(go_on.path().join("2"), "").unwrap();
    let (header, _, [stdout, stderr]) = line.result_with_log().await;
    assert_eq!((header.run, header.outcome), (run.run, Outcome::Succeeded));
    assert_eq!(stdout, [(0, Bytes::from_static(b"one\ntwo\n"))]);
    assert_eq!(stderr, [(0, Bytes::from_static(b"err\n"))]);
    let (chunk, piece) = line.read_log(4, run, 4, 30_000).await;
    assert_eq!((chunk.state, &piece[..]), (LogState::Ended, &b"two\n"[..]), "it is there until the commit");

    let quiet = line.run(2, "run", r#"{"argv":["true"]}"#).await;
    let (header, _, log) = line.result_with_log().await;
    assert_eq!((header.run, log), (quiet.run, [Vec::new(), Vec::new()]), "no frame for what prints nothing");
    line.commit(run).await;
    let (chunk, _) = line.read_log(5, run, 0, 30_000).await;
    assert_eq!(chunk.state, LogState::Unknown);
    node.life.abort();
}

#[tokio::test]
async fn of_much_output_the_end_is_kept_and_sent_again_to_the_next_master() {
    let mut master = Master::start().await;
    let mut config = master.config();
    config.allow_commands = true;
    let node = Node::start(config);
    let (mut line, _) = master.line().await;
    let script = "yes 0123456789abcde | head -c 50000000; echo end";
    let input = serde_json::json!({"argv": ["sh", "-c", script]}).to_string();
    let run = line.run(1, "run", &input).await;
    for _ in 0..2 {
        let (header, _, [stdout, _]) = line.result_with_log().await;
        assert_eq!((header.run, header.outcome), (run.run, Outcome::Succeeded));
        assert!(stdout.iter().all(|(_, part)| part.len() <= LOG_PIECE_BYTES));
        let first = 50_000_004 - MAX_LOG_BYTES as u64;
        assert_eq!(stdout[0].0, first);
        let all: Vec<u8> = stdout.iter().flat_map(|(_, part)| part.to_vec()).collect();
        assert_eq!(all.len(), MAX_LOG_BYTES);
        assert!(all.ends_with(b"0123456789abcde\nend\n"));
        // The connection breaks before the commit.
        drop(line);
        (line, _) = master.line().await;
    }
    node.life.abort();
}
