//! What ten times too much work does to a cluster: `cargo run --release -p e2e --example overload`.
//!
//! Tasks burn 20 ms of CPU each. First as many are kept waiting as the nodes can do: that is the peak. Then ten times
//! as many come as that, whether the ones before were answered or not (open loop), to a queue that holds a few seconds'
//! work. Printed are the tasks that ended in each second of both, their ratio, how the submits were answered, and how
//! soon after the overload a single task is done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for developers")]

use e2e::{
    chaos::{caller, stage::Stage},
    masters::Ground,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet, time::MissedTickBehavior};

const NODES: usize = 2;
const WINDOW: Duration = Duration::from_secs(15);
/// Time for estimates to settle, and for the queue to fill.
const WARM_UP: Duration = Duration::from_secs(5);
/// Tasks that wait at most: about two seconds' work.
const QUEUE: &str = "100";
/// Requests without an answer at most; past it the generator would measure itself.
const UNANSWERED: usize = 2_000;

#[derive(Clone)]
struct Api {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Api {
    /// Submits one task; the status, and seconds to wait before the next try, if it says so.
    async fn submit(&self) -> (u16, bool) {
        let body = json!({"kind": "burn", "input": {"cpu_ms": 20}});
        let request = self.http.post(format!("{}/v1/tasks", self.url)).bearer_auth(&self.token).json(&body);
        let Ok(answer) = request.send().await else { return (0, false) };
        let told = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        // Read whole, so that the connection is used again.
        let _ = answer.bytes().await;
        told
    }

    async fn succeeded(&self) -> u64 {
        let request = self.http.get(format!("{}/v1/status", self.url)).bearer_auth(&self.token);
        let status: Value = request.send().await.unwrap().json().await.unwrap();
        status["succeeded"].as_u64().unwrap()
    }

    /// Tasks a second that end in the next window.
    async fn pace(&self) -> f64 {
        tokio::time::sleep(WARM_UP).await;
        let (before, began) = (self.succeeded().await, Instant::now());
        tokio::time::sleep(WINDOW).await;
        (self.succeeded().await - before) as f64 / began.elapsed().as_secs_f64()
    }
}

/// Enough submits under way that no node is ever without work, and hardly one is refused.
async fn peak(api: &Api) -> f64 {
    let mut keep = JoinSet::new();
    for _ in 0..4 {
        let api = api.clone();
        keep.spawn(async move {
            loop {
                if api.submit().await.0 == 429 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    let pace = api.pace().await;
    keep.shutdown().await;
    pace
}

/// `rate` submits a second, whatever comes of them; the pace, and the answers: status and whether it says when to try again.
async fn overload(api: &Api, rate: f64) -> (f64, BTreeMap<(u16, bool), u64>) {
    let answers = Arc::new(Mutex::new(BTreeMap::new()));
    let (sender, places) = (api.clone(), Arc::new(Semaphore::new(UNANSWERED)));
    let counted = Arc::clone(&answers);
    let generator = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut under_way = JoinSet::new();
        loop {
            ticks.tick().await;
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            let (sender, counted) = (sender.clone(), Arc::clone(&counted));
            under_way.spawn(async move {
                let answer = sender.submit().await;
                *counted.lock().unwrap().entry(answer).or_default() += 1;
                drop(place);
            });
            while under_way.try_join_next().is_some() {}
        }
    });
    let pace = api.pace().await;
    generator.abort();
    let answers = answers.lock().unwrap().clone();
    (pace, answers)
}

fn main() {
    let stage = Stage::raise(Ground::Sqlite, NODES, &["--queue-max-tasks", QUEUE]);
    let api = Api { http: caller::http(), url: stage.urls[0].clone(), token: stage.token() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let peak = peak(&api).await;
        println!("peak: {peak:.1} tasks/s");
        let rate = 10.0 * peak;
        let (goodput, answers) = overload(&api, rate).await;
        let over = Instant::now();
        let came: u64 = answers.values().sum();
        println!(
            "submitted {:.0} a second for {:.0} s: {goodput:.1} tasks/s done, {:.2} of the peak",
            came as f64 / (WINDOW + WARM_UP).as_secs_f64(),
            (WINDOW + WARM_UP).as_secs_f64(),
            goodput / peak
        );
        for ((status, says_when), count) in &answers {
            println!("answered {status}{}: {count}", if *says_when { " with Retry-After" } else { "" });
        }
        let alone = api.http.post(format!("{}/v1/tasks?wait=30s", api.url)).bearer_auth(&api.token);
        loop {
            let body = json!({"kind": "fib", "input": {"n": 5}});
            let answer = alone.try_clone().unwrap().json(&body).send().await.unwrap();
            if answer.status() == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("a single task is done {:.2} s after the last of them", over.elapsed().as_secs_f64());
    });
}
