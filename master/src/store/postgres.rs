//! The ground that several masters share: PostgreSQL. Who leads is a row with an epoch and a lease, by the
//! database's clock.

use super::{
    Campaign, Candidate, Doing, Ground, Leader, Opened, StoreError,
    connections::Connections,
    db::{Db, Row},
    place::{Inner, Place},
    schema,
    sql::{Sql, within},
    write,
};
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgConnection},
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Connections that read.
const READERS: usize = 4;
/// Connections for campaigning and for the lease, which must not wait for reads and writes.
const CONTROL: usize = 2;

/// What every session has. A commit waits until it is on disk. A statement that hangs, and a transaction whose
/// master stands still, end by themselves, so that their locks keep nobody from taking over.
const SESSION: &str = "SET synchronous_commit = on; SET statement_timeout = '15s'; SET lock_timeout = '10s';
     SET idle_in_transaction_session_timeout = '3s'; SET client_min_messages = warning;
     SET standard_conforming_strings = on; SET client_encoding = 'UTF8'";

/// The database's clock, in milliseconds since 1970.
macro_rules! now {
    () => {
        "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"
    };
}

/// A database that masters share.
pub(super) struct PostgresGround {
    options: PgConnectOptions,
    max_bytes: u64,
    control: Connections,
    /// Whether the schema was looked at.
    ready: AtomicBool,
}

impl PostgresGround {
    /// Touches nothing yet.
    pub(super) fn new(options: PgConnectOptions, max_bytes: u64) -> Self {
        let control = connections(CONTROL, &options);
        Self { options, max_bytes, control, ready: AtomicBool::new(false) }
    }

    fn place(&self) -> String {
        Place(Inner::Postgres(Box::new(self.options.clone()))).to_string()
    }

    /// Sees to it that there is somebody's schema to campaign on. Bringing an older one up to date is the leader's
    /// business, so that a standby of a newer version changes nothing under the leader.
    async fn prepare(&self, db: &mut Db) -> Result<(), StoreError> {
        if self.ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        match schema::version(db).await? {
            Some(version) if version > schema::NEWEST => {
                return Err(StoreError::Newer { place: self.place(), version });
            }
            Some(schema::WITH_LEASE..) => {}
            _ => schema::migrate(db, &self.place()).await?,
        }
        self.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn run(&self, candidate: &Candidate, lease: Duration) -> Result<Campaign, StoreError> {
        let mut db = self.control.take().await?;
        self.prepare(&mut db).await?;
        // One's own lease is free too: the answer to an earlier campaign may have been lost.
        let sql = concat!(
            "UPDATE master SET epoch = epoch + 1, leader = $1, url = $2, lease_until = ",
            now!(),
            " + $3 WHERE leader IS NULL OR leader = $1 OR lease_until <= ",
            now!(),
            " RETURNING epoch"
        );
        let values =
            vec![write::id_bytes(candidate.id).into(), candidate.url.clone().into(), millis(lease).into()];
        let epoch = |row: &Row| row.try_get::<i64>("epoch").map_err(StoreError::database("campaign"));
        let outcome = match db.one("campaign", sql, values, epoch).await? {
            Some(epoch) => Campaign::Won { epoch: epoch.cast_unsigned() },
            None => held(&mut db).await?,
        };
        db.keep();
        Ok(outcome)
    }

    /// Changes the lease of this epoch; says whether it was there to be changed.
    async fn change(
        &self,
        what: &'static str,
        sql: &'static str,
        values: Vec<super::db::Value>,
    ) -> Result<bool, StoreError> {
        let mut db = self.control.take().await?;
        let changed = db.execute(what, sql, values).await?;
        db.keep();
        Ok(changed > 0)
    }
}

async fn held(db: &mut Db) -> Result<Campaign, StoreError> {
    let what = "read who leads";
    let sql = concat!("SELECT epoch, url, greatest(lease_until - ", now!(), ", 0) AS remaining FROM master");
    let held = |row: &Row| {
        let failed = StoreError::database(what);
        let number = |column| row.try_get::<i64>(column).map(i64::cast_unsigned).map_err(&failed);
        let url = row.try_get("url").map_err(&failed)?;
        let left = Duration::from_millis(number("remaining")?);
        Ok(Campaign::Held { leader: Leader { epoch: number("epoch")?, url }, left })
    };
    let why = || "its row is gone".to_owned();
    db.one(what, sql, Vec::new(), held)
        .await?
        .ok_or_else(|| StoreError::Corrupt { what: "who leads", why: why() })
}

fn millis(lease: Duration) -> i64 {
    i64::try_from(lease.as_millis()).unwrap_or(i64::MAX / 2)
}

impl Ground for PostgresGround {
    fn campaign<'a>(&'a self, candidate: &'a Candidate, lease: Duration) -> Doing<'a, Campaign> {
        Box::pin(within("campaign", self.run(candidate, lease)))
    }

    fn renew(&self, epoch: u64, lease: Duration) -> Doing<'_, ()> {
        Box::pin(within("renew the lease", async move {
            let sql = concat!(
                "UPDATE master SET lease_until = ",
                now!(),
                " + $2 WHERE epoch = $1 AND leader IS NOT NULL"
            );
            let values = vec![epoch.cast_signed().into(), millis(lease).into()];
            let renewed = self.change("renew the lease", sql, values).await?;
            renewed.then_some(()).ok_or(StoreError::Deposed { epoch })
        }))
    }

    fn resign(&self, epoch: u64) -> Doing<'_, ()> {
        Box::pin(within("give the lease up", async move {
            let sql = "UPDATE master SET leader = NULL, lease_until = 0 WHERE epoch = $1";
            self.change("give the lease up", sql, vec![epoch.cast_signed().into()]).await.map(drop)
        }))
    }

    fn lead(&self, epoch: u64) -> Doing<'_, Opened> {
        Box::pin(async move {
            let writer = connections(1, &self.options);
            let mut db = writer.take().await?;
            schema::migrate(&mut db, &self.place()).await?;
            db.keep();
            let both = (writer, connections(READERS, &self.options));
            Sql::open(epoch, self.max_bytes, both, None).await
        })
    }
}

fn connections(most: usize, options: &PgConnectOptions) -> Connections {
    let options = options.clone();
    Connections::new(most, move || {
        let options = options.clone();
        Box::pin(async move { open(&options).await })
    })
}

/// Opens a session, and makes sure that what it commits is on disk.
pub(super) async fn open(options: &PgConnectOptions) -> Result<Db, StoreError> {
    let what = "open a session";
    let place = Place(Inner::Postgres(Box::new(options.clone()))).to_string();
    let refused = |error: sqlx::Error| StoreError::Database { what, why: format!("{place}: {error}") };
    let mut session: PgConnection = options.connect().await.map_err(refused)?;
    sqlx::raw_sql(SESSION).execute(&mut session).await.map_err(refused)?;
    let mut db = Db::Postgres(Box::new(session));
    let sql = "SELECT current_setting('synchronous_commit') AS commits, current_setting('fsync') AS syncs,
                   current_setting('transaction_read_only') AS read_only";
    let settings = |row: &Row| {
        let text = |column| row.try_get::<String>(column).map_err(StoreError::database(what));
        Ok((text("commits")?, text("syncs")?, text("read_only")?))
    };
    let (commits, syncs, read_only) = db.one(what, sql, Vec::new(), settings).await?.unwrap_or_default();
    if commits != "on" {
        let setting = format!("synchronous_commit={commits}");
        return Err(StoreError::Unsafe { place, setting, mend: "let masters reach the server itself" });
    }
    if syncs != "on" {
        let setting = format!("fsync={syncs}");
        return Err(StoreError::Unsafe { place, setting, mend: "set fsync=on in postgresql.conf" });
    }
    if read_only != "off" {
        let why = format!("{place} takes no writes: it is a standby server, or set to read only");
        return Err(StoreError::Database { what, why });
    }
    Ok(db)
}
