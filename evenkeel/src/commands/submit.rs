//! `evenkeel submit`: one task, or many with `--batch`.

use super::{
    batch,
    input::{command_input, json_input, short_input},
    parse_cores, parse_label,
    waiting::{ResultOutput, Waiting, print_ended},
};
use crate::{cli::Global, connect::ConnectArgs, exit::Failure, output};
use clap::{Args, ValueEnum};
use client::{Client, SubmitOptions};
use protocol::task::{Durability, ErrorCode, ResourceRequest, TaskSpec};
use service::{
    Shutdown,
    duration::{parse_bytes, parse_duration, parse_ms},
};
use std::{path::PathBuf, time::Duration};

/// The kinds are looked up for a message within this.
const KINDS_WITHIN: Duration = Duration::from_secs(3);
/// A `memory` task without a bound of its own is waited for in requests of so long.
const LONG: Duration = Duration::from_secs(365 * 86_400);

/// Arguments of `submit`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  evenkeel submit fib 40
  evenkeel submit sum 1 2.5
  evenkeel submit sleep 1000 --detach
  evenkeel submit my-kind --input @input.json
  evenkeel submit run -- echo hello
  evenkeel submit run --stdin @names.txt --env LC_ALL=C -- sort
  evenkeel submit --batch tasks.ndjson > results.ndjson")]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Kind of work: fib, sum, sleep, burn, run, or one of your own
    #[arg(required_unless_present = "batch", conflicts_with = "batch")]
    kind: Option<String>,
    /// Short form of the input: fib N, sum NUMBER…, sleep MS, burn CPU_MS, run -- COMMAND ARGUMENT…
    #[arg(allow_negative_numbers = true, conflicts_with = "input")]
    arguments: Vec<String>,
    /// The input: JSON, @FILE, or '-' for standard input
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    input: Option<String>,
    /// What a command (run) reads from its standard input: text, @FILE, or '-' for what this one reads
    #[arg(long, value_name = "TEXT|@FILE|-", allow_hyphen_values = true, conflicts_with = "input")]
    stdin: Option<String>,
    /// Environment variable of a command (run), may be given more than once
    #[arg(long, value_parser = parse_variable, value_name = "NAME=VALUE", conflicts_with = "input")]
    env: Vec<(String, String)>,
    /// Do not wait: print the task's id
    #[arg(long)]
    detach: bool,
    /// Wait at most so long for the end (exit code 5 when it is over; the task goes on)
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", conflicts_with_all = ["detach", "batch"])]
    wait_for: Option<Duration>,
    /// Bound of one attempt's running time [default: its kind's, else none]
    #[arg(long, value_parser = parse_ms, value_name = "DURATION")]
    timeout: Option<u64>,
    /// Bound from submission to end, waiting in the queue included
    #[arg(long, value_parser = parse_ms, value_name = "DURATION")]
    deadline: Option<u64>,
    /// Most attempts, 1 to 100 [default: its kind's, else 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    max_attempts: Option<u32>,
    /// Try again after this error too (beside a lost node), may be given more than once
    #[arg(long, value_parser = parse_code, value_name = "CODE")]
    retry_on: Vec<ErrorCode>,
    /// How long after contact to its node is lost the task waits before it runs elsewhere
    /// [default: until the node counts as lost]
    #[arg(long, value_parser = parse_ms, value_name = "DURATION")]
    rerun_after: Option<u64>,
    /// -100 to 100, higher first [default: 0]
    #[arg(long, value_parser = clap::value_parser!(i8).range(-100..=100), allow_negative_numbers = true)]
    priority: Option<i8>,
    /// Threads that the task keeps busy [default: its kind's, else 1]
    #[arg(long, value_parser = parse_cores)]
    cores: Option<f64>,
    /// Memory to set aside for it, as 64MiB [default: its kind's, else none]
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Tag for list and cancel, may be given more than once
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// Idempotency key: the same key and task again give the same task
    #[arg(long)]
    key: Option<String>,
    /// Whether the task is on disk before it is accepted [default: disk]
    #[arg(long, value_enum)]
    durability: Option<DurabilityArg>,
    /// What to print of the result: its JSON, or a lone value
    #[arg(short, long, value_enum, default_value_t = ResultOutput::Json)]
    output: ResultOutput,
    /// One task a line, as JSON; '-' for standard input. Results come as they finish
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input", "stdin", "env", "key", "timeout", "deadline", "max_attempts", "retry_on", "rerun_after", "priority", "cores", "memory", "label", "durability", "output"])]
    batch: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DurabilityArg {
    Disk,
    Memory,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not an environment variable; write it as NAME=VALUE")),
    }
}

/// Codes after which a task can be tried again; the master has the last word.
fn parse_code(text: &str) -> Result<ErrorCode, String> {
    let codes = [
        ErrorCode::Timeout,
        ErrorCode::TaskError,
        ErrorCode::OutOfMemory,
        ErrorCode::BadInput,
        ErrorCode::ResultTooLarge,
        ErrorCode::NodeLost,
    ];
    codes
        .into_iter()
        .find(|code| code.as_str() == text)
        .ok_or_else(|| format!("{text:?} is not one of {}", codes.map(ErrorCode::as_str).join(", ")))
}

/// Submits, and waits unless it is told not to.
///
/// # Errors
/// How it ended otherwise than with a result.
pub(crate) async fn run(global: &Global, args: SubmitArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let client = args.connect.client(global)?;
    let flags = args.connect.flags(global);
    if let Some(file) = &args.batch {
        return batch::run(&client, file, args.detach, &flags, shutdown).await;
    }
    let spec = match args.spec() {
        // A slip in the kind's name is the likelier mistake.
        Err(failure) => return Err(unknown_kind(&client, &args).await.unwrap_or(failure)),
        Ok(spec) => spec,
    };
    let options = match args.key.clone() {
        Some(key) => SubmitOptions { wait: None, idempotency_key: Some(key) },
        None => SubmitOptions::default().with_new_key(),
    };
    if spec.durability == Some(Durability::Memory) && !args.detach {
        return submit_memory(&client, &spec, &args, &flags, shutdown).await;
    }
    let token = shutdown.token();
    let task = tokio::select! {
        task = client.submit(&spec, &options) => task?,
        () = token.cancelled() => return Err(Failure::Interrupted("interrupted while submitting; whether the task was accepted is not known".to_owned())),
    };
    if args.detach {
        return output::data(task.id);
    }
    let waiting = Waiting { client: &client, id: task.id, flags: &flags };
    waiting.print_end(args.wait_for, args.output, shutdown).await
}

/// What is wrong with the kind of a short form, if the master knows no such kind; bounded, because it is only
/// for a better message.
async fn unknown_kind(client: &Client, args: &SubmitArgs) -> Option<Failure> {
    let asked = args.kind.as_deref().filter(|_| !args.arguments.is_empty())?;
    let kinds = tokio::time::timeout(KINDS_WITHIN, client.kinds()).await.ok()?.ok()?.items;
    if kinds.iter().any(|kind| kind.name == asked) {
        return None;
    }
    let similarity = |name: &&str| strsim::jaro_winkler(asked, name);
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
    let near = names.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    Some(Failure::Usage(format!(
        "there is no kind {asked:?}, did you mean {near:?}? There are: {}",
        names.join(", ")
    )))
}

impl SubmitArgs {
    fn spec(&self) -> Result<TaskSpec, Failure> {
        let kind = self.kind.clone().unwrap_or_default();
        let for_commands = self.stdin.is_some() || !self.env.is_empty();
        let input = match &self.input {
            Some(text) => Some(json_input(text)?),
            None if kind == "run" && (for_commands || !self.arguments.is_empty()) => {
                Some(command_input(&self.arguments, self.stdin.as_deref(), &self.env)?)
            }
            None if for_commands => {
                return Err(Failure::Usage(format!(
                    "--stdin and --env are for commands (submit run -- COMMAND); give the input of {kind:?} by --input JSON"
                )));
            }
            None => short_input(&kind, &self.arguments)?,
        };
        let mut spec = TaskSpec::new(kind, input);
        spec.timeout_ms = self.timeout;
        spec.deadline_ms = self.deadline;
        spec.max_attempts = self.max_attempts;
        spec.retry_on.clone_from(&self.retry_on);
        spec.rerun_after_ms = self.rerun_after;
        spec.priority = self.priority.unwrap_or_default();
        for (key, value) in &self.label {
            if spec.labels.insert(key.clone(), value.clone()).is_some() {
                return Err(Failure::Usage(format!("--label {key} is given twice")));
            }
        }
        if self.cores.is_some() || self.memory.is_some() {
            spec.resources = Some(ResourceRequest { cores: self.cores, memory_bytes: self.memory });
        }
        spec.durability = self.durability.map(|durability| match durability {
            DurabilityArg::Disk => Durability::Disk,
            DurabilityArg::Memory => Durability::Memory,
        });
        Ok(spec)
    }
}

/// A `memory` task lives only as long as somebody waits for it or it outlives the next group commit, so it
/// is submitted and waited for in one request; the first Ctrl-C drops that, which cancels it.
async fn submit_memory(
    client: &Client,
    spec: &TaskSpec,
    args: &SubmitArgs,
    flags: &str,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let options =
        SubmitOptions { wait: Some(args.wait_for.unwrap_or(LONG)), idempotency_key: args.key.clone() };
    let token = shutdown.token();
    let task = tokio::select! {
        task = client.submit(spec, &options) => task?,
        () = token.cancelled() => return Err(Failure::Interrupted("interrupted; the task is cancelled".to_owned())),
    };
    if task.state.is_terminal() {
        return print_ended(&task, args.output);
    }
    Err(Waiting { client, id: task.id, flags }.over(args.wait_for.unwrap_or(LONG)))
}
