//! Forgetting: what is old, and what no longer has room.

use super::{
    KEPT_MS, StoreError,
    db::{Db, Kind, Row},
    logs,
    sql::Transaction,
    write::{self, Grown},
};
use protocol::Timestamp;

/// Rows of each table that one step removes.
const ROWS: i64 = 200;
/// What is done, in errors.
const WHAT: &str = "forget what is old";

/// What one step removed.
pub(super) struct Forgotten {
    /// Rows, of whatever table.
    pub(super) rows: u64,
    /// Bytes, less than nothing.
    pub(super) grown: Grown,
}

/// One step of forgetting, in a transaction.
pub(super) async fn some(
    transaction: &mut Transaction<'_>,
    now: Timestamp,
    max_bytes: u64,
) -> Result<Forgotten, StoreError> {
    let old = now.0.saturating_sub_unsigned(KEPT_MS);
    let mut forgotten = Forgotten { rows: 0, grown: Grown::default() };
    for sql in [
        "DELETE FROM idempotency_keys WHERE (client, key) IN
             (SELECT client, key FROM idempotency_keys WHERE submitted_at < $1 LIMIT $2)",
        "DELETE FROM nodes WHERE id IN (SELECT id FROM nodes WHERE gone_at < $1 LIMIT $2)",
    ] {
        forgotten.rows += transaction.db.execute(WHAT, sql, vec![old.into(), ROWS.into()]).await?;
    }
    some_logs(transaction, max_bytes / logs::SHARE, &mut forgotten).await?;
    let kept = transaction.kept;
    let excess = match transaction.db.kind() {
        Kind::Sqlite => pages(&mut transaction.db).await?,
        Kind::Postgres => kept.tasks.saturating_add(kept.logs).saturating_add(forgotten.grown.logs),
    }
    .saturating_sub_unsigned(max_bytes);
    some_tasks(&mut transaction.db, old, excess, &mut forgotten).await?;
    Ok(forgotten)
}

/// The oldest logs, while all together have more than `most` bytes.
async fn some_logs(
    transaction: &mut Transaction<'_>,
    most: u64,
    forgotten: &mut Forgotten,
) -> Result<(), StoreError> {
    let kept = transaction.kept.logs;
    let over = |grown: i64| kept.saturating_add(grown).cast_unsigned() > most;
    if !over(forgotten.grown.logs) {
        return Ok(());
    }
    for task in logs::oldest(&mut transaction.db, ROWS).await? {
        forgotten.grown.logs -= logs::remove(&mut transaction.db, &task).await?;
        forgotten.rows += 1;
        if !over(forgotten.grown.logs) {
            break;
        }
    }
    Ok(())
}

/// Bytes of the pages that are in use. What was removed leaves free pages, which are used again.
async fn pages(db: &mut Db) -> Result<i64, StoreError> {
    let sql = "SELECT ((SELECT page_count FROM pragma_page_count)
                   - (SELECT freelist_count FROM pragma_freelist_count))
                   * (SELECT page_size FROM pragma_page_size) AS bytes";
    let bytes = |row: &Row| row.try_get::<i64>("bytes").map_err(StoreError::database(WHAT));
    Ok(db.one(WHAT, sql, Vec::new(), bytes).await?.unwrap_or_default())
}

/// The tasks that ended before `old`, and while there is an excess of bytes the oldest ones, however young.
async fn some_tasks(
    db: &mut Db,
    old: i64,
    mut excess: i64,
    forgotten: &mut Forgotten,
) -> Result<(), StoreError> {
    let before = if excess > 0 { i64::MAX } else { old };
    let sql = "SELECT id, finished_at,
                   CAST(octet_length(shown) + coalesce(octet_length(input), 0)
                       + coalesce(octet_length(result), 0) AS BIGINT) AS bytes,
                   CAST((SELECT coalesce(sum(octet_length(task_logs.bytes)), 0) FROM task_logs
                       WHERE task_logs.task = tasks.id) AS BIGINT) AS log_bytes
               FROM tasks WHERE state >= 2 AND finished_at < $1 ORDER BY finished_at LIMIT $2";
    let ended = |row: &Row| {
        let failed = StoreError::corrupt("an ended task");
        let id: Vec<u8> = row.try_get("id").map_err(&failed)?;
        let number = |column| row.try_get::<i64>(column).map_err(&failed);
        Ok((id, number("finished_at")?, number("bytes")?, number("log_bytes")?))
    };
    let mut gone = Vec::new();
    let oldest = db.all(WHAT, sql, vec![before.into(), ROWS.into()], ended).await?;
    for (id, finished_at, bytes, log_bytes) in &oldest {
        if *finished_at >= old && excess <= 0 {
            break;
        }
        excess = excess.saturating_sub(*bytes).saturating_sub(*log_bytes);
        if db.kind() == Kind::Postgres {
            forgotten.grown.tasks -= bytes + write::ROW_BYTES;
        }
        forgotten.grown.logs -= log_bytes;
        gone.push(id);
    }
    for before in [
        "DELETE FROM task_labels WHERE task IN (VALUES",
        "DELETE FROM task_logs WHERE task IN (VALUES",
        "DELETE FROM tasks WHERE id IN (VALUES",
    ] {
        write::write(db, WHAT, (before, 1, ")"), &gone, |values, id| {
            values.push(id.clone().into());
            Ok(())
        })
        .await?;
    }
    forgotten.rows += gone.len() as u64;
    Ok(())
}
