//! The store of one master: SQLite in its state directory.
//!
//! One connection writes, so that transactions never wait for each other's locks; a few read-only ones read
//! beside it (WAL). `synchronous=FULL` makes every commit an `fsync` (sqlite.org/pragma.html#pragma_synchronous).

use super::{
    Doing, EndedTask, KEPT_MS, STORE_TIMEOUT, Store, StoreError, StoredPiece, StoredPool, StoredToken, logs,
    needed::needed, read, write,
};
use protocol::{TaskId, Timestamp, auth::TokenInfo, log::Stream, pool::PoolSpec};
use scheduler::{
    TaskFilter,
    record::{Op, Recovered},
};
use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    query::Query,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    },
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

/// Name of the database in the state directory.
pub(super) const DATABASE: &str = "evenkeel.db";
/// Name of the file whose lock says that a master has the database open.
pub const LOCK: &str = "evenkeel.lock";
/// Connections that read.
const READERS: u32 = 4;
/// Statements that the writing connection keeps ready: those of one task each, and those of many rows.
const STATEMENTS: usize = 200;
/// Past this the write-ahead log is cut after a checkpoint.
const WAL_KEPT_BYTES: u32 = 64 << 20;
/// Rows of each table that one step of forgetting removes.
const FORGET_ROWS: i64 = 200;
/// How long the outcome of a trial write is answered again.
const TRIAL_KEPT: Duration = Duration::from_secs(1);

/// The store of one master.
pub(super) struct Sqlite {
    writer: Mutex<SqliteConnection>,
    readers: SqlitePool,
    max_bytes: u64,
    /// Bytes of all logs; changed only while the writer is held.
    log_bytes: AtomicI64,
    trial: Mutex<Option<(Instant, Result<(), String>)>>,
    /// Held for its lock, which the kernel drops when the process ends, however it does.
    _lock: File,
}

impl Sqlite {
    /// Opens or makes the database, brings its schema up to date and takes the next epoch.
    pub(super) async fn open(dir: &Path, max_bytes: u64) -> Result<(Self, u64), StoreError> {
        let lock = lock(dir)?;
        let file = dir.join(DATABASE);
        // SQLite gives its other files the mode of this one.
        private_file(&file)?;
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("journal_size_limit", WAL_KEPT_BYTES.to_string())
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        let open = "open the database";
        let mut writer = within(open, options.connect()).await?.map_err(StoreError::database(open))?;
        migrate(&mut writer, &file).await?;
        let epoch = next_epoch(&mut writer).await?;
        let log_bytes = AtomicI64::new(logs::bytes(&mut writer).await?);
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options.read_only(true));
        let writer = Mutex::new(writer);
        Ok((Self { writer, readers, max_bytes, log_bytes, trial: Mutex::new(None), _lock: lock }, epoch))
    }

    /// What the master before left.
    pub(super) async fn recover(&self, now: Timestamp) -> Result<Recovered, StoreError> {
        // No time limit: however long it takes, there is no way on without it.
        read::recover(&mut *self.writer.lock().await, now).await
    }

    /// The writing connection, for one transaction.
    async fn writer(&self) -> MutexGuard<'_, SqliteConnection> {
        self.writer.lock().await
    }

    /// Runs one statement in a transaction of its own.
    async fn execute(
        &self,
        what: &'static str,
        query: Query<'_, sqlx::Sqlite, SqliteArguments>,
    ) -> Result<(), StoreError> {
        let run = async { query.execute(&mut *self.writer().await).await };
        within(what, run).await?.map(drop).map_err(StoreError::database(what))
    }

    async fn reader(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, StoreError> {
        self.readers.acquire().await.map_err(StoreError::database("open a connection for reading"))
    }

    async fn write_all(&self, ops: &[Op]) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let begun = writer.begin_with("BEGIN IMMEDIATE").await;
        let mut transaction = begun.map_err(StoreError::database("begin a transaction"))?;
        let mut log_bytes = 0;
        write::apply(&mut transaction, &needed(ops), &mut log_bytes).await?;
        transaction.commit().await.map_err(StoreError::database("commit a transaction"))?;
        self.log_bytes.fetch_add(log_bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn try_write(&self) -> Result<(), StoreError> {
        let what = "write";
        self.execute(what, sqlx::query("UPDATE master SET epoch = epoch")).await
    }

    async fn forget_some(&self, now: Timestamp) -> Result<bool, StoreError> {
        let failed = StoreError::database("forget what is old");
        let mut writer = self.writer().await;
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let old = now.0.saturating_sub_unsigned(KEPT_MS);
        let mut removed = 0_u64;
        for sql in [
            "DELETE FROM idempotency_keys WHERE (client, key) IN
                 (SELECT client, key FROM idempotency_keys WHERE submitted_at < ?1 LIMIT ?2)",
            "DELETE FROM nodes WHERE id IN (SELECT id FROM nodes WHERE gone_at < ?1 LIMIT ?2)",
        ] {
            let query = sqlx::query(sql).bind(old).bind(FORGET_ROWS);
            removed += query.execute(&mut *transaction).await.map_err(&failed)?.rows_affected();
        }
        let mut log_bytes = self.log_bytes.load(Ordering::Relaxed);
        if log_bytes.cast_unsigned() > self.max_bytes / logs::SHARE {
            for task in logs::oldest(&mut transaction, FORGET_ROWS).await? {
                log_bytes -= logs::remove(&mut transaction, &task).await?;
                removed += 1;
                if log_bytes.cast_unsigned() <= self.max_bytes / logs::SHARE {
                    break;
                }
            }
        }
        let sql = "SELECT (SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count)";
        let pages: i64 = sqlx::query_scalar(sql).fetch_one(&mut *transaction).await.map_err(&failed)?;
        let size: i64 = sqlx::query_scalar("SELECT page_size FROM pragma_page_size")
            .fetch_one(&mut *transaction)
            .await
            .map_err(&failed)?;
        let mut excess = pages.saturating_mul(size).saturating_sub_unsigned(self.max_bytes);
        // Too full: whatever is the oldest, however young.
        let before = if excess > 0 { i64::MAX } else { old };
        let sql = "SELECT id, finished_at, octet_length(shown) + ifnull(octet_length(input), 0)
                       + ifnull(octet_length(result), 0)
                   FROM tasks WHERE state >= 2 AND finished_at < ?1 ORDER BY finished_at LIMIT ?2";
        let oldest: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(sql)
            .bind(before)
            .bind(FORGET_ROWS)
            .fetch_all(&mut *transaction)
            .await
            .map_err(&failed)?;
        for (id, finished_at, bytes) in &oldest {
            if *finished_at >= old && excess <= 0 {
                break;
            }
            for sql in ["DELETE FROM task_labels WHERE task = ?1", "DELETE FROM tasks WHERE id = ?1"] {
                let query = sqlx::query(sql).bind(id.clone());
                query.execute(&mut *transaction).await.map_err(&failed)?;
            }
            let of_log = logs::remove(&mut transaction, id).await?;
            log_bytes -= of_log;
            excess = excess.saturating_sub(*bytes).saturating_sub(of_log);
            removed += 1;
        }
        transaction.commit().await.map_err(&failed)?;
        self.log_bytes.store(log_bytes, Ordering::Relaxed);
        // Where nothing was left to remove, looking again would find nothing either.
        Ok(removed > 0)
    }
}

impl Store for Sqlite {
    fn commit<'a>(&'a self, ops: &'a [Op]) -> Doing<'a, ()> {
        Box::pin(async move { within("commit a transaction", self.write_all(ops)).await? })
    }

    fn ended_task(&self, id: TaskId) -> Doing<'_, Option<EndedTask>> {
        Box::pin(async move {
            within("read a task", async { read::ended_task(&mut *self.reader().await?, id).await }).await?
        })
    }

    fn ended_tasks<'a>(&'a self, filter: &'a TaskFilter, full: bool) -> Doing<'a, Vec<EndedTask>> {
        Box::pin(async move {
            let list = async { read::ended_tasks(&mut *self.reader().await?, filter, full).await };
            within("list tasks", list).await?
        })
    }

    fn task_log(&self, id: TaskId, stream: Stream, from: u64) -> Doing<'_, Option<StoredPiece>> {
        Box::pin(async move {
            let read = async { logs::piece(&mut *self.reader().await?, id, stream, from).await };
            within("read a log", read).await?
        })
    }

    fn put_token<'a>(&'a self, hash: &'a [u8; 32], info: &'a TokenInfo) -> Doing<'a, ()> {
        Box::pin(async move {
            let what = "store a token";
            let sql = "INSERT OR REPLACE INTO tokens (id, hash, info) VALUES (?1, ?2, ?3)";
            let query = sqlx::query(sql)
                .bind(write::id_bytes(info.id))
                .bind(hash.to_vec())
                .bind(write::json(what, info)?);
            self.execute(what, query).await
        })
    }

    fn remove_token(&self, id: uuid::Uuid) -> Doing<'_, ()> {
        let query = sqlx::query("DELETE FROM tokens WHERE id = ?1").bind(write::id_bytes(id));
        Box::pin(self.execute("remove a token", query))
    }

    fn tokens(&self) -> Doing<'_, Vec<StoredToken>> {
        Box::pin(async move {
            within("read the tokens", async { read::tokens(&mut *self.reader().await?).await }).await?
        })
    }

    fn put_pool<'a>(&'a self, name: &'a str, revision: u64, spec: &'a PoolSpec) -> Doing<'a, ()> {
        Box::pin(async move {
            let what = "store a pool";
            let sql = "INSERT INTO pools (name, revision, spec) VALUES (?1, ?2, ?3)
                       ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, spec = excluded.spec
                       WHERE excluded.revision > pools.revision";
            let query = sqlx::query(sql)
                .bind(name.to_owned())
                .bind(revision.cast_signed())
                .bind(write::json(what, spec)?);
            self.execute(what, query).await
        })
    }

    fn pools(&self) -> Doing<'_, Vec<StoredPool>> {
        Box::pin(async move {
            within("read the pools", async { read::pools(&mut *self.reader().await?).await }).await?
        })
    }

    fn check_writable(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            let mut trial = self.trial.lock().await;
            if trial.as_ref().is_none_or(|(at, _)| at.elapsed() >= TRIAL_KEPT) {
                let outcome = self.try_write().await.map_err(|error| error.to_string());
                *trial = Some((Instant::now(), outcome));
            }
            match &*trial {
                Some((_, Err(why))) => Err(StoreError::Database { what: "write", why: why.clone() }),
                _ => Ok(()),
            }
        })
    }

    fn forget(&self, now: Timestamp) -> Doing<'_, bool> {
        Box::pin(async move { within("forget what is old", self.forget_some(now)).await? })
    }
}

pub(super) async fn within<T>(what: &'static str, work: impl Future<Output = T>) -> Result<T, StoreError> {
    tokio::time::timeout(STORE_TIMEOUT, work).await.map_err(|_| StoreError::Timeout { what })
}

fn private_file(path: &Path) -> Result<File, StoreError> {
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.map_err(|source| StoreError::Files { path: path.to_owned(), source })
}

/// Takes the lock of the directory. It is a lock on an open file (flock), so it ends with the process.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(StoreError::Files { path, source }),
    }
}

pub(super) fn migrations() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        let sql = sqlx::SqlSafeStr::into_sql_str(sql);
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(vec![
        migration(1, "first", include_str!("../../migrations/0001_first.sql")),
        migration(2, "task logs", include_str!("../../migrations/0002_task_logs.sql")),
    ])
}

/// Brings the schema up to date; one that a newer program made is refused.
async fn migrate(db: &mut SqliteConnection, file: &Path) -> Result<(), StoreError> {
    match migrations().run_direct(None, db, false).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version)) => {
            Err(StoreError::Newer { file: file.to_owned(), version })
        }
        Err(error) => {
            Err(StoreError::Database { what: "bring the schema up to date", why: error.to_string() })
        }
    }
}

/// Two statements: a failed commit would go unnoticed behind the row that `RETURNING` gives first. Nobody
/// comes between, because the directory is locked.
async fn next_epoch(db: &mut SqliteConnection) -> Result<u64, StoreError> {
    let failed = StoreError::database("take the next epoch");
    sqlx::query("UPDATE master SET epoch = epoch + 1").execute(&mut *db).await.map_err(&failed)?;
    let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM master").fetch_one(db).await.map_err(&failed)?;
    Ok(epoch.cast_unsigned())
}

/// Notes a migration that this program does not know, as a newer one would have.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(super) async fn pretend_newer(dir: &Path) {
    let mut db = SqliteConnectOptions::new().filename(dir.join(DATABASE)).connect().await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
               VALUES (99, 'later', 1, x'00', 0)";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}
