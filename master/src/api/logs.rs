//! `GET /v1/tasks/{id}/log`: what a task prints, while it runs and after.
//!
//! One answer is about one attempt: its bytes come from the node while it runs, from memory until the end of the
//! task is on disk, and from the store after that. Pieces are fetched as the caller reads, so a slow one holds one
//! piece and nothing more; one that goes away drops the [`Reading`], with everything that belongs to it.

use super::{app::App, body, failure::Failure, params, tasks::visible};
use crate::{auth::Principal, brain::LogAsk, places::Place};
use axum::{
    Extension,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use protocol::{
    NodeId, Problem, RunId, TaskId,
    log::{ATTEMPT_HEADER, LogQuery, OFFSET_HEADER, RUN_HEADER, Stream, Tail},
    work::LogState,
};
use scheduler::{LogPlace, TaskLog};
use session::follow::{Follow, Next};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

/// A node must answer within this, beside the time that it was told to wait for output.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Who is not following waits so long for the channel of a node that is not there now.
const CHANNEL_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks where a log is.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Where the next piece comes from.
#[derive(Debug)]
enum Source {
    /// A node.
    Node(NodeId),
    /// Memory.
    Kept(Arc<TaskLog>),
    /// The store.
    Stored,
}

/// One answer under way.
struct Reading {
    app: App,
    id: TaskId,
    stream: Stream,
    follows: bool,
    follow: Follow,
    /// The run that this is about; none while the task waits for its first.
    run: Option<RunId>,
    source: Option<Source>,
    /// A piece that was fetched for the head of the answer.
    fetched: Option<(Bytes, Next)>,
    over: bool,
    _place: Place<TaskId>,
}

/// `GET /v1/tasks/{id}/log`.
pub(crate) async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let query: LogQuery = body::query(request.uri())?;
    let follows = params::flag("follow", query.follow)?;
    let id: TaskId = params::id(&id, "task")?;
    visible(&app, &principal, id).await?;
    let mut reading = Reading {
        id,
        stream: query.stream.unwrap_or(Stream::Stdout),
        follows,
        follow: Follow::new(follows, query.offset.unwrap_or(0)),
        run: None,
        source: None,
        fetched: None,
        over: false,
        _place: app.log_place(id)?,
        app,
    };
    let shutdown = reading.app.shutdown();
    let attempt = tokio::select! {
        attempt = reading.begin(query.run.map(RunId)) => attempt?,
        () = shutdown.cancelled() => return Err(stopping().into()),
    };
    Ok(reading.into_response(attempt))
}

fn stopping() -> Problem {
    Problem::unavailable("the master is stopping; ask again in a moment, with the offset that was reached")
}

impl Reading {
    /// Finds the log and fetches its first piece, so that the head of the answer can say where it begins. Says
    /// which attempt it is of.
    async fn begin(&mut self, counted_in: Option<RunId>) -> Result<Option<u32>, Failure> {
        let place = self.place().await?;
        let (run, attempt) = match &place {
            Some(LogPlace::Node { run, attempt, .. }) => (Some(*run), Some(*attempt)),
            Some(LogPlace::Waiting(Some(log)) | LogPlace::Ended(Some(log))) => {
                (Some(log.run), Some(log.attempt))
            }
            Some(LogPlace::Waiting(None)) => (None, None),
            Some(LogPlace::Ended(None)) | None => return self.begin_stored(counted_in).await,
        };
        if counted_in.is_some() && run != counted_in {
            self.follow = Follow::new(self.follows, 0);
        }
        match place {
            // The attempt before is over, and the next to come; who is in the middle of it goes on with it.
            Some(LogPlace::Waiting(_)) if self.follows && (run.is_none() || run != counted_in) => {
                self.follow = Follow::new(true, 0);
                self.follow.begin();
                return Ok(None);
            }
            Some(LogPlace::Waiting(None)) => {
                self.over = true;
                return Ok(None);
            }
            Some(place) => {
                self.run = run;
                self.settle(Some(place));
            }
            None => {}
        }
        let give_up = Instant::now() + CHANNEL_WITHIN;
        let mut fetched = self.fetch().await?;
        while fetched.1 == Next::Elsewhere {
            self.look_elsewhere().await?;
            if self.over {
                break;
            }
            fetched = self.fetch().await?;
            if fetched.1 == Next::Elsewhere && Instant::now() >= give_up {
                let why = "the node of this task is not connected now; ask again in a moment";
                return Err(Problem::unavailable(why).into());
            }
        }
        self.fetched = Some(fetched);
        Ok(attempt)
    }

    async fn begin_stored(&mut self, counted_in: Option<RunId>) -> Result<Option<u32>, Failure> {
        self.source = Some(Source::Stored);
        let stored = self.app.stored_log(self.id, self.stream, self.follow.offset()).await?;
        self.run = stored.as_ref().map(|stored| stored.run);
        if counted_in.is_some() && self.run != counted_in {
            self.follow = Follow::new(self.follows, 0);
        }
        self.fetched = Some(self.fetch().await?);
        Ok(stored.map(|stored| stored.attempt))
    }

    async fn place(&self) -> Result<Option<LogPlace>, Failure> {
        let id = self.id;
        self.app.query(move |core, _| core.log(id)).await
    }

    /// Takes the next pieces from there, if it is the run that this is about; else this is over.
    fn settle(&mut self, place: Option<LogPlace>) {
        let (source, run) = match place {
            // The next attempt runs already; of this one the end is still there.
            Some(LogPlace::Node { before: Some(log), .. }) if Some(log.run) == self.run => {
                (Source::Kept(log), self.run)
            }
            Some(LogPlace::Node { node, run, .. }) => (Source::Node(node), Some(run)),
            Some(LogPlace::Waiting(Some(log)) | LogPlace::Ended(Some(log))) => {
                let run = log.run;
                (Source::Kept(log), Some(run))
            }
            Some(LogPlace::Waiting(None)) => {
                self.over = true;
                return;
            }
            // Which run the store's is of is seen as it is read.
            Some(LogPlace::Ended(None)) | None => (Source::Stored, self.run),
        };
        self.over = run != self.run;
        self.source = Some(source);
    }

    async fn look_elsewhere(&mut self) -> Result<(), Failure> {
        sleep(LOOK_AGAIN).await;
        let place = self.place().await?;
        self.settle(place);
        Ok(())
    }

    /// Waits until the task has a run, or has ended without.
    async fn wait_for_start(&mut self) -> Result<(), Failure> {
        loop {
            let changed = self.app.watch(self.id).await?;
            match self.place().await? {
                Some(LogPlace::Waiting(_)) => drop(changed.await),
                place => {
                    self.run = match &place {
                        Some(LogPlace::Node { run, .. }) => Some(*run),
                        Some(LogPlace::Ended(Some(log))) => Some(log.run),
                        _ => None,
                    };
                    self.settle(place);
                    return Ok(());
                }
            }
        }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while !self.over {
            if self.source.is_none() {
                self.wait_for_start().await?;
                continue;
            }
            let (bytes, next) = match self.fetched.take() {
                Some(fetched) => fetched,
                None => self.fetch().await?,
            };
            match next {
                Next::Again => {}
                Next::Done => self.over = true,
                Next::Elsewhere => self.look_elsewhere().await?,
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// One piece from where they come from now.
    async fn fetch(&mut self) -> Result<(Bytes, Next), Failure> {
        let offset = self.follow.offset();
        let (piece, end, state) = match &self.source {
            Some(Source::Node(node)) => return self.ask(*node).await,
            Some(Source::Kept(log)) => {
                let tail = log.tails.of(self.stream);
                (tail.piece(offset), tail.end(), LogState::Ended)
            }
            Some(Source::Stored) | None => {
                let stored = self.app.stored_log(self.id, self.stream, offset).await?;
                match stored.filter(|stored| self.run.is_none_or(|run| run == stored.run)) {
                    Some(stored) => (stored.piece, stored.end, LogState::Ended),
                    // Nothing was printed, or it is not kept.
                    None => (Tail { offset, ..Tail::default() }, offset, LogState::Ended),
                }
            }
        };
        let (piece, next) = self.follow.took(piece, end, state);
        Ok((piece.bytes, next))
    }

    async fn ask(&mut self, node: NodeId) -> Result<(Bytes, Next), Failure> {
        let Some(run) = self.run else { return Ok((Bytes::new(), Next::Done)) };
        let (asked, wait_ms) = (Instant::now(), self.follow.wait_ms());
        let ask = LogAsk { node, run, stream: self.stream, offset: self.follow.offset(), wait_ms };
        let wait = Duration::from_millis(wait_ms);
        let (chunk, bytes) = match timeout(wait + ANSWER_WITHIN, self.app.read_log(ask).await?).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(oneshot::error::RecvError { .. })) => return Ok((Bytes::new(), Next::Elsewhere)),
            Err(_) => {
                return Err(Problem::unavailable(
                    "the node of this task does not answer; it may be an older version, or stopped",
                )
                .into());
            }
        };
        let (piece, next) = self.follow.took(Tail { offset: chunk.offset, bytes }, chunk.end, chunk.state);
        if piece.bytes.is_empty() && next == Next::Again && asked.elapsed() < wait / 2 {
            // A node that has too many who wait: it must not be asked without pause.
            sleep(LOOK_AGAIN).await;
        }
        Ok((piece.bytes, next))
    }

    fn into_response(self, attempt: Option<u32>) -> Response {
        let fetched = self.fetched.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64);
        let offset = self.follow.offset() - fetched;
        let run = self.run.map(|run| run.0);
        let shutdown = self.app.shutdown();
        let pieces = futures_util::stream::unfold(Some(self), move |reading| {
            let shutdown = shutdown.clone();
            async move {
                let mut reading = reading?;
                let next = tokio::select! {
                    biased;
                    next = reading.next() => next,
                    () = shutdown.cancelled() => Err(stopping().into()),
                };
                match next {
                    Ok(bytes) => bytes.map(|bytes| (Ok(bytes), Some(reading))),
                    // The connection breaks: the caller sees that this is not the end, and goes on from there.
                    Err(Failure(problem)) => Some((Err(problem), None)),
                }
            }
        });
        let mut response = Body::from_stream(pieces).into_response();
        let headers = response.headers_mut();
        // Whatever a program prints, nobody is to take it for a page.
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(OFFSET_HEADER, HeaderValue::from(offset));
        if let Some(run) = run {
            headers.insert(RUN_HEADER, HeaderValue::from(run));
        }
        if let Some(attempt) = attempt {
            headers.insert(ATTEMPT_HEADER, HeaderValue::from(attempt));
        }
        response
    }
}
