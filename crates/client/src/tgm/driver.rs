//! The one task of a remote pool: makes the calls the keeper asks for and tells it the answers.

use std::future::poll_fn;
#[cfg(feature = "metrics")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tonic::Status;

use super::answer;
use super::attachment::{Detached, Wish};
use super::keeper::{BatchCall, Call, Keeper};
#[cfg(feature = "metrics")]
use super::metered::Metered;
use super::remote::Remote;
use super::stream::Stream;
use crate::error::Error;
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
    pub(crate) remote: Remote,
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
    pub(crate) fn new(keeper: Keeper, remote: Remote) -> Self {
        let state = Mutex::new(State { keeper, planned: None });
        Self { state, earlier: Notify::new(), remote }
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

    async fn call(&self, call: Call) {
        let sent = now();
        match call {
            Call::KeepAlive { number, key, api_key, deadline } => {
                let answer = within(deadline, self.remote.keep_alive(&key, &api_key)).await;
                let answer = answer::keep_alive(answer);
                self.tell(|keeper, now| keeper.kept_alive(number, answer, sent, now));
            }
            Call::Borrow { number, asked, id, deadline } => {
                let answer = within(deadline, self.remote.borrow(&asked, id)).await;
                let answer = answer::borrow(answer, &asked);
                self.tell(|keeper, now| keeper.borrowed_again(number, answer, sent, now));
            }
            Call::Return { number, target, minimal_life } => {
                let answer = self.remote.give_back(&target, minimal_life);
                let answer = answer::give_back(within(RETURN_DEADLINE, answer).await);
                self.tell(|keeper, now| keeper.returned(number, answer, now));
            }
        }
    }
}

/// Waits for an answer until the deadline, which looks like a fault of the transport.
pub(crate) fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> impl Future<Output = Result<T, Status>> {
    let answer = tokio::time::timeout(deadline, answer);
    answer.map(move |answer| answer.unwrap_or_else(|_| Err(answer::late(deadline))))
}

/// The runtime that this is called in.
///
/// # Errors
///
/// [`Error::InvalidArgument`] outside of a tokio runtime.
pub(crate) fn runtime() -> Result<Handle, Error> {
    Handle::try_current().map_err(|_| {
        Error::invalid("a pool of tgm:// needs a tokio runtime, and there is none here")
    })
}

/// Does what needs the clock of a runtime at every step, and fails where it is polled outside of one.
pub(crate) fn in_runtime<T>(
    mut what: Pin<&mut impl Future<Output = Result<T, Error>>>,
) -> impl Future<Output = Result<T, Error>> {
    // By reference: a future that takes another one is as large as both.
    poll_fn(move |cx| match runtime() {
        Ok(_) => what.as_mut().poll(cx),
        Err(error) => Poll::Ready(Err(error)),
    })
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

/// The part of a pool's task that outlives it by a moment: when the task goes before its work is done,
/// because its runtime is shut down or because it panics, everything ends that it took care of.
pub(crate) struct Caretaker {
    shared: Arc<Shared>,
    #[cfg(feature = "metrics")]
    metered: Metered,
}

impl Caretaker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            #[cfg(feature = "metrics")]
            metered: Metered::default(),
        }
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        self.shared.tell(|keeper, _| keeper.abandon());
        // Gauges must not tell for ever what is no longer held. It may be the recorder that panicked.
        #[cfg(feature = "metrics")]
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.metered.tell(self.shared.note(|keeper| keeper.stats()), true, now())
        }));
    }
}

/// Runs until the pool is closed and nothing is left to do.
///
/// All calls and the stream run inside of this task: none is spawned, so nothing outlives it.
pub(crate) async fn run(
    #[cfg_attr(not(feature = "metrics"), expect(unused_mut, reason = "nothing is metered"))]
    mut caretaker: Caretaker,
) {
    let shared = caretaker.shared.clone();
    let mut calls = FuturesUnordered::new();
    let mut stream = None;
    loop {
        #[cfg_attr(not(feature = "metrics"), expect(unused_mut, reason = "nothing is metered"))]
        let mut turn = shared.turn();
        #[cfg(feature = "metrics")]
        {
            let again = caretaker.metered.tell(turn.stats, turn.over, now());
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
