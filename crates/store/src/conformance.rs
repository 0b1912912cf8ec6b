//! Random operations on stores with each journal, compared answer for answer with a pure ledger.
//!
//! The ledger has no journal: where a store is closed and opened again, or another server takes over, the
//! ledger is made again from its own snapshot. Another journal is one more test at the end of this file.

use std::sync::Arc;
use std::time::Duration;

use lease::{
    BorrowId, Config, Grant, LeaseId, Ledger, Limits, ListedLease, Reason, Refusal, Reporting,
    Request, Terms, Timestamp, Usage,
};
use policy::Policy;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::journal::postgres::tests::cluster::Cluster;
use crate::testing::etcd::Etcd;
use crate::testing::{ManualClock, eventually};
use crate::{
    BorrowError, LeaseFilter, Options, Order, Recovered, ReleaseError, ReportError, Store,
    UsageReport,
};

/// Operations between two restarts, on average.
const BETWEEN_RESTARTS: u64 = 25;

const OPERATIONS: usize = 200;

/// The longest step of the clock that counts in full.
const STEP: Duration = Duration::from_millis(400);

/// A policy with a budget.
const POLICY: &str = "[services.default]\n[plans.pro]\n\
    budgets = { egress_bytes = { amount = 300, per = \"day\" } }\n[organizations.globex]\nplan = \"pro\"";

/// Where the stores of a test are.
#[derive(Clone)]
struct Engine {
    url: String,
    /// Whether leases outlive the process.
    is_durable: bool,
    /// Whether several servers use the store.
    is_fleet: bool,
}

impl Engine {
    async fn open(&self) -> (Arc<Store>, Arc<ManualClock>) {
        let clock = ManualClock::new();
        // Longer than any test by its own clock: no validity lapses.
        let leader_ttl = Duration::from_secs(1_000_000);
        let options = Options { clock: clock.clone(), leader_ttl, ..Options::default() };
        let url = self.url.parse().unwrap();
        let open = move || Recovered::open(&url, options).unwrap().resume().unwrap();
        (Arc::new(tokio::task::spawn_blocking(open).await.unwrap()), clock)
    }
}

/// Lets a server of a fleet begin its term. Its clock goes on until it is elected.
async fn lead(store: &Store, clock: &ManualClock) {
    let (_, leader) = store.fleet().unwrap();
    eventually("the server leads", async || {
        if !leader.borrow().as_ref().is_some_and(|leader| leader.is_self) {
            clock.jump(Duration::from_secs(50_000));
        }
        if let Some(number) = *store.terms().borrow() {
            store.serve_term(number);
        }
        store.ready().is_ok()
    })
    .await;
}

/// A store and the ledger that it must equal.
struct Pair {
    engine: Engine,
    random: ChaCha8Rng,
    store: Arc<Store>,
    clock: Arc<ManualClock>,
    ledger: Ledger,
    policy: Arc<Policy>,
    /// The key of each grant: in the store, and in the ledger.
    granted: Vec<(LeaseId, LeaseId)>,
}

impl Pair {
    async fn new(engine: Engine, seed: u64) -> Self {
        let (store, clock) = engine.open().await;
        if engine.is_fleet {
            lead(&store, &clock).await;
        }
        let mut ledger = Ledger::new(Config::default());
        let now = store.shared.read(Ledger::now).unwrap();
        ledger.resume(now, 1, now);
        let policy = Arc::new(Policy::parse(POLICY, "test.toml").unwrap().policy.numbered(1));
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { engine, random, store, clock, ledger, policy, granted: Vec::new() }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    /// The time at which the store carried out its last operation.
    fn now(&self) -> Timestamp {
        self.store.shared.read(Ledger::now).unwrap()
    }

    /// Any grant: mostly one of the last, and now and then none that was ever made.
    fn any(&mut self) -> (LeaseId, LeaseId) {
        let unknown = LeaseId::new(3, 4_000, [9; 12]);
        let (last, back) = (self.granted.len(), self.below(12) as usize);
        if back < last { self.granted[last - 1 - back] } else { (unknown, unknown) }
    }

    async fn operate(&mut self) {
        match self.below(20) {
            0..7 => self.borrow().await,
            7..10 => {
                let (id, own) = self.any();
                let caller = self.caller();
                let answer = self.store.keep_alive(id, caller).await.unwrap();
                assert_eq!(answer, self.ledger.keep_alive(own, caller, self.now()));
            }
            10..13 => {
                let (id, own) = self.any();
                let (caller, life) = (self.caller(), Duration::from_secs(self.below(4)));
                let answer = self.store.release(id, caller, life).await.unwrap();
                assert_eq!(answer, self.ledger.release(own, caller, life, self.now()));
            }
            13 => {
                let (borrow_id, caller) = (BorrowId(self.below(9).into()), self.caller());
                let life = Duration::from_secs(self.below(3));
                let answer = match self.store.release_borrow(borrow_id, caller, life).await {
                    Err(ReleaseError::Unavailable(error)) => panic!("{error}"),
                    Err(ReleaseError::MemoryFull(full)) => Err(full),
                    Ok(released) => Ok(released),
                };
                let now = self.now();
                assert_eq!(answer, self.ledger.release_borrow(borrow_id, caller, life, now));
            }
            14 => {
                let (id, own) = self.any();
                let answer = self.store.revoke(id, Reason::Operator).await.unwrap();
                assert_eq!(answer, self.ledger.revoke(own, Reason::Operator, self.now()));
            }
            15 => self.report().await,
            _ => {
                let part = self.below(100) as f64 / 99.0;
                self.clock.jump(STEP.mul_f64(part));
                self.store.tick();
                let now = self.now();
                self.ledger.expire(now);
            }
        }
    }

    fn caller(&mut self) -> Option<&'static str> {
        [Some("west"), Some("west"), Some("east"), None][self.below(4) as usize]
    }

    async fn borrow(&mut self) {
        let request = Request {
            indexer: self.caller(),
            service: ["t1r", "t2w"][self.below(2) as usize],
            organization: ["acme", "globex", "with\0nul\\"][self.below(3) as usize],
            api_key: ["", "key-1"][self.below(2) as usize],
            trace: ["", "trace-a", "trace-b"][self.below(3) as usize],
            max_workers: [0, 0, 2, 3][self.below(4) as usize],
            borrow_id: (self.below(3) == 0).then(|| BorrowId(self.below(9).into())),
        };
        let limit = |bound: u64, most: u64| (bound > 0).then_some(most);
        let policy = self.policy.clone();
        let terms = Terms {
            limits: Limits {
                service: limit(self.below(3), 12),
                organization: limit(self.below(3), 5),
                api_key: limit(self.below(3), 3),
            },
            ttl: Duration::from_secs(2 + self.below(4)),
            observe: self.below(8) == 0,
            budgets: policy.organization_budgets(request.organization),
            wall: crate::Clock::wall(&*self.clock),
            ..Terms::default()
        };
        let answer = match self.store.borrow(&request, &terms).await {
            Ok(borrowed) => {
                borrowed.delivery.complete();
                Ok(borrowed.grant)
            }
            Err(BorrowError::Refused(refusal)) => Err(refusal),
            Err(BorrowError::Unavailable(error)) => panic!("{error}"),
        };
        let own = self.ledger.borrow(&request, &terms, self.now());
        if let (Ok(grant), Ok(own)) = (&answer, &own)
            && !grant.replayed
        {
            self.granted.push((grant.id, own.id));
        }
        assert_eq!(self.numbered(answer, |ids| ids.0), self.numbered(own, |ids| ids.1));
    }

    /// The answer with the number of the grant in place of its key, which is random.
    fn numbered(
        &self,
        answer: Result<Grant, Refusal>,
        side: impl Fn(&(LeaseId, LeaseId)) -> LeaseId,
    ) -> Result<(usize, Grant), Refusal> {
        let mut grant = answer?;
        let number = self.granted.iter().position(|ids| side(ids) == grant.id).unwrap();
        grant.id = self.granted[0].0;
        Ok((number, grant))
    }

    async fn report(&mut self) {
        let organizations = ["acme", "globex"];
        let usage = Usage {
            organization: organizations[self.below(2) as usize],
            metric: "egress_bytes",
            value: self.below(100) as f64,
        };
        let key = format!("key-{}", self.below(6));
        let (caller, key) = (self.caller(), (self.below(2) == 0).then_some(&*key));
        let report = || UsageReport::of(caller, key, &[usage], self.policy.clone()).0;
        let answer = match self.store.report(report()).await {
            Err(ReportError::Unavailable(error)) => panic!("{error}"),
            Err(ReportError::Refused(refusal)) => Err(refusal),
            Ok(reported) => Ok(reported),
        };
        let wall = crate::Clock::wall(&*self.clock);
        let (now, mut reporting) = (self.now(), Reporting::new(report().submission, wall));
        let mut own = Ok(());
        while own.is_ok() && !reporting.is_done() {
            own = self.ledger.report(&*self.policy, wall, &mut reporting, now).map(drop);
        }
        assert_eq!(answer, own.map(|()| reporting.finish()));
    }

    /// Closes the store and opens it again, or lets another server of the fleet take over.
    async fn restart(&mut self) {
        if self.engine.is_fleet {
            let (next, clock) = self.engine.open().await;
            if self.below(2) == 0 {
                let handed_over = async || self.store.step_down(true).await.is_ok();
                eventually("the leader sees its successor", handed_over).await;
            } else {
                self.store.close().unwrap();
            }
            lead(&next, &clock).await;
            self.store.close().unwrap();
            (self.store, self.clock) = (next, clock);
        } else {
            self.store.close().unwrap();
            (self.store, self.clock) = self.engine.open().await;
        }
        let (now, before) = (self.now(), self.ledger.snapshot().collect::<Vec<_>>());
        let next_serial = self.ledger.next_serial();
        self.ledger = Ledger::new(Config::default());
        if !self.engine.is_durable {
            self.granted.clear();
            return self.ledger.resume(now, next_serial, now);
        }
        for change in before {
            self.ledger.restore(change).unwrap();
        }
        self.ledger.resume(now, next_serial, now);
        if self.engine.is_fleet {
            self.ledger.extend_all(now);
        }
    }

    /// Compares everything that can be read.
    async fn compare(&self) {
        self.store.tick();
        let page =
            self.store.leases(LeaseFilter::default(), Order::Oldest, None, 1_000).await.unwrap();
        let find = |number, side: fn(&(LeaseId, LeaseId)) -> LeaseId| {
            self.granted.iter().position(|ids| side(ids).number() == number).unwrap()
        };
        let numbered = |lease: ListedLease, side| {
            let grant = find(lease.number, side);
            (grant, ListedLease { number: self.granted[0].0.number(), ..lease })
        };
        let mut listed: Vec<_> =
            page.leases.into_iter().map(|lease| numbered(lease, |ids| ids.0)).collect();
        let own = (0..).map_while(|part| {
            Some(self.ledger.listed(part)?.map(ListedLease::from).collect::<Vec<_>>())
        });
        let mut own: Vec<_> = own.flatten().map(|lease| numbered(lease, |ids| ids.1)).collect();
        listed.sort_by_key(|(grant, _)| *grant);
        own.sort_by_key(|(grant, _)| *grant);
        assert_eq!(listed, own);
        for organization in ["acme", "globex", "with\0nul\\"] {
            let mut used = self.store.used(organization).await.unwrap();
            let own = self.ledger.used(organization).map(|(metric, used)| (metric.into(), used));
            let mut own: Vec<_> = own.collect();
            used.sort_by(|one, other| one.0.cmp(&other.0));
            own.sort_by(|one: &(Box<str>, _), other| one.0.cmp(&other.0));
            assert_eq!(used, own);
        }
        self.ledger.audit().unwrap();
    }
}

/// Runs random operations, with restarts in between, and compares every answer.
async fn conforms(engine: impl Fn(u64) -> Engine) {
    for seed in 0..6 {
        println!("seed {seed}");
        let mut pair = Pair::new(engine(seed), seed).await;
        let mut grants = 0;
        for _ in 0..OPERATIONS {
            let before = pair.granted.len();
            if pair.below(BETWEEN_RESTARTS) == 0 {
                pair.restart().await;
            }
            pair.operate().await;
            grants += usize::from(pair.granted.len() > before);
            pair.compare().await;
        }
        assert!(grants > 20, "only {grants} leases were granted");
        pair.store.close().unwrap();
    }
}

#[tokio::test]
async fn a_store_in_memory_answers_as_its_ledger() {
    let url = "memory:".to_owned();
    conforms(|_| Engine { url: url.clone(), is_durable: false, is_fleet: false }).await;
}

#[tokio::test]
async fn a_store_in_a_file_answers_as_its_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let url = |seed| format!("file:{}/{seed}.redb", folder.path().display());
    conforms(|seed| Engine { url: url(seed), is_durable: true, is_fleet: false }).await;
}

#[tokio::test]
async fn a_store_on_postgres_answers_as_its_ledger() {
    let Some(cluster) = Cluster::shared() else { return };
    let place = format!("postgres://tgm@127.0.0.1:{}/postgres", cluster.port);
    let url = |seed| format!("{place}?schema=conforms_{seed}");
    conforms(|seed| Engine { url: url(seed), is_durable: true, is_fleet: true }).await;
}

#[tokio::test]
async fn a_store_on_etcd_answers_as_its_ledger() {
    let Some(etcd) = Etcd::shared() else { return };
    let url = |seed| etcd.url(&format!("conforms_{seed}"));
    conforms(|seed| Engine { url: url(seed), is_durable: true, is_fleet: true }).await;
}
