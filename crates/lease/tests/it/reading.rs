//! An operator reads the true state, however large the table is and whatever changes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ReadWhole as _;
use lease::{
    Config, Kind, LeaseNumber, Ledger, ListedLease, Reason, Refusal, Report, Reporting, Request,
    Submission, Terms, Timestamp, WallTime,
};
use proptest::prelude::*;

const ORGANIZATIONS: [&str; 3] = ["acme", "globex", "initech"];
const SERVICES: [&str; 2] = ["t1r", "t2w"];
const TRACES: [&str; 3] = ["", "trace-a", "trace-b"];
const INDEXERS: [Option<&str>; 3] = [None, Some("indexer-1"), Some("indexer-2")];

/// The most records of one part.
const PART: usize = 1_024;

type Step = (u8, u8, u8);

fn request((_, a, b): Step) -> Request<'static> {
    Request {
        indexer: INDEXERS[usize::from(a / 9) % 3],
        max_workers: i64::from(b / 4 % 2) * 1_000,
        ..Request::session(SERVICES[usize::from(a / 3) % 2], ORGANIZATIONS[usize::from(a) % 3])
    }
    .trace(TRACES[usize::from(b) % 3])
}

fn ledger() -> Ledger {
    Ledger::new(Config { journal: true, ..Config::default() })
}

fn report(ledger: &mut Ledger, organization: &str, bytes: f64, now: Timestamp) {
    let mut report = Report::builder();
    report.add(organization, "", &[("bytes", bytes)]).expect("it can be counted");
    let submission = Submission {
        caller: None,
        idempotency_key: None,
        report: report.build(),
        organizations: Vec::new(),
    };
    let wall = WallTime::default();
    ledger.report(&(), wall, &mut Reporting::new(submission, wall), now).expect("valid");
}

fn borrow(ledger: &mut Ledger, step: Step, now: Timestamp) {
    let borrowed = ledger.borrow(&request(step), &Terms::default(), now);
    // There is no limit, but a worker may come after the revocation of its session.
    assert!(matches!(borrowed, Ok(_) | Err(Refusal::Revoked(_))), "{borrowed:?}");
}

/// One operation: a borrow, a return, a young return, a revocation, a pause.
fn operate(ledger: &mut Ledger, step: Step, now: &mut Timestamp) {
    let ids: Vec<_> = ledger.leases().map(|lease| (lease.id, lease.indexer)).collect();
    let held = (!ids.is_empty()).then(|| &ids[usize::from(step.1) % ids.len()]);
    match (step.0 % 8, held) {
        (0, Some((id, indexer))) => {
            ledger.release(*id, indexer.as_deref(), Duration::ZERO, *now);
        }
        (1, Some((id, indexer))) => {
            ledger.release(*id, indexer.as_deref(), Duration::from_secs(100), *now);
        }
        (2, Some((id, _))) => {
            ledger.revoke(*id, Reason::Operator, *now);
        }
        (3, _) => *now = *now + Duration::from_secs(step.1.into()) / 8,
        _ => borrow(ledger, step, *now),
    }
}

fn parts(ledger: &Ledger) -> Vec<Vec<ListedLease<&str>>> {
    (0..).map_while(|part| ledger.listed(part)).map(Iterator::collect).collect()
}

fn numbers(ledger: &Ledger) -> Vec<LeaseNumber> {
    let mut numbers: Vec<_> = parts(ledger).iter().flatten().map(|lease| lease.number).collect();
    numbers.sort_unstable();
    numbers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parts_show_every_lease_once_and_as_it_is(steps in prop::collection::vec(any::<Step>(), 1..80)) {
        let (mut ledger, mut now) = (ledger(), Timestamp::ZERO);
        for step in steps {
            operate(&mut ledger, step, &mut now);
        }
        ledger.expire(now);
        let leases: BTreeMap<_, _> =
            ledger.leases().map(|lease| (lease.id.number(), lease)).collect();
        prop_assert_eq!(numbers(&ledger), leases.keys().copied().collect::<Vec<_>>());
        for (number, lease) in &leases {
            let listed = ledger.find(*number).expect("it is there");
            prop_assert_eq!(listed.number, lease.id.number());
            prop_assert_eq!(listed.indexer, lease.indexer.as_deref());
            prop_assert_eq!(listed.trace, &*lease.trace);
            prop_assert_eq!(listed.lingers, lease.lingers_until.is_some());
            prop_assert!(!listed.ends_in.is_zero());
            let under = leases.values().filter(|other| {
                lease.kind == Kind::Session
                    && other.kind == Kind::Worker
                    && !lease.trace.is_empty()
                    && (&other.trace, &other.organization, &other.indexer)
                        == (&lease.trace, &lease.organization, &lease.indexer)
            });
            prop_assert_eq!(listed.workers, under.count() as u64);
        }
    }

    #[test]
    fn the_pools_count_every_lease_once(steps in prop::collection::vec(any::<Step>(), 1..80)) {
        let (mut ledger, mut now) = (ledger(), Timestamp::ZERO);
        for step in steps {
            operate(&mut ledger, step, &mut now);
        }
        let mut counted = BTreeMap::new();
        for lease in ledger.leases() {
            let pool: &mut (u64, u64) =
                counted.entry((lease.organization, lease.service)).or_default();
            pool.0 += 1;
            pool.1 += u64::from(lease.kind == Kind::Session);
        }
        let pools: Vec<_> = (0..).map_while(|part| ledger.pools(part)).flatten().collect();
        let kept = pools.iter().map(|pool| {
            ((pool.organization.into(), pool.service.into()), (pool.leases, pool.sessions))
        });
        prop_assert_eq!(kept.collect::<BTreeMap<_, _>>(), counted);
        prop_assert_eq!(ledger.audit(), Ok(()));
    }

    #[test]
    fn the_revision_rises_with_every_change_and_with_nothing_else(
        steps in prop::collection::vec(any::<Step>(), 1..80),
        value in 0..9u32,
    ) {
        let (mut ledger, mut now) = (ledger(), Timestamp::ZERO);
        for step in steps {
            let before = ledger.revision();
            operate(&mut ledger, step, &mut now);
            let kept: Vec<_> = ledger.leases().map(|lease| (lease.id, lease.indexer)).collect();
            for (id, indexer) in kept {
                ledger.keep_alive(id, indexer.as_deref(), now);
            }
            if step.0 % 8 == 4 {
                report(&mut ledger, "acme", value.into(), now);
            }
            // A revocation makes two changes: the end of its lease, and the fact that is
            // remembered.
            let changes = ledger.drain_changes().count() as u64;
            prop_assert_eq!(ledger.revision() - before, changes);
        }
    }

    #[test]
    fn a_walk_sees_what_stays_once_whatever_comes_and_goes(
        leases in 1..3_000usize,
        steps in prop::collection::vec(any::<Step>(), 20),
    ) {
        let (mut ledger, mut now) = (ledger(), Timestamp::ZERO);
        for _ in 0..leases {
            borrow(&mut ledger, (9, 0, 0), now);
        }
        let mut stays: BTreeSet<_> = numbers(&ledger).into_iter().collect();
        let (mut seen, mut steps) = (Vec::new(), steps.into_iter());
        for part in 0.. {
            let Some(leases) = ledger.listed(part) else { break };
            seen.extend(leases.map(|lease| lease.number));
            for step in steps.by_ref().take(4) {
                operate(&mut ledger, step, &mut now);
            }
            stays.retain(|&number| ledger.find(number).is_some());
        }
        seen.sort_unstable();
        let all = seen.len();
        seen.dedup();
        prop_assert_eq!(seen.len(), all, "nothing is seen twice");
        prop_assert!(stays.is_subset(&seen.into_iter().collect()));
    }

    #[test]
    fn a_number_is_what_its_text_says_and_no_other_text_is_one(slot: u32, serial: u64, noise: String) {
        let number = lease::LeaseId::new(slot, serial, [7; 12]).number();
        prop_assert_eq!(number.to_string().parse(), Ok(number));
        prop_assert_eq!(number.to_string().to_uppercase().parse(), Ok(number));
        prop_assert_eq!(number.serial(), serial);
        for text in [noise.clone(), format!("{number}{noise}0"), number.to_string().replace('0', "+")] {
            let is_one = text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            prop_assert_eq!(text.parse::<LeaseNumber>().is_ok(), is_one);
        }
    }
}

#[test]
fn no_part_is_bigger_than_a_lock_may_be_held_for() {
    let mut ledger = ledger();
    let names: Vec<String> = (0..2 * PART + 3).map(|number| format!("org-{number}")).collect();
    for name in &names {
        let request = Request::session("t1r", name);
        ledger.borrow(&request, &Terms::default(), Timestamp::ZERO).expect("no limit");
        report(&mut ledger, name, 1.0, Timestamp::ZERO);
    }
    let sizes: [Vec<usize>; 3] = [
        (0..).map_while(|part| Some(ledger.listed(part)?.count())).collect(),
        (0..).map_while(|part| Some(ledger.pools(part)?.count())).collect(),
        (0..).map_while(|part| Some(ledger.usage(part)?.count())).collect(),
    ];
    for sizes in sizes {
        assert_eq!(sizes, [PART, PART, 3]);
    }
}

#[test]
fn a_number_names_one_lease_and_not_the_next_in_its_place() {
    let mut ledger = ledger();
    let request = Request::session("t1r", "acme");
    let first = ledger.borrow(&request, &Terms::default(), Timestamp::ZERO).expect("no limit").id;
    ledger.release(first, None, Duration::ZERO, Timestamp::ZERO);
    let next = ledger.borrow(&request, &Terms::default(), Timestamp::ZERO).expect("no limit").id;
    assert_eq!(first.slot(), next.slot());
    assert_eq!(ledger.find(first.number()), None);
    assert_eq!(ledger.find(next.number()).map(|lease| lease.number), Some(next.number()));
    assert!(first.number() < next.number());
}
