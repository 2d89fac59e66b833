//! `evenkeel submit`: one task, or many with `--batch`.

use super::{
    batch, parse_cores, parse_label,
    waiting::{ResultOutput, Waiting, print_ended},
};
use crate::{cli::Global, connect::ConnectArgs, exit::Failure, output};
use clap::{Args, ValueEnum};
use client::{Client, SubmitOptions};
use protocol::task::{Durability, Json, MAX_BODY_BYTES, ResourceRequest, TaskSpec};
use serde_json::{Value, json, value::RawValue};
use service::{
    Shutdown,
    duration::{parse_bytes, parse_duration, parse_ms},
};
use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

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
    /// -100 to 100, higher first
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i8).range(-100..=100), allow_negative_numbers = true)]
    priority: i8,
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
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input", "key", "timeout", "deadline", "max_attempts", "cores", "memory", "label", "durability"])]
    batch: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DurabilityArg {
    Disk,
    Memory,
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
        let input = match &self.input {
            Some(text) => Some(read_input(text)?),
            None => short_input(&kind, &self.arguments)?,
        };
        let mut spec = TaskSpec::new(kind, input);
        spec.timeout_ms = self.timeout;
        spec.deadline_ms = self.deadline;
        spec.max_attempts = self.max_attempts;
        spec.priority = self.priority;
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

fn raw(value: &Value) -> Result<Json, Failure> {
    let text = serde_json::value::to_raw_value(value);
    text.map(Into::into).map_err(|error| Failure::Usage(error.to_string()))
}

/// JSON on the command line, in a file or on standard input.
fn read_input(text: &str) -> Result<Json, Failure> {
    let bounded = |source: &mut dyn Read, place: &str| {
        let mut text = String::new();
        let read = source.take(MAX_BODY_BYTES as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| Failure::Usage(format!("the input cannot be read from {place}: {error}")))?;
        Ok::<_, Failure>(text)
    };
    let text = if text == "-" {
        bounded(&mut io::stdin().lock(), "standard input")?
    } else if let Some(path) = text.strip_prefix('@') {
        let mut file = fs::File::open(path)
            .map_err(|error| Failure::Usage(format!("the input cannot be read from {path}: {error}")))?;
        bounded(&mut file, path)?
    } else {
        text.to_owned()
    };
    if text.len() > MAX_BODY_BYTES {
        return Err(Failure::Usage(format!("the input has more than {MAX_BODY_BYTES} bytes")));
    }
    let parsed = RawValue::from_string(text.trim().to_owned());
    parsed.map(Into::into).map_err(|error| {
        Failure::Usage(format!("the input is not JSON: {error}; give JSON, @FILE or - for standard input"))
    })
}

/// The input that a short form stands for. What is not a number stays a text, which the master then refuses
/// with a reason.
fn short_input(kind: &str, arguments: &[String]) -> Result<Option<Json>, Failure> {
    let wrong = |form: &str| Err(Failure::Usage(format!("write it as: evenkeel submit {kind} {form}")));
    let one = |field: &str, form: &str| match arguments {
        [] => Ok(None),
        [argument] => field_with(field, argument).map(Some),
        _ => wrong(form),
    };
    match kind {
        "fib" => one("n", "N"),
        "sleep" => one("ms", "MILLISECONDS"),
        "burn" => one("cpu_ms", "MILLISECONDS"),
        "sum" if !arguments.is_empty() => {
            let numbers: Vec<_> = arguments.iter().map(|number| number_or_text(number)).collect();
            let text = format!("{{\"numbers\":[{}]}}", numbers.join(","));
            RawValue::from_string(text)
                .map(|raw| Some(raw.into()))
                .map_err(|error| Failure::Usage(error.to_string()))
        }
        "run" if !arguments.is_empty() => raw(&json!({ "argv": arguments })).map(Some),
        _ if arguments.is_empty() => Ok(None),
        _ => wrong("--input JSON"),
    }
}

fn field_with(field: &str, argument: &str) -> Result<Json, Failure> {
    let text = format!("{{\"{field}\":{}}}", number_or_text(argument));
    RawValue::from_string(text).map(Into::into).map_err(|error| Failure::Usage(error.to_string()))
}

/// A JSON number with every digit as it was written, or else a JSON string.
fn number_or_text(argument: &str) -> String {
    let is_number = argument.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&RawValue>(argument).is_ok();
    if is_number { argument.to_owned() } else { Value::from(argument).to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn short(kind: &str, arguments: &[&str]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        match short_input(kind, &arguments) {
            Ok(Some(input)) => input.get().to_owned(),
            Ok(None) => "none".to_owned(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn short_forms_stand_for_inputs() {
        assert_eq!(short("fib", &["40"]), r#"{"n":40}"#);
        assert_eq!(short("fib", &["18446744073709551616"]), r#"{"n":18446744073709551616}"#);
        assert_eq!(short("fib", &["x\"y"]), r#"{"n":"x\"y"}"#);
        assert_eq!(short("sum", &["1", "2.50", "-3", "+4"]), r#"{"numbers":[1,2.50,-3,"+4"]}"#);
        assert_eq!(short("sleep", &["1000"]), r#"{"ms":1000}"#);
        assert_eq!(short("burn", &["200"]), r#"{"cpu_ms":200}"#);
        assert_eq!(short("run", &["echo", "-n", "a b"]), r#"{"argv":["echo","-n","a b"]}"#);
        assert_eq!(short("own", &[]), "none");
        assert!(short("own", &["1"]).contains("--input"));
        assert!(short("fib", &["1", "2"]).contains("submit fib N"));
    }

    #[test]
    fn input_that_is_not_json_is_refused_here() {
        assert!(read_input("{").unwrap_err().to_string().contains("not JSON"));
        assert!(read_input("@/nonexistent").unwrap_err().to_string().contains("/nonexistent"));
        assert_eq!(read_input(r#" {"n":1} "#).unwrap().get(), r#"{"n":1}"#);
    }
}
