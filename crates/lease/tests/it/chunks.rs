//! An ended lease counts as ended at once. Ended leases are taken out in parts of any size.
//!
//! One file: the tests run the same histories with parts of different sizes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ReadWhole as _;
use crate::policy::Plain;
use lease::{
    Budget, Change, Config, End, Enforcement, KeptAlive, Lease, LeaseId, Ledger, Limits,
    MAX_TRACES_LISTED, Period, PoolReading, RECORDS_PER_HOLD, RESUME_SPREAD, Reason, Refusal,
    Released, Request, Terms, Timestamp, TraceEnd, WallTime,
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_nanos(1 << 60);
const TTL: Duration = Duration::from_secs(60);

fn ledger(records_per_hold: usize) -> Ledger {
    let mut ledger = Ledger::new(Config { journal: true, records_per_hold, ..Config::default() });
    ledger.resume(NOW, 1, NOW);
    ledger
}

fn borrow(ledger: &mut Ledger, request: &Request<'_>, now: Timestamp) -> LeaseId {
    ledger.borrow(request, &Terms::default(), now).expect("no limit").id
}

fn session(ledger: &mut Ledger, trace: &str, now: Timestamp) -> LeaseId {
    borrow(ledger, &Request::session("t1r", "acme").trace(trace), now)
}

fn workers(ledger: &mut Ledger, trace: &str, number: usize, now: Timestamp) -> Vec<LeaseId> {
    let request = Request::worker("t2w", "acme", trace, 1_000_000);
    (0..number).map(|_| borrow(ledger, &request, now)).collect()
}

fn is_live(ledger: &Ledger, id: LeaseId) -> bool {
    let listed = ledger.leases().any(|lease| lease.id == id);
    assert_eq!(listed, ledger.find(id.number()).is_some());
    listed
}

fn is_kept(ledger: &mut Ledger, id: LeaseId, now: Timestamp) -> bool {
    matches!(ledger.keep_alive(id, None, now), KeptAlive::Extended { .. })
}

fn settle(ledger: &mut Ledger, now: Timestamp) {
    while ledger.has_backlog() {
        ledger.expire(now);
    }
}

/// The state that a store keeps from the changes and restores after a restart.
#[derive(Clone, Default)]
struct Kept {
    leases: BTreeMap<u64, Lease>,
    traces: Vec<TraceEnd>,
}

impl Kept {
    fn keep(&mut self, ledger: &mut Ledger) -> Vec<Change> {
        let changes: Vec<Change> = ledger.drain_changes().collect();
        for change in changes.clone() {
            match change {
                Change::Granted(lease) => drop(self.leases.insert(lease.id.serial(), *lease)),
                Change::Lingers { id, until } => {
                    let lease = self.leases.get_mut(&id.serial()).expect("granted before");
                    lease.lingers_until = Some(until);
                }
                Change::Ended { id, .. } => {
                    self.leases.remove(&id.serial()).expect("ended once");
                }
                Change::TraceEnded(end) => self.traces.push(*end),
                Change::TraceGone(end) => {
                    let at = self.traces.iter().position(|known| *known == *end);
                    self.traces.remove(at.expect("ended before"));
                }
                _ => {}
            }
        }
        changes
    }

    /// The ledger of a server that was killed at `now` and starts again.
    fn restored(&self, next_serial: u64, now: Timestamp) -> Ledger {
        let mut ledger = Ledger::new(Config { journal: true, ..Config::default() });
        for lease in self.leases.values() {
            ledger.restore(Change::Granted(Box::new(lease.clone()))).expect("it restores");
        }
        for end in &self.traces {
            ledger.restore(Change::TraceEnded(Box::new(end.clone()))).expect("it restores");
        }
        ledger.resume(now, next_serial, now);
        ledger
    }
}

#[test]
fn no_operation_takes_out_more_than_one_hold_may_handle() {
    let mut ledger = ledger(RECORDS_PER_HOLD);
    let held = workers(&mut ledger, "", 5_000, NOW);
    ledger.drain_changes().for_each(drop);
    let later = NOW + TTL;
    let ended = |ledger: &mut Ledger| ledger.drain_changes().count();
    // All leases have ended, and none is taken out yet.
    assert!(!is_kept(&mut ledger, held[7], later));
    assert_eq!(ended(&mut ledger), 1, "a keep-alive takes out the lease it asks for");
    assert_eq!(ledger.leases().count(), 0);
    assert_eq!(ledger.release(held[8], None, Duration::ZERO, later), Released::Missing);
    assert!((1..=RECORDS_PER_HOLD).contains(&ended(&mut ledger)));
    for _ in 0..20 {
        let before = ledger.len();
        ledger.expire(later);
        let taken = ended(&mut ledger);
        assert!(taken <= RECORDS_PER_HOLD && before - ledger.len() == taken);
    }
    assert!(ledger.is_empty() && !ledger.has_backlog());
}

#[test]
fn a_paused_ledger_takes_nothing_out_and_counts_it_as_ended() {
    let mut ledger = ledger(RECORDS_PER_HOLD);
    let held = workers(&mut ledger, "", 10, NOW);
    ledger.pause_expiry(true);
    ledger.drain_changes().for_each(drop);
    let later = NOW + TTL;
    ledger.expire(later);
    ledger.state("t2w", "acme", later);
    assert_eq!((ledger.len(), ledger.drain_changes().count()), (10, 0));
    assert_eq!(ledger.leases().count(), 0);
    assert!(held.iter().all(|&id| !is_kept(&mut ledger, id, later)));
    assert_eq!(ledger.drain_changes().count(), 10, "what was told of has ended durably");
    ledger.pause_expiry(false);
    settle(&mut ledger, later);
    assert!(ledger.is_empty());
}

#[test]
fn the_workers_of_a_session_end_with_it_at_once_and_are_taken_out_in_parts() {
    let mut ledger = ledger(4);
    let session_id = session(&mut ledger, "trace-a", NOW);
    let workers = workers(&mut ledger, "trace-a", 50, NOW);
    assert_eq!(ledger.release(session_id, None, Duration::ZERO, NOW), Released::Returned);
    assert!(ledger.has_backlog() && ledger.len() > 40);
    assert_eq!(ledger.audit(), Ok(()));
    // A new session of the trace does not adopt the ended workers.
    let again = session(&mut ledger, "trace-a", NOW);
    let own = borrow(&mut ledger, &Request::worker("t2w", "acme", "trace-a", 1), NOW);
    for &worker in &workers {
        assert!(!is_live(&ledger, worker) && !is_kept(&mut ledger, worker, NOW));
        let released = ledger.release(worker, None, Duration::from_secs(9), NOW);
        assert_eq!(released, Released::Missing);
    }
    settle(&mut ledger, NOW);
    assert_eq!((ledger.len(), ledger.audit()), (2, Ok(())));
    assert!(is_kept(&mut ledger, again, NOW) && is_kept(&mut ledger, own, NOW));
}

#[test]
fn a_trace_whose_sessions_are_past_their_ends_has_ended_before_they_are_taken_out() {
    for by_worker in [false, true] {
        let mut ledger = ledger(RECORDS_PER_HOLD);
        let long = Terms { ttl: 10 * TTL, ..Terms::default() };
        let session_id = session(&mut ledger, "trace-a", NOW);
        let request = Request::worker("t2w", "acme", "trace-a", 10);
        let worker = ledger.borrow(&request, &long, NOW).expect("no limit").id;
        ledger.pause_expiry(true);
        let later = NOW + TTL;
        ledger.expire(later);
        assert!(!is_live(&ledger, worker), "its session is past its end");
        let again = match by_worker {
            false => session(&mut ledger, "trace-a", later),
            true => borrow(&mut ledger, &request, later),
        };
        assert!(!is_live(&ledger, worker) && !is_live(&ledger, session_id));
        assert!(!is_kept(&mut ledger, worker, later));
        assert!(is_live(&ledger, again));
        ledger.pause_expiry(false);
        settle(&mut ledger, later);
        assert_eq!((ledger.len(), ledger.audit()), (1, Ok(())));
        assert!(is_kept(&mut ledger, again, later));
    }
}

#[test]
fn a_kill_in_the_middle_of_a_cascade_revives_no_worker() {
    let mut ledger = ledger(4);
    let mut kept = Kept::default();
    let session_id = session(&mut ledger, "trace-a", NOW);
    let workers = workers(&mut ledger, "trace-a", 20, NOW);
    ledger.release(session_id, None, Duration::ZERO, NOW);
    let again = session(&mut ledger, "trace-a", NOW);
    let own = borrow(&mut ledger, &Request::worker("t2w", "acme", "trace-a", 1), NOW);
    let alone = borrow(&mut ledger, &Request::worker("t2w", "acme", "trace-b", 1), NOW);
    let mut parts = 0;
    loop {
        kept.keep(&mut ledger);
        let mut restored = kept.restored(ledger.next_serial(), NOW);
        assert_eq!(restored.audit(), Ok(()));
        assert!(workers.iter().all(|&worker| !is_kept(&mut restored, worker, NOW)));
        for id in [again, own, alone] {
            assert!(is_kept(&mut restored, id, NOW), "only the old workers have ended");
        }
        // The changes of the restored ledger remove the old workers and the end of their trace.
        let mut left = kept.clone();
        left.keep(&mut restored);
        assert_eq!((left.leases.len(), left.traces.len()), (3, 0));
        if !ledger.has_backlog() {
            break;
        }
        ledger.expire(NOW);
        parts += 1;
    }
    assert!(parts > 3 && kept.traces.is_empty());
}

#[test]
fn the_changes_of_a_small_cascade_are_only_the_ends_of_its_leases() {
    let mut ledger = ledger(RECORDS_PER_HOLD);
    let session_id = session(&mut ledger, "trace-a", NOW);
    workers(&mut ledger, "trace-a", 100, NOW);
    ledger.drain_changes().for_each(drop);
    ledger.release(session_id, None, Duration::ZERO, NOW);
    let changes: Vec<Change> = ledger.drain_changes().collect();
    assert_eq!(changes.len(), 101);
    assert!(changes.iter().all(|change| matches!(change, Change::Ended { .. })));
}

#[test]
fn ending_a_session_by_its_number_counts_its_workers_at_once() {
    let mut ledger = ledger(4);
    let (first, second) =
        (session(&mut ledger, "trace-a", NOW), session(&mut ledger, "trace-a", NOW));
    workers(&mut ledger, "trace-a", 30, NOW);
    let reason = Reason::Operator;
    assert_eq!(ledger.revoke_number(first.number(), reason, NOW), Some((first, 1)));
    assert_eq!(ledger.revoke_number(second.number(), reason, NOW), Some((second, 31)));
    assert_eq!(ledger.revoke_number(second.number(), reason, NOW), None);
    assert_eq!(ledger.leases().count(), 0);
}

#[test]
fn a_trace_id_that_ended_too_often_at_once_is_refused_for_a_moment() {
    let mut ledger = ledger(RECORDS_PER_HOLD);
    ledger.pause_expiry(true);
    let mut turns = 0;
    let refused = loop {
        let request = Request::session("t1r", "acme").trace("trace-a");
        match ledger.borrow(&request, &Terms::default(), NOW) {
            Ok(grant) => {
                let worker = Request::worker("t2w", "acme", "trace-a", 10);
                if let Err(refusal) = ledger.borrow(&worker, &Terms::default(), NOW) {
                    break refusal;
                }
                ledger.release(grant.id, None, Duration::ZERO, NOW);
            }
            Err(refusal) => break refusal,
        }
        turns += 1;
        assert!(
            turns < RECORDS_PER_HOLD,
            "what nobody takes out may not be looked through for ever"
        );
    };
    assert_eq!(refused, Refusal::Behind);
    ledger.pause_expiry(false);
    settle(&mut ledger, NOW);
    session(&mut ledger, "trace-a", NOW);
}

#[test]
fn an_organization_is_revoked_in_parts_workers_first_and_some_services_are_spared() {
    let mut ledger = ledger(16);
    let mut held = Vec::new();
    for trace in ["trace-a", "trace-b", ""] {
        held.push(session(&mut ledger, trace, NOW));
        held.extend(workers(&mut ledger, trace, 40, NOW));
    }
    let spared = borrow(&mut ledger, &Request::session("t3", "acme"), NOW);
    let other = borrow(&mut ledger, &Request::session("t1r", "globex"), NOW);
    let nothing = Budget { metric: "egress_bytes".into(), amount: 0.0, per: Period::Day };
    let budgets = [("acme", vec![nothing])].into();
    let policy = Plain { budgets, observed: vec!["t3"], ..Plain::default() };
    let mut enforcement = Enforcement::of_policy(&policy, ["acme"], []);
    let (mut revoked, mut parts) = (Vec::new(), 0);
    while !enforcement.is_done() {
        let part = ledger.enforce(&policy, WallTime::default(), &mut enforcement, NOW);
        assert!(part.len() <= 16);
        revoked.extend(part);
        parts += 1;
        assert_eq!(ledger.audit(), Ok(()));
    }
    assert!(parts >= held.len() / 16);
    assert_eq!(revoked.len(), held.len());
    for id in held {
        let KeptAlive::Revoked(why) = ledger.keep_alive(id, None, NOW) else {
            panic!("workers are told why, too")
        };
        assert_eq!(why.reason, Reason::BudgetSpent);
    }
    assert!(is_kept(&mut ledger, spared, NOW) && is_kept(&mut ledger, other, NOW));
}

#[test]
fn a_keep_alive_between_two_parts_of_a_revocation_saves_no_lease() {
    let mut ledger = ledger(4);
    let held = workers(&mut ledger, "", 40, NOW);
    let policy = Plain { disabled: vec!["acme"], ..Plain::default() };
    let mut enforcement = Enforcement::of_policy(&policy, ["acme"], []);
    while !enforcement.is_done() {
        ledger.enforce(&policy, WallTime::default(), &mut enforcement, NOW);
        for &id in &held {
            ledger.keep_alive(id, None, NOW);
        }
    }
    assert!(ledger.is_empty());
}

#[test]
fn leases_that_come_back_at_one_moment_end_spread_over_most_of_a_second() {
    let mut before = ledger(RECORDS_PER_HOLD);
    workers(&mut before, "", 2_000, NOW);
    let mut after = ledger(RECORDS_PER_HOLD);
    before.snapshot().for_each(|change| after.restore(change).expect("it restores"));
    after.resume(NOW, before.next_serial(), NOW);
    let mut ends: Vec<Duration> =
        (0..).map_while(|part| after.listed(part)).flatten().map(|lease| lease.ends_in).collect();
    ends.sort_unstable();
    assert_eq!(ends[0], TTL);
    assert!(*ends.last().expect("some") <= TTL + RESUME_SPREAD);
    // In each tick of the server's clock, only a small share of the leases ends.
    let tick = Duration::from_millis(50);
    for start in (0..16).map(|number| TTL + tick * number) {
        let in_tick = ends.iter().filter(|&&end| start <= end && end < start + tick).count();
        assert!((120..=130).contains(&in_tick), "{in_tick} end from {start:?} on");
    }
}

#[test]
fn a_lease_that_says_it_was_granted_in_the_future_does_not_linger_until_then() {
    let mut before = ledger(RECORDS_PER_HOLD);
    let id = session(&mut before, "", NOW);
    let mut after = ledger(RECORDS_PER_HOLD);
    for change in before.snapshot() {
        let Change::Granted(mut lease) = change else { continue };
        lease.granted_at = Timestamp::from_nanos(u64::MAX);
        after.restore(Change::Granted(lease)).expect("it restores");
    }
    after.resume(NOW, before.next_serial(), NOW);
    let life = Duration::from_secs(5);
    assert_eq!(after.release(id, None, life, NOW), Released::Lingers { until: NOW + life });
}

#[test]
fn a_pool_lists_its_largest_traces_and_counts_the_omitted_ones() {
    let mut ledger = ledger(RECORDS_PER_HOLD);
    for number in 0..5_000 {
        session(&mut ledger, &format!("trace-{number}"), NOW);
    }
    for (trace, more) in [("trace-4999", 5), ("trace-17", 9), ("trace-1000", 1)] {
        (0..more).for_each(|_| _ = session(&mut ledger, trace, NOW));
    }
    let (mut reading, mut parts) = (PoolReading::default(), 0);
    while !reading.is_done() {
        ledger.read_pool("t1r", "acme", &mut reading, NOW);
        parts += 1;
        if parts == 2 {
            // The trace that was read last ends before the next part is read.
            let gone = ledger.leases().find(|lease| &*lease.trace == "trace-3900");
            ledger.release(gone.expect("it is there").id, None, Duration::ZERO, NOW);
        }
    }
    let pool = reading.finish();
    assert_eq!(parts, MAX_TRACES_LISTED.div_ceil(RECORDS_PER_HOLD / 2));
    assert_eq!(pool.traces.len(), MAX_TRACES_LISTED);
    assert_eq!((pool.leases, pool.omitted), (5_014, 4_999 - MAX_TRACES_LISTED as u64));
    let first: Vec<_> = pool.traces[..4].iter().map(|(id, leases)| (&**id, *leases)).collect();
    assert_eq!(first[..3], [("trace-17", 10), ("trace-4999", 6), ("trace-1000", 2)]);
    assert_eq!(first[3].1, 1);
}

/// One step of a history: an operation and two numbers that select its details.
type Step = (u8, u8, u8);

fn step(ledger: &mut Ledger, ids: &mut Vec<LeaseId>, (what, a, b): Step, now: &mut Timestamp) {
    const INDEXERS: [Option<&str>; 3] = [None, Some("east"), Some("west")];
    let known = (!ids.is_empty()).then(|| ids[usize::from(a) % ids.len()]);
    match (what % 9, known) {
        (0..=4, _) => {
            let request = Request {
                indexer: INDEXERS[usize::from(a) % 3],
                max_workers: i64::from(b % 2) * 100,
                ..Request::session(["t1r", "t2w"][usize::from(a / 3) % 2], "acme")
            };
            let request = request.trace(["", "trace-a", "trace-b"][usize::from(b / 2) % 3]);
            let ttl = Duration::from_secs(1 + u64::from(b) / 8);
            let limits = Limits::default();
            let terms = Terms { ttl, limits, ..Terms::default() };
            ids.extend(ledger.borrow(&request, &terms, *now).map(|grant| grant.id));
        }
        (5, Some(id)) => {
            let indexer = ledger.find(id.number()).and_then(|it| it.indexer.map(str::to_owned));
            ledger.release(id, indexer.as_deref(), Duration::ZERO, *now);
        }
        (6, Some(id)) => {
            let indexer = ledger.find(id.number()).and_then(|it| it.indexer.map(str::to_owned));
            ledger.keep_alive(id, indexer.as_deref(), *now);
        }
        (7, Some(id)) => drop(ledger.revoke(id, Reason::Operator, *now)),
        _ => {
            *now = *now + Duration::from_millis(u64::from(a) * 20);
            ledger.expire(*now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parts_of_any_size_come_to_the_same_table(
        steps in prop::collection::vec(any::<Step>(), 1..80),
        records_per_hold in 1..5usize,
    ) {
        let (mut small, mut whole) = (ledger(records_per_hold), ledger(RECORDS_PER_HOLD));
        let (mut ids, mut others, mut now) = (Vec::new(), Vec::new(), NOW);
        for one in steps {
            let mut then = now;
            step(&mut small, &mut ids, one, &mut then);
            step(&mut whole, &mut others, one, &mut now);
            prop_assert_eq!(small.audit(), Ok(()));
            prop_assert_eq!(ids.len(), others.len());
            for (&id, &other) in ids.iter().zip(&others) {
                prop_assert_eq!(is_live(&small, id), is_live(&whole, other));
            }
        }
        settle(&mut small, now);
        settle(&mut whole, now);
        prop_assert_eq!(small.len(), whole.len());
        for service in ["t1r", "t2w"] {
            let sorted = |ledger: &mut Ledger| {
                let mut pool = ledger.state(service, "acme", now);
                pool.traces.sort();
                pool
            };
            prop_assert_eq!(sorted(&mut small), sorted(&mut whole));
        }
        for end in [End::Returned, End::Revoked(Reason::Operator)] {
            prop_assert_eq!(small.ends().of(end), whole.ends().of(end));
        }
    }

    #[test]
    fn the_largest_traces_are_those_of_a_sorted_table(
        steps in prop::collection::vec(any::<Step>(), 1..120),
        records_per_hold in 1..9usize,
    ) {
        let mut ledger = ledger(records_per_hold);
        let (mut ids, mut now) = (Vec::new(), NOW);
        for one in steps {
            step(&mut ledger, &mut ids, one, &mut now);
        }
        settle(&mut ledger, now);
        for service in ["t1r", "t2w"] {
            let mut counted: BTreeMap<Box<str>, u64> = BTreeMap::new();
            for lease in ledger.leases().filter(|it| &*it.service == service && !it.trace.is_empty()) {
                *counted.entry(lease.trace).or_default() += 1;
            }
            let pool = ledger.state(service, "acme", now);
            let told: BTreeMap<Box<str>, u64> = pool.traces.iter().cloned().collect();
            prop_assert_eq!(&told, &counted);
            prop_assert!(pool.traces.is_sorted_by(|(_, one), (_, other)| one >= other));
            prop_assert_eq!(pool.omitted, 0);
        }
    }

    #[test]
    fn a_kill_at_any_time_loses_no_live_lease_and_revives_no_lease_whose_end_was_answered(
        steps in prop::collection::vec(any::<Step>(), 1..60),
        records_per_hold in 1..4usize,
    ) {
        let mut ledger = ledger(records_per_hold);
        let (mut ids, mut now, mut kept) = (Vec::new(), NOW, Kept::default());
        for one in steps {
            step(&mut ledger, &mut ids, one, &mut now);
            kept.keep(&mut ledger);
            // Callers learn from their keep-alives that these leases have ended, so the ends must
            // be kept.
            let asked: Vec<LeaseId> = ids.iter().copied().step_by(2).collect();
            let mut told = Vec::new();
            for id in asked {
                let ended = match ledger.find(id.number()) {
                    Some(_) => continue,
                    None => ledger.keep_alive(id, None, now),
                };
                let extended = matches!(ended, KeptAlive::Extended { .. });
                prop_assert!(!extended);
                told.push(id);
            }
            kept.keep(&mut ledger);
            let restored = kept.restored(ledger.next_serial(), now);
            prop_assert_eq!(restored.audit(), Ok(()));
            let back: Vec<u64> = restored.leases().map(|lease| lease.id.serial()).collect();
            for lease in ledger.leases() {
                prop_assert!(back.contains(&lease.id.serial()), "{:?} is lost", lease.id);
            }
            for lease in restored.leases().filter(|lease| told.contains(&lease.id)) {
                // A caller without an indexer learns nothing about a lease of an indexer, so the
                // end of such a lease need not be kept.
                prop_assert!(lease.indexer.is_some(), "{:?} is revived", lease.id);
            }
        }
    }
}
