//! One client: it submits with keys until it is told that a task is accepted, and reads until it has ended.

use super::{
    Plan,
    history::{History, Read, Want},
};
use crate::Access;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Tasks of one client that are under way at once.
const AT_ONCE: usize = 16;
/// Longest that one request may take.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Caller {
    http: reqwest::Client,
    urls: Vec<String>,
    token: String,
    history: Arc<Mutex<History>>,
    end: Instant,
}

/// What submission `number` is, and what it has to give.
fn work(number: u32) -> (Value, Want) {
    let (kind, input, result) = match number % 4 {
        // Some are there when a fault comes and when it goes.
        0 if number.is_multiple_of(100) => ("sleep", json!({"ms": 2_000}), json!({})),
        0 => ("sleep", json!({"ms": number % 300}), json!({})),
        1 => ("sum", json!({"numbers": [number, "0.5"]}), json!({"value": format!("{number}.5")})),
        _ => {
            let n = number % 24;
            let value = (0..n).fold((0_u64, 1_u64), |(a, b), _| (b, a + b)).0;
            ("fib", json!({"n": n}), json!({"value": value.to_string()}))
        }
    };
    // So many attempts that they never run out by the faults of a play.
    (json!({"kind": kind, "input": input, "max_attempts": 100}), Want { result })
}

/// A client for plain HTTP whose requests end within [`REQUEST_WITHIN`].
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn http() -> reqwest::Client {
    // It wants to know how to encrypt, though nothing is encrypted here. Somebody else may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(REQUEST_WITHIN).no_proxy().build().unwrap()
}

/// Starts client `number` of a plan in a thread of its own; it submits nothing more once there is `enough`.
pub fn start(
    access: &Access,
    history: &Arc<Mutex<History>>,
    enough: &Arc<AtomicBool>,
    number: u32,
    plan: &Plan,
    end: Instant,
) -> JoinHandle<()> {
    let (urls, token, history) = (access.urls.clone(), access.token(), Arc::clone(history));
    let caller = Caller { http: http(), urls, token, history, end };
    let numbers = (number..plan.tasks).step_by(plan.callers as usize);
    let enough = Arc::clone(enough);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut under_way = JoinSet::new();
            for number in numbers.take_while(|_| !enough.load(Ordering::Relaxed)) {
                while under_way.len() >= AT_ONCE {
                    under_way.join_next().await;
                }
                under_way.spawn(caller.clone().see_through(number));
            }
            under_way.join_all().await;
        });
    })
}

impl Caller {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The master to ask: another one after each request that has to be repeated, whoever it was of.
    fn url(&self, path: &str) -> String {
        let which = self.history().repeated as usize % self.urls.len();
        format!("{}{path}", self.urls[which])
    }

    /// One request; `None` if no answer came, or one that promises nothing. Waits a little after such a one.
    async fn ask(&self, request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
        let answer = async {
            let answer = request.bearer_auth(&self.token).send().await.ok()?;
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.ok()?;
            Some((status, body))
        };
        let answer = answer.await.filter(|(status, _)| !matches!(status, 429 | 500..));
        if answer.is_none() {
            self.history().repeated += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        answer
    }

    async fn see_through(self, number: u32) {
        let (body, want) = work(number);
        self.history().wants.insert(number, want);
        let key = format!("task-{number}");
        let mut id = None;
        while id.is_none() && Instant::now() < self.end {
            let request = self.http.post(self.url("/v1/tasks"));
            let asked = Instant::now();
            if let Some((status, task)) = self.ask(request.header("idempotency-key", &key).json(&body)).await
            {
                self.history().submitted(number, status, &task);
                self.read(number, asked, &task);
                id = task["id"].as_str().map(str::to_owned);
            }
        }
        let Some(id) = id else { return };
        let mut ended = 0;
        // Once more after its end: an end that was told stays.
        while ended < 2 && Instant::now() < self.end {
            let asked = Instant::now();
            let request = self.http.get(self.url(&format!("/v1/tasks/{id}?wait=5s")));
            if let Some((status, task)) = self.ask(request).await {
                if status != 200 {
                    self.history().violations.push(format!("{id} was accepted; now {status}: {task}"));
                    return;
                }
                ended += u32::from(self.read(number, asked, &task));
            }
        }
    }

    /// Writes an answer down; whether the task has ended.
    fn read(&self, number: u32, asked: Instant, task: &Value) -> bool {
        let read = Read::of(asked, Instant::now(), task);
        let ended = read.end.is_some();
        self.history().read(number, read);
        ended
    }
}
