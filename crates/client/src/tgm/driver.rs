//! The one task of a remote pool: does the I/O that the core asks for, and tells it what came.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
#[cfg(feature = "metrics")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ::connect::grpc::{self, NoRoom};
use ::wire::control::attach_response::Event;
use ::wire::control::{AttachRequest, AttachResponse, BatchAnswer, Reason};
use futures_util::stream::{self, BoxStream, FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Status, Streaming};

use super::core::{
    Batch, Call, Core, Detached, KeepAliveAnswer, MOST_BATCHES, Notice, Output, StreamEvent,
};
use super::wire::{self, Remote};
use crate::error::Error;
#[cfg(feature = "metrics")]
use crate::metered::Metered;
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
    pub(crate) remote: Arc<Remote>,
}

#[derive(Debug)]
struct State {
    core: Core,
    /// When the task looks again by itself; `None` when it waits for answers only.
    planned: Option<Instant>,
}

/// The present, as the runtime tells it: tests may pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shared {
    pub(crate) fn new(core: Core, remote: Remote) -> Self {
        let state = Mutex::new(State { core, planned: None });
        Self { state, earlier: Notify::new(), remote: Arc::new(remote) }
    }

    /// Tells the core something. What others have to hear of it is delivered when the lock is free.
    pub(crate) fn tell<R>(&self, what: impl FnOnce(&mut Core, Instant) -> R) -> R {
        let now = now();
        let mut state = self.state.lock();
        let result = what(&mut state.core, now);
        let next = state.core.poll_timeout(now);
        let earlier = match (next, state.planned) {
            (Some(next), Some(planned)) => next < planned,
            (next, None) => next.is_some(),
            (None, Some(_)) => false,
        };
        if earlier {
            state.planned = next;
        }
        let wake = earlier || state.core.is_drained();
        let notices: Vec<Notice> = std::iter::from_fn(|| state.core.poll_notice()).collect();
        drop(state);
        if wake {
            self.earlier.notify_one();
        }
        notices.into_iter().for_each(Notice::deliver);
        result
    }

    /// Tells the core something that makes nothing due and nobody hear anything, or asks it.
    pub(crate) fn note<R>(&self, what: impl FnOnce(&mut Core) -> R) -> R {
        what(&mut self.state.lock().core)
    }

    async fn call(&self, call: Call) {
        let sent = now();
        match call {
            Call::KeepAlive { number, key, api_key, deadline } => {
                let answer = grpc::within(deadline, self.remote.keep_alive(&key, &api_key)).await;
                let answer = wire::keep_alive(answer);
                self.tell(|core, now| core.handle_keep_alive(number, answer, sent, now));
            }
            Call::Borrow { asked, id, deadline } => {
                let answer = grpc::within(deadline, self.remote.borrow(&asked, id)).await;
                let answer = wire::borrow(answer, &asked);
                self.tell(|core, now| core.handle_borrow(asked.number, answer, sent, now));
            }
            Call::Return { number, target, minimal_life } => {
                let answer = self.remote.give_back(&target, minimal_life);
                let answer = wire::give_back(grpc::within(RETURN_DEADLINE, answer).await);
                self.tell(|core, now| core.handle_return(number, answer, now));
            }
        }
    }
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

/// What one look at the core brought to do.
struct Turn {
    outputs: Vec<Output>,
    planned: Option<Instant>,
    over: bool,
    #[cfg(feature = "metrics")]
    stats: PoolStats,
}

impl Shared {
    fn turn(&self) -> Turn {
        let now = now();
        let mut state = self.state.lock();
        let outputs = std::iter::from_fn(|| state.core.poll_output(now)).collect();
        state.planned = state.core.poll_timeout(now);
        Turn {
            outputs,
            planned: state.planned,
            over: state.core.is_drained(),
            #[cfg(feature = "metrics")]
            stats: state.core.stats(),
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
        self.shared.tell(Core::abandon);
        // Gauges must not tell for ever what is no longer held. It may be the recorder that panicked.
        #[cfg(feature = "metrics")]
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.metered.tell(self.shared.note(|core| core.stats()), true, now())
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
    let mut stream: Option<Stream> = None;
    loop {
        #[cfg_attr(not(feature = "metrics"), expect(unused_mut, reason = "nothing is metered"))]
        let mut turn = shared.turn();
        #[cfg(feature = "metrics")]
        {
            let again = caretaker.metered.tell(turn.stats, turn.over, now());
            turn.planned = turn.planned.into_iter().chain(again).min();
        }
        for output in turn.outputs {
            match output {
                Output::Notice(notice) => notice.deliver(),
                Output::Call(call) => calls.push(shared.call(call)),
                Output::OpenStream => stream = Some(Stream::open(shared.remote.clone())),
                Output::CloseStream => stream = None,
                Output::Batch(batch) => {
                    if stream.take_if(|stream| !stream.send(batch)).is_some() {
                        let over = StreamEvent::Over(Detached::Broken);
                        shared.tell(|core, now| core.handle_stream(over, now));
                    }
                }
            }
        }
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
                Some(stream) => stream.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(()) = calls.next(), if !calls.is_empty() => {}
            event = streaming => {
                if matches!(event, StreamEvent::Over(_)) {
                    stream = None;
                }
                shared.tell(|core, now| core.handle_stream(event, now));
            }
            () = shared.earlier.notified() => {}
            () = time => {}
        }
    }
}

// ---- the stream of keep-alives ----

/// How long a server may take to accept a stream.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(5);

/// One stream, from its opening until it breaks. Dropping it ends it without a word.
pub(crate) struct Stream {
    outgoing: mpsc::Sender<AttachRequest>,
    events: BoxStream<'static, StreamEvent>,
}

impl Stream {
    /// Opens a stream, as it is polled.
    pub(crate) fn open(remote: Arc<Remote>) -> Self {
        let (outgoing, batches) = mpsc::channel(MOST_BATCHES);
        let events = stream::unfold(Incoming::Opening(remote, batches), Incoming::next);
        Self { outgoing, events: events.boxed() }
    }

    /// Sends a batch; false when the stream takes no more.
    pub(crate) fn send(&self, batch: Batch) -> bool {
        let Batch { number, keys } = batch;
        self.outgoing.try_send(AttachRequest { batch: number, worker_keys: keys }).is_ok()
    }

    /// Waits for the next event; the last one is [`StreamEvent::Over`]. Cancellation safe.
    pub(crate) async fn next(&mut self) -> StreamEvent {
        self.events.next().await.unwrap_or(StreamEvent::Over(Detached::Broken))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// What comes over a stream.
enum Incoming {
    Opening(Arc<Remote>, mpsc::Receiver<AttachRequest>),
    Open(Box<Streaming<AttachResponse>>),
    Over,
}

impl Incoming {
    async fn next(self) -> Option<(StreamEvent, Self)> {
        let mut events = match self {
            Self::Opening(remote, mut batches) => {
                let request = remote.stream(stream::poll_fn(move |cx| batches.poll_recv(cx))).await;
                let mut control = remote.control();
                return Some(match grpc::within(ACCEPT_DEADLINE, control.attach(request)).await {
                    Ok(response) => {
                        (StreamEvent::Opened, Self::Open(Box::new(response.into_inner())))
                    }
                    Err(status) => (StreamEvent::Over(refused(&status)), Self::Over),
                });
            }
            Self::Open(events) => events,
            Self::Over => return None,
        };
        loop {
            let why = match events.message().await {
                Ok(Some(AttachResponse { event })) => match event {
                    Some(Event::Answer(answer)) => {
                        let batch = answer.batch;
                        let event = StreamEvent::Answer { batch, places: places(answer) };
                        return Some((event, Self::Open(events)));
                    }
                    Some(Event::Revoked(revoked)) => {
                        let reason = reason(revoked.reason(), &revoked.message);
                        let event = StreamEvent::Revoked { key: revoked.worker_key, reason };
                        return Some((event, Self::Open(events)));
                    }
                    Some(Event::Draining(_)) => Detached::Draining,
                    // A server newer than this client has more to say.
                    None => continue,
                },
                Ok(None) => Detached::Broken,
                Err(status) => refused(&status),
            };
            return Some((StreamEvent::Over(why), Self::Over));
        }
    }
}

/// Reads what became of the keys that do not simply have their full TTL again.
fn places(answer: BatchAnswer) -> HashMap<u32, KeepAliveAnswer> {
    let unknown = || Error::unavailable("the server cannot look leases up now");
    let unavailable = answer.unavailable.into_iter();
    let failed = answer.failed.into_iter();
    let revoked = answer.revoked.into_iter();
    unavailable
        .map(|place| (place, KeepAliveAnswer::Fault(unknown())))
        .chain(failed.map(|place| (place, KeepAliveAnswer::Forgotten)))
        .chain(revoked.map(|revoked| {
            let reason = reason(revoked.reason(), &revoked.message);
            (revoked.place, KeepAliveAnswer::Revoked(reason))
        }))
        .collect()
}

fn reason(reason: Reason, message: &str) -> Error {
    let message = wire::clip(match (message, reason) {
        ("", Reason::OrganizationDisabled) => "the organization is disabled",
        ("", Reason::ApiKeyDisabled) => "the API key is disabled",
        ("", Reason::BudgetSpent) => "a usage budget is spent",
        ("", Reason::Operator | Reason::Unspecified) => "the session was revoked",
        (message, _) => message,
    });
    match reason {
        Reason::BudgetSpent => Error::QuotaExceeded { message },
        // A reason that this client does not know ends the session just the same.
        _ => Error::PermissionDenied { message },
    }
}

fn refused(status: &Status) -> Detached {
    if wire::cause::<NoRoom>(status).is_some() {
        tracing::debug!("the server has room for one call at a time, and none for a stream");
        return Detached::NoRoom;
    }
    if status.code() == Code::Unimplemented && std::error::Error::source(status).is_none() {
        tracing::debug!("the server has no stream for keep-alives");
        return Detached::Unknown;
    }
    let error = wire::error(status);
    tracing::debug!(%error, "the stream for keep-alives is over");
    Detached::Broken
}

#[cfg(test)]
mod tests;
