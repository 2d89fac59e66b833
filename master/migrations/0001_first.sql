-- Ids are the 16 bytes of a UUID; times are milliseconds since 1970-01-01T00:00:00Z.

CREATE TABLE master (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL
) STRICT;

INSERT INTO master (one, epoch) VALUES (1, 0);

-- A task from its acceptance until it is forgotten. state: 0 queued, 1 running, 2 succeeded, 3 failed,
-- 4 cancelled; it only moves from below 2 to 2 and above. While it is open `spec` holds what was
-- submitted; once it has ended `shown`, `input` and `result` hold it as it is shown.
-- The long columns come last, so that a listing that does not want them never reads their pages.
CREATE TABLE tasks (
    id           BLOB    NOT NULL PRIMARY KEY,
    client       BLOB    NOT NULL,
    state        INTEGER NOT NULL,
    kind         TEXT    NOT NULL,
    node         BLOB,
    run          INTEGER,
    attempt      INTEGER NOT NULL DEFAULT 0,
    submitted_at INTEGER NOT NULL,
    started_at   INTEGER,
    finished_at  INTEGER,
    key          TEXT,
    body_hash    BLOB,
    shown        TEXT,
    spec         TEXT,
    input        TEXT,
    result       TEXT
) STRICT;

-- What a restart reads back.
CREATE INDEX tasks_open ON tasks (id) WHERE state < 2;
-- What is forgotten first.
CREATE INDEX tasks_ended ON tasks (finished_at) WHERE state >= 2;

-- Labels of ended tasks, for listings.
CREATE TABLE task_labels (
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    task  BLOB NOT NULL,
    PRIMARY KEY (key, value, task)
) STRICT, WITHOUT ROWID;

CREATE INDEX task_labels_task ON task_labels (task);

-- Kept for 24 h whatever becomes of their tasks.
CREATE TABLE idempotency_keys (
    client       BLOB    NOT NULL,
    key          TEXT    NOT NULL,
    body_hash    BLOB    NOT NULL,
    task         BLOB    NOT NULL,
    submitted_at INTEGER NOT NULL,
    PRIMARY KEY (client, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_age ON idempotency_keys (submitted_at);

CREATE TABLE nodes (
    id            BLOB    NOT NULL PRIMARY KEY,
    session_hash  BLOB    NOT NULL,
    boot_id       BLOB    NOT NULL,
    registration  TEXT    NOT NULL,
    registered_at INTEGER NOT NULL,
    gone_at       INTEGER
) STRICT;

CREATE TABLE tokens (
    id   BLOB NOT NULL PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    info TEXT NOT NULL
) STRICT;

CREATE TABLE pools (
    name     TEXT    NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    spec     TEXT    NOT NULL
) STRICT;
