//! Many nodes in one process: each registers, opens a work channel and reports over connections of its own, as the agent
//! does, and drives the production `session::node::Session`. None of them measures CPU; of kinds they know `sleep`.
//!
//! - [`Crowd`]: all of them, and what is counted;
//! - `member`: one of them.

mod member;

use anyhow::Context as _;
use protocol::TaskId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use session::node::ExitReason;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// What happened to all of them so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Work channels that are open now, greeting included.
    pub open: AtomicUsize,
    /// Registrations that were answered with a node's id.
    pub registered: AtomicUsize,
    /// Registrations and work channels that failed.
    pub failed: AtomicUsize,
    /// Reports that were answered.
    pub reported: AtomicUsize,
    /// Runs that are going on now.
    pub running: AtomicUsize,
    started: Mutex<BTreeMap<TaskId, u32>>,
    opened_at: Mutex<Vec<Instant>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counts {
    /// How often each task was started.
    #[must_use]
    pub fn started(&self) -> BTreeMap<TaskId, u32> {
        locked(&self.started).clone()
    }

    /// When each work channel was opened, in order.
    #[must_use]
    pub fn opened_at(&self) -> Vec<Instant> {
        locked(&self.opened_at).clone()
    }
}

/// The nodes; dropping it cuts all their connections.
#[derive(Debug)]
pub struct Crowd {
    /// Counted while they live.
    pub counts: Arc<Counts>,
    members: JoinSet<ExitReason>,
}

impl Crowd {
    /// Starts so many nodes of one core at the master of this URL, which takes whoever comes.
    ///
    /// # Errors
    /// This process may not have so many connections, or the URL is none.
    pub fn start(url: &str, nodes: usize) -> anyhow::Result<Self> {
        allow_connections(3 * nodes as u64 + 256)?;
        let counts = Arc::new(Counts::default());
        let mut members = JoinSet::new();
        for number in 0..nodes {
            members.spawn(member::Member::new(url, number, &counts)?.live());
        }
        Ok(Self { counts, members })
    }

    /// Waits until this holds of what is counted.
    ///
    /// # Errors
    /// It did not within that time, or a node has ended.
    pub async fn until(
        &mut self,
        what: &str,
        within: Duration,
        holds: impl Fn(&Counts) -> bool,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        while !holds(&self.counts) {
            if let Some(ended) = self.members.try_join_next() {
                anyhow::bail!("a node has ended: {}", ended?);
            }
            anyhow::ensure!(began.elapsed() < within, "not within {within:?}: {what}; {:?}", self.counts);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(began.elapsed())
    }

    /// Work channels that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }
}

/// Raises this process's bound of open files to at least so many.
fn allow_connections(files: u64) -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < files) {
        let limits = Rlimit { current: Some(maximum.unwrap_or(files)), maximum };
        anyhow::ensure!(maximum.is_none_or(|most| most >= files), "{files} open files are needed: ulimit -n");
        setrlimit(Resource::Nofile, limits).context("cannot have more open files")?;
    }
    Ok(())
}
