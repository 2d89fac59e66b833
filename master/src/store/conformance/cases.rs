//! What a store has to do.

use super::{
    Home, lead, pretend_newer,
    records::{
        accepted, dispatched, ended, ended_as, ended_at, json, node_id, node_record, now, requeued, task,
        task_id, token,
    },
};
use crate::store::{KEPT_MS, Opened, Store, StoreError};
use protocol::{
    BootId, RunId, TaskId, Timestamp,
    log::{Stream, Tail, Tails},
    pool::PoolSpec,
    task::{Task, TaskState},
};
use scheduler::{TaskFilter, TaskLog, event::ClientId, record::Op};
use std::sync::Arc;
use uuid::Uuid;

fn open_ids(opened: &Opened) -> Vec<TaskId> {
    opened.recovered.tasks.iter().map(|task| task.record.id).collect()
}

async fn ids(store: &dyn Store, filter: &TaskFilter) -> Vec<TaskId> {
    store.ended_tasks(filter, false).await.unwrap().iter().map(|(task, _)| task.id).collect()
}

pub(super) async fn what_was_committed_is_there_after_a_restart_and_only_what_had_not_ended_is_open(
    home: &Home,
) {
    let opened = home.fresh().await;
    assert_eq!(opened.epoch, 1);
    assert!(opened.recovered.tasks.is_empty());
    let first = [accepted(1, Some("k")), accepted(2, None), accepted(3, None), dispatched(2, 5)];
    opened.store.commit(&first).await.unwrap();
    opened.store.commit(&[dispatched(3, 6), ended(3)]).await.unwrap();
    opened.store.commit(&[accepted(4, Some("k4")), dispatched(4, 7), ended(4)]).await.unwrap();

    let again = home.reopen(opened).await;
    assert_eq!(again.epoch, 2);
    assert_eq!(open_ids(&again), [task_id(1), task_id(2)]);
    let [one, two] = &again.recovered.tasks[..] else { panic!("two are open") };
    assert_eq!(one.record.spec.kind, "fib");
    assert_eq!(one.record.spec.input.as_ref().unwrap().get(), r#"{"n": 4.0e1}"#);
    assert_eq!(one.record.client, ClientId(7));
    assert_eq!(one.record.key, Some((Arc::from("k"), [1; 32])));
    assert_eq!((one.attempt, one.running.is_some()), (0, false));
    let (node, run, _) = two.running.unwrap();
    assert_eq!((node, run, two.attempt), (node_id(1), RunId::new(3, 5), 1));
    let mut keys: Vec<_> =
        again.recovered.keys.iter().map(|(_, key, hash, task)| (&**key, *hash, *task)).collect();
    keys.sort();
    assert_eq!(keys, [("k", [1; 32], task_id(1)), ("k4", [4; 32], task_id(4))]);
    for n in [3, 4] {
        let (task, client) = again.store.ended_task(task_id(n)).await.unwrap().unwrap();
        assert_eq!((task.state, client), (TaskState::Succeeded, ClientId(7)));
        assert_eq!(task.result.as_ref().unwrap().get(), r#"{"value":"102334155"}"#);
        assert_eq!(task.input.as_ref().unwrap().get(), r#"{"n": 4.0e1}"#);
    }
    assert!(again.store.ended_task(task_id(1)).await.unwrap().is_none(), "it has not ended");
}

pub(super) async fn writing_twice_is_the_same_as_writing_once(home: &Home) {
    let opened = home.fresh().await;
    let life = [accepted(1, Some("k")), dispatched(1, 1), accepted(2, None), dispatched(2, 2), ended(2)];
    for _ in 0..2 {
        for op in &life {
            opened.store.commit(std::slice::from_ref(op)).await.unwrap();
        }
        opened.store.commit(&life).await.unwrap();
    }
    let again = home.reopen(opened).await;
    assert_eq!(open_ids(&again), [task_id(1)]);
    assert_eq!(again.recovered.keys.len(), 1);
    assert_eq!(ids(&*again.store, &TaskFilter::default()).await, [task_id(2)]);
}

pub(super) async fn a_task_that_has_ended_never_changes_again(home: &Home) {
    let opened = home.fresh().await;
    opened.store.commit(&[accepted(1, None), ended(1)]).await.unwrap();
    for late in [ended_as(1, TaskState::Failed), dispatched(1, 9), requeued(1), accepted(1, None)] {
        opened.store.commit(&[late]).await.unwrap();
    }
    let again = home.reopen(opened).await;
    assert!(again.recovered.tasks.is_empty());
    let (task, _) = again.store.ended_task(task_id(1)).await.unwrap().unwrap();
    assert_eq!((task.state, task.error.clone()), (TaskState::Succeeded, None));
}

pub(super) async fn a_requeued_task_runs_nowhere_and_keeps_its_attempts(home: &Home) {
    let opened = home.fresh().await;
    opened.store.commit(&[accepted(1, None)]).await.unwrap();
    opened.store.commit(&[dispatched(1, 1)]).await.unwrap();
    opened.store.commit(&[requeued(1)]).await.unwrap();
    let again = home.reopen(opened).await;
    let task = &again.recovered.tasks[0];
    assert_eq!((task.attempt, task.running), (1, None));
}

pub(super) async fn a_hand_out_of_a_task_that_is_not_stored_is_nothing(home: &Home) {
    let opened = home.fresh().await;
    opened.store.commit(&[dispatched(1, 1), requeued(2)]).await.unwrap();
    assert!(home.reopen(opened).await.recovered.tasks.is_empty());
}

pub(super) async fn nodes_that_are_gone_are_not_read_back(home: &Home) {
    let opened = home.fresh().await;
    let nodes = [1, 2].map(|n| Op::NodeRegistered(Arc::new(node_record(n))));
    opened.store.commit(&nodes).await.unwrap();
    opened.store.commit(&[Op::NodeGone { node: node_id(1), at: now() }]).await.unwrap();
    let again = home.reopen(opened).await;
    let [node] = &again.recovered.nodes[..] else { panic!("one is left") };
    assert_eq!(node.registration, node_record(2).registration);
    assert_eq!(
        (node.id, node.session_hash, node.boot_id),
        (node_id(2), [2; 32], BootId(Uuid::from_u64_pair(2, 2)))
    );
}

pub(super) async fn listings_go_from_new_to_old_and_match_every_given_field(home: &Home) {
    let opened = home.fresh().await;
    let store = &*opened.store;
    let ops: Vec<_> = (1..=6)
        .map(|n| ended_as(n, if n == 3 { TaskState::Failed } else { TaskState::Succeeded }))
        .chain([accepted(7, None)])
        .collect();
    store.commit(&ops).await.unwrap();
    let all = TaskFilter::default();
    assert_eq!(ids(store, &all).await, [6, 5, 4, 3, 2, 1].map(task_id));
    let page = TaskFilter { before: Some(task_id(5)), limit: 2, ..TaskFilter::default() };
    assert_eq!(ids(store, &page).await, [4, 3].map(task_id));
    let failed = TaskFilter { state: Some(TaskState::Failed), ..TaskFilter::default() };
    assert_eq!(ids(store, &failed).await, [task_id(3)]);
    let label = Some(("batch".to_owned(), "0".to_owned()));
    let even = TaskFilter { label: label.clone(), limit: 2, ..TaskFilter::default() };
    assert_eq!(ids(store, &even).await, [6, 4].map(task_id));
    let next = TaskFilter { label, before: Some(task_id(4)), ..TaskFilter::default() };
    assert_eq!(ids(store, &next).await, [task_id(2)]);
    let ours = TaskFilter { client: Some(ClientId(7)), node: Some(node_id(1)), ..TaskFilter::default() };
    assert_eq!(ids(store, &ours).await.len(), 6);
    for nothing in [
        TaskFilter { client: Some(ClientId(8)), ..TaskFilter::default() },
        TaskFilter { node: Some(node_id(9)), ..TaskFilter::default() },
        TaskFilter { kind: Some("sum".to_owned()), ..TaskFilter::default() },
        TaskFilter { state: Some(TaskState::Queued), ..TaskFilter::default() },
    ] {
        assert!(ids(store, &nothing).await.is_empty());
    }
    let bare = store.ended_tasks(&all, false).await.unwrap();
    assert!(bare.iter().all(|(task, _)| task.input.is_none() && task.result.is_none()));
    let full = store.ended_tasks(&all, true).await.unwrap();
    assert_eq!(full.iter().filter(|(task, _)| task.input.is_some() && task.result.is_some()).count(), 5);
}

pub(super) async fn tokens_are_kept_by_hash_and_pools_by_revision(home: &Home) {
    let opened = home.fresh().await;
    let (one, two) = (token(1), token(2));
    opened.store.put_token(&[1; 32], &one).await.unwrap();
    opened.store.put_token(&[2; 32], &two).await.unwrap();
    opened.store.remove_token(one.id).await.unwrap();
    opened.store.remove_token(one.id).await.unwrap();
    let spec = |desired| PoolSpec { desired: Some(desired), ..PoolSpec::default() };
    opened.store.put_pool("a", 2, &spec(5)).await.unwrap();
    opened.store.put_pool("a", 1, &spec(9)).await.unwrap();
    let again = home.reopen(opened).await;
    assert_eq!(again.store.tokens().await.unwrap(), [([2; 32], two)]);
    let pools = again.store.pools().await.unwrap();
    assert_eq!((pools.len(), &*pools[0].0, pools[0].1, pools[0].2.desired), (1, "a", 2, Some(5)));
}

pub(super) async fn what_is_old_is_forgotten_and_keys_outlive_their_tasks(home: &Home) {
    let opened = home.fresh().await;
    let store = &*opened.store;
    let old = Timestamp(now().0.saturating_sub_unsigned(KEPT_MS + 1_000));
    let gone = Op::NodeRegistered(Arc::new(node_record(1)));
    let ops = [
        accepted(1, Some("k")),
        ended_at(1, old),
        ended(2),
        accepted(3, None),
        gone,
        Op::NodeGone { node: node_id(1), at: old },
    ];
    store.commit(&ops).await.unwrap();
    assert!(store.forget(now()).await.unwrap());
    assert!(!store.forget(now()).await.unwrap(), "the rest is young");
    assert_eq!(ids(store, &TaskFilter::default()).await, [task_id(2)]);
    let label = Some(("batch".to_owned(), "1".to_owned()));
    assert!(ids(store, &TaskFilter { label, ..TaskFilter::default() }).await.is_empty());
    let again = home.reopen(opened).await;
    assert_eq!(open_ids(&again), [task_id(3)]);
    assert_eq!(again.recovered.keys.len(), 1);
    again.store.forget(now().plus_ms(KEPT_MS + 1_000)).await.unwrap();
    let last = home.reopen(again).await;
    assert!(last.recovered.keys.is_empty());
    assert_eq!(open_ids(&last), [task_id(3)], "what has not ended is never forgotten");
}

pub(super) async fn a_store_over_its_size_drops_the_oldest_ended_tasks_first(home: &Home) {
    let opened = home.with_room(1_000_000).await;
    let store = &*opened.store;
    let text = format!("\"{}\"", "x".repeat(4_000));
    let big = |n: u64| {
        let finished_at = Some(now().plus_ms(n));
        let task = Task { result: Some(json(&text)), finished_at, ..task(n, TaskState::Succeeded) };
        Op::TaskEnded { task: Arc::new(task), client: ClientId(7), log: None }
    };
    store.commit(&(1..=600).map(big).collect::<Vec<_>>()).await.unwrap();
    while store.forget(now()).await.unwrap() {}
    let filter = TaskFilter { limit: 1_000, ..TaskFilter::default() };
    let kept = ids(store, &filter).await;
    assert!((50..=300).contains(&kept.len()), "{} are kept", kept.len());
    let newest: Vec<_> = (1..=600).rev().take(kept.len()).map(task_id).collect();
    assert_eq!(kept, newest);
}

pub(super) async fn a_newer_schema_is_refused(home: &Home) {
    let opened = home.fresh().await;
    drop(opened);
    pretend_newer(&home.place).await;
    let refused = lead(&home.place, u64::MAX).await.err().unwrap();
    assert!(matches!(refused, StoreError::Newer { version: 99, .. }), "{refused}");
}

pub(super) async fn a_store_on_a_sound_disk_is_writable(home: &Home) {
    let opened = home.fresh().await;
    opened.store.check_writable().await.unwrap();
}

fn log_of(run: u64, stdout: &str, stderr: &str) -> Arc<TaskLog> {
    let tail = |offset, text: &str| Tail { offset, bytes: text.to_owned().into() };
    let tails = Tails { stdout: tail(10, stdout), stderr: tail(0, stderr) };
    Arc::new(TaskLog { run: RunId(run), attempt: 2, tails })
}

fn ended_with(n: u64, log: Arc<TaskLog>) -> Op {
    let task = Arc::new(task(n, TaskState::Succeeded));
    Op::TaskEnded { task, client: ClientId(7), log: Some(log) }
}

async fn log(store: &dyn Store, n: u64, stream: Stream) -> Option<(u64, u64, String)> {
    let stored = store.task_log(task_id(n), stream, 0).await.unwrap()?;
    Some((stored.run.0, stored.piece.offset, String::from_utf8(stored.piece.bytes.to_vec()).unwrap()))
}

pub(super) async fn a_log_is_kept_with_its_task_read_from_any_byte_and_forgotten_with_it(home: &Home) {
    let opened = home.fresh().await;
    let store = &*opened.store;
    store.commit(&[ended_with(1, log_of(5, "hello world", "oh")), ended(2)]).await.unwrap();
    // Later words change nothing.
    store.commit(&[ended_with(1, log_of(6, "other", ""))]).await.unwrap();
    let again = home.reopen(opened).await;
    let store = &*again.store;
    assert_eq!(log(store, 1, Stream::Stdout).await, Some((5, 10, "hello world".to_owned())));
    assert_eq!(log(store, 1, Stream::Stderr).await, Some((5, 0, "oh".to_owned())));
    assert_eq!(log(store, 2, Stream::Stdout).await, None);
    for (from, offset, text) in [(0, 10, "hello world"), (16, 16, "world"), (21, 21, ""), (u64::MAX, 21, "")]
    {
        let stored = store.task_log(task_id(1), Stream::Stdout, from).await.unwrap().unwrap();
        assert_eq!((stored.attempt, stored.end), (2, 21));
        assert_eq!((stored.piece.offset, &stored.piece.bytes[..]), (offset, text.as_bytes()), "from {from}");
    }
    again.store.forget(now().plus_ms(KEPT_MS + 1_000)).await.unwrap();
    assert_eq!(log(&*again.store, 1, Stream::Stdout).await, None);
}

pub(super) async fn a_log_that_comes_after_the_end_takes_the_place_of_an_older_run_only(home: &Home) {
    let opened = home.fresh().await;
    let store = &*opened.store;
    let late = |n, run, text| Op::TaskLog { task: task_id(n), log: log_of(run, text, "") };
    store.commit(&[late(1, 5, "of nothing"), accepted(2, None), late(2, 5, "too early")]).await.unwrap();
    store.commit(&[ended_with(3, log_of(5, "first", "x")), late(3, 6, "second")]).await.unwrap();
    store.commit(&[late(3, 6, "again"), late(3, 4, "older")]).await.unwrap();
    assert_eq!(log(store, 1, Stream::Stdout).await, None);
    assert_eq!(log(store, 2, Stream::Stdout).await, None);
    assert_eq!(log(store, 3, Stream::Stdout).await, Some((6, 10, "second".to_owned())));
    assert_eq!(log(store, 3, Stream::Stderr).await, None, "that was another run's");
}

pub(super) async fn logs_over_their_share_of_the_store_go_oldest_first_and_their_tasks_stay(home: &Home) {
    let opened = home.with_room(4_000_000).await;
    let text = "x".repeat(30_000);
    let ops: Vec<_> = (1..=60).map(|n| ended_with(n, log_of(n, &text, ""))).collect();
    opened.store.commit(&ops).await.unwrap();
    // Also a master that did not write them knows how much they take.
    drop(opened);
    let opened = home.with_room(4_000_000).await;
    let store = &*opened.store;
    while store.forget(now()).await.unwrap() {}
    let mut kept = Vec::new();
    for n in 1..=60 {
        if log(store, n, Stream::Stdout).await.is_some() {
            kept.push(n);
        }
    }
    assert_eq!(kept, (28..=60).collect::<Vec<_>>(), "a quarter of the store is 33 of them");
    let filter = TaskFilter { limit: 100, ..TaskFilter::default() };
    assert_eq!(ids(store, &filter).await.len(), 60);
}
