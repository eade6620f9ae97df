-- The journal is the truth; all else follows from it and is written in the same transaction.
CREATE TABLE journal (
    revision    INTEGER PRIMARY KEY,
    at_unix_ms  INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    body        TEXT NOT NULL              -- the event as JSON
) STRICT;

-- Written and deleted again to see whether a full disk has space.
CREATE TABLE ballast (body BLOB NOT NULL) STRICT;

-- One row a job, as it is now. `record` is what `tessera show --json` is made from.
CREATE TABLE jobs (
    id                    INTEGER PRIMARY KEY,
    name                  TEXT NOT NULL,
    team                  TEXT NOT NULL,
    project               TEXT NOT NULL,
    user                  TEXT NOT NULL,
    state                 TEXT NOT NULL,
    gpus                  INTEGER NOT NULL,
    submitted_at_unix_ms  INTEGER NOT NULL,
    started_at_unix_ms    INTEGER,
    ended_at_unix_ms      INTEGER,
    exit_code             INTEGER,
    idempotency_key       TEXT,
    record                TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_by_key ON jobs (user, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE nodes (
    node    TEXT PRIMARY KEY,
    state   TEXT NOT NULL,
    record  TEXT NOT NULL
) STRICT;

-- Which attempt holds which GPU. The index is the last line of defence: no GPU twice.
CREATE TABLE lease_gpus (
    attempt              TEXT NOT NULL,
    gpu                  TEXT NOT NULL,
    node                 TEXT NOT NULL,
    granted_at_unix_ms   INTEGER NOT NULL,
    released_at_unix_ms  INTEGER,
    PRIMARY KEY (attempt, gpu)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX lease_gpus_held ON lease_gpus (gpu) WHERE released_at_unix_ms IS NULL;

-- Closed stretches [start, end) of each GPU in one class, without gap or overlap.
CREATE TABLE usage_intervals (
    gpu            TEXT NOT NULL,
    start_unix_ms  INTEGER NOT NULL,
    end_unix_ms    INTEGER NOT NULL,
    node           TEXT NOT NULL,
    gpu_model      TEXT NOT NULL,
    class          TEXT NOT NULL,
    team           TEXT,
    project        TEXT,
    user           TEXT,
    attempt        TEXT,
    revision       INTEGER NOT NULL,       -- of the event that closed it
    PRIMARY KEY (gpu, start_unix_ms),
    CHECK (start_unix_ms < end_unix_ms)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_intervals_by_end ON usage_intervals (end_unix_ms);
