//! A look at a database from outside, while a master may have it open.

use super::{
    StoreError, schema,
    sql::within,
    sqlite::{self, DATABASE},
};
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
    let schema = within(what, async {
        let mut db = sqlite::open(&file, true).await?;
        let schema = schema::version(&mut db).await?;
        db.close().await?;
        Ok(schema)
    });
    Ok(Some(Look { schema: schema.await?.unwrap_or(0), newest_known: schema::NEWEST }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::{Place, conformance::pretend_newer, open};

    #[tokio::test]
    async fn a_database_is_looked_at_beside_its_master_and_a_newer_one_is_known() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(look(folder.path()).await.unwrap(), None);
        let opened = open(folder.path(), 1 << 30).await.unwrap();
        let found = look(folder.path()).await.unwrap().unwrap();
        assert_eq!(found.schema, found.newest_known);
        drop(opened);
        pretend_newer(&Place::in_directory(folder.path())).await;
        assert!(look(folder.path()).await.unwrap().is_some_and(|look| look.schema > look.newest_known));
    }

    #[tokio::test]
    async fn what_is_no_database_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DATABASE), "something else entirely, of some length").unwrap();
        assert!(matches!(look(folder.path()).await, Err(StoreError::Database { .. })));
    }
}
