//! The simulator's disk and the real stores do the same: whatever is written in whatever order, they hand the same
//! to the next master.

use super::{
    Home,
    records::{accepted, dispatched, ended, node_id, node_record, now, requeued, task_id},
};
use protocol::TaskId;
use scheduler::{
    effect::WriteSeq,
    record::{Op, Recovered},
};
use simulator::disk::Disk;
use std::{collections::BTreeSet, sync::Arc};

/// Tasks that come and go.
const TASKS: u64 = 12;
/// Transactions.
const ROUNDS: u64 = 30;

/// A generator that is the same everywhere (splitmix64); what matters is the order of writes, not their luck.
struct Dice(u64);

/// As schedulers give them: a task is accepted before it is handed out, and before it ends if it has a key.
fn in_order(mut ops: Vec<Op>, known: &mut BTreeSet<TaskId>) -> Vec<Op> {
    ops.sort_by_key(|op| !matches!(op, Op::TaskAccepted(_)));
    ops.retain(|op| match op {
        Op::TaskAccepted(record) => {
            known.insert(record.id);
            true
        }
        Op::TaskEnded { task, .. } => known.contains(&task.id),
        _ => true,
    });
    ops
}

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// Any write of any task, also one that comes too late.
    fn op(&mut self) -> Op {
        let n = 1 + self.roll(TASKS);
        match self.roll(12) {
            0..=2 => accepted(n, n.is_multiple_of(3).then(|| format!("key {n}")).as_deref()),
            3..=6 => dispatched(n, 1 + self.roll(1_000)),
            7 | 8 => requeued(n),
            9 => ended(n),
            10 => Op::NodeRegistered(Arc::new(node_record(n))),
            _ => Op::NodeGone { node: node_id(n), at: now() },
        }
    }
}

/// What of it can be compared. (Times are of the moment each was made.)
fn shown(recovered: &Recovered) -> [Vec<String>; 3] {
    let tasks = recovered.tasks.iter().map(|task| {
        let running = task.running.map(|(node, run, _)| (node, run));
        format!("{} {:?} attempt {} {running:?}", task.record.id, task.record.key, task.attempt)
    });
    let nodes = recovered.nodes.iter().map(|node| format!("{} {:?}", node.id, node.session_hash));
    let keys = recovered.keys.iter().map(|key| format!("{key:?}"));
    let mut all = [tasks.collect(), nodes.collect(), keys.collect::<Vec<_>>()];
    all.iter_mut().for_each(|part| part.sort());
    all
}

pub(super) async fn the_simulated_disk_does_the_same(home: &Home) {
    let mut dice = Dice(7);
    let mut disk = Disk::new(None);
    let mut known = BTreeSet::new();
    let mut opened = home.fresh().await;
    disk.next_epoch();
    for round in 0..ROUNDS {
        let ops = in_order((0..=dice.roll(8)).map(|_| dice.op()).collect(), &mut known);
        opened.store.commit(&ops).await.unwrap();
        let said = format!("{ops:?}");
        assert!(disk.commit(opened.epoch, ops.into_iter().map(|op| (WriteSeq(round), op)).collect()));
        opened = home.reopen(opened).await;
        assert_eq!(opened.epoch, disk.next_epoch());
        let recovered = disk.recover();
        assert_eq!(shown(&opened.recovered), shown(&recovered), "after round {round}: {said}");
        for id in (1..=TASKS).map(task_id) {
            let real: Option<TaskId> = opened.store.ended_task(id).await.unwrap().map(|(task, _)| task.id);
            assert_eq!(real, disk.ended(id).map(|task| task.id), "round {round}: {said}");
        }
    }
}
