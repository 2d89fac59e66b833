//! A look at a database from outside, while a master may have it open.

use super::{
    StoreError,
    sqlite::{DATABASE, migrations, within},
};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use std::path::Path;

/// A database as it was found; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Number of its schema.
    pub schema: i64,
    /// Newest schema that this program knows; an older one is brought up to it at the master's start.
    pub newest_known: i64,
}

/// Opens the database of a state directory for reading and closes it again; `None` if there is none. A master
/// that has it open is not disturbed.
///
/// # Errors
/// [`StoreError`] if it is no database, or does not answer in time.
pub async fn look(dir: &Path) -> Result<Option<Look>, StoreError> {
    let file = dir.join(DATABASE);
    if !file.exists() {
        return Ok(None);
    }
    let what = "open the database";
    let options = SqliteConnectOptions::new().filename(&file).read_only(true).disable_statement_logging();
    let look = async {
        let mut db = options.connect().await?;
        let schema =
            sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut db).await?;
        db.close().await?;
        Ok(schema)
    };
    let schema = within(what, look).await?.map_err(StoreError::database(what))?;
    let newest_known = migrations().iter().map(|migration| migration.version).max().unwrap_or(0);
    Ok(Some(Look { schema, newest_known }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::{open, sqlite::pretend_newer};

    #[tokio::test]
    async fn a_database_is_looked_at_beside_its_master_and_a_newer_one_is_known() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(look(folder.path()).await.unwrap(), None);
        let opened = open(folder.path(), 1 << 30).await.unwrap();
        let found = look(folder.path()).await.unwrap().unwrap();
        assert_eq!(found.schema, found.newest_known);
        drop(opened);
        pretend_newer(folder.path()).await;
        assert!(look(folder.path()).await.unwrap().is_some_and(|look| look.schema > look.newest_known));
    }

    #[tokio::test]
    async fn what_is_no_database_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DATABASE), "something else entirely, of some length").unwrap();
        assert!(matches!(look(folder.path()).await, Err(StoreError::Database { .. })));
    }
}
