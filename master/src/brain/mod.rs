//! The brain: the one task that owns the scheduler and the master's ends of all work channels.
//!
//! Everything else talks to it through [`Brain`], a handle on its [`mailbox`]. It takes all messages that
//! wait, lets the scheduler step through them, and then carries out the effects together ([`actor`]): one
//! message for each work channel ([`channels`]), one transaction for all writes that gathered meanwhile
//! ([`writer`]), and the answers to callers ([`replies`]). Who reads logs waits in [`watchers`].
//!
//! What holds:
//! 1. nothing but this task changes the scheduler's state, so there is no lock around it;
//! 2. one transaction is under way at a time, and the scheduler hears of each what became of it;
//! 3. every caller gets its last answer, or learns that none will come;
//! 4. when this task ends, by order or by a defect, [`Running`] says so: the master never lives on without it.

mod actor;
mod channels;
mod mailbox;
mod replies;
mod watchers;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use mailbox::{FromSocket, LinkId, LogAsk, ToSocket};
pub(crate) use replies::Replies;

use crate::{lead::Tenure, store::Store};
use bytes::Bytes;
use mailbox::{Message, Post, Socket};
use protocol::{NodeId, TaskId, work::LogChunk};
use replies::Registry;
use scheduler::{
    Config, Core,
    event::{Event, Now, ReplyId},
    record::Recovered,
};
use service::clock::Clock;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The brain takes no message now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unavailable {
    /// Its mailbox stayed full. 503: try again.
    #[error("the master has more to do than it can take in; try again in a moment")]
    Busy,
    /// It has ended.
    #[error("the master is stopping; try again in a moment")]
    Stopped,
}

/// Why the brain ended other than by order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrainError {
    /// A defect of ours.
    #[error("a defect stopped it: {0}")]
    Panicked(String),
    /// A defect of ours as well: the store's own task has ended.
    #[error("a defect stopped the task that writes to the store")]
    WriterGone,
    /// Another master may lead by now.
    #[error("this master does not lead any more")]
    Deposed,
    /// The store did not take the last writes. Nothing that was promised is lost, but tasks may run a second
    /// time after the next start.
    #[error("the last changes could not be written before the end; see the errors of the store above")]
    NotWritten,
}

/// A handle on the brain; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Brain {
    post: Post,
    registry: Arc<Registry>,
    clock: Clock,
    links: Arc<AtomicU64>,
}

impl Brain {
    /// Starts the brain with what the store had. It runs until `stop`; then it takes no more messages,
    /// flushes its writes for at most 5 s and closes the work channels. When `tenure` is over it does nothing more
    /// at all: no write, no order, no answer.
    pub(crate) fn start(
        config: Config,
        recovered: Recovered,
        store: Arc<dyn Store>,
        tenure: Tenure,
        stop: CancellationToken,
    ) -> (Self, Running) {
        let clock = Clock::start();
        let (post, mailbox) = mailbox::mailbox();
        let registry = Arc::new(Registry::default());
        let actor = actor::Actor::new(config, recovered, clock, Arc::clone(&registry), (store, tenure));
        let task = tokio::spawn(actor.run(mailbox, stop));
        (Self { post, registry, clock, links: Arc::default() }, Running { task })
    }

    /// Now, on the scheduler's clocks.
    pub(crate) fn now(&self) -> Now {
        now(&self.clock)
    }

    /// A new caller, to be named in the event that is sent next.
    pub(crate) fn reply(&self) -> (ReplyId, Replies) {
        self.registry.open(self.post.clone())
    }

    /// Sends an event. Events of one sender arrive in order.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] after 5 s without room in the mailbox.
    pub(crate) async fn send(&self, event: Event) -> Result<(), Unavailable> {
        self.post.event(event).await
    }

    /// Reads the scheduler's state. `read` runs on the brain's task, so it has to be quick.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] after 5 s without room in the mailbox.
    pub(crate) async fn query<R: Send + 'static>(
        &self,
        read: impl FnOnce(&Core, Now) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (answer, answered) = oneshot::channel();
        // A caller that went away meanwhile needs no answer.
        let query = move |core: &Core, now| drop(answer.send(read(core, now)));
        self.post.read(Message::Query(Box::new(query))).await?;
        answered.await.map_err(|_| Unavailable::Stopped)
    }

    /// Asks the node that has a run for a piece of what it prints. The receiver fails if the node has no open
    /// channel, or loses it before it answers; a node that does not know how to answer never does.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] after 5 s without room in the mailbox.
    pub(crate) async fn read_log(
        &self,
        ask: LogAsk,
    ) -> Result<oneshot::Receiver<(LogChunk, Bytes)>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.post.read(Message::ReadLog(ask, reply)).await?;
        Ok(answer)
    }

    /// Tells once when a task has changed its state after this call.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] after 5 s without room in the mailbox.
    pub(crate) async fn watch(&self, task: TaskId) -> Result<oneshot::Receiver<()>, Unavailable> {
        let (tell, told) = oneshot::channel();
        self.post.read(Message::Watch(task, tell)).await?;
        Ok(told)
    }

    /// Opens a work channel for a node whose session token was checked.
    ///
    /// # Errors
    /// [`Unavailable::Stopped`].
    pub(crate) async fn open_link(&self, node: NodeId) -> Result<OpenLink, Unavailable> {
        let id = LinkId(self.links.fetch_add(1, Ordering::Relaxed));
        let (queue, orders) = mpsc::channel(channels::SOCKET_QUEUE);
        let over = CancellationToken::new();
        let socket = Socket { queue, _ends: over.clone().drop_guard() };
        self.post.put(Message::LinkUp(id, node, socket)).await?;
        Ok(OpenLink { teller: Teller { id, post: self.post.clone() }, orders, over })
    }
}

fn now(clock: &Clock) -> Now {
    Now { mono_us: clock.mono_us(), wall: clock.wall() }
}

/// One open work channel, as its socket's task has it.
#[derive(Debug)]
pub(crate) struct OpenLink {
    /// The way to tell the brain what the socket did.
    pub(crate) teller: Teller,
    /// What the socket is to do, in order; ends when the brain closed the channel.
    pub(crate) orders: mpsc::Receiver<ToSocket>,
    /// Cancelled once the brain has closed the channel or has ended.
    pub(crate) over: CancellationToken,
}

/// Tells the brain what happens on one work channel.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    id: LinkId,
    post: Post,
}

impl Teller {
    /// Tells it, waiting for room in the mailbox as long as it takes; meanwhile the caller reads nothing.
    ///
    /// # Errors
    /// [`Unavailable::Stopped`].
    pub(crate) async fn tell(&self, what: FromSocket) -> Result<(), Unavailable> {
        self.post.link(self.id, what).await
    }
}

/// The brain's task: a future that ends with it.
#[derive(Debug)]
pub(crate) struct Running {
    task: JoinHandle<Result<(), BrainError>>,
}

impl Future for Running {
    type Output = Result<(), BrainError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task)
            .poll(context)
            .map(|ended| ended.unwrap_or_else(|error| Err(BrainError::Panicked(error.to_string()))))
    }
}
