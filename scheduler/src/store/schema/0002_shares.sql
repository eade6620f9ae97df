-- A GPU may be shared: its leases hold thousandths of it, and its intervals some of its parts.
CREATE TABLE usage_intervals_2 (
    gpu            TEXT NOT NULL,
    start_unix_ms  INTEGER NOT NULL,
    end_unix_ms    INTEGER NOT NULL,
    parts          INTEGER NOT NULL,       -- of the 7,000 of a GPU; those of each instant add up to the whole
    node           TEXT NOT NULL,
    gpu_model      TEXT NOT NULL,
    class          TEXT NOT NULL,
    team           TEXT,
    project        TEXT,
    user           TEXT,
    attempt        TEXT NOT NULL DEFAULT '', -- empty where nobody's work ran
    revision       INTEGER NOT NULL,       -- of the event that closed it
    PRIMARY KEY (gpu, start_unix_ms, class, attempt),
    CHECK (start_unix_ms < end_unix_ms),
    CHECK (parts BETWEEN 1 AND 7000)
) STRICT, WITHOUT ROWID;
INSERT INTO usage_intervals_2
    SELECT gpu, start_unix_ms, end_unix_ms, 7000, node, gpu_model, class, team, project, user,
        ifnull(attempt, ''), revision
    FROM usage_intervals;
DROP TABLE usage_intervals;
ALTER TABLE usage_intervals_2 RENAME TO usage_intervals;
CREATE INDEX usage_intervals_by_end ON usage_intervals (end_unix_ms);

-- The last line of defence, for shares too: never more of a GPU than there is.
ALTER TABLE lease_gpus ADD COLUMN gpu_milli INTEGER NOT NULL DEFAULT 1000;
DROP INDEX lease_gpus_held;
CREATE INDEX lease_gpus_held ON lease_gpus (gpu) WHERE released_at_unix_ms IS NULL;
CREATE TRIGGER lease_gpus_never_more_than_one BEFORE INSERT ON lease_gpus
WHEN NEW.gpu_milli + (
    SELECT ifnull(sum(gpu_milli), 0) FROM lease_gpus
    WHERE gpu = NEW.gpu AND released_at_unix_ms IS NULL) > 1000
BEGIN
    SELECT RAISE(ABORT, 'more of a GPU was leased than there is');
END;
