//! The rows of the contract about usage budgets, revocation and borrow ids, sentence by sentence.

use std::time::Duration;

use crate::policy::Plain;
use lease::{
    BorrowId, Budget, BudgetSpent, Change, Config, End, Enforcement, Grant, KeptAlive, Ledger,
    Limits, MemoryFull, Period, Reason, Refusal, Released, Remembers, Report, Reporting, Request,
    Submission, Terms, Timestamp, WallTime,
};

/// 2026-11-30T23:59:00Z, a minute before a day and a month end.
const LATE_NOVEMBER: WallTime = WallTime::from_unix(1_796_083_140);
const DECEMBER: WallTime = WallTime::from_unix(1_796_083_200);
const NOW: Timestamp = Timestamp::from_nanos(1 << 60);

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(Config { journal: true, ..Config::default() });
    ledger.expire(NOW);
    ledger
}

fn budget(amount: f64, per: Period) -> Budget {
    Budget { metric: "egress_bytes".into(), amount, per }
}

fn terms(budgets: &[Budget], wall: WallTime) -> Terms<'_> {
    Terms { budgets, wall, ..Terms::default() }
}

fn session(ledger: &mut Ledger) -> Grant {
    let request = Request::session("t1r", "acme").trace("trace-a");
    ledger.borrow(&request, &Terms::default(), NOW).expect("no limit")
}

fn worker(ledger: &mut Ledger) -> Grant {
    let request = Request::worker("t2w", "acme", "trace-a", 10);
    ledger.borrow(&request, &Terms::default(), NOW).expect("no limit")
}

fn report(ledger: &mut Ledger, value: f64, wall: WallTime) {
    report_of(ledger, &[("acme", value)], wall);
}

fn report_of(ledger: &mut Ledger, egress: &[(&str, f64)], wall: WallTime) {
    let mut report = Report::builder();
    for &(organization, bytes) in egress {
        report.add(organization, "", &[("egress_bytes", bytes)]).expect("it can be counted");
    }
    let submission = Submission {
        caller: None,
        idempotency_key: None,
        report: report.build(),
        organizations: Vec::new(),
    };
    let mut reporting = Reporting::new(submission, wall);
    while !reporting.is_done() {
        ledger.report(&(), wall, &mut reporting, NOW).expect("a valid report");
    }
}

#[test]
fn a_spent_budget_refuses_with_the_metric_the_numbers_and_the_reset() {
    let mut ledger = ledger();
    let budgets = [budget(100.0, Period::Month)];
    let request = Request::session("t1r", "acme");
    report(&mut ledger, 99.5, LATE_NOVEMBER);
    assert!(ledger.borrow(&request, &terms(&budgets, LATE_NOVEMBER), NOW).is_ok());
    report(&mut ledger, 0.5, LATE_NOVEMBER);
    let refused = ledger.borrow(&request, &terms(&budgets, LATE_NOVEMBER), NOW).unwrap_err();
    let spent = BudgetSpent {
        metric: "egress_bytes".into(),
        used: 100.0,
        amount: 100.0,
        per: Period::Month,
        resets_at: DECEMBER,
    };
    assert_eq!(refused, Refusal::BudgetSpent(spent));
    let message = "usage budget spent: egress_bytes 100 B of 100 B per month, \
                   resets at 2026-12-01T00:00:00Z";
    assert_eq!(refused.to_string(), message);
}

#[test]
fn a_budget_is_whole_again_when_a_new_window_begins() {
    for per in [Period::Day, Period::Month] {
        let mut ledger = ledger();
        report(&mut ledger, 100.0, LATE_NOVEMBER);
        let budgets = [budget(100.0, per)];
        assert!(ledger.spent("acme", &budgets, LATE_NOVEMBER).is_some());
        assert_eq!(ledger.spent("acme", &budgets, DECEMBER), None);
        assert_eq!(ledger.spent("globex", &budgets, LATE_NOVEMBER), None);
    }
}

#[test]
fn a_wall_clock_that_is_set_back_goes_on_counting_in_the_latest_window() {
    let mut ledger = ledger();
    report(&mut ledger, 60.0, DECEMBER);
    report(&mut ledger, 40.0, LATE_NOVEMBER);
    let budgets = [budget(100.0, Period::Month)];
    assert!(ledger.spent("acme", &budgets, LATE_NOVEMBER).is_some());
    assert!(ledger.spent("acme", &budgets, DECEMBER).is_some());
}

#[test]
fn counts_a_whole_month_past_are_forgotten_and_nothing_sooner() {
    const JANUARY: WallTime = WallTime::from_unix(1_798_761_600);
    let mut ledger = ledger();
    for (organization, wall) in [("acme", LATE_NOVEMBER), ("globex", DECEMBER)] {
        report_of(&mut ledger, &[(organization, 1.0)], wall);
    }
    let counted = |ledger: &Ledger| -> Vec<String> {
        let counts = ledger.usage(0).expect("there are counts");
        counts.map(|(organization, _, _)| organization.to_owned()).collect()
    };
    ledger.drain_changes().for_each(drop);
    // An empty report forgets old counts, too.
    report_of(&mut ledger, &[], DECEMBER);
    assert_eq!(counted(&ledger), ["acme", "globex"]);
    report_of(&mut ledger, &[], JANUARY);
    assert_eq!(counted(&ledger), ["globex"]);
    let (organization, metric) = ("acme".into(), "egress_bytes".into());
    let changes: Vec<Change> = ledger.drain_changes().collect();
    assert_eq!(changes, [Change::Unused { organization, metric }]);
    assert_eq!(ledger.used("acme").count(), 0);
}

#[test]
fn a_budget_of_zero_is_spent_from_the_start() {
    assert!(ledger().spent("acme", &[budget(0.0, Period::Day)], DECEMBER).is_some());
}

#[test]
fn a_spent_budget_is_looked_at_before_the_limits() {
    let mut ledger = ledger();
    let budgets = [budget(0.0, Period::Day)];
    let limits = Limits { service: Some(0), ..Limits::default() };
    let terms = Terms { limits, ..terms(&budgets, DECEMBER) };
    let refused = ledger.borrow(&Request::session("t1r", "acme"), &terms, NOW);
    assert!(matches!(refused, Err(Refusal::BudgetSpent(_))));
}

#[test]
fn a_borrow_of_an_observed_service_is_granted_over_a_spent_budget_and_says_so() {
    let mut ledger = ledger();
    let budgets = [budget(0.0, Period::Day)];
    let observed = Terms { observe: true, ..terms(&budgets, DECEMBER) };
    let grant = ledger.borrow(&Request::session("t1r", "acme"), &observed, NOW).expect("observed");
    assert!(matches!(grant.observed.as_deref(), Some(Refusal::BudgetSpent(_))));
    assert_eq!(grant.pool.borrowed, 1);
}

#[test]
fn a_revoked_lease_frees_its_slot_and_answers_its_reason_for_ten_minutes_or_ten_ttls() {
    let reasons = [
        Reason::Operator,
        Reason::OrganizationDisabled,
        Reason::ApiKeyDisabled,
        Reason::BudgetSpent,
    ];
    for reason in reasons {
        for (ttl, memory) in [(10, 600), (90, 900)] {
            let mut ledger = ledger();
            let terms = Terms { ttl: Duration::from_secs(ttl), ..Terms::default() };
            let request = Request::session("t1r", "acme").indexer("west");
            let id = ledger.borrow(&request, &terms, NOW).expect("no limit").id;
            assert!(ledger.revoke(id, reason, NOW));
            assert!(ledger.is_empty());
            let last = NOW + (Duration::from_secs(memory) - Duration::from_nanos(1));
            let kept = ledger.keep_alive(id, Some("west"), last);
            assert_eq!(kept, KeptAlive::Revoked(reason.into()));
            // For another indexer the lease does not exist, and a return finds no lease.
            assert_eq!(ledger.keep_alive(id, Some("east"), last), KeptAlive::Failed);
            assert_eq!(ledger.release(id, Some("west"), Duration::ZERO, last), Released::Missing);
            let after = NOW + Duration::from_secs(memory);
            assert_eq!(ledger.keep_alive(id, Some("west"), after), KeptAlive::Failed);
        }
    }
}

#[test]
fn the_reason_of_a_revocation_survives_a_restart() {
    let mut ledger = ledger();
    let id = session(&mut ledger).id;
    ledger.revoke(id, Reason::BudgetSpent, NOW);
    let mut restarted = Ledger::new(Config::default());
    for change in ledger.snapshot() {
        restarted.restore(change).expect("a snapshot restores");
    }
    restarted.resume(NOW, ledger.next_serial(), NOW + Duration::from_secs(30));
    let kept = restarted.keep_alive(id, None, NOW + Duration::from_secs(60));
    assert_eq!(kept, KeptAlive::Revoked(Reason::BudgetSpent.into()));
}

#[test]
fn revocations_are_never_refused_and_an_indexer_with_too_many_remembered_borrows_nothing() {
    let mut ledger = Ledger::new(Config { max_leases: 8, ..Config::default() });
    let request = Request::session("t1r", "acme").indexer("west");
    let borrow = |ledger: &mut Ledger, request, now| {
        ledger.borrow(&request, &Terms::default(), now).map(|grant| grant.id)
    };
    // The ledger remembers at least 1,024 revocations per indexer.
    let mut last = None;
    for _ in 0..1_024 / 8 {
        let held: Vec<_> = (0..8).map(|_| borrow(&mut ledger, request, NOW)).collect();
        for id in held {
            last = id.ok();
            assert!(ledger.revoke(last.expect("there is room"), Reason::Operator, NOW));
        }
    }
    let full =
        MemoryFull { memory: Remembers::Revocations, indexer: Some("west".into()), most: 1_024 };
    let refused = borrow(&mut ledger, request, NOW);
    assert_eq!(refused, Err(Refusal::MemoryFull(full.clone())));
    assert_eq!(
        full.to_string(),
        "1024 revocations of indexer \"west\" are remembered, the most there may be"
    );
    let kept = ledger.keep_alive(last.expect("granted"), Some("west"), NOW);
    assert_eq!(kept, KeptAlive::Revoked(Reason::Operator.into()), "none is forgotten to make room");
    let other = borrow(&mut ledger, request.indexer("east"), NOW).expect("another has room");
    assert!(ledger.revoke(other, Reason::Operator, NOW));
    let later = NOW + Duration::from_secs(600);
    assert!(borrow(&mut ledger, request, later).is_ok());
}

#[test]
fn a_borrow_id_whose_lease_ended_buys_nothing_after_a_restart_either() {
    let mut ledger = ledger();
    let request = Request::session("t1r", "acme").indexer("west");
    let returned = request.borrow_id(BorrowId(1));
    let undone = request.borrow_id(BorrowId(2));
    let early = request.borrow_id(BorrowId(3));
    let id = ledger.borrow(&returned, &Terms::default(), NOW).expect("no limit").id;
    ledger.release(id, Some("west"), Duration::ZERO, NOW);
    let id = ledger.borrow(&undone, &Terms::default(), NOW).expect("no limit").id;
    ledger.undo(id, undone.borrow_id, NOW);
    let missing = ledger.release_borrow(BorrowId(3), Some("west"), Duration::ZERO, NOW);
    assert_eq!(missing, Ok(Released::Missing));

    let mut restarted = Ledger::new(Config::default());
    for change in ledger.drain_changes() {
        // A store has no row of a lease that has ended, and all leases of this test have ended.
        if !matches!(change, Change::Granted(_) | Change::Ended { .. }) {
            restarted.restore(change).expect("what was said restores");
        }
    }
    restarted.resume(NOW, ledger.next_serial(), NOW);
    let mut borrow = |request: Request<'_>, now| {
        restarted.borrow(&request, &Terms::default(), now).map(|grant| grant.replayed)
    };
    assert_eq!(borrow(returned, NOW), Err(Refusal::BorrowEnded));
    assert_eq!(borrow(returned.trace("a"), NOW), Err(Refusal::BorrowIdReused));
    assert_eq!(borrow(early.trace("a"), NOW), Err(Refusal::BorrowEnded));
    assert_eq!(borrow(returned.indexer("east"), NOW), Ok(false), "another's id is its own");
    assert_eq!(borrow(undone, NOW), Ok(false), "nobody heard of it");
    assert_eq!(borrow(returned, NOW + Duration::from_secs(60)), Ok(false));
}

#[test]
fn a_worker_that_ended_with_its_session_is_gone_and_not_revoked() {
    let mut ledger = ledger();
    let (session, worker) = (session(&mut ledger).id, worker(&mut ledger).id);
    ledger.drain_changes().for_each(drop);
    ledger.revoke(session, Reason::Operator, NOW);
    assert_eq!(ledger.keep_alive(session, None, NOW), KeptAlive::Revoked(Reason::Operator.into()));
    assert_eq!(ledger.keep_alive(worker, None, NOW), KeptAlive::Failed);
    let ends: Vec<End> = ledger
        .drain_changes()
        .filter_map(|change| match change {
            lease::Change::Ended { end, .. } => Some(end),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [End::Revoked(Reason::Operator), End::WithSession]);
}

#[test]
fn disabling_an_organization_gives_its_workers_the_reason_too() {
    let mut ledger = ledger();
    let held = [session(&mut ledger).id, worker(&mut ledger).id];
    let other = ledger.borrow(&Request::session("t1r", "globex"), &Terms::default(), NOW);
    let policy = Plain { disabled: vec!["acme"], ..Plain::default() };
    let mut enforcement = Enforcement::of_policy(&policy, ["acme", "globex"], []);
    let mut revoked = Vec::new();
    while !enforcement.is_done() {
        revoked.extend(ledger.enforce(&policy, DECEMBER, &mut enforcement, NOW));
    }
    let disabled = || Reason::OrganizationDisabled.into();
    assert_eq!(revoked, [(held[1], disabled()), (held[0], disabled())]);
    for id in held {
        let kept = ledger.keep_alive(id, None, NOW);
        assert_eq!(kept, KeptAlive::Revoked(Reason::OrganizationDisabled.into()));
    }
    let other = other.expect("no limit").id;
    assert!(matches!(ledger.keep_alive(other, None, NOW), KeptAlive::Extended { .. }));
}

#[test]
fn a_lowered_limit_ends_no_lease_and_refuses_until_the_count_fits() {
    let mut ledger = ledger();
    let held: Vec<_> = (0..3).map(|_| session(&mut ledger).id).collect();
    let limits = Limits { organization: Some(1), ..Limits::default() };
    let lowered = Terms { limits, ..Terms::default() };
    let request = Request::session("t1r", "acme");
    for (returned, id) in held.into_iter().enumerate() {
        let refused = ledger.borrow(&request, &lowered, NOW).unwrap_err();
        let Refusal::Denied(denied) = refused else { panic!("denied, not {refused}") };
        assert_eq!((denied.active, denied.max), (3 - returned as u64, 1));
        assert!(matches!(ledger.keep_alive(id, None, NOW), KeptAlive::Extended { .. }));
        ledger.release(id, None, Duration::ZERO, NOW);
    }
    assert!(ledger.borrow(&request, &lowered, NOW).is_ok());
}

#[test]
fn a_retry_gets_the_same_lease_with_its_full_ttl_again() {
    let mut ledger = ledger();
    let request = Request::session("t1r", "acme").borrow_id(BorrowId(7));
    let granted = ledger.borrow(&request, &Terms::default(), NOW).expect("no limit");
    let late = NOW + (granted.ttl - Duration::from_nanos(1));
    let again = ledger.borrow(&request, &Terms::default(), late).expect("replayed");
    assert_eq!(again, Grant { replayed: true, ..granted });
    let alive = ledger.keep_alive(again.id, None, late + (granted.ttl - Duration::from_nanos(1)));
    assert_eq!(alive, KeptAlive::Extended { ttl: granted.ttl });
}

#[test]
fn a_borrow_id_with_another_request_is_refused_and_another_indexers_is_its_own() {
    let mut ledger = ledger();
    let request = Request::session("t1r", "acme").indexer("west").borrow_id(BorrowId(7));
    let first = ledger.borrow(&request, &Terms::default(), NOW).expect("no limit");
    let others = [
        Request { service: "t2w", ..request },
        Request { organization: "globex", ..request },
        Request { api_key: "key-1", ..request },
        Request { trace: "0", ..request },
        Request { max_workers: 1, ..request },
    ];
    for other in others {
        let refused = ledger.borrow(&other, &Terms::default(), NOW);
        assert_eq!(refused, Err(Refusal::BorrowIdReused), "{other:?}");
    }
    let east = ledger.borrow(&request.indexer("east"), &Terms::default(), NOW).expect("its own");
    assert_ne!(east.id, first.id);
}

/// This test measures no time. If each end of a session looked at all sessions, the test would take
/// 10^10 steps and run for minutes.
#[test]
fn the_workers_of_a_session_are_found_without_looking_at_other_sessions() {
    const SESSIONS: usize = 100_000;
    let mut ledger = Ledger::new(Config::default());
    let mut held = Vec::with_capacity(SESSIONS);
    for number in 0..SESSIONS {
        let trace = format!("trace-{number}");
        let session = Request::session("t1r", "acme").trace(&trace);
        let session = ledger.borrow(&session, &Terms::default(), NOW).expect("no limit").id;
        let worker = Request::worker("t2w", "acme", &trace, 1);
        let worker = ledger.borrow(&worker, &Terms::default(), NOW).expect("no limit").id;
        held.push((session, worker));
    }
    for (ended, (session, worker)) in held.into_iter().enumerate() {
        assert_eq!(ledger.release(session, None, Duration::ZERO, NOW), Released::Returned);
        assert_eq!(ledger.keep_alive(worker, None, NOW), KeptAlive::Failed);
        assert_eq!(ledger.len(), 2 * (SESSIONS - ended - 1));
    }
}

#[test]
fn a_borrow_under_the_terms_of_a_policy_before_the_one_in_force_is_refused_and_changes_nothing() {
    let mut ledger = ledger();
    let request = Request::session("t1r", "acme").borrow_id(BorrowId(7));
    let under = |policy| Terms { policy, ..Terms::default() };
    let held = ledger.borrow(&request, &under(3), NOW).expect("no limit");
    ledger.refuse_terms_before(4);
    ledger.drain_changes().for_each(drop);
    let before = ledger.revision();
    for asked in [request, Request::session("t1r", "other")] {
        assert_eq!(ledger.borrow(&asked, &under(3), NOW), Err(Refusal::OldTerms));
    }
    assert_eq!((ledger.revision(), ledger.drain_changes().count(), ledger.len()), (before, 0, 1));
    // An older policy that arrives late does not replace the newer one.
    ledger.refuse_terms_before(2);
    assert_eq!(ledger.borrow(&request, &under(3), NOW), Err(Refusal::OldTerms));
    let again = ledger.borrow(&request, &under(4), NOW).expect("the lease that is there");
    assert!(again.replayed && again.id == held.id);
    assert!(ledger.borrow(&Request::session("t1r", "other"), &under(5), NOW).is_ok());
}
