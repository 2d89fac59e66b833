//! Pools: what is wanted of each, and which manager keeps it.
//!
//! The store has the specs, so that a restart forgets none. Who keeps a pool is known only here: after a
//! restart each manager says hello again within seconds. Plain functions of (board, now); the shell
//! writes to the store first and then calls [`Board::set`].

use crate::template_kinds;
use protocol::{
    Problem, Timestamp,
    pool::{ManagerHello, ManagerView, PoolSpec, PoolView},
};
use scheduler::event::TemplateInfo;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How long a manager holds its pool after it was last heard of.
pub(crate) const MANAGER_HOLDS: Duration = Duration::from_secs(15);
/// Most pools.
pub(crate) const MAX_POOLS: usize = 1_000;

/// Under which condition a pool is written (RFC 9110 section 13.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteIf {
    /// Whatever is there.
    Always,
    /// `If-Match: *`.
    Exists,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: "7"`, one of these.
    Revision(Vec<u64>),
}

#[derive(Debug)]
struct Pool {
    spec: PoolSpec,
    revision: u64,
    manager: Option<(ManagerView, Instant)>,
}

/// All pools.
#[derive(Debug)]
pub(crate) struct Board {
    pools: Mutex<BTreeMap<String, Pool>>,
    changed: watch::Sender<u64>,
}

impl Board {
    /// A board with what the store has: name, revision, spec.
    pub(crate) fn new(stored: impl IntoIterator<Item = (String, u64, PoolSpec)>) -> Self {
        let pools = stored
            .into_iter()
            .map(|(name, revision, spec)| (name, Pool { spec, revision, manager: None }))
            .collect();
        Self { pools: Mutex::new(pools), changed: watch::Sender::new(0) }
    }

    fn pools(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Pool>> {
        // Every change is one assignment, so the map is sound at every instant.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change of a spec.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A pool as it is shown.
    pub(crate) fn view(&self, name: &str) -> Option<PoolView> {
        self.pools().get(name).map(|pool| PoolView {
            name: name.to_owned(),
            revision: pool.revision,
            spec: pool.spec.clone().into(),
            manager: pool.manager.as_ref().map(|(view, _)| view.clone()),
        })
    }

    /// What the templates of all pools bring.
    pub(crate) fn templates(&self) -> Vec<TemplateInfo> {
        template_kinds::of_all(self.pools().iter().map(|(name, pool)| (name, &pool.spec)))
    }

    /// The revision that a write under this condition would get, and whether it makes the pool.
    pub(crate) fn next_revision(&self, name: &str, condition: &WriteIf) -> Result<(u64, bool), Problem> {
        let pools = self.pools();
        let current = pools.get(name).map(|pool| pool.revision);
        let holds = match (condition, current) {
            (WriteIf::Always, _) | (WriteIf::Exists, Some(_)) | (WriteIf::Absent, None) => true,
            (WriteIf::Revision(wanted), Some(revision)) => wanted.contains(&revision),
            (WriteIf::Exists | WriteIf::Revision(_), None) | (WriteIf::Absent, Some(_)) => false,
        };
        if !holds {
            let now = current.map_or("not there".to_owned(), |revision| format!("at revision {revision}"));
            return Err(Problem::precondition_failed(format!(
                "pool {name} is {now}; read it again, then write"
            )));
        }
        if current.is_none() && pools.len() >= MAX_POOLS {
            return Err(Problem::conflict(format!("there are {MAX_POOLS} pools, which is the bound")));
        }
        Ok((current.unwrap_or(0) + 1, current.is_none()))
    }

    /// Takes over what the store has just committed.
    pub(crate) fn set(&self, name: &str, revision: u64, spec: PoolSpec) {
        let mut pools = self.pools();
        match pools.get_mut(name) {
            Some(pool) => (pool.spec, pool.revision) = (spec, revision),
            None => {
                pools.insert(name.to_owned(), Pool { spec, revision, manager: None });
            }
        }
        drop(pools);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Notes that this manager keeps its pool, unless another one does; the pool must exist.
    pub(crate) fn hold(
        &self,
        hello: ManagerHello,
        now: Instant,
        wall: Timestamp,
    ) -> Result<ManagerView, Problem> {
        let ManagerHello { pool: name, instance, host_cores, host_memory_bytes, runtime, trouble } = hello;
        let mut pools = self.pools();
        let pool =
            pools.get_mut(&name).ok_or_else(|| Problem::not_found(format!("there is no pool {name:?}")))?;
        if let Some((other, seen)) = &pool.manager
            && other.instance != instance
            && now.saturating_duration_since(*seen) < MANAGER_HOLDS
        {
            return Err(Problem::conflict(format!(
                "pool {name} is kept by another manager ({}), last heard of {} ms ago; stop it, or wait {} s after its end",
                other.instance,
                now.saturating_duration_since(*seen).as_millis(),
                MANAGER_HOLDS.as_secs(),
            )));
        }
        let view =
            ManagerView { instance, host_cores, host_memory_bytes, runtime, trouble, last_seen_at: wall };
        pool.manager = Some((view.clone(), now));
        Ok(view)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn hello(instance: u128) -> ManagerHello {
        ManagerHello {
            pool: "default".to_owned(),
            instance: uuid::Uuid::from_u128(instance),
            host_cores: 2.0,
            host_memory_bytes: 1 << 30,
            runtime: "docker".to_owned(),
            trouble: String::new(),
        }
    }

    #[test]
    fn one_manager_holds_a_pool_until_15_s_after_it_was_heard_of() {
        let board = Board::new([("default".to_owned(), 1, PoolSpec::default())]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let say =
            |instance, seconds| board.hold(hello(instance), at(seconds), Timestamp(0)).map_err(|p| p.status);
        assert!(say(1, 0).is_ok());
        assert_eq!(say(2, 14).unwrap_err(), 409);
        assert!(say(1, 14).is_ok());
        assert_eq!(say(2, 28).unwrap_err(), 409);
        assert!(say(2, 29).is_ok());
        assert_eq!(say(1, 30).unwrap_err(), 409);
    }

    #[test]
    fn a_write_holds_to_its_condition() {
        let board = Board::new([]);
        let next =
            |condition: WriteIf| board.next_revision("p", &condition).map_err(|problem| problem.status);
        assert_eq!(next(WriteIf::Exists), Err(412));
        assert_eq!(next(WriteIf::Revision(vec![1])), Err(412));
        assert_eq!(next(WriteIf::Absent), Ok((1, true)));
        board.set("p", 1, PoolSpec::default());
        assert_eq!(next(WriteIf::Absent), Err(412));
        assert_eq!(next(WriteIf::Revision(vec![2, 1])), Ok((2, false)));
        assert_eq!(next(WriteIf::Revision(vec![])), Err(412));
        assert_eq!(next(WriteIf::Always), Ok((2, false)));
    }
}
