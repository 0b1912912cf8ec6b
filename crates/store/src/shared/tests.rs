//! Tests that count what an operation does while it holds the lock once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lease::{Change, Config, RECORDS_PER_HOLD, Request, Terms};
use redb::backends::InMemoryBackend;

use super::*;
use crate::enforcing::Enforcing;
use crate::journal::file::{Backend, FileJournal};
use crate::journal::rows::Rows;
use crate::journal::{Journal as _, Restored};
use crate::reporting::Reporting;
use crate::testing::ManualClock;

/// A store without threads.
fn shared(journaled: bool) -> (Arc<Shared>, Arc<ManualClock>) {
    let clock = ManualClock::new();
    let mut ledger = Ledger::new(Config { journal: journaled, ..Config::default() });
    ledger.resume(Timestamp::ZERO, 1, Timestamp::ZERO);
    let stamp = Stamp::default();
    let shared = Shared::new(ledger, OperatorRecords::default(), journaled, stamp, clock.clone());
    (Arc::new(shared), clock)
}

fn borrow(shared: &Shared, leases: usize) {
    let (request, terms) = (Request::session("t1r", "acme"), Terms::default());
    for _ in 0..leases {
        let (grant, _) =
            shared.change(None, |ledger, now| ledger.borrow(&request, &terms, now)).unwrap();
        grant.unwrap();
    }
}

/// Lets a TTL pass without removing a lease.
fn pass(shared: &Shared, clock: &ManualClock) {
    for _ in 0..121 {
        clock.jump(Duration::from_millis(500));
        let mut state = shared.state.lock();
        let now = shared.now(&mut state);
        state.time.mark_handled(now);
    }
}

fn held(shared: &Shared) -> usize {
    shared.read(Ledger::len).unwrap()
}

#[test]
fn the_expiry_of_two_hundred_thousand_leases_is_many_short_holds() {
    const LEASES: usize = 200_000;
    let (shared, clock) = shared(false);
    borrow(&shared, LEASES);
    pass(&shared, &clock);
    let mut holds = 0;
    loop {
        let before = (held(&shared), shared.revision());
        shared.tick();
        holds += 1;
        let handled = before.0 - held(&shared);
        assert!(handled <= RECORDS_PER_HOLD, "{handled} in one hold");
        assert!(shared.revision() - before.1 <= RECORDS_PER_HOLD as u64);
        if !shared.read(Ledger::has_backlog).unwrap() {
            break;
        }
    }
    assert_eq!(held(&shared), 0);
    assert!(holds >= LEASES / RECORDS_PER_HOLD);
}

#[test]
fn while_the_disk_is_busy_nothing_is_taken_out_and_callers_find_room() {
    let (shared, clock) = shared(true);
    borrow(&shared, FULL_PENDING + 1);
    pass(&shared, &clock);
    for _ in 0..3 {
        shared.tick();
    }
    assert_eq!(held(&shared), FULL_PENDING + 1);
    let listed = shared.read(|ledger| ledger.listed(0).unwrap().count()).unwrap();
    assert_eq!(listed, 0, "all of them have ended");
    borrow(&shared, 1_000);
    assert_eq!(held(&shared), FULL_PENDING + 1_001, "a borrow takes nothing out in passing");
    let busy = Enforcing::new(selling(1, 100, true), None).step(&shared);
    assert!(matches!(busy, Ok(Part::Busy(_))));
    // The batch that expiry and enforcement wait for is committed.
    drop(std::mem::take(&mut shared.state.lock().pending));
    while shared.read(Ledger::has_backlog).unwrap() {
        let pending = shared.state.lock().pending.len();
        shared.tick();
        assert!(shared.state.lock().pending.len() - pending <= RECORDS_PER_HOLD);
        if shared.state.lock().pending.len() > FULL_PENDING {
            drop(std::mem::take(&mut shared.state.lock().pending));
        }
    }
    assert_eq!(held(&shared), 1_000);
}

#[test]
fn nothing_expires_while_a_thread_that_serves_calls_is_stuck() {
    let (shared, clock) = shared(false);
    let mut serving = tokio::runtime::Builder::new_current_thread();
    let serving = serving.enable_time().start_paused(true).build().unwrap();
    serving.spawn(shared.serving_threads.clone().answer_probes());
    let turn = || serving.block_on(async { tokio::time::sleep(Duration::from_millis(120)).await });
    turn();
    borrow(&shared, 1);
    let now = || shared.read(Ledger::now).unwrap();
    let step = Duration::from_millis(100);
    let tick = || {
        clock.jump(step);
        shared.tick();
    };
    for _ in 0..3 {
        tick();
        turn();
    }
    assert_eq!(now(), Timestamp::ZERO + 3 * step, "a thread that answers holds nothing up");
    // The thread does nothing for ten minutes, while the clock is read.
    (0..6_000).for_each(|_| tick());
    assert!(now() <= Timestamp::ZERO + 3 * step + lease::LONGEST_STEP);
    assert_eq!(held(&shared), 1);
    // The thread runs again, and time advances.
    let before = now();
    for _ in 0..5 {
        turn();
        tick();
    }
    assert!(now() >= before + 3 * step);
    // The thread has ended, and no probe waits for it.
    drop(serving);
    let before = now();
    (0..50).for_each(|_| tick());
    assert_eq!(now(), before + 50 * step);
}

fn in_memory() -> FileJournal {
    FileJournal::on(Backend::new(InMemoryBackend::new()), Path::new("memory"), false).unwrap()
}

#[test]
fn a_restart_in_the_middle_of_the_end_of_a_trace_revives_no_worker() {
    let mut journal = in_memory();
    let now = Timestamp::ZERO;
    let new = || Ledger::new(Config { journal: true, records_per_hold: 4, ..Config::default() });
    let mut ledger = new();
    let request = Request::session("t1r", "acme").trace("trace-a").indexer("west");
    let grant = |ledger: &mut Ledger, request: &Request<'_>| {
        ledger.borrow(request, &Terms::default(), now).unwrap().id
    };
    let session = grant(&mut ledger, &request);
    for _ in 0..20 {
        grant(&mut ledger, &Request { max_workers: 100, ..request });
    }
    ledger.release(session, Some("west"), Duration::ZERO, now);
    let again = grant(&mut ledger, &request);
    let mut restarts = 0;
    loop {
        let stamp = Stamp { time: now, next_serial: ledger.next_serial() };
        let rows = Rows::collect(ledger.drain_changes().collect(), Vec::new());
        journal.commit(&rows, stamp).unwrap();
        let mut read = Restored { ledger: new(), records: OperatorRecords::default() };
        let stamp = journal.load(&mut read).unwrap();
        let mut restored = read.ledger;
        // How many traces were still ending.
        let traces = restored.drain_changes();
        let traces = traces.filter(|change| matches!(change, Change::TraceGone(_))).count();
        restored.resume(stamp.time, stamp.next_serial, stamp.time);
        let live: Vec<_> = restored.listed(0).unwrap().map(|lease| lease.number).collect();
        assert_eq!(live, [again.number()]);
        restarts += 1;
        if !ledger.has_backlog() {
            assert_eq!(traces, 0, "nothing is kept of a trace that is gone");
            break;
        }
        assert_eq!(traces, 1);
        ledger.expire(now);
    }
    assert!(restarts > 3);
}

#[test]
fn a_store_time_that_leaves_no_room_is_refused_as_damage() {
    let mut journal = in_memory();
    let stamp = Stamp { time: Timestamp::from_nanos(u64::MAX), next_serial: 9 };
    journal.commit(&Rows::default(), stamp).unwrap();
    let ledger = Ledger::new(Config::default());
    let mut read = Restored { ledger, records: OperatorRecords::default() };
    let refused = journal.load(&mut read).unwrap_err();
    assert!(refused.to_string().contains("centuries"), "{refused}");
}

/// A policy under which acme may use `bytes` a day, or is disabled.
fn selling(number: u64, bytes: u64, disabled: bool) -> Policy {
    let file = format!(
        "[services.t1r]\n[plans.pro]\nbudgets = {{ egress_bytes = {{ amount = {bytes}, per = \"day\" \
         }} }}\n[organizations.acme]\nplan = \"pro\"\ndisabled = {disabled}"
    );
    Policy::parse(&file, "test.toml").unwrap().policy.numbered(number)
}

#[test]
fn a_revocation_that_is_under_way_spares_what_a_later_policy_allows_again() {
    let (disabled, spent) = (selling(1, 100, true), selling(1, 10, false));
    for by in [disabled, spent] {
        let again = selling(2, 100, false);
        let (shared, _) = shared(false);
        borrow(&shared, 3 * RECORDS_PER_HOLD);
        use_up(&shared, 50.0);
        shared.set_policy(&by);
        let mut enforcing = Enforcing::new(by, None);
        while held(&shared) == 3 * RECORDS_PER_HOLD {
            enforcing.step(&shared).unwrap();
        }
        let left = held(&shared);
        let gone = 3 * RECORDS_PER_HOLD - left;
        assert!(gone <= RECORDS_PER_HOLD, "{gone} are more than one part");
        shared.set_policy(&again);
        while !enforcing.is_done() {
            enforcing.step(&shared).unwrap();
        }
        assert_eq!((held(&shared), enforcing.revoked), (left, gone));
    }
}

/// Reports that acme used `bytes`.
fn use_up(shared: &Shared, bytes: f64) {
    let mut report = lease::Report::builder();
    report.add("acme", "", &[("egress_bytes", bytes)]).unwrap();
    let submission = lease::Submission {
        caller: None,
        idempotency_key: None,
        report: report.build(),
        organizations: Vec::new(),
    };
    let mut reporting = lease::Reporting::new(submission, shared.clock.wall());
    assert!(matches!(
        shared.report_part(&Policy::default(), &mut reporting, &mut None, false),
        Ok(Part::Done(_))
    ));
}

#[test]
fn a_report_that_is_under_way_ends_what_a_later_policy_forbids() {
    let (shared, _) = shared(false);
    borrow(&shared, 1);
    let (own, lowered) = (selling(1, 1_000_000_000, false), selling(2, 10, false));
    let others: Vec<String> = (0..RECORDS_PER_HOLD).map(|number| format!("aa-{number}")).collect();
    let organizations = others.iter().map(String::as_str).chain(["acme"]);
    let usage = |organization| lease::Usage { organization, metric: "egress_bytes", value: 50.0 };
    let usages: Vec<_> = organizations.map(usage).collect();
    let (report, _) = crate::UsageReport::of(None, None, &usages, Arc::new(own.clone()));
    shared.set_policy(&own);
    let mut reporting = Reporting::new(shared.clone(), report);
    reporting.step(false).unwrap();
    shared.set_policy(&lowered);
    while !reporting.is_done() {
        reporting.step(false).unwrap();
    }
    assert_eq!((held(&shared), reporting.finish().0.revoked), (0, 1));
}
