//! The scheduler's writes as SQL. Each is idempotent and moves a task only forward.

use super::{StoreError, logs, needed::Needed};
use protocol::{
    TaskId,
    task::{Task, TaskState},
};
use scheduler::{
    event::ClientId,
    record::{NodeRecord, Op, TaskRecord},
};
use serde::Serialize;
use sqlx::SqliteConnection;

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

/// Applies one needed write; adds to `log_bytes` what logs take more.
pub(super) async fn apply(
    db: &mut SqliteConnection,
    needed: Needed<'_>,
    log_bytes: &mut i64,
) -> Result<(), StoreError> {
    match needed {
        Needed::OnlyKey(record) => key(db, record).await,
        Needed::Whole(Op::TaskAccepted(record)) => {
            key(db, record).await?;
            accepted(db, record).await
        }
        Needed::Whole(Op::TaskDispatched { task, run, node, attempt, at }) => {
            let sql = "UPDATE tasks SET state = 1, node = ?2, run = ?3, attempt = ?4, started_at = ?5
                       WHERE id = ?1 AND state < 2";
            let query = sqlx::query(sql)
                .bind(id_bytes(task.0))
                .bind(id_bytes(node.0))
                .bind(run.0.cast_signed())
                .bind(i64::from(*attempt))
                .bind(at.0);
            query.execute(db).await.map_err(StoreError::database("store a hand-out")).map(drop)
        }
        Needed::Whole(Op::TaskRequeued { task, attempt }) => {
            let sql = "UPDATE tasks SET state = 0, node = NULL, run = NULL, attempt = ?2, started_at = NULL
                       WHERE id = ?1 AND state < 2";
            let query = sqlx::query(sql).bind(id_bytes(task.0)).bind(i64::from(*attempt));
            query.execute(db).await.map_err(StoreError::database("store a requeued task")).map(drop)
        }
        Needed::Whole(Op::TaskEnded { task, client, log }) => {
            let is_news = ended(db, task, *client).await?;
            if let Some(log) = log.as_ref().filter(|_| is_news) {
                *log_bytes += logs::write(db, task.id, log).await?;
            }
            Ok(())
        }
        Needed::Whole(Op::TaskLog { task, log }) => {
            *log_bytes -= logs::remove_older(db, *task, log).await?;
            *log_bytes += logs::write(db, *task, log).await?;
            Ok(())
        }
        Needed::Whole(Op::NodeRegistered(record)) => node_registered(db, record).await,
        Needed::Whole(Op::NodeGone { node, at }) => {
            let query =
                sqlx::query("UPDATE nodes SET gone_at = ?2 WHERE id = ?1").bind(id_bytes(node.0)).bind(at.0);
            query.execute(db).await.map_err(StoreError::database("store that a node is gone")).map(drop)
        }
    }
}

/// The newest task with a key has it; the scheduler gives a key to another task only after 24 h.
async fn key(db: &mut SqliteConnection, record: &TaskRecord) -> Result<(), StoreError> {
    let Some((key, body_hash)) = &record.key else { return Ok(()) };
    let sql = "INSERT OR REPLACE INTO idempotency_keys (client, key, body_hash, task, submitted_at)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    let query = sqlx::query(sql)
        .bind(client_bytes(record.client))
        .bind(key.to_string())
        .bind(body_hash.to_vec())
        .bind(id_bytes(record.id.0))
        .bind(record.submitted_at.0);
    query.execute(db).await.map_err(StoreError::database("store an idempotency key")).map(drop)
}

async fn accepted(db: &mut SqliteConnection, record: &TaskRecord) -> Result<(), StoreError> {
    let sql = "INSERT INTO tasks (id, client, state, kind, submitted_at, key, body_hash, spec)
               VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO NOTHING";
    let (key, body_hash) = record.key.as_ref().map(|(key, hash)| (key.to_string(), hash.to_vec())).unzip();
    let query = sqlx::query(sql)
        .bind(id_bytes(record.id.0))
        .bind(client_bytes(record.client))
        .bind(record.spec.kind.clone())
        .bind(record.submitted_at.0)
        .bind(key)
        .bind(body_hash)
        .bind(json("store a task", &record.spec)?);
    query.execute(db).await.map_err(StoreError::database("store a task")).map(drop)
}

/// Says whether the task had not ended before.
async fn ended(db: &mut SqliteConnection, task: &Task, client: ClientId) -> Result<bool, StoreError> {
    let sql = "INSERT INTO tasks (id, client, state, kind, node, attempt, submitted_at, started_at,
                                  finished_at, shown, input, result)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
               ON CONFLICT (id) DO UPDATE SET state = excluded.state, node = excluded.node, run = NULL,
                   attempt = excluded.attempt, started_at = excluded.started_at,
                   finished_at = excluded.finished_at, shown = excluded.shown, spec = NULL,
                   input = excluded.input, result = excluded.result
               WHERE tasks.state < 2";
    let bodiless = Task { input: None, result: None, ..task.clone() };
    let query = sqlx::query(sql)
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
        .bind(task.result.as_ref().map(|result| result.get().to_owned()));
    let done = query.execute(&mut *db).await.map_err(StoreError::database("store a result"))?;
    for (key, value) in &task.labels {
        label(db, task.id, key, value).await?;
    }
    Ok(done.rows_affected() > 0)
}

async fn label(db: &mut SqliteConnection, task: TaskId, key: &str, value: &str) -> Result<(), StoreError> {
    let query = sqlx::query("INSERT OR IGNORE INTO task_labels (key, value, task) VALUES (?1, ?2, ?3)")
        .bind(key.to_owned())
        .bind(value.to_owned())
        .bind(id_bytes(task.0));
    query.execute(db).await.map_err(StoreError::database("store a label")).map(drop)
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
