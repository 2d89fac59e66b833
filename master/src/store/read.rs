//! What is read back, row by row.

use super::{
    EndedTask, KEPT_MS, StoreError, StoredPool, StoredToken,
    db::{Db, Row, Value},
    write,
};
use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    task::{Json, Task},
};
use scheduler::{
    TaskFilter,
    event::ClientId,
    record::{NodeRecord, OpenTask, Recovered, TaskRecord},
};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::{Decode, Postgres, Sqlite, Type};
use std::sync::Arc;
use uuid::Uuid;

/// A row with errors that say of what.
struct Reader<'a> {
    row: &'a Row,
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn get<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'a, Sqlite> + Type<Sqlite> + Decode<'a, Postgres> + Type<Postgres>,
    {
        self.row.try_get(column).map_err(StoreError::corrupt(self.what))
    }

    fn uuid(&self, column: &'static str) -> Result<Uuid, StoreError> {
        Uuid::from_slice(self.get(column)?).map_err(StoreError::corrupt(self.what))
    }

    fn hash(&self, column: &'static str) -> Result<[u8; 32], StoreError> {
        <[u8; 32]>::try_from(self.get::<&[u8]>(column)?).map_err(StoreError::corrupt(self.what))
    }

    fn client(&self) -> Result<ClientId, StoreError> {
        Ok(ClientId(self.uuid("client")?.as_u128()))
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(self.get(column)?).map_err(StoreError::corrupt(self.what))
    }

    fn raw(&self, column: &'static str) -> Result<Option<Json>, StoreError> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| RawValue::from_string(text).map(Arc::from))
            .transpose()
            .map_err(StoreError::corrupt(self.what))
    }
}

/// Everything that a starting master needs.
pub(super) async fn recover(db: &mut Db, now: Timestamp) -> Result<Recovered, StoreError> {
    Ok(Recovered { tasks: open_tasks(db).await?, nodes: nodes(db).await?, keys: keys(db, now).await? })
}

async fn open_tasks(db: &mut Db) -> Result<Vec<OpenTask>, StoreError> {
    let sql = "SELECT id, client, key, body_hash, submitted_at, spec, attempt, node, run, started_at
               FROM tasks WHERE state < 2 ORDER BY id";
    let open = |row: &Row| {
        let row = Reader { row, what: "an open task" };
        let key = match row.get::<Option<String>>("key")? {
            Some(key) => Some((Arc::from(key), row.hash("body_hash")?)),
            None => None,
        };
        let record = TaskRecord {
            id: TaskId(row.uuid("id")?),
            spec: row.json("spec")?,
            client: row.client()?,
            key,
            submitted_at: Timestamp(row.get("submitted_at")?),
        };
        let running = match row.get::<Option<i64>>("run")? {
            Some(run) => Some((
                NodeId(row.uuid("node")?),
                RunId(run.cast_unsigned()),
                Timestamp(row.get::<Option<i64>>("started_at")?.unwrap_or(record.submitted_at.0)),
            )),
            None => None,
        };
        let attempt = u32::try_from(row.get::<i64>("attempt")?).map_err(StoreError::corrupt(row.what))?;
        Ok(OpenTask { record: Arc::new(record), attempt, running })
    };
    db.all("read the open tasks", sql, Vec::new(), open).await
}

async fn nodes(db: &mut Db) -> Result<Vec<Arc<NodeRecord>>, StoreError> {
    let sql = "SELECT id, session_hash, boot_id, registration, registered_at
               FROM nodes WHERE gone_at IS NULL ORDER BY registered_at, id";
    let node = |row: &Row| {
        let row = Reader { row, what: "a node" };
        Ok(Arc::new(NodeRecord {
            id: NodeId(row.uuid("id")?),
            session_hash: row.hash("session_hash")?,
            boot_id: BootId(row.uuid("boot_id")?),
            registration: row.json("registration")?,
            registered_at: Timestamp(row.get("registered_at")?),
        }))
    };
    db.all("read the nodes", sql, Vec::new(), node).await
}

type Key = (ClientId, Arc<str>, [u8; 32], TaskId);

async fn keys(db: &mut Db, now: Timestamp) -> Result<Vec<Key>, StoreError> {
    let sql = "SELECT client, key, body_hash, task FROM idempotency_keys WHERE submitted_at > $1
               ORDER BY submitted_at";
    let key = |row: &Row| {
        let row = Reader { row, what: "an idempotency key" };
        let key = Arc::from(row.get::<String>("key")?);
        Ok((row.client()?, key, row.hash("body_hash")?, TaskId(row.uuid("task")?)))
    };
    let since = now.0.saturating_sub_unsigned(KEPT_MS);
    db.all("read the idempotency keys", sql, vec![since.into()], key).await
}

/// One task that has ended, whole.
pub(super) async fn ended_task(db: &mut Db, id: TaskId) -> Result<Option<EndedTask>, StoreError> {
    let sql = "SELECT client, shown, input, result FROM tasks WHERE id = $1 AND state >= 2";
    db.one("read a task", sql, vec![write::id_bytes(id.0).into()], |row| shown(row, true)).await
}

fn shown(row: &Row, full: bool) -> Result<EndedTask, StoreError> {
    let row = Reader { row, what: "an ended task" };
    let mut task: Task = row.json("shown")?;
    if full {
        task.input = row.raw("input")?;
        task.result = row.raw("result")?;
    }
    Ok((Arc::new(task), row.client()?))
}

// A listing goes down from `$1` and stops at the limit; what does not match is skipped over. By label it
// goes down the label's own index. `CROSS JOIN` keeps SQLite from choosing another order.
macro_rules! listing {
    ($columns:literal, $from:literal, $order:literal) => {
        concat!(
            "SELECT t.client, t.shown",
            $columns,
            " FROM ",
            $from,
            " AND t.state >= 2
              AND ($2 IS NULL OR t.state = $2) AND ($3 IS NULL OR t.kind = $3)
              AND ($4 IS NULL OR t.node = $4) AND ($5 IS NULL OR t.client = $5)
              ORDER BY ",
            $order,
            " DESC LIMIT $6"
        )
    };
}
macro_rules! plain {
    ($columns:literal) => {
        listing!($columns, "tasks t WHERE t.id < $1", "t.id")
    };
}
macro_rules! labelled {
    ($columns:literal) => {
        listing!(
            $columns,
            "task_labels l CROSS JOIN tasks t
             WHERE t.id = l.task AND l.key = $7 AND l.value = $8 AND l.task < $1",
            "l.task"
        )
    };
}
const PLAIN: &str = plain!("");
const PLAIN_FULL: &str = plain!(", t.input, t.result");
const LABELLED: &str = labelled!("");
const LABELLED_FULL: &str = labelled!(", t.input, t.result");

/// Tasks that have ended and match, newest id first.
pub(super) async fn ended_tasks(
    db: &mut Db,
    filter: &TaskFilter,
    full: bool,
) -> Result<Vec<EndedTask>, StoreError> {
    if filter.state.is_some_and(|state| !state.is_terminal()) {
        return Ok(Vec::new());
    }
    let sql = match (&filter.label, full) {
        (None, false) => PLAIN,
        (None, true) => PLAIN_FULL,
        (Some(_), false) => LABELLED,
        (Some(_), true) => LABELLED_FULL,
    };
    let mut values: Vec<Value> = vec![
        write::id_bytes(filter.before.map_or(Uuid::max(), |before| before.0)).into(),
        filter.state.map(write::number).into(),
        filter.kind.clone().into(),
        filter.node.map(|node| write::id_bytes(node.0)).into(),
        filter.client.map(write::client_bytes).into(),
        i64::try_from(filter.limit).unwrap_or(i64::MAX).into(),
    ];
    if let Some((key, value)) = &filter.label {
        values.extend([key.clone().into(), value.clone().into()]);
    }
    db.all("list tasks", sql, values, |row| shown(row, full)).await
}

/// All tokens.
pub(super) async fn tokens(db: &mut Db) -> Result<Vec<StoredToken>, StoreError> {
    let token = |row: &Row| {
        let row = Reader { row, what: "a token" };
        Ok((row.hash("hash")?, row.json("info")?))
    };
    db.all("read the tokens", "SELECT hash, info FROM tokens ORDER BY id", Vec::new(), token).await
}

/// All pools.
pub(super) async fn pools(db: &mut Db) -> Result<Vec<StoredPool>, StoreError> {
    let sql = "SELECT name, revision, spec FROM pools";
    let pool = |row: &Row| {
        let row = Reader { row, what: "a pool" };
        Ok((row.get("name")?, row.get::<i64>("revision")?.cast_unsigned(), row.json("spec")?))
    };
    let mut pools: Vec<StoredPool> = db.all("read the pools", sql, Vec::new(), pool).await?;
    // The databases differ in how they sort text.
    pools.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(pools)
}
