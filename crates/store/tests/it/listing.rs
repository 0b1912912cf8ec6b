//! What a store lists while calls go on: pages of leases, pools, usage, and ending by number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lease::{KeptAlive, Kind, LeaseId, LeaseNumber, Reason, Request, RevokedFor, Terms, Usage};
use parking_lot::Mutex;
use policy::Policy;
use proptest::prelude::*;
use store::testing::{ManualClock, entry};
use store::{
    LeaseFilter, LeasePage, Listener, MAX_PAGE, Options, Order, Recovered, Store, UsageReport,
};

fn store() -> (Store, Arc<ManualClock>) {
    let clock = ManualClock::new();
    let options = Options { clock: clock.clone(), ..Options::default() };
    (Recovered::memory(options).unwrap().resume().unwrap(), clock)
}

async fn borrow(store: &Store, request: Request<'_>) -> LeaseId {
    let lease = store.borrow(&request, &Terms::default()).await.unwrap();
    let id = lease.grant.id;
    lease.delivery.complete();
    id
}

/// All pages of one walk, with `between` run after each.
async fn walk(
    store: &Store,
    order: Order,
    limit: usize,
    mut between: impl AsyncFnMut(),
) -> Vec<LeaseNumber> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let filter = LeaseFilter::default();
        let LeasePage { leases, next, .. } =
            store.leases(filter, order, after, limit).await.unwrap();
        seen.extend(leases.iter().map(|lease| lease.number));
        after = next;
        if after.is_none() {
            return seen;
        }
        between().await;
    }
}

#[tokio::test]
async fn a_filter_lets_through_what_matches_all_of_it_and_the_total_is_of_all_pages() {
    let (store, _) = store();
    let base = Request::session("t1r", "acme");
    for request in [
        base.trace("a"),
        base.trace("a").indexer("one"),
        base.trace("b").api_key("k"),
        Request::session("t2w", "acme"),
        Request::session("t1r", "globex").trace("a"),
        Request::worker("t2w", "acme", "a", 9).indexer("one"),
    ] {
        borrow(&store, request).await;
    }
    let total = async |filter: LeaseFilter| {
        let page = store.leases(filter, Order::Newest, None, 2).await.unwrap();
        assert_eq!(page.leases.len() as u64, page.total.min(2));
        page.total
    };
    let text = |text: &str| Some(Box::from(text));
    let all = LeaseFilter::default;
    assert_eq!(total(all()).await, 6);
    assert_eq!(total(LeaseFilter { organization: text("acme"), ..all() }).await, 5);
    assert_eq!(total(LeaseFilter { service: text("t2w"), ..all() }).await, 2);
    assert_eq!(total(LeaseFilter { trace: text("a"), ..all() }).await, 4);
    assert_eq!(total(LeaseFilter { api_key: text("k"), ..all() }).await, 1);
    assert_eq!(total(LeaseFilter { indexer: text("one"), ..all() }).await, 2);
    assert_eq!(total(LeaseFilter { indexer: text(""), ..all() }).await, 0);
    assert_eq!(total(LeaseFilter { kind: Some(Kind::Worker), ..all() }).await, 1);
    let (trace, kind) = (text("a"), Some(Kind::Session));
    assert_eq!(total(LeaseFilter { trace, kind, organization: text("acme"), ..all() }).await, 2);
}

#[tokio::test]
async fn a_listed_lease_says_everything_but_its_key() {
    let (store, clock) = store();
    let request = Request::session("t1r", "acme").trace("a").api_key("k").indexer("one");
    let id = borrow(&store, request).await;
    borrow(&store, Request::worker("t2w", "acme", "a", 9).indexer("one")).await;
    clock.jump(Duration::from_millis(400));
    let listed = store.find(id.number()).await.unwrap().unwrap();
    assert_eq!((&*listed.service, &*listed.organization), ("t1r", "acme"));
    assert_eq!((&*listed.trace, &*listed.api_key), ("a", "k"));
    assert_eq!(listed.indexer.as_deref(), Some("one"));
    assert_eq!((listed.kind, listed.workers, listed.lingers), (Kind::Session, 1, false));
    assert_eq!(listed.age, Duration::from_millis(400));
    assert_eq!(listed.ttl, Duration::from_secs(60));
    assert_eq!(listed.ends_in, Duration::from_millis(59_600));
    store.release(id, Some("one"), Duration::from_secs(5)).await.unwrap();
    let listed = store.find(id.number()).await.unwrap().unwrap();
    assert_eq!((listed.lingers, listed.ends_in), (true, Duration::from_millis(4_600)));
    let page = store.leases(LeaseFilter::default(), Order::Oldest, None, 1).await.unwrap();
    assert_eq!(page.leases, [listed]);
    // An ended lease is not listed, even if only reads have run since its end.
    for _ in 0..10 {
        clock.jump(Duration::from_millis(500));
        assert_eq!(store.find(LeaseId::new(9, 9, [0; 12]).number()).await, Ok(None));
    }
    assert_eq!(store.find(id.number()).await, Ok(None));
}

#[tokio::test]
async fn pages_are_bounded() {
    let (store, _) = store();
    for _ in 0..MAX_PAGE + 1 {
        borrow(&store, Request::session("t1r", "acme")).await;
    }
    let list = async |limit| {
        store.leases(LeaseFilter::default(), Order::Newest, None, limit).await.unwrap()
    };
    let page = list(usize::MAX).await;
    assert_eq!((page.leases.len(), page.total), (MAX_PAGE, MAX_PAGE as u64 + 1));
    assert_eq!(page.next, page.leases.last().map(|lease| lease.number));
    let page = list(0).await;
    assert_eq!((page.leases.len(), page.total, page.next), (0, MAX_PAGE as u64 + 1, None));
}

#[tokio::test]
async fn a_walk_while_others_borrow_and_return_misses_and_repeats_nothing_that_stays() {
    let (store, _) = store();
    let mut stays = BTreeSet::new();
    for _ in 0..5_000 {
        stays.insert(borrow(&store, Request::session("t1r", "acme")).await.number());
    }
    let (store, over) = (Arc::new(store), Arc::new(AtomicBool::new(false)));
    let churning = std::thread::spawn({
        let (store, over) = (store.clone(), over.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut held = std::collections::VecDeque::new();
                let mut rounds = 0_u32;
                while !over.load(Ordering::Relaxed) || rounds < 1_000 {
                    held.push_back(borrow(&store, Request::session("t1r", "globex")).await);
                    if held.len() > 40 {
                        let id = held.pop_front().unwrap();
                        store.release(id, None, Duration::ZERO).await.unwrap();
                    }
                    rounds += 1;
                }
            });
        }
    });
    for order in [Order::Newest, Order::Oldest] {
        let seen = walk(&store, order, 300, async || {}).await;
        assert!(seen.is_sorted_by(|a, b| if order == Order::Oldest { a < b } else { a > b }));
        assert!(stays.is_subset(&seen.into_iter().collect()));
    }
    over.store(true, Ordering::Relaxed);
    churning.join().unwrap();
}

#[tokio::test]
async fn pools_and_usage_come_in_order_with_their_counts() {
    let (store, _) = store();
    for organization in ["globex", "acme"] {
        borrow(&store, Request::session("t2w", organization)).await;
        borrow(&store, Request::session("t1r", organization).trace("a")).await;
        borrow(&store, Request::worker("t1r", organization, "a", 9)).await;
        let usages = ["requests", "egress_bytes"].map(|metric| Usage {
            organization,
            metric,
            value: metric.len() as f64,
        });
        let policy = Arc::new(Policy::built_in());
        store.report(UsageReport::of(None, None, &usages, policy).0).await.unwrap();
    }
    let pools = store.pools().await.unwrap();
    let pools: Vec<_> = pools
        .iter()
        .map(|pool| (&*pool.organization, &*pool.service, pool.leases, pool.sessions))
        .collect();
    let of = |organization| [(organization, "t1r", 2, 1), (organization, "t2w", 1, 1)];
    assert_eq!(pools, [of("acme"), of("globex")].concat());
    let usage = store.usage().await.unwrap();
    let usage: Vec<_> = usage
        .iter()
        .map(|count| (&*count.organization, &*count.metric, count.used.day.1))
        .collect();
    let of = |organization| [(organization, "egress_bytes", 12.0), (organization, "requests", 8.0)];
    assert_eq!(usage, [of("acme"), of("globex")].concat());
    assert_eq!(store.used("acme").await.unwrap().len(), 2);
    assert_eq!(store.used("initech").await.unwrap(), []);
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<(LeaseId, Reason)>>);

impl Listener for Heard {
    fn revoked(&self, id: LeaseId, why: RevokedFor) {
        self.0.lock().push((id, why.reason));
    }
}

#[tokio::test]
async fn a_lease_is_ended_by_its_number_with_its_workers_and_its_holder_is_notified() {
    let (store, _) = store();
    let session = borrow(&store, Request::session("t1r", "acme").trace("a")).await;
    let worker = borrow(&store, Request::worker("t2w", "acme", "a", 9)).await;
    let other = borrow(&store, Request::session("t1r", "acme").trace("b")).await;
    let heard = Arc::new(Heard::default());
    let attachment = store.attach(heard.clone());
    store.keep_alive_batch(&[Some(session), Some(other)], None, &attachment).await;
    // A number is enough to end a lease, and not enough to keep the lease alive.
    let revoke = || store.revoke_number(session.number(), Reason::Operator, entry("ended it"));
    let told = revoke().await.unwrap().unwrap();
    assert_eq!((told.number, told.ended, &*told.action), (1, 2, "ended it"));
    assert_eq!(*heard.0.lock(), [(session, Reason::Operator)]);
    let kept = store.keep_alive(session, None).await;
    assert_eq!(kept, Ok(KeptAlive::Revoked(Reason::Operator.into())));
    assert_eq!(store.keep_alive(worker, None).await, Ok(KeptAlive::Failed));
    assert!(matches!(store.keep_alive(other, None).await, Ok(KeptAlive::Extended { .. })));
    assert_eq!(revoke().await, Ok(None));
    assert_eq!(store.audit(None, 10), [told], "nothing more is written down");
}

#[tokio::test]
async fn a_first_or_repeated_report_says_which_organizations_have_spent_a_budget() {
    let (store, _) = store();
    let policy = "
        [services.t1r]
        [plans.small]
        budgets = { egress_bytes = { amount = 10, per = \"month\" } }
        [organizations.acme]
        plan = \"small\"
        [organizations.globex]
        plan = \"small\"
    ";
    let policy = Arc::new(Policy::parse(policy, "test.toml").unwrap().policy);
    let usage = |organization, value| Usage { organization, metric: "egress_bytes", value };
    let report = async |usages: &[Usage<'_>], key| {
        let report = UsageReport::of(None, Some(key), usages, policy.clone()).0;
        store.report(report).await.unwrap()
    };
    let usages = [usage("globex", 9.0), usage("acme", 6.0), usage("acme", 6.0)];
    for counted in [true, false] {
        let reported = report(&usages, "one").await;
        assert_eq!(reported.counted, counted);
        let spent: Vec<_> =
            reported.spent.iter().map(|(name, spent)| (&**name, spent.used)).collect();
        assert_eq!(spent, [("acme", 12.0)]);
    }
    // The budget was spent before, and no lease is left to end. The answer still says that it is
    // spent.
    let reported = report(&[usage("acme", 0.0), usage("other", 1e9)], "two").await;
    assert_eq!((reported.counted, reported.revoked, reported.spent.len()), (true, 0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_neither_miss_nor_repeat_a_lease_that_lives_through_the_whole_walk(
        leases in 1..1_500_u32,
        limit in 1..400_usize,
        newest: bool,
        steps in prop::collection::vec(any::<(bool, u16)>(), 1..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (store, _) = store();
            let mut held = Vec::new();
            for _ in 0..leases {
                held.push(borrow(&store, Request::session("t1r", "acme")).await);
            }
            let mut stays: BTreeSet<_> = held.iter().map(LeaseId::number).collect();
            let mut steps = steps.into_iter();
            let order = if newest { Order::Newest } else { Order::Oldest };
            let mut seen = walk(&store, order, limit, async || {
                for (borrows, at) in steps.by_ref().take(20) {
                    if borrows || held.is_empty() {
                        held.push(borrow(&store, Request::session("t1r", "acme")).await);
                    } else {
                        let id = held.swap_remove(usize::from(at) % held.len());
                        store.release(id, None, Duration::ZERO).await.unwrap();
                        stays.remove(&id.number());
                    }
                }
            }).await;
            let in_order = |a: &LeaseNumber, b: &LeaseNumber| if newest { a > b } else { a < b };
            prop_assert!(seen.is_sorted_by(in_order), "in order, and nothing twice");
            seen.sort_unstable();
            prop_assert!(stays.is_subset(&seen.into_iter().collect()));
            Ok(())
        })?;
    }
}
