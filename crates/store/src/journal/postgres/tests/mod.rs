//! The journal against a real PostgreSQL.

pub(crate) mod encrypted;

pub(crate) use crate::testing::cluster;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lease::{Change, Config, Ledger, Reason, Request as Borrow, Terms, Timestamp};
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};

use super::*;
use crate::fleet::{self, Answer, Event, FleetSecret, Leadership, Request, Resolved};
use crate::journal::committer::Committer;
use crate::journal::term_journal::TermJournal;
use crate::records::{OperatorRecord, OperatorRecords};
use cluster::Cluster;

const WITHIN: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(5);
const SECRET: FleetSecret = FleetSecret([7; 32]);

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
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap();
    let member = fleet::MemberId(1);
    let config = fleet::Config { leader_ttl: TTL, address: "10.0.0.1:9010".into(), member, seed };
    let mut leadership = Leadership::new(config, Duration::ZERO);
    let mut now = Duration::ZERO;
    loop {
        now = leadership.poll_timeout().unwrap_or(now).max(now);
        let Some(request) = leadership.poll(now) else { continue };
        let answer = elections.carry_out(&request, WITHIN).unwrap();
        if let Some(Event::Elected(row)) = leadership.handle_answer(answer, now) {
            return TermJournal::new(Elections::journal(&elections).unwrap(), row);
        }
    }
}

fn load(journal: &mut TermJournal) -> (Restored, Stamp) {
    let mut restored = Restored { ledger: ledger(), records: OperatorRecords::default() };
    let stamp = journal.load(&mut restored, WITHIN).unwrap();
    restored.ledger.resume(stamp.time, stamp.next_serial, stamp.time);
    (restored, stamp)
}

fn batch(changes: Vec<Change>) -> Rows {
    Rows::collect(changes, Vec::new())
}

fn ledger() -> Ledger {
    Ledger::new(Config { journal: true, ..Config::default() })
}

fn terms() -> Terms<'static> {
    Terms { ttl: Duration::from_secs(60), ..Terms::default() }
}

fn grant(ledger: &mut Ledger, organization: &str, now: Timestamp) -> Vec<Change> {
    ledger.borrow(&Borrow::session("t1r", organization), &terms(), now).unwrap();
    ledger.drain_changes().collect()
}

/// What a snapshot of the ledger has.
fn leases(ledger: &Ledger) -> Vec<Change> {
    ledger.snapshot().collect()
}

fn stamp_of(ledger: &Ledger) -> Stamp {
    Stamp { time: ledger.now(), next_serial: ledger.next_serial() }
}

#[test]
fn what_was_committed_is_restored() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let mut journal = take_over(&settings);
    let mut ledger = ledger();
    let now = Timestamp::from_nanos(1_000_000_000);
    let mut changes = grant(&mut ledger, "acme", now);
    changes.extend(grant(&mut ledger, "with\0nul and \\", now));
    let outcome = journal.commit(&batch(changes.clone()), stamp_of(&ledger), WITHIN).unwrap();
    assert_eq!(outcome, Attempt::Committed);
    let (restored, stamp) = load(&mut journal);
    assert_eq!((leases(&restored.ledger), stamp), (leases(&ledger), stamp_of(&ledger)));
}

#[test]
fn a_leader_that_was_deposed_commits_nothing() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let mut old = take_over(&settings);
    // The row is unchanged for long enough in the time of the next server.
    let mut new = take_over(&settings);
    let mut ledger = ledger();
    let changes = grant(&mut ledger, "acme", Timestamp::from_nanos(1));
    let rows = batch(changes);
    assert_eq!(old.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
    assert_eq!(old.resolve(WITHIN).unwrap(), Resolved::OtherLeader);
    assert!(load(&mut new).0.ledger.is_empty());
    assert_eq!(new.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
}

#[test]
fn an_unknown_commit_is_resolved_and_an_earlier_attempt_cannot_happen_later() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let mut journal = take_over(&settings);
    let mut ledger = ledger();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    let stamp = stamp_of(&ledger);
    // Its own fence does not know of the commit, as when the acknowledgement was lost.
    let before = journal.fence;
    assert_eq!(journal.commit(&rows, stamp, WITHIN).unwrap(), Attempt::Committed);
    journal.fence = before;
    assert_eq!(journal.resolve(WITHIN).unwrap(), Resolved::Committed);
    // The next one does not happen: a resolution comes first, and the late attempt finds it.
    let late = journal.fence;
    assert_eq!(journal.resolve(WITHIN).unwrap(), Resolved::NotCommitted);
    let raised = journal.fence;
    journal.fence = late;
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(2)));
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
    journal.fence = raised;
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    assert_eq!(load(&mut journal).0.ledger.len(), 2);
}

#[test]
fn every_kind_of_change_is_kept() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let mut journal = take_over(&settings);
    let mut ledger = ledger();
    let at = |seconds: u64| Timestamp::from_nanos(seconds * 1_000_000_000);
    let commit = |journal: &mut TermJournal, ledger: &mut Ledger| {
        let changes: Vec<_> = ledger.drain_changes().collect();
        let stamp = stamp_of(ledger);
        assert_eq!(journal.commit(&batch(changes), stamp, WITHIN).unwrap(), Attempt::Committed);
    };
    let lingers = ledger.borrow(&Borrow::session("t1r", "acme"), &terms(), at(1)).unwrap();
    let revoked = ledger.borrow(&Borrow::session("t1r", "acme"), &terms(), at(1)).unwrap();
    let ended = ledger.borrow(&Borrow::session("t1r", "acme"), &terms(), at(1)).unwrap();
    commit(&mut journal, &mut ledger);
    let _ = ledger.release(lingers.id, None, Duration::from_secs(30), at(2));
    let _ = ledger.release(ended.id, None, Duration::ZERO, at(2));
    ledger.revoke(revoked.id, Reason::Operator, at(2));
    commit(&mut journal, &mut ledger);

    let mut again = load(&mut journal).0.ledger;
    assert_eq!(again.len(), 1);
    assert_eq!(
        format!("{:?}", again.keep_alive(revoked.id, None, at(3))),
        format!("{:?}", ledger.keep_alive(revoked.id, None, at(3)))
    );
}

#[test]
fn records_of_operators_are_kept_and_cleared() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let mut journal = take_over(&settings);
    let key = |service: Option<&str>| OverrideKey {
        subject: Subject::Organization,
        id: "acme".into(),
        service: service.map(Into::into),
    };
    let value = |value| Override {
        value,
        set_at: lease::WallTime::from_unix(1_700_000_000),
        note: "why".into(),
    };
    let set =
        |service, to| OperatorRecord::Override(OverrideChange { key: key(service), value: to });
    let audit = |number, ended| {
        OperatorRecord::Audit(AuditEntry {
            number,
            at: lease::WallTime::from_unix(1_700_000_000),
            from: "127.0.0.1:1".into(),
            action: "limit".into(),
            note: "why".into(),
            ended,
        })
    };
    let records = vec![
        set(Some("t1r"), Some(value(1))),
        set(Some("t1r"), Some(value(7))),
        set(None, Some(value(1))),
        audit(1, 0),
        audit(1, 3),
    ];
    let rows = Rows::collect(Vec::new(), records);
    journal.commit(&rows, Stamp::default(), WITHIN).unwrap();
    let rows = Rows::collect(Vec::new(), vec![set(None, None), audit(2, 0)]);
    journal.commit(&rows, Stamp::default(), WITHIN).unwrap();
    let (restored, _) = load(&mut journal);
    let overrides = &restored.records.overrides;
    assert_eq!(overrides.iter().collect::<Vec<_>>(), [(&key(Some("t1r")), &value(7))]);
    let ended: Vec<_> = restored.records.audit.iter().map(|e| (e.number, e.ended)).collect();
    assert_eq!(ended, [(1, 3), (2, 0)]);
}

#[test]
fn two_servers_may_create_the_tables_at_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| PostgresElections::open(settings.clone(), TTL, SECRET, WITHIN).unwrap());
        }
    });
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

#[test]
fn commits_go_on_after_a_rewriting_with_the_first_batch_that_is_not_in_it() {
    let Some(cluster) = Cluster::shared() else { return };
    let settings = settings(&cluster);
    let journal = take_over(&settings);
    let row = journal.fence.seen();
    let mut reader = TermJournal::new(Box::new(PostgresJournal::new(settings).unwrap()), row);
    let term = std::sync::Arc::<crate::term::Term>::default();
    let mut committer = Committer::new(journal, term.clone(), WITHIN);
    let mut ledger = ledger();
    let mut commit = |committer: &mut Committer| {
        let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
        crate::journal::Journal::commit(committer, &rows, stamp_of(&ledger))
    };
    commit(&mut committer).unwrap();
    assert_eq!((load(&mut reader).0.ledger.len(), term.sequence()), (1, Some(1)));
    // The second batch is part of what was written, and the third one is not.
    term.suspend();
    assert_eq!(term.sequence(), None);
    term.rewritten(JournalRow { sequence: 1, ..row }, 2);
    assert_eq!(term.sequence(), None, "what was committed before says nothing now");
    commit(&mut committer).unwrap();
    assert_eq!((load(&mut reader).0.ledger.len(), term.sequence()), (1, Some(1)));
    commit(&mut committer).unwrap();
    assert_eq!((load(&mut reader).0.ledger.len(), term.sequence()), (2, Some(2)));
    // The fourth batch came after what was written.
    term.rewritten(JournalRow { sequence: 2, ..row }, 3);
    commit(&mut committer).unwrap();
    assert_eq!((load(&mut reader).0.ledger.len(), term.sequence()), (3, Some(3)));
    term.end();
    assert!(matches!(commit(&mut committer), Err(Error::Deposed)));
}
