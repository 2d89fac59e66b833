//! `GET /v1/tasks/{id}/log`: what a task prints, one answer at a time or all of it.

use crate::{Client, Error, transport::Call};
use bytes::Bytes;
use http::{HeaderMap, Method, header::ACCEPT};
use protocol::{
    TaskId,
    log::{ATTEMPT_HEADER, LogQuery, OFFSET_HEADER, RUN_HEADER, Stream},
};
use session::retry::Policy;
use std::{str::FromStr, time::Duration};

/// Between two answers about a task that has not ended.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections that break one after the other without a byte in between, after which following gives up.
const MAX_BREAKS: u32 = 20;

/// One answer: bytes of one attempt that follow on each other.
#[derive(Debug)]
pub struct LogAnswer {
    /// Offset of the first byte.
    pub offset: u64,
    /// The run that it is of; none if there is none yet, or nothing is kept.
    pub run: Option<u64>,
    /// The attempt that it is of, counted from 1.
    pub attempt: Option<u32>,
    response: reqwest::Response,
}

impl LogAnswer {
    /// The next bytes; `None` at the end of the answer.
    ///
    /// Cancel safe: nothing is lost if the future is dropped before it is done.
    ///
    /// # Errors
    /// [`Error::Broken`] if the connection broke before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.response.chunk().await.map_err(|error| Error::of_reqwest(self.response.url(), &error, 0))
    }
}

/// A part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPart {
    /// What follows was printed by this attempt, from its beginning; the attempt before is over.
    Attempt(u32),
    /// So many bytes are missing here: they were printed faster than they were read, or are not kept any more.
    Dropped(u64),
    /// What was printed.
    Bytes(Bytes),
}

/// Reads the log of a task, over as many answers as it takes.
#[derive(Debug)]
pub struct LogReader {
    client: Client,
    id: TaskId,
    stream: Stream,
    follow: bool,
    run: Option<u64>,
    offset: u64,
    answer: Option<LogAnswer>,
    /// What is told before the bytes of the answer.
    notes: Vec<LogPart>,
    asked: bool,
    /// Whether the task had ended before the answer was asked for: then it is the last.
    last: bool,
    breaks: u32,
}

impl Client {
    /// One answer of `GET /v1/tasks/{id}/log`. It is tried again as any read until it begins.
    ///
    /// # Errors
    /// See [`Error`]; 404 for an unknown task, 429 when too many read logs.
    pub async fn task_log(&self, id: TaskId, query: &LogQuery) -> Result<LogAnswer, Error> {
        self.open_log(id, query, None).await
    }

    /// Reads what a task has printed, from its first byte that is kept; with `follow` goes on until the task has
    /// ended, through further attempts, restarts of the master (for up to 60 s each) and broken connections.
    #[must_use]
    pub fn log_reader(&self, id: TaskId, stream: Stream, follow: bool) -> LogReader {
        LogReader {
            client: self.clone(),
            id,
            stream,
            follow,
            run: None,
            offset: 0,
            answer: None,
            notes: Vec::new(),
            asked: false,
            last: false,
            breaks: 0,
        }
    }

    async fn open_log(
        &self,
        id: TaskId,
        query: &LogQuery,
        retry: Option<Policy>,
    ) -> Result<LogAnswer, Error> {
        let LogQuery { stream, follow, offset, run } = *query;
        let path = ["v1".into(), "tasks".into(), id.to_string().into(), "log".into()];
        let mut call = Call::new(Method::GET, path as [std::borrow::Cow<'_, str>; 4]);
        call.retry = retry;
        call = call.header(ACCEPT.as_str(), "application/octet-stream, application/problem+json")?;
        let pairs = [
            ("stream", stream.map(|stream| stream.as_str().to_owned())),
            ("follow", follow.map(|follow| follow.to_string())),
            ("offset", offset.map(|offset| offset.to_string())),
            ("run", run.map(|run| run.to_string())),
        ];
        call.query.extend(pairs.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let response = self.transport.open(&call).await?;
        let headers = response.headers();
        Ok(LogAnswer {
            offset: number(headers, OFFSET_HEADER).unwrap_or(0),
            run: number(headers, RUN_HEADER),
            attempt: number(headers, ATTEMPT_HEADER),
            response,
        })
    }
}

fn number<T: FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl LogReader {
    /// The next part; `None` when all was read and, if this follows, the task has ended.
    ///
    /// # Errors
    /// As [`Client::task_log`]; [`Error::Broken`] without `follow`.
    pub async fn next(&mut self) -> Result<Option<LogPart>, Error> {
        loop {
            if let Some(note) = self.notes.pop() {
                return Ok(Some(note));
            }
            let Some(answer) = &mut self.answer else {
                if self.asked && (self.last || !self.follow) {
                    return Ok(None);
                }
                self.ask().await?;
                continue;
            };
            let waited_for_start = answer.run.is_none();
            match answer.next().await {
                // Of which run these are is told by the head of the next answer, which has them too.
                Ok(Some(_)) if waited_for_start => self.answer = None,
                Ok(Some(bytes)) => {
                    self.breaks = 0;
                    self.offset += bytes.len() as u64;
                    return Ok(Some(LogPart::Bytes(bytes)));
                }
                Ok(None) => self.answer = None,
                Err(error) => {
                    self.breaks += 1;
                    if !self.follow || self.breaks > MAX_BREAKS {
                        return Err(error);
                    }
                    tracing::debug!(%error, offset = self.offset, "the log is read on from there");
                    (self.answer, self.last) = (None, false);
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.asked, true) {
            tokio::time::sleep(PAUSE).await;
        }
        let mut retry = None;
        if self.follow {
            retry = Some(Policy::PATIENT);
            // Asked before the log: what is answered after that is all there will be.
            self.last = self.client.task_patiently(self.id).await?.state.is_terminal();
        }
        let query = LogQuery {
            stream: Some(self.stream),
            follow: self.follow.then_some(1),
            offset: Some(self.offset),
            run: self.run,
        };
        let answer = self.client.open_log(self.id, &query, retry).await?;
        // The last comes out first.
        let goes_on = self.run.is_none() || answer.run.is_none() || self.run == answer.run;
        let missing = answer.offset.saturating_sub(if goes_on { self.offset } else { 0 });
        if missing > 0 {
            self.notes.push(LogPart::Dropped(missing));
        }
        if let (false, Some(attempt)) = (goes_on, answer.attempt) {
            self.notes.push(LogPart::Attempt(attempt));
        }
        self.offset = answer.offset;
        self.run = answer.run.or(self.run);
        self.answer = Some(answer);
        Ok(())
    }
}
