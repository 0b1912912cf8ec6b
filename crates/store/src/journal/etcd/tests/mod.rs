//! The journal against a real etcd.

mod encrypted;

use std::sync::atomic::{AtomicU32, Ordering};

use lease::{Ledger, Timestamp};

use super::*;
use crate::fleet::Resolved;
use crate::journal::engine::Elections;
use crate::journal::engine_tests::{
    self, Place, SECRET, TTL, WITHIN, batch, grant, leases, ledger, load, stamp_of,
};
use crate::journal::term_journal::TermJournal;
use crate::testing::etcd::Etcd;

/// Settings with a prefix of their own.
fn settings(etcd: &Etcd) -> Settings {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("fleet {}", COUNT.fetch_add(1, Ordering::Relaxed));
    Settings::parse(&etcd.url(&prefix), &|_| None).unwrap()
}

/// Lets a new server take over, and returns its elections and its row.
fn elect(settings: &Settings) -> (EtcdElections, JournalRow) {
    let mut elections = EtcdElections::open(settings.clone(), TTL, SECRET, WITHIN).unwrap();
    let row = engine_tests::elect(&mut elections);
    (elections, row)
}

fn take_over(settings: &Settings) -> TermJournal {
    let (elections, row) = elect(settings);
    TermJournal::new(elections.journal().unwrap(), row)
}

/// A place of its own in an etcd that other tests share.
pub(in crate::journal) fn place() -> Option<Place> {
    let etcd = Etcd::shared()?;
    let settings = settings(&etcd);
    let open = move |secret| {
        let _running = &etcd;
        let elections = EtcdElections::open(settings.clone(), TTL, secret, WITHIN).unwrap();
        Box::new(elections) as Box<dyn Elections>
    };
    Some(Place { engine: "etcd", open: Box::new(open) })
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
