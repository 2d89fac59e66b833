//! The brain with a real store, callers, and nodes that speak through links in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod harness;

use super::{BrainError, FromSocket, ToSocket, Unavailable};
use crate::lead::Tenure;
use harness::{FakeNode, LONG, Master, answer, ids};
use protocol::{
    task::{Durability, TaskState},
    work::{RunRef, ToNode},
};
use scheduler::{
    effect::{Answer, Refusal},
    event::{Event, Wait},
};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::timeout;

#[tokio::test]
async fn a_disk_task_is_accepted_only_once_it_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    master.store.holds.store(true, Ordering::SeqCst);
    let (id, mut replies) = master.submit(Durability::Disk, Wait::Accepted).await;
    let early = timeout(Duration::from_millis(100), replies.next()).await;
    assert!(early.is_err(), "answered before the commit: {early:?}");
    master.store.release();
    let Some(Answer::Accepted(task)) = answer(&mut replies).await else { panic!("not accepted") };
    assert_eq!(task.id, id);
    assert!(answer(&mut replies).await.is_none());
    master.stop().await;
}

#[tokio::test]
async fn a_brain_whose_lease_is_over_answers_writes_and_sends_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let tenure = Tenure::until(u64::MAX - 1);
    let master = Master::start_for(dir.path(), tenure.clone()).await;
    master.register(node, boot_id).await;
    let mut fake = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    master.store.holds.store(true, Ordering::SeqCst);
    let (_, mut replies) = master.submit(Durability::Disk, Wait::Accepted).await;
    let early = timeout(Duration::from_millis(100), replies.next()).await;
    assert!(early.is_err(), "answered before the commit: {early:?}");
    tenure.end();
    // What was on its way to the disk gets there, and is not acknowledged.
    master.store.release();
    assert!(answer(&mut replies).await.is_none());
    let ended = timeout(LONG, master.running).await.unwrap();
    assert!(matches!(ended, Err(BrainError::Deposed)), "{ended:?}");
    assert!(matches!(master.brain.send(Event::Tick).await, Err(Unavailable::Stopped)));
    timeout(LONG, fake.link.over.cancelled()).await.unwrap();
    while let Some(sent) = fake.link.orders.recv().await {
        assert!(!matches!(sent, ToSocket::Message(_)), "{sent:?}");
    }
}

#[tokio::test]
async fn what_was_accepted_survives_a_kill_and_a_running_task_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let master = Master::start(dir.path()).await;
    master.register(node, boot_id).await;
    let mut fake = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    let mut accepted = Vec::new();
    for _ in 0..20 {
        let (id, mut replies) = master.submit(Durability::Disk, Wait::Accepted).await;
        assert!(matches!(answer(&mut replies).await, Some(Answer::Accepted(_))));
        accepted.push(id);
    }
    let run = fake.next_run().await;
    master.until(run.task, |state| state == Some(TaskState::Running)).await;
    master.kill().await;

    let master = Master::start(dir.path()).await;
    for id in &accepted {
        assert!(master.state(*id).await.is_some(), "{id} is gone");
    }
    let held = RunRef { task: run.task, run: run.run };
    let fake = FakeNode::connect(&master, fake.id, boot_id, vec![held]).await;
    master.until(run.task, |state| state == Some(TaskState::Running)).await;
    fake.succeed(&run).await;
    master.until(run.task, |state| state == Some(TaskState::Succeeded)).await;
    let shown = master.brain.query(move |core, now| core.task(run.task, now)).await.unwrap();
    assert_eq!(shown.map(|(task, _)| task.attempt), Some(1), "it was not run a second time");
    master.stop().await;
}

#[tokio::test]
async fn a_disk_result_is_on_disk_before_its_caller_and_its_node_hear_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let master = Master::start(dir.path()).await;
    master.register(node, boot_id).await;
    let mut fake = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    let until_us = master.brain.now().mono_us + 60_000_000;
    let (id, mut replies) = master.submit(Durability::Disk, Wait::Until { until_us }).await;
    let run = fake.next_run().await;
    master.store.holds.store(true, Ordering::SeqCst);
    fake.succeed(&run).await;
    let early = timeout(Duration::from_millis(100), replies.next()).await;
    assert!(early.is_err(), "answered before the commit: {early:?}");
    master.store.release();
    let Some(Answer::Finished(task)) = answer(&mut replies).await else { panic!("not finished") };
    assert_eq!(task.result.as_ref().map(|result| result.get()), Some(r#"{"value":"6765"}"#));
    let told = loop {
        if let Some(ToNode::Committed(committed)) =
            fake.hear().await.into_iter().find(|frame| matches!(frame, ToNode::Committed(_)))
        {
            break committed.runs;
        }
    };
    assert_eq!(told, [run.run]);
    assert!(master.ended_task(id).await.is_some());
    master.stop().await;
}

#[tokio::test]
async fn ten_thousand_submissions_become_few_transactions() {
    const TASKS: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut waiting = Vec::with_capacity(TASKS);
    for _ in 0..TASKS {
        waiting.push(master.submit(Durability::Disk, Wait::Accepted).await.1);
    }
    for replies in &mut waiting {
        assert!(matches!(answer(replies).await, Some(Answer::Accepted(_))));
    }
    assert_eq!(master.store.ops.load(Ordering::SeqCst), TASKS);
    let commits = master.store.commits.load(Ordering::SeqCst);
    assert!(commits <= TASKS / 20, "{commits} transactions");
    master.stop().await;
}

#[tokio::test]
async fn a_failing_store_refuses_new_tasks_and_takes_them_again_when_it_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let master = Master::start(dir.path()).await;
    master.register(node, boot_id).await;
    let mut fake = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    let (running, _) = master.submit(Durability::Disk, Wait::Accepted).await;
    let run = fake.next_run().await;

    master.store.refuses.store(true, Ordering::SeqCst);
    let (refused, mut replies) = master.submit(Durability::Disk, Wait::Accepted).await;
    let answered = answer(&mut replies).await;
    assert!(matches!(answered, Some(Answer::Refused(Refusal::StoreFailed { .. }))), "{answered:?}");
    assert!(master.state(refused).await.is_none());
    // A result that comes meanwhile is kept and written later.
    fake.succeed(&run).await;

    master.store.refuses.store(false, Ordering::SeqCst);
    let ended = async {
        while master.ended_task(running).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, ended).await.unwrap();
    let (_, mut replies) = master.submit(Durability::Disk, Wait::Accepted).await;
    assert!(matches!(answer(&mut replies).await, Some(Answer::Accepted(_))));
    master.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_unpromised_memory_task_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    // Nothing can be promised while the store does not answer.
    master.store.holds.store(true, Ordering::SeqCst);
    let until_us = master.brain.now().mono_us + 60_000_000;
    let (id, replies) = master.submit(Durability::Memory, Wait::Until { until_us }).await;
    master.until(id, |state| state == Some(TaskState::Queued)).await;
    drop(replies);
    master.until(id, |state| state.is_none_or(TaskState::is_terminal)).await;
    master.store.release();
    master.stop().await;
}

#[tokio::test]
async fn a_newer_channel_of_a_node_takes_the_place_of_the_older() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let master = Master::start(dir.path()).await;
    master.register(node, boot_id).await;
    let mut older = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    let mut newer = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    let Some(ToSocket::Close(reason)) = older.raw().await else { panic!("not closed") };
    assert_eq!(reason, session::close::CloseReason::SessionOver);
    timeout(LONG, older.link.over.cancelled()).await.unwrap();
    // That the older socket ends later changes nothing for the newer.
    older.teller.tell(FromSocket::Closed { by_node: true }).await.unwrap();
    let (id, _replies) = master.submit(Durability::Disk, Wait::Accepted).await;
    assert_eq!(newer.next_run().await.task, id);
    master.stop().await;
}

#[tokio::test]
async fn a_stop_writes_what_waits_closes_the_channels_and_ends_all_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let master = Master::start(dir.path()).await;
    master.register(node, boot_id).await;
    let mut fake = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    master.store.holds.store(true, Ordering::SeqCst);
    let (id, mut accepted) = master.submit(Durability::Disk, Wait::Accepted).await;
    let (reply, mut waiting) = master.brain.reply();
    let until_us = master.brain.now().mono_us + 600_000_000;
    master.brain.send(Event::Wait { task: id, reply, until_us }).await.unwrap();
    master.brain.query(|_, _| ()).await.unwrap();
    master.stop.cancel();
    master.store.release();
    assert!(matches!(answer(&mut accepted).await, Some(Answer::Accepted(_))));
    let brain = master.brain.clone();
    timeout(LONG, master.running).await.unwrap().unwrap();
    while answer(&mut waiting).await.is_some() {}
    let reason = loop {
        if let ToSocket::Close(reason) = fake.raw().await.expect("a close comes first") {
            break reason;
        }
    };
    assert_eq!(reason, session::close::CloseReason::GoingAway);
    assert_eq!(brain.send(Event::Tick).await, Err(Unavailable::Stopped));
    assert!(brain.reply().1.next().await.is_none());
}

#[tokio::test]
async fn a_defect_in_the_brain_ends_it_with_an_error_and_tells_all_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let (_, mut replies) = master.brain.reply();
    let asked = master.brain.query(|_, _| panic!("a defect")).await;
    assert_eq!(asked, Err::<(), _>(Unavailable::Stopped));
    let ended = timeout(LONG, master.running).await.unwrap();
    assert!(matches!(ended, Err(BrainError::Panicked(_))), "{ended:?}");
    assert!(answer(&mut replies).await.is_none());
}

#[tokio::test]
async fn a_defect_in_the_store_ends_the_brain_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    master.store.breaks.store(true, Ordering::SeqCst);
    let (_, mut replies) = master.submit(Durability::Disk, Wait::Accepted).await;
    let ended = timeout(LONG, master.running).await.unwrap();
    assert!(matches!(ended, Err(BrainError::WriterGone)), "{ended:?}");
    assert!(answer(&mut replies).await.is_none());
}

#[tokio::test]
async fn a_channel_that_has_not_greeted_gives_way_to_the_next_one_and_the_one_that_counts_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (node, boot_id) = ids();
    let master = Master::start(dir.path()).await;
    master.register(node, boot_id).await;
    let mut fake = FakeNode::connect(&master, node, boot_id, Vec::new()).await;
    let mut silent = master.brain.open_link(node).await.unwrap();
    let _newer = master.brain.open_link(node).await.unwrap();
    // Its own bound for silence is longer than this.
    let closed = timeout(Duration::from_secs(4), silent.orders.recv()).await.expect("it is closed at once");
    let over = session::close::CloseReason::SessionOver;
    assert!(matches!(closed, Some(ToSocket::Close(ref reason)) if *reason == over), "{closed:?}");
    timeout(LONG, silent.over.cancelled()).await.unwrap();
    master.submit(Durability::Memory, Wait::Stream { ack: false }).await;
    fake.next_run().await;
    master.stop().await;
}
