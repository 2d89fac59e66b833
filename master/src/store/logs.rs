//! Logs of tasks that have ended: at most one row for each of a task's two streams, dropped with the task, and
//! before it where all logs together are over their bound.

use super::{StoreError, write::id_bytes};
use bytes::Bytes;
use protocol::{
    RunId, TaskId,
    log::{LOG_PIECE_BYTES, Stream, Tail},
};
use scheduler::TaskLog;
use sqlx::{Row as _, SqliteConnection};

/// Part of the store's size that logs may take.
pub(super) const SHARE: u64 = 4;

/// A piece of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredPiece {
    /// Of which run.
    pub(crate) run: RunId,
    /// Which attempt of the task that was.
    pub(crate) attempt: u32,
    /// At most `LOG_PIECE_BYTES`.
    pub(crate) piece: Tail,
    /// How much was printed in all.
    pub(crate) end: u64,
}

const fn number(stream: Stream) -> i64 {
    match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    }
}

/// Drops what is kept of the runs before that of this log; says how many bytes that was.
pub(super) async fn remove_older(
    db: &mut SqliteConnection,
    task: TaskId,
    log: &TaskLog,
) -> Result<i64, StoreError> {
    let sql = "DELETE FROM task_logs WHERE task = ?1 AND run < ?2 RETURNING octet_length(bytes)";
    let query = sqlx::query_scalar(sql).bind(id_bytes(task.0)).bind(log.run.0.cast_signed());
    let removed: Vec<i64> = query.fetch_all(db).await.map_err(StoreError::database("replace a log"))?;
    Ok(removed.iter().sum())
}

/// Writes the log of a task that has ended, unless there is one; says how many bytes there are more.
pub(super) async fn write(db: &mut SqliteConnection, task: TaskId, log: &TaskLog) -> Result<i64, StoreError> {
    let failed = StoreError::database("store a log");
    let mut grown = 0;
    for stream in Stream::ALL {
        let tail = log.tails.of(stream);
        if tail.bytes.is_empty() {
            continue;
        }
        // Nothing is kept of a task that is not there.
        let sql = "INSERT INTO task_logs (task, stream, run, attempt, at, bytes)
                   SELECT ?1, ?2, ?3, ?4, ?5, ?6 FROM tasks WHERE id = ?1 AND state >= 2
                   ON CONFLICT (task, stream) DO NOTHING";
        let query = sqlx::query(sql)
            .bind(id_bytes(task.0))
            .bind(number(stream))
            .bind(log.run.0.cast_signed())
            .bind(i64::from(log.attempt))
            .bind(tail.offset.cast_signed())
            .bind(tail.bytes.to_vec());
        if query.execute(&mut *db).await.map_err(&failed)?.rows_affected() > 0 {
            grown += i64::try_from(tail.bytes.len()).unwrap_or(i64::MAX);
        }
    }
    Ok(grown)
}

/// The bytes of all logs.
pub(super) async fn bytes(db: &mut SqliteConnection) -> Result<i64, StoreError> {
    let sql = "SELECT ifnull(sum(octet_length(bytes)), 0) FROM task_logs";
    sqlx::query_scalar(sql).fetch_one(db).await.map_err(StoreError::database("read the size of the logs"))
}

/// Drops the log of a task; says how many bytes it had.
pub(super) async fn remove(db: &mut SqliteConnection, task: &[u8]) -> Result<i64, StoreError> {
    let failed = StoreError::database("drop a log");
    let sql = "DELETE FROM task_logs WHERE task = ?1 RETURNING octet_length(bytes)";
    let removed: Vec<i64> =
        sqlx::query_scalar(sql).bind(task.to_vec()).fetch_all(db).await.map_err(&failed)?;
    Ok(removed.iter().sum())
}

/// The tasks with the oldest logs.
pub(super) async fn oldest(db: &mut SqliteConnection, most: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    // Ids of tasks sort by the time of submission.
    let sql = "SELECT DISTINCT task FROM task_logs ORDER BY task LIMIT ?1";
    sqlx::query_scalar(sql).bind(most).fetch_all(db).await.map_err(StoreError::database("find old logs"))
}

/// What there is of a log from this offset on; `None` if nothing is kept.
pub(super) async fn piece(
    db: &mut SqliteConnection,
    task: TaskId,
    stream: Stream,
    from: u64,
) -> Result<Option<StoredPiece>, StoreError> {
    // `substr` counts from 1. An offset past the end begins at the end.
    let sql = "SELECT run, attempt, at, octet_length(bytes) AS length,
                      substr(bytes, max(min(?3 - at, octet_length(bytes)), 0) + 1, ?4) AS piece
               FROM task_logs WHERE task = ?1 AND stream = ?2";
    let row = sqlx::query(sql)
        .bind(id_bytes(task.0))
        .bind(number(stream))
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(i64::try_from(LOG_PIECE_BYTES).unwrap_or(i64::MAX))
        .fetch_optional(db)
        .await
        .map_err(StoreError::database("read a log"))?;
    let Some(row) = row else { return Ok(None) };
    let number = |column| {
        let value: Result<i64, _> = row.try_get(column);
        value.map(i64::cast_unsigned).map_err(StoreError::corrupt("a log"))
    };
    let (at, length) = (number("at")?, number("length")?);
    let bytes: Vec<u8> = row.try_get("piece").map_err(StoreError::corrupt("a log"))?;
    let end = at.saturating_add(length);
    Ok(Some(StoredPiece {
        run: RunId(number("run")?),
        attempt: row.try_get("attempt").map_err(StoreError::corrupt("a log"))?,
        piece: Tail { offset: from.clamp(at, end), bytes: Bytes::from(bytes) },
        end,
    }))
}
