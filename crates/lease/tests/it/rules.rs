//! The ledger answers random operations as the simple model does, and every count is right after
//! each operation.
//!
//! One file: the operations, how the model answers each, and the comparison change together.

use std::collections::HashMap;
use std::time::Duration;

use crate::ReadWhole as _;
use crate::model::{Answer, Ask, Bounds, Deal, Model, Stops};
use crate::policy::Plain;
use lease::{
    BorrowId, Budget, Change, Config, Enforcement, KeptAlive, Ledger, Limits, MemoryFull, Period,
    Policy, Reason, Refusal, Released, Report, ReportRefusal, Reporting, Request, RevokedFor,
    Submission, Terms, Timestamp, UnnamedServices, Used, WallTime,
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const INDEXERS: [Option<&str>; 3] = [None, Some("east"), Some("west")];
const SERVICES: [&str; 4] = ["t1r", "t2w", "x1", "x2"];
const ORGANIZATIONS: [&str; 2] = ["acme", "globex"];
const API_KEYS: [&str; 3] = ["", "key-1", "key-2"];
const TRACES: [&str; 4] = ["", "0000", "trace-a", "trace-b"];
const METRICS: [&str; 2] = ["egress_bytes", "processed_blocks"];
const BOUNDS: Bounds = Bounds { leases: 9, id_bytes: 60, borrow_ids: 4, report_keys: 2 };
/// The last days of a month, so that days and months change while a case runs.
const WALL_START: i64 = 1_798_675_200;

/// An organization, a metric and an amount.
type Usage = (&'static str, &'static str, f64);

/// One step of a case. A `usize` selects one of all grants so far.
#[derive(Clone, Debug)]
enum Step {
    Borrow(Ask, Deal),
    KeepAlive(usize, Option<&'static str>),
    Release(usize, Option<&'static str>, Duration),
    ReleaseBorrow(u128, Option<&'static str>, Duration),
    Undo(usize),
    Revoke(usize),
    Enforce(Stops),
    Report(Option<&'static str>, Option<&'static str>, Vec<Usage>, Stops),
    Pass(Duration),
    PassDays(i64),
    Restart(Duration),
}

#[derive(Clone, Debug)]
struct World {
    /// The most records that one operation of the ledger handles. The model has no such bound.
    records_per_hold: usize,
    model: Model,
    wall: i64,
    answer: Answer,
}

impl World {
    fn pick(&self, number: usize) -> usize {
        number % self.model.grants.max(1)
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let ids = (
        prop::sample::select(&INDEXERS[..]),
        prop::sample::select(&SERVICES[..]),
        prop::sample::select(&ORGANIZATIONS[..]),
        prop::sample::select(&API_KEYS[..]),
        prop::sample::select(&TRACES[..]),
    );
    let borrow_id = prop::option::weighted(0.3, 0..6u128);
    (ids, prop_oneof![2 => Just(0), 3 => 1..4i64], borrow_id).prop_map(
        |((indexer, service, organization, api_key, trace), max_workers, borrow_id)| Ask {
            indexer,
            service,
            organization,
            api_key,
            trace,
            max_workers,
            borrow_id,
        },
    )
}

fn budget() -> impl Strategy<Value = Budget> {
    (prop::sample::select(&METRICS[..]), 0..20u32, any::<bool>()).prop_map(
        |(metric, amount, daily)| Budget {
            metric: metric.into(),
            amount: f64::from(amount),
            per: if daily { Period::Day } else { Period::Month },
        },
    )
}

fn stops() -> impl Strategy<Value = Stops> {
    let some =
        |names: &'static [&'static str]| prop::collection::vec(prop::sample::select(names), 0..2);
    let budget = (prop::sample::select(&ORGANIZATIONS[..]), budget());
    let budgets = prop::collection::vec(budget, 0..3);
    (some(&ORGANIZATIONS), some(&API_KEYS[1..]), budgets, some(&SERVICES)).prop_map(
        |(disabled, disabled_keys, budgets, observed)| Stops {
            disabled,
            disabled_keys,
            budgets,
            observed,
        },
    )
}

fn deal() -> impl Strategy<Value = Deal> {
    let limit = || prop::option::weighted(0.5, 0..6u64);
    let ttl = prop_oneof![Just(1_000), Just(60_000), Just(120_000)];
    let budgets = prop::collection::vec(budget(), 0..2);
    let observe = prop::bool::weighted(0.1);
    (limit(), limit(), limit(), ttl, observe, budgets, 0..3u64).prop_map(
        |(service, organization, api_key, ttl, observe, budgets, max_unnamed)| Deal {
            service,
            organization,
            api_key,
            ttl: Duration::from_millis(ttl),
            observe,
            budgets,
            max_unnamed,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let caller = || prop::sample::select(&INDEXERS[..]);
    let life = || prop_oneof![Just(0), Just(5_000), Just(90_000), Just(900_000)];
    let life = move || life().prop_map(Duration::from_millis);
    let usage = (
        prop::sample::select(&ORGANIZATIONS[..]),
        prop::sample::select(&METRICS[..]),
        prop_oneof![9 => (0..9u32).prop_map(f64::from), 1 => Just(f64::NAN)],
    );
    let key = prop::option::of(prop::sample::select(&["report-1", "report-2", "report-3"][..]));
    prop_oneof![
        8 => (ask(), deal()).prop_map(|(ask, deal)| Step::Borrow(ask, deal)),
        4 => (any::<usize>(), caller()).prop_map(|(at, by)| Step::KeepAlive(at, by)),
        4 => (any::<usize>(), caller(), life()).prop_map(|(at, by, l)| Step::Release(at, by, l)),
        1 => (0..6u128, caller(), life()).prop_map(|(id, by, l)| Step::ReleaseBorrow(id, by, l)),
        1 => any::<usize>().prop_map(Step::Undo),
        1 => any::<usize>().prop_map(Step::Revoke),
        1 => stops().prop_map(Step::Enforce),
        2 => (caller(), key, prop::collection::vec(usage, 0..3), stops())
            .prop_map(|(by, key, usages, stops)| Step::Report(by, key, usages, stops)),
        4 => (0..70_000u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        1 => prop_oneof![8 => 0..3i64, 2 => -2..0i64, 1 => -4_000..4_000i64].prop_map(Step::PassDays),
        1 => prop_oneof![Just(0), 0..600_000u64].prop_map(|ms| Step::Restart(Duration::from_millis(ms))),
    ]
}

struct Rules;

impl ReferenceStateMachine for Rules {
    type State = World;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<World> {
        let world = |records_per_hold| World {
            records_per_hold,
            model: Model::new(BOUNDS),
            wall: WALL_START,
            answer: Answer::None,
        };
        prop_oneof![1..5usize, Just(lease::RECORDS_PER_HOLD)].prop_map(world).boxed()
    }

    fn transitions(_: &World) -> BoxedStrategy<Step> {
        step().boxed()
    }

    fn apply(mut world: World, step: &Step) -> World {
        let wall = WallTime::from_unix(world.wall);
        world.answer = match step {
            Step::Borrow(ask, deal) => world.model.borrow(ask, deal, wall),
            Step::KeepAlive(at, by) => world.model.keep_alive(world.pick(*at), *by),
            Step::Release(at, by, life) => world.model.release(world.pick(*at), *by, *life),
            Step::ReleaseBorrow(id, by, life) => world.model.release_borrow(*id, *by, *life),
            Step::Undo(at) => world.model.undo(world.pick(*at)),
            Step::Revoke(at) => world.model.revoke(world.pick(*at), Reason::Operator),
            Step::Enforce(stops) => world.model.enforce(stops, wall),
            Step::Report(by, key, usages, stops) => {
                world.model.report(*by, *key, usages, &ORGANIZATIONS, stops, wall)
            }
            Step::Pass(time) => {
                world.model.now += *time;
                world.model.expire();
                Answer::None
            }
            Step::PassDays(days) => {
                world.wall += days * 86_400;
                Answer::None
            }
            Step::Restart(later) => {
                world.model.restart(*later);
                Answer::None
            }
        };
        world
    }
}

/// The ledger under test, with what its callers know.
struct Tested {
    ledger: Ledger,
    /// The ids of all grants, in their order.
    ids: Vec<lease::LeaseId>,
    asked: Vec<Ask>,
    now: Timestamp,
    wall: i64,
    kept: Kept,
    records_per_hold: usize,
}

fn request(ask: &Ask) -> Request<'static> {
    Request {
        indexer: ask.indexer,
        service: ask.service,
        organization: ask.organization,
        api_key: ask.api_key,
        trace: ask.trace,
        max_workers: ask.max_workers,
        borrow_id: ask.borrow_id.map(BorrowId),
    }
}

impl Tested {
    fn id(&self, number: usize) -> lease::LeaseId {
        let known = self.ids.get(number % self.ids.len().max(1)).copied();
        known.unwrap_or(lease::LeaseId::new(0, 77, [0; 12]))
    }

    fn borrow(&mut self, ask: &Ask, deal: &Deal) -> Answer {
        let limits = Limits {
            service: deal.service,
            organization: deal.organization,
            api_key: deal.api_key,
        };
        let terms = Terms {
            limits,
            ttl: deal.ttl,
            observe: deal.observe,
            budgets: &deal.budgets,
            wall: WallTime::from_unix(self.wall),
            unnamed: (!crate::model::is_named(ask.service))
                .then_some(UnnamedServices { max: deal.max_unnamed, policy: &Names }),
            ..Terms::default()
        };
        let pool = |pool: lease::PoolState| [pool.borrowed, pool.traces, pool.own_trace];
        match self.ledger.borrow(&request(ask), &terms, self.now) {
            Ok(grant) => {
                if !grant.replayed {
                    self.ids.push(grant.id);
                    self.asked.push(ask.clone());
                }
                let grant_number = self.ids.iter().position(|id| *id == grant.id);
                Answer::Granted {
                    grant: grant_number.expect("every grant is known"),
                    ttl: grant.ttl,
                    pool: pool(grant.pool),
                    replayed: grant.replayed,
                    observed: grant.observed.is_some(),
                }
            }
            Err(Refusal::BudgetSpent(spent)) => Answer::Spent { used: spent.used },
            Err(Refusal::Denied(denied)) => Answer::Denied {
                scope: denied.scope,
                active: denied.active,
                max: denied.max,
                pool: pool(denied.pool),
            },
            Err(Refusal::Revoked(why)) => Answer::Revoked(why.reason),
            Err(Refusal::Full { .. }) => Answer::Full,
            Err(Refusal::IdsFull { .. }) => Answer::IdsFull,
            Err(Refusal::TooManyServices { .. }) => Answer::TooManyServices,
            Err(Refusal::MemoryFull(full)) => memory_full(&full, ask.indexer),
            Err(Refusal::Behind) => Answer::Behind,
            Err(Refusal::BorrowIdReused) => Answer::BorrowIdReused,
            Err(Refusal::BorrowEnded) => Answer::BorrowEnded,
            Err(Refusal::OldTerms) => unreachable!("no policy follows another"),
        }
    }

    fn apply(&mut self, step: &Step) -> Answer {
        let answer = self.answer(step);
        self.ledger.drain_changes().for_each(|change| self.kept.keep(change));
        answer
    }

    fn answer(&mut self, step: &Step) -> Answer {
        let now = self.now;
        match step {
            Step::Borrow(ask, deal) => self.borrow(ask, deal),
            Step::KeepAlive(at, by) => match self.ledger.keep_alive(self.id(*at), *by, now) {
                KeptAlive::Extended { ttl } => Answer::Extended(ttl),
                KeptAlive::Failed => Answer::Failed,
                KeptAlive::Revoked(why) => Answer::Revoked(why.reason),
            },
            Step::Release(at, by, life) => {
                released(self.ledger.release(self.id(*at), *by, *life, now))
            }
            Step::ReleaseBorrow(id, by, life) => {
                let answer = self.ledger.release_borrow(BorrowId(*id), *by, *life, now);
                answer.map_or_else(|full| memory_full(&full, *by), released)
            }
            Step::Undo(at) => {
                let asked = self.asked.get(at % self.asked.len().max(1));
                let borrow_id = asked.and_then(|ask| ask.borrow_id).map(BorrowId);
                Answer::Yes(self.ledger.undo(self.id(*at), borrow_id, now))
            }
            Step::Revoke(at) => {
                Answer::Count(self.ledger.revoke(self.id(*at), Reason::Operator, now).into())
            }
            Step::Enforce(stops) => Answer::Ended(self.enforce(stops)),
            Step::Report(by, key, usages, stops) => self.report(*by, *key, usages, stops),
            Step::Pass(time) => {
                self.now = now + *time;
                self.ledger.expire(self.now);
                Answer::None
            }
            Step::PassDays(days) => {
                self.wall += days * 86_400;
                Answer::None
            }
            Step::Restart(later) => {
                self.restart(*later);
                Answer::None
            }
        }
    }

    fn enforce(&mut self, stops: &Stops) -> Vec<(usize, Reason)> {
        let (policy, wall) = (plain(stops), WallTime::from_unix(self.wall));
        let mut enforcement = Enforcement::of_policy(&policy, ORGANIZATIONS, API_KEYS);
        let mut ended = Vec::new();
        while !enforcement.is_done() {
            let part = self.ledger.enforce(&policy, wall, &mut enforcement, self.now);
            self.add_part(&mut ended, part);
        }
        ended.sort_by_key(|(grant, _)| *grant);
        ended
    }

    /// Adds the leases that one part ended, by the numbers of their grants.
    fn add_part(&self, ended: &mut Vec<(usize, Reason)>, part: Vec<(lease::LeaseId, RevokedFor)>) {
        // For disabled API keys, a part is a part of the table, which may have more records.
        let walked = part.iter().filter(|(_, why)| why.reason != Reason::ApiKeyDisabled);
        assert!(walked.count() <= self.records_per_hold);
        let number = |id| self.ids.iter().position(|known| *known == id).expect("it was granted");
        ended.extend(part.into_iter().map(|(id, why)| (number(id), why.reason)));
    }

    fn report(
        &mut self,
        caller: Option<&str>,
        key: Option<&str>,
        usages: &[Usage],
        stops: &Stops,
    ) -> Answer {
        let mut report = Report::builder();
        for &(organization, metric, value) in usages {
            let added = report.add(organization, "", &[(metric, value)]);
            assert_eq!(added.is_err(), value.is_nan());
        }
        let submission = Submission {
            caller: caller.map(Into::into),
            idempotency_key: key.map(Into::into),
            report: report.build(),
            organizations: ORGANIZATIONS.map(Into::into).into(),
        };
        let (policy, wall) = (plain(stops), WallTime::from_unix(self.wall));
        let mut reporting = Reporting::new(submission, wall);
        let mut ended = Vec::new();
        while !reporting.is_done() {
            match self.ledger.report(&policy, wall, &mut reporting, self.now) {
                Ok(part) => self.add_part(&mut ended, part),
                Err(ReportRefusal::KeyReused) => return Answer::KeyReused,
                Err(ReportRefusal::MemoryFull(full)) => return memory_full(&full, caller),
                Err(invalid) => panic!("{invalid}"),
            }
        }
        let reported = reporting.finish();
        assert_eq!(reported.revoked, ended.len());
        ended.sort_by_key(|(grant, _)| *grant);
        let spent = |name: &&str| reported.spent.iter().any(|(spent, _)| **spent == **name);
        let spent = ORGANIZATIONS.into_iter().filter(spent).collect();
        Answer::Reported { counted: reported.counted, ended, spent }
    }

    /// The answer to `step`. An ended lease counts in its scopes until it is taken out, so the
    /// ledger may refuse a borrow that the model grants. Such a borrow is repeated after all of
    /// them are taken out.
    fn applied(&mut self, step: &Step) -> Answer {
        // A service without an entry stays in use while one of its leases is in the table.
        if matches!(step, Step::Borrow(ask, _) if !crate::model::is_named(ask.service)) {
            self.take_out();
        }
        let answer = self.apply(step);
        let is_full = matches!(
            answer,
            Answer::Denied { .. }
                | Answer::Full
                | Answer::IdsFull
                | Answer::TooManyServices
                | Answer::Behind
        );
        if is_full && self.ledger.has_backlog() {
            self.take_out();
            return self.apply(step);
        }
        answer
    }

    /// Takes out all ended leases, as the clock of a server does.
    fn take_out(&mut self) {
        while self.ledger.has_backlog() {
            self.ledger.expire(self.now);
        }
        self.ledger.drain_changes().for_each(|change| self.kept.keep(change));
    }

    /// Restarts the ledger as a server does: from its changes, or from its snapshot. Both have to
    /// give the same ledger.
    fn restart(&mut self, later: Duration) {
        let mut restarted = Ledger::new(Config { seed: [9; 32], ..config(self.records_per_hold) });
        // A restart that takes time moves the ends of lingering leases without a change.
        let changes: Vec<Change> = if later.is_zero() {
            self.take_out();
            self.kept.changes(self.now).collect()
        } else {
            self.ledger.snapshot().collect()
        };
        for change in changes {
            restarted.restore(change).expect("what was kept restores");
        }
        restarted.resume(self.now, self.ledger.next_serial(), self.now + later);
        self.now = self.now + later;
        self.kept = Kept::default();
        restarted.snapshot().for_each(|change| self.kept.keep(change));
        self.ledger = restarted;
    }
}

fn released(released: Released) -> Answer {
    match released {
        Released::Missing => Answer::Missing,
        Released::Returned => Answer::Returned,
        Released::Lingers { until } => Answer::Lingers(until.since(Timestamp::ZERO)),
    }
}

fn plain(stops: &Stops) -> Plain {
    let Stops { disabled, disabled_keys, budgets, observed } = stops.clone();
    let mut policy = Plain { disabled, disabled_keys, observed, ..Plain::default() };
    for (organization, budget) in budgets {
        policy.budgets.entry(organization).or_default().push(budget);
    }
    policy
}

fn memory_full(full: &MemoryFull, caller: Option<&str>) -> Answer {
    assert_eq!(full.indexer.as_deref(), caller);
    Answer::MemoryFull(full.memory)
}

#[derive(Debug)]
struct Names;

impl Policy for Names {
    fn is_named(&self, service: &str) -> bool {
        crate::model::is_named(service)
    }
}

fn config(records_per_hold: usize) -> Config {
    Config {
        max_leases: BOUNDS.leases as u64,
        max_id_bytes: BOUNDS.id_bytes as u64,
        max_borrow_ids: Some(BOUNDS.borrow_ids as u64),
        max_report_keys: BOUNDS.report_keys as u64,
        seed: [7; 32],
        journal: true,
        records_per_hold,
        ..Config::default()
    }
}

/// Compares an answer with the model's. An ended lease that is not taken out yet may still count in
/// the pool that the answer to a granted borrow describes.
fn assert_same(answer: Answer, expected: &Answer, has_backlog: bool, step: &Step) {
    if let (
        true,
        Answer::Granted { grant, ttl, pool, replayed, observed },
        Answer::Granted {
            grant: as_grant,
            ttl: as_ttl,
            pool: at_least,
            replayed: as_replayed,
            observed: if_observed,
        },
    ) = (has_backlog, &answer, expected)
    {
        assert_eq!((grant, ttl, replayed), (as_grant, as_ttl, as_replayed), "after {step:?}");
        assert!(pool.iter().zip(at_least).all(|(counted, live)| counted >= live));
        assert!(observed >= if_observed);
        return;
    }
    assert_eq!(answer, *expected, "after {step:?}");
}

impl StateMachineTest for Rules {
    type SystemUnderTest = Tested;
    type Reference = Self;

    fn init_test(world: &World) -> Tested {
        Tested {
            ledger: Ledger::new(config(world.records_per_hold)),
            records_per_hold: world.records_per_hold,
            ids: Vec::new(),
            asked: Vec::new(),
            now: Timestamp::ZERO,
            wall: world.wall,
            kept: Kept::default(),
        }
    }

    fn apply(mut tested: Tested, world: &World, step: Step) -> Tested {
        let answer = tested.applied(&step);
        assert_same(answer, &world.answer, tested.ledger.has_backlog(), &step);
        tested
    }

    fn check_invariants(tested: &Tested, world: &World) {
        // The audit recomputes every count from the table and compares it with the kept count.
        assert_eq!(tested.ledger.audit(), Ok(()));
        // An ended lease is not listed, even if it is not taken out yet.
        let live: Vec<u64> = sorted(tested.ledger.leases().map(|lease| lease.id.serial()));
        let held = world.model.held.iter().map(|held| tested.ids[held.grant].serial());
        assert_eq!(live, sorted(held));
        let parts = (0..).map_while(|part| tested.ledger.listed(part)).flatten();
        assert_eq!(live, sorted(parts.map(|lease| lease.number.serial())));
        assert!(tested.ledger.has_backlog() || tested.ledger.len() == live.len());
        // Keys are never used again.
        let mut ids: Vec<String> = tested.ids.iter().map(ToString::to_string).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), tested.ids.len());
        let first = world.model.held.iter().map(|held| held.ends_at).min();
        if let Some(first) = first {
            let next = tested.ledger.next_expiry().expect("something is to end");
            assert!(next <= Timestamp::ZERO + first);
        }
    }

    fn teardown(mut tested: Tested, world: World) {
        tested.take_out();
        for (service, organization) in
            SERVICES.iter().flat_map(|service| ORGANIZATIONS.iter().map(move |o| (service, o)))
        {
            let pool = tested.ledger.state(service, organization, tested.now);
            let traces = pool.traces.into_iter().map(|(trace, leases)| (trace.into(), leases));
            let counted = (pool.leases, traces.collect());
            assert_eq!(counted, world.model.state(service, organization));
        }
        // Nothing leaks: without keep-alives, every lease ends.
        while let Some(next) = tested.ledger.next_expiry() {
            tested.ledger.expire(next.max(tested.now));
        }
        assert!(tested.ledger.is_empty());
        assert_eq!(tested.ledger.leases_by_service().count(), 0);
        assert_eq!(tested.ledger.audit(), Ok(()));
    }
}

fn sorted(serials: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut serials: Vec<u64> = serials.collect();
    serials.sort_unstable();
    serials
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_ledger_answers_as_the_plain_model_does(sequential 1..40 => Rules);
}

/// The state that a store keeps from the changes.
#[derive(Default)]
struct Kept {
    leases: Vec<lease::Lease>,
    used: HashMap<(Box<str>, Box<str>), Used>,
    /// In the order of the changes.
    remembered: Vec<Change>,
}

impl Kept {
    fn keep(&mut self, change: Change) {
        match change {
            Change::Granted(lease) => self.leases.push(*lease),
            Change::Lingers { id, until } => {
                let lease = self.leases.iter_mut().find(|lease| lease.id == id);
                lease.expect("granted before").lingers_until = Some(until);
            }
            Change::Ended { id, .. } => {
                let at = self.leases.iter().position(|lease| lease.id == id).expect("ended once");
                self.leases.remove(at);
            }
            Change::Used { organization, metric, used } => {
                self.used.insert((organization, metric), used);
            }
            Change::Unused { organization, metric } => {
                self.used.remove(&(organization, metric));
            }
            Change::TraceGone(end) => {
                self.remembered.retain(|kept| *kept != Change::TraceEnded(end.clone()));
            }
            Change::TraceEnded(_)
            | Change::Revoked(_)
            | Change::Reported { .. }
            | Change::BorrowEnded { .. } => self.remembered.push(change),
        }
    }

    /// Everything that is kept, except facts whose time is over.
    fn changes(&self, now: Timestamp) -> impl Iterator<Item = Change> {
        let leases = self.leases.iter().map(|lease| Change::Granted(Box::new(lease.clone())));
        let used = self.used.iter().map(|((organization, metric), used)| Change::Used {
            organization: organization.clone(),
            metric: metric.clone(),
            used: *used,
        });
        let remembered = self.remembered.iter().filter(move |change| match change {
            Change::Revoked(revocation) => revocation.until > now,
            Change::Reported { until, .. } | Change::BorrowEnded { until, .. } => *until > now,
            _ => true,
        });
        leases.chain(remembered.cloned()).chain(used)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The changes alone, applied in order, always give the leases that the ledger holds.
    #[test]
    fn the_changes_say_exactly_which_leases_there_are(steps in prop::collection::vec(step(), 1..40)) {
        let mut tested = Rules::init_test(&World {
            records_per_hold: lease::RECORDS_PER_HOLD,
            model: Model::new(BOUNDS),
            wall: WALL_START,
            answer: Answer::None,
        });
        for step in &steps {
            tested.apply(step);
            tested.take_out();
            let mut there: Vec<lease::Lease> = tested.ledger.leases().collect();
            let mut said: Vec<lease::Lease> =
                tested.kept.leases.iter().map(|lease| lease::Lease { borrowed_as: None, ..lease.clone() }).collect();
            there.sort_by_key(|lease| lease.id.serial());
            said.sort_by_key(|lease| lease.id.serial());
            prop_assert_eq!(there, said);
        }
    }
}
