//! `POST /v1/tasks/batch`: many tasks in, their answers out as they come, one JSON object a line.
//!
//! One task per stream joins three flows: lines from the caller, answers from the scheduler, lines to
//! the caller. It reads no new line while a line waits for room in the scheduler's queue, while too
//! many answers are unread, or while too many lines are in flight. Of a task that ends while too much is
//! unread only the id is kept, and its answer is read from the store when there is room again. (One that
//! was never stored was submitted less than 100 ms before, and its answer goes past the bound.) When the
//! caller goes away (or reads nothing for the server's write-stall bound) the stream ends; what was accepted
//! goes on.

use super::{
    app::{App, Replies},
    body::{self, check_media_type},
    failure::Failure,
    lines::Lines,
    outflow::{Outflow, outflow},
    params, spec, tasks,
};
use crate::{auth::Principal, guard::RequestId};
use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, header};
use protocol::{
    Problem, TaskId,
    batch::{BatchAnswer, BatchEvent, BatchLine},
    ndjson::{Line, check_line, read_line},
    task::{MAX_BODY_BYTES, Task},
};
use scheduler::{
    effect::{Answer, Refusal},
    event::{ClientId, Event, ReplyId, Submission, Wait},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Media type of a batch, both ways.
const NDJSON: &str = "application/x-ndjson";
/// Most lines of one stream that are not answered for good.
const MAX_IN_FLIGHT: usize = 100_000;
/// How long a stream may bring no line while it waits for no answer either.
const IDLE: Duration = Duration::from_secs(300);
/// How long the stream waits before it offers lines again that found the queue full.
const FULL_RETRY: Duration = Duration::from_millis(50);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchQuery {
    ack: Option<u8>,
    detach: Option<u8>,
}

/// `POST /v1/tasks/batch`.
pub(crate) async fn batch(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let query: BatchQuery = body::query(&parts.uri)?;
    check_media_type(&parts.headers, NDJSON)?;
    let mode = Mode { ack: params::flag("ack", query.ack)?, detach: params::flag("detach", query.detach)? };
    let (out, out_body) = outflow();
    let stream = Stream {
        app: app.clone(),
        principal,
        request_id,
        mode,
        out,
        pending: FuturesUnordered::new(),
        refused: Vec::new(),
        later: VecDeque::new(),
        look_at: Instant::now(),
    };
    app.spawn(stream.run(Lines::new(body, MAX_BODY_BYTES, app.intake().begin())));
    let mut response = Response::new(out_body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    Ok(response)
}

#[derive(Clone, Copy)]
struct Mode {
    ack: bool,
    detach: bool,
}

/// A line that was offered to the scheduler, kept so that it can be offered again if the queue is full.
struct Offered {
    number: u64,
    name: Option<String>,
    submission: Box<Submission>,
}

/// A line whose answer the store has, and nobody could take yet.
struct Later {
    number: u64,
    name: Option<String>,
    id: TaskId,
}

type NextAnswer = BoxFuture<'static, (Offered, Option<Answer>, Replies)>;

struct Stream {
    app: App,
    principal: Principal,
    request_id: RequestId,
    mode: Mode,
    out: Outflow,
    pending: FuturesUnordered<NextAnswer>,
    // Lines that found the queue full.
    refused: Vec<Offered>,
    later: VecDeque<Later>,
    // When the first of those is read.
    look_at: Instant,
}

impl Stream {
    async fn run(mut self, mut lines: Lines) {
        let mut open = true;
        let mut retry_at = Instant::now();
        let shutdown = self.app.shutdown();
        let over = self.principal.over().cloned().unwrap_or_default();
        loop {
            let waits = !self.pending.is_empty() || !self.refused.is_empty() || !self.later.is_empty();
            if !open && !waits {
                return;
            }
            let room = self.out.has_room();
            let behind = !self.refused.is_empty() || !self.later.is_empty();
            let may_read = open && room && !behind && self.pending.len() < MAX_IN_FLIGHT;
            tokio::select! {
                () = shutdown.cancelled() => return,
                // No line more is taken; the guard ends the answer.
                () = over.cancelled() => return self.out.closed().await,
                () = self.out.closed() => return,
                line = lines.next(), if may_read => match line {
                    Ok(Some(line)) => self.take(line).await,
                    Ok(None) => open = false,
                    // The connection broke inside the body: nobody is there to be answered.
                    Err(_) => return,
                },
                Some((offered, answer, replies)) = self.pending.next(), if !self.pending.is_empty() => {
                    if self.answered(offered, answer, replies).await {
                        retry_at = Instant::now() + FULL_RETRY;
                    }
                },
                () = self.out.room(), if !room => {}
                () = tokio::time::sleep_until(self.look_at), if room && !self.later.is_empty() => {
                    self.look_up().await;
                }
                () = tokio::time::sleep_until(retry_at), if !self.refused.is_empty() => {
                    for offered in std::mem::take(&mut self.refused) {
                        self.offer(offered).await;
                    }
                }
                () = tokio::time::sleep(IDLE), if open && !waits => open = false,
            }
        }
    }

    async fn take(&mut self, line: Line) {
        let Line { number, text } = line;
        let mut line = match text.and_then(|text| read_line(&text)) {
            Ok(line) => line,
            Err(problem) => return self.fault(number, None, problem),
        };
        let name = line.r#ref.take();
        let client = self.principal.client();
        match submission(&self.app, client, self.mode, line).await {
            Ok(submission) => self.offer(Offered { number, name, submission }).await,
            Err(problem) => self.fault(number, name, problem),
        }
    }

    async fn offer(&mut self, mut offered: Offered) {
        let (reply, replies) = self.app.reply();
        offered.submission.reply = reply;
        let event = Event::Submit(offered.submission.clone());
        match self.app.tell(event).await {
            Ok(()) => self.expect(offered, replies),
            Err(Failure(problem)) => self.fault(offered.number, offered.name, problem),
        }
    }

    fn expect(&self, offered: Offered, mut replies: Replies) {
        let next = async move {
            let answer = replies.next().await;
            (offered, answer, replies)
        };
        self.pending.push(next.boxed());
    }

    /// Passes an answer on; true if the queue was full, so that the line has to wait.
    async fn answered(&mut self, offered: Offered, answer: Option<Answer>, replies: Replies) -> bool {
        let (number, name) = (offered.number, offered.name.clone());
        match answer {
            Some(Answer::Accepted(task)) => {
                self.say(number, name, BatchEvent::Accepted { id: task.id });
                if !self.mode.detach {
                    self.expect(offered, replies);
                }
            }
            Some(Answer::Finished(task) | Answer::Unfinished(task) | Answer::Cancelled(task)) => {
                self.finished(number, name, task).await;
            }
            Some(Answer::Stored(id)) => self.stored(number, name, id).await,
            Some(Answer::Refused(Refusal::QueueFull { .. })) => {
                self.refused.push(offered);
                return true;
            }
            Some(Answer::Refused(refusal)) => self.fault(number, name, Failure::from(refusal).0),
            Some(other) => self.fault(number, name, self.app.unexpected(&other).0),
            None => self.fault(number, name, Problem::unavailable("the master is stopping")),
        }
        false
    }

    /// Passes an end on, now or once there is room.
    async fn finished(&mut self, number: u64, name: Option<String>, task: Arc<Task>) {
        let id = task.id;
        if !self.out.has_room() && task.state.is_terminal() {
            // Not held meanwhile: the store has it. A brain that has ended ends the stream too.
            if self.app.query(move |core, _| core.is_stored(id)).await.unwrap_or(false) {
                return self.later.push_back(Later { number, name, id });
            }
        }
        self.say_finished(number, name, task);
    }

    /// Reads the answer of the line that has waited longest for room. One look-up at a time, so that a stream
    /// does not crowd the store.
    async fn look_up(&mut self) {
        let Some(Later { number, name, id }) = self.later.pop_front() else { return };
        match tasks::visible(&self.app, &self.principal, id).await {
            Ok(task) => self.say_finished(number, name, task),
            // The store fails; what it has is there later.
            Err(Failure(problem)) if problem.status == 503 => {
                self.look_at = Instant::now() + FULL_RETRY;
                self.later.push_front(Later { number, name, id });
            }
            Err(Failure(problem)) => self.fault(number, name, problem),
        }
    }

    /// Answers a line whose key stands for an ended task that only the store still has. One look-up at a
    /// time, so that a stream that is sent again whole does not crowd the store.
    async fn stored(&mut self, number: u64, name: Option<String>, id: TaskId) {
        let Mode { ack, detach } = self.mode;
        if ack || detach {
            self.say(number, name.clone(), BatchEvent::Accepted { id });
        }
        if detach {
            return;
        }
        if !self.out.has_room() {
            return self.later.push_back(Later { number, name, id });
        }
        match self.app.keyed_task(id).await {
            Ok(task) => self.say_finished(number, name, task),
            Err(Failure(problem)) => self.fault(number, name, problem),
        }
    }

    fn say_finished(&self, number: u64, name: Option<String>, task: Arc<Task>) {
        self.say(number, name, BatchEvent::Finished { task: Box::new(Arc::unwrap_or_clone(task)) });
    }

    fn fault(&self, number: u64, name: Option<String>, mut problem: Problem) {
        problem.request_id.clone_from(&self.request_id.0);
        self.say(number, name, BatchEvent::Error { problem });
    }

    fn say(&self, line: u64, name: Option<String>, event: BatchEvent) {
        // Structs of strings and numbers: serialising them to memory cannot fail.
        let mut text = BatchAnswer { r#ref: name, line, event }.to_line().unwrap_or_default();
        text.push(b'\n');
        self.out.put(text);
    }
}

async fn submission(
    app: &App,
    client: ClientId,
    Mode { ack, detach }: Mode,
    line: BatchLine,
) -> Result<Box<Submission>, Problem> {
    let durability = check_line(&line, ack || detach)?;
    let BatchLine { idempotency_key, spec, .. } = line;
    spec::check_input(app, &spec).await.map_err(|failure| failure.0)?;
    let key = idempotency_key.map(|key| (Arc::from(key), spec::fingerprint(&spec)));
    Ok(Box::new(Submission {
        id: TaskId(uuid::Uuid::now_v7()),
        spec,
        durability,
        client,
        key,
        // Set anew each time that the line is offered.
        reply: ReplyId(0),
        wait: if detach { Wait::Accepted } else { Wait::Stream { ack } },
    }))
}
