//! Clients that call the server over gRPC, and check each answer against the book.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as KeptAlive;
use wire::worker::return_worker_response::Status as Returned;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{
    BorrowWorkerRequest, KeepAliveRequest, ReturnWorkerRequest, WorkersStateRequest,
};

use crate::book::{Book, Lease, ORGANIZATIONS, Pool, SERVICES, SESSIONS, WORKERS};

/// The most keep-alives in flight at once.
const AT_ONCE: usize = 64;

/// A call was not answered, because the server was killed. It is unknown whether the call had an
/// effect.
#[derive(Debug)]
pub(crate) struct NoAnswer;

/// The clients of one run of the server.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    client: WorkerPoolClient<Channel>,
    book: Arc<Book>,
}

impl Clients {
    /// Clients of the server at `address` that record their calls in `book`.
    pub(crate) fn of(address: &str, book: Arc<Book>, runtime: &Runtime) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let _within = runtime.enter();
        let channel = endpoint.timeout(Duration::from_secs(20)).connect_lazy();
        Self { client: WorkerPoolClient::new(channel), book }
    }

    /// Borrows and returns for one client until the server is gone.
    pub(crate) async fn work(self, owner: usize) {
        while self.act(owner).await.is_ok() {}
    }

    async fn act(&self, owner: usize) -> Result<(), NoAnswer> {
        let mine = self.book.of(owner);
        let picked = mine.choose(&mut rand::rng()).cloned();
        let die = rand::rng().random_range(0..10);
        match (picked, die) {
            (Some((_, lease)), 0..4) => {
                self.borrow(owner, (lease.pool.0, WORKERS), lease.trace).await
            }
            (Some((key, _)), 4..8) => self.give_back(&key).await,
            (Some((key, _)), 8) => {
                let status = self.keep_alive(&key).await?;
                assert_eq!(status, KeptAlive::TtlExtended, "the held lease {key} is not alive");
                Ok(())
            }
            _ => {
                let organization = rand::rng().random_range(0..ORGANIZATIONS.len());
                let trace = format!("{:032x}", rand::random::<u128>());
                self.borrow(owner, (organization, SESSIONS), trace).await
            }
        }
    }

    async fn borrow(&self, owner: usize, pool: Pool, trace: String) -> Result<(), NoAnswer> {
        let (service, limit) = SERVICES[pool.1];
        let mut request = Request::new(BorrowWorkerRequest {
            service: service.into(),
            organization_id: ORGANIZATIONS[pool.0].into(),
            trace_id: trace.clone(),
            max_worker_for_trace_id: if pool.1 == WORKERS { 100 } else { 0 },
            ..Default::default()
        });
        let borrow_id = format!("{:032x}", rand::random::<u128>());
        request.metadata_mut().insert("x-borrow-id", borrow_id.parse().unwrap());
        self.book.ask(&borrow_id, pool);
        let answer = answered(self.client.clone().borrow_worker(request).await)?;
        let state = answer.worker_state.clone().unwrap();
        assert_eq!(state.max_workers, limit as i64);
        assert!(state.borrowed_workers <= state.max_workers, "over the limit: {state:?}");
        match answer.status() {
            BorrowStatus::Borrowed => {
                let lease = Lease { owner, pool, trace };
                self.book.granted(&borrow_id, &answer.worker_key, lease);
            }
            BorrowStatus::ResourceExhausted => {
                assert_eq!(state.borrowed_workers, state.max_workers, "refused below the limit");
                self.book.refused(&borrow_id);
            }
            BorrowStatus::Unset => panic!("a borrow was answered with unset"),
        }
        Ok(())
    }

    async fn give_back(&self, key: &str) -> Result<(), NoAnswer> {
        let keys = self.book.returning(key);
        let request = ReturnWorkerRequest { worker_key: key.to_owned(), ..Default::default() };
        let answer = answered(self.client.clone().return_worker(request).await)?;
        assert_eq!(answer.status(), Returned::Returned, "the held lease {key} was not there");
        self.book.returned(&keys);
        Ok(())
    }

    async fn keep_alive(&self, key: &str) -> Result<KeptAlive, NoAnswer> {
        let request = KeepAliveRequest { worker_key: key.to_owned(), ..Default::default() };
        Ok(answered(self.client.clone().keep_alive(request).await)?.status())
    }

    /// Checks that a server that has just started agrees with the book. Then finds out what the
    /// unanswered calls did.
    pub(crate) async fn agree_with_the_book(&self) {
        for pool in pools() {
            let (held, doubtful) = {
                let pages = self.book.pages();
                (pages.held_of(pool), pages.doubtful_of(pool))
            };
            let counted = self.counted(pool).await;
            let limit = SERVICES[pool.1].1;
            assert!(
                (held..=held + doubtful).contains(&counted) && counted <= limit,
                "{pool:?}: {held} held, {doubtful} in doubt, {counted} counted, {limit} allowed"
            );
        }
        let held: Vec<String> = self.book.pages().held.keys().cloned().collect();
        for (key, status) in self.keep_all_alive(held).await {
            assert_eq!(status, KeptAlive::TtlExtended, "the acknowledged lease {key} was lost");
        }
        let gone: Vec<String> = self.book.pages().gone.iter().cloned().collect();
        for (key, status) in self.keep_all_alive(gone).await {
            assert_eq!(status, KeptAlive::Failed, "the acknowledged return of {key} was undone");
        }
        self.settle().await;
        for pool in pools() {
            let held = self.book.pages().held_of(pool);
            assert_eq!(self.counted(pool).await, held, "{pool:?}: nothing is in doubt any more");
        }
    }

    /// Finds out whether each unanswered return had an effect, and returns the leases of unanswered
    /// borrows.
    async fn settle(&self) {
        let returning: Vec<String> = self.book.pages().returning.keys().cloned().collect();
        // A return is atomic: a session and its workers are either all gone or all still held.
        let mut alive_by_trace = HashMap::new();
        for (key, status) in self.keep_all_alive(returning).await {
            let mut pages = self.book.pages();
            let lease = pages.returning.remove(&key).unwrap();
            let alive = status == KeptAlive::TtlExtended;
            let of_trace = *alive_by_trace.entry(lease.trace.clone()).or_insert(alive);
            assert_eq!(of_trace, alive, "half a return of trace {} was applied", lease.trace);
            if alive {
                pages.held.insert(key, lease);
            } else {
                pages.gone.insert(key);
            }
        }
        let asking: Vec<String> = self.book.pages().asking.keys().cloned().collect();
        for borrow_id in asking {
            let mut request = Request::new(ReturnWorkerRequest::default());
            request.metadata_mut().insert("x-borrow-id", borrow_id.parse().unwrap());
            let answer = self.client.clone().return_worker(request).await.unwrap().into_inner();
            let known = [Returned::Returned, Returned::MissingKey];
            assert!(known.contains(&answer.status()), "{answer:?}");
            self.book.pages().asking.remove(&borrow_id);
        }
    }

    /// Returns everything that is held, sessions and workers in any order.
    pub(crate) async fn return_everything(&self) {
        loop {
            let next = self.book.pages().held.keys().next().cloned();
            let Some(key) = next else { return };
            self.give_back(&key).await.unwrap();
        }
    }

    /// Checks that no key of the whole run is alive.
    pub(crate) async fn find_none_of_the_keys(&self) {
        let gone: Vec<String> = self.book.pages().gone.iter().cloned().collect();
        assert!(!gone.is_empty());
        for (key, status) in self.keep_all_alive(gone).await {
            assert_eq!(status, KeptAlive::Failed, "{key} came back");
        }
        for pool in pools() {
            assert_eq!(self.counted(pool).await, 0);
        }
    }

    async fn keep_all_alive(&self, keys: Vec<String>) -> Vec<(String, KeptAlive)> {
        let mut statuses = Vec::new();
        let mut calls = JoinSet::new();
        for key in keys {
            if calls.len() == AT_ONCE {
                statuses.push(calls.join_next().await.unwrap().unwrap());
            }
            let clients = self.clone();
            calls.spawn(async move {
                let status = clients.keep_alive(&key).await.unwrap();
                (key, status)
            });
        }
        statuses.extend(calls.join_all().await);
        statuses
    }

    async fn counted(&self, (organization, service): Pool) -> u64 {
        let request = WorkersStateRequest {
            service: SERVICES[service].0.into(),
            organization_id: ORGANIZATIONS[organization].into(),
            ..Default::default()
        };
        let answer = self.client.clone().workers_state(request).await.unwrap().into_inner();
        u64::try_from(answer.worker_state.unwrap().borrowed_workers).unwrap()
    }
}

fn pools() -> impl Iterator<Item = Pool> {
    (0..ORGANIZATIONS.len()).flat_map(|o| (0..SERVICES.len()).map(move |s| (o, s)))
}

/// Returns the answer of the server. An error of a broken connection becomes [`NoAnswer`]. Any
/// other error fails the test.
fn answered<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, NoAnswer> {
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => Err(NoAnswer),
            _ => panic!("a server under load answers {status}"),
        },
    }
}
