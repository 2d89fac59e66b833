//! Submit, wait, cancel, list.

use crate::{Client, Error, transport::Call};
use http::Method;
use protocol::{
    TaskId,
    status::Explanation,
    task::{CancelByLabels, CancelledCount, MAX_WAIT_MS, Page, Task, TaskQuery, TaskSpec},
};
use session::retry::Policy;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A long wait is made of requests that wait so long each: a dead connection is noticed soon, and servers
/// between that cut idle requests after a minute do not matter.
const WAIT_STEP: Duration = Duration::from_secs(50);

/// How to submit a task.
#[derive(Clone, Debug, Default)]
pub struct SubmitOptions {
    /// Wait for its end for so long; longer than the server's bound (300 s) is composed of several requests.
    /// Without it, the answer comes once the task is accepted on disk. With it and without a key or
    /// `durability`, the task is `memory`, and is cancelled if this call is dropped while it waits.
    pub wait: Option<Duration>,
    /// The same key and task submitted again within 24 h give the same task. With a key the submit is
    /// repeated when its answer is lost. At most 256 bytes of visible ASCII.
    pub idempotency_key: Option<String>,
}

impl SubmitOptions {
    /// Waits for so long.
    #[must_use]
    pub fn wait(wait: Duration) -> Self {
        Self { wait: Some(wait), idempotency_key: None }
    }

    /// With a new key, so that the submit can be repeated when its answer is lost.
    #[must_use]
    pub fn with_new_key(mut self) -> Self {
        self.idempotency_key = Some(uuid::Uuid::now_v7().to_string());
        self
    }
}

impl Client {
    /// `POST /v1/tasks`. The task may come back unfinished: look at its `state`.
    ///
    /// # Errors
    /// See [`Error`]; 422 for a wrong value, 429 when the queue is full.
    pub async fn submit(&self, spec: &TaskSpec, options: &SubmitOptions) -> Result<Task, Error> {
        let began = Instant::now();
        let mut call = Call::new(Method::POST, ["v1", "tasks"]).json(spec)?;
        if let Some(key) = &options.idempotency_key {
            call = call.header("idempotency-key", key)?.repeatable();
        }
        if let Some(wait) = options.wait {
            call = call.wait(wait.min(Duration::from_millis(MAX_WAIT_MS)));
        }
        let task: Task = self.transport.call(call).await?.json()?;
        match options.wait {
            Some(wait) if !task.state.is_terminal() && began.elapsed() < wait => {
                self.wait_until(task.id, Some(began + wait)).await
            }
            _ => Ok(task),
        }
    }

    /// `GET /v1/tasks/{id}`; with `wait`, answers once the task has ended or that time is over. A wait
    /// outlives a restart of the master (it is tried again for 60 s).
    ///
    /// # Errors
    /// See [`Error`]; 404 for an unknown id, 410 for one no longer kept.
    pub async fn task(&self, id: TaskId, wait: Option<Duration>) -> Result<Task, Error> {
        match wait {
            Some(wait) => self.wait_until(id, Some(Instant::now() + wait)).await,
            None => {
                let call = Call::new(Method::GET, ["v1".into(), "tasks".into(), id_part(id)]);
                self.transport.call(call).await?.json()
            }
        }
    }

    /// The task as it is now; tried again for 60 s.
    pub(crate) async fn task_patiently(&self, id: TaskId) -> Result<Task, Error> {
        let call = Call::new(Method::GET, ["v1".into(), "tasks".into(), id_part(id)]);
        self.transport.call(call.retry(Policy::PATIENT)).await?.json()
    }

    /// Waits for the task's end, however long it takes.
    ///
    /// # Errors
    /// As [`Client::task`].
    pub async fn wait_for_end(&self, id: TaskId) -> Result<Task, Error> {
        self.wait_until(id, None).await
    }

    async fn wait_until(&self, id: TaskId, until: Option<Instant>) -> Result<Task, Error> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let step = left.map_or(WAIT_STEP, |left| left.min(WAIT_STEP));
            let call = Call::new(Method::GET, ["v1".into(), "tasks".into(), id_part(id)]);
            let asked = Instant::now();
            let task: Task = self.transport.call(call.wait(step).retry(Policy::PATIENT)).await?.json()?;
            if task.state.is_terminal() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(task);
            }
            // A server that does not wait must not be asked without pause.
            if asked.elapsed() < step / 2 {
                tokio::time::sleep(Duration::from_millis(200).min(step)).await;
            }
        }
    }

    /// `DELETE /v1/tasks/{id}`: cancels it.
    ///
    /// # Errors
    /// See [`Error`]; 409 when it has ended.
    pub async fn cancel(&self, id: TaskId) -> Result<Task, Error> {
        let call = Call::new(Method::DELETE, ["v1".into(), "tasks".into(), id_part(id)]);
        self.transport.call(call).await?.json()
    }

    /// `POST /v1/tasks/cancel`: cancels all tasks that have all of these labels; says how many.
    ///
    /// # Errors
    /// See [`Error`]; 422 when there is no label.
    pub async fn cancel_labels(&self, labels: &BTreeMap<String, String>) -> Result<u64, Error> {
        let body = CancelByLabels { labels: labels.clone() };
        let call = Call::new(Method::POST, ["v1", "tasks", "cancel"]).json(&body)?.repeatable();
        let count: CancelledCount = self.transport.call(call).await?.json()?;
        Ok(count.cancelled)
    }

    /// `GET /v1/tasks`: one page, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tasks(&self, query: &TaskQuery) -> Result<Page<Task>, Error> {
        let TaskQuery { state, kind, node, label, limit, cursor, full } = query.clone();
        let pairs = [
            ("state", state.map(|state| state.as_str().to_owned())),
            ("kind", kind),
            ("node", node.map(|node| node.to_string())),
            ("label", label),
            ("limit", limit.map(|limit| limit.to_string())),
            ("cursor", cursor),
            ("full", full.map(|full| full.to_string())),
        ];
        let mut call = Call::new(Method::GET, ["v1", "tasks"]);
        call.query.extend(pairs.into_iter().filter_map(|(name, value)| Some((name, value?))));
        self.transport.call(call).await?.json()
    }

    /// `GET /v1/tasks/{id}/explain`: why this node, or why still queued.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn explain(&self, id: TaskId) -> Result<Explanation, Error> {
        let call = Call::new(Method::GET, ["v1".into(), "tasks".into(), id_part(id), "explain".into()]);
        self.transport.call(call).await?.json()
    }
}

fn id_part(id: TaskId) -> std::borrow::Cow<'static, str> {
    id.to_string().into()
}
