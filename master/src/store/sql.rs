//! The store on either database, for the leader of one epoch.

use super::{
    Doing, EndedTask, Opened, STORE_TIMEOUT, Store, StoreError, StoredPiece, StoredPool, StoredToken,
    connections::{Connections, Taken},
    db::{Kind, Row, Value},
    forget, logs,
    needed::needed,
    read,
    write::{self, Grown},
};
use protocol::{TaskId, Timestamp, auth::TokenInfo, log::Stream, pool::PoolSpec};
use scheduler::{
    TaskFilter,
    record::{Op, Recovered},
};
use std::{fs::File, sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};

/// How long the outcome of a trial write is answered again.
const TRIAL_KEPT: Duration = Duration::from_secs(1);

/// Within this a server tells what became of a transaction whose commit it did not answer. One that it waits for is
/// ended by it before that (`idle_in_transaction_session_timeout`).
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Writes something that counts for nothing. It has to differ: where a value stays as it is SQLite writes nothing. On
/// PostgreSQL each transaction of a master counts here.
const TRIAL: &str = "UPDATE usage SET trials = trials + 1";
/// When it was last tried whether the store takes writes, and what came of it.
type Trial = (Instant, Result<(), Arc<StoreError>>);

/// The store of one master while it leads.
pub(super) struct Sql {
    epoch: u64,
    max_bytes: u64,
    /// One, so that transactions never wait for each other's locks.
    writer: Connections,
    readers: Connections,
    trial: Mutex<Option<Trial>>,
    /// Held for its lock, which the kernel drops when the process ends, however it does.
    _lock: Option<Arc<File>>,
}

/// A transaction that writes, by a master that still leads.
pub(super) struct Transaction<'a> {
    pub(super) db: Taken<'a>,
    /// Bytes that are kept at its begin.
    pub(super) kept: Grown,
    /// How many transactions of masters a server had committed before.
    before: Option<i64>,
    store: &'a Sql,
}

impl Transaction<'_> {
    /// Commits, with what is kept more or less by it. One that is only dropped never was.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if it may have been committed; after any other error it was not. (Of SQLite nothing is
    /// known after [`StoreError::Timeout`].)
    pub(super) async fn commit(mut self, grown: Grown) -> Result<(), StoreError> {
        let committing = within("commit a transaction", async {
            let kept = |before: i64, more: i64| Value::from(before.saturating_add(more).max(0));
            let mut values = vec![kept(self.kept.tasks, grown.tasks), kept(self.kept.logs, grown.logs)];
            let sql = if let Some(before) = self.before {
                values.push(Value::from(before + 1));
                Some("UPDATE usage SET task_bytes = $1, log_bytes = $2, trials = $3")
            } else {
                (grown != Grown::default()).then_some("UPDATE usage SET task_bytes = $1, log_bytes = $2")
            };
            if let Some(sql) = sql {
                self.db.execute("count what is kept", sql, values).await?;
            }
            self.db.commit().await
        });
        match (committing.await, self.before) {
            (Ok(()), _) => {
                self.db.keep();
                Ok(())
            }
            (Err(error), None) => Err(error),
            // A connection that breaks says nothing of what came through before.
            (Err(error), Some(before)) => {
                drop(self.db);
                self.store.became(before, error).await
            }
        }
    }
}

impl Sql {
    /// What the leader of this epoch has. The connections write and read.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if the epoch is not the current one.
    pub(super) async fn open(
        epoch: u64,
        max_bytes: u64,
        (writer, readers): (Connections, Connections),
        lock: Option<Arc<File>>,
    ) -> Result<Opened, StoreError> {
        let store = Self { epoch, max_bytes, writer, readers, trial: Mutex::new(None), _lock: lock };
        let recovered = store.recover(service::clock::wall()).await?;
        // One that reads stays open: SQLite needs to write for the first connection, which a full disk refuses.
        store.readers.take().await?.keep();
        Ok(Opened { store: Arc::new(store), epoch, recovered })
    }

    /// What the master before left. No time limit: however long it takes, there is no way on without it.
    async fn recover(&self, now: Timestamp) -> Result<Recovered, StoreError> {
        let mut transaction = self.begin().await?;
        if transaction.db.kind() == Kind::Postgres {
            let what = "prepare to read what there is";
            transaction.db.execute(what, "SET LOCAL statement_timeout = 0", Vec::new()).await?;
        }
        let recovered = read::recover(&mut transaction.db, now).await?;
        transaction.commit(Grown::default()).await?;
        Ok(recovered)
    }

    /// Begins a transaction. Whether this master still leads is asked in it, of a row that is locked until its end:
    /// who takes over waits for it, or it finds that somebody did.
    async fn begin(&self) -> Result<Transaction<'_>, StoreError> {
        let what = "ask who leads";
        let mut db = self.writer.take().await?;
        db.begin().await?;
        let sql = match db.kind() {
            Kind::Sqlite => "SELECT task_bytes, log_bytes FROM master, usage WHERE epoch = $1",
            Kind::Postgres => {
                "SELECT task_bytes, log_bytes, trials FROM master, usage WHERE epoch = $1
                 FOR KEY SHARE OF master"
            }
        };
        let kind = db.kind();
        let begun = |row: &Row| {
            let failed = StoreError::database(what);
            let bytes = |column| row.try_get(column).map_err(&failed);
            let kept = Grown { tasks: bytes("task_bytes")?, logs: bytes("log_bytes")? };
            let before =
                (kind == Kind::Postgres).then(|| row.try_get("trials").map_err(&failed)).transpose()?;
            Ok((kept, before))
        };
        match db.one(what, sql, vec![self.epoch.cast_signed().into()], begun).await? {
            Some((kept, before)) => Ok(Transaction { db, kept, before, store: self }),
            None => Err(StoreError::Deposed { epoch: self.epoch }),
        }
    }

    /// What became of a transaction before which so many had been committed, and whose commit failed with this error:
    /// asks the server until it tells. A number of the server's own would not do: after a crash it may be given again.
    async fn became(&self, before: i64, error: StoreError) -> Result<(), StoreError> {
        let end = Instant::now() + TOLD_WITHIN;
        let mut why = error.to_string();
        loop {
            match timeout_at(end, self.committed()).await {
                Ok(Ok(Some((epoch, now)))) if epoch == self.epoch && now == before + 1 => {
                    tracing::warn!(%error, "the answer to a commit was lost; it is there");
                    return Ok(());
                }
                Ok(Ok(Some((epoch, now)))) if epoch == self.epoch && now == before => return Err(error),
                Ok(Ok(_)) => {
                    let why = "another master has written since, or the server lost what it had".to_owned();
                    return Err(StoreError::Unknown { why });
                }
                Ok(Err(failed)) => why = failed.to_string(),
                Err(_) => return Err(StoreError::Unknown { why }),
            }
            if timeout_at(end, sleep(ASK_EVERY)).await.is_err() {
                return Err(StoreError::Unknown { why });
            }
        }
    }

    /// Who leads, and how many transactions of masters have been committed. Waits for one that is not over: it has
    /// this row.
    async fn committed(&self) -> Result<Option<(u64, i64)>, StoreError> {
        let what = "ask what became of a transaction";
        let mut db = self.writer.take().await?;
        db.begin().await?;
        let counted = |row: &Row| {
            let failed = StoreError::database(what);
            let epoch: i64 = row.try_get("epoch").map_err(&failed)?;
            Ok((epoch.cast_unsigned(), row.try_get("trials").map_err(&failed)?))
        };
        let sql = "SELECT epoch, trials FROM master, usage FOR UPDATE OF usage";
        let found = db.one(what, sql, Vec::new(), counted).await?;
        db.commit().await?;
        db.keep();
        Ok(found)
    }

    /// Executes a few statements in one transaction.
    async fn execute(
        &self,
        what: &'static str,
        statements: Vec<(&'static str, Vec<Value>)>,
    ) -> Result<(), StoreError> {
        let transaction = within(what, async {
            let mut transaction = self.begin().await?;
            for (sql, values) in statements {
                transaction.db.execute(what, sql, values).await?;
            }
            Ok(transaction)
        });
        transaction.await?.commit(Grown::default()).await
    }

    async fn write_all(&self, ops: &[Op]) -> Result<(), StoreError> {
        let written = within("write what is to be committed", async {
            let mut transaction = self.begin().await?;
            let grown = write::apply(&mut transaction.db, &needed(ops)).await?;
            Ok((transaction, grown))
        });
        let (transaction, grown) = written.await?;
        transaction.commit(grown).await
    }

    async fn forget_some(&self, now: Timestamp) -> Result<bool, StoreError> {
        let forgetting = within("forget what is old", async {
            let mut transaction = self.begin().await?;
            let forgotten = forget::some(&mut transaction, now, self.max_bytes).await?;
            Ok((transaction, forgotten))
        });
        let (transaction, forgotten) = forgetting.await?;
        transaction.commit(forgotten.grown).await?;
        // Where nothing was left to remove, looking again would find nothing either.
        Ok(forgotten.rows > 0)
    }

    async fn reader(&self) -> Result<Taken<'_>, StoreError> {
        self.readers.take().await
    }
}

impl Store for Sql {
    fn commit<'a>(&'a self, ops: &'a [Op]) -> Doing<'a, ()> {
        Box::pin(self.write_all(ops))
    }

    fn ended_task(&self, id: TaskId) -> Doing<'_, Option<EndedTask>> {
        Box::pin(within("read a task", async move {
            let mut db = self.reader().await?;
            let found = read::ended_task(&mut db, id).await?;
            db.keep();
            Ok(found)
        }))
    }

    fn ended_tasks<'a>(&'a self, filter: &'a TaskFilter, full: bool) -> Doing<'a, Vec<EndedTask>> {
        Box::pin(within("list tasks", async move {
            let mut db = self.reader().await?;
            let found = read::ended_tasks(&mut db, filter, full).await?;
            db.keep();
            Ok(found)
        }))
    }

    fn task_log(&self, id: TaskId, stream: Stream, from: u64) -> Doing<'_, Option<StoredPiece>> {
        Box::pin(within("read a log", async move {
            let mut db = self.reader().await?;
            let found = logs::piece(&mut db, id, stream, from).await?;
            db.keep();
            Ok(found)
        }))
    }

    fn put_token<'a>(&'a self, hash: &'a [u8; 32], info: &'a TokenInfo) -> Doing<'a, ()> {
        Box::pin(async move {
            let what = "store a token";
            let (id, hash) = (write::id_bytes(info.id), hash.to_vec());
            let before = vec![id.clone().into(), hash.clone().into()];
            let values = vec![id.into(), hash.into(), write::json(what, info)?.into()];
            let statements = vec![
                ("DELETE FROM tokens WHERE id = $1 OR hash = $2", before),
                ("INSERT INTO tokens (id, hash, info) VALUES ($1, $2, $3)", values),
            ];
            self.execute(what, statements).await
        })
    }

    fn remove_token(&self, id: uuid::Uuid) -> Doing<'_, ()> {
        let values = vec![write::id_bytes(id).into()];
        Box::pin(self.execute("remove a token", vec![("DELETE FROM tokens WHERE id = $1", values)]))
    }

    fn tokens(&self) -> Doing<'_, Vec<StoredToken>> {
        Box::pin(within("read the tokens", async move {
            let mut db = self.reader().await?;
            let found = read::tokens(&mut db).await?;
            db.keep();
            Ok(found)
        }))
    }

    fn put_pool<'a>(&'a self, name: &'a str, revision: u64, spec: &'a PoolSpec) -> Doing<'a, ()> {
        Box::pin(async move {
            let what = "store a pool";
            let sql = "INSERT INTO pools (name, revision, spec) VALUES ($1, $2, $3)
                       ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, spec = excluded.spec
                       WHERE excluded.revision > pools.revision";
            let values =
                vec![name.to_owned().into(), revision.cast_signed().into(), write::json(what, spec)?.into()];
            self.execute(what, vec![(sql, values)]).await
        })
    }

    fn pools(&self) -> Doing<'_, Vec<StoredPool>> {
        Box::pin(within("read the pools", async move {
            let mut db = self.reader().await?;
            let found = read::pools(&mut db).await?;
            db.keep();
            Ok(found)
        }))
    }

    fn check_writable(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            let mut trial = self.trial.lock().await;
            if trial.as_ref().is_none_or(|(at, _)| at.elapsed() >= TRIAL_KEPT) {
                let outcome = self.execute("write", vec![(TRIAL, Vec::new())]).await.map_err(Arc::new);
                *trial = Some((Instant::now(), outcome));
            }
            match &*trial {
                Some((_, Err(error))) => Err(StoreError::Tried(Arc::clone(error))),
                _ => Ok(()),
            }
        })
    }

    fn forget(&self, now: Timestamp) -> Doing<'_, bool> {
        Box::pin(self.forget_some(now))
    }
}

/// Gives up on work that takes too long.
pub(super) async fn within<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(STORE_TIMEOUT, work).await.map_err(|_| StoreError::Timeout { what })?
}
