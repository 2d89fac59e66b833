//! Logs of tasks that have ended: at most one row for each of a task's two streams, dropped with the task, and
//! before it where all logs together are over their bound.

use super::{
    StoreError,
    db::{Db, Row},
    write::id_bytes,
};
use bytes::Bytes;
use protocol::{
    RunId, TaskId,
    log::{LOG_PIECE_BYTES, Stream, Tail},
};
use scheduler::TaskLog;

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
pub(super) async fn remove_older(db: &mut Db, task: TaskId, log: &TaskLog) -> Result<i64, StoreError> {
    let sql = "DELETE FROM task_logs WHERE task = $1 AND run < $2
               RETURNING CAST(octet_length(bytes) AS BIGINT) AS bytes";
    let values = vec![id_bytes(task.0).into(), log.run.0.cast_signed().into()];
    Ok(db.all("replace a log", sql, values, number_of("bytes")).await?.iter().sum())
}

/// Writes the log of a task that has ended, unless there is one; says how many bytes there are more.
pub(super) async fn write(db: &mut Db, task: TaskId, log: &TaskLog) -> Result<i64, StoreError> {
    let mut grown = 0;
    for stream in Stream::ALL {
        let tail = log.tails.of(stream);
        if tail.bytes.is_empty() {
            continue;
        }
        // Nothing is kept of a task that is not there.
        let sql = "INSERT INTO task_logs (task, stream, run, attempt, at, bytes)
                   SELECT $1, $2, $3, $4, $5, $6 FROM tasks WHERE id = $1 AND state >= 2
                   ON CONFLICT (task, stream) DO NOTHING";
        let values = vec![
            id_bytes(task.0).into(),
            number(stream).into(),
            log.run.0.cast_signed().into(),
            i64::from(log.attempt).into(),
            tail.offset.cast_signed().into(),
            tail.bytes.to_vec().into(),
        ];
        if db.execute("store a log", sql, values).await? > 0 {
            grown += i64::try_from(tail.bytes.len()).unwrap_or(i64::MAX);
        }
    }
    Ok(grown)
}

/// Drops the log of a task; says how many bytes it had.
pub(super) async fn remove(db: &mut Db, task: &[u8]) -> Result<i64, StoreError> {
    let sql = "DELETE FROM task_logs WHERE task = $1 RETURNING CAST(octet_length(bytes) AS BIGINT) AS bytes";
    let values = vec![task.to_vec().into()];
    Ok(db.all("drop a log", sql, values, number_of("bytes")).await?.iter().sum())
}

/// The tasks with the oldest logs.
pub(super) async fn oldest(db: &mut Db, most: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    // Ids of tasks sort by the time of submission.
    let sql = "SELECT DISTINCT task FROM task_logs ORDER BY task LIMIT $1";
    let task = |row: &Row| row.try_get("task").map_err(StoreError::corrupt("a log"));
    db.all("find old logs", sql, vec![most.into()], task).await
}

fn number_of(column: &'static str) -> impl Fn(&Row) -> Result<i64, StoreError> {
    move |row| row.try_get(column).map_err(StoreError::corrupt("a log"))
}

/// What there is of a log from this offset on; `None` if nothing is kept.
pub(super) async fn piece(
    db: &mut Db,
    task: TaskId,
    stream: Stream,
    from: u64,
) -> Result<Option<StoredPiece>, StoreError> {
    // `substr` counts from 1. An offset past the end begins at the end.
    let sql = "SELECT run, attempt, at, CAST(octet_length(bytes) AS BIGINT) AS length,
                      substr(bytes, CAST(CASE WHEN $3 <= at THEN 0
                                              WHEN $3 >= at + octet_length(bytes) THEN octet_length(bytes)
                                              ELSE $3 - at END AS INTEGER) + 1,
                             CAST($4 AS INTEGER)) AS piece
               FROM task_logs WHERE task = $1 AND stream = $2";
    let values = vec![
        id_bytes(task.0).into(),
        number(stream).into(),
        i64::try_from(from).unwrap_or(i64::MAX).into(),
        i64::try_from(LOG_PIECE_BYTES).unwrap_or(i64::MAX).into(),
    ];
    let piece = |row: &Row| {
        let number = |column| number_of(column)(row).map(i64::cast_unsigned);
        let (at, length) = (number("at")?, number("length")?);
        let bytes: Vec<u8> = row.try_get("piece").map_err(StoreError::corrupt("a log"))?;
        let end = at.saturating_add(length);
        Ok(StoredPiece {
            run: RunId(number("run")?),
            attempt: u32::try_from(number("attempt")?).map_err(StoreError::corrupt("a log"))?,
            piece: Tail { offset: from.clamp(at, end), bytes: Bytes::from(bytes) },
            end,
        })
    };
    db.one("read a log", sql, values, piece).await
}
