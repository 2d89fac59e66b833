//! `evenkeel submit --batch`: a stream of tasks out, a stream of results back.
//!
//! Every line gets a label `batch=<id>`, by which its tasks are found and cancelled later, unless it has one
//! of that name or an idempotency key (the same key with another body would be refused).

use super::waiting::SECOND_SIGNAL_WITHIN;
use crate::{exit::Failure, output};
use client::{
    Client,
    batch::{BatchOptions, BatchSender},
};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use protocol::{
    batch::{BatchAnswer, BatchEvent},
    task::{MAX_BODY_BYTES, MAX_LABELS, TaskState},
};
use serde_json::value::RawValue;
use service::Shutdown;
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    accepted: u64,
    succeeded: u64,
    failed: u64,
    refused: u64,
}

impl Tally {
    fn count(&mut self, event: &BatchEvent) {
        match event {
            BatchEvent::Accepted { .. } => self.accepted += 1,
            BatchEvent::Finished { task } if task.state == TaskState::Succeeded => self.succeeded += 1,
            BatchEvent::Finished { .. } => self.failed += 1,
            BatchEvent::Error { .. } => self.refused += 1,
        }
    }

    const fn answered(&self) -> u64 {
        self.accepted + self.succeeded + self.failed + self.refused
    }

    fn message(&self) -> String {
        format!("{} failed, {} refused", self.failed, self.refused)
    }
}

/// A progress bar on standard error; without a known length it counts. Shows nothing where standard error is
/// no terminal.
pub(crate) fn progress(length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{bar:40} {pos}/{len} {rate} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} {rate} {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            let _ = write!(text, "{:.0}/s", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Sends the lines of a file (`-`: standard input), prints the answers as they come. `flags` are those by
/// which another command finds the master. The first Ctrl-C leaves the tasks running, the second cancels
/// those with the batch's label.
///
/// # Errors
/// [`Failure::TaskEnded`] if a task failed or a line was refused, [`Failure::Usage`] if all lines were.
pub(crate) async fn run(
    client: &Client,
    file: &Path,
    detach: bool,
    flags: &str,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    shutdown.signals_that_do_not_kill(2);
    let (input, length) = open(file).await?;
    let batch = new_id();
    let how_to_cancel = format!("evenkeel task cancel{flags} --label {LABEL}={batch}");
    let (sender, mut answers) = client.batch(BatchOptions { ack: false, detach }).await?;
    let sent = Arc::new(AtomicU64::new(0));
    let mut sending = tokio::spawn(send_lines(sender, input, batch.clone(), Arc::clone(&sent)));
    let (bar, mut tally, mut all_sent) = (progress(length), Tally::default(), false);
    let token = shutdown.token();
    let ended = loop {
        tokio::select! {
            answer = answers.next() => match answer {
                Some(Ok(answer)) => {
                    tally.count(&answer.event);
                    if let Err(failure) = show(&bar, &tally, &answer) {
                        break Err(failure);
                    }
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
            result = &mut sending, if !all_sent => {
                all_sent = true;
                match result {
                    Ok(Ok(())) => {}
                    // The answers say why.
                    Ok(Err(Failure::Client(client::Error::BatchClosed))) => {}
                    Ok(Err(failure)) => break Err(failure),
                    Err(error) => break Err(Failure::Other(error.to_string())),
                }
            }
            () = token.cancelled() => break Err(Failure::Interrupted(String::new())),
        }
    };
    sending.abort();
    bar.finish_and_clear();
    output::say(format_args!(
        "{} sent, {} accepted, {} succeeded, {} failed, {} refused",
        output::counted(sent.load(Ordering::Relaxed), "line"),
        tally.accepted,
        tally.succeeded,
        tally.failed,
        tally.refused
    ));
    let missing = sent.load(Ordering::Relaxed).saturating_sub(tally.answered());
    if matches!(ended, Err(Failure::Interrupted(_))) {
        // The end of the stream cancels what the master has not written down yet.
        drop(answers);
        return interrupted(client, missing + tally.accepted, &batch, &how_to_cancel, shutdown).await;
    }
    // A reader that went away (`| head`) and a broken connection leave tasks behind too.
    if detach && tally.accepted > 0 || ended.is_err() && missing > 0 {
        output::say(format_args!("to cancel what has not ended: {how_to_cancel}"));
    }
    ended?;
    if missing > 0 {
        return Err(Failure::Other(format!("the master ended the stream with {missing} lines unanswered")));
    }
    match tally {
        Tally { refused: 1.., failed: 0, succeeded: 0, accepted: 0 } => {
            Err(Failure::Usage("every line was refused; the answers say why".to_owned()))
        }
        Tally { refused: 0, failed: 0, .. } => Ok(()),
        _ => Err(Failure::TaskEnded),
    }
}

/// Says how many tasks go on, and cancels them if a second signal comes soon.
async fn interrupted(
    client: &Client,
    left: u64,
    batch: &str,
    how_to_cancel: &str,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    if left == 0 {
        return Err(Failure::Interrupted("interrupted; no task of this batch goes on".to_owned()));
    }
    output::say(format_args!(
        "interrupted; up to {} of this batch go on; press Ctrl-C again now to cancel them, or later: {how_to_cancel}",
        output::counted(left, "task")
    ));
    if tokio::time::timeout(SECOND_SIGNAL_WITHIN, shutdown.signalled(2)).await.is_ok() {
        let cancelled = client.cancel_labels(&BTreeMap::from([(LABEL.to_owned(), batch.to_owned())])).await?;
        let cancelled = output::counted(cancelled, "task");
        return Err(Failure::Interrupted(format!("{cancelled} cancelled")));
    }
    Err(Failure::Interrupted(String::new()))
}

/// Label of the tasks of one batch.
const LABEL: &str = "batch";

/// A name for a batch: 48 random bits are enough for the tasks that one master remembers.
fn new_id() -> String {
    // The first digits of such an id are the time.
    uuid::Uuid::now_v7().simple().to_string().chars().skip(20).collect()
}

/// The line with the batch's label, or as it is where it cannot have it. What is no such object is left for
/// the master to refuse.
fn labelled(line: Vec<u8>, batch: &str) -> Vec<u8> {
    add_label(&line, batch).filter(|text| text.len() <= MAX_BODY_BYTES).map_or(line, String::into_bytes)
}

fn add_label(line: &[u8], batch: &str) -> Option<String> {
    // Values are kept as their text, so that no number loses a digit.
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(line).ok()?;
    let mut labels: BTreeMap<String, String> = match fields.get("labels") {
        Some(labels) => serde_json::from_str(labels.get()).ok()?,
        None => BTreeMap::new(),
    };
    if fields.contains_key("idempotency_key") || labels.contains_key(LABEL) || labels.len() >= MAX_LABELS {
        return None;
    }
    labels.insert(LABEL.to_owned(), batch.to_owned());
    let labels = serde_json::value::to_raw_value(&labels).ok()?;
    fields.insert("labels".to_owned(), &labels);
    serde_json::to_string(&fields).ok()
}

/// Prints an answer, above the bar where there is one.
fn show(bar: &ProgressBar, tally: &Tally, answer: &BatchAnswer) -> Result<(), Failure> {
    if bar.is_hidden() {
        return print(answer);
    }
    bar.set_position(tally.answered());
    bar.set_message(tally.message());
    bar.suspend(|| print(answer))
}

fn print(answer: &BatchAnswer) -> Result<(), Failure> {
    let unwritable =
        |why: &dyn std::fmt::Display| Failure::Other(format!("an answer cannot be written as JSON: {why}"));
    let line = answer.to_line().map_err(|error| unwritable(&error))?;
    output::data(String::from_utf8(line).map_err(|error| unwritable(&error))?)
}

type Input = Box<dyn AsyncBufRead + Send + Unpin>;

/// The input, and how many lines it has where that can be told.
async fn open(file: &Path) -> Result<(Input, Option<u64>), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(BufReader::new(tokio::io::stdin())), None));
    }
    let wrong = |error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", file.display()));
    let opened = tokio::fs::File::open(file).await.map_err(wrong)?;
    let length = if opened.metadata().await.map_err(wrong)?.is_file() {
        let mut counted = BufReader::new(tokio::fs::File::open(file).await.map_err(wrong)?);
        let mut lines = 0;
        while let Some(line) = next_line(&mut counted).await.map_err(wrong)? {
            lines += u64::from(!line.trim_ascii().is_empty());
        }
        Some(lines)
    } else {
        None
    };
    Ok((Box::new(BufReader::new(opened)), length))
}

/// The next line, cut after one byte more than a line may have; `None` at the end.
async fn next_line(input: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let most = MAX_BODY_BYTES as u64 + 2;
    let read = (&mut *input).take(most).read_until(b'\n', &mut line).await?;
    Ok((read > 0).then_some(line))
}

async fn send_lines(
    sender: BatchSender,
    mut input: Input,
    batch: String,
    sent: Arc<AtomicU64>,
) -> Result<(), Failure> {
    let wrong = |error: std::io::Error| Failure::Usage(format!("the lines cannot be read: {error}"));
    let mut number = 0_u64;
    while let Some(mut line) = next_line(&mut input).await.map_err(wrong)? {
        number += 1;
        while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            line.pop();
        }
        if line.len() > MAX_BODY_BYTES {
            return Err(Failure::Usage(format!(
                "line {number} is longer than {MAX_BODY_BYTES} bytes; the lines before it were sent, none after it"
            )));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        sender.send_raw(labelled(line, &batch)).await?;
        sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lines_get_the_label_of_their_batch_unless_they_have_one_or_a_key() {
        let with = |line: &str| String::from_utf8(labelled(line.as_bytes().to_vec(), "b1")).unwrap();
        assert_eq!(
            with(r#"{"kind":"sum","input":{"numbers":[1.0000000000000000000001]}}"#),
            r#"{"input":{"numbers":[1.0000000000000000000001]},"kind":"sum","labels":{"batch":"b1"}}"#
        );
        assert_eq!(
            with(r#"{"kind":"fib","labels":{"a":"b"}}"#),
            r#"{"kind":"fib","labels":{"a":"b","batch":"b1"}}"#
        );
        for line in [
            r#"{"kind":"fib","labels":{"batch":"mine"}}"#,
            r#"{"kind":"fib","idempotency_key":"k"}"#,
            r#"{"kind":"fib","labels":1}"#,
            "[]",
            "{",
        ] {
            assert_eq!(with(line), line);
        }
    }

    #[tokio::test]
    async fn lines_are_read_one_by_one_and_never_past_their_bound() {
        let mut input = BufReader::new(&b"one\n\ntwo"[..]);
        assert_eq!(next_line(&mut input).await.unwrap().unwrap(), b"one\n");
        assert_eq!(next_line(&mut input).await.unwrap().unwrap(), b"\n");
        assert_eq!(next_line(&mut input).await.unwrap().unwrap(), b"two");
        assert_eq!(next_line(&mut input).await.unwrap(), None);

        let long = vec![b'x'; 3 * MAX_BODY_BYTES];
        let line = next_line(&mut BufReader::new(&long[..])).await.unwrap().unwrap();
        assert!(line.len() > MAX_BODY_BYTES && line.len() <= MAX_BODY_BYTES + 2);
    }

    #[tokio::test]
    async fn the_lines_of_a_file_are_counted_for_the_progress_bar() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.ndjson");
        std::fs::write(&path, "{}\n\n{}\n{}").unwrap();
        assert_eq!(open(&path).await.unwrap().1, Some(3));
        assert!(open(Path::new("/nonexistent")).await.is_err());
    }
}
