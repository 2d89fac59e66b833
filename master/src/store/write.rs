//! The scheduler's writes as SQL. Each is idempotent and moves a task only forward.

use super::{StoreError, logs, needed::Needed};
use protocol::{
    NodeId, RunId, TaskId, Timestamp,
    task::{Task, TaskState},
};
use scheduler::{
    TaskLog,
    event::ClientId,
    record::{NodeRecord, Op, TaskRecord},
};
use serde::Serialize;
use sqlx::{AssertSqlSafe, SqliteConnection};

/// The stored number of a state; those below 2 are open.
pub(super) const fn number(state: TaskState) -> i64 {
    match state {
        TaskState::Queued => 0,
        TaskState::Running => 1,
        TaskState::Succeeded => 2,
        TaskState::Failed => 3,
        TaskState::Cancelled => 4,
    }
}

/// A client's id as it is stored.
pub(super) fn client_bytes(client: ClientId) -> Vec<u8> {
    client.0.to_be_bytes().to_vec()
}

/// Any other id as it is stored.
pub(super) fn id_bytes(id: uuid::Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// A value as JSON text.
pub(super) fn json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Database { what, why: error.to_string() })
}

/// Rows that one statement writes at most. Each statement is a round trip to the database's own thread, which
/// costs more than a row; each number of rows is a statement of its own to be kept ready.
const ROWS: usize = 16;

/// A statement's text, with its bound values still to come.
type Statement<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Applies needed writes. Of each table, and of each way in which a task moves, many rows go at once: of one
/// task there is one move at most, so that the order between tasks does not matter. Adds to `log_bytes` what
/// logs take more.
pub(super) async fn apply(
    db: &mut SqliteConnection,
    all: &[Needed<'_>],
    log_bytes: &mut i64,
) -> Result<(), StoreError> {
    let mut rows = Rows::default();
    for needed in all {
        match needed {
            Needed::OnlyKey(record) => rows.keys.push(record),
            Needed::Whole(Op::TaskAccepted(record)) => {
                rows.keys.push(record);
                rows.accepted.push(record);
            }
            Needed::Whole(Op::TaskDispatched { task, run, node, attempt, at }) => {
                rows.dispatched.push((*task, *run, *node, *attempt, *at));
            }
            Needed::Whole(Op::TaskRequeued { task, attempt }) => rows.requeued.push((*task, *attempt)),
            Needed::Whole(Op::TaskEnded { task, client, log: None }) => rows.ended.push((task, *client)),
            Needed::Whole(Op::TaskEnded { task, client, log: Some(log) }) => {
                rows.logged.push((task, *client, log));
            }
            Needed::Whole(Op::TaskLog { task, log }) => rows.logs.push((*task, log)),
            // Seldom, and in their order.
            Needed::Whole(Op::NodeRegistered(record)) => node_registered(db, record).await?,
            Needed::Whole(Op::NodeGone { node, at }) => node_gone(db, *node, *at).await?,
        }
    }
    rows.keys.retain(|record| record.key.is_some());
    keys(db, &rows.keys).await?;
    accepted(db, &rows.accepted).await?;
    dispatched(db, &rows.dispatched).await?;
    requeued(db, &rows.requeued).await?;
    ended(db, &rows.ended).await?;
    for (task, client, log) in rows.logged {
        if ended(db, &[(task, client)]).await? > 0 {
            *log_bytes += logs::write(db, task.id, log).await?;
        }
    }
    for (task, log) in rows.logs {
        *log_bytes -= logs::remove_older(db, task, log).await?;
        *log_bytes += logs::write(db, task, log).await?;
    }
    Ok(())
}

/// What is to be written, by statement.
#[derive(Default)]
struct Rows<'a> {
    keys: Vec<&'a TaskRecord>,
    accepted: Vec<&'a TaskRecord>,
    dispatched: Vec<(TaskId, RunId, NodeId, u32, Timestamp)>,
    requeued: Vec<(TaskId, u32)>,
    ended: Vec<(&'a Task, ClientId)>,
    /// Ended, and with what they printed.
    logged: Vec<(&'a Task, ClientId, &'a TaskLog)>,
    /// Of tasks that had ended before.
    logs: Vec<(TaskId, &'a TaskLog)>,
}

/// A statement: `before`, then so many `(?, …)` of `columns` values each, then `after`.
type Parts = (&'static str, usize, &'static str);

fn text((before, columns, after): Parts, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    format!("{before} {} {after}", vec![row; rows].join(","))
}

/// Writes rows, many with each statement; says how many it changed.
async fn write<'a, T: Copy>(
    db: &mut SqliteConnection,
    what: &'static str,
    parts: Parts,
    rows: &[T],
    bind: impl Fn(Statement<'a>, T) -> Result<Statement<'a>, StoreError>,
) -> Result<u64, StoreError> {
    let mut changed = 0;
    for rows in rows.chunks(ROWS) {
        // Put together from the texts in this module.
        let mut statement = sqlx::query(AssertSqlSafe(text(parts, rows.len())));
        for row in rows {
            statement = bind(statement, *row)?;
        }
        let done = statement.execute(&mut *db).await.map_err(StoreError::database(what))?;
        changed += done.rows_affected();
    }
    Ok(changed)
}

/// The newest task with a key has it; the scheduler gives a key to another task only after 24 h.
async fn keys(db: &mut SqliteConnection, records: &[&TaskRecord]) -> Result<u64, StoreError> {
    let before =
        "INSERT OR REPLACE INTO idempotency_keys (client, key, body_hash, task, submitted_at) VALUES";
    write(db, "store an idempotency key", (before, 5, ""), records, |statement, record| {
        let (key, body_hash) =
            record.key.as_ref().map(|(key, hash)| (key.to_string(), hash.to_vec())).unzip();
        Ok(statement
            .bind(client_bytes(record.client))
            .bind(key)
            .bind(body_hash)
            .bind(id_bytes(record.id.0))
            .bind(record.submitted_at.0))
    })
    .await
}

async fn accepted(db: &mut SqliteConnection, records: &[&TaskRecord]) -> Result<u64, StoreError> {
    let before = "INSERT INTO tasks (state, id, client, kind, submitted_at, key, body_hash, spec) VALUES";
    let parts = (before, 8, "ON CONFLICT (id) DO NOTHING");
    write(db, "store a task", parts, records, |statement, record| {
        let (key, body_hash) =
            record.key.as_ref().map(|(key, hash)| (key.to_string(), hash.to_vec())).unzip();
        Ok(statement
            .bind(number(TaskState::Queued))
            .bind(id_bytes(record.id.0))
            .bind(client_bytes(record.client))
            .bind(record.spec.kind.clone())
            .bind(record.submitted_at.0)
            .bind(key)
            .bind(body_hash)
            .bind(json("store a task", &record.spec)?))
    })
    .await
}

/// The `+` keeps the database from the index of open tasks, which it would read whole to find some of them.
const DISPATCHED: Parts = (
    "UPDATE tasks SET state = 1, node = new.column2, run = new.column3, attempt = new.column4,
         started_at = new.column5
     FROM (VALUES",
    5,
    ") AS new WHERE tasks.id = new.column1 AND +tasks.state < 2",
);
const REQUEUED: Parts = (
    "UPDATE tasks SET state = 0, node = NULL, run = NULL, attempt = new.column2, started_at = NULL
     FROM (VALUES",
    2,
    ") AS new WHERE tasks.id = new.column1 AND +tasks.state < 2",
);

async fn dispatched(
    db: &mut SqliteConnection,
    moves: &[(TaskId, RunId, NodeId, u32, Timestamp)],
) -> Result<u64, StoreError> {
    write(db, "store a hand-out", DISPATCHED, moves, |statement, (task, run, node, attempt, at)| {
        Ok(statement
            .bind(id_bytes(task.0))
            .bind(id_bytes(node.0))
            .bind(run.0.cast_signed())
            .bind(i64::from(attempt))
            .bind(at.0))
    })
    .await
}

async fn requeued(db: &mut SqliteConnection, moves: &[(TaskId, u32)]) -> Result<u64, StoreError> {
    write(db, "store a requeued task", REQUEUED, moves, |statement, (task, attempt)| {
        Ok(statement.bind(id_bytes(task.0)).bind(i64::from(attempt)))
    })
    .await
}

/// Says how many had not ended before.
async fn ended(db: &mut SqliteConnection, tasks: &[(&Task, ClientId)]) -> Result<u64, StoreError> {
    let before = "INSERT INTO tasks (id, client, state, kind, node, attempt, submitted_at, started_at,
                                     finished_at, shown, input, result)
                  VALUES";
    let after = "ON CONFLICT (id) DO UPDATE SET state = excluded.state, node = excluded.node, run = NULL,
                     attempt = excluded.attempt, started_at = excluded.started_at,
                     finished_at = excluded.finished_at, shown = excluded.shown, spec = NULL,
                     input = excluded.input, result = excluded.result
                 WHERE tasks.state < 2";
    let changed = write(db, "store a result", (before, 12, after), tasks, |statement, (task, client)| {
        let bodiless = Task { input: None, result: None, ..task.clone() };
        Ok(statement
            .bind(id_bytes(task.id.0))
            .bind(client_bytes(client))
            .bind(number(task.state))
            .bind(task.kind.clone())
            .bind(task.node.map(|node| id_bytes(node.0)))
            .bind(i64::from(task.attempt))
            .bind(task.submitted_at.0)
            .bind(task.started_at.map(|at| at.0))
            // Without a time of its end a task would never be forgotten.
            .bind(task.finished_at.unwrap_or(task.submitted_at).0)
            .bind(json("store a result", &bodiless)?)
            .bind(task.input.as_ref().map(|input| input.get().to_owned()))
            .bind(task.result.as_ref().map(|result| result.get().to_owned())))
    })
    .await?;
    let labels: Vec<_> = tasks
        .iter()
        .flat_map(|(task, _)| task.labels.iter().map(|(key, value)| (task.id, key.as_str(), value.as_str())))
        .collect();
    let before = "INSERT OR IGNORE INTO task_labels (key, value, task) VALUES";
    write(db, "store a label", (before, 3, ""), &labels, |statement, (task, key, value)| {
        Ok(statement.bind(key.to_owned()).bind(value.to_owned()).bind(id_bytes(task.0)))
    })
    .await?;
    Ok(changed)
}

async fn node_gone(db: &mut SqliteConnection, node: NodeId, at: Timestamp) -> Result<(), StoreError> {
    let query = sqlx::query("UPDATE nodes SET gone_at = ?2 WHERE id = ?1").bind(id_bytes(node.0)).bind(at.0);
    query.execute(db).await.map_err(StoreError::database("store that a node is gone")).map(drop)
}

async fn node_registered(db: &mut SqliteConnection, record: &NodeRecord) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO nodes (id, session_hash, boot_id, registration, registered_at, gone_at)
               VALUES (?1, ?2, ?3, ?4, ?5, NULL)";
    let query = sqlx::query(sql)
        .bind(id_bytes(record.id.0))
        .bind(record.session_hash.to_vec())
        .bind(id_bytes(record.boot_id.0))
        .bind(json("store a node", &record.registration)?)
        .bind(record.registered_at.0);
    query.execute(db).await.map_err(StoreError::database("store a node")).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sqlx::{Connection as _, Row as _};

    #[tokio::test]
    async fn a_move_finds_its_task_by_its_id_and_reads_no_other() {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql(include_str!("../../migrations/0001_first.sql")).execute(&mut db).await.unwrap();
        for (parts, rows) in [DISPATCHED, REQUEUED].into_iter().flat_map(|parts| [(parts, 1), (parts, ROWS)])
        {
            let explain = format!("EXPLAIN QUERY PLAN {}", text(parts, rows));
            let plan = sqlx::query(AssertSqlSafe(explain)).fetch_all(&mut db).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|step| step.get("detail")).collect();
            assert!(plan.iter().any(|step| step.starts_with("SEARCH tasks")), "{plan:?}");
        }
    }
}
