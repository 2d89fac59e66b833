//! The scheduler's writes as SQL. Each is idempotent and moves a task only forward.

use super::{
    StoreError,
    db::{Db, Kind, Row, Value},
    logs,
    needed::Needed,
};
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
use std::collections::{HashMap, HashSet};

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
/// The same where a round trip goes to a server. Of fewer rows the largest power of two goes at once, so that
/// there are few statements.
const ROWS_TO_SERVER: usize = 256;

/// How many of so many rows the next statement takes.
fn rows_at_once(kind: Kind, left: usize) -> usize {
    match kind {
        Kind::Sqlite => left.min(ROWS),
        Kind::Postgres if left >= ROWS_TO_SERVER => ROWS_TO_SERVER,
        Kind::Postgres => 1 << left.max(1).ilog2(),
    }
}

/// What is kept more, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grown {
    /// Of tasks that have ended; counted in PostgreSQL only.
    pub(super) tasks: i64,
    /// Of logs.
    pub(super) logs: i64,
}

/// Applies needed writes. Of each table, and of each way in which a task moves, many rows go at once: of one
/// task there is one move and one end at most, so that the order between tasks does not matter.
pub(super) async fn apply(db: &mut Db, all: &[Needed<'_>]) -> Result<Grown, StoreError> {
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
    keys(db, &rows.keys).await?;
    accepted(db, &rows.accepted).await?;
    dispatched(db, &rows.dispatched).await?;
    requeued(db, &rows.requeued).await?;
    let mut grown = Grown { tasks: ended(db, &rows.ended).await?.1, logs: 0 };
    for (task, client, log) in rows.logged {
        let (changed, bytes) = ended(db, &[(task, client)]).await?;
        grown.tasks += bytes;
        if changed > 0 {
            grown.logs += logs::write(db, task.id, log).await?;
        }
    }
    for (task, log) in rows.logs {
        grown.logs -= logs::remove_older(db, task, log).await?;
        grown.logs += logs::write(db, task, log).await?;
    }
    Ok(grown)
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

/// A statement: `before`, then so many `(…)` of `columns` bound values each, then `after`.
type Parts = (&'static str, usize, &'static str);

/// In SQLite a bound value with a name costs a search for it each time; PostgreSQL has no other ones.
fn text(kind: Kind, (before, columns, after): Parts, rows: usize) -> String {
    let value = |at: usize| match kind {
        Kind::Sqlite => "?".to_owned(),
        Kind::Postgres => format!("${}", at + 1),
    };
    let row = |row: usize| {
        let values: Vec<_> = (row * columns..(row + 1) * columns).map(value).collect();
        format!("({})", values.join(","))
    };
    format!("{before} {} {after}", (0..rows).map(row).collect::<Vec<_>>().join(","))
}

/// Hands each statement that it takes to write these rows to `run`, with its bound values.
fn statements<T: Copy>(
    kind: Kind,
    parts: Parts,
    mut rows: &[T],
    bind: impl Fn(&mut Vec<Value>, T) -> Result<(), StoreError>,
) -> Result<Vec<(String, Vec<Value>)>, StoreError> {
    let mut statements = Vec::new();
    while !rows.is_empty() {
        let (now, later) = rows.split_at(rows_at_once(kind, rows.len()));
        let mut values = Vec::with_capacity(now.len() * parts.1);
        for row in now {
            bind(&mut values, *row)?;
        }
        statements.push((text(kind, parts, now.len()), values));
        rows = later;
    }
    Ok(statements)
}

/// Writes rows, many with each statement.
pub(super) async fn write<T: Copy>(
    db: &mut Db,
    what: &'static str,
    parts: Parts,
    rows: &[T],
    bind: impl Fn(&mut Vec<Value>, T) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for (text, values) in statements(db.kind(), parts, rows, bind)? {
        db.execute(what, text, values).await?;
    }
    Ok(())
}

/// The newest task with a key has it; the scheduler gives a key to another task only after 24 h.
async fn keys(db: &mut Db, records: &[&TaskRecord]) -> Result<(), StoreError> {
    // A statement must not change a row twice.
    let newest: HashMap<_, _> = records
        .iter()
        .filter_map(|record| Some(((record.client, record.key.as_ref()?.0.as_ref()), *record)))
        .collect();
    let mut records: Vec<&TaskRecord> = newest.into_values().collect();
    records.sort_unstable_by_key(|record| record.id);
    let before = "INSERT INTO idempotency_keys (client, key, body_hash, task, submitted_at) VALUES";
    let after =
        "ON CONFLICT (client, key) DO UPDATE SET body_hash = excluded.body_hash, task = excluded.task,
                     submitted_at = excluded.submitted_at";
    write(db, "store an idempotency key", (before, 5, after), &records, |values, record| {
        let (key, body_hash) = key_of(record);
        values.extend([
            client_bytes(record.client).into(),
            key,
            body_hash,
            id_bytes(record.id.0).into(),
            record.submitted_at.0.into(),
        ]);
        Ok(())
    })
    .await
}

fn key_of(record: &TaskRecord) -> (Value, Value) {
    let (key, hash) = record.key.as_ref().map(|(key, hash)| (key.to_string(), hash.to_vec())).unzip();
    (key.into(), hash.into())
}

async fn accepted(db: &mut Db, records: &[&TaskRecord]) -> Result<(), StoreError> {
    let before = "INSERT INTO tasks (state, id, client, kind, submitted_at, key, body_hash, spec) VALUES";
    let parts = (before, 8, "ON CONFLICT (id) DO NOTHING");
    write(db, "store a task", parts, records, |values, record| {
        let (key, body_hash) = key_of(record);
        values.extend([
            number(TaskState::Queued).into(),
            id_bytes(record.id.0).into(),
            client_bytes(record.client).into(),
            record.spec.kind.clone().into(),
            record.submitted_at.0.into(),
            key,
            body_hash,
            json("store a task", &record.spec)?.into(),
        ]);
        Ok(())
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
    db: &mut Db,
    moves: &[(TaskId, RunId, NodeId, u32, Timestamp)],
) -> Result<(), StoreError> {
    write(db, "store a hand-out", DISPATCHED, moves, |values, (task, run, node, attempt, at)| {
        values.extend([
            id_bytes(task.0).into(),
            id_bytes(node.0).into(),
            run.0.cast_signed().into(),
            i64::from(attempt).into(),
            at.0.into(),
        ]);
        Ok(())
    })
    .await
}

async fn requeued(db: &mut Db, moves: &[(TaskId, u32)]) -> Result<(), StoreError> {
    write(db, "store a requeued task", REQUEUED, moves, |values, (task, attempt)| {
        values.extend([id_bytes(task.0).into(), i64::from(attempt).into()]);
        Ok(())
    })
    .await
}

/// What a task that has ended takes, beside its columns' bytes: the row's head, its indexes.
pub(super) const ROW_BYTES: i64 = 300;

/// Says how many had not ended before, and in PostgreSQL how many bytes they take.
async fn ended(db: &mut Db, tasks: &[(&Task, ClientId)]) -> Result<(u64, i64), StoreError> {
    const BEFORE: &str =
        "INSERT INTO tasks (id, client, state, kind, node, attempt, submitted_at, started_at,
                                     finished_at, shown, input, result)
                  VALUES";
    const AFTER: &str = "ON CONFLICT (id) DO UPDATE SET state = excluded.state, node = excluded.node,
                     run = NULL, attempt = excluded.attempt, started_at = excluded.started_at,
                     finished_at = excluded.finished_at, shown = excluded.shown, spec = NULL,
                     input = excluded.input, result = excluded.result
                 WHERE tasks.state < 2";
    let what = "store a result";
    // The first end of a task counts, and a statement must not change a row twice.
    let mut seen = HashSet::with_capacity(tasks.len());
    let tasks: Vec<_> = tasks.iter().filter(|(task, _)| seen.insert(task.id)).copied().collect();
    let statements = statements(db.kind(), (BEFORE, 12, AFTER), &tasks, end_values)?;
    let (mut changed, mut bytes) = (0, 0);
    for (text, values) in statements {
        match db.kind() {
            Kind::Sqlite => changed += db.execute(what, text, values).await?,
            Kind::Postgres => {
                let text = format!(
                    "WITH written AS ({text} RETURNING {}) SELECT count(*) AS changed,
                         CAST(coalesce(sum(bytes), 0) AS BIGINT) AS bytes FROM written",
                    "octet_length(shown) + coalesce(octet_length(input), 0)
                         + coalesce(octet_length(result), 0) AS bytes"
                );
                let counted = |row: &Row| {
                    let failed = StoreError::database(what);
                    let rows = row.try_get::<i64>("changed").map_err(&failed)?;
                    Ok((rows, row.try_get::<i64>("bytes").map_err(&failed)?))
                };
                let (rows, more) = db.one(what, text, values, counted).await?.unwrap_or_default();
                changed += rows.unsigned_abs();
                bytes += more + rows * ROW_BYTES;
            }
        }
    }
    labels(db, &tasks).await?;
    Ok((changed, bytes))
}

fn end_values(values: &mut Vec<Value>, (task, client): (&Task, ClientId)) -> Result<(), StoreError> {
    let bodiless = Task { input: None, result: None, ..task.clone() };
    values.extend([
        id_bytes(task.id.0).into(),
        client_bytes(client).into(),
        number(task.state).into(),
        task.kind.clone().into(),
        task.node.map(|node| id_bytes(node.0)).into(),
        i64::from(task.attempt).into(),
        task.submitted_at.0.into(),
        task.started_at.map(|at| at.0).into(),
        // Without a time of its end a task would never be forgotten.
        task.finished_at.unwrap_or(task.submitted_at).0.into(),
        json("store a result", &bodiless)?.into(),
        task.input.as_ref().map(|input| input.get().to_owned()).into(),
        task.result.as_ref().map(|result| result.get().to_owned()).into(),
    ]);
    Ok(())
}

async fn labels(db: &mut Db, tasks: &[(&Task, ClientId)]) -> Result<(), StoreError> {
    let labels: Vec<_> = tasks
        .iter()
        .flat_map(|(task, _)| task.labels.iter().map(|(key, value)| (task.id, key.as_str(), value.as_str())))
        .collect();
    let parts = ("INSERT INTO task_labels (key, value, task) VALUES", 3, "ON CONFLICT DO NOTHING");
    write(db, "store a label", parts, &labels, |values, (task, key, value)| {
        values.extend([key.to_owned().into(), value.to_owned().into(), id_bytes(task.0).into()]);
        Ok(())
    })
    .await
}

async fn node_gone(db: &mut Db, node: NodeId, at: Timestamp) -> Result<(), StoreError> {
    let sql = "UPDATE nodes SET gone_at = $2 WHERE id = $1";
    let values = vec![id_bytes(node.0).into(), at.0.into()];
    db.execute("store that a node is gone", sql, values).await.map(drop)
}

async fn node_registered(db: &mut Db, record: &NodeRecord) -> Result<(), StoreError> {
    let what = "store a node";
    let sql = "INSERT INTO nodes (id, session_hash, boot_id, registration, registered_at, gone_at)
               VALUES ($1, $2, $3, $4, $5, NULL)
               ON CONFLICT (id) DO UPDATE SET session_hash = excluded.session_hash, boot_id = excluded.boot_id,
                   registration = excluded.registration, registered_at = excluded.registered_at, gone_at = NULL";
    let values = vec![
        id_bytes(record.id.0).into(),
        record.session_hash.to_vec().into(),
        id_bytes(record.boot_id.0).into(),
        json(what, &record.registration)?.into(),
        record.registered_at.0.into(),
    ];
    db.execute(what, sql, values).await.map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::schema;
    use sqlx::{Connection as _, SqliteConnection};

    #[tokio::test]
    async fn a_move_finds_its_task_by_its_id_and_reads_no_other() {
        let db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let mut db = Db::Sqlite(Box::new(db));
        schema::migrate(&mut db, "memory").await.unwrap();
        for (parts, rows) in [DISPATCHED, REQUEUED].into_iter().flat_map(|parts| [(parts, 1), (parts, ROWS)])
        {
            let explain = format!("EXPLAIN QUERY PLAN {}", text(Kind::Sqlite, parts, rows));
            let detail = |row: &Row| Ok(row.try_get::<String>("detail").unwrap());
            let plan = db.all("explain", explain, Vec::new(), detail).await.unwrap();
            assert!(plan.iter().any(|step| step.starts_with("SEARCH tasks")), "{plan:?}");
        }
    }

    #[test]
    fn few_statements_write_any_number_of_rows_to_a_server() {
        let mut left = 1_000;
        let mut at_once = Vec::new();
        while left > 0 {
            at_once.push(rows_at_once(Kind::Postgres, left));
            left -= at_once[at_once.len() - 1];
        }
        assert_eq!(at_once, [256, 256, 256, 128, 64, 32, 8]);
        assert_eq!(rows_at_once(Kind::Sqlite, 7), 7);
    }
}
