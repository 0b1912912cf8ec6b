//! While the revocation of a session is remembered, no worker is borrowed under that session.

use std::time::Duration;

use crate::policy::Plain;
use lease::{
    Budget, BudgetSpent, Change, Config, KeptAlive, LeaseId, Ledger, Limits, Period, Reason,
    Refusal, Report, Reporting, Request, Scope, Submission, Terms, Timestamp, WallTime,
};

const NOW: Timestamp = Timestamp::from_nanos(1 << 60);
/// The longer of ten minutes and ten TTLs.
const MEMORY: Duration = Duration::from_secs(600);
const MOMENT: Duration = Duration::from_nanos(1);

const SESSION: Request<'_> = Request::session("t1r", "acme").trace("trace-a").indexer("west");
const WORKER: Request<'_> = Request::worker("t2w", "acme", "trace-a", 9).indexer("west");

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(Config { journal: true, ..Config::default() });
    ledger.expire(NOW);
    ledger
}

fn borrow(ledger: &mut Ledger, request: &Request<'_>, now: Timestamp) -> Result<LeaseId, Refusal> {
    let grant = ledger.borrow(request, &Terms::default(), now);
    assert_eq!(ledger.audit(), Ok(()));
    grant.map(|grant| grant.id)
}

fn refused(ledger: &mut Ledger, request: &Request<'_>, now: Timestamp) -> Option<Reason> {
    match borrow(ledger, request, now) {
        Ok(_) => None,
        Err(Refusal::Revoked(why)) => Some(why.reason),
        Err(other) => panic!("{other}"),
    }
}

fn revoked(ledger: &mut Ledger, session: &Request<'_>, reason: Reason, now: Timestamp) -> LeaseId {
    let id = borrow(ledger, session, now).expect("a session is granted after a revocation too");
    assert!(ledger.revoke(id, reason, now));
    id
}

#[test]
fn a_worker_is_refused_for_the_reason_of_its_session_while_that_is_remembered() {
    for reason in [Reason::Operator, Reason::OrganizationDisabled, Reason::ApiKeyDisabled] {
        let mut ledger = ledger();
        revoked(&mut ledger, &SESSION, reason, NOW);
        let last = NOW + (MEMORY - MOMENT);
        for now in [NOW, last] {
            assert_eq!(refused(&mut ledger, &WORKER, now), Some(reason));
            assert_eq!(
                refused(&mut ledger, &Request { service: "x", ..WORKER }, now),
                Some(reason)
            );
        }
        assert_eq!(refused(&mut ledger, &WORKER, NOW + MEMORY), None);
    }
}

#[test]
fn no_other_trace_is_refused_and_no_worker_without_one() {
    let mut ledger = ledger();
    revoked(&mut ledger, &SESSION, Reason::Operator, NOW);
    for other in [
        WORKER.trace("trace-b"),
        WORKER.trace(""),
        WORKER.trace("0000"),
        WORKER.indexer("east"),
        Request { indexer: None, ..WORKER },
        Request { organization: "globex", ..WORKER },
    ] {
        assert_eq!(refused(&mut ledger, &other, NOW), None, "{other:?}");
    }
    // The revocation of a session without a trace affects no workers.
    revoked(&mut ledger, &SESSION.trace("0000"), Reason::Operator, NOW);
    assert_eq!(refused(&mut ledger, &WORKER.trace("0000"), NOW), None);
}

#[test]
fn the_revocation_of_a_worker_does_not_affect_its_trace() {
    let mut ledger = ledger();
    let worker = borrow(&mut ledger, &WORKER, NOW).expect("no session is needed");
    assert!(ledger.revoke(worker, Reason::Operator, NOW));
    assert_eq!(refused(&mut ledger, &WORKER, NOW), None);
}

#[test]
fn a_trace_with_a_live_session_has_workers_whatever_was_revoked() {
    let mut ledger = ledger();
    let other = borrow(&mut ledger, &SESSION, NOW).expect("no limit");
    revoked(&mut ledger, &SESSION, Reason::Operator, NOW);
    assert_eq!(refused(&mut ledger, &WORKER, NOW), None, "another session is live");
    ledger.release(other, Some("west"), Duration::ZERO, NOW);
    assert_eq!(refused(&mut ledger, &WORKER, NOW), Some(Reason::Operator));
    let later = borrow(&mut ledger, &SESSION, NOW).expect("the policy admits it");
    assert_eq!(refused(&mut ledger, &WORKER, NOW), None, "a later session is live");
    // The later session is past its end, and not taken out yet.
    let ended = NOW + Duration::from_secs(60);
    ledger.pause_expiry(true);
    assert_eq!(
        ledger.keep_alive(later, Some("west"), NOW + Duration::ZERO),
        KeptAlive::Extended { ttl: Duration::from_secs(60) }
    );
    assert_eq!(refused(&mut ledger, &WORKER, ended), Some(Reason::Operator));
}

#[test]
fn of_several_revoked_sessions_the_one_remembered_longest_gives_the_reason() {
    let long = Terms { ttl: Duration::from_secs(600), ..Terms::default() };
    for long_first in [true, false] {
        let mut ledger = ledger();
        let with_long_ttl = |ledger: &mut Ledger| {
            let id = ledger.borrow(&SESSION, &long, NOW).expect("no limit").id;
            assert!(ledger.revoke(id, Reason::ApiKeyDisabled, NOW));
        };
        if long_first {
            with_long_ttl(&mut ledger);
        }
        revoked(&mut ledger, &SESSION, Reason::Operator, NOW);
        if !long_first {
            with_long_ttl(&mut ledger);
        }
        for now in [NOW, NOW + MEMORY, NOW + (10 * long.ttl - MOMENT)] {
            assert_eq!(refused(&mut ledger, &WORKER, now), Some(Reason::ApiKeyDisabled));
        }
        assert_eq!(refused(&mut ledger, &WORKER, NOW + 10 * long.ttl), None);
    }
}

#[test]
fn a_limit_comes_first_and_an_observed_service_refuses_too() {
    let mut ledger = ledger();
    revoked(&mut ledger, &SESSION, Reason::Operator, NOW);
    let limits = Limits { organization: Some(0), ..Limits::default() };
    let refusal = ledger.borrow(&WORKER, &Terms { limits, ..Terms::default() }, NOW).unwrap_err();
    let Refusal::Denied(denied) = refusal else { panic!("{refusal}") };
    assert_eq!(denied.scope, Scope::Organization);
    let observed = Terms { limits, observe: true, ..Terms::default() };
    let refusal = ledger.borrow(&WORKER, &observed, NOW).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the session of the trace has ended: revoked by an operator",
        "observed are limits and budgets alone"
    );
}

#[test]
fn a_refusal_after_a_revocation_survives_restarts_in_whatever_order_it_is_restored() {
    let mut ledger = ledger();
    revoked(&mut ledger, &SESSION, Reason::ApiKeyDisabled, NOW);
    revoked(&mut ledger, &SESSION, Reason::Operator, NOW);
    let said: Vec<Change> =
        ledger.drain_changes().filter(|change| matches!(change, Change::Revoked(_))).collect();
    let backwards = said.iter().rev().cloned().collect();
    for mut changes in [said, backwards, ledger.snapshot().collect()] {
        // Three restarts: the second and the third use the snapshot of the ledger before.
        for _ in 0..3 {
            let mut restarted = Ledger::new(Config::default());
            for change in changes {
                restarted.restore(change).expect("what was kept restores");
            }
            restarted.resume(NOW, ledger.next_serial(), NOW);
            assert_eq!(restarted.audit(), Ok(()));
            assert_eq!(refused(&mut restarted, &WORKER, NOW), Some(Reason::Operator));
            changes = restarted.snapshot().collect();
            let last = NOW + (MEMORY - MOMENT);
            assert_eq!(refused(&mut restarted, &WORKER, last), Some(Reason::Operator));
            assert_eq!(refused(&mut restarted, &WORKER, NOW + MEMORY), None);
        }
    }
}

#[test]
fn remembered_traces_are_forgotten_with_their_revocations() {
    let mut ledger = ledger();
    for number in 0..100 {
        let trace = format!("trace-{number}");
        revoked(&mut ledger, &SESSION.trace(&trace), Reason::Operator, NOW);
    }
    let after = NOW + MEMORY;
    while ledger.has_backlog() || ledger.now() < after {
        ledger.expire(after);
    }
    assert_eq!(ledger.snapshot().count(), 0);
    assert_eq!(ledger.audit(), Ok(()));
}

#[test]
fn a_refusal_after_a_revocation_for_a_spent_budget_names_the_metric_the_numbers_and_the_reset() {
    let budget = Budget { metric: "egress_bytes".into(), amount: 10.0, per: Period::Day };
    let spent = BudgetSpent {
        metric: budget.metric.clone(),
        used: 12.0,
        amount: budget.amount,
        per: budget.per,
        resets_at: WallTime::from_unix(1_796_083_200),
    };
    let policy = Plain { budgets: [("acme", vec![budget])].into(), ..Plain::default() };
    let mut ledger = ledger();
    let session = borrow(&mut ledger, &SESSION, NOW).expect("no limit");
    let worker = borrow(&mut ledger, &WORKER, NOW).expect("no limit");
    let mut report = Report::builder();
    report.add("acme", "", &[("egress_bytes", 12.0)]).expect("it can be counted");
    let (caller, idempotency_key, organizations) = (None, None, vec!["acme".into()]);
    let report = report.build();
    let submission = Submission { caller, idempotency_key, report, organizations };
    let wall = WallTime::from_unix(1_796_000_000);
    let mut reporting = Reporting::new(submission, wall);
    while !reporting.is_done() {
        ledger.report(&policy, wall, &mut reporting, NOW).expect("a valid report");
    }
    let reported = reporting.finish();
    assert_eq!((reported.revoked, reported.spent), (2, vec![("acme".into(), spent.clone())]));
    let mut restarted = Ledger::new(Config::default());
    ledger.snapshot().for_each(|change| restarted.restore(change).expect("a snapshot restores"));
    restarted.resume(NOW, ledger.next_serial(), NOW);
    for ledger in [&mut ledger, &mut restarted] {
        for id in [session, worker] {
            let KeptAlive::Revoked(why) = ledger.keep_alive(id, Some("west"), NOW) else {
                panic!("it is remembered")
            };
            assert_eq!(why.to_string(), Refusal::BudgetSpent(spent.clone()).to_string());
        }
        let refusal = borrow(ledger, &WORKER, NOW).unwrap_err().to_string();
        assert!(refusal.ends_with(&spent.to_string()), "{refusal}");
    }
}
