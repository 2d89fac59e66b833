//! All nodes of a cluster lose their master at the same instant, and come back to the next one.

use crate::{cpu, crowd::Crowd, http::Master};
use anyhow::Context as _;
use client::{Client, ClientConfig, SubmitOptions};
use protocol::task::{TaskQuery, TaskSpec, TaskState};
use std::{
    fmt,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// What is to be played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Nodes of one core.
    pub nodes: usize,
    /// Tasks for each node.
    pub tasks_each: usize,
    /// How long each task takes.
    pub task: Duration,
    /// Longest that each part of it may take.
    pub within: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    nodes: usize,
    tasks: usize,
    /// From the first connection to the last greeting, at the beginning.
    joined: Duration,
    /// From the next master's start until half of all nodes, and all, were back.
    back: [Duration; 2],
    /// Registrations and work channels that failed meanwhile.
    failed: usize,
    /// Registrations after the first ones.
    pub registered_again: usize,
    /// Tasks that were started more than once.
    pub started_again: usize,
    /// CPU time of the next master until all were back, and its memory then, at most, in bytes.
    cpu: Duration,
    most_bytes: u64,
    /// From its start until all tasks had succeeded.
    done: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        writeln!(f, "{} nodes joined in {}", self.nodes, seconds(self.joined))?;
        writeln!(
            f,
            "after kill -9 of the master, from the start of the next one: half of them were back in {}, all in {}; \
             {} attempts to connect failed, {} registered again",
            seconds(self.back[0]),
            seconds(self.back[1]),
            self.failed,
            self.registered_again
        )?;
        writeln!(
            f,
            "the next master took {} of CPU for it, and {:.1} MiB of memory at most",
            seconds(self.cpu),
            self.most_bytes as f64 / f64::from(1 << 20)
        )?;
        writeln!(
            f,
            "all {} tasks had succeeded after {}; {} of them were started more than once",
            self.tasks,
            seconds(self.done),
            self.started_again
        )
    }
}

/// Plays it with this program as the master.
///
/// # Errors
/// Something did not happen in time, or a task did not succeed.
pub async fn run(binary: &Path, plan: &Plan) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    let mut master = Master::start(binary, folder.path(), None)?;
    let client = Client::new(ClientConfig::new(&master.url()))?;
    let nodes = plan.nodes;
    let all_open = move |counts: &crate::crowd::Counts| counts.open.load(Ordering::Relaxed) == nodes;

    let mut crowd = Crowd::start(&master.url(), nodes)?;
    let joined = crowd.until("all have joined", plan.within, all_open).await?;
    let tasks = plan.tasks_each * nodes;
    submit(&client, tasks, plan.task).await?;
    let busy = move |counts: &crate::crowd::Counts| counts.running.load(Ordering::Relaxed) >= nodes * 9 / 10;
    crowd.until("nearly all have work", plan.within, busy).await?;
    // That a task was handed out is recorded with the next group commit; a kill before that may start it again.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let before = [&crowd.counts.failed, &crowd.counts.registered].map(|count| count.load(Ordering::Relaxed));
    let opened = crowd.counts.opened_at().len();
    master.kill()?;
    crowd.until("all have noticed", plan.within, |counts| counts.open.load(Ordering::Relaxed) == 0).await?;
    let began = Instant::now();
    master.start_again()?;
    crowd.until("all are back", plan.within, all_open).await?;
    let (cpu, most_bytes) = (cpu::used(&[master.pid()])?.own, most_bytes(master.pid())?);
    let back = crowd.counts.opened_at().split_off(opened);
    anyhow::ensure!(back.len() >= nodes, "{} of {nodes} came back", back.len());
    let since = |at: usize| back[at].saturating_duration_since(began);

    until_succeeded(&client, tasks, plan.within).await?;
    let done = began.elapsed();
    let started = crowd.counts.started();
    anyhow::ensure!(started.len() == tasks, "{} of {tasks} tasks were started", started.len());
    Ok(Report {
        nodes,
        tasks,
        joined,
        back: [since(nodes / 2), since(nodes - 1)],
        failed: crowd.counts.failed.load(Ordering::Relaxed) - before[0],
        registered_again: crowd.counts.registered.load(Ordering::Relaxed) - before[1],
        started_again: started.values().filter(|times| **times > 1).count(),
        cpu,
        most_bytes,
        done,
    })
}

/// Submits `sleep` tasks, each acknowledged when it is on disk.
async fn submit(client: &Client, tasks: usize, time: Duration) -> anyhow::Result<()> {
    let input = serde_json::json!({"ms": u64::try_from(time.as_millis())?});
    let spec = TaskSpec::new("sleep", Some(serde_json::value::to_raw_value(&input)?.into()));
    let mut under_way = JoinSet::new();
    for _ in 0..tasks {
        if under_way.len() >= 64 {
            under_way.join_next().await.context("none is under way")???;
        }
        let (client, spec) = (client.clone(), spec.clone());
        under_way.spawn(async move {
            client.submit(&spec, &SubmitOptions::default()).await.map(drop).map_err(anyhow::Error::from)
        });
    }
    while let Some(submitted) = under_way.join_next().await {
        submitted??;
    }
    Ok(())
}

async fn until_succeeded(client: &Client, tasks: usize, within: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let mut open = 0;
        for state in [TaskState::Queued, TaskState::Running] {
            open += count(client, state).await?;
        }
        if open == 0 {
            break;
        }
        anyhow::ensure!(began.elapsed() < within, "{open} tasks have not ended within {within:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let succeeded = count(client, TaskState::Succeeded).await?;
    anyhow::ensure!(succeeded == tasks, "{succeeded} of {tasks} tasks succeeded");
    Ok(())
}

async fn count(client: &Client, state: TaskState) -> anyhow::Result<usize> {
    let (mut tasks, mut cursor) = (0, None);
    loop {
        let query = TaskQuery { state: Some(state), limit: Some(1_000), cursor, ..TaskQuery::default() };
        let page = client.tasks(&query).await?;
        tasks += page.items.len();
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(tasks);
        }
    }
}

/// The most memory that was resident so far.
fn most_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: Option<u64> =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    Ok(1024 * kib.context("no VmHWM")?)
}
