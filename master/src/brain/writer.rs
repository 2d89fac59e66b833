//! The way to the store: writes gather while one transaction runs, and the next takes all of them.

use crate::store::Store;
use scheduler::{effect::WriteSeq, record::Op};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// Most writes of one transaction, so that none keeps its callers waiting for long.
const MAX_OPS: usize = 16_384;
/// Most bytes of one transaction, for the same reason.
const MAX_BYTES: usize = 32 << 20;
/// Past this many gathered bytes the brain takes no messages until a transaction is through. Results of
/// runs that were under way are what may get it there; submissions are bounded by the queue's bound before.
const CHOKE_BYTES: usize = 256 << 20;
/// Bytes of a write beside its task's input and result.
const OP_BYTES: usize = 512;
/// After a failure the store is tried again no sooner than this, however many callers come. How long what
/// was already accepted waits is the scheduler's business.
const PAUSE_US: u64 = 100_000;
/// Transactions that accept nothing begin at least this far apart, so that many small ends share one: each
/// costs the processor as much as some tasks. An acceptance does not wait.
const APART_US: u64 = 5_000;
/// After one of many writes they begin further apart, at most this far: of a short task its hand-out and its
/// end are then written as one row.
const MOST_APART_US: u64 = 25_000;
/// So many writes make the distance that much longer.
const APART_OPS: u64 = 8;
/// What is old is forgotten this often …
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// … and, while there is more to forget, in steps this far apart, so that they never crowd commits out.
const FORGET_PAUSE: Duration = Duration::from_millis(20);

fn op_bytes(op: &Op) -> usize {
    let json = |json: &Option<protocol::task::Json>| json.as_ref().map_or(0, |json| json.get().len());
    OP_BYTES
        + match op {
            Op::TaskAccepted(record) => json(&record.spec.input),
            Op::TaskEnded { task, log, .. } => {
                json(&task.input) + json(&task.result) + log.as_ref().map_or(0, |log| log.tails.len())
            }
            Op::TaskLog { log, .. } => log.tails.len(),
            _ => 0,
        }
}

/// One transaction for the writer.
pub(super) struct Batch {
    through: WriteSeq,
    ops: Vec<Op>,
}

/// What became of one.
pub(super) struct Outcome {
    /// The last write of it.
    through: WriteSeq,
    /// Why it failed, if it did.
    failed: Option<String>,
}

/// What the scheduler is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All up to this are on disk.
    Written(WriteSeq),
    /// All up to this that were not on disk are void.
    Failed(WriteSeq, String),
}

/// Writes that wait for the store.
#[derive(Default)]
pub(super) struct Gathered {
    ops: VecDeque<(WriteSeq, Op)>,
    bytes: usize,
    in_flight: bool,
    last: WriteSeq,
    failing: bool,
    /// Whether somebody waits for a task to be accepted, or the program for the end.
    urgent: bool,
    ending: bool,
    begun_us: u64,
    apart_us: u64,
    not_before_us: u64,
}

impl Gathered {
    /// Adds a write.
    pub(super) fn push(&mut self, seq: WriteSeq, op: Op) {
        self.bytes += op_bytes(&op);
        self.last = seq;
        self.urgent |= matches!(op, Op::TaskAccepted(_));
        self.ops.push_back((seq, op));
    }

    /// Whether so much waits that nothing more may come in.
    pub(super) fn is_choked(&self) -> bool {
        self.bytes > CHOKE_BYTES
    }

    /// The program ends: nothing waits for more from now on.
    pub(super) const fn end(&mut self) {
        self.ending = true;
    }

    /// Whether everything is on disk.
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty() && !self.in_flight
    }

    /// When to look again, if there is something that only waits for time to pass.
    pub(super) fn wake_us(&self) -> Option<u64> {
        (!self.in_flight && !self.ops.is_empty()).then(|| self.due_us())
    }

    fn due_us(&self) -> u64 {
        let apart_us =
            if self.urgent || self.ending || self.begun_us == 0 { 0 } else { self.begun_us + self.apart_us };
        self.not_before_us.max(apart_us)
    }

    /// The next transaction, if there is something to write and none is on its way.
    pub(super) fn next(&mut self, now_us: u64) -> Option<Batch> {
        if self.in_flight || self.ops.is_empty() || now_us < self.due_us() {
            return None;
        }
        let (mut batch, mut bytes) = (Batch { through: self.last, ops: Vec::new() }, 0);
        while let Some((seq, op)) = self.ops.pop_front() {
            let size = op_bytes(&op);
            bytes += size;
            self.bytes -= size;
            batch.through = seq;
            batch.ops.push(op);
            if bytes >= MAX_BYTES || batch.ops.len() >= MAX_OPS {
                break;
            }
        }
        self.in_flight = true;
        self.begun_us = now_us;
        self.apart_us = (APART_US * (1 + batch.ops.len() as u64 / APART_OPS)).min(MOST_APART_US);
        // Of a transaction that is full the rest is as urgent as before.
        self.urgent &= !self.ops.is_empty();
        Some(batch)
    }

    /// A transaction is over. After a failure everything that waits is void too, because what comes later
    /// may build on what failed; the scheduler gives again what is still to be kept.
    pub(super) fn done(&mut self, outcome: Outcome, now_us: u64) -> Told {
        self.in_flight = false;
        match outcome.failed {
            None => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the store takes writes again");
                }
                self.not_before_us = 0;
                Told::Written(outcome.through)
            }
            Some(why) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(error = %why, "the store refuses writes; new work is refused until it takes them");
                }
                self.not_before_us = now_us.saturating_add(PAUSE_US);
                self.ops.clear();
                self.bytes = 0;
                self.urgent = false;
                Told::Failed(self.last, why)
            }
        }
    }
}

/// Starts the writer: it commits one transaction after another and, in between, forgets what is old. It ends
/// when the sender is dropped.
pub(super) fn start(store: Arc<dyn Store>) -> (mpsc::Sender<Batch>, mpsc::Receiver<Outcome>) {
    let (batches, mut waiting) = mpsc::channel::<Batch>(1);
    let (outcomes, done) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut forget_at = Instant::now() + FORGET_EVERY;
        loop {
            tokio::select! {
                batch = waiting.recv() => {
                    let Some(Batch { through, ops }) = batch else { return };
                    let failed = store.commit(&ops).await.err().map(|error| error.to_string());
                    if outcomes.send(Outcome { through, failed }).await.is_err() {
                        return;
                    }
                }
                () = sleep_until(forget_at) => {
                    let more = store.forget(service::clock::wall()).await.unwrap_or_else(|error| {
                        tracing::warn!(%error, "what is old could not be forgotten; tried again later");
                        false
                    });
                    forget_at = Instant::now() + if more { FORGET_PAUSE } else { FORGET_EVERY };
                }
            }
        }
    });
    (batches, done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{accepted, requeued};

    fn gathered(seqs: std::ops::RangeInclusive<u64>) -> Gathered {
        let mut gathered = Gathered::default();
        seqs.for_each(|seq| gathered.push(WriteSeq(seq), requeued(seq)));
        gathered
    }

    #[test]
    fn what_comes_while_a_transaction_runs_goes_into_the_next() {
        let mut writes = gathered(1..=3);
        let first = writes.next(0).map(|batch| (batch.through, batch.ops.len()));
        assert_eq!(first, Some((WriteSeq(3), 3)));
        writes.push(WriteSeq(4), requeued(4));
        writes.push(WriteSeq(5), requeued(5));
        assert!(writes.next(0).is_none());
        let told = writes.done(Outcome { through: WriteSeq(3), failed: None }, 0);
        assert_eq!(told, Told::Written(WriteSeq(3)));
        assert_eq!(writes.next(0).map(|batch| batch.ops.len()), Some(2));
        assert!(!writes.is_empty());
        writes.done(Outcome { through: WriteSeq(5), failed: None }, 0);
        assert!(writes.is_empty());
    }

    #[test]
    fn a_failure_voids_what_waits_and_the_next_try_comes_after_a_pause() {
        let mut writes = gathered(1..=1);
        assert!(writes.next(0).is_some());
        writes.push(WriteSeq(2), requeued(2));
        let told = writes.done(Outcome { through: WriteSeq(1), failed: Some("full".to_owned()) }, 50);
        assert_eq!(told, Told::Failed(WriteSeq(2), "full".to_owned()));
        assert!(writes.is_empty());
        writes.push(WriteSeq(3), requeued(3));
        assert_eq!(writes.wake_us(), Some(50 + PAUSE_US));
        assert!(writes.next(49 + PAUSE_US).is_none());
        assert!(writes.next(50 + PAUSE_US).is_some());
    }

    #[test]
    fn ends_wait_for_each_other_and_an_acceptance_for_nothing() {
        let mut writes = gathered(1..=1);
        assert!(writes.next(100).is_some(), "the first has nothing to wait for");
        writes.done(Outcome { through: WriteSeq(1), failed: None }, 200);
        writes.push(WriteSeq(2), requeued(2));
        assert!(writes.next(200).is_none());
        assert_eq!(writes.wake_us(), Some(100 + APART_US));
        writes.push(WriteSeq(3), accepted(3, None));
        assert_eq!(writes.next(200).map(|batch| batch.ops.len()), Some(2));
        writes.done(Outcome { through: WriteSeq(3), failed: None }, 300);
        writes.push(WriteSeq(4), requeued(4));
        assert!(writes.next(199 + APART_US).is_none());
        assert!(writes.next(200 + APART_US).is_some());
    }

    #[test]
    fn after_many_writes_the_next_wait_longer_for_each_other() {
        for (writes, apart_us) in [(1, 5_000), (7, 5_000), (8, 10_000), (100, 25_000), (10_000, 25_000)] {
            let mut gathered = gathered(1..=writes);
            assert!(gathered.next(1_000).is_some());
            gathered.done(Outcome { through: WriteSeq(writes), failed: None }, 2_000);
            gathered.push(WriteSeq(writes + 1), requeued(1));
            assert_eq!(gathered.wake_us(), Some(1_000 + apart_us), "{writes}");
        }
    }

    #[test]
    fn one_transaction_is_bounded() {
        let mut writes = gathered(1..=MAX_OPS as u64 + 1);
        assert_eq!(writes.next(0).map(|batch| batch.ops.len()), Some(MAX_OPS));
    }
}
