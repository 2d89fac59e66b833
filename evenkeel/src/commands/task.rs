//! `evenkeel task get|wait|cancel|explain|list|logs`.

use super::{
    parse_label,
    token::ListOutput,
    waiting::{ResultOutput, Waiting},
};
use crate::{cli::Global, connect::ConnectArgs, exit::Failure, output};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use client::{LogPart, LogReader};
use node_manager::verbs;
use protocol::{
    NodeId, TaskId, Timestamp,
    log::Stream,
    status::Explanation,
    task::{Task, TaskQuery, TaskState},
};
use service::{
    Shutdown,
    duration::{parse_duration, show_duration},
};
use std::{collections::BTreeMap, time::Duration};

/// What to do with tasks.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Print a task as JSON
    Get(GetArgs),
    /// Wait for a task's end and print its result
    Wait(WaitArgs),
    /// Cancel one task, or all with certain labels
    Cancel(CancelArgs),
    /// Say why a task is where it is
    Explain(ExplainArgs),
    /// List tasks, newest first
    List(ListArgs),
    /// Print what a task has printed: its standard output here too, its standard error to standard error
    Logs(LogsArgs),
}

/// Arguments of `task get`.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The task
    id: TaskId,
}

/// Arguments of `task wait`.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The task
    id: TaskId,
    /// Wait at most so long (exit code 5 when it is over; the task goes on)
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    wait_for: Option<Duration>,
    /// What to print of the result: its JSON, or a lone value
    #[arg(short, long, value_enum, default_value_t = ResultOutput::Json)]
    output: ResultOutput,
}

/// Arguments of `task cancel`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "label"])))]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The task
    id: Option<TaskId>,
    /// All tasks with all of these labels
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
}

/// Arguments of `task explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The task
    id: TaskId,
    /// How to write it
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    output: ListOutput,
}

/// Arguments of `task list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Only tasks in this state
    #[arg(long, value_enum)]
    state: Option<StateArg>,
    /// Only tasks of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only tasks whose last attempt went to this node (its name or id)
    #[arg(long)]
    node: Option<String>,
    /// Only tasks with this label
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    label: Option<(String, String)>,
    /// Most tasks to list, 1 to 1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    /// `next_cursor` of the page before
    #[arg(long)]
    cursor: Option<String>,
    /// With inputs and results (JSON only)
    #[arg(long)]
    full: bool,
    /// How to write them
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    output: ListOutput,
}

/// Arguments of `task logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The task
    id: TaskId,
    /// Go on until the task has ended; waits for one that is queued
    #[arg(short, long)]
    follow: bool,
    /// Only one of the two streams
    #[arg(long, value_enum)]
    stream: Option<StreamArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StreamArg {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateArg {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl From<StateArg> for TaskState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Queued => Self::Queued,
            StateArg::Running => Self::Running,
            StateArg::Succeeded => Self::Succeeded,
            StateArg::Failed => Self::Failed,
            StateArg::Cancelled => Self::Cancelled,
        }
    }
}

/// Does it.
///
/// # Errors
/// What the master says, or how a task that was waited for ended.
pub(crate) async fn run(global: &Global, command: TaskCommand, shutdown: &Shutdown) -> Result<(), Failure> {
    match command {
        TaskCommand::Get(args) => output::json(&args.connect.client(global)?.task(args.id, None).await?),
        TaskCommand::Wait(args) => {
            let client = args.connect.client(global)?;
            let flags = args.connect.flags(global);
            let waiting = Waiting { client: &client, id: args.id, flags: &flags };
            waiting.print_end(args.wait_for, args.output, shutdown).await
        }
        TaskCommand::Cancel(args) => {
            let client = args.connect.client(global)?;
            match args.id {
                Some(id) => output::json(&client.cancel(id).await?),
                None => {
                    let cancelled = client.cancel_labels(&args.label.into_iter().collect()).await?;
                    output::data(cancelled)
                }
            }
        }
        TaskCommand::Explain(args) => {
            let explanation = args.connect.client(global)?.explain(args.id).await?;
            match args.output {
                ListOutput::Json => output::json(&explanation),
                ListOutput::Table => print_explanation(&explanation),
            }
        }
        TaskCommand::List(args) => list(global, args).await,
        TaskCommand::Logs(args) => logs(global, &args, shutdown).await,
    }
}

async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = args.connect.client(global)?;
    let node = match &args.node {
        Some(node) => Some(verbs::find_node(&client, node).await?),
        None => None,
    };
    let query = TaskQuery {
        state: args.state.map(Into::into),
        kind: args.kind,
        node,
        label: args.label.map(|(key, value)| format!("{key}={value}")),
        limit: Some(args.limit),
        cursor: args.cursor,
        full: args.full.then_some(1),
    };
    let page = client.tasks(&query).await?;
    if args.output == ListOutput::Json {
        return output::json(&page);
    }
    // Nodes that the master has forgotten are shown by their ids.
    let nodes = client.nodes().await.map(|page| page.items).unwrap_or_default();
    let names: BTreeMap<_, _> = nodes.into_iter().map(|node| (node.id, node.name)).collect();
    let now = service::clock::wall();
    let rows: Vec<_> = page.items.iter().map(|task| row(task, &names, now)).collect();
    output::table(&["ID", "KIND", "STATE", "AGE", "NODE", "ATTEMPT", "QUEUE", "RUN", "CPU", "ERROR"], &rows)?;
    if let Some(cursor) = page.next_cursor {
        output::say(format_args!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

/// Both streams are read side by side; each is in order, between them the order is as they arrive.
async fn logs(global: &Global, args: &LogsArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let client = args.connect.client(global)?;
    let copy = async |stream| match args.stream {
        Some(StreamArg::Stdout) if stream == Stream::Stderr => Ok(()),
        Some(StreamArg::Stderr) if stream == Stream::Stdout => Ok(()),
        _ => copy_log(client.log_reader(args.id, stream, args.follow), stream).await,
    };
    let token = shutdown.token();
    tokio::select! {
        copied = async { tokio::try_join!(copy(Stream::Stdout), copy(Stream::Stderr)) } => copied.map(drop),
        () = token.cancelled() => Err(Failure::Interrupted(String::new())),
    }
}

async fn copy_log(mut reader: LogReader, stream: Stream) -> Result<(), Failure> {
    let name = stream.as_str();
    while let Some(part) = reader.next().await? {
        match part {
            LogPart::Bytes(bytes) if stream == Stream::Stdout => output::raw(&bytes)?,
            LogPart::Bytes(bytes) => output::raw_error(&bytes)?,
            LogPart::Dropped(bytes) => {
                output::say(format_args!("evenkeel: {bytes} bytes of {name} are not kept"))
            }
            LogPart::Attempt(attempt) => output::say(format_args!("evenkeel: {name} of attempt {attempt}:")),
        }
    }
    Ok(())
}

fn row(task: &Task, names: &BTreeMap<NodeId, String>, now: Timestamp) -> Vec<String> {
    let time =
        |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| show_duration(Duration::from_millis(ms)));
    vec![
        task.id.to_string(),
        task.kind.clone(),
        task.state.as_str().to_owned(),
        time(Some(now.ms_since(task.submitted_at))),
        task.node.map_or_else(
            || "-".to_owned(),
            |node| names.get(&node).cloned().unwrap_or_else(|| node.to_string()),
        ),
        format!("{}/{}", task.attempt, task.max_attempts),
        time(Some(task.queue_ms)),
        time(task.run_ms),
        time(task.cpu_ms),
        task.error.as_ref().map_or("", |error| error.code.as_str()).to_owned(),
    ]
}

fn print_explanation(explanation: &Explanation) -> Result<(), Failure> {
    let ms = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.0} ms"));
    output::data(format_args!("{} ({})", explanation.message, explanation.reason))?;
    if let Some(position) = explanation.position {
        output::data(format_args!("place in its queue: {position}"))?;
    }
    output::data(format_args!(
        "estimated CPU time: {}; predicted running time: {}",
        ms(explanation.estimated_cpu_ms),
        ms(explanation.predicted_run_ms)
    ))?;
    if explanation.remaining_ms.is_some() {
        output::data(format_args!("left of it as things are now: {}", ms(explanation.remaining_ms)))?;
    }
    let rows: Vec<_> = explanation
        .candidates
        .iter()
        .map(|candidate| {
            vec![
                candidate.name.clone(),
                format!("{:.2}", candidate.effective_cores),
                candidate.in_flight.to_string(),
                candidate.free_slots.to_string(),
                format!("{:.0}ms", candidate.finish_ms),
                candidate.verdict.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        Ok(())
    } else {
        output::table(&["NODE", "CORES", "IN FLIGHT", "FREE", "FINISH", "VERDICT"], &rows)
    }
}
