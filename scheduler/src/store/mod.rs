//! The durable store: journal, projections, snapshot, in one SQLite file.
//!
//! Written by the writer thread only, one transaction a batch, `synchronous=FULL`: what COMMIT has
//! answered survives a power cut. Readers open their own connections on a WAL snapshot. The tables
//! other tools may read stand in `schema/`.

mod migrate; // forward-only, checksummed
mod read;
mod snapshot; // a shortcut for the next start // usage intervals and jobs that left memory

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};
use tessera_core::cluster::{Cluster, Outbox};
use tessera_core::{Event, Stamped};
use tessera_model::usage::UsageClass;
use tessera_model::{Revision, UnixMillis};

pub use read::Reader;
pub use snapshot::SnapshotKeeper;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("could not open the store {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the store {path} was written by a newer version (schema {found}, this one knows {known})"
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("migration {number} of the store was changed after it was applied")]
    Changed { number: u32 },
    #[error("event {revision} in the journal cannot be read")]
    BadEvent {
        revision: u64,
        #[source]
        source: serde_json::Error,
    },
    #[error("a job's record in the store cannot be read")]
    BadRecord(#[source] serde_json::Error),
    #[error("the journal goes from {expected} to {found}")]
    Hole { expected: u64, found: u64 },
    #[error("the disk with the store is full")]
    Full(#[source] rusqlite::Error),
    #[error("could not start the writer's thread")]
    Thread(#[source] std::io::Error),
    #[error("the store failed")]
    Sqlite(#[source] rusqlite::Error),
}

impl StoreError {
    /// What the operator does next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Open { .. } => "check that the folder exists and is writable for this user",
            Self::Newer { .. } => "start the newer version again; stores are not turned back",
            Self::Changed { .. } => {
                "this binary was not built from a release; use the one that made the store"
            }
            Self::BadEvent { .. } | Self::BadRecord(_) | Self::Hole { .. } => {
                "the file is damaged: restore the last backup, and keep this one for a look at it"
            }
            Self::Thread(_) => "raise the limit of threads or memory for this user",
            Self::Full(_) => "free some space; the scheduler goes on by itself",
            Self::Sqlite(_) => "look at the disk; what was acknowledged is in the file",
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full(error),
            _ => Self::Sqlite(error),
        }
    }
}

#[derive(Debug)]
pub struct Store {
    db: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens or makes `DIR/tessera.db` and brings its schema up to date.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("tessera.db");
        let open = |source| StoreError::Open { path: path.clone(), source };
        let mut db = Connection::open_with_flags(
            &path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(open)?;
        db.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;
             PRAGMA busy_timeout=5000; PRAGMA wal_autocheckpoint=1000;
             PRAGMA journal_size_limit=67108864; PRAGMA trusted_schema=OFF;
             PRAGMA cell_size_check=ON;",
        )
        .map_err(open)?;
        migrate::migrate(&mut db, &path)?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(Self { db, path })
    }

    pub fn reader(&self) -> Reader {
        Reader::new(self.path.clone())
    }

    /// The state as the journal tells it: the snapshot, and all events after it.
    pub fn load(&mut self) -> Result<Cluster, StoreError> {
        let last: Option<i64> =
            self.db.query_row("SELECT max(revision) FROM journal", [], |row| row.get(0))?;
        // A snapshot from after the last event belongs to another store.
        let snapshot = snapshot::read(&snapshot::path(&self.path))
            .filter(|c| c.revision.0 <= to_u64(last.unwrap_or(0)));
        let mut cluster = snapshot.unwrap_or_default();
        let now = cluster.now;
        cluster = cluster.restored(now);
        let start = cluster.revision.0;
        let mut query = self
            .db
            .prepare("SELECT revision, body FROM journal WHERE revision > ?1 ORDER BY revision")?;
        let mut rows = query.query([to_i64(start)])?;
        while let Some(row) = rows.next()? {
            let (revision, body) = (to_u64(row.get(0)?), row.get_ref(1)?);
            let expected = cluster.revision.0 + 1;
            if revision != expected {
                return Err(StoreError::Hole { expected, found: revision });
            }
            let body = body.as_str().map_err(rusqlite::Error::from)?;
            let event: Stamped = serde_json::from_str(body)
                .map_err(|source| StoreError::BadEvent { revision, source })?;
            cluster.apply(&event);
            // What followed from these events was written with them.
            cluster.take_outbox();
        }
        Ok(cluster)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the disk takes a good piece of data again. Nothing of it stays.
    pub fn try_disk(&self) -> Result<(), StoreError> {
        let tried = self.db.execute_batch(
            "BEGIN IMMEDIATE; INSERT INTO ballast (body) VALUES (zeroblob(262144)); COMMIT;
             DELETE FROM ballast;",
        );
        self.rollback();
        tried.map_err(Into::into)
    }

    pub fn begin(&self) -> Result<(), StoreError> {
        self.db.execute_batch("BEGIN IMMEDIATE").map_err(Into::into)
    }

    /// Writes one event into the open transaction.
    pub fn append(&self, revision: Revision, event: &Stamped) -> Result<(), StoreError> {
        let body = serde_json::to_string(event)
            .map_err(|source| StoreError::BadEvent { revision: revision.0, source })?;
        self.db
            .prepare_cached(
                "INSERT INTO journal (revision, at_unix_ms, kind, body) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![to_i64(revision.0), event.at.0, event.event.kind(), body])?;
        self.project_lease(event)
    }

    /// What is held, from the events that grant and give back.
    fn project_lease(&self, event: &Stamped) -> Result<(), StoreError> {
        match &event.event {
            Event::LeaseGranted { lease, .. } => {
                let mut insert = self.db.prepare_cached(
                    "INSERT INTO lease_gpus (attempt, gpu, node, granted_at_unix_ms, gpu_milli)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?;
                let attempt = lease.attempt.to_string();
                for place in &lease.places {
                    for gpu in &place.gpus {
                        insert.execute(params![
                            attempt,
                            gpu.as_str(),
                            place.node.as_str(),
                            event.at.0,
                            place.gpu_milli,
                        ])?;
                    }
                }
            }
            Event::PlaceReleased { attempt, node, .. }
            | Event::PlaceWrittenOff { attempt, node, .. } => {
                self.db
                    .prepare_cached(
                        "UPDATE lease_gpus SET released_at_unix_ms = ?1
                         WHERE attempt = ?2 AND node = ?3 AND released_at_unix_ms IS NULL",
                    )?
                    .execute(params![event.at.0, attempt.to_string(), node.as_str()])?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes what followed from the batch's events into the same transaction.
    pub fn project(&self, cluster: &Cluster, outbox: &Outbox) -> Result<(), StoreError> {
        self.project_jobs(cluster, outbox)?;
        let mut node_row = self.db.prepare_cached(
            "INSERT INTO nodes (node, state, record) VALUES (?1, ?2, ?3)
             ON CONFLICT (node) DO UPDATE SET state = excluded.state, record = excluded.record",
        )?;
        for node in outbox.nodes.iter().filter_map(|n| cluster.nodes.get(n)) {
            let record = json(&cluster.node_record(node));
            node_row.execute(params![node.id().as_str(), node.state.word(), record])?;
        }
        let mut gone = self.db.prepare_cached("DELETE FROM nodes WHERE node = ?1")?;
        for node in outbox.nodes.iter().filter(|n| !cluster.nodes.contains_key(*n)) {
            gone.execute([node.as_str()])?;
        }
        let mut interval_row = self.db.prepare_cached(
            "INSERT INTO usage_intervals (gpu, start_unix_ms, end_unix_ms, node, gpu_model, class,
                team, project, user, attempt, revision, parts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?;
        for interval in &outbox.closed {
            let (team, project, user, attempt) = match &interval.class {
                UsageClass::Allocated { attempt, team, project, user } => (
                    Some(team.as_str()),
                    Some(project.as_str()),
                    Some(user.as_str()),
                    attempt.to_string(),
                ),
                _ => (None, None, None, String::new()),
            };
            interval_row.execute(params![
                interval.gpu.as_str(),
                interval.start.0,
                interval.end.0,
                interval.node.as_str(),
                interval.model,
                interval.class.word(),
                team,
                project,
                user,
                attempt,
                to_i64(cluster.revision.0),
                interval.parts,
            ])?;
        }
        Ok(())
    }

    fn project_jobs(&self, cluster: &Cluster, outbox: &Outbox) -> Result<(), StoreError> {
        let mut row = self.db.prepare_cached(
            "INSERT INTO jobs (id, name, team, project, user, state, gpus, submitted_at_unix_ms,
                started_at_unix_ms, ended_at_unix_ms, exit_code, idempotency_key, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state,
                started_at_unix_ms = excluded.started_at_unix_ms,
                ended_at_unix_ms = excluded.ended_at_unix_ms,
                exit_code = excluded.exit_code, record = excluded.record",
        )?;
        for job in outbox.jobs.iter().filter_map(|j| cluster.jobs.get(*j)) {
            let ms = |t: Option<UnixMillis>| t.map(|t| t.0);
            row.execute(params![
                to_i64(job.id.0),
                job.spec.name,
                job.spec.team.as_str(),
                job.spec.project.as_str(),
                job.spec.user.as_str(),
                job.state.word(),
                job.spec.gpus(),
                job.submitted_at.0,
                ms(job.started_at),
                ms(job.ended_at),
                job.exit_code,
                job.key,
                json(&cluster.record(job)),
            ])?;
        }
        Ok(())
    }

    /// When this returns, the batch survives a power cut.
    pub fn commit(&self) -> Result<(), StoreError> {
        self.db.execute_batch("COMMIT").map_err(Into::into)
    }

    /// Leaves nothing of the open transaction. Without one it does nothing.
    pub fn rollback(&self) {
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "could not roll back");
        }
    }
}

/// Our own records have string keys and finite numbers: writing them as JSON cannot fail.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records are JSON")
}

/// SQLite's integers are signed; revisions and ids stay far below their limit.
fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn to_u64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
