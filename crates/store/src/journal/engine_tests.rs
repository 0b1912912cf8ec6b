//! What every engine of a fleet does, on a real PostgreSQL and a real etcd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lease::{Change, Config, Ledger, Reason, Request as Borrow, Terms, Timestamp, WallTime};
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};

use super::committer::Committer;
use super::engine::{Attempt, Elections};
use super::rows::Rows;
use super::term_journal::TermJournal;
use super::{Journal, Restored, Snapshot, Stamp, etcd, postgres};
use crate::error::Error;
use crate::fleet::{
    self, Answer, Event, FleetSecret, JournalRow, LeaderId, Leadership, Request, Resolved,
};
use crate::records::{OperatorRecord, OperatorRecords};
use crate::term::Term;

pub(super) const WITHIN: Duration = Duration::from_secs(10);
pub(super) const TTL: Duration = Duration::from_secs(5);
pub(super) const SECRET: FleetSecret = FleetSecret([7; 32]);

/// A place for one fleet.
pub(super) struct Place {
    pub(super) engine: &'static str,
    /// Connects a server, which brings this secret for a new fleet.
    pub(super) open: Box<dyn Fn(FleetSecret) -> Box<dyn Elections> + Sync>,
}

impl Place {
    /// Lets a new server take over, and returns its elections and its row.
    fn elect(&self) -> (Box<dyn Elections>, JournalRow) {
        let mut elections = (self.open)(SECRET);
        let row = elect(&mut *elections);
        (elections, row)
    }

    /// Lets a new server take over, and returns its journal.
    fn take_over(&self) -> TermJournal {
        let (elections, row) = self.elect();
        TermJournal::new(elections.journal().unwrap(), row)
    }
}

/// Runs `check` on a new place of each engine that is installed.
fn on_each_engine(check: impl Fn(&Place)) {
    for place in [postgres::tests::place(), etcd::tests::place()].into_iter().flatten() {
        // A failure shows it.
        println!("on {}", place.engine);
        check(&place);
    }
}

/// Takes over with a new server, and returns its row.
pub(super) fn elect(elections: &mut dyn Elections) -> JournalRow {
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
            return row;
        }
    }
}

pub(super) fn load(journal: &mut TermJournal) -> (Restored, Stamp) {
    let mut restored = Restored { ledger: ledger(), records: OperatorRecords::default() };
    let stamp = journal.load(&mut restored, WITHIN).unwrap();
    restored.ledger.resume(stamp.time, stamp.next_serial, stamp.time);
    (restored, stamp)
}

pub(super) fn batch(changes: Vec<Change>) -> Rows {
    Rows::collect(changes, Vec::new())
}

pub(super) fn ledger() -> Ledger {
    Ledger::new(Config { journal: true, ..Config::default() })
}

fn terms() -> Terms<'static> {
    Terms { ttl: Duration::from_secs(60), ..Terms::default() }
}

pub(super) fn grant(ledger: &mut Ledger, organization: &str, now: Timestamp) -> Vec<Change> {
    ledger.borrow(&Borrow::session("t1r", organization), &terms(), now).unwrap();
    ledger.drain_changes().collect()
}

/// What a snapshot of the ledger has.
pub(super) fn leases(ledger: &Ledger) -> Vec<Change> {
    ledger.snapshot().collect()
}

pub(super) fn stamp_of(ledger: &Ledger) -> Stamp {
    Stamp { time: ledger.now(), next_serial: ledger.next_serial() }
}

#[test]
fn what_was_committed_is_restored() {
    on_each_engine(|place| {
        let mut journal = place.take_over();
        let mut ledger = ledger();
        let now = Timestamp::from_nanos(1_000_000_000);
        let mut changes = grant(&mut ledger, "acme", now);
        changes.extend(grant(&mut ledger, "with\0nul and \\", now));
        let outcome = journal.commit(&batch(changes), stamp_of(&ledger), WITHIN).unwrap();
        assert_eq!(outcome, Attempt::Committed);
        let (restored, stamp) = load(&mut journal);
        assert_eq!((leases(&restored.ledger), stamp), (leases(&ledger), stamp_of(&ledger)));
    });
}

#[test]
fn a_leader_that_was_deposed_commits_nothing() {
    on_each_engine(|place| {
        let mut old = place.take_over();
        // The row is unchanged for long enough in the time of the next server.
        let mut new = place.take_over();
        let mut ledger = ledger();
        let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
        assert_eq!(old.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
        assert_eq!(old.resolve(WITHIN).unwrap(), Resolved::OtherLeader);
        assert!(load(&mut new).0.ledger.is_empty());
        assert_eq!(new.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
    });
}

#[test]
fn an_unknown_commit_is_resolved_and_an_earlier_attempt_cannot_happen_later() {
    on_each_engine(|place| {
        let mut journal = place.take_over();
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
    });
}

#[test]
fn a_batch_is_committed_once() {
    on_each_engine(|place| {
        let mut journal = place.take_over();
        let mut ledger = ledger();
        let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
        let before = journal.fence.seen();
        assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Committed);
        journal.set_fence(before);
        let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(2)));
        assert_eq!(journal.commit(&rows, stamp_of(&ledger), WITHIN).unwrap(), Attempt::Differs);
        assert_eq!(load(&mut journal).0.ledger.len(), 1);
    });
}

#[test]
fn both_rows_are_compared_before_a_takeover() {
    on_each_engine(|place| {
        let (mut elections, _) = place.elect();
        let Answer::Read(seen) = elections.carry_out(&Request::Read, WITHIN).unwrap() else {
            panic!()
        };
        let take_over = |elections: &mut dyn Elections, seen: &fleet::Rows| {
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
            assert_eq!(take_over(&mut *elections, &other), Answer::Differ(seen.clone()));
            let new = other.leadership.clone();
            let replace = Request::Replace { seen: other.leadership.clone(), new };
            let answer = elections.carry_out(&replace, WITHIN).unwrap();
            let is_other = other.leadership != seen.leadership;
            assert_eq!(matches!(answer, Answer::Differ(_)), is_other, "{answer:?}");
        }
        assert!(matches!(take_over(&mut *elections, &seen), Answer::Replaced(_)));
        assert!(matches!(take_over(&mut *elections, &seen), Answer::Differ(_)));
    });
}

#[test]
fn every_kind_of_change_is_kept() {
    on_each_engine(|place| {
        let mut journal = place.take_over();
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
    });
}

#[test]
fn records_of_operators_are_kept_and_cleared() {
    on_each_engine(|place| {
        let mut journal = place.take_over();
        let key = |service: Option<&str>| OverrideKey {
            subject: Subject::Organization,
            id: "acme".into(),
            service: service.map(Into::into),
        };
        let set_at = WallTime::from_unix(1_700_000_000);
        let value = |value| Override { value, set_at, note: "why".into() };
        let set =
            |service, value| OperatorRecord::Override(OverrideChange { key: key(service), value });
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
    });
}

#[test]
fn a_journal_is_written_again_as_one_change() {
    on_each_engine(|place| {
        let (mut elections, row) = place.elect();
        let mut journal = TermJournal::new(elections.journal().unwrap(), row);
        let mut old = ledger();
        let rows = batch(grant(&mut old, "old", Timestamp::from_nanos(1)));
        assert_eq!(journal.commit(&rows, stamp_of(&old), WITHIN).unwrap(), Attempt::Committed);

        let Answer::Read(seen) = elections.carry_out(&Request::Read, WITHIN).unwrap() else {
            panic!()
        };
        let mut new = seen.clone();
        new.leadership.epoch += 1;
        new.leadership.leader = LeaderId(7);
        new.journal = JournalRow { leader: LeaderId(7), sequence: 70, attempt: 0 };
        // Its leases have other keys.
        let mut ledger = Ledger::new(Config { journal: true, seed: [1; 32], ..Config::default() });
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
    });
}

#[test]
fn servers_that_create_a_fleet_at_once_share_one_secret() {
    on_each_engine(|place| {
        let secrets = std::thread::scope(|scope| {
            let open = |number| {
                let open = &place.open;
                scope.spawn(move || open(FleetSecret([number; 32])).secret().to_text())
            };
            let opened: Vec<_> = (0..4).map(open).collect();
            opened.into_iter().map(|it| it.join().unwrap()).collect::<BTreeSet<_>>()
        });
        assert_eq!(secrets.len(), 1);
    });
}

#[test]
fn commits_go_on_after_a_rewriting_with_the_first_batch_that_is_not_in_it() {
    on_each_engine(|place| {
        let (elections, row) = place.elect();
        let [journal, mut reader] =
            [(); 2].map(|()| TermJournal::new(elections.journal().unwrap(), row));
        let term = Arc::<Term>::default();
        let mut committer = Committer::new(journal, term.clone(), WITHIN);
        let mut ledger = ledger();
        let mut commit = |committer: &mut Committer| {
            let rows = batch(grant(&mut ledger, "acme", Timestamp::from_nanos(1)));
            Journal::commit(committer, &rows, stamp_of(&ledger))
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
    });
}
