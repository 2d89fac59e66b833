//! The client against a small server of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use client::{Client, ClientConfig, Error, ErrorClass, SubmitOptions, Timeouts, Token, Trust};
use protocol::{
    NodeId, Problem, TaskId,
    pool::PoolSpec,
    task::{TaskQuery, TaskSpec, TaskState},
};
use session::retry::Policy;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;

fn id() -> TaskId {
    "01930000-0000-7000-8000-000000000001".parse().unwrap()
}

fn task_json(state: &str) -> String {
    let id = id();
    format!(
        r#"{{"id":"{id}","kind":"fib","input":{{"n":1}},"state":"{state}","result":null,"error":null,"node":null,"attempt":1,"max_attempts":3,"priority":0,"labels":{{}},"resources":{{"cores":1.0,"memory_bytes":0}},"submitted_at":"2026-11-21T03:50:00.000Z","started_at":null,"finished_at":null,"queue_ms":0,"run_ms":null,"cpu_ms":null}}"#
    )
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn problem(problem: &Problem) -> Response {
    let body = serde_json::to_string(problem).unwrap();
    let status = StatusCode::from_u16(problem.status).unwrap();
    let mut response =
        (status, [(header::CONTENT_TYPE, "application/problem+json; charset=utf-8")], body).into_response();
    if let Some(s) = problem.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, s.into());
    }
    response
}

/// A server for one test; it ends when the returned guard is dropped.
struct Server {
    url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(router: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server { url, task }
}

/// A URL where nobody listens.
async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn quick() -> Policy {
    Policy { max_attempts: 4, max_elapsed_ms: 20_000, base_ms: 1, cap_ms: 5 }
}

fn client(urls: &str) -> Client {
    Client::new(ClientConfig::new(urls).with_token(Token::new("ek_secret\n")).with_retry(quick())).unwrap()
}

type Seen = Arc<std::sync::Mutex<Vec<(String, HeaderMap, String)>>>;

async fn record(State(seen): State<Seen>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let line = format!("{} {}", parts.method, parts.uri);
    seen.lock().unwrap().push((line, parts.headers, String::from_utf8(body.to_vec()).unwrap()));
    problem(&Problem::not_found("no such thing"))
}

#[tokio::test]
async fn requests_have_the_paths_headers_and_bodies_of_the_contract() {
    let seen = Seen::default();
    let server = serve(Router::new().fallback(any(record)).with_state(Arc::clone(&seen))).await;
    let client = client(&server.url);
    let spec = TaskSpec::new("fib", None);
    let options = SubmitOptions { wait: Some(Duration::from_secs(900)), idempotency_key: Some("k 1".into()) };
    client.submit(&spec, &options).await.unwrap_err();
    client.put_pool("a/b ä", &PoolSpec::default(), Some(7)).await.unwrap_err();
    let query =
        TaskQuery { state: Some(TaskState::Queued), label: Some("a=b&c".into()), ..TaskQuery::default() };
    client.tasks(&query).await.unwrap_err();
    client.wait_pool("p", Duration::from_millis(1_500), 3).await.unwrap_err();
    client.task(id(), None).await.unwrap_err();

    let seen = seen.lock().unwrap();
    let lines: Vec<&str> = seen.iter().map(|(line, ..)| line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "POST /v1/tasks?wait=300000ms",
            "PUT /v1/pools/a%2Fb%20%C3%A4",
            "GET /v1/tasks?state=queued&label=a%3Db%26c",
            "GET /v1/pools/p?wait=1500ms&revision=3",
            "GET /v1/tasks/01930000-0000-7000-8000-000000000001",
        ]
    );
    let (_, headers, body) = &seen[0];
    assert_eq!(headers["authorization"], "Bearer ek_secret");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["accept"], "application/json, application/problem+json");
    assert_eq!(headers["idempotency-key"], "k 1");
    assert_eq!(body, r#"{"kind":"fib","priority":0}"#);
    assert_eq!(seen[1].1["if-match"], "\"7\"");
    assert!(!seen[4].1.contains_key("content-type"));
}

#[tokio::test]
async fn problems_become_typed_errors_with_an_exit_code() {
    for (given, class, exit) in [
        (Problem::invalid("n is -1, must be 0 to 60"), ErrorClass::BadInput, 2),
        (Problem::not_found("no such task"), ErrorClass::BadInput, 2),
        (Problem::unauthenticated("no token"), ErrorClass::NotAuthorised, 4),
        (Problem::forbidden("scope"), ErrorClass::NotAuthorised, 4),
        (Problem::conflict("ended"), ErrorClass::Other, 1),
    ] {
        let shared = given.clone();
        let server = serve(Router::new().fallback(move || async move { problem(&shared) })).await;
        let error = client(&server.url).status().await.unwrap_err();
        assert_eq!((error.class(), error.exit_code()), (class, exit), "{error}");
        assert_eq!(error.problem().unwrap().detail, given.detail);
        assert!(error.to_string().contains(&given.detail), "{error}");
    }
}

#[tokio::test]
async fn an_answer_of_somebody_else_is_named_as_such() {
    let router = Router::new()
        .route("/v1/status", get(|| async { (StatusCode::NOT_FOUND, "<h1>It works!\x07</h1>") }))
        .route("/v1/kinds", get(|| async { json("[1,2".to_owned()) }));
    let server = serve(router).await;
    let client = client(&server.url);
    let error = client.status().await.unwrap_err();
    assert!(
        matches!(&error, Error::Answer { status: 404, why, .. } if why == "<h1>It works! </h1>"),
        "{error}"
    );
    assert!(matches!(client.kinds().await.unwrap_err(), Error::Answer { status: 200, .. }));
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_says_why() {
    let error = client(&nowhere().await).status().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
}

#[tokio::test]
async fn refusals_are_tried_again_and_the_next_master_is_asked_when_one_is_gone_or_does_not_lead() {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let follower = serve(Router::new().fallback(move || async move {
        counted.fetch_add(1, Ordering::Relaxed);
        problem(&Problem::unavailable("not the leader"))
    }))
    .await;
    let leader = serve(Router::new().fallback(|| async { json(task_json("queued")) })).await;
    let urls = format!("{},{},{}", nowhere().await, follower.url, leader.url);
    let client = client(&urls);
    let task = client.submit(&TaskSpec::new("fib", None), &SubmitOptions::default()).await.unwrap();
    assert_eq!(task.state, TaskState::Queued);
    client.task(id(), None).await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 1, "the one that answered is asked first from then on");
    assert_eq!(client.url().trim_end_matches('/'), leader.url);
}

#[tokio::test]
async fn only_what_can_be_repeated_is_sent_again_after_a_failure_of_unknown_effect() {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let server = serve(Router::new().fallback(move || async move {
        match counted.fetch_add(1, Ordering::Relaxed) {
            0 | 2 => StatusCode::BAD_GATEWAY.into_response(),
            _ => json(task_json("queued")),
        }
    }))
    .await;
    let client = client(&server.url);
    let spec = TaskSpec::new("fib", None);
    let error = client.submit(&spec, &SubmitOptions::default()).await.unwrap_err();
    assert_eq!(error.status(), Some(502));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    client.submit(&spec, &SubmitOptions::default()).await.unwrap();
    client.submit(&spec, &SubmitOptions::default().with_new_key()).await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 4, "the keyed one was sent twice");
}

#[tokio::test]
async fn redirects_are_not_followed_so_no_token_goes_elsewhere() {
    let seen = Seen::default();
    let elsewhere = serve(Router::new().fallback(any(record)).with_state(Arc::clone(&seen))).await;
    let target = elsewhere.url.clone();
    let server = serve(Router::new().fallback(move || {
        let target = target.clone();
        async move { (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]) }
    }))
    .await;
    let error = client(&server.url).status().await.unwrap_err();
    assert_eq!(error.status(), Some(307));
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_master_that_accepts_and_says_nothing_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = ClientConfig::new(&format!("http://{}", listener.local_addr().unwrap()));
    config.timeouts = Timeouts { request: Duration::from_millis(100), ..Timeouts::default() };
    config.retry = Policy::NEVER;
    let error = Client::new(config).unwrap().status().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { after_ms: 100, .. }), "{error:?}");
}

#[tokio::test]
async fn a_wait_goes_on_over_several_requests_and_over_a_failing_master() {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let server = serve(Router::new().route(
        "/v1/tasks/{id}",
        get(move || async move {
            match counted.fetch_add(1, Ordering::Relaxed) {
                0 => json(task_json("running")),
                1 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                2 => problem(&Problem::unavailable("starting")),
                _ => json(task_json("succeeded")),
            }
        }),
    ))
    .await;
    let task = client(&server.url).wait_for_end(id()).await.unwrap();
    assert_eq!(task.state, TaskState::Succeeded);
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_wait_that_ends_first_gives_the_task_as_it_is() {
    let server = serve(Router::new().fallback(|| async { json(task_json("running")) })).await;
    let task = client(&server.url).task(id(), Some(Duration::from_millis(300))).await.unwrap();
    assert_eq!(task.state, TaskState::Running);
}

#[test]
fn configurations_that_cannot_work_are_refused_with_a_reason() {
    for (urls, needle) in [
        ("", "no master is named"),
        ("127.0.0.1:7400", "URL of a master"),
        ("ftp://host", "http:// or https://"),
        ("http://user:secret@host", "user or password"),
        ("http://host/?a=b", "no query"),
        ("https://host", "CA certificate"),
        ("https://one,http://two", "clear text"),
    ] {
        let error = Client::new(ClientConfig::new(urls)).unwrap_err();
        assert!(error.to_string().contains(needle), "{urls}: {error}");
        assert!(!error.to_string().contains("secret"));
        assert_eq!(error.exit_code(), 2);
    }
    let error =
        Client::new(ClientConfig::new("https://host").with_trust(Trust::Certificates(b"no PEM".to_vec())))
            .unwrap_err();
    assert!(error.to_string().contains("PEM"), "{error}");
    let error = Client::new(ClientConfig::new("http://h").with_token(Token::new("a\nb"))).unwrap_err();
    assert!(matches!(error, Error::Config(_)));
}

#[tokio::test]
async fn calls_can_be_spawned() {
    let client = client(&nowhere().await);
    let call = tokio::spawn(async move {
        let one = client.submit(&TaskSpec::new("fib", None), &SubmitOptions::default()).await;
        (one.is_err(), client.batch(client::batch::BatchOptions::default()).await.is_err())
    });
    assert_eq!(call.await.unwrap(), (true, true));
}

#[test]
fn tokens_are_never_shown() {
    let config = ClientConfig::new("http://127.0.0.1:1").with_token(Token::new("ek_hidden"));
    assert!(!format!("{config:?}").contains("hidden"));
    assert!(!format!("{:?}", Client::new(config).unwrap()).contains("hidden"));
}

#[test]
fn the_work_channel_is_on_the_same_master() {
    let node: NodeId = "01930000-0000-7000-8000-000000000002".parse().unwrap();
    let channel = |url: &str| Client::new(ClientConfig::new(url)).unwrap().work_channel_url(node);
    let tail = "/v1/nodes/01930000-0000-7000-8000-000000000002/work";
    assert_eq!(channel("http://127.0.0.1:7400"), format!("ws://127.0.0.1:7400{tail}"));
    assert_eq!(channel("http://host/prefix/"), format!("ws://host/prefix{tail}"));
}

mod batch {
    use super::*;
    use axum::body::BodyDataStream;
    use bytes::Bytes;
    use client::batch::BatchOptions;
    use futures_util::{StreamExt, stream};
    use protocol::batch::{BatchEvent, BatchLine};

    fn line(name: &str) -> BatchLine {
        let input: Box<serde_json::value::RawValue> = serde_json::from_str("{\"n\":\n1}").unwrap();
        let spec = TaskSpec::new("fib", Some(input.into()));
        BatchLine { r#ref: Some(name.to_owned()), idempotency_key: None, spec }
    }

    /// Answers every line as it comes, in pieces that do not fit lines.
    fn answers(body: BodyDataStream) -> Body {
        let lines = stream::unfold((body, Vec::new(), 0), |(mut body, mut rest, number)| async move {
            loop {
                if let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=at).collect();
                    let line = BatchLine::parse(&line).unwrap();
                    let number = number + 1;
                    let (name, task) = (line.r#ref.unwrap(), task_json("succeeded"));
                    let text = format!(
                        "\n{{\"ref\":\"{name}\",\"line\":{number},\"type\":\"finished\",\"task\":{task}}}\n"
                    );
                    return Some((text, (body, rest, number)));
                }
                rest.extend_from_slice(&body.next().await?.unwrap());
            }
        });
        let pieces = lines.flat_map(|text| {
            let pieces: Vec<_> = text
                .into_bytes()
                .chunks(100)
                .map(|piece| Ok::<_, String>(Bytes::copy_from_slice(piece)))
                .collect();
            stream::iter(pieces)
        });
        Body::from_stream(pieces)
    }

    #[tokio::test]
    async fn lines_go_out_and_answers_come_back_side_by_side() {
        let seen = Seen::default();
        let heads = Arc::clone(&seen);
        let router = Router::new().route(
            "/v1/tasks/batch",
            post(move |request: Request| async move {
                let line = request.uri().to_string();
                heads.lock().unwrap().push((line, request.headers().clone(), String::new()));
                answers(request.into_body().into_data_stream())
            }),
        );
        let server = serve(router).await;
        let options = BatchOptions { ack: true, detach: false };
        let (sender, mut answers) = client(&server.url).batch(options).await.unwrap();
        for n in 1..=200_u64 {
            sender.send(&line(&n.to_string())).await.unwrap();
            // The answer is here although the request's body is not finished.
            let answer = answers.next().await.unwrap().unwrap();
            assert_eq!((answer.line, answer.r#ref), (n, Some(n.to_string())));
            assert!(matches!(answer.event, BatchEvent::Finished { task } if task.id == id()));
        }
        drop(sender);
        assert!(answers.next().await.is_none());
        assert!(answers.next().await.is_none());
        let (line, headers, _) = &seen.lock().unwrap()[0];
        assert_eq!(line, "/v1/tasks/batch?ack=1");
        assert_eq!(headers["content-type"], "application/x-ndjson");
    }

    #[tokio::test]
    async fn a_thousand_lines_are_sent_by_one_task_and_answered_to_another() {
        let router = Router::new()
            .route("/v1/tasks/batch", post(|body: Body| async move { answers(body.into_data_stream()) }));
        let server = serve(router).await;
        let (sender, answers) = client(&server.url).batch(BatchOptions::default()).await.unwrap();
        let sending = tokio::spawn(async move {
            for n in 0..1_000 {
                sender.send(&line(&n.to_string())).await.unwrap();
            }
        });
        let got = answers.into_stream().filter(|answer| std::future::ready(answer.is_ok())).count().await;
        sending.await.unwrap();
        assert_eq!(got, 1_000);
    }

    #[tokio::test]
    async fn a_batch_that_is_refused_or_breaks_off_is_an_error() {
        let refusing =
            serve(Router::new().fallback(|| async { problem(&Problem::forbidden("scope")) })).await;
        let error = client(&refusing.url).batch(BatchOptions::default()).await.unwrap_err();
        assert_eq!(error.exit_code(), 4);

        let breaking = serve(Router::new().fallback(|| async {
            let good = "{\"line\":1,\"type\":\"accepted\",\"id\":\"01930000-0000-7000-8000-000000000001\"}\n";
            let parts = [Ok(good), Ok("{\"line\":2"), Err("gone")];
            // What was written before is only sent once the stream has nothing to give for a moment.
            Body::from_stream(stream::iter(parts).then(async |part| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                part
            }))
        }))
        .await;
        let (_sender, mut answers) = client(&breaking.url).batch(BatchOptions::default()).await.unwrap();
        assert!(matches!(answers.next().await.unwrap().unwrap().event, BatchEvent::Accepted { .. }));
        assert!(answers.next().await.unwrap().is_err());
        assert!(answers.next().await.is_none(), "after an error the stream is over");
    }

    #[tokio::test]
    async fn sending_into_a_batch_that_is_over_is_an_error_and_so_is_a_giant_line() {
        let server = serve(Router::new().fallback(|| async { "" })).await;
        let (sender, mut answers) = client(&server.url).batch(BatchOptions::default()).await.unwrap();
        assert!(matches!(sender.send_raw(vec![b'1'; 1 << 21]).await, Err(Error::Config(_))));
        assert!(answers.next().await.is_none());
        drop(answers);
        let closed = async {
            while sender.send(&line("x")).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("the sender notices the end");
    }
}

#[test]
fn a_master_is_left_once_however_many_could_not_reach_it() {
    let client = Client::new(ClientConfig::new("http://127.0.0.1:1,http://127.0.0.1:2")).unwrap();
    let first = client.url();
    client.leave_url(&first);
    let second = client.url();
    assert_ne!(second, first);
    client.leave_url(&first);
    assert_eq!(client.url(), second);
    client.leave_url(&second);
    assert_eq!(client.url(), first);
}
