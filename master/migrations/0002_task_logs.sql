-- What tasks that have ended printed: the end of each stream, and only if there was something.
-- stream: 1 standard output, 2 standard error; at: offset of the first byte.
CREATE TABLE task_logs (
    task    BLOB    NOT NULL,
    stream  INTEGER NOT NULL,
    run     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    bytes   BLOB    NOT NULL,
    PRIMARY KEY (task, stream)
) STRICT;
