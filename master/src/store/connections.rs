//! Connections to the database, kept and bounded. One that failed, or whose user gave up, is closed: nothing is
//! known of the state it is in, and a transaction that was under way on it ends.

use super::{Doing, StoreError, db::Db};
use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

/// How long opening one may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer to `is_alive` may take.
const ALIVE: Duration = Duration::from_secs(2);
/// A connection that was not used for so long is asked first: the server may have been started again.
const TRUSTED: Duration = Duration::from_secs(1);

/// At most so many connections to one database.
pub(super) struct Connections {
    open: Box<dyn Fn() -> Doing<'static, Db> + Send + Sync>,
    idle: Mutex<Vec<(Db, Instant)>>,
    room: Semaphore,
}

impl Connections {
    /// None is opened yet.
    pub(super) fn new(most: usize, open: impl Fn() -> Doing<'static, Db> + Send + Sync + 'static) -> Self {
        Self { open: Box::new(open), idle: Mutex::default(), room: Semaphore::new(most) }
    }

    /// A connection, when there is room; an idle one if there is one that answers.
    pub(super) async fn take(&self) -> Result<Taken<'_>, StoreError> {
        let what = "open a connection to the database";
        // It is never closed.
        let permit = self.room.acquire().await.map_err(|_| StoreError::Timeout { what })?;
        while let Some((mut db, used)) = self.pop() {
            let answers = used.elapsed() < TRUSTED || timeout(ALIVE, db.is_alive()).await.unwrap_or(false);
            if answers {
                return Ok(Taken { db, of: self, _permit: permit });
            }
        }
        let db = timeout(CONNECT, (self.open)()).await.map_err(|_| StoreError::Database {
            what,
            why: format!("no answer within {} s", CONNECT.as_secs()),
        })??;
        Ok(Taken { db, of: self, _permit: permit })
    }

    fn pop(&self) -> Option<(Db, Instant)> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, db: Db) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((db, Instant::now()));
    }
}

/// A connection in use.
pub(super) struct Taken<'a> {
    db: Db,
    of: &'a Connections,
    _permit: SemaphorePermit<'a>,
}

impl Taken<'_> {
    /// What was done went well, so the connection may serve again.
    pub(super) fn keep(self) {
        self.of.put(self.db);
    }
}

impl Deref for Taken<'_> {
    type Target = Db;
    fn deref(&self) -> &Db {
        &self.db
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Db {
        &mut self.db
    }
}
