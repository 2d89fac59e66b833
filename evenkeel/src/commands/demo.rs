//! `evenkeel demo`: a cluster, tasks of mixed size, every result checked.

use super::batch::progress;
use crate::{
    cli::Global,
    exit::Failure,
    output,
    up::{Cluster, Wish, checks::MOST_NODES, runtime::RuntimeArg},
};
use clap::Args;
use client::batch::{BatchOptions, BatchSender};
use protocol::{
    NodeId,
    batch::{BatchEvent, BatchLine},
    node::NodeView,
    task::{Json, Task, TaskSpec, TaskState},
};
use serde_json::{json, value::to_raw_value};
use service::{
    Shutdown,
    state::{ADMIN_TOKEN_FILE, StateDir},
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

/// Sizes of the tasks: from under a millisecond to some tenths of a second of CPU.
const LEAST_N: u64 = 26;
const SIZES: u64 = 13;
/// Walks through the sizes out of order (it shares no factor with [`SIZES`]).
const STRIDE: u64 = 7;

/// Arguments of `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// How many nodes, at most 256
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MOST_NODES))]
    nodes: u32,
    /// How many tasks
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
    /// What nodes are
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
    /// Leave the cluster running afterwards
    #[arg(long)]
    keep: bool,
    /// Control group that all containers are put below
    #[arg(long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
}

/// Brings a cluster of its own up, works, takes it down.
///
/// # Errors
/// What does not work, or [`Failure::TaskEnded`] if a result was wrong.
pub(crate) async fn run(global: &Global, args: DemoArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let (name, state) = own_cluster(global)?;
    let listen = (Ipv4Addr::LOCALHOST, free_port()?).into();
    let wish = Wish {
        nodes: Some(args.nodes),
        cgroup_parent: args.cgroup_parent,
        detach: args.keep,
        ..Wish::new(name.clone(), args.runtime, listen)
    };
    output::say(format_args!(
        "bringing up cluster {name} with {}",
        output::counted(args.nodes.into(), "node")
    ));
    let token = shutdown.token();
    let began = Instant::now();
    let cluster = Cluster::bring_up(&wish, &state, &token).await?;
    output::say(format_args!(
        "{} ready after {:.1} s at {}",
        output::counted(args.nodes.into(), "node"),
        began.elapsed().as_secs_f64(),
        cluster.url
    ));
    let worked = tokio::select! {
        worked = work(&cluster, args.tasks) => worked,
        () = token.cancelled() => Err(Failure::Interrupted("interrupted".to_owned())),
    };
    if args.keep && !token.is_cancelled() {
        let place = global
            .state_dir
            .as_ref()
            .map_or(String::new(), |_| format!(" --state-dir {}", state.path().display()));
        output::say(format_args!(
            "the cluster stays; take it down by: evenkeel down --cluster {name}{place}\ntoken: {}",
            state.file(ADMIN_TOKEN_FILE).display()
        ));
        cluster.leave().await;
    } else {
        output::say("taking the cluster down");
        cluster.take_down().await?;
    }
    worked
}

/// A cluster of this run's own, so that it meets neither the user's nor another demo's: unless one is named.
fn own_cluster(global: &Global) -> Result<(String, StateDir), Failure> {
    if global.cluster != "default" {
        return Ok((global.cluster.clone(), global.state()?));
    }
    let name = format!("demo-{}", std::process::id());
    let below = global.state_dir.as_ref().map(|folder| folder.join(&name));
    let state = StateDir::locate(below.as_deref(), &name)?;
    Ok((name, state))
}

fn free_port() -> Result<u16, Failure> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|error| Failure::Other(format!("there is no free port: {error}")))
}

/// What one node did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Share {
    tasks: u64,
    cpu_ms: u64,
}

/// Everything that came back.
#[derive(Clone, Debug, Default)]
struct Outcome {
    right: u64,
    wrong: Vec<String>,
    shares: BTreeMap<Option<NodeId>, Share>,
}

impl Outcome {
    /// Counts an answer; `n` is what its task was asked for.
    fn count(&mut self, n: Option<u64>, event: &BatchEvent) {
        let task = match event {
            BatchEvent::Finished { task } => task,
            BatchEvent::Error { problem } => return self.wrong.push(format!("refused: {problem}")),
            BatchEvent::Accepted { .. } => return,
        };
        let share = self.shares.entry(task.node).or_default();
        share.tasks += 1;
        share.cpu_ms += task.cpu_ms.unwrap_or(0);
        match check(n, task) {
            Ok(()) => self.right += 1,
            Err(why) => self.wrong.push(why),
        }
    }
}

/// Whether a task's result is the Fibonacci number that it was asked for, computed here in another way.
fn check(n: Option<u64>, task: &Task) -> Result<(), String> {
    let n = n.ok_or_else(|| format!("task {} belongs to no line", task.id))?;
    if task.state != TaskState::Succeeded {
        let why = task.error.as_ref().map_or("", |error| error.message.as_str());
        return Err(format!("fib({n}) is {}: {why}", task.state.as_str()));
    }
    let want = json!({ "value": fibonacci(n).to_string() });
    let got =
        task.result.as_ref().and_then(|result| serde_json::from_str::<serde_json::Value>(result.get()).ok());
    if got.as_ref() == Some(&want) { Ok(()) } else { Err(format!("fib({n}) is {want}, and not {got:?}")) }
}

/// By adding up, while the nodes compute it by recursion.
fn fibonacci(n: u64) -> u128 {
    let (mut a, mut b) = (0_u128, 1_u128);
    for _ in 0..n {
        (a, b) = (b, a + b);
    }
    a
}

fn size_of(index: u64) -> u64 {
    LEAST_N + index * STRIDE % SIZES
}

async fn work(cluster: &Cluster, tasks: u32) -> Result<(), Failure> {
    let bar = progress(Some(tasks.into()));
    let began = Instant::now();
    let (sender, mut answers) = cluster.client.batch(BatchOptions::default()).await?;
    let sending = tokio::spawn(send(sender, tasks));
    let mut outcome = Outcome::default();
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        outcome.count(answer.r#ref.as_deref().and_then(|n| n.parse().ok()), &answer.event);
        bar.inc(1);
    }
    let took = began.elapsed();
    bar.finish_and_clear();
    sending.await.map_err(|error| Failure::Other(error.to_string()))??;
    let nodes = cluster.client.nodes().await?.items;
    print(&outcome, &nodes, took, tasks)
}

async fn send(sender: BatchSender, tasks: u32) -> Result<(), Failure> {
    for index in 0..u64::from(tasks) {
        let n = size_of(index);
        let input: Json =
            to_raw_value(&json!({ "n": n })).map_err(|error| Failure::Other(error.to_string()))?.into();
        let line = BatchLine {
            r#ref: Some(n.to_string()),
            idempotency_key: None,
            spec: TaskSpec::new("fib", Some(input)),
        };
        sender.send(&line).await?;
    }
    Ok(())
}

fn print(outcome: &Outcome, nodes: &[NodeView], took: Duration, tasks: u32) -> Result<(), Failure> {
    let (rows, total) = rows(outcome, nodes, took);
    output::table(&["NODE", "TASKS", "CPU-SECONDS", "MEAN CPU %"], &rows)?;
    output::data(format_args!(
        "\n{} of {tasks} results right; {:.2} CPU-seconds in {:.2} s, {:.1} tasks a second",
        outcome.right,
        seconds(total.cpu_ms),
        took.as_secs_f64(),
        f64::from(tasks) / took.as_secs_f64().max(0.001)
    ))?;
    for why in outcome.wrong.iter().take(10) {
        output::say(format_args!("evenkeel: {why}"));
    }
    if outcome.right == u64::from(tasks) && outcome.wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::TaskEnded)
    }
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

fn rows(outcome: &Outcome, nodes: &[NodeView], took: Duration) -> (Vec<Vec<String>>, Share) {
    let (mut rows, mut total, mut cores) = (Vec::new(), Share::default(), 0.0);
    let line = |name: &str, share: Share, cores: f64| {
        let available = cores * took.as_secs_f64();
        let percent = if available > 0.0 { seconds(share.cpu_ms) / available * 100.0 } else { 0.0 };
        vec![
            name.to_owned(),
            share.tasks.to_string(),
            format!("{:.2}", seconds(share.cpu_ms)),
            format!("{percent:.0}"),
        ]
    };
    for node in nodes {
        let share = outcome.shares.get(&Some(node.id)).copied().unwrap_or_default();
        rows.push(line(&node.name, share, node.allotted_cores));
        total.tasks += share.tasks;
        total.cpu_ms += share.cpu_ms;
        cores += node.allotted_cores;
    }
    rows.push(line("total", total, cores));
    (rows, total)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_independent_computation_is_right() {
        assert_eq!(
            [0, 1, 2, 10, 40, 90].map(fibonacci),
            [0, 1, 1, 55, 102_334_155, 2_880_067_194_370_816_120]
        );
    }

    #[test]
    fn sizes_are_mixed_and_all_of_them_occur() {
        let sizes: std::collections::BTreeSet<_> = (0..SIZES).map(size_of).collect();
        assert_eq!(sizes.len() as u64, SIZES);
        assert!(size_of(0) != size_of(1) && size_of(1) > LEAST_N);
    }

    #[test]
    fn a_wrong_or_failed_result_is_seen() {
        let task = |state: &str, result: &str| {
            let text = format!(
                r#"{{"id":"01939d5f-0000-7000-8000-000000000001","kind":"fib","state":"{state}","result":{result},"attempt":1,"max_attempts":3,"priority":0,"labels":{{}},"resources":{{"cores":1.0,"memory_bytes":0}},"submitted_at":"2026-11-21T03:50:00.000Z","queue_ms":0,"cpu_ms":5}}"#
            );
            BatchEvent::Finished { task: Box::new(serde_json::from_str(&text).unwrap()) }
        };
        let mut outcome = Outcome::default();
        outcome.count(Some(10), &task("succeeded", r#"{"value":"55"}"#));
        outcome.count(Some(10), &task("succeeded", r#"{"value":"54"}"#));
        outcome.count(Some(10), &task("failed", "null"));
        outcome.count(None, &task("succeeded", r#"{"value":"55"}"#));
        assert_eq!((outcome.right, outcome.wrong.len()), (1, 3));
        assert_eq!(outcome.shares[&None], Share { tasks: 4, cpu_ms: 20 });
    }
}
