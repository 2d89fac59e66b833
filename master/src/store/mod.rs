//! What outlives the process, behind one trait.
//!
//! [`sqlite`] is the store of one master: opening it, its connections and its lock. [`write`] applies what
//! the scheduler wants written, [`needed`] leaves out what the rest of the same transaction makes
//! superfluous, [`read`] reads back, [`logs`] keeps what tasks printed, `look` tells of a database from outside. SQL
//! is spoken in this module only.
//!
//! What holds:
//! 1. what [`Store::commit`] called done is on disk (`fsync`) and survives `kill -9` and power loss;
//! 2. a transaction is whole or not there at all;
//! 3. a task that has ended never changes again, whatever is written later or twice;
//! 4. of secrets only hashes are kept.

mod logs;
mod look;
mod needed;
mod read;
mod sqlite;
mod write;

#[cfg(test)]
pub(crate) mod conformance;

pub(crate) use logs::StoredPiece;
pub use look::{Look, look};
pub use sqlite::LOCK;

use futures_util::future::BoxFuture;
use protocol::{TaskId, Timestamp, auth::TokenInfo, log::Stream, pool::PoolSpec, task::Task};
use scheduler::{
    TaskFilter,
    event::ClientId,
    record::{Op, Recovered},
};
use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

/// How long ended tasks, idempotency keys and the sessions of nodes that are gone are kept.
pub(crate) const KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// Longest that one transaction or read may take. After a transaction that took longer nothing is known
/// of what is on disk; writing it again is harmless.
pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(20);

/// A call under way.
pub(crate) type Doing<'a, T> = BoxFuture<'a, Result<T, StoreError>>;
/// A task that has ended, and who submitted it.
pub(crate) type EndedTask = (Arc<Task>, ClientId);
/// The hash of a token's secret, and what is known of the token.
pub(crate) type StoredToken = ([u8; 32], TokenInfo);
/// Name, revision and spec of a pool.
pub(crate) type StoredPool = (String, u64, PoolSpec);

/// What outlives the process. Every call ends within [`STORE_TIMEOUT`] or fails with [`StoreError::Timeout`].
pub(crate) trait Store: Send + Sync {
    /// Writes all of these in one transaction, in order, and waits until they are on disk.
    fn commit<'a>(&'a self, ops: &'a [Op]) -> Doing<'a, ()>;

    /// A task that has ended, whole.
    fn ended_task(&self, id: TaskId) -> Doing<'_, Option<EndedTask>>;

    /// Tasks that have ended and match, newest id first; without `full` their `input` and `result` are
    /// left out. With it one task may have 2 MiB, so the caller keeps `filter.limit` low.
    fn ended_tasks<'a>(&'a self, filter: &'a TaskFilter, full: bool) -> Doing<'a, Vec<EndedTask>>;

    /// A piece of what a task that has ended printed, from this offset on; `None` if nothing is kept.
    fn task_log(&self, id: TaskId, stream: Stream, from: u64) -> Doing<'_, Option<StoredPiece>>;

    /// Keeps a token, by the hash of its secret. One with the same id or hash is replaced.
    fn put_token<'a>(&'a self, hash: &'a [u8; 32], info: &'a TokenInfo) -> Doing<'a, ()>;

    /// Forgets a token; no error if there is none.
    fn remove_token(&self, id: uuid::Uuid) -> Doing<'_, ()>;

    /// All tokens with the hashes of their secrets, expired ones included.
    fn tokens(&self) -> Doing<'_, Vec<StoredToken>>;

    /// Keeps a pool. A lower revision than the stored one changes nothing.
    fn put_pool<'a>(&'a self, name: &'a str, revision: u64, spec: &'a PoolSpec) -> Doing<'a, ()>;

    /// All pools: name, revision, spec.
    fn pools(&self) -> Doing<'_, Vec<StoredPool>>;

    /// Whether a transaction gets through to the disk now. Tried at most once a second; calls in between
    /// get the last outcome.
    fn check_writable(&self) -> Doing<'_, ()>;

    /// One bounded step of forgetting: what has been kept for [`KEPT_MS`], the oldest logs while logs are over
    /// their share of the store's size, and the oldest ended tasks while the store is over its size. Says whether there is more to forget.
    fn forget(&self, now: Timestamp) -> Doing<'_, bool>;
}

/// A store that was opened, and what it had.
pub(crate) struct Opened {
    /// The store; the lock on it is held until it is dropped.
    pub(crate) store: Arc<dyn Store>,
    /// This master's epoch: one more than that of the master before, and already on disk.
    pub(crate) epoch: u64,
    /// What the master before left.
    pub(crate) recovered: Recovered,
}

/// Opens the store in this directory, or makes it. `max_bytes` bounds the database: past it the oldest
/// ended tasks are dropped.
///
/// # Errors
/// [`StoreError`]; [`StoreError::Locked`] while another master has it open.
pub(crate) async fn open(dir: &Path, max_bytes: u64) -> Result<Opened, StoreError> {
    let (store, epoch) = sqlite::Sqlite::open(dir, max_bytes).await?;
    let recovered = store.recover(service::clock::wall()).await?;
    Ok(Opened { store: Arc::new(store), epoch, recovered })
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another master has it open.
    #[error("{} is in use by another master; stop that one, or give this one another --state-dir", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A newer program has written it.
    #[error("{} was written by a newer version of this program (schema {version}); use that version", file.display())]
    Newer {
        /// The database.
        file: PathBuf,
        /// The schema's number that is not known here.
        version: i64,
    },
    /// The files cannot be made or opened.
    #[error("{}: {source}; check that the directory exists and that this user may write to it", path.display())]
    Files {
        /// What was to be opened.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The database refused or failed.
    #[error("the database failed to {what}: {why}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// What the database says.
        why: String,
    },
    /// What is stored cannot be read.
    #[error("the store holds {what} that cannot be read: {why}; restore the state directory from a backup")]
    Corrupt {
        /// Of what kind.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The disk or the database did not answer.
    #[error("the store did not {what} within {} s; the disk may be overloaded or failing", STORE_TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        what: &'static str,
    },
}

impl StoreError {
    /// A database error while trying to do `what`.
    fn database(what: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |error| Self::Database { what, why: error.to_string() }
    }

    /// Something stored that does not parse.
    fn corrupt<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Corrupt { what, why: error.to_string() }
    }
}
