//! Who waits for an answer, and how it reaches them.

use super::mailbox::{Message, Post};
use scheduler::{effect::Answer, event::ReplyId};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

/// One caller's answers on their way. At most two by the scheduler's rules (accepted, finished).
#[derive(Debug, Default)]
struct Slot {
    answers: VecDeque<Answer>,
    /// Nothing more will come.
    over: bool,
    waker: Option<Waker>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held, and each change is whole in itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All callers that wait; as many as there are [`Replies`].
#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    closed: bool,
    slots: HashMap<ReplyId, Arc<Mutex<Slot>>>,
}

impl Registry {
    /// A new caller. After [`Registry::close`] it is told at once that nothing will come.
    pub(super) fn open(self: &Arc<Self>, post: Post) -> (ReplyId, Replies) {
        let mut waiting = locked(&self.state);
        waiting.next += 1;
        let id = ReplyId(waiting.next);
        let slot = Arc::new(Mutex::new(Slot { over: waiting.closed, ..Slot::default() }));
        if !waiting.closed {
            waiting.slots.insert(id, Arc::clone(&slot));
        }
        (id, Replies { id, slot, registry: Arc::clone(self), post })
    }

    /// Hands answers to their callers; those of callers that went away are dropped.
    pub(super) fn deliver(&self, answers: impl IntoIterator<Item = (ReplyId, Answer, bool)>) {
        let mut waiting = locked(&self.state);
        for (id, answer, last) in answers {
            let slot = if last { waiting.slots.remove(&id) } else { waiting.slots.get(&id).cloned() };
            let Some(slot) = slot else { continue };
            let mut slot = locked(&slot);
            slot.answers.push_back(answer);
            slot.over |= last;
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// The brain ends: whoever waits learns that nothing more will come.
    pub(super) fn close(&self) {
        let mut waiting = locked(&self.state);
        waiting.closed = true;
        for (_, slot) in waiting.slots.drain() {
            let mut slot = locked(&slot);
            slot.over = true;
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    fn forget(&self, id: ReplyId) {
        locked(&self.state).slots.remove(&id);
    }
}

/// The answers to one caller. Dropped before the last one has come, it tells the scheduler that the caller
/// went away, which cancels a `memory` task that was not promised.
#[derive(Debug)]
pub(crate) struct Replies {
    id: ReplyId,
    slot: Arc<Mutex<Slot>>,
    registry: Arc<Registry>,
    post: Post,
}

impl Replies {
    /// The next answer; `None` once nothing more will come, because the last was read or the brain ended.
    pub(crate) async fn next(&mut self) -> Option<Answer> {
        std::future::poll_fn(|context| {
            let mut slot = locked(&self.slot);
            if let Some(answer) = slot.answers.pop_front() {
                return Poll::Ready(Some(answer));
            }
            if slot.over {
                return Poll::Ready(None);
            }
            slot.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if !locked(&self.slot).over {
            self.registry.forget(self.id);
            self.post.send_later(Message::Gone(self.id));
        }
    }
}
