//! What happens when what is below a store fails: a clear refusal, and everything acknowledged is there when it
//! ends.

use super::{
    Home, LEASE, candidate, lead,
    records::{accepted, ended, now, task_id},
};
use crate::store::{Campaign, Place, Store, StoreError, backup, ground, open_db, restore};
use e2e::{
    Postgres,
    relay::{Cut, Relay},
};
use protocol::TaskId;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use scheduler::TaskFilter;
use std::{
    fs::File,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Tasks that were accepted, by number, and are there.
async fn open_ids(home: &Home) -> Vec<TaskId> {
    let opened = home.fresh().await;
    opened.recovered.tasks.iter().map(|task| task.record.id).collect()
}

/// Commits one task after another; those that were acknowledged.
async fn commit_while(store: &dyn Store, tasks: std::ops::Range<u64>) -> Vec<TaskId> {
    let mut acknowledged = Vec::new();
    for n in tasks {
        if store.commit(&[accepted(n, None)]).await.is_ok() {
            acknowledged.push(task_id(n));
        }
    }
    acknowledged
}

/// Asks again until the store takes writes.
async fn writable_again(store: &dyn Store) {
    while store.check_writable().await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_refuses_and_loses_nothing_that_was_acknowledged() {
    let mut server = Postgres::start();
    let home = Home::of(&server.database());
    let opened = home.fresh().await;
    let store = &*opened.store;
    let mut acknowledged = commit_while(store, 1..20).await;
    assert_eq!(acknowledged.len(), 19);
    server.kill();
    // The server's process of a connection may live for a moment longer, and commits as ever.
    let mut n = 50;
    let refused = loop {
        match store.commit(&[accepted(n, None)]).await {
            Ok(()) => acknowledged.push(task_id(n)),
            Err(refused) => break refused,
        }
        n += 1;
        assert!(n < 100, "it goes on and on");
    };
    assert!(!refused.to_string().contains(e2e::postgres::PASSWORD), "{refused}");
    store.check_writable().await.unwrap_err();
    store.ended_task(task_id(1)).await.unwrap_err();
    server.start_again();
    writable_again(store).await;
    acknowledged.extend(commit_while(store, 20..30).await);
    assert!(store.ended_task(task_id(1)).await.unwrap().is_none());
    // Killed between two commits, or within one.
    let more = {
        let store = Arc::clone(&opened.store);
        tokio::spawn(async move { commit_while(&*store, 100..400).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.kill();
    server.start_again();
    let more = more.await.unwrap();
    acknowledged.extend(more);
    let there = open_ids(&home).await;
    let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?} of {} were acknowledged", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_sync_or_knows_us_not_is_refused() {
    let server = Postgres::start();
    let url = server.database();
    let stranger = Place::parse(&url.replace(e2e::postgres::PASSWORD, "another-secret")).unwrap();
    let refused = ground(&stranger, u64::MAX).campaign(&candidate(1), LEASE).await.unwrap_err();
    assert!(refused.to_string().contains("password authentication failed"), "{refused}");
    assert!(!refused.to_string().contains("another-secret"), "{refused}");
    let place = Place::parse(&url).unwrap();
    server.sql("postgres", "ALTER SYSTEM SET fsync = off");
    server.sql("postgres", "SELECT pg_reload_conf()");
    let refused = loop {
        // A server takes a changed setting a moment later.
        match ground(&place, u64::MAX).campaign(&candidate(1), LEASE).await {
            Ok(Campaign::Won { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(refused, StoreError::Unsafe { .. }), "{refused}");
    server.sql("postgres", "ALTER SYSTEM RESET fsync");
    server.sql("postgres", "SELECT pg_reload_conf()");
    while lead(&place, u64::MAX).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What a database's owner says of its sessions does not count.
    server.sql("postgres", "ALTER DATABASE t0 SET synchronous_commit = off");
    lead(&place, u64::MAX).await.unwrap();
}

#[tokio::test]
async fn a_locked_database_refuses_until_it_is_let_go() {
    let home = Home::sqlite();
    let opened = home.fresh().await;
    opened.store.commit(&[accepted(1, None)]).await.unwrap();
    let mut other = open_db(&home.place).await.unwrap();
    other.begin().await.unwrap();
    let refused = opened.store.commit(&[accepted(2, None)]).await.unwrap_err();
    assert!(refused.to_string().contains("locked"), "{refused}");
    assert!(opened.store.tokens().await.unwrap().is_empty(), "who only reads is not refused");
    other.close().await.unwrap();
    opened.store.commit(&[accepted(3, None)]).await.unwrap();
    drop(opened);
    assert_eq!(open_ids(&home).await, [1, 3].map(task_id));
}

/// Bounds the size of every file that this process writes; more is an error of input and output.
fn limit_files(bytes: Option<u64>) {
    let now = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(now.maximum), maximum: now.maximum }).unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_grow_refuses_writes_until_it_can() {
    // Unheard, it would end the process.
    let _heard = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).unwrap();
    let home = Home::sqlite();
    let opened = home.fresh().await;
    let store = &*opened.store;
    let mut acknowledged = commit_while(store, 1..20).await;
    limit_files(Some(256 << 10));
    let more = commit_while(store, 20..400).await;
    assert!(more.len() < 380, "all were taken");
    limit_files(Some(0));
    let refused = store.check_writable().await.unwrap_err();
    assert!(store.ended_tasks(&TaskFilter::default(), false).await.unwrap().is_empty(), "reading goes on");
    limit_files(None);
    writable_again(store).await;
    acknowledged.extend(more);
    acknowledged.extend(commit_while(store, 400..420).await);
    drop(opened);
    let there = open_ids(&home).await;
    assert!(there.contains(&task_id(419)), "after {refused}");
    assert!(acknowledged.iter().all(|id| there.contains(id)));
}

/// Overwrites a part of a file.
fn spoil(file: &Path, at: u64, bytes: usize) {
    let file = File::options().write(true).open(file).unwrap();
    file.write_all_at(&vec![0x5a; bytes], at).unwrap();
}

#[tokio::test]
async fn a_corrupt_database_is_refused_and_a_copy_takes_its_place() {
    let home = Home::sqlite();
    let file = home.place.file().unwrap();
    let copies = tempfile::tempdir().unwrap();
    let opened = home.fresh().await;
    opened.store.commit(&[accepted(1, Some("k")), ended(2)]).await.unwrap();
    let copy = backup(&home.place, copies.path(), now()).await.unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    opened.store.commit(&[accepted(3, None)]).await.unwrap();
    let locked = restore(&home.place, &copy, now()).await.unwrap_err();
    assert!(matches!(locked, StoreError::Locked { .. }), "{locked}");
    let before = opened.epoch;
    drop(opened);
    // Its log is taken into it first.
    open_db(&home.place).await.unwrap().close().await.unwrap();
    for (at, bytes) in [(4_096, 1 << 20), (0, 100)] {
        spoil(file, at, bytes);
        let refused = lead(&home.place, u64::MAX).await.err().unwrap();
        assert!(matches!(refused, StoreError::Database { .. } | StoreError::Corrupt { .. }), "{refused}");
    }
    assert!(restore(&home.place, file, now()).await.is_err(), "it is no copy");
    let restored = restore(&home.place, copies.path(), now()).await.unwrap();
    assert_eq!(restored.from, copy);
    assert!(restored.put_away.is_some_and(|away| away.exists()));
    let opened = home.fresh().await;
    assert!(opened.epoch > before + 1_000, "{}", opened.epoch);
    let open: Vec<_> = opened.recovered.tasks.iter().map(|task| task.record.id).collect();
    assert_eq!((open, opened.recovered.keys.len()), (vec![task_id(1)], 1));
    assert!(opened.store.ended_task(task_id(2)).await.unwrap().is_some());
    assert!(backup(&home.place, &copy, now()).await.is_err(), "a copy is not replaced");
}

/// A database of this server, reached by the relay.
fn behind(relay: &Relay, server: &Postgres) -> Home {
    let [real, relayed] = [server.port(), relay.port].map(|port| format!(":{port}/"));
    Home::of(&server.database().replace(&real, &relayed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_a_commit_that_was_not_answered_is_found_out() {
    let server = Postgres::start();
    let relay = Relay::start(server.port());
    let home = behind(&relay, &server);
    let opened = home.fresh().await;
    let mut acknowledged = Vec::new();
    for (n, cut) in (1..=12).zip(Cut::ALL.into_iter().cycle()) {
        relay.cut_next(cut, false);
        let outcome = opened.store.commit(&[accepted(n, None)]).await;
        match (cut, &outcome) {
            (Cut::Before, Err(StoreError::Database { .. })) | (Cut::After, Ok(())) | (Cut::At, _) => {}
            _ => panic!("{cut:?}: {outcome:?}"),
        }
        acknowledged.extend(outcome.is_ok().then(|| task_id(n)));
    }
    assert_eq!(relay.cuts(), 12);
    assert_eq!(open_ids(&home).await, acknowledged, "no more and no less");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_which_nobody_can_tell_what_became_ends_the_lead() {
    let server = Postgres::start();
    let unknown = async |cut: Cut| {
        let relay = Relay::start(server.port());
        let home = behind(&relay, &server);
        let opened = home.fresh().await;
        relay.cut_next(cut, true);
        let error = opened.store.commit(&[accepted(1, None)]).await.unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }) && error.ends_the_lead(), "{error}");
        assert!(!error.to_string().contains(e2e::postgres::PASSWORD), "{error}");
        relay.open();
        open_ids(&home).await
    };
    let (before, after) = tokio::join!(unknown(Cut::Before), unknown(Cut::After));
    assert_eq!((before, after), (vec![], vec![task_id(1)]), "and both said the same");
}
