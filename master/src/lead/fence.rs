//! The store as one leadership has it: nothing is written once that is over.
//!
//! The database refuses what comes with an old epoch by itself. This keeps a master that stood still from even
//! asking, and ends the leadership of one that hears of its successor this way first. So does a commit of which
//! nobody knows what became: whoever leads next, this one or another, reads what is there.

use super::tenure::Tenure;
use crate::store::{Doing, EndedTask, Store, StoreError, StoredPiece, StoredPool, StoredToken};
use protocol::{TaskId, Timestamp, auth::TokenInfo, log::Stream, pool::PoolSpec};
use scheduler::{TaskFilter, record::Op};
use std::sync::Arc;

/// See the module.
pub(crate) struct Fenced {
    store: Arc<dyn Store>,
    tenure: Tenure,
    epoch: u64,
}

impl Fenced {
    /// This store, for as long as the leadership lasts.
    pub(crate) fn new(store: Arc<dyn Store>, tenure: Tenure, epoch: u64) -> Self {
        Self { store, tenure, epoch }
    }

    fn write<'a, T: Send + 'a>(&'a self, write: impl FnOnce(&'a dyn Store) -> Doing<'a, T>) -> Doing<'a, T> {
        if !self.tenure.holds() {
            let epoch = self.epoch;
            return Box::pin(async move { Err(StoreError::Deposed { epoch }) });
        }
        let writing = write(&*self.store);
        Box::pin(async move {
            let written = writing.await;
            if let Err(error) = &written
                && error.ends_the_lead()
            {
                tracing::warn!(%error, epoch = self.epoch, "this master gives the lead up");
                self.tenure.end();
            }
            written
        })
    }
}

impl Store for Fenced {
    fn commit<'a>(&'a self, ops: &'a [Op]) -> Doing<'a, ()> {
        self.write(|store| store.commit(ops))
    }
    fn ended_task(&self, id: TaskId) -> Doing<'_, Option<EndedTask>> {
        self.store.ended_task(id)
    }
    fn ended_tasks<'a>(&'a self, filter: &'a TaskFilter, full: bool) -> Doing<'a, Vec<EndedTask>> {
        self.store.ended_tasks(filter, full)
    }
    fn task_log(&self, id: TaskId, stream: Stream, from: u64) -> Doing<'_, Option<StoredPiece>> {
        self.store.task_log(id, stream, from)
    }
    fn put_token<'a>(&'a self, hash: &'a [u8; 32], info: &'a TokenInfo) -> Doing<'a, ()> {
        self.write(|store| store.put_token(hash, info))
    }
    fn remove_token(&self, id: uuid::Uuid) -> Doing<'_, ()> {
        self.write(|store| store.remove_token(id))
    }
    fn tokens(&self) -> Doing<'_, Vec<StoredToken>> {
        self.store.tokens()
    }
    fn put_pool<'a>(&'a self, name: &'a str, revision: u64, spec: &'a PoolSpec) -> Doing<'a, ()> {
        self.write(|store| store.put_pool(name, revision, spec))
    }
    fn pools(&self) -> Doing<'_, Vec<StoredPool>> {
        self.store.pools()
    }
    fn check_writable(&self) -> Doing<'_, ()> {
        self.write(|store| store.check_writable())
    }
    fn forget(&self, now: Timestamp) -> Doing<'_, bool> {
        self.write(|store| store.forget(now))
    }
}
