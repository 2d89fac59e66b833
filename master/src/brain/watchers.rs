//! Those who wait for a node's answer or for a task's next state: each is told once, and forgotten when it goes
//! away.

use super::mailbox::{LinkId, LogReply};
use bytes::Bytes;
use protocol::{TaskId, work::LogChunk};
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Past so many, those who went away are looked for and dropped. As many as read logs at once may wait, so there
/// are never many more.
const TIDY_PAST: usize = 1_024;

/// Reads of logs that nodes have not answered.
#[derive(Debug, Default)]
pub(super) struct LogReads {
    next: u64,
    waiting: HashMap<u64, (LinkId, LogReply)>,
}

impl LogReads {
    /// A name for the next read.
    pub(super) const fn name(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The read of this name was sent over this channel.
    pub(super) fn sent(&mut self, read: u64, link: LinkId, reply: LogReply) {
        if self.waiting.len() >= TIDY_PAST {
            self.waiting.retain(|_, (_, reply)| !reply.is_closed());
        }
        self.waiting.insert(read, (link, reply));
    }

    /// A node has answered; an answer to what it was not asked is ignored.
    pub(super) fn answered(&mut self, link: LinkId, chunk: LogChunk, piece: Bytes) {
        if self.waiting.get(&chunk.read).is_some_and(|(asked, _)| *asked == link)
            && let Some((_, reply)) = self.waiting.remove(&chunk.read)
        {
            // Who went away needs no answer.
            let _gone = reply.send((chunk, piece));
        }
    }

    /// The channel is over: nothing more comes from it.
    pub(super) fn over(&mut self, link: LinkId) {
        self.waiting.retain(|_, (asked, _)| *asked != link);
    }
}

/// Those who wait for a task to change its state.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    of: HashMap<TaskId, Vec<oneshot::Sender<()>>>,
    count: usize,
}

impl Watchers {
    /// One more.
    pub(super) fn add(&mut self, task: TaskId, tell: oneshot::Sender<()>) {
        if self.count >= TIDY_PAST {
            self.of.retain(|_, waiting| {
                waiting.retain(|tell| !tell.is_closed());
                !waiting.is_empty()
            });
            self.count = self.of.values().map(Vec::len).sum();
        }
        self.count += 1;
        self.of.entry(task).or_default().push(tell);
    }

    /// The task has changed its state.
    pub(super) fn changed(&mut self, task: TaskId) {
        // Nearly always there is nobody.
        if self.of.is_empty() {
            return;
        }
        for tell in self.of.remove(&task).unwrap_or_default() {
            self.count -= 1;
            // Who went away need not be told.
            let _gone = tell.send(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use protocol::work::LogState;

    fn task(n: u128) -> TaskId {
        TaskId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn those_who_went_away_are_not_kept() {
        let mut watchers = Watchers::default();
        let (tell, mut told) = oneshot::channel();
        watchers.add(task(0), tell);
        for n in 1..10 * TIDY_PAST as u128 {
            watchers.add(task(n), oneshot::channel().0);
            assert!(watchers.count <= TIDY_PAST + 1);
        }
        watchers.changed(task(0));
        told.try_recv().unwrap();

        let mut reads = LogReads::default();
        for _ in 1..10 * TIDY_PAST {
            let read = reads.name();
            reads.sent(read, LinkId(1), oneshot::channel().0);
            assert!(reads.waiting.len() <= TIDY_PAST);
        }
    }

    #[test]
    fn a_node_answers_only_what_it_was_asked() {
        let mut reads = LogReads::default();
        let (read, (reply, mut answer)) = (reads.name(), oneshot::channel());
        reads.sent(read, LinkId(1), reply);
        let chunk = LogChunk { epoch: 1, read, offset: 0, end: 1, state: LogState::Ended };
        reads.answered(LinkId(2), chunk, Bytes::from_static(b"forged"));
        reads.answered(LinkId(1), chunk, Bytes::from_static(b"x"));
        assert_eq!(answer.try_recv().unwrap().1, "x");
        let (read, (reply, mut answer)) = (reads.name(), oneshot::channel());
        reads.sent(read, LinkId(1), reply);
        reads.over(LinkId(1));
        assert!(answer.try_recv().is_err());
        assert!(reads.waiting.is_empty());
    }
}
