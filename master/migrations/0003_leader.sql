-- Who leads. Of masters that share a database, the one that raised `epoch` last; it says that it still does by
-- putting `lease_until` off, in milliseconds since 1970 by the database's clock. NULL: nobody.
ALTER TABLE master ADD COLUMN leader BLOB;
ALTER TABLE master ADD COLUMN url TEXT NOT NULL DEFAULT '';
ALTER TABLE master ADD COLUMN lease_until INTEGER NOT NULL DEFAULT 0;

-- Makes raising the epoch, and nothing else, wait for the transactions of the leader before it: in PostgreSQL a row
-- that is locked FOR KEY SHARE may change in all but its unique columns.
CREATE UNIQUE INDEX master_epoch ON master (epoch);

-- Bytes that are kept, changed in the transactions that write them. In SQLite `task_bytes` is not counted; there
-- the pages of the database are.
CREATE TABLE usage (
    one        INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    task_bytes INTEGER NOT NULL,
    log_bytes  INTEGER NOT NULL
) STRICT;

INSERT INTO usage (one, task_bytes, log_bytes)
SELECT 1, 0, coalesce(sum(octet_length(bytes)), 0) FROM task_logs;
