//! The one task of a remote pool: makes the calls the keeper asks for and tells it the answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lease::BorrowId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use wire::control::session_control_client::SessionControlClient;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, ReturnWorkerRequest,
};

use super::answer;
use super::attachment::{Detached, Wish};
use super::keeper::{Asked, BatchCall, Call, Keeper};
#[cfg(feature = "metrics")]
use super::metered::Metered;
use super::returns::Target;
use super::stream::Stream;
#[cfg(feature = "metrics")]
use crate::stats::PoolStats;

/// How long one try of a return may take.
const RETURN_DEADLINE: Duration = Duration::from_secs(10);

/// What guards, callers and the task of one pool share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the task when something is due earlier than it planned.
    earlier: Notify,
    client: WorkerPoolClient<Channel>,
    control: SessionControlClient<Channel>,
    indexer_api_key: Option<MetadataValue<Ascii>>,
}

#[derive(Debug)]
struct State {
    keeper: Keeper,
    /// When the task looks again by itself; `None` when it waits for answers only.
    planned: Option<Instant>,
}

impl State {
    fn next_time(&mut self, now: Instant) -> Option<Instant> {
        let times = [self.keeper.next_time(now), self.keeper.attaches_at(now)];
        times.into_iter().flatten().min()
    }
}

/// The present, as the runtime tells it: tests may pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shared {
    pub(crate) fn new(
        keeper: Keeper,
        channel: Channel,
        indexer_api_key: Option<MetadataValue<Ascii>>,
    ) -> Self {
        Self {
            state: Mutex::new(State { keeper, planned: None }),
            earlier: Notify::new(),
            client: WorkerPoolClient::new(channel.clone()),
            control: SessionControlClient::new(channel),
            indexer_api_key,
        }
    }

    /// Tells the keeper something. What others have to hear of it is told when the lock is free.
    pub(crate) fn tell<R>(&self, what: impl FnOnce(&mut Keeper, Instant) -> R) -> R {
        let now = now();
        let mut state = self.state.lock();
        let result = what(&mut state.keeper, now);
        let next = state.next_time(now);
        let earlier = match (next, state.planned) {
            (Some(next), Some(planned)) => next < planned,
            (next, None) => next.is_some(),
            (None, Some(_)) => false,
        };
        if earlier {
            state.planned = next;
        }
        let wake = earlier || state.keeper.is_drained();
        let news = state.keeper.take_news();
        drop(state);
        if wake {
            self.earlier.notify_one();
        }
        news.tell();
        result
    }

    /// Tells the keeper something that makes nothing due and nobody hear anything, or asks it.
    pub(crate) fn note<R>(&self, what: impl FnOnce(&mut Keeper) -> R) -> R {
        what(&mut self.state.lock().keeper)
    }

    /// Sends one try of a borrow. Takes as long as the server does.
    pub(crate) async fn borrow(
        &self,
        asked: &Asked,
        id: BorrowId,
    ) -> Result<Response<BorrowWorkerResponse>, Status> {
        let message = BorrowWorkerRequest {
            service: asked.service.to_string(),
            organization_id: asked.organization.to_string(),
            api_key_id: asked.api_key.to_string(),
            trace_id: asked.trace.to_string(),
            max_worker_for_trace_id: asked.max_workers,
        };
        let mut request = self.request(message);
        request.metadata_mut().insert("x-borrow-id", named(id));
        let mut client = self.client.clone();
        // The futures around this one are moved a few times: they stay small without it.
        Box::pin(client.borrow_worker(request)).await
    }

    /// Returns the client, and a request with everything that every call carries.
    pub(crate) fn client(&self) -> WorkerPoolClient<Channel> {
        self.client.clone()
    }

    /// Returns the client of the stream.
    pub(crate) fn control(&self) -> SessionControlClient<Channel> {
        self.control.clone()
    }

    /// Wraps a message with what every call carries.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.indexer_api_key {
            request.metadata_mut().insert("x-api-key", key.clone());
        }
        request
    }

    async fn call(&self, call: Call) {
        let sent = now();
        let mut client = self.client.clone();
        match call {
            Call::KeepAlive { number, key, api_key, deadline } => {
                let message = KeepAliveRequest {
                    worker_key: key.to_string(),
                    api_key_id: api_key.to_string(),
                };
                let request = self.request(message);
                let answer = within(deadline, client.keep_alive(request)).await;
                let answer = answer::keep_alive(answer);
                self.tell(|keeper, now| keeper.kept_alive(number, answer, sent, now));
            }
            Call::Borrow { number, asked, id, deadline } => {
                let answer = within(deadline, self.borrow(&asked, id)).await;
                let answer = answer::borrow(answer, &asked);
                self.tell(|keeper, now| keeper.borrowed_again(number, answer, sent, now));
            }
            Call::Return { number, target, minimal_life } => {
                let request = self.give_back(target, minimal_life);
                let answer = within(RETURN_DEADLINE, client.return_worker(request)).await;
                let answer = answer::give_back(answer);
                self.tell(|keeper, now| keeper.returned(number, answer, now));
            }
        }
    }

    fn give_back(
        &self,
        target: Target,
        minimal_life: Option<Duration>,
    ) -> Request<ReturnWorkerRequest> {
        // A life that no wire duration can hold is longer than any server grants.
        let minimal_worker_life_duration = minimal_life.map(|life| {
            life.min(lease::MAX_MINIMAL_LIFE).try_into().expect("ten minutes fit a wire duration")
        });
        let (worker_key, borrow) = match target {
            Target::Key(key) => (key.to_string(), None),
            Target::Borrow(id) => (String::new(), Some(id)),
        };
        let mut request =
            self.request(ReturnWorkerRequest { worker_key, minimal_worker_life_duration });
        if let Some(id) = borrow {
            request.metadata_mut().insert("x-borrow-id", named(id));
        }
        request
    }
}

/// The metadata value that names a borrow.
fn named(id: BorrowId) -> MetadataValue<Ascii> {
    id.to_string().try_into().expect("hex digits are a metadata value")
}

/// Waits for an answer until the deadline, which looks like a fault of the transport.
pub(crate) fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> impl Future<Output = Result<T, Status>> {
    let answer = tokio::time::timeout(deadline, answer);
    answer.map(move |answer| answer.unwrap_or_else(|_| Err(answer::late(deadline))))
}

/// What one look at the keeper brought to do.
struct Turn {
    calls: Vec<Call>,
    batches: Vec<BatchCall>,
    wish: Wish,
    planned: Option<Instant>,
    over: bool,
    #[cfg(feature = "metrics")]
    stats: PoolStats,
}

impl Shared {
    fn turn(&self) -> Turn {
        let now = now();
        let mut state = self.state.lock();
        let batches = std::iter::from_fn(|| state.keeper.next_batch(now)).collect();
        let calls = std::iter::from_fn(|| state.keeper.next_call(now)).collect();
        let wish = state.keeper.stream(now);
        state.planned = state.next_time(now);
        Turn {
            calls,
            batches,
            wish,
            planned: state.planned,
            over: state.keeper.is_drained(),
            #[cfg(feature = "metrics")]
            stats: state.keeper.stats(),
        }
    }
}

/// Runs until the pool is closed and nothing is left to do.
///
/// All calls and the stream run inside of this task: none is spawned, so nothing outlives it.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut calls = FuturesUnordered::new();
    let mut stream = None;
    #[cfg(feature = "metrics")]
    let mut metered = Metered::default();
    loop {
        #[cfg_attr(not(feature = "metrics"), expect(unused_mut, reason = "nothing is metered"))]
        let mut turn = shared.turn();
        #[cfg(feature = "metrics")]
        {
            let again = metered.tell(turn.stats, turn.over, now());
            turn.planned = turn.planned.into_iter().chain(again).min();
        }
        match turn.wish {
            Wish::Open => stream = Some(Stream::open(shared.clone())),
            Wish::Keep => {}
            Wish::Drop => stream = None,
        }
        for batch in turn.batches {
            if !stream.as_ref().is_some_and(|stream| stream.send(batch)) {
                shared.tell(|keeper, now| keeper.detached(Detached::Broken, now));
                break;
            }
        }
        calls.extend(turn.calls.into_iter().map(|call| shared.call(call)));
        // Leases may have been lost just now.
        shared.tell(|_, _| ());
        if turn.over {
            return;
        }
        let at = turn.planned.map(tokio::time::Instant::from_std);
        let time = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let streaming = async {
            match &mut stream {
                Some(stream) => stream.over().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(()) = calls.next(), if !calls.is_empty() => {}
            () = streaming => stream = None,
            () = shared.earlier.notified() => {}
            () = time => {}
        }
    }
}
