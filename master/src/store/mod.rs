//! What outlives the process, behind two traits: [`Store`], what the leading master keeps, and [`Ground`], what
//! masters have in common: one database, and one leader at a time.
//!
//! [`place`] reads where it is. [`sqlite`] is the ground of one master alone, [`postgres`] that of several; [`sql`]
//! is the store on both, over [`connections`] and the seam between the databases, [`db`]; [`schema`] makes its tables.
//! [`write`] applies what the scheduler wants written, [`needed`] leaves out what the rest of the same transaction
//! makes superfluous, [`read`] reads back, [`logs`] keeps what tasks printed, [`forget`] drops what is old, [`backup`] makes and
//! puts back copies, `look` tells of a database from outside. SQL is spoken in this module only.
//!
//! What holds:
//! 1. what [`Store::commit`] called done is on disk (`fsync`) and survives `kill -9` and power loss;
//! 2. a transaction is whole or not there at all;
//! 3. a task that has ended never changes again, whatever is written later or twice;
//! 4. of secrets only hashes are kept;
//! 5. once a campaign is won, no transaction of an earlier leader is committed any more.

mod backup;
mod connections;
mod db;
mod error;
mod forget;
mod logs;
mod look;
mod needed;
mod place;
mod postgres;
mod read;
mod schema;
mod sql;
mod sqlite;
mod write;

#[cfg(test)]
pub(crate) mod conformance;

pub use backup::{Restored, backup, restore};
pub use error::StoreError;
pub(crate) use logs::StoredPiece;
pub use look::{Look, look};
pub use place::Place;
pub use sqlite::LOCK;

use futures_util::future::BoxFuture;
use place::Inner;
use protocol::{TaskId, Timestamp, auth::TokenInfo, log::Stream, pool::PoolSpec, task::Task};
use scheduler::{
    TaskFilter,
    event::ClientId,
    record::{Op, Recovered},
};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

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

/// What outlives the process. Every call ends within [`STORE_TIMEOUT`] or fails with [`StoreError::Timeout`]; of a
/// write its commit has as long again, and where a server does not answer that, it is asked for a while what became of it.
pub(crate) trait Store: Send + Sync {
    /// Writes all of these in one transaction, in order, and waits until they are on disk. After
    /// [`StoreError::Unknown`] they may be there.
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
    fn remove_token(&self, id: Uuid) -> Doing<'_, ()>;

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

/// Who asks to lead.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// This process's life.
    pub(crate) id: Uuid,
    /// Where others reach it; empty for a master alone.
    pub(crate) url: String,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    /// Its epoch.
    pub(crate) epoch: u64,
    /// Where it is reached, as it said.
    pub(crate) url: String,
}

/// Answer to a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Campaign {
    /// It leads from now on, with this epoch (higher than any before), already durable.
    Won {
        /// The epoch.
        epoch: u64,
    },
    /// Another one leads.
    Held {
        /// Who.
        leader: Leader,
        /// What the database's clock says is left of its lease.
        left: Duration,
    },
}

/// What masters have in common: one database, one leader at a time. Every call but [`Ground::lead`] ends within
/// [`STORE_TIMEOUT`].
pub(crate) trait Ground: Send + Sync {
    /// Takes the lease if it is free, run out (by the database's clock) or this candidate's own.
    /// On SQLite the lease is the lock of the database, and who else has it is [`StoreError::Locked`].
    fn campaign<'a>(&'a self, candidate: &'a Candidate, lease: Duration) -> Doing<'a, Campaign>;

    /// Prolongs the lease, also one that ran out and nobody took; [`StoreError::Deposed`] if the epoch is no longer
    /// the current one, or was resigned.
    fn renew(&self, epoch: u64, lease: Duration) -> Doing<'_, ()>;

    /// Gives the lease up, so that nobody need wait for its end. No error if it is not ours any more.
    fn resign(&self, epoch: u64) -> Doing<'_, ()>;

    /// Everything that the leader of this epoch needs. Every write of the store is refused by the database
    /// ([`StoreError::Deposed`]) once the epoch is not the current one: asked in the same transaction, of a row that
    /// is locked, so that a write and a takeover cannot cross. No time limit: it may have much to read.
    fn lead(&self, epoch: u64) -> Doing<'_, Opened>;
}

/// The ground at this place; nothing is opened yet. `max_bytes` bounds the database: past it the oldest ended tasks
/// are dropped.
pub(crate) fn ground(place: &Place, max_bytes: u64) -> Arc<dyn Ground> {
    match &place.0 {
        Inner::Sqlite(file) => Arc::new(sqlite::SqliteGround::new(file.clone(), max_bytes)),
        Inner::Postgres(options) => Arc::new(postgres::PostgresGround::new((**options).clone(), max_bytes)),
    }
}

/// A connection beside a store's own.
#[cfg(test)]
async fn open_db(place: &Place) -> Result<db::Db, StoreError> {
    match &place.0 {
        Inner::Sqlite(file) => sqlite::open(file, false).await,
        Inner::Postgres(options) => postgres::open(options).await,
    }
}

/// Leads on a database in this directory, as a master alone does.
#[cfg(test)]
pub(crate) async fn open(dir: &std::path::Path, max_bytes: u64) -> Result<Opened, StoreError> {
    conformance::lead(&Place::in_directory(dir), max_bytes).await
}
