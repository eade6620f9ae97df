//! What must hold at the end of every story, whatever it was about.
//!
//! In: a living cluster's database, logs and status. Out: the promises that were broken, in words.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tessera_proto::v1;

use crate::person::Person;

/// Each query lists the offenders; its words say what they broke.
const PROMISES: [(&str, &str); 6] = [
    (
        "a GPU was held by two leases at once",
        "SELECT a.gpu || ' by ' || a.attempt || ' and ' || b.attempt FROM lease_gpus a, lease_gpus b
         WHERE a.gpu = b.gpu AND a.attempt < b.attempt AND a.gpu_milli + b.gpu_milli > 1000
         AND a.granted_at_unix_ms < coalesce(b.released_at_unix_ms, 9e18)
         AND b.granted_at_unix_ms < coalesce(a.released_at_unix_ms, 9e18)",
    ),
    (
        "a GPU's time has a gap or is counted twice",
        "SELECT gpu || ' from ' || end_unix_ms || ' to ' || next FROM (
           SELECT gpu, end_unix_ms, lead(start_unix_ms) OVER (PARTITION BY gpu ORDER BY start_unix_ms) AS next
           FROM usage_intervals WHERE gpu NOT IN (SELECT gpu FROM usage_intervals WHERE parts < 7000))
         WHERE next IS NOT NULL AND next <> end_unix_ms",
    ),
    (
        "more of a shared GPU is charged than there is",
        "SELECT a.gpu || ' at ' || a.start_unix_ms FROM usage_intervals a, usage_intervals b
         WHERE a.gpu = b.gpu AND b.start_unix_ms <= a.start_unix_ms AND a.start_unix_ms < b.end_unix_ms
         AND a.gpu IN (SELECT gpu FROM usage_intervals WHERE parts < 7000)
         GROUP BY a.gpu, a.start_unix_ms, a.class, a.attempt HAVING sum(b.parts) > 7000",
    ),
    (
        "a team pays for what its job did not hold",
        "SELECT u.attempt || ' on ' || u.gpu || ' from ' || u.start_unix_ms FROM usage_intervals u
         WHERE u.attempt <> '' AND NOT EXISTS (
           SELECT 1 FROM lease_gpus l WHERE l.attempt = u.attempt AND l.gpu = u.gpu
           AND l.granted_at_unix_ms <= u.start_unix_ms
           AND u.end_unix_ms <= coalesce(l.released_at_unix_ms, 9e18))",
    ),
    (
        "a job has two live attempts",
        "SELECT 'job ' || substr(attempt, 1, instr(attempt, '.') - 1) FROM (
           SELECT DISTINCT attempt FROM lease_gpus WHERE released_at_unix_ms IS NULL)
         GROUP BY 1 HAVING count(*) > 1",
    ),
    (
        "the journal has a hole",
        "SELECT 'after ' || revision FROM (
           SELECT revision, lead(revision) OVER (ORDER BY revision) AS next FROM journal)
         WHERE next IS NOT NULL AND next <> revision + 1",
    ),
];

pub fn broken_promises(database: &Path, admin: &Person) -> Vec<String> {
    let open = || {
        let db = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(Duration::from_secs(10))?;
        in_the_database(&db)
    };
    let mut broken = open().unwrap_or_else(|e| vec![format!("{}: {e}", database.display())]);
    match admin.once(async { admin.admin().status(v1::StatusRequest {}).await }) {
        Ok(status) if status.placements_refused > 0 => {
            broken.push(format!("the verifier refused {} placements", status.placements_refused));
        }
        Ok(_) => {}
        Err(no) => broken.push(format!("the scheduler has no status: {no}")),
    }
    broken
}

fn in_the_database(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut broken = Vec::new();
    for (promise, query) in PROMISES {
        let mut query = db.prepare(query)?;
        for offender in query.query_map([], |row| row.get::<_, String>(0))? {
            broken.push(format!("{promise}: {}", offender?));
        }
    }
    Ok(broken)
}

/// Lines in which a program of ours says that it broke.
pub fn panics(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains("panicked at"));
    lines.map(|line| format!("{}: {line}", log.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "
        CREATE TABLE journal (revision INTEGER PRIMARY KEY);
        CREATE TABLE lease_gpus (attempt TEXT, gpu TEXT, granted_at_unix_ms INTEGER, released_at_unix_ms INTEGER, gpu_milli INTEGER);
        CREATE TABLE usage_intervals (gpu TEXT, start_unix_ms INTEGER, end_unix_ms INTEGER, attempt TEXT, parts INTEGER, class TEXT);
        INSERT INTO journal VALUES (1), (2), (3);
        INSERT INTO lease_gpus VALUES ('1.1', 'a', 10, 20, 1000), ('2.1', 'a', 20, NULL, 1000),
          ('1.2', 'b', 30, NULL, 1000), ('6.1', 's', 0, 20, 500), ('7.1', 's', 0, 20, 500);
        INSERT INTO usage_intervals VALUES ('a', 0, 10, '', 7000, 'idle'),
          ('a', 10, 20, '1.1', 7000, 'allocated'), ('b', 0, 30, '', 7000, 'idle'),
          ('s', 0, 20, '6.1', 3500, 'allocated'), ('s', 0, 20, '7.1', 3500, 'allocated');";

    #[test]
    fn each_broken_promise_is_found_and_only_that_one() {
        let cases = [
            ("", None),
            (
                "INSERT INTO lease_gpus VALUES ('3.1', 'a', 15, 18, 1000)",
                Some("held by two leases"),
            ),
            (
                "INSERT INTO lease_gpus VALUES ('3.1', 'b', 40, NULL, 250)",
                Some("held by two leases"),
            ),
            ("INSERT INTO usage_intervals VALUES ('a', 21, 30, '', 7000, 'idle')", Some("a gap")),
            (
                "INSERT INTO usage_intervals VALUES ('a', 19, 30, '', 7000, 'idle')",
                Some("a gap or is counted twice"),
            ),
            (
                "INSERT INTO usage_intervals VALUES ('s', 5, 9, '', 1000, 'idle')",
                Some("more of a shared GPU"),
            ),
            (
                "INSERT INTO usage_intervals VALUES ('b', 30, 40, '1.1', 7000, 'allocated')",
                Some("a team pays"),
            ),
            ("INSERT INTO usage_intervals VALUES ('b', 30, 40, '1.2', 7000, 'allocated')", None),
            (
                "INSERT INTO lease_gpus VALUES ('2.2', 'c', 40, NULL, 1000)",
                Some("two live attempts"),
            ),
            ("INSERT INTO journal VALUES (5)", Some("a hole")),
        ];
        for (change, want) in cases {
            let db = Connection::open_in_memory().unwrap();
            db.execute_batch(TABLES).unwrap();
            db.execute_batch(change).unwrap();
            let found = in_the_database(&db).unwrap();
            match want {
                None => assert!(found.is_empty(), "{change}: {found:?}"),
                Some(want) => {
                    assert!(!found.is_empty(), "{change}: {want} is not found");
                    assert!(found.iter().all(|f| f.contains(want)), "{change}: {found:?}");
                }
            }
        }
    }
}
