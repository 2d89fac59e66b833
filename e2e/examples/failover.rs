//! Prints how long a failover takes on this machine: `cargo run --release -p e2e --example failover`.
//!
//! Two masters on one PostgreSQL with the default lease, two nodes. Twenty times the leader is killed (`kill -9`);
//! counted is from the kill to the first result of a task that was submitted to the survivor. No test asserts
//! these times, because they move with the machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program for developers"
)]

use e2e::Masters;
use std::time::{Duration, Instant};

const TIMES: usize = 20;
const WITHIN: Duration = Duration::from_secs(30);

fn main() {
    let mut cluster = Masters::start(2, 2, "5s");
    let bearer = format!("authorization: Bearer {}", cluster.token());
    let mut took = Vec::new();
    for time in 1..=TIMES {
        let first = cluster.leader();
        // Not always at the same point of the lease.
        std::thread::sleep(Duration::from_millis(137 * time as u64));
        let began = Instant::now();
        cluster.end(first, "KILL");
        loop {
            let headers = ["host: localhost", &bearer, "content-type: application/json"];
            let task = "{\"kind\":\"fib\",\"input\":{\"n\":20}}";
            let (status, body) = cluster.ask(1 - first, WITHIN, "POST /v1/tasks?wait=20s", &headers, task);
            if status == 200 && body.contains("\"6765\"") {
                break;
            }
            assert!(began.elapsed() < WITHIN, "no result: {status} {body}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let seconds = began.elapsed().as_secs_f64();
        println!("{time:2}: {seconds:.2} s");
        took.push(seconds);
        cluster.start_master(first);
        cluster.wait_for_nodes(2);
    }
    took.sort_by(f64::total_cmp);
    let (median, worst) = ((took[TIMES / 2 - 1] + took[TIMES / 2]) / 2.0, took[TIMES - 1]);
    println!(
        "kill -9 of the leader to the first result: median {median:.2} s, worst {worst:.2} s of {TIMES}"
    );
}
