//! A master without its HTTP side, a store that can be held up, and a node without a socket.

use crate::{
    brain::{Brain, BrainError, FromSocket, OpenLink, Replies, Running, Teller, ToSocket},
    lead::Tenure,
    store::{self, Doing, EndedTask, Store, StoreError, StoredPiece, StoredPool, StoredToken},
};
use bytes::{Bytes, BytesMut};
use protocol::{
    BootId, NodeId, TaskId, Timestamp,
    auth::TokenInfo,
    frame::split_frames,
    kinds::built_in,
    log::Stream,
    node::NodeRegistration,
    pool::PoolSpec,
    task::{Durability, Json, TaskSpec, TaskState},
    work::{Hello, Outcome, Run, RunRef, RunResult, ToMaster, ToNode, VERSION},
};
use scheduler::{
    Config, TaskFilter,
    effect::Answer,
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
pub(super) const LONG: Duration = Duration::from_secs(60);

/// A store whose transactions can be held up, refused and counted.
pub(super) struct Probe {
    inner: Arc<dyn Store>,
    pub(super) commits: AtomicUsize,
    pub(super) ops: AtomicUsize,
    pub(super) refuses: AtomicBool,
    pub(super) breaks: AtomicBool,
    pub(super) holds: AtomicBool,
    released: Notify,
}

impl Probe {
    pub(super) fn release(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.released.notify_waiters();
    }
}

impl Store for Probe {
    fn commit<'a>(&'a self, ops: &'a [Op]) -> Doing<'a, ()> {
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
    fn ended_task(&self, id: TaskId) -> Doing<'_, Option<EndedTask>> {
        self.inner.ended_task(id)
    }
    fn ended_tasks<'a>(&'a self, filter: &'a TaskFilter, full: bool) -> Doing<'a, Vec<EndedTask>> {
        self.inner.ended_tasks(filter, full)
    }
    fn task_log(&self, id: TaskId, stream: Stream, from: u64) -> Doing<'_, Option<StoredPiece>> {
        self.inner.task_log(id, stream, from)
    }
    fn put_token<'a>(&'a self, hash: &'a [u8; 32], info: &'a TokenInfo) -> Doing<'a, ()> {
        self.inner.put_token(hash, info)
    }
    fn remove_token(&self, id: Uuid) -> Doing<'_, ()> {
        self.inner.remove_token(id)
    }
    fn tokens(&self) -> Doing<'_, Vec<StoredToken>> {
        self.inner.tokens()
    }
    fn put_pool<'a>(&'a self, name: &'a str, revision: u64, spec: &'a PoolSpec) -> Doing<'a, ()> {
        self.inner.put_pool(name, revision, spec)
    }
    fn pools(&self) -> Doing<'_, Vec<StoredPool>> {
        self.inner.pools()
    }
    fn check_writable(&self) -> Doing<'_, ()> {
        self.inner.check_writable()
    }
    fn forget(&self, now: Timestamp) -> Doing<'_, bool> {
        self.inner.forget(now)
    }
}

pub(super) struct Master {
    pub(super) brain: Brain,
    pub(super) running: Running,
    pub(super) stop: CancellationToken,
    pub(super) store: Arc<Probe>,
}

impl Master {
    pub(super) async fn start(dir: &Path) -> Self {
        Self::start_for(dir, Tenure::for_ever()).await
    }

    pub(super) async fn start_for(dir: &Path, tenure: Tenure) -> Self {
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
        let (brain, running) = Brain::start(config, opened.recovered, shared, tenure, stop.clone());
        Self { brain, running, stop, store }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        timeout(LONG, self.running).await.unwrap().unwrap();
    }

    /// Ends as `kill -9` does: nothing is flushed, nobody is told.
    pub(super) async fn kill(self) {
        self.running.task.abort();
        let ended = self.running.await;
        assert!(matches!(ended, Err(BrainError::Panicked(_))));
        // The writer lets go of the store once the brain is gone.
        while Arc::strong_count(&self.store) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn submission(&self, id: TaskId, durability: Durability, wait: Wait) -> (Submission, Replies) {
        let (reply, replies) = self.brain.reply();
        let spec = TaskSpec::new("fib", Some(json(r#"{"n":20}"#)));
        (Submission { id, spec, durability, client: ClientId(1), key: None, reply, wait }, replies)
    }

    pub(super) async fn submit(&self, durability: Durability, wait: Wait) -> (TaskId, Replies) {
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

    pub(super) async fn state(&self, id: TaskId) -> Option<TaskState> {
        self.brain.query(move |core, now| core.task(id, now).map(|(task, _)| task.state)).await.unwrap()
    }

    /// A task as the store has it.
    pub(super) async fn ended_task(&self, id: TaskId) -> Option<EndedTask> {
        self.store.ended_task(id).await.unwrap()
    }

    /// Waits until the scheduler shows this of a task.
    pub(super) async fn until(&self, id: TaskId, wanted: impl Fn(Option<TaskState>) -> bool) {
        let look = async {
            while !wanted(self.state(id).await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(LONG, look).await.unwrap();
    }

    pub(super) async fn register(&self, node: NodeId, boot_id: BootId) {
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
pub(super) struct FakeNode {
    pub(super) id: NodeId,
    pub(super) teller: Teller,
    pub(super) link: OpenLink,
}

impl FakeNode {
    pub(super) async fn connect(master: &Master, id: NodeId, boot_id: BootId, runs: Vec<RunRef>) -> Self {
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

    pub(super) async fn say(&self, said: &ToMaster) {
        let mut message = BytesMut::new();
        said.put(&mut message);
        self.teller.tell(FromSocket::Message(message.freeze())).await.unwrap();
    }

    pub(super) async fn raw(&mut self) -> Option<ToSocket> {
        timeout(LONG, self.link.orders.recv()).await.unwrap()
    }

    /// The frames of the next message.
    pub(super) async fn hear(&mut self) -> Vec<ToNode> {
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

    pub(super) async fn next_run(&mut self) -> Run {
        loop {
            for frame in self.hear().await {
                if let ToNode::Run(run, _) = frame {
                    return run;
                }
            }
        }
    }

    pub(super) async fn succeed(&self, run: &Run) {
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

pub(super) fn json(text: &str) -> Json {
    Arc::from(RawValue::from_string(text.to_owned()).unwrap())
}

pub(super) fn ids() -> (NodeId, BootId) {
    (NodeId(Uuid::now_v7()), BootId(Uuid::now_v7()))
}

pub(super) async fn answer(replies: &mut Replies) -> Option<Answer> {
    timeout(LONG, replies.next()).await.unwrap()
}
