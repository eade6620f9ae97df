//! Migrations: numbered, checksummed, forward only, each in one transaction.

use std::path::Path;

use rusqlite::{Connection, params};

use super::StoreError;

const MIGRATIONS: &[(u32, &str)] =
    &[(1, include_str!("schema/0001_first.sql")), (2, include_str!("schema/0002_shares.sql"))];

pub fn migrate(db: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let first = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    first.execute_batch(
        "CREATE TABLE IF NOT EXISTS migrations (
            number INTEGER PRIMARY KEY, checksum TEXT NOT NULL) STRICT",
    )?;
    let applied: Vec<(u32, String)> = {
        let mut query = first.prepare("SELECT number, checksum FROM migrations ORDER BY number")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    let known = MIGRATIONS.last().map_or(0, |(n, _)| *n);
    if let Some((found, _)) = applied.last().filter(|(n, _)| *n > known) {
        return Err(StoreError::Newer { path: path.to_owned(), found: *found, known });
    }
    for (number, sql) in MIGRATIONS {
        let sum = checksum(sql);
        match applied.iter().find(|(n, _)| n == number) {
            Some((_, before)) if *before == sum => {}
            Some(_) => return Err(StoreError::Changed { number: *number }),
            None => {
                first.execute_batch(sql)?;
                first.execute(
                    "INSERT INTO migrations (number, checksum) VALUES (?1, ?2)",
                    params![number, sum],
                )?;
            }
        }
    }
    first.commit().map_err(Into::into)
}

fn checksum(sql: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, sql.as_bytes());
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_of_a_newer_version_is_left_alone() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, Path::new("x")).unwrap();
        migrate(&mut db, Path::new("x")).unwrap();
        db.execute("INSERT INTO migrations VALUES (999, 'x')", []).unwrap();
        assert!(matches!(
            migrate(&mut db, Path::new("x")),
            Err(StoreError::Newer { found: 999, .. })
        ));
    }

    #[test]
    fn a_migration_that_was_changed_is_found() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, Path::new("x")).unwrap();
        db.execute("UPDATE migrations SET checksum = 'other'", []).unwrap();
        assert!(matches!(migrate(&mut db, Path::new("x")), Err(StoreError::Changed { number: 1 })));
    }
}
