//! What every store and every ground has to do, as one suite, run on SQLite and on PostgreSQL; and the makers of
//! its records.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cases;
mod faults;
mod leading;
mod records;
mod simulated;

pub(crate) use records::{accepted, dispatched, ended, requeued};

use super::{Campaign, Candidate, Opened, Place, StoreError, ground, open_db};
use e2e::Postgres;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Where one case has its database.
struct Home {
    place: Place,
    _dir: Option<TempDir>,
}

impl Home {
    fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { place: Place::in_directory(dir.path()), _dir: Some(dir) }
    }

    fn of(place: &str) -> Self {
        Self { place: Place::parse(place).unwrap(), _dir: None }
    }

    /// The store, opened for the first time.
    async fn fresh(&self) -> Opened {
        self.with_room(u64::MAX).await
    }

    async fn with_room(&self, max_bytes: u64) -> Opened {
        lead(&self.place, max_bytes).await.unwrap()
    }

    /// Opens the store again, as the next master does; whatever held the old one is gone by then.
    async fn reopen(&self, opened: Opened) -> Opened {
        drop(opened);
        self.fresh().await
    }
}

const LEASE: Duration = Duration::from_secs(60);

fn candidate(n: u64) -> Candidate {
    Candidate { id: Uuid::from_u64_pair(3, n), url: format!("http://m{n}") }
}

/// Campaigns and leads. It is the same candidate each time, so that it need not wait for its lease to end.
pub(crate) async fn lead(place: &Place, max_bytes: u64) -> Result<Opened, StoreError> {
    let ground = ground(place, max_bytes);
    match ground.campaign(&candidate(1), LEASE).await? {
        Campaign::Won { epoch } => ground.lead(epoch).await,
        held @ Campaign::Held { .. } => panic!("{held:?}"),
    }
}

/// Notes a migration that this program does not know, as a newer one would have.
pub(crate) async fn pretend_newer(place: &Place) {
    let mut db = open_db(place).await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
               SELECT 99, 'later', success, checksum, execution_time FROM _sqlx_migrations WHERE version = 1";
    db.execute("pretend", sql, Vec::new()).await.unwrap();
    db.close().await.unwrap();
}

/// The cases that hold for both databases: each a test on SQLite, and all of them one test on a server, each in a
/// database of its own; and those that only several masters meet.
macro_rules! suite {
    (both { $($module:ident::$case:ident,)* } server { $($of_server:ident::$only:ident,)* }) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $case() {
                super::$module::$case(&super::Home::sqlite()).await;
            })*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn on_postgresql_it_holds_too() {
            let server = Postgres::start();
            let mut cases = JoinSet::new();
            $(
                let home = Home::of(&server.database());
                cases.spawn(async move {
                    let case = tokio::spawn(async move { $module::$case(&home).await });
                    (stringify!($case), case.await)
                });
            )*
            $(
                let home = Home::of(&server.database());
                cases.spawn(async move {
                    let case = tokio::spawn(async move { $of_server::$only(&home).await });
                    (stringify!($only), case.await)
                });
            )*
            let all = cases.join_all().await;
            let failed: Vec<_> = all.iter().filter(|(_, outcome)| outcome.is_err()).collect();
            assert!(failed.is_empty(), "{failed:#?}\n{}", server.log());
        }
    };
}

suite! {
    both {
        cases::what_was_committed_is_there_after_a_restart_and_only_what_had_not_ended_is_open,
        cases::writing_twice_is_the_same_as_writing_once,
        cases::a_task_that_has_ended_never_changes_again,
        cases::a_requeued_task_runs_nowhere_and_keeps_its_attempts,
        cases::a_hand_out_of_a_task_that_is_not_stored_is_nothing,
        cases::nodes_that_are_gone_are_not_read_back,
        cases::listings_go_from_new_to_old_and_match_every_given_field,
        cases::tokens_are_kept_by_hash_and_pools_by_revision,
        cases::what_is_old_is_forgotten_and_keys_outlive_their_tasks,
        cases::a_store_over_its_size_drops_the_oldest_ended_tasks_first,
        cases::a_newer_schema_is_refused,
        cases::a_store_on_a_sound_disk_is_writable,
        cases::a_log_is_kept_with_its_task_read_from_any_byte_and_forgotten_with_it,
        cases::a_log_that_comes_after_the_end_takes_the_place_of_an_older_run_only,
        cases::logs_over_their_share_of_the_store_go_oldest_first_and_their_tasks_stay,
        leading::of_two_candidates_one_leads,
        leading::whoever_was_deposed_writes_nothing_more,
        leading::who_resigns_leaves_the_way_free,
        simulated::the_simulated_disk_does_the_same,
    }
    server {
        leading::a_lease_lasts_as_long_as_it_is_renewed,
        leading::a_write_and_a_takeover_cannot_cross,
        leading::a_transaction_whose_master_stands_still_ends_by_itself,
    }
}
