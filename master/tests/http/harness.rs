//! A master in this process and a plain HTTP/1.1 client.

use serde_json::Value;
use std::{collections::HashMap, net::SocketAddr, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; a test that hits it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A master of the test's own.
pub(crate) struct Master {
    pub(crate) address: SocketAddr,
    pub(crate) admin: String,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), master::Error>>,
}

impl Master {
    /// Starts one on this state directory, with tokens.
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    pub(crate) async fn start_with(dir: &Path, change: impl FnOnce(&mut master::Config)) -> Self {
        let token_file = dir.join("admin.token");
        let (on_ready, ready) = tokio::sync::oneshot::channel();
        let mut config = master::Config::new(dir);
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.bootstrap_token_file = Some(token_file.clone());
        config.on_ready = Some(on_ready);
        change(&mut config);
        let stop = CancellationToken::new();
        let ended = tokio::spawn(master::run(config, stop.clone()));
        let address = match tokio::time::timeout(PATIENCE, ready).await.expect("the master starts in time") {
            Ok(address) => address,
            Err(_) => panic!("the master did not start: {:?}", ended.await),
        };
        let admin = std::fs::read_to_string(&token_file).unwrap_or_default().trim().to_owned();
        Self { address, admin, stop, ended }
    }

    /// Stops it in order.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.ended).await.expect("it ends in time").unwrap().unwrap();
    }

    /// A request as admin.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        self.call_as(Some(&self.admin), method, path, body).await
    }

    /// A request with this token, or none. A body is sent as JSON.
    pub(crate) async fn call_as(&self, token: Option<&str>, method: &str, path: &str, body: &str) -> Reply {
        let mut headers = vec![];
        let bearer = token.map(|token| format!("Bearer {token}"));
        if let Some(bearer) = &bearer {
            headers.push(("authorization", bearer.as_str()));
        }
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        self.raw(method, path, &headers, body.as_bytes()).await
    }

    /// A request with exactly these headers, beside `Host` and those of the connection.
    pub(crate) async fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let host = self.address.to_string();
        let mut all = vec![("host", host.as_str())];
        all.extend(headers);
        if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            all.remove(0);
        }
        tokio::time::timeout(PATIENCE, exchange(self.address, method, path, &all, body))
            .await
            .expect("answered in time")
    }

    /// A new token with these scopes (JSON).
    pub(crate) async fn token(&self, request: &str) -> String {
        let reply = self.call("POST", "/v1/tokens", request).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()["token"].as_str().unwrap().to_owned()
    }

    /// Submits and returns the task.
    pub(crate) async fn submit(&self, query: &str, body: &str) -> Value {
        let reply = self.call("POST", &format!("/v1/tasks{query}"), body).await;
        assert!(matches!(reply.status, 200 | 202), "{reply:?}");
        reply.json()
    }

    /// The task, after a wait for its end.
    pub(crate) async fn finished(&self, id: &str) -> Value {
        let reply = self.call("GET", &format!("/v1/tasks/{id}?wait=25s"), "").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(2_000).collect();
        write!(f, "{} {:?} {body}", self.status, self.headers)
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that this is a problem document of this status and type, and returns its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, slug: &str) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"].as_str().unwrap(), self.headers["x-request-id"]);
        assert!(!problem["request_id"].as_str().unwrap().is_empty());
        assert!(!problem["title"].as_str().unwrap().is_empty());
        problem["detail"].as_str().unwrap().to_owned()
    }
}

async fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "connection") {
        head.push_str("connection: close\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    parse(&answer)
}

/// Reads an answer that is whole.
pub(crate) fn parse(answer: &[u8]) -> Reply {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer with headers");
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = answer[end + 4..].to_vec();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        body = unchunk(&body);
    }
    Reply { status, headers, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
    body
}
