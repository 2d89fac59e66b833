//! The seam between the two databases: one connection, its values and rows, and the few words that differ.
//!
//! SQL is written once, in what both understand: `$1` for bound values, `VALUES` with `column1` …, `ON CONFLICT`.
//! Bytes, whole numbers and text are all that is stored.

use super::StoreError;
use futures_util::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Decode, PgConnection, Postgres, Row as _, SqlSafeStr as _, SqlStr,
    Sqlite, SqliteConnection, Type, postgres::PgRow, sqlite::SqliteRow,
};
use std::borrow::Cow;

/// A value to be bound.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A whole number.
    Int(Option<i64>),
    /// Bytes.
    Bytes(Option<Vec<u8>>),
    /// Text.
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Bytes(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// A connection.
pub(super) enum Db {
    /// To SQLite.
    Sqlite(Box<SqliteConnection>),
    /// To PostgreSQL.
    Postgres(Box<PgConnection>),
}

/// A row of an answer.
pub(super) enum Row {
    /// Of SQLite.
    Sqlite(SqliteRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

impl Row {
    /// A column. Numbers are `i64` in both.
    pub(super) fn try_get<'a, T>(&'a self, column: &'static str) -> Result<T, sqlx::Error>
    where
        T: Decode<'a, Sqlite> + Type<Sqlite> + Decode<'a, Postgres> + Type<Postgres>,
    {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

/// Binds values in their order.
macro_rules! bound {
    ($database:ty, $sql:expr, $values:expr) => {{
        let mut query = sqlx::query::<$database>(safe($sql));
        for value in $values {
            query = match value {
                Value::Int(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
            };
        }
        query
    }};
}

/// Only texts of this program get here; what comes from outside is bound.
fn safe(sql: Cow<'static, str>) -> SqlStr {
    match sql {
        Cow::Borrowed(sql) => sql.into_sql_str(),
        Cow::Owned(sql) => AssertSqlSafe(sql).into_sql_str(),
    }
}

impl Db {
    /// Which database this is.
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres(_) => Kind::Postgres,
        }
    }

    /// Executes one statement; says how many rows it changed.
    pub(super) async fn execute(
        &mut self,
        what: &'static str,
        sql: impl Into<Cow<'static, str>>,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        self.execute_text(what, sql.into(), values).await
    }

    async fn execute_text(
        &mut self,
        what: &'static str,
        sql: Cow<'static, str>,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let changed = match self {
            Self::Sqlite(db) => {
                bound!(Sqlite, sql, values).execute(&mut **db).await.map(|done| done.rows_affected())
            }
            Self::Postgres(db) => {
                bound!(Postgres, sql, values).execute(&mut **db).await.map(|done| done.rows_affected())
            }
        };
        changed.map_err(StoreError::database(what))
    }

    /// Hands each row of an answer over, one after another. An answer is read to its end, because a statement
    /// that writes may fail behind its last row.
    pub(super) async fn each(
        &mut self,
        what: &'static str,
        sql: impl Into<Cow<'static, str>>,
        values: Vec<Value>,
        mut take: impl FnMut(&Row) -> Result<(), StoreError> + Send,
    ) -> Result<(), StoreError> {
        self.rows(what, sql.into(), values, &mut take).await
    }

    /// As [`Db::each`]; once in the program, and not for each of its callers.
    async fn rows(
        &mut self,
        what: &'static str,
        sql: Cow<'static, str>,
        values: Vec<Value>,
        take: &mut (dyn FnMut(&Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        let failed = StoreError::database(what);
        match self {
            Self::Sqlite(db) => {
                let mut rows = bound!(Sqlite, sql, values).fetch(&mut **db);
                while let Some(row) = rows.try_next().await.map_err(&failed)? {
                    take(&Row::Sqlite(row))?;
                }
            }
            Self::Postgres(db) => {
                let mut rows = bound!(Postgres, sql, values).fetch(&mut **db);
                while let Some(row) = rows.try_next().await.map_err(&failed)? {
                    take(&Row::Postgres(row))?;
                }
            }
        }
        Ok(())
    }

    /// All rows of an answer, each made into something.
    pub(super) async fn all<T: Send>(
        &mut self,
        what: &'static str,
        sql: impl Into<Cow<'static, str>>,
        values: Vec<Value>,
        mut make: impl FnMut(&Row) -> Result<T, StoreError> + Send,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        let take = |row: &Row| {
            all.push(make(row)?);
            Ok(())
        };
        self.each(what, sql, values, take).await?;
        Ok(all)
    }

    /// The one row of an answer, or none.
    pub(super) async fn one<T: Send>(
        &mut self,
        what: &'static str,
        sql: impl Into<Cow<'static, str>>,
        values: Vec<Value>,
        make: impl FnMut(&Row) -> Result<T, StoreError> + Send,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.all(what, sql, values, make).await?.pop())
    }

    /// Begins a transaction that will write.
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        let sql = match self.kind() {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        self.execute("begin a transaction", sql, Vec::new()).await.map(drop)
    }

    /// Commits it. A transaction that is not committed ends with its connection.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        self.execute("commit a transaction", "COMMIT", Vec::new()).await.map(drop)
    }

    /// Whether the other side still answers.
    pub(super) async fn is_alive(&mut self) -> bool {
        match self {
            // Its file may be gone, but then each use of it says so.
            Self::Sqlite(_) => true,
            Self::Postgres(db) => db.ping().await.is_ok(),
        }
    }

    /// Ends the connection in order.
    pub(super) async fn close(self) -> Result<(), StoreError> {
        let closed = match self {
            Self::Sqlite(db) => db.close().await,
            Self::Postgres(db) => db.close().await,
        };
        closed.map_err(StoreError::database("close the database"))
    }
}
