//! The ground of one master alone: SQLite in its state directory, locked while a master has it open.
//!
//! One connection writes; a few read-only ones read beside it (WAL). `synchronous=FULL` makes every commit an
//! `fsync` (sqlite.org/pragma.html#pragma_synchronous).

use super::{
    Campaign, Candidate, Doing, Ground, Opened, StoreError,
    connections::Connections,
    db::{Db, Row},
    place::STATEMENTS,
    schema,
    sql::{Sql, within},
    write,
};
use sqlx::{
    ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;

/// Name of the database in the state directory.
pub(super) const DATABASE: &str = "evenkeel.db";
/// Name of the file whose lock says that a master has the database open.
pub const LOCK: &str = "evenkeel.lock";
/// Connections that read.
const READERS: usize = 4;
/// Past this the write-ahead log is cut after a checkpoint.
const WAL_KEPT_BYTES: u32 = 64 << 20;
/// Pages in the write-ahead log that are worth a checkpoint (16 MiB): most pages of a busy time change more
/// than once, and each is then copied into the database once.
const CHECKPOINT_PAGES: u32 = 4_000;
/// How long a statement waits for a lock that another program has on the database.
const BUSY: Duration = Duration::from_secs(5);

/// The database of one master.
pub(super) struct SqliteGround {
    file: PathBuf,
    max_bytes: u64,
    /// The lock, from the first campaign on. The store that was led by holds it too.
    lock: Mutex<Option<Arc<File>>>,
}

impl SqliteGround {
    /// Touches nothing yet.
    pub(super) fn new(file: PathBuf, max_bytes: u64) -> Self {
        Self { file, max_bytes, lock: Mutex::new(None) }
    }

    async fn next_epoch(&self, candidate: &Candidate) -> Result<u64, StoreError> {
        let what = "take the next epoch";
        let mut db = open(&self.file, false).await?;
        schema::migrate(&mut db, &self.file.display().to_string()).await?;
        let sql = "UPDATE master SET epoch = epoch + 1, leader = $1, url = $2 RETURNING epoch";
        let values = vec![write::id_bytes(candidate.id).into(), candidate.url.clone().into()];
        let epoch = |row: &Row| row.try_get::<i64>("epoch").map_err(StoreError::database(what));
        // A failed commit would go unnoticed behind the row, so it is a statement of its own.
        db.begin().await?;
        let epoch = db.one(what, sql, values, epoch).await?;
        db.commit().await?;
        db.close().await?;
        let why = || "its row is gone".to_owned();
        epoch.map(i64::cast_unsigned).ok_or_else(|| StoreError::Corrupt { what: "the epoch", why: why() })
    }
}

impl Ground for SqliteGround {
    fn campaign<'a>(&'a self, candidate: &'a Candidate, _lease: Duration) -> Doing<'a, Campaign> {
        Box::pin(async move {
            let mut held = self.lock.lock().await;
            let lock = match &*held {
                Some(lock) => Arc::clone(lock),
                None => Arc::new(lock(&self.file)?),
            };
            let epoch = within("open the database", self.next_epoch(candidate)).await?;
            *held = Some(lock);
            Ok(Campaign::Won { epoch })
        })
    }

    fn renew(&self, epoch: u64, _lease: Duration) -> Doing<'_, ()> {
        Box::pin(async move {
            // The lock is the lease, and does not run out.
            self.lock.lock().await.is_some().then_some(()).ok_or(StoreError::Deposed { epoch })
        })
    }

    fn resign(&self, _epoch: u64) -> Doing<'_, ()> {
        Box::pin(async move {
            *self.lock.lock().await = None;
            Ok(())
        })
    }

    fn lead(&self, epoch: u64) -> Doing<'_, Opened> {
        Box::pin(async move {
            let lock = self.lock.lock().await.clone().ok_or(StoreError::Deposed { epoch })?;
            let connections = |most, read_only| {
                let file = self.file.clone();
                Connections::new(most, move || {
                    let file = file.clone();
                    Box::pin(async move { open(&file, read_only).await })
                })
            };
            let both = (connections(1, false), connections(READERS, true));
            Sql::open(epoch, self.max_bytes, both, Some(lock)).await
        })
    }
}

/// Opens the database, and makes it if it is to be written.
pub(super) async fn open(file: &Path, read_only: bool) -> Result<Db, StoreError> {
    if !read_only {
        // SQLite gives its other files the mode of this one.
        private_file(file)?;
    }
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .pragma("journal_size_limit", WAL_KEPT_BYTES.to_string())
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
        .statement_cache_capacity(STATEMENTS)
        .disable_statement_logging()
        .read_only(read_only);
    let db = options.connect().await.map_err(StoreError::database("open the database"))?;
    Ok(Db::Sqlite(Box::new(db)))
}

pub(super) fn private_file(path: &Path) -> Result<File, StoreError> {
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.map_err(|source| StoreError::Files { path: path.to_owned(), source })
}

/// Takes the lock of a database. It is a lock on an open file (flock), so it ends with the process.
pub(super) fn lock(database: &Path) -> Result<File, StoreError> {
    let path = database.with_extension("lock");
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Locked { dir: database.parent().unwrap_or(database).to_owned() })
        }
        Err(TryLockError::Error(source)) => Err(StoreError::Files { path, source }),
    }
}
