//! Durable submissions: one stream, and 64 at once, over TLS on loopback.
//!
//! No node is there, so a submission is all that happens. The baseline writes the very rows that
//! the scheduler wrote into a bare SQLite file with the same settings: one commit a job, and one
//! commit for 64.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Statement, params};
use tessera_proto::v1;
use tessera_tests::{Cluster, ClusterSpec, Person, RUNTIME};

use crate::measure::{Samples, cpu_time, timed};
use crate::report::Report;

const BENCH: &str = "submit";
const CONNECTIONS: usize = 8;

pub fn run(report: &mut Report) {
    let spec = ClusterSpec { agents: false, ..ClusterSpec::nodes(0) };
    for (streams, jobs) in [(1, 1_000), (64, 16_000)] {
        let cluster = Cluster::start(spec.clone());
        let person = cluster.admin().create_person("ada", "member", &["nlp"]);
        // Not counted: the first calls find caches cold.
        submit(&cluster, &person, 1, 50);
        let before = cpu_time(cluster.scheduler_pid());
        let (wall, mut each) = submit(&cluster, &person, streams, jobs);
        let cpu = cpu_time(cluster.scheduler_pid()).saturating_sub(before);
        let rows = Rows::of(&cluster);
        let batch = if streams == 1 { 1 } else { 64 };
        let bare = rows.per_second(batch);
        let rate = jobs as f64 / wall.as_secs_f64();
        let name =
            |what: &str| format!("{streams} stream{}: {what}", if streams == 1 { "" } else { "s" });
        let base = format!("bare SQLite, {batch} a commit");
        report.add_beside(BENCH, name("acknowledged"), rate, "jobs/s", (&base, bare));
        report.add(BENCH, name("p50"), each.ms(0.5), "ms");
        report.add(BENCH, name("p99"), each.ms(0.99), "ms");
        report.add(BENCH, name("scheduler CPU a job"), cpu.as_secs_f64() * 1e6 / jobs as f64, "us");
    }
}

/// The wall time of all, and what each took.
fn submit(cluster: &Cluster, person: &Person, streams: usize, jobs: usize) -> (Duration, Samples) {
    let people: Vec<Person> = (0..streams.min(CONNECTIONS)).map(|_| person.again()).collect();
    let spec = v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") };
    let begin = Instant::now();
    let tasks: Vec<_> = (0..streams)
        .map(|stream| {
            let mut line = people[stream % people.len()].jobs();
            let spec = spec.clone();
            RUNTIME.spawn(async move {
                let mut took = Vec::new();
                for _ in 0..jobs / streams {
                    let request = v1::SubmitRequest {
                        array: None,
                        spec: Some(spec.clone()),
                        idempotency_key: String::new(),
                    };
                    let begin = Instant::now();
                    line.submit(request).await.expect("it is accepted");
                    took.push(begin.elapsed());
                }
                took
            })
        })
        .collect();
    let mut samples = Samples::default();
    for task in tasks {
        samples.extend(RUNTIME.block_on(task).expect("a stream ends well"));
    }
    (begin.elapsed(), samples)
}

/// What the scheduler wrote for each job: a line of the journal, and the job's row.
struct Rows(Vec<(i64, String, i64, String)>);

impl Rows {
    fn of(cluster: &Cluster) -> Self {
        let db = Connection::open_with_flags(cluster.database(), OpenFlags::SQLITE_OPEN_READ_ONLY);
        let db = db.expect("the store can be read");
        let query = "SELECT journal.revision, journal.body, jobs.id, jobs.record \
            FROM journal, jobs WHERE journal.kind = 'job_submitted' \
            AND json_extract(journal.body, '$.job') = jobs.id LIMIT 4000";
        let mut query = db.prepare(query).expect("the store is as the schema says");
        let rows = query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)));
        let rows: Vec<_> = rows.expect("it can be asked").flatten().collect();
        assert!(!rows.is_empty(), "no submission is in the journal");
        Self(rows)
    }

    /// Commits of `batch` jobs each, with the scheduler's own settings, on the same file system.
    fn per_second(&self, batch: usize) -> f64 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let db = Connection::open(folder.path().join("bare.db")).expect("a file");
        db.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=1000;
             CREATE TABLE journal (revision INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
             CREATE TABLE jobs (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;",
        )
        .expect("a schema");
        let mut journal = db.prepare("INSERT INTO journal VALUES (?1, ?2)").expect("a statement");
        let mut jobs = db.prepare("INSERT INTO jobs VALUES (?1, ?2)").expect("a statement");
        let put = |journal: &mut Statement<'_>,
                   jobs: &mut Statement<'_>,
                   row: &(i64, String, i64, String)| {
            journal.execute(params![row.0, row.1]).expect("a row");
            jobs.execute(params![row.2, row.3]).expect("a row");
        };
        let ((), took) = timed(|| {
            for part in self.0.chunks(batch) {
                db.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
                part.iter().for_each(|row| put(&mut journal, &mut jobs, row));
                db.execute_batch("COMMIT").expect("it is durable");
            }
        });
        self.0.len() as f64 / took.as_secs_f64()
    }
}
