//! `evenkeel submit --batch`: a stream of tasks out, a stream of results back.

use crate::{exit::Failure, output};
use client::{
    Client,
    batch::{BatchOptions, BatchSender},
};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::{
    batch::{BatchAnswer, BatchEvent},
    task::{MAX_BODY_BYTES, TaskState},
};
use service::Shutdown;
use std::{
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
        Some(length) => (ProgressBar::new(length), "{bar:40} {pos}/{len} {per_sec} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} {per_sec} {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Sends the lines of a file (`-`: standard input), prints the answers as they come.
///
/// # Errors
/// [`Failure::TaskEnded`] if a task failed or a line was refused.
pub(crate) async fn run(
    client: &Client,
    file: &Path,
    detach: bool,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let (input, length) = open(file).await?;
    let (sender, mut answers) = client.batch(BatchOptions { ack: false, detach }).await?;
    let sent = Arc::new(AtomicU64::new(0));
    let mut sending = tokio::spawn(send_lines(sender, input, Arc::clone(&sent)));
    let (bar, mut tally, mut all_sent) = (progress(length), Tally::default(), false);
    let token = shutdown.token();
    let ended = loop {
        tokio::select! {
            answer = answers.next() => match answer {
                Some(Ok(answer)) => {
                    tally.count(&answer.event);
                    bar.set_position(tally.answered());
                    bar.set_message(tally.message());
                    if let Err(failure) = bar.suspend(|| print(&answer)) {
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
            () = token.cancelled() => break Err(Failure::Interrupted(
                "interrupted; tasks without an answer that are not on disk yet are cancelled".to_owned(),
            )),
        }
    };
    sending.abort();
    bar.finish_and_clear();
    output::say(format_args!(
        "{} lines sent, {} accepted, {} succeeded, {} failed, {} refused",
        sent.load(Ordering::Relaxed),
        tally.accepted,
        tally.succeeded,
        tally.failed,
        tally.refused
    ));
    ended?;
    let missing = sent.load(Ordering::Relaxed).saturating_sub(tally.answered());
    if missing > 0 {
        return Err(Failure::Other(format!("the master ended the stream with {missing} lines unanswered")));
    }
    if tally.failed + tally.refused > 0 { Err(Failure::TaskEnded) } else { Ok(()) }
}

fn print(answer: &BatchAnswer) -> Result<(), Failure> {
    let line = serde_json::to_string(answer);
    output::data(
        line.map_err(|error| Failure::Other(format!("an answer cannot be written as JSON: {error}")))?,
    )
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

async fn send_lines(sender: BatchSender, mut input: Input, sent: Arc<AtomicU64>) -> Result<(), Failure> {
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
        sender.send_raw(line).await?;
        sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

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
