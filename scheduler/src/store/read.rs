//! Reading beside the writer, on a WAL snapshot. Blocking: call it where blocking is fine.

use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use tessera_model::usage::{Interval, UsageClass};
use tessera_model::{
    AttemptId, GpuId, JobId, JobRecord, NodeId, ProjectId, Revision, TeamId, UnixMillis, UserId,
};

use super::StoreError;

#[derive(Debug, Clone)]
pub struct Reader {
    path: PathBuf,
}

impl Reader {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn open(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags)
            .map_err(|source| StoreError::Open { path: self.path.clone(), source })?;
        db.execute_batch("PRAGMA busy_timeout=5000; PRAGMA trusted_schema=OFF;")?;
        Ok(db)
    }

    /// Hands over each closed interval that touches `[from, to)` and was closed at or before
    /// `until`, in no particular order.
    pub fn intervals(
        &self,
        from: UnixMillis,
        to: UnixMillis,
        until: Revision,
        mut each: impl FnMut(Interval),
    ) -> Result<(), StoreError> {
        let db = self.open()?;
        let mut query = db.prepare(
            "SELECT gpu, node, gpu_model, start_unix_ms, end_unix_ms, class, team, project, user, attempt, parts
             FROM usage_intervals
             WHERE end_unix_ms > ?1 AND start_unix_ms < ?2 AND revision <= ?3",
        )?;
        let until = i64::try_from(until.0).unwrap_or(i64::MAX);
        let mut rows = query.query(params![from.0, to.0, until])?;
        while let Some(row) = rows.next()? {
            each(interval(row)?);
        }
        Ok(())
    }

    /// A job that may have left the scheduler's memory.
    pub fn job(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.record(
            "SELECT record FROM jobs WHERE id = ?1",
            params![i64::try_from(id.0).unwrap_or(-1)],
        )
    }

    /// The job a caller submitted under a key.
    pub fn job_by_key(&self, user: &UserId, key: &str) -> Result<Option<JobRecord>, StoreError> {
        let sql = "SELECT record FROM jobs WHERE user = ?1 AND idempotency_key = ?2";
        self.record(sql, params![user.as_str(), key])
    }

    fn record(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
    ) -> Result<Option<JobRecord>, StoreError> {
        let db = self.open()?;
        let text: Option<String> = db.query_row(sql, params, |row| row.get(0)).optional()?;
        text.map(|t| serde_json::from_str(&t).map_err(StoreError::BadRecord)).transpose()
    }
}

fn interval(row: &Row<'_>) -> Result<Interval, rusqlite::Error> {
    let class: String = row.get(5)?;
    let class = match class.as_str() {
        "allocated" => UsageClass::Allocated {
            team: id(row, 6, TeamId::parse)?,
            project: id(row, 7, ProjectId::parse)?,
            user: id(row, 8, UserId::parse)?,
            attempt: id(row, 9, |t| AttemptId::parse(t).ok_or(t.to_owned()))?,
        },
        "idle" => UsageClass::Idle,
        "drain" => UsageClass::Drain,
        "failed" => UsageClass::Failed,
        "unknown" => UsageClass::Unknown,
        other => return Err(bad(5, format!("there is no class {other:?}"))),
    };
    Ok(Interval {
        gpu: id(row, 0, GpuId::parse)?,
        node: id(row, 1, NodeId::parse)?,
        model: row.get(2)?,
        start: UnixMillis(row.get(3)?),
        end: UnixMillis(row.get(4)?),
        parts: row.get(10)?,
        class,
    })
}

fn id<T, E: std::fmt::Debug>(
    row: &Row<'_>,
    column: usize,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, rusqlite::Error> {
    let text: String = row.get(column)?;
    parse(&text).map_err(|error| bad(column, format!("{error:?}")))
}

fn bad(column: usize, text: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, text.into())
}
