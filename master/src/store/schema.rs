//! The schema, written once, in SQLite's words; PostgreSQL's are put in their place.

use super::{StoreError, db::Db};
use sqlx::{
    AssertSqlSafe, SqlSafeStr as _,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

/// Each with its number and name. One that was released never changes.
const MIGRATIONS: [(i64, &str, &str); 4] = [
    (1, "first", include_str!("../../migrations/0001_first.sql")),
    (2, "task logs", include_str!("../../migrations/0002_task_logs.sql")),
    (3, "leader", include_str!("../../migrations/0003_leader.sql")),
    (4, "trials", include_str!("../../migrations/0004_trials.sql")),
];

/// The newest schema that this program knows.
pub(super) const NEWEST: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;
/// The first with all that it takes to campaign.
pub(super) const WITH_LEASE: i64 = 3;

fn migrator(text: impl Fn(&str) -> String) -> Migrator {
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        let sql = AssertSqlSafe(text(sql)).into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.into_iter().map(migration).collect())
}

/// `STRICT` and `WITHOUT ROWID` are how PostgreSQL's tables are anyway, in what they promise.
pub(super) fn for_postgres(sql: &str) -> String {
    [(" BLOB", " BYTEA"), (" INTEGER", " BIGINT"), (" STRICT, WITHOUT ROWID", ""), (" STRICT", "")]
        .into_iter()
        .fold(sql.to_owned(), |sql, (ours, theirs)| sql.replace(ours, theirs))
}

/// Brings the schema up to date; one that a newer program made is refused.
pub(super) async fn migrate(db: &mut Db, place: &str) -> Result<(), StoreError> {
    let done = match db {
        Db::Sqlite(db) => migrator(str::to_owned).run_direct(None, &mut **db, false).await,
        Db::Postgres(db) => migrator(for_postgres).run_direct(None, &mut **db, false).await,
    };
    done.map_err(|error| match error {
        MigrateError::VersionMissing(version) => StoreError::Newer { place: place.to_owned(), version },
        error => StoreError::Database { what: "bring the schema up to date", why: error.to_string() },
    })
}

/// Number of the schema; `None` before the first.
pub(super) async fn version(db: &mut Db) -> Result<Option<i64>, StoreError> {
    let what = "read the number of the schema";
    let known = match db {
        Db::Sqlite(_) => "SELECT name AS found FROM sqlite_schema WHERE name = '_sqlx_migrations'",
        Db::Postgres(_) => "SELECT CAST(to_regclass('_sqlx_migrations') AS TEXT) AS found",
    };
    let found =
        |row: &super::db::Row| row.try_get::<Option<String>>("found").map_err(StoreError::database(what));
    if db.one(what, known, Vec::new(), found).await?.flatten().is_none() {
        return Ok(None);
    }
    let sql = "SELECT max(version) AS version FROM _sqlx_migrations";
    let version =
        |row: &super::db::Row| row.try_get::<Option<i64>>("version").map_err(StoreError::database(what));
    Ok(db.one(what, sql, Vec::new(), version).await?.flatten())
}
