//! Each invariant of the ledger by itself, after random operations.

use std::collections::HashSet;
use std::time::Duration;

use crate::ReadWhole as _;
use lease::{
    BorrowId, Config, KeptAlive, Kind, Lease, LeaseId, Ledger, Limits, RESUME_SPREAD, Reason,
    Refusal, Released, Request, StoreClock, Terms, Timestamp,
};
use proptest::prelude::*;

const SERVICES: [&str; 2] = ["t1r", "t2w"];
const ORGANIZATIONS: [&str; 3] = ["acme", "globex", "initech"];
const TRACES: [&str; 3] = ["", "trace-a", "trace-b"];

#[derive(Clone, Debug)]
struct Steps(Vec<(u8, u8, u8)>);

/// A ledger after random operations.
struct Used {
    ledger: Ledger,
    now: Timestamp,
    /// Every key that was ever given out.
    ids: Vec<LeaseId>,
}

fn steps() -> impl Strategy<Value = Steps> {
    prop::collection::vec(any::<(u8, u8, u8)>(), 0..60).prop_map(Steps)
}

fn pick<T: Copy>(from: &[T], by: u8) -> T {
    from[usize::from(by) % from.len()]
}

fn request(a: u8, b: u8) -> Request<'static> {
    let (service, organization) = (pick(&SERVICES, a), pick(&ORGANIZATIONS, a / 2));
    Request {
        trace: pick(&TRACES, b),
        max_workers: i64::from(b % 2) * 100,
        ..Request::session(service, organization)
    }
}

impl Used {
    fn after(steps: &Steps) -> Self {
        let ledger = Ledger::new(Config { journal: true, ..Config::default() });
        let mut used = Self { ledger, now: Timestamp::from_nanos(1 << 60), ids: Vec::new() };
        used.ledger.resume(used.now, 1, used.now);
        for &(step, a, b) in &steps.0 {
            used.step(step, a, b);
        }
        used
    }

    fn step(&mut self, step: u8, a: u8, b: u8) {
        let now = self.now;
        let known = (!self.ids.is_empty()).then(|| pick(&self.ids, a));
        match (step % 8, known) {
            (0..=3, _) => {
                let ttl = Duration::from_secs(1 + u64::from(b));
                let terms = Terms { ttl, ..Terms::default() };
                let granted = self.ledger.borrow(&request(a, b), &terms, now);
                self.ids.extend(granted.map(|grant| grant.id));
            }
            (4, Some(id)) => {
                let minimal_life = Duration::from_secs(u64::from(b));
                self.ledger.release(id, None, minimal_life, now);
            }
            (5, Some(id)) => drop(self.ledger.keep_alive(id, None, now)),
            (6, Some(id)) => drop(self.ledger.revoke(id, Reason::Operator, now)),
            _ => self.now = now + Duration::from_millis(u64::from(a) * 100),
        }
    }

    /// Everything that a caller can read from the ledger.
    fn seen(&mut self) -> (Vec<Lease>, Vec<String>) {
        let mut leases: Vec<Lease> = self.ledger.leases().collect();
        leases.sort_by_key(|lease| lease.id.serial());
        let pools = SERVICES.iter().flat_map(|s| ORGANIZATIONS.iter().map(move |o| (s, o)));
        let pools =
            pools.map(|(s, o)| format!("{:?}", self.ledger.state(s, o, self.now))).collect();
        (leases, pools)
    }

    fn live(&self) -> Vec<Lease> {
        self.ledger.leases().collect()
    }

    fn restarted(&self, later: Duration) -> Self {
        let config = Config { seed: [3; 32], journal: true, ..Config::default() };
        let mut ledger = Ledger::new(config);
        self.ledger.snapshot().for_each(|change| ledger.restore(change).expect("it restores"));
        let now = self.now + later;
        ledger.resume(self.now, self.ledger.next_serial(), now);
        Self { ledger, now, ids: self.ids.clone() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn counts_change_only_beside_the_table(steps in steps()) {
        let used = Used::after(&steps);
        prop_assert_eq!(used.ledger.audit(), Ok(()));
    }

    #[test]
    fn a_refused_borrow_changes_nothing(steps in steps(), a: u8, b: u8, scope in 0..3usize) {
        let mut used = Used::after(&steps);
        let mut limits = Limits::default();
        let each = [&mut limits.service, &mut limits.organization, &mut limits.api_key];
        *each.into_iter().nth(scope).expect("three limits") = Some(0);
        used.ledger.expire(used.now);
        let before = used.seen();
        used.ledger.drain_changes().for_each(drop);
        let refused = used.ledger.borrow(
            &request(a, b).api_key("key-1"),
            &Terms { limits, ..Terms::default() },
            used.now,
        );
        prop_assert!(matches!(refused, Err(Refusal::Denied(_))));
        prop_assert_eq!(used.ledger.drain_changes().count(), 0);
        prop_assert_eq!(used.seen(), before);
        prop_assert_eq!(used.ledger.audit(), Ok(()));
    }

    #[test]
    fn no_grant_takes_a_scope_above_its_limit(
        steps in steps(),
        asks in prop::collection::vec((any::<u8>(), any::<u8>(), 0..4u64), 1..40),
    ) {
        let mut used = Used::after(&steps);
        for (a, b, max) in asks {
            let limits = Limits { organization: Some(max), ..Limits::default() };
            let terms = Terms { limits, ..Terms::default() };
            if let Ok(grant) = used.ledger.borrow(&request(a, b), &terms, used.now) {
                prop_assert!(grant.pool.borrowed <= max);
            }
        }
    }

    #[test]
    fn keys_are_never_reused_across_restarts_either(steps in steps(), more in steps()) {
        let used = Used::after(&steps);
        let mut again = used.restarted(Duration::from_secs(1));
        for (_, a, b) in more.0 {
            again.step(0, a, b);
        }
        let serials: HashSet<u64> = again.ids.iter().map(LeaseId::serial).collect();
        prop_assert_eq!(serials.len(), again.ids.len());
    }

    #[test]
    fn every_operation_expires_first(steps in steps(), a: u8, b: u8) {
        // Two ledgers with the same history. Only one of them expires leases before the operation.
        let (mut told, mut untold) = (Used::after(&steps), Used::after(&steps));
        let later = told.now + Duration::from_secs(3);
        told.ledger.expire(later);
        let terms = Terms::default();
        let one = told.ledger.borrow(&request(a, b), &terms, later);
        let other = untold.ledger.borrow(&request(a, b), &terms, later);
        prop_assert_eq!(one.map(|grant| grant.pool), other.map(|grant| grant.pool));
        for &id in &told.ids {
            let one = told.ledger.keep_alive(id, None, later);
            prop_assert_eq!(one, untold.ledger.keep_alive(id, None, later));
        }
        (told.now, untold.now) = (later, later);
        prop_assert_eq!(told.seen().0.len(), untold.seen().0.len());
    }

    #[test]
    fn a_lease_kept_alive_within_its_ttl_never_expires(steps in steps(), beats in 1..50u32) {
        let mut used = Used::after(&steps);
        used.ledger.expire(used.now);
        // A lingering session would end during the test, and its workers with it.
        for lease in used.live().iter().filter(|lease| lease.lingers_until.is_some()) {
            used.ledger.release(lease.id, None, Duration::ZERO, used.now);
        }
        let held = used.live();
        let shortest = held.iter().map(|lease| lease.ttl).min().unwrap_or_default();
        for lease in &held {
            used.ledger.keep_alive(lease.id, None, used.now);
        }
        for _ in 0..beats {
            used.now = used.now + shortest.saturating_sub(Duration::from_nanos(1));
            for lease in &held {
                let kept = used.ledger.keep_alive(lease.id, None, used.now);
                let extended = matches!(kept, KeptAlive::Extended { .. });
                prop_assert!(extended);
            }
        }
    }

    #[test]
    fn a_lease_nobody_keeps_alive_is_gone_after_its_ttl(steps in steps()) {
        let mut used = Used::after(&steps);
        let longest = Duration::from_secs(256);
        used.ledger.expire(used.now + longest);
        prop_assert!(used.ledger.is_empty());
        prop_assert_eq!(used.ledger.next_expiry(), None);
    }

    #[test]
    fn a_recovered_lease_has_its_full_ttl_and_a_lingering_one_what_was_left(
        steps in steps(),
        down in 0..1_000_000u64,
    ) {
        let mut used = Used::after(&steps);
        used.ledger.expire(used.now);
        let again = used.restarted(Duration::from_millis(down));
        let before = used.live();
        prop_assert_eq!(before.len(), again.live().len());
        for lease in before {
            let mut again = used.restarted(Duration::from_millis(down));
            let left = match lease.lingers_until {
                Some(until) => until.since(used.now),
                None => lease.ttl,
            };
            // The workers of a trace end with its session, which may have less time left.
            let is_there = |ledger: &Ledger| ledger.leases().any(|other| other.id == lease.id);
            if lease.kind == Kind::Session {
                again.ledger.expire(again.now + (left - Duration::from_nanos(1)));
                prop_assert!(is_there(&again.ledger));
            }
            let spread = if lease.lingers_until.is_some() { Duration::ZERO } else { RESUME_SPREAD };
            again.ledger.expire(again.now + left + spread);
            prop_assert!(!is_there(&again.ledger));
        }
    }

    #[test]
    fn ending_the_last_session_of_a_trace_ends_its_workers(steps in steps()) {
        let mut used = Used::after(&steps);
        for session in used.live().into_iter().filter(|lease| lease.kind == Kind::Session) {
            used.ledger.release(session.id, None, Duration::ZERO, used.now);
            let same = |lease: &Lease| {
                lease.organization == session.organization
                    && lease.trace == session.trace
                    && !session.trace.is_empty()
            };
            let left = used.live();
            let sessions = left.iter().filter(|l| same(l) && l.kind == Kind::Session).count();
            let workers = left.iter().filter(|l| same(l) && l.kind == Kind::Worker).count();
            prop_assert!(sessions > 0 || workers == 0, "{} workers without a session", workers);
        }
    }

    #[test]
    fn a_lingering_lease_counts_and_cannot_be_kept_alive(steps in steps(), a: u8) {
        let mut used = Used::after(&steps);
        let terms = Terms::default();
        let request = Request::session(pick(&SERVICES, a), "acme");
        let id = used.ledger.borrow(&request, &terms, used.now).expect("no limit").id;
        let counted = used.ledger.state(request.service, "acme", used.now).leases;
        let life = Duration::from_secs(300);
        let until = used.now + life;
        let returned = used.ledger.release(id, None, life, used.now);
        prop_assert_eq!(returned, Released::Lingers { until });
        prop_assert_eq!(used.ledger.state(request.service, "acme", used.now).leases, counted);
        prop_assert_eq!(used.ledger.keep_alive(id, None, used.now), KeptAlive::Failed);
        // The lease outlives its TTL and ends exactly at grant + minimal life.
        used.ledger.expire(used.now + (life - Duration::from_nanos(1)));
        prop_assert!(used.ledger.leases().any(|lease| lease.id == id));
        used.ledger.expire(until);
        prop_assert!(!used.ledger.leases().any(|lease| lease.id == id));
    }

    #[test]
    fn returning_twice_frees_one_slot(steps in steps(), life in 0..20u64) {
        let mut used = Used::after(&steps);
        let Some(lease) = used.live().into_iter().find(|lease| lease.trace.is_empty()) else {
            return Ok(());
        };
        used.ledger.release(lease.id, None, Duration::from_secs(life), used.now);
        used.ledger.release(lease.id, None, Duration::ZERO, used.now);
        let left = used.ledger.len();
        let third = used.ledger.release(lease.id, None, Duration::ZERO, used.now);
        prop_assert_eq!((third, used.ledger.len()), (Released::Missing, left));
    }

    #[test]
    fn a_borrow_id_buys_one_lease(steps in steps(), id: u128, tries in 1..5usize) {
        let mut used = Used::after(&steps);
        let request = Request::session("t1r", "acme").borrow_id(BorrowId(id));
        let first = used.ledger.borrow(&request, &Terms::default(), used.now).expect("granted");
        let held = used.ledger.len();
        for _ in 0..tries {
            let again = used.ledger.borrow(&request, &Terms::default(), used.now).expect("same");
            prop_assert_eq!((again.id, again.replayed), (first.id, true));
        }
        prop_assert_eq!(used.ledger.len(), held);
        let returned = used.ledger.release_borrow(BorrowId(id), None, Duration::ZERO, used.now);
        prop_assert_eq!(returned, Ok(Released::Returned));
        let late = used.ledger.borrow(&request, &Terms::default(), used.now);
        prop_assert_eq!(late, Err(Refusal::BorrowEnded));
        prop_assert_eq!(used.ledger.len(), held - 1);
    }

    #[test]
    fn store_time_is_monotonic_across_stalls_and_restarts(
        readings in prop::collection::vec(0..10_000_000_000u64, 1..50),
        restart_at in 0..50usize,
    ) {
        let mut clock = StoreClock::starting_at(Timestamp::from_nanos(5), Duration::ZERO);
        let mut last = Timestamp::from_nanos(5);
        let mut monotonic = Duration::ZERO;
        for (number, reading) in readings.into_iter().enumerate() {
            if number == restart_at {
                // The monotonic clock of another process may start at any value.
                clock = StoreClock::starting_at(last, Duration::from_nanos(reading));
                monotonic = Duration::from_nanos(reading);
            }
            let step = Duration::from_nanos(reading).saturating_sub(monotonic);
            let now = clock.read(Duration::from_nanos(reading));
            clock.mark_handled(now);
            prop_assert!(now >= last && now.since(last) <= lease::LONGEST_STEP);
            if number > 0 && step <= lease::LONGEST_STEP {
                prop_assert_eq!(now.since(last), step);
            }
            monotonic = monotonic.max(Duration::from_nanos(reading));
            last = now;
        }
    }

    #[test]
    fn store_time_advances_at_most_half_a_second_beyond_the_last_handled_time(
        steps in prop::collection::vec((0..2_000_000_000u64, prop::option::of(0..1_000_000_000u64)), 1..80),
    ) {
        let start = Timestamp::from_nanos(5);
        let mut clock = StoreClock::starting_at(start, Duration::ZERO);
        let (mut monotonic, mut last, mut heard) = (Duration::ZERO, start, start);
        for (passed, heard_at) in steps {
            monotonic += Duration::from_nanos(passed);
            let now = clock.read(monotonic);
            prop_assert!(now >= last);
            prop_assert!(now.since(heard) <= lease::LONGEST_STEP);
            prop_assert!(now.since(last) <= Duration::from_nanos(passed));
            last = now;
            if let Some(before) = heard_at {
                // A time after the latest reading does not count as handled.
                let at = Timestamp::from_nanos((now.as_nanos() + 500_000_000).saturating_sub(before));
                clock.mark_handled(at);
                heard = heard.max(at.min(now));
            }
        }
    }

    #[test]
    fn a_key_is_what_its_text_says_and_no_other_text_is_a_key(slot: u32, serial: u64, secret: [u8; 12], noise: String) {
        let id = LeaseId::new(slot, serial, secret);
        let text = id.to_string();
        prop_assert!(text.len() <= 64 && text.is_ascii());
        prop_assert_eq!(text.parse::<LeaseId>(), Ok(id));
        prop_assert!(noise.parse::<LeaseId>().is_err() || noise.len() == LeaseId::WIRE_BYTES);
    }
}
