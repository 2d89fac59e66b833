//! What of one transaction has to be written, given the rest of it.

use protocol::TaskId;
use scheduler::record::{Op, TaskRecord};
use std::collections::HashSet;

/// One write that is needed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Needed<'a> {
    /// The op as it is.
    Whole(&'a Op),
    /// Of an accepted task only its idempotency key: its end is in the same transaction.
    OnlyKey(&'a TaskRecord),
}

/// The writes that lead to the same stored state as all of `ops`, in order: of a task that ends here
/// only its end (and its key), of one that moves more than once only the last move.
pub(super) fn needed(ops: &[Op]) -> Vec<Needed<'_>> {
    let (mut ended, mut moved) = (HashSet::<TaskId>::new(), HashSet::<TaskId>::new());
    let mut kept: Vec<_> = ops
        .iter()
        .rev()
        .filter_map(|op| match op {
            Op::TaskEnded { task, .. } => {
                ended.insert(task.id);
                Some(Needed::Whole(op))
            }
            Op::TaskDispatched { task, .. } | Op::TaskRequeued { task, .. } => {
                (!ended.contains(task) && moved.insert(*task)).then_some(Needed::Whole(op))
            }
            Op::TaskAccepted(record) if ended.contains(&record.id) => {
                record.key.is_some().then_some(Needed::OnlyKey(record))
            }
            Op::TaskAccepted(_) | Op::TaskLog { .. } | Op::NodeRegistered(_) | Op::NodeGone { .. } => {
                Some(Needed::Whole(op))
            }
        })
        .collect();
    kept.reverse();
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::conformance::{accepted, dispatched, ended, requeued};

    fn shape(ops: &[Op]) -> Vec<&'static str> {
        needed(ops)
            .iter()
            .map(|needed| match needed {
                Needed::OnlyKey(_) => "key",
                Needed::Whole(Op::TaskAccepted(_)) => "accepted",
                Needed::Whole(Op::TaskDispatched { .. }) => "dispatched",
                Needed::Whole(Op::TaskRequeued { .. }) => "requeued",
                Needed::Whole(Op::TaskEnded { .. }) => "ended",
                Needed::Whole(_) => "node",
            })
            .collect()
    }

    #[test]
    fn a_task_that_comes_and_goes_in_one_transaction_is_written_once() {
        let life = [accepted(1, None), dispatched(1, 1), requeued(1), dispatched(1, 2), ended(1)];
        assert_eq!(shape(&life), ["ended"]);
    }

    #[test]
    fn the_key_of_such_a_task_is_kept() {
        assert_eq!(shape(&[accepted(1, Some("k")), dispatched(1, 1), ended(1)]), ["key", "ended"]);
    }

    #[test]
    fn of_several_moves_the_last_counts_and_other_tasks_are_not_touched() {
        let ops = [accepted(1, None), accepted(2, None), dispatched(1, 1), dispatched(2, 2), requeued(1)];
        assert_eq!(shape(&ops), ["accepted", "accepted", "dispatched", "requeued"]);
    }
}
