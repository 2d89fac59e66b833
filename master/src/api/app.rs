//! What every handler has: the brain, the store, and the tables that live beside them.

use super::{failure::Failure, intake::Intake, routes::Index, schemas::Schemas};
use crate::{
    auth::{Held, Principal, TokenHash, Tokens},
    brain::{Brain, LogAsk, Unavailable},
    hosts::Hosts,
    lead::Tenure,
    places::{Place, Places},
    pools::{Board, WriteIf},
    store::{Store, StoredPiece},
};
use bytes::Bytes;
use protocol::{
    NodeId, Problem, TaskId,
    auth::TokenInfo,
    log::Stream,
    pool::{ManagerHello, ManagerView, PoolSpec, PoolView},
    task::Task,
    work::LogChunk,
};
use scheduler::{
    Core, TaskFilter,
    effect::Answer,
    event::{ClientId, Event, Now, ReplyId},
};
use service::Secret;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use crate::brain::Replies;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

/// What an [`App`] is made of.
pub(crate) struct Parts {
    /// The task that owns the scheduler.
    pub(crate) brain: Brain,
    /// What outlives the process.
    pub(crate) store: Arc<dyn Store>,
    /// The tokens that are valid.
    pub(crate) tokens: Tokens,
    /// The pools.
    pub(crate) pools: Board,
    /// One writer of pools at a time, so that a condition holds until its write is committed.
    pub(crate) pool_writer: tokio::sync::Mutex<()>,
    /// The hosts that are answered to.
    pub(crate) hosts: Hosts,
    /// What each route asks for.
    pub(crate) routes: Index,
    /// Whether requests without a token may do everything (`--insecure-loopback`).
    pub(crate) open: bool,
    /// Ends streams and long polls.
    pub(crate) shutdown: CancellationToken,
    /// Streams and work channels.
    pub(crate) tasks: TaskTracker,
    /// How many work channels there may be.
    pub(crate) places: Places<NodeId>,
    /// How many may read logs.
    pub(crate) log_readers: Places<TaskId>,
    /// Schemas of own kinds.
    pub(crate) schemas: Schemas,
    /// Bounds what is held of bodies that are not whole yet.
    pub(crate) intake: Intake,
    /// By which this master leads.
    pub(crate) epoch: u64,
    /// For how long.
    pub(crate) tenure: Tenure,
}

/// A token for one use that was taken out of use for a registration that is going on.
pub(crate) struct Spent {
    hash: TokenHash,
    info: Arc<TokenInfo>,
}

fn unavailable(why: Unavailable) -> Failure {
    Problem::unavailable(why.to_string()).into()
}

fn store_failed(error: &impl std::fmt::Display) -> Failure {
    tracing::error!(%error, "the store failed");
    Problem::unavailable(format!("the store failed: {error}; the request may be repeated")).into()
}

impl App {
    /// An app of these parts.
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }
    pub(crate) fn pools(&self) -> &Board {
        &self.0.pools
    }
    pub(crate) fn hosts(&self) -> &Hosts {
        &self.0.hosts
    }
    pub(crate) fn routes(&self) -> &Index {
        &self.0.routes
    }
    pub(crate) fn schemas(&self) -> &Schemas {
        &self.0.schemas
    }
    pub(crate) fn intake(&self) -> &Intake {
        &self.0.intake
    }
    pub(crate) fn shutdown(&self) -> CancellationToken {
        self.0.shutdown.clone()
    }
    /// The epoch by which this master leads.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch
    }
    /// Whether requests without a token may do everything.
    pub(crate) fn is_open(&self) -> bool {
        self.0.open
    }

    /// Runs a stream beside the requests; the master waits for it at its end.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// Waits at most so long for the streams to end; whether they did.
    pub(crate) async fn streams_end(&self, bound: std::time::Duration) -> bool {
        self.0.tasks.close();
        tokio::time::timeout(bound, self.0.tasks.wait()).await.is_ok()
    }

    /// Now, on both clocks.
    pub(crate) fn now(&self) -> Now {
        self.0.brain.now()
    }

    /// The instant `ms` from now on the scheduler's clock.
    pub(crate) fn until_us(&self, ms: u64) -> u64 {
        self.now().mono_us.saturating_add(ms.saturating_mul(1_000))
    }

    /// A new waiting caller.
    pub(crate) fn reply(&self) -> (ReplyId, Replies) {
        self.0.brain.reply()
    }

    /// Sends an event that nobody waits for.
    pub(crate) async fn tell(&self, event: Event) -> Result<(), Failure> {
        self.0.brain.send(event).await.map_err(unavailable)
    }

    /// Sends an event and waits for its one answer. A caller that goes away in between is reported to
    /// the scheduler by the drop of the reply.
    pub(crate) async fn ask(&self, event: impl FnOnce(ReplyId) -> Event) -> Result<Answer, Failure> {
        let (reply, mut replies) = self.reply();
        self.tell(event(reply)).await?;
        replies.next().await.ok_or_else(|| unavailable(Unavailable::Stopped))
    }

    /// As [`App::ask`], for an answer that may take minutes: the end of the master cuts it short with a
    /// 503, after which the caller asks again or submits again.
    pub(crate) async fn wait_for(&self, event: impl FnOnce(ReplyId) -> Event) -> Result<Answer, Failure> {
        tokio::select! {
            biased;
            answer = self.ask(event) => answer,
            () = self.0.shutdown.cancelled() => Err(unavailable(Unavailable::Stopped)),
        }
    }

    /// Reads the scheduler's state.
    pub(crate) async fn query<R: Send + 'static>(
        &self,
        read: impl FnOnce(&Core, Now) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        self.0.brain.query(read).await.map_err(unavailable)
    }

    /// An answer that does not belong to its question.
    pub(crate) fn unexpected(&self, answer: &Answer) -> Failure {
        tracing::error!(?answer, "the scheduler gave an answer that does not belong to its question");
        Problem::internal("this is our fault").into()
    }

    /// Who holds this token; `None` if nobody does.
    pub(crate) async fn identify(&self, token: &str) -> Result<Option<Principal>, Failure> {
        let hash = service::token::hash(token);
        if let Some(Held { info, over }) = self.tokens().find(&hash, self.now().wall) {
            return Ok(Some(Principal::Token { info, hash, over }));
        }
        let node = self.query(move |core, now| core.session(&hash, now)).await?;
        Ok(node.map(Principal::Node))
    }

    /// A new secret and its hash.
    pub(crate) fn new_secret(&self) -> Result<(Secret, TokenHash), Failure> {
        let token = service::token::generate().map_err(|error| {
            tracing::error!(%error, "a token cannot be made");
            Problem::internal(error.to_string())
        })?;
        let hash = service::token::hash(token.expose());
        Ok((token, hash))
    }

    /// Takes the caller's token out of use for good, if it is one for a single use.
    pub(crate) async fn spend(&self, principal: &Principal) -> Result<Option<Spent>, Failure> {
        let Principal::Token { info, hash, .. } = principal else { return Ok(None) };
        if !info.single_use {
            return Ok(None);
        }
        let Some(info) = self.tokens().take(hash) else {
            return Err(Problem::unauthenticated("this token was for one use, and it has been used").into());
        };
        let spent = Spent { hash: *hash, info };
        if let Err(error) = self.0.store.remove_token(spent.info.id).await {
            self.tokens().insert(spent.hash, spent.info);
            return Err(store_failed(&error));
        }
        Ok(Some(spent))
    }

    /// Puts a token back that led to no registration.
    pub(crate) async fn give_back(&self, spent: Spent) {
        match self.0.store.put_token(&spent.hash, &spent.info).await {
            Ok(()) => self.tokens().insert(spent.hash, spent.info),
            // The token is lost, which is safe: whoever mints it mints another.
            Err(error) => tracing::warn!(%error, "a join token that was not used up could not be kept"),
        }
    }

    /// Stores a token and takes it into use; drops expired ones to make room.
    pub(crate) async fn add_token(&self, hash: TokenHash, info: &TokenInfo) -> Result<(), Failure> {
        self.end_expired_tokens().await;
        if self.tokens().len() >= crate::auth::MAX_TOKENS {
            return Err(Problem::conflict("there are too many valid tokens; revoke some first").into());
        }
        self.0.store.put_token(&hash, info).await.map_err(|error| store_failed(&error))?;
        self.tokens().insert(hash, Arc::new(info.clone()));
        Ok(())
    }

    /// Ends the tokens that have expired, with what was begun with them.
    pub(crate) async fn end_expired_tokens(&self) {
        for id in self.tokens().sweep(self.now().wall) {
            // One that stays behind in the store is dropped at the next start.
            if let Err(error) = self.0.store.remove_token(id).await {
                tracing::warn!(%error, "an expired token stays in the store");
            }
        }
    }

    /// Revokes a token, and ends what was begun with it.
    pub(crate) async fn remove_token(&self, id: uuid::Uuid) -> Result<(), Failure> {
        let Some(hash) = self.tokens().hash_of(id) else {
            return Err(Problem::not_found(format!("there is no token {id}")).into());
        };
        self.0.store.remove_token(id).await.map_err(|error| store_failed(&error))?;
        self.tokens().revoke(&hash);
        Ok(())
    }

    /// A task that only the store still has.
    pub(crate) async fn ended_task(&self, id: TaskId) -> Result<Option<(Arc<Task>, ClientId)>, Failure> {
        self.0.store.ended_task(id).await.map_err(|error| store_failed(&error))
    }

    /// The ended task that an idempotency key stands for, which only the store still has.
    pub(crate) async fn keyed_task(&self, id: TaskId) -> Result<Arc<Task>, Failure> {
        match self.ended_task(id).await? {
            Some((task, _)) => Ok(task),
            // Keys are kept for their time whatever else is dropped, and ended tasks are not.
            None => Err(Problem::gone(format!(
                "this Idempotency-Key stands for task {id}, which has ended, and its result is no longer kept"
            ))
            .into()),
        }
    }

    /// Ended tasks of the store, newest first; without `full` their input and result are left out.
    pub(crate) async fn ended_tasks(
        &self,
        filter: &TaskFilter,
        full: bool,
    ) -> Result<Vec<(Arc<Task>, ClientId)>, Failure> {
        self.0.store.ended_tasks(filter, full).await.map_err(|error| store_failed(&error))
    }

    /// Writes a pool, first to the store, then to the board; true if it was not there before.
    pub(crate) async fn put_pool(
        &self,
        name: &str,
        spec: PoolSpec,
        condition: WriteIf,
    ) -> Result<(bool, PoolView), Failure> {
        let _one_at_a_time = self.0.pool_writer.lock().await;
        let (revision, created) = self.pools().next_revision(name, &condition)?;
        self.0.store.put_pool(name, revision, &spec).await.map_err(|error| store_failed(&error))?;
        self.pools().set(name, revision, spec);
        self.tell(Event::TemplatesKnown { templates: self.pools().templates() }).await?;
        let view = self.pools().view(name).ok_or_else(|| Problem::internal("a pool vanished"))?;
        Ok((created, view))
    }

    /// Notes that a manager keeps its pool, and makes the pool with no nodes if it is not there.
    pub(crate) async fn manager_hello(&self, hello: ManagerHello) -> Result<ManagerView, Failure> {
        if self.pools().view(&hello.pool).is_none() {
            let empty = PoolSpec { desired: Some(0), ..PoolSpec::default() };
            match self.put_pool(&hello.pool, empty, WriteIf::Absent).await {
                // Somebody else made it meanwhile.
                Ok(_) | Err(Failure(Problem { status: 412, .. })) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(self.pools().hold(hello, tokio::time::Instant::now(), self.now().wall)?)
    }

    /// Whether the scheduler answers and the store takes writes.
    pub(crate) async fn check_ready(&self) -> Result<(), Failure> {
        self.query(|_, _| ()).await?;
        self.0.store.check_writable().await.map_err(|error| store_failed(&error))
    }

    /// A place for one more who reads the log of this task.
    pub(crate) fn log_place(&self, task: TaskId) -> Result<Place<TaskId>, Failure> {
        self.0.log_readers.take(task).map_err(|error| Problem::too_many_readers(error.to_string()).into())
    }

    /// Asks a node for a piece of a log, as [`Brain::read_log`].
    pub(crate) async fn read_log(
        &self,
        ask: LogAsk,
    ) -> Result<oneshot::Receiver<(LogChunk, Bytes)>, Failure> {
        self.0.brain.read_log(ask).await.map_err(unavailable)
    }

    /// Tells when a task has changed its state, as [`Brain::watch`].
    pub(crate) async fn watch(&self, task: TaskId) -> Result<oneshot::Receiver<()>, Failure> {
        self.0.brain.watch(task).await.map_err(unavailable)
    }

    /// A piece of a log that the store has.
    pub(crate) async fn stored_log(
        &self,
        id: TaskId,
        stream: Stream,
        from: u64,
    ) -> Result<Option<StoredPiece>, Failure> {
        self.0.store.task_log(id, stream, from).await.map_err(|error| store_failed(&error))
    }

    /// A place for one more work channel of this node.
    pub(crate) fn channel_place(&self, node: NodeId) -> Result<Place<NodeId>, Failure> {
        self.0.places.take(node).map_err(|error| Problem::unavailable(error.to_string()).into())
    }

    /// Serves a node's work channel until it closes.
    pub(crate) async fn serve_link(&self, node: NodeId, socket: axum::extract::ws::WebSocket) {
        // Counted among the streams, so that the master's end waits for it to say good-bye.
        let ends = (self.shutdown(), self.0.tenure.clone());
        let link = crate::link::serve(self.0.brain.clone(), node, socket, ends);
        self.0.tasks.track_future(link).await;
    }
}
