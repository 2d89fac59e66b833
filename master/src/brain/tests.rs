//! The brain with a real store, callers, and nodes that speak through links in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use super::{Brain, BrainError, FromSocket, OpenLink, Running, Teller, ToSocket, Unavailable};
use crate::store::{self, Store, StoreError};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use protocol::{
    BootId, NodeId, TaskId, Timestamp,
    auth::TokenInfo,
    frame::split_frames,
    kinds::built_in,
    node::NodeRegistration,
    pool::PoolSpec,
    task::{Durability, Json, Task, TaskSpec, TaskState},
    work::{Hello, Outcome, Run, RunRef, RunResult, ToMaster, ToNode, VERSION},
};
use scheduler::{
    Config, TaskFilter,
    effect::{Answer, Refusal},
    event::{ClientId, Event, Submission, Wait},
    record::Op,
};
use serde_json::value::RawValue;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longer than anything here takes on any machine.
const LONG: Duration = Duration::from_secs(60);

/// A store whose transactions can be held up, refused and counted.
struct Probe {
    inner: Arc<dyn Store>,
    commits: AtomicUsize,
    ops: AtomicUsize,
    refuses: AtomicBool,
    breaks: AtomicBool,
    holds: AtomicBool,
    released: Notify,
}

impl Probe {
    fn release(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.released.notify_waiters();
    }
}

impl Store for Probe {
    fn commit<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.commits.fetch_add(1, Ordering::SeqCst);
            loop {
                let released = self.released.notified();
                if !self.holds.load(Ordering::SeqCst) {
                    break;
                }
                released.await;
            }
            assert!(!self.breaks.load(Ordering::SeqCst), "a defect");
            if self.refuses.load(Ordering::SeqCst) {
                return Err(StoreError::Database { what: "commit", why: "disk full".to_owned() });
            }
            self.ops.fetch_add(ops.len(), Ordering::SeqCst);
            self.inner.commit(ops).await
        })
    }
    fn ended_task(&self, id: TaskId) -> BoxFuture<'_, Result<Option<(Arc<Task>, ClientId)>, StoreError>> {
        self.inner.ended_task(id)
    }
    fn ended_tasks<'a>(
        &'a self,
        filter: &'a TaskFilter,
        full: bool,
    ) -> BoxFuture<'a, Result<Vec<(Arc<Task>, ClientId)>, StoreError>> {
        self.inner.ended_tasks(filter, full)
    }
    fn put_token<'a>(
        &'a self,
        hash: &'a [u8; 32],
        info: &'a TokenInfo,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.put_token(hash, info)
    }
    fn remove_token(&self, id: Uuid) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.remove_token(id)
    }
    fn tokens(&self) -> BoxFuture<'_, Result<Vec<([u8; 32], TokenInfo)>, StoreError>> {
        self.inner.tokens()
    }
    fn put_pool<'a>(
        &'a self,
        name: &'a str,
        revision: u64,
        spec: &'a PoolSpec,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.put_pool(name, revision, spec)
    }
    fn pools(&self) -> BoxFuture<'_, Result<Vec<(String, u64, PoolSpec)>, StoreError>> {
        self.inner.pools()
    }
    fn check_writable(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.check_writable()
    }
    fn forget(&self, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.inner.forget(now)
    }
}

struct Master {
    brain: Brain,
    running: Running,
    stop: CancellationToken,
    store: Arc<Probe>,
}

impl Master {
    async fn start(dir: &Path) -> Self {
        let opened = store::open(dir, u64::MAX).await.unwrap();
        let store = Arc::new(Probe {
            inner: opened.store,
            commits: AtomicUsize::new(0),
            ops: AtomicUsize::new(0),
            refuses: AtomicBool::new(false),
            breaks: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            released: Notify::new(),
        });
        let stop = CancellationToken::new();
        let config = Config { epoch: opened.epoch, ..Config::default() };
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let (brain, running) = Brain::start(config, opened.recovered, shared, stop.clone());
        Self { brain, running, stop, store }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LONG, self.running).await.unwrap().unwrap();
    }

    /// Ends as `kill -9` does: nothing is flushed, nobody is told.
    async fn kill(self) {
        self.running.task.abort();
        let ended = self.running.await;
        assert!(matches!(ended, Err(BrainError::Panicked(_))));
        // The writer lets go of the store once the brain is gone.
        while Arc::strong_count(&self.store) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn submission(&self, id: TaskId, durability: Durability, wait: Wait) -> (Submission, super::Replies) {
        let (reply, replies) = self.brain.reply();
        let spec = TaskSpec::new("fib", Some(json(r#"{"n":20}"#)));
        (Submission { id, spec, durability, client: ClientId(1), key: None, reply, wait }, replies)
    }

    async fn submit(&self, durability: Durability, wait: Wait) -> (TaskId, super::Replies) {
        let id = TaskId(Uuid::now_v7());
        let (submission, replies) = self.submission(id, durability, wait);
        self.brain.send(Event::Submit(Box::new(submission))).await.unwrap();
        (id, replies)
    }

    async fn ask(&self, event: impl FnOnce(scheduler::event::ReplyId) -> Event) -> Answer {
        let (reply, mut replies) = self.brain.reply();
        self.brain.send(event(reply)).await.unwrap();
        timeout(LONG, replies.next()).await.unwrap().unwrap()
    }

    async fn state(&self, id: TaskId) -> Option<TaskState> {
        self.brain.query(move |core, now| core.task(id, now).map(|(task, _)| task.state)).await.unwrap()
    }

    /// Waits until the scheduler shows this of a task.
    async fn until(&self, id: TaskId, wanted: impl Fn(Option<TaskState>) -> bool) {
        let look = async {
            while !wanted(self.state(id).await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(LONG, look).await.unwrap();
    }

    async fn register(&self, node: NodeId, boot_id: BootId) {
        let registration = Box::new(NodeRegistration {
            name: "n1".to_owned(),
            ip: "10.0.0.1".parse().unwrap(),
            pool: "default".to_owned(),
            allotted_cores: 2.0,
            memory_bytes: 1 << 30,
            kinds: built_in(),
            labels: Default::default(),
            version: "test".to_owned(),
            boot_id,
            runtime_id: None,
        });
        let answer = self
            .ask(|reply| Event::Register { node, session_hash: [9; 32], replaces: None, registration, reply })
            .await;
        assert!(matches!(answer, Answer::Registered { .. }), "{answer:?}");
    }
}

/// The node's side of a work channel, without a socket.
struct FakeNode {
    id: NodeId,
    teller: Teller,
    link: OpenLink,
}

impl FakeNode {
    async fn connect(master: &Master, id: NodeId, boot_id: BootId, runs: Vec<RunRef>) -> Self {
        let link = master.brain.open_link(id).await.unwrap();
        let mut node = Self { id, teller: link.teller.clone(), link };
        node.say(&ToMaster::Hello(Hello {
            epoch: 0,
            version: VERSION,
            node: id,
            boot_id,
            runs,
            draining: false,
        }))
        .await;
        let welcome = node.hear().await;
        assert!(matches!(welcome[..], [ToNode::Welcome(_)]), "{welcome:?}");
        node
    }

    async fn say(&self, said: &ToMaster) {
        let mut message = BytesMut::new();
        said.put(&mut message);
        self.teller.tell(FromSocket::Message(message.freeze())).await.unwrap();
    }

    async fn raw(&mut self) -> Option<ToSocket> {
        timeout(LONG, self.link.orders.recv()).await.unwrap()
    }

    /// The frames of the next message.
    async fn hear(&mut self) -> Vec<ToNode> {
        loop {
            match self.raw().await.expect("the channel is open") {
                ToSocket::Message(message) => {
                    self.teller.tell(FromSocket::Written(message.len())).await.unwrap();
                    return split_frames(message)
                        .unwrap()
                        .iter()
                        .map(|frame| ToNode::read(frame).unwrap().unwrap())
                        .collect();
                }
                ToSocket::Ping => self.teller.tell(FromSocket::Pong).await.unwrap(),
                ToSocket::Close(reason) => panic!("closed: {reason}"),
            }
        }
    }

    async fn next_run(&mut self) -> Run {
        loop {
            for frame in self.hear().await {
                if let ToNode::Run(run, _) = frame {
                    return run;
                }
            }
        }
    }

    async fn succeed(&self, run: &Run) {
        let header = RunResult {
            epoch: run.epoch,
            task: run.task,
            run: run.run,
            outcome: Outcome::Succeeded,
            run_ms: 1.0,
            cpu_ms: 1.0,
            sample: None,
        };
        self.say(&ToMaster::Result(header, Bytes::from_static(br#"{"value":"6765"}"#))).await;
    }
}

fn json(text: &str) -> Json {
    Arc::from(RawValue::from_string(text.to_owned()).unwrap())
}

fn ids() -> (NodeId, BootId) {
    (NodeId(Uuid::now_v7()), BootId(Uuid::now_v7()))
}

async fn answer(replies: &mut super::Replies) -> Option<Answer> {
    timeout(LONG, replies.next()).await.unwrap()
}

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
    assert!(master.store.ended_task(id).await.unwrap().is_some());
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
        while master.store.ended_task(running).await.unwrap().is_none() {
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
