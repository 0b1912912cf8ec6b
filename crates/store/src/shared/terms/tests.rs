//! What a server of a fleet answers when its role changes.

use std::sync::Arc;
use std::time::Duration;

use lease::{Config, Ledger, Request, Terms};

use super::*;
use crate::error::Error;
use crate::journal::rows::Rows;
use crate::journal::{Journal, Snapshot};
use crate::records::OperatorRecords;
use crate::shared::{Part, Wait};
use crate::testing::ManualClock;

const ORGANIZATION: &str = "acme";

fn empty() -> Restored {
    let ledger = Ledger::new(Config { journal: true, ..Config::default() });
    Restored { ledger, records: OperatorRecords::default() }
}

/// A server without threads that serves as the leader, and the end of its validity is ten seconds away.
fn leader() -> (Arc<Shared>, Arc<ManualClock>) {
    let clock = ManualClock::new();
    let Restored { ledger, records } = empty();
    let shared = Arc::new(Shared::new(ledger, records, true, Stamp::default(), clock.clone()));
    shared.join_fleet(FleetSecret([7; 32]));
    let term = Term::default();
    term.extend(Duration::from_secs(10));
    let number = shared.lead(empty(), Stamp::default(), &term).unwrap();
    shared.serve_term(number);
    (shared, clock)
}

fn borrow(shared: &Arc<Shared>) -> Result<Wait, Unavailable> {
    let request = Request::session("t1r", ORGANIZATION);
    let (borrowed, wait) = shared.grant(&request, &Terms::default())?;
    borrowed.unwrap().delivery.complete();
    Ok(wait)
}

fn leases(shared: &Shared) -> usize {
    shared.read(Ledger::len).unwrap()
}

#[tokio::test]
async fn a_call_that_was_applied_when_the_term_ended_is_not_answered_as_not_applied() {
    let (shared, clock) = leader();
    let waiting = borrow(&shared).unwrap().unwrap();
    clock.jump(Duration::from_secs(10));
    assert_eq!(borrow(&shared).unwrap_err(), Unavailable::Lapsed);
    assert_eq!(leases(&shared), 1);
    shared.stand_by(empty());
    assert_eq!(waiting.durable().await, Err(Unavailable::TermEnded));
    assert!(!Unavailable::TermEnded.is_for_the_leader());
    // What arrives later is certainly not applied, and may be asked of the leader.
    assert_eq!(borrow(&shared).unwrap_err(), Unavailable::Standby);
    assert!(Unavailable::Standby.is_for_the_leader() && Unavailable::Lapsed.is_for_the_leader());
    assert_eq!(leases(&shared), 0);
}

#[test]
fn an_operation_that_was_applied_in_part_is_not_answered_as_not_applied() {
    let (shared, clock) = leader();
    let mut begun = None;
    let mut part = || shared.revoke_part(None, &mut begun, |_, _, _| Vec::new()).map(drop);
    assert_eq!(part(), Ok(()));
    clock.jump(Duration::from_secs(10));
    assert_eq!(part(), Err(Unavailable::TermEnded));
    shared.stand_by(empty());
    assert_eq!(part(), Err(Unavailable::TermEnded));
    // It does not go on in a later term: the first part may be lost.
    let term = Term::default();
    term.extend(Duration::from_secs(100));
    let number = shared.lead(empty(), Stamp::default(), &term).unwrap();
    shared.serve_term(number);
    assert_eq!(part(), Err(Unavailable::TermEnded));
    let first = shared.revoke_part(None, &mut None, |_, _, _| Vec::new());
    assert!(matches!(first, Ok(Part::Done(_))));
}

#[test]
fn a_leader_that_steps_down_applies_nothing_and_may_go_on() {
    let (shared, clock) = leader();
    let waiting = borrow(&shared).unwrap().unwrap();
    assert!(shared.stop_applying());
    assert_eq!(borrow(&shared).unwrap_err(), Unavailable::Standby);
    assert!(!shared.has_committed_all());
    // A renewal changes nothing of this, and nothing expires.
    shared.extend_term(Duration::from_secs(1_000));
    clock.jump(Duration::from_secs(100));
    shared.tick();
    assert_eq!(borrow(&shared).unwrap_err(), Unavailable::Standby);
    assert_eq!(leases(&shared), 1);
    shared.apply_again();
    shared.tick();
    assert_eq!(leases(&shared), 1, "it has its full TTL again");
    borrow(&shared).unwrap();
    assert!(!waiting.is_stalled());
}

#[test]
fn a_suspended_term_changes_nothing_until_its_snapshot_is_durable() {
    let (shared, clock) = leader();
    assert!(shared.snapshot().is_none(), "the term is not suspended");
    let waiting = borrow(&shared).unwrap().unwrap();
    assert!(shared.suspend_term());
    assert_eq!(borrow(&shared).unwrap_err(), Unavailable::Lapsed);
    clock.jump(Duration::from_secs(100));
    shared.tick();
    let Snapshot { rows, stamp } = shared.snapshot().unwrap();
    let Rows { granted, ended, .. } = rows;
    assert_eq!((granted.len(), ended.len()), (1, 0), "nothing has expired");
    assert!(stamp.next_serial > NUMBERS_LEFT_OUT);
    assert!(futures_util::FutureExt::now_or_never(waiting.durable()).is_none());
    shared.rewritten(|batches| assert_eq!(batches, 0));
    let settled = futures_util::FutureExt::now_or_never(waiting.durable());
    assert_eq!(settled, Some(Ok(())));
    assert!(shared.has_committed_all(), "the batch is part of the snapshot");
    shared.extend_term(Duration::from_secs(1_000));
    shared.tick();
    assert_eq!(leases(&shared), 1);
    borrow(&shared).unwrap();
}

#[test]
fn a_standby_has_nothing_to_write_again() {
    let (shared, _) = leader();
    shared.stand_by(empty());
    assert!(!shared.suspend_term());
    assert!(shared.snapshot().is_none());
}

/// A journal that only notes when it is closed.
#[derive(Debug)]
struct Noting(Arc<parking_lot::Mutex<Vec<&'static str>>>);

impl Journal for Noting {
    fn load(&mut self, _: &mut Restored) -> Result<Stamp, Error> {
        Ok(Stamp::default())
    }

    fn commit(&mut self, _: &Rows, _: Stamp) -> Result<(), Error> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        self.0.lock().push("closed");
        Ok(())
    }
}

#[test]
fn a_store_that_closes_is_first_written_again_if_its_term_is_suspended() {
    for _ in 0..20 {
        let (shared, _) = leader();
        let term = shared.terms.borrow().unwrap();
        let noted = Arc::<parking_lot::Mutex<_>>::default();
        shared.suspend_term();
        shared.close();
        let (journal, own) = (Noting(noted.clone()), shared.clone());
        let thread = std::thread::spawn(move || own.run_journal(Box::new(journal), term));
        (0..1_000).for_each(|_| std::thread::yield_now());
        shared.rewritten(|_| noted.lock().push("rewritten"));
        thread.join().unwrap();
        assert_eq!(*noted.lock(), ["rewritten", "closed"]);
    }
}
