//! The journal against a real PostgreSQL.

pub(crate) mod encrypted;

pub(crate) use crate::testing::cluster;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lease::Timestamp;

use super::*;
use crate::fleet::{self, Answer, Request, Resolved};
use crate::journal::engine_tests::{
    self, Place, SECRET, TTL, WITHIN, batch, grant, ledger, load, stamp_of,
};
use crate::journal::term_journal::TermJournal;
use cluster::Cluster;

/// Settings with a schema of their own.
fn settings(cluster: &Cluster) -> Settings {
    let port = cluster.port;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let schema = format!("fleet%20{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let url = format!("postgres://tgm@127.0.0.1:{port}/postgres?schema={schema}");
    Settings::parse(&url, &|_| None).unwrap()
}

/// Lets a new server take over, and returns its journal.
fn take_over(settings: &Settings) -> TermJournal {
    let mut elections = PostgresElections::open(settings.clone(), TTL, SECRET, WITHIN).unwrap();
    let row = engine_tests::elect(&mut elections);
    TermJournal::new(Elections::journal(&elections).unwrap(), row)
}

/// A schema of its own in a PostgreSQL that other tests share.
pub(in crate::journal) fn place() -> Option<Place> {
    let cluster = Cluster::shared()?;
    let settings = settings(&cluster);
    let open = move |secret| {
        let _running = &cluster;
        let elections = PostgresElections::open(settings.clone(), TTL, secret, WITHIN).unwrap();
        Box::new(elections) as Box<dyn Elections>
    };
    Some(Place { engine: "PostgreSQL", open: Box::new(open) })
}

#[test]
fn an_unknown_version_of_the_tables_is_refused() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    drop(PostgresElections::open(settings.clone(), TTL, SECRET, WITHIN).unwrap());
    let mut connection = Connection::new(settings.clone()).unwrap();
    connection
        .run(WITHIN, async |client, schema| {
            Ok(client.batch_execute(&format!("UPDATE {schema}.version SET version = 99")).await?)
        })
        .unwrap();
    let error = PostgresElections::open(settings, TTL, SECRET, WITHIN).unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn a_takeover_that_a_lock_blocks_ends_who_holds_it() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    drop(take_over(&settings));
    let mut holder = Connection::new(settings.clone()).unwrap();
    holder
        .run(WITHIN, async |client, schema| {
            client.batch_execute("BEGIN").await?;
            Ok(client.batch_execute(&format!("SELECT * FROM {schema}.journal FOR UPDATE")).await?)
        })
        .unwrap();
    let mut elections = PostgresElections::open(settings, TTL, SECRET, WITHIN).unwrap();
    let Answer::Read(seen) = elections.carry_out(&Request::Read, WITHIN).unwrap() else { panic!() };
    let mut new = seen.clone();
    new.leadership.epoch += 1;
    let take_over =
        |end_blocker| Request::TakeOver { seen: seen.clone(), new: new.clone(), end_blocker };
    let within = Duration::from_millis(300);
    assert_eq!(elections.carry_out(&take_over(false), within).unwrap(), Answer::Blocked);
    let answer = elections.carry_out(&take_over(true), WITHIN).unwrap();
    assert_eq!(answer, Answer::Replaced(new));
}

#[test]
fn a_database_that_restarts_loses_nothing_and_is_used_again() {
    let Some(mut cluster) = Cluster::start() else { return };
    let settings = settings(&cluster);
    let mut journal = take_over(&settings);
    let mut ledger = ledger();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap();
    cluster.kill();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(2)));
    assert!(journal.commit(&rows, stamp_of(&ledger), Duration::from_secs(1)).is_err());
    cluster.resume();
    let resolved = loop {
        if let Ok(resolved) = journal.resolve(WITHIN) {
            break resolved;
        }
    };
    assert_eq!(resolved, Resolved::NotCommitted);
    journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap();
    assert_eq!(load(&mut journal).0.ledger.len(), 2);
}

#[test]
fn only_a_leader_migrates_and_only_once_every_live_member_knows_the_version() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let leader = take_over(&settings).fence.seen().leader;
    let mut connection = Connection::new(settings).unwrap();
    let run = |connection: &mut Connection, sql: &str| {
        let run = connection.run(WITHIN, async |client, schema| {
            Ok(client.batch_execute(&sql.replace("{schema}", schema)).await?)
        });
        run.unwrap();
    };
    let members = "INSERT INTO {schema}.members VALUES ('1', '', '', 2, '', 'leader', now(), 1, now()), \
         ('2', '', '', 1, '', 'standby', now(), NULL, now()), \
         ('3', '', '', 1, '', 'standby', now(), NULL, now() - interval '61 seconds')";
    run(&mut connection, members);
    let steps = ["ALTER TABLE {schema}.leases ADD COLUMN more int8"];
    let migrate = |connection: &mut Connection, leader| {
        let migrated = connection.run(WITHIN, async |client, schema| {
            schema::migrate(client, schema, leader, &steps).await
        });
        migrated.unwrap()
    };
    let later = |connection: &mut Connection| {
        let query = connection.run(WITHIN, async |client, schema| {
            let sql = format!("SELECT more FROM {schema}.leases");
            Ok(client.query_typed(&sql, &[]).await?.len())
        });
        query.is_ok()
    };
    let other = fleet::LeaderId(leader.0 ^ 1);
    assert!(!migrate(&mut connection, leader), "a live member does not know the version");
    run(&mut connection, "UPDATE {schema}.members SET tables = 2 WHERE id = '2'");
    assert!(!migrate(&mut connection, other), "it does not lead");
    assert!(!later(&mut connection));
    assert!(migrate(&mut connection, leader));
    assert!(later(&mut connection));
    assert!(!migrate(&mut connection, leader), "there is nothing more to do");
}

/// Each column of the two rows, and another value of it.
const COLUMNS: [(&str, &str); 10] = [
    ("fleet", "epoch = epoch + 1"),
    ("fleet", "leader = '00000000000000000000000000000007'"),
    ("fleet", "renewals = renewals + 1"),
    ("fleet", "leader_ttl_ms = leader_ttl_ms + 1"),
    ("fleet", "address = 'another'"),
    ("fleet", "released = NOT released"),
    ("fleet", "successor = '00000000000000000000000000000007'"),
    ("journal", "leader = '00000000000000000000000000000007'"),
    ("journal", "sequence = sequence + 1"),
    ("journal", "attempt = attempt + 1"),
];

#[test]
fn every_column_of_both_rows_is_compared() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    drop(take_over(&settings));
    let mut elections = PostgresElections::open(settings.clone(), TTL, SECRET, WITHIN).unwrap();
    let mut connection = Connection::new(settings).unwrap();
    let mut set = |table: &str, change: &str| {
        let changed = connection.run(WITHIN, async |client, schema| {
            Ok(client.batch_execute(&format!("UPDATE {schema}.{table} SET {change}")).await?)
        });
        changed.unwrap();
    };
    for (table, change) in COLUMNS {
        let Answer::Read(seen) = elections.carry_out(&Request::Read, WITHIN).unwrap() else {
            panic!()
        };
        let mut new = seen.clone();
        new.leadership.epoch += 100;
        let take_over =
            Request::TakeOver { seen: seen.clone(), new: new.clone(), end_blocker: false };
        let replace =
            Request::Replace { seen: seen.leadership.clone(), new: new.leadership.clone() };
        set(table, change);
        let answer = elections.carry_out(&take_over, WITHIN).unwrap();
        assert!(matches!(answer, Answer::Differ(_)), "{change}");
        if table == "fleet" {
            let answer = elections.carry_out(&replace, WITHIN).unwrap();
            assert!(matches!(answer, Answer::Differ(_)), "{change}");
        }
        let snapshot = Snapshot { rows: Rows::default(), stamp: Stamp::default() };
        let answer = elections.rewrite(&seen, &new, snapshot, WITHIN).unwrap();
        assert!(matches!(answer, Answer::Differ(_)), "{change}");
    }
}
