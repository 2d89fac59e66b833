//! What has to hold of masters that want to lead on the same database.

use super::{
    Home, LEASE, candidate,
    records::{accepted, ended, now, task_id, token},
};
use crate::store::{Campaign, Ground, KEPT_MS, StoreError, db::Db, ground, open_db};
use protocol::pool::PoolSpec;
use std::{sync::Arc, time::Duration};

async fn win(ground: &dyn Ground, n: u64) -> u64 {
    match ground.campaign(&candidate(n), LEASE).await.unwrap() {
        Campaign::Won { epoch } => epoch,
        held @ Campaign::Held { .. } => panic!("{held:?}"),
    }
}

pub(super) async fn of_two_candidates_one_leads(home: &Home) {
    let (one, two) = (ground(&home.place, u64::MAX), ground(&home.place, u64::MAX));
    assert_eq!(win(&*one, 1).await, 1);
    match two.campaign(&candidate(2), LEASE).await {
        Ok(Campaign::Held { leader, left }) => {
            assert_eq!((leader.epoch, &*leader.url), (1, "http://m1"));
            assert!(left <= LEASE, "{left:?}");
        }
        Err(StoreError::Locked { .. }) => {}
        other => panic!("{other:?}"),
    }
    one.renew(1, LEASE).await.unwrap();
    assert_eq!(win(&*one, 1).await, 2, "the refused one took no epoch");
}

pub(super) async fn whoever_was_deposed_writes_nothing_more(home: &Home) {
    let ground = ground(&home.place, u64::MAX);
    let epoch = win(&*ground, 1).await;
    let old = ground.lead(epoch).await.unwrap().store;
    old.commit(&[accepted(1, None)]).await.unwrap();
    let next = win(&*ground, 1).await;
    assert!(next > epoch);
    let outcomes = [
        old.commit(&[accepted(2, None), ended(1)]).await,
        old.put_token(&[1; 32], &token(1)).await,
        old.remove_token(token(1).id).await,
        old.put_pool("a", 1, &PoolSpec::default()).await,
        old.check_writable().await,
        old.forget(now().plus_ms(2 * KEPT_MS)).await.map(drop),
    ];
    for outcome in outcomes {
        let error = outcome.expect_err("it was deposed");
        assert!(error.ends_the_lead(), "{error}");
    }
    assert!(matches!(ground.lead(epoch).await.err(), Some(StoreError::Deposed { .. })));
    drop(old);
    let new = ground.lead(next).await.unwrap();
    let open: Vec<_> = new.recovered.tasks.iter().map(|task| task.record.id).collect();
    assert_eq!(open, [task_id(1)]);
    assert!(new.store.tokens().await.unwrap().is_empty());
    assert!(new.store.pools().await.unwrap().is_empty());
}

pub(super) async fn who_resigns_leaves_the_way_free(home: &Home) {
    let (one, two) = (ground(&home.place, u64::MAX), ground(&home.place, u64::MAX));
    let epoch = win(&*one, 1).await;
    one.resign(epoch).await.unwrap();
    one.resign(epoch).await.unwrap();
    assert!(matches!(one.renew(epoch, LEASE).await, Err(StoreError::Deposed { .. })));
    let next = win(&*two, 2).await;
    assert_eq!(next, epoch + 1);
    one.resign(epoch).await.unwrap();
    two.renew(next, LEASE).await.unwrap();
}

/// A lease that is soon over.
const SHORT: Duration = Duration::from_millis(300);

/// Wins as soon as nobody else leads.
async fn win_at_last(ground: &dyn Ground, n: u64) -> u64 {
    loop {
        match ground.campaign(&candidate(n), LEASE).await.unwrap() {
            Campaign::Won { epoch } => return epoch,
            Campaign::Held { left, .. } => tokio::time::sleep(left).await,
        }
    }
}

pub(super) async fn a_lease_lasts_as_long_as_it_is_renewed(home: &Home) {
    let (one, two) = (ground(&home.place, u64::MAX), ground(&home.place, u64::MAX));
    let Campaign::Won { epoch } = one.campaign(&candidate(1), SHORT).await.unwrap() else {
        panic!("it is free")
    };
    one.renew(epoch, LEASE).await.unwrap();
    tokio::time::sleep(2 * SHORT).await;
    let held = two.campaign(&candidate(2), LEASE).await.unwrap();
    assert!(matches!(held, Campaign::Held { left, .. } if left > SHORT), "{held:?}");
    one.renew(epoch, SHORT).await.unwrap();
    let next = win_at_last(&*two, 2).await;
    assert_eq!(next, epoch + 1, "who only asks takes no epoch");
    assert!(matches!(one.renew(epoch, LEASE).await, Err(StoreError::Deposed { .. })));
}

/// A transaction of the leader of this epoch that has asked whether it still leads, and is not over.
async fn half_way(home: &Home, epoch: u64) -> Db {
    let mut db = open_db(&home.place).await.unwrap();
    db.begin().await.unwrap();
    let sql = "SELECT epoch FROM master WHERE epoch = $1 FOR KEY SHARE";
    let found = db.all("ask who leads", sql, vec![epoch.cast_signed().into()], |_| Ok(())).await.unwrap();
    assert_eq!(found.len(), 1);
    db.execute("write", "UPDATE usage SET log_bytes = 7", Vec::new()).await.unwrap();
    db
}

pub(super) async fn a_write_and_a_takeover_cannot_cross(home: &Home) {
    let (one, two) = (ground(&home.place, u64::MAX), ground(&home.place, u64::MAX));
    let Campaign::Won { epoch } = one.campaign(&candidate(1), SHORT).await.unwrap() else {
        panic!("it is free")
    };
    let mut writes = half_way(home, epoch).await;
    one.renew(epoch, SHORT).await.expect("a lease is renewed beside a write");
    let takeover = {
        let two = Arc::clone(&two);
        tokio::spawn(async move { win_at_last(&*two, 2).await })
    };
    tokio::time::sleep(3 * SHORT).await;
    assert!(!takeover.is_finished(), "it waits for the write");
    writes.commit().await.unwrap();
    assert_eq!(takeover.await.unwrap(), epoch + 1);
}

pub(super) async fn a_transaction_whose_master_stands_still_ends_by_itself(home: &Home) {
    let (one, two) = (ground(&home.place, u64::MAX), ground(&home.place, u64::MAX));
    let Campaign::Won { epoch } = one.campaign(&candidate(1), SHORT).await.unwrap() else {
        panic!("it is free")
    };
    let mut writes = half_way(home, epoch).await;
    assert_eq!(win_at_last(&*two, 2).await, epoch + 1);
    writes.commit().await.expect_err("the server has ended it");
}
