//! `POST /v1/tasks/batch`: a stream of tasks out, a stream of answers back, side by side.

use crate::{Client, Error, transport::Call};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::Method;
use protocol::{
    batch::{BatchAnswer, BatchLine},
    task::{MAX_BODY_BYTES, MAX_RESULT_BYTES, TaskSpec},
};
use serde::Serialize;
use std::convert::Infallible;
use tokio::sync::mpsc;

/// Lines that wait to be written; [`BatchSender::send`] waits when there are so many.
const WAITING_LINES: usize = 64;
/// Lines that wait already go out together, in parts of about this many bytes.
const PART_BYTES: usize = 16 * 1024;
/// Most bytes of one answer: an input and a result of the largest size, and what is around them.
const MAX_ANSWER_BYTES: usize = MAX_BODY_BYTES + MAX_RESULT_BYTES + 256 * 1024;
const NDJSON: &str = "application/x-ndjson";

/// What the answers of a batch say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// Also when a task is accepted (`?ack=1`); the tasks are `disk` then.
    pub ack: bool,
    /// Only when a task is accepted (`?detach=1`); the tasks are `disk` then.
    pub detach: bool,
}

/// The way in. Dropping it ends the request's body; the answers go on until all lines are answered.
#[derive(Debug)]
pub struct BatchSender {
    lines: mpsc::Sender<Bytes>,
}

/// The way out.
#[derive(Debug)]
pub struct BatchAnswers {
    url: String,
    response: reqwest::Response,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no line end.
    scanned: usize,
    ended: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    r#ref: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(flatten)]
    spec: &'a TaskSpec,
}

impl Client {
    /// Opens a batch. Send lines and read answers side by side (two tasks, or `select!`): the server stops
    /// reading when too many answers are unread, and gives up on a reader that reads nothing for 60 s.
    /// Lines are not kept: once the stream is open it cannot be repeated. Until then it is tried again, at the
    /// next of several masters, when one cannot be reached or refuses.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn batch(&self, options: BatchOptions) -> Result<(BatchSender, BatchAnswers), Error> {
        let mut call = Call::new(Method::POST, ["v1", "tasks", "batch"])
            .header("content-type", NDJSON)?
            .header("accept", "application/x-ndjson, application/problem+json")?;
        if options.ack {
            call = call.query("ack", "1");
        }
        if options.detach {
            call = call.query("detach", "1");
        }
        let (lines, response) = self.transport.stream(call, lines_and_body).await?;
        let url = response.url().origin().ascii_serialization();
        let answers = BatchAnswers { url, response, buffer: BytesMut::new(), scanned: 0, ended: false };
        Ok((BatchSender { lines }, answers))
    }
}

fn lines_and_body() -> (mpsc::Sender<Bytes>, reqwest::Body) {
    let (lines, waiting) = mpsc::channel::<Bytes>(WAITING_LINES);
    let body = stream::unfold(waiting, async |mut waiting| {
        let mut part = BytesMut::from(waiting.recv().await?);
        while part.len() < PART_BYTES
            && let Ok(line) = waiting.try_recv()
        {
            part.extend_from_slice(&line);
        }
        Some((Ok::<_, Infallible>(part.freeze()), waiting))
    });
    (lines, reqwest::Body::wrap_stream(body))
}

impl BatchSender {
    /// Sends one line; waits while too many wait to be written.
    ///
    /// # Errors
    /// [`Error::Config`] if the line is longer than `MAX_BODY_BYTES`, [`Error::BatchClosed`] when the stream
    /// has ended.
    pub async fn send(&self, line: &BatchLine) -> Result<(), Error> {
        let flat = Line {
            r#ref: line.r#ref.as_deref(),
            idempotency_key: line.idempotency_key.as_deref(),
            spec: &line.spec,
        };
        let text = serde_json::to_vec(&flat)
            .map_err(|error| Error::Config(format!("the line cannot be written as JSON: {error}")))?;
        self.send_raw(text).await
    }

    /// Sends one line as it is, as from a file; line ends in it become spaces (in JSON they can only be
    /// white space).
    ///
    /// # Errors
    /// As [`BatchSender::send`].
    pub async fn send_raw(&self, mut text: Vec<u8>) -> Result<(), Error> {
        if text.len() > MAX_BODY_BYTES {
            let bytes = text.len();
            return Err(Error::Config(format!("the line has {bytes} bytes, at most {MAX_BODY_BYTES} go in")));
        }
        for byte in &mut text {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        text.push(b'\n');
        self.lines.send(text.into()).await.map_err(|_| Error::BatchClosed)
    }
}

impl BatchAnswers {
    /// The next answer; `None` once the server has ended the stream in order, which it does after the last
    /// answer. After an error the stream is over.
    ///
    /// Cancel safe: nothing is lost if the future is dropped before it is done.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection breaks, [`Error::Answer`] for a line that cannot be read.
    pub async fn next(&mut self) -> Option<Result<BatchAnswer, Error>> {
        if self.ended {
            return None;
        }
        let answer = self.read().await.transpose();
        self.ended = !matches!(answer, Some(Ok(_)));
        answer
    }

    /// The answers as a stream.
    pub fn into_stream(self) -> impl futures_util::Stream<Item = Result<BatchAnswer, Error>> + Send {
        stream::unfold(self, async |mut answers| answers.next().await.map(|answer| (answer, answers)))
    }

    async fn read(&mut self) -> Result<Option<BatchAnswer>, Error> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + at + 1);
                self.scanned = 0;
                if !line.trim_ascii().is_empty() {
                    return self.parse(&line).map(Some);
                }
                continue;
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_ANSWER_BYTES {
                return Err(self.wrong(format!("a line is longer than {MAX_ANSWER_BYTES} bytes")));
            }
            match self.response.chunk().await {
                Ok(Some(part)) => self.buffer.extend_from_slice(&part),
                Ok(None) if self.buffer.trim_ascii().is_empty() => return Ok(None),
                Ok(None) => return Err(self.wrong("it ends within a line".to_owned())),
                Err(error) => return Err(Error::of_reqwest(self.response.url(), &error, 0)),
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<BatchAnswer, Error> {
        BatchAnswer::parse(line.trim_ascii()).map_err(|error| self.wrong(error.to_string()))
    }

    fn wrong(&self, why: String) -> Error {
        Error::Answer { url: self.url.clone(), status: self.response.status().as_u16(), why }
    }
}
