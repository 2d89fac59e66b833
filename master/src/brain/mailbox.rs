//! The brain's mailbox: one queue, bounded in messages and in bytes.

use super::Unavailable;
use bytes::Bytes;
use protocol::{NodeId, RunId, TaskId, log::Stream, work::LogChunk};
use scheduler::{
    Core,
    event::{Event, Now, ReplyId},
};
use session::close::CloseReason;
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::DropGuard;

/// Most messages that wait. When it is full a caller waits up to [`POST_WAIT`] and is then refused (503);
/// work channels stop reading, so that the nodes' sockets fill up instead of our memory.
pub(super) const MAILBOX: usize = 16_384;
/// Most bytes of submitted tasks that wait, and as many again of what nodes sent.
const MAILBOX_BYTES: usize = 64 << 20;
/// Longest that a caller waits for room.
const POST_WAIT: Duration = Duration::from_secs(5);

/// Names one open work channel; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(super) u64);

/// What a work channel's socket did.
#[derive(Debug)]
pub(crate) enum FromSocket {
    /// A binary message came.
    Message(Bytes),
    /// A ping or pong came.
    Pong,
    /// So many bytes of what was sent are written.
    Written(usize),
    /// It is closed, and nothing more comes.
    Closed {
        /// Whether the node's side closed it.
        by_node: bool,
    },
}

/// What a work channel's socket is to do.
#[derive(Debug)]
pub(crate) enum ToSocket {
    /// Write this binary message.
    Message(Bytes),
    /// Write a ping.
    Ping,
    /// Close.
    Close(CloseReason),
}

/// The brain's way to a socket. Dropping it ends the socket's task within a second.
#[derive(Debug)]
pub(super) struct Socket {
    /// What it is to do, in order.
    pub(super) queue: mpsc::Sender<ToSocket>,
    /// Ends it.
    pub(super) _ends: DropGuard,
}

/// A read of the scheduler's state.
pub(super) type Query = Box<dyn FnOnce(&Core, Now) + Send>;

/// A read of what a run prints, for the node that has it.
#[derive(Debug)]
pub(crate) struct LogAsk {
    /// The node.
    pub(crate) node: NodeId,
    /// The hand-out.
    pub(crate) run: RunId,
    /// Which stream.
    pub(crate) stream: Stream,
    /// From this byte on.
    pub(crate) offset: u64,
    /// How long the node may wait for something to send.
    pub(crate) wait_ms: u64,
}

/// Gets the answer of a node to a [`LogAsk`]; dropped if none will come.
pub(super) type LogReply = oneshot::Sender<(LogChunk, Bytes)>;

/// Everything that waits in the mailbox.
pub(super) enum Message {
    /// For the scheduler. The permit gives its bytes back once it is taken.
    Event(Box<Event>, Option<OwnedSemaphorePermit>),
    /// A read.
    Query(Query),
    /// A caller went away.
    Gone(ReplyId),
    /// A read of a log.
    ReadLog(LogAsk, LogReply),
    /// Somebody wants to be told when this task changes its state.
    Watch(TaskId, oneshot::Sender<()>),
    /// A work channel was opened.
    LinkUp(LinkId, NodeId, Socket),
    /// Something happened on a work channel.
    Link(LinkId, FromSocket, Option<OwnedSemaphorePermit>),
}

/// The sending end; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Post {
    queue: mpsc::Sender<Message>,
    submitted: Arc<Semaphore>,
    received: Arc<Semaphore>,
}

/// A mailbox, empty.
pub(super) fn mailbox() -> (Post, mpsc::Receiver<Message>) {
    let (queue, receiver) = mpsc::channel(MAILBOX);
    let [submitted, received] = [(); 2].map(|()| Arc::new(Semaphore::new(MAILBOX_BYTES)));
    (Post { queue, submitted, received }, receiver)
}

/// Bytes that count of an event; small ones are bounded by their number alone.
fn weight(event: &Event) -> usize {
    match event {
        Event::Submit(submission) => submission.spec.input.as_ref().map_or(0, |input| input.get().len()),
        _ => 0,
    }
}

async fn room(semaphore: &Arc<Semaphore>, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Unavailable> {
    if bytes == 0 {
        return Ok(None);
    }
    // One message is always smaller than all the room there is, so that it cannot wait for ever.
    let bytes = u32::try_from(bytes.min(MAILBOX_BYTES)).unwrap_or(u32::MAX);
    Arc::clone(semaphore).acquire_many_owned(bytes).await.map(Some).map_err(|_| Unavailable::Stopped)
}

impl Post {
    /// Puts an event in, waiting up to [`POST_WAIT`] for room.
    pub(super) async fn event(&self, event: Event) -> Result<(), Unavailable> {
        let put = async {
            let permit = room(&self.submitted, weight(&event)).await?;
            self.put(Message::Event(Box::new(event), permit)).await
        };
        timeout(POST_WAIT, put).await.map_err(|_| Unavailable::Busy)?
    }

    /// Puts a read in, waiting up to [`POST_WAIT`] for room.
    pub(super) async fn read(&self, read: Message) -> Result<(), Unavailable> {
        timeout(POST_WAIT, self.put(read)).await.map_err(|_| Unavailable::Busy)?
    }

    /// Puts in what a socket did, waiting for room as long as it takes: this is what holds nodes back.
    pub(super) async fn link(&self, link: LinkId, what: FromSocket) -> Result<(), Unavailable> {
        let bytes = if let FromSocket::Message(message) = &what { message.len() } else { 0 };
        let permit = room(&self.received, bytes).await?;
        self.put(Message::Link(link, what, permit)).await
    }

    /// Puts a message in, waiting for room as long as it takes.
    pub(super) async fn put(&self, message: Message) -> Result<(), Unavailable> {
        self.queue.send(message).await.map_err(|_| Unavailable::Stopped)
    }

    /// Puts a message in from where nothing can wait; in order behind all that the caller put in before.
    /// Where there is no room a task waits for it, one for each caller that went away.
    pub(super) fn send_later(&self, message: Message) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.queue.try_send(message)
            && let Ok(runtime) = Handle::try_current()
        {
            let queue = self.queue.clone();
            runtime.spawn(async move {
                // A brain that ended has nobody to forget.
                let _ended = queue.send(message).await;
            });
        }
    }
}
