//! The journal against a real etcd.

mod encrypted;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use lease::{Change, Config, Ledger, Reason, Request as Borrow, Terms, Timestamp, WallTime};
use policy::overrides::{AuditEntry, Override, OverrideKey, Subject};

use super::*;
use crate::fleet::{self, Answer, Event, FleetSecret, Leadership, Request, Resolved};
use crate::journal::Snapshot;
use crate::journal::engine::Elections as _;
use crate::journal::term_journal::TermJournal;
use crate::records::OperatorRecord;
use crate::records::OperatorRecords;
use crate::testing::etcd::Etcd;

const WITHIN: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(5);
const SECRET: FleetSecret = FleetSecret([7; 32]);

/// Settings with a prefix of their own.
fn settings(etcd: &Etcd) -> Settings {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("fleet {}", COUNT.fetch_add(1, Ordering::Relaxed));
    Settings::parse(&etcd.url(&prefix), &|_| None).unwrap()
}

/// Lets a new server take over, and returns its elections and its row.
fn elect(settings: &Settings) -> (EtcdElections, JournalRow) {
    let mut elections = EtcdElections::open(settings.clone(), TTL, SECRET, WITHIN).unwrap();
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
            return (elections, row);
        }
    }
}

fn take_over(settings: &Settings) -> TermJournal {
    let (elections, row) = elect(settings);
    TermJournal::new(elections.journal().unwrap(), row)
}

fn nothing() -> Restored {
    let ledger = Ledger::new(Config { journal: true, ..Config::default() });
    Restored { ledger, records: OperatorRecords::default() }
}

fn load(journal: &mut TermJournal) -> (Restored, Stamp) {
    let mut restored = nothing();
    let stamp = journal.load(&mut restored, WITHIN).unwrap();
    restored.ledger.resume(stamp.time, stamp.next_serial, stamp.time);
    (restored, stamp)
}

fn batch(changes: Vec<Change>) -> Rows {
    Rows::collect(changes, Vec::new())
}

fn ledger() -> Ledger {
    nothing().ledger
}

fn terms() -> Terms<'static> {
    Terms { ttl: Duration::from_secs(60), ..Terms::default() }
}

fn grant(ledger: &mut Ledger, organization: &str, now: Timestamp) -> Vec<Change> {
    ledger.borrow(&Borrow::session("t1r", organization), &terms(), now).unwrap();
    ledger.drain_changes().collect()
}

fn leases(ledger: &Ledger) -> Vec<Change> {
    ledger.snapshot().collect()
}

fn stamp_of(ledger: &Ledger) -> Stamp {
    Stamp { time: ledger.now(), next_serial: ledger.next_serial() }
}

#[test]
fn what_was_committed_is_restored() {
    let Some(etcd) = Etcd::shared() else { return };
    let mut journal = take_over(&settings(&etcd));
    let mut ledger = ledger();
    let now = Timestamp::from_nanos(1_000_000_000);
    let mut changes = grant(&mut ledger, "acme", now);
    changes.extend(grant(&mut ledger, "with\0nul and \\", now));
    let outcome = journal.commit(&batch(changes), stamp_of(&ledger), WITHIN).unwrap();
    assert_eq!(outcome, Attempt::Committed);
    let (restored, stamp) = load(&mut journal);
    assert_eq!((leases(&restored.ledger), stamp), (leases(&ledger), stamp_of(&ledger)));
}

#[test]
fn a_leader_that_was_deposed_commits_nothing() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let mut old = take_over(&settings);
    // The row is unchanged for long enough in the time of the next server.
    let mut new = take_over(&settings);
    let mut ledger = ledger();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    assert_eq!(old.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
    assert_eq!(old.resolve(WITHIN).unwrap(), Resolved::OtherLeader);
    assert!(load(&mut new).0.ledger.is_empty());
    assert_eq!(new.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
}

#[test]
fn an_unknown_commit_is_resolved_and_an_earlier_attempt_cannot_happen_later() {
    let Some(etcd) = Etcd::shared() else { return };
    let mut journal = take_over(&settings(&etcd));
    let mut ledger = ledger();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    // Its own fence does not know of the commit, as when the acknowledgement was lost.
    let before = journal.fence.seen();
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    journal.set_fence(before);
    assert_eq!(journal.resolve(WITHIN).unwrap(), Resolved::Committed);
    // The next one does not happen: a resolution comes first, and the late attempt finds it.
    let late = journal.fence.seen();
    assert_eq!(journal.resolve(WITHIN).unwrap(), Resolved::NotCommitted);
    let raised = journal.fence.seen();
    journal.set_fence(late);
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(2)));
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
    journal.set_fence(raised);
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    assert_eq!(load(&mut journal).0.ledger.len(), 2);
}

#[test]
fn a_batch_is_committed_once() {
    let Some(etcd) = Etcd::shared() else { return };
    let mut journal = take_over(&settings(&etcd));
    let mut ledger = ledger();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    let before = journal.fence.seen();
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    journal.set_fence(before);
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(2)));
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
    assert_eq!(load(&mut journal).0.ledger.len(), 1);
}

#[test]
fn both_rows_are_compared_before_a_takeover() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (mut elections, _) = elect(&settings);
    let Answer::Read(seen) = elections.carry_out(&Request::Read, WITHIN).unwrap() else { panic!() };
    let take_over = |elections: &mut EtcdElections, seen: &fleet::Rows| {
        let mut new = seen.clone();
        new.leadership.epoch += 1;
        new.leadership.leader = LeaderId(7);
        new.journal = JournalRow { leader: LeaderId(7), ..seen.journal };
        let request = Request::TakeOver { seen: seen.clone(), new, end_blocker: false };
        elections.carry_out(&request, WITHIN).unwrap()
    };
    let mut others = vec![seen.clone(); 6];
    others[0].leadership.leader = LeaderId(9);
    others[1].leadership.renewals += 1;
    others[2].leadership.released = true;
    others[3].journal.leader = LeaderId(9);
    others[4].journal.sequence += 1;
    others[5].journal.attempt += 1;
    for other in others {
        assert_eq!(take_over(&mut elections, &other), Answer::Differ(seen.clone()));
        let new = other.leadership.clone();
        let replace = Request::Replace { seen: other.leadership.clone(), new };
        let answer = elections.carry_out(&replace, WITHIN).unwrap();
        let is_other = other.leadership != seen.leadership;
        assert_eq!(matches!(answer, Answer::Differ(_)), is_other, "{answer:?}");
    }
    assert!(matches!(take_over(&mut elections, &seen), Answer::Replaced(_)));
    assert!(matches!(take_over(&mut elections, &seen), Answer::Differ(_)));
}

#[test]
fn every_kind_of_change_is_kept() {
    let Some(etcd) = Etcd::shared() else { return };
    let mut journal = take_over(&settings(&etcd));
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
    assert_eq!(leases(&again), leases(&ledger));
    assert_eq!(
        format!("{:?}", again.keep_alive(revoked.id, None, at(3))),
        format!("{:?}", ledger.keep_alive(revoked.id, None, at(3)))
    );
    // The end of a lingering goes with its lease.
    ledger.expire(at(40));
    commit(&mut journal, &mut ledger);
    assert!(load(&mut journal).0.ledger.is_empty());
}

#[test]
fn records_of_operators_are_kept_and_cleared() {
    let Some(etcd) = Etcd::shared() else { return };
    let mut journal = take_over(&settings(&etcd));
    let key = |service: Option<&str>| OverrideKey {
        subject: Subject::Organization,
        id: "acme".into(),
        service: service.map(Into::into),
    };
    let set_at = WallTime::from_unix(1_700_000_000);
    let value = |value| Override { value, set_at, note: "why".into() };
    let set = |service, value| {
        OperatorRecord::Override(policy::overrides::OverrideChange { key: key(service), value })
    };
    let audit = |number, ended| {
        OperatorRecord::Audit(AuditEntry {
            number,
            at: set_at,
            from: "127.0.0.1:1".into(),
            action: "limit".into(),
            note: "why".into(),
            ended,
        })
    };
    let mut commit = |records| {
        let rows = Rows::collect(Vec::new(), records);
        journal.commit(&rows, Stamp::default(), WITHIN).unwrap();
        load(&mut journal).0.records
    };
    commit(vec![
        set(Some("t1r"), Some(value(1))),
        set(Some("t1r"), Some(value(7))),
        set(None, Some(value(1))),
        audit(1, 0),
        audit(1, 3),
    ]);
    let records = commit(vec![set(None, None), audit(2, 0)]);
    assert_eq!(records.overrides.iter().collect::<Vec<_>>(), [(&key(Some("t1r")), &value(7))]);
    let ended: Vec<_> = records.audit.iter().map(|entry| (entry.number, entry.ended)).collect();
    assert_eq!(ended, [(1, 3), (2, 0)]);
    // A list that is too long loses its first entries.
    let records = commit(vec![audit(3, 0), OperatorRecord::AuditRemoved(1)]);
    let numbers: Vec<_> = records.audit.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, [2, 3]);
}

#[test]
fn a_batch_of_any_size_happens_as_a_whole() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (elections, row) = elect(&settings);
    // The leader ends before a part is applied.
    let (mut ledger, next) = stage(&settings, row, true);
    let mut journal = TermJournal::new(elections.journal().unwrap(), next);
    assert_eq!(leases(&load(&mut journal).0.ledger), leases(&ledger));

    // The same by way of a leader: all end.
    while !ledger.is_empty() {
        ledger.expire(Timestamp::from_nanos(100_000_000_000));
    }
    let rows = batch(ledger.drain_changes().collect());
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    assert!(load(&mut journal).0.ledger.is_empty());
}

#[test]
fn a_journal_is_written_again_as_one_change() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (mut elections, row) = elect(&settings);
    let mut journal = TermJournal::new(elections.journal().unwrap(), row);
    let mut old = ledger();
    let rows = batch(grant(&mut old, "old", Timestamp::from_nanos(1)));
    assert_eq!(journal.commit(&rows, stamp_of(&old), WITHIN).unwrap(), Attempt::Committed);

    let Answer::Read(seen) = elections.carry_out(&Request::Read, WITHIN).unwrap() else { panic!() };
    let mut new = seen.clone();
    new.leadership.epoch += 1;
    new.leadership.leader = LeaderId(7);
    new.journal = JournalRow { leader: LeaderId(7), sequence: 70, attempt: 0 };
    let mut ledger = ledger();
    let mut changes = grant(&mut ledger, "new", Timestamp::from_nanos(1));
    changes.extend(grant(&mut ledger, "new", Timestamp::from_nanos(1)));
    let mut rewrite = |seen: &fleet::Rows| {
        let content = Snapshot { rows: batch(changes.clone()), stamp: stamp_of(&ledger) };
        elections.rewrite(seen, &new, content, WITHIN).unwrap()
    };
    let mut other = seen.clone();
    other.journal.attempt += 1;
    assert_eq!(rewrite(&other), Answer::Differ(seen.clone()));
    assert_eq!(rewrite(&seen), Answer::Replaced(new.clone()));
    let rows = Rows::default();
    assert_eq!(journal.commit(&rows, stamp_of(&old), WITHIN).unwrap(), Attempt::Differs);
    assert_eq!(journal.resolve(WITHIN).unwrap(), Resolved::OtherLeader);
    assert_eq!(leases(&load(&mut journal).0.ledger), leases(&ledger));
}

#[test]
fn two_servers_may_create_the_keys_at_once() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let secrets = std::thread::scope(|scope| {
        let open = |number| {
            let settings = settings.clone();
            scope.spawn(move || {
                let secret = FleetSecret([number; 32]);
                EtcdElections::open(settings, TTL, secret, WITHIN).unwrap().secret().to_text()
            })
        };
        let opened: Vec<_> = (0..4).map(open).collect();
        opened.into_iter().map(|it| it.join().unwrap()).collect::<BTreeSet<_>>()
    });
    assert_eq!(secrets.len(), 1);
}

#[test]
fn an_unknown_version_of_the_keys_is_refused() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let mut client = Client::new(settings.clone()).unwrap();
    let write = vec![put(client.key("version"), b"99".to_vec())];
    client.transact(vec![], write, vec![], WITHIN).unwrap();
    let error = EtcdElections::open(settings, TTL, SECRET, WITHIN).unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn a_leader_compacts_old_revisions() {
    let Some(etcd) = Etcd::start(1, &[]) else { return };
    let settings = settings(&etcd);
    let (_, mut row) = elect(&settings);
    let mut client = Client::new(settings.clone()).unwrap();
    for _ in 0..KEPT_REVISIONS {
        let other = vec![put(b"other".to_vec(), Vec::new())];
        client.transact(vec![], other, vec![], WITHIN).unwrap();
    }
    let mut journal = EtcdJournal::new(settings).unwrap();
    let read_early = || etcd.try_ctl(&["get", "other", "--rev=2"]);
    for compacted in [0, 5 - COMPACT_EVERY] {
        assert_eq!(read_early(), Ok(String::new()));
        journal.compacted = compacted;
        let next = JournalRow { sequence: row.sequence + 1, ..row };
        let outcome = journal.commit(&Rows::default(), Stamp::default(), row, next, WITHIN);
        assert_eq!(outcome.unwrap(), Attempt::Committed);
        row = next;
    }
    assert!(read_early().unwrap_err().contains("has been compacted"));
    let late = journal.compacted - KEPT_REVISIONS / 2;
    assert_eq!(etcd.try_ctl(&["get", "other", &format!("--rev={late}")]).unwrap(), "other\n\n");
    assert!(load(&mut TermJournal::new(Box::new(journal), row)).0.ledger.is_empty());
}

/// Stages a batch of 10,000 grants, and returns the leases and the row that it leaves.
fn stage(settings: &Settings, row: JournalRow, happens: bool) -> (Ledger, JournalRow) {
    let mut ledger = ledger();
    let mut changes = Vec::new();
    for _ in 0..10_000 {
        changes.extend(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    }
    let mut client = Client::new(settings.clone()).unwrap();
    let (rows, stamp) = (batch(changes), stamp_of(&ledger));
    let parts = staged::parts(keys::changes(&client.key(""), &rows, stamp.time));
    assert!(parts.len() > 2);
    let next = JournalRow { sequence: row.sequence + 1, ..row };
    let mut head = counters(&client, next, stamp);
    if !happens {
        // Too much for one transaction: the parts are staged, and then the leader ends.
        let key = client.key("journal");
        head.extend((0..200).map(|_| put(key.clone(), Vec::new())));
    }
    let compare = vec![equals(client.key("journal"), journal_text(row))];
    let written = staged::write(&mut client, "it", compare, head, parts, WITHIN);
    assert_eq!(written.is_ok(), happens);
    (ledger, next)
}

#[test]
fn a_takeover_in_the_middle_of_a_batch_in_parts_has_all_of_it() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (_, row) = elect(&settings);
    let (ledger, _) = stage(&settings, row, true);
    // The leader ends after the first part.
    let mut client = Client::new(settings.clone()).unwrap();
    assert!(staged::apply_next(&mut client, WITHIN).unwrap());
    let mut next = take_over(&settings);
    assert_eq!(leases(&load(&mut next).0.ledger), leases(&ledger));
    assert_eq!(staged_keys(&etcd, &settings), "");
}

fn staged_keys(etcd: &Etcd, settings: &Settings) -> String {
    let prefix = String::from_utf8(settings.prefix.clone()).unwrap() + "staged/";
    etcd.ctl(&["get", &prefix, "--prefix", "--keys-only"])
}

#[test]
fn a_commit_finishes_an_earlier_batch_in_parts_first() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (elections, row) = elect(&settings);
    // Its outcome was unknown to the leader until it was resolved.
    let (mut ledger, next) = stage(&settings, row, true);
    let mut journal = TermJournal::new(elections.journal().unwrap(), next);
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(2)));
    let mut commit = || journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap();
    assert_eq!(commit(), Attempt::Differs);
    assert_eq!(commit(), Attempt::Committed);
    assert_eq!(leases(&load(&mut journal).0.ledger), leases(&ledger));
}

#[test]
fn a_batch_that_was_only_staged_is_read_by_nobody() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (_, row) = elect(&settings);
    stage(&settings, row, false);
    let mut next = take_over(&settings);
    assert!(load(&mut next).0.ledger.is_empty());
    let mut ledger = ledger();
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    assert_eq!(next.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    assert_eq!(load(&mut next).0.ledger.len(), 1);
}

#[test]
fn a_deposed_leader_stages_nothing_more() {
    let Some(etcd) = Etcd::shared() else { return };
    let settings = settings(&etcd);
    let (_, row) = elect(&settings);
    let mut next = take_over(&settings);
    let mut client = Client::new(settings.clone()).unwrap();
    let compare = vec![equals(client.key("journal"), journal_text(row))];
    let parts = vec![Vec::new(), Vec::new()];
    let written = staged::write(&mut client, "late", compare, Vec::new(), parts, WITHIN);
    assert!(written.unwrap().is_none());
    assert_eq!(staged_keys(&etcd, &settings), "");
    assert!(load(&mut next).0.ledger.is_empty());
}

#[test]
fn a_full_etcd_refuses_changes_and_is_used_again_when_it_has_room() {
    let Some(etcd) = Etcd::start(1, &["--quota-backend-bytes=1048576"]) else { return };
    let settings = settings(&etcd);
    let mut journal = take_over(&settings);
    let mut ledger = ledger();
    // Something else fills it.
    let mut client = Client::new(settings).unwrap();
    let mut fill = || {
        let other = put(b"other".to_vec(), vec![b'x'; 100_000]);
        client.transact(vec![], vec![other], vec![], WITHIN)
    };
    while fill().is_ok() {}
    let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
    let error = journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap_err().to_string();
    assert!(error.contains("has reached its quota"), "{error}");
    let error = journal.resolve(WITHIN).unwrap_err().to_string();
    assert!(error.contains("has reached its quota"), "{error}");

    etcd.compact();
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    assert_eq!(journal.resolve(WITHIN).unwrap(), Resolved::NotCommitted);
    assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
}

#[test]
fn a_password_is_used_and_shown_nowhere() {
    let Some(etcd) = Etcd::start(1, &[]) else { return };
    etcd.ctl(&["user", "add", "root:hunter2"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let open = |user: &str| {
        let variable = |name: &str| (name == "ETCDCTL_USER").then(|| user.to_owned());
        let settings = Settings::parse(&etcd.url("fleet"), &variable).unwrap();
        let opened = EtcdElections::open(settings, TTL, SECRET, WITHIN);
        opened.map(|elections| format!("{elections:?}")).map_err(|error| error.to_string())
    };
    let shown = open("root:hunter2").unwrap();
    assert!(!shown.contains("hunter2") && shown.contains("token: Some(Sensitive)"), "{shown}");
    let refused = open("root:hunter3").unwrap_err();
    assert!(refused.contains("see ETCDCTL_USER and ETCDCTL_PASSWORD"), "{refused}");
    assert!(!refused.contains("hunter"), "{refused}");
    let refused = open("").unwrap_err();
    assert!(refused.contains("set ETCDCTL_USER and ETCDCTL_PASSWORD"), "{refused}");
}

#[test]
fn an_etcd_that_is_not_there_is_named_without_the_password() {
    let variable = |name: &str| (name == "ETCDCTL_USER").then(|| "tgm:hunter2".to_owned());
    let settings = Settings::parse("etcd://127.0.0.1:1/x", &variable).unwrap();
    let error = EtcdElections::open(settings, TTL, SECRET, WITHIN).unwrap_err().to_string();
    assert!(error.contains("the store etcd://127.0.0.1:1/x cannot be used"), "{error}");
    assert!(error.contains("etcd cannot be reached: ") && !error.contains("hunter2"), "{error}");
}
