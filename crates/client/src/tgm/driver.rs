//! The one task of a remote pool: it does the I/O that the core asks for, and gives it the results.

use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ::connect::grpc::{self, NoRoom};
use ::wire::control::attach_response::Event;
use ::wire::control::{AttachRequest, AttachResponse, BatchAnswer, Reason};
use futures_util::FutureExt as _;
use futures_util::future::OptionFuture;
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
use crate::metered::Metered;

/// How long one try of a return may take.
const RETURN_DEADLINE: Duration = Duration::from_secs(10);

/// What guards, callers and the task of one pool share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the task when something is due earlier than it planned.
    earlier: Notify,
    pub(crate) remote: Arc<Remote>,
}

struct State {
    core: Core,
    /// When the task asks the core again by itself; `None` when it only waits for answers.
    planned: Option<Instant>,
}

/// The present, by the clock of the runtime, which tests may pause.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shared {
    pub(crate) fn new(core: Core, remote: Remote) -> Self {
        let state = Mutex::new(State { core, planned: None });
        Self { state, earlier: Notify::new(), remote: Arc::new(remote) }
    }

    /// Calls a method of the core. The notices that follow are delivered when the lock is free.
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

    /// Calls a method of the core after which nothing is due and no notice is delivered.
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

/// Runs a future that needs the clock of a runtime. It fails when it is polled outside of a runtime.
pub(crate) fn in_runtime<T>(
    mut what: Pin<&mut impl Future<Output = Result<T, Error>>>,
) -> impl Future<Output = Result<T, Error>> {
    // By reference: a future that owns another one has the size of both.
    poll_fn(move |cx| match runtime() {
        Ok(_) => what.as_mut().poll(cx),
        Err(error) => Poll::Ready(Err(error)),
    })
}

/// What the task of a pool owns. When the task ends before its work is done, because its runtime is
/// shut down or because it panics, dropping this ends all leases of the pool.
pub(crate) struct Caretaker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) metered: Metered,
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        self.shared.tell(Core::abandon);
        // Gauges must not show leases that are gone. Perhaps the recorder is what panicked.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.metered.report(self.shared.note(|core| core.stats()), true, now())
        }));
    }
}

/// Runs until the pool is closed and nothing is left to do.
///
/// All calls and the stream run inside of this task: none is spawned, so nothing outlives it.
pub(crate) async fn run(mut caretaker: Caretaker) {
    let shared = caretaker.shared.clone();
    let mut calls = FuturesUnordered::new();
    let mut stream: Option<Stream> = None;
    loop {
        let (outputs, planned, over, stats) = {
            let now = now();
            let mut state = shared.state.lock();
            let outputs: Vec<_> = std::iter::from_fn(|| state.core.poll_output(now)).collect();
            state.planned = state.core.poll_timeout(now);
            (outputs, state.planned, state.core.is_drained(), state.core.stats())
        };
        let report = caretaker.metered.report(stats, over, now());
        for output in outputs {
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
        if over {
            return;
        }
        let at = planned.into_iter().chain(report).min();
        let time = OptionFuture::from(at.map(|at| tokio::time::sleep_until(at.into())));
        let event = OptionFuture::from(stream.as_mut().map(Stream::next));
        tokio::select! {
            Some(()) = calls.next(), if !calls.is_empty() => {}
            Some(event) = event => {
                if matches!(event, StreamEvent::Over(_)) {
                    stream = None;
                }
                shared.tell(|core, now| core.handle_stream(event, now));
            }
            () = shared.earlier.notified() => {}
            Some(()) = time => {}
        }
    }
}

// ---- the stream of keep-alives ----

/// How long a server may take to accept a stream.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(5);

/// One stream, from its opening to its end. Dropping it ends it.
pub(crate) struct Stream {
    outgoing: mpsc::Sender<AttachRequest>,
    events: BoxStream<'static, StreamEvent>,
}

impl Stream {
    /// Opens a stream, as it is polled.
    pub(crate) fn open(remote: Arc<Remote>) -> Self {
        let (outgoing, mut batches) = mpsc::channel(MOST_BATCHES);
        let opening = async move {
            let request = remote.stream(stream::poll_fn(move |cx| batches.poll_recv(cx))).await;
            let mut control = remote.control();
            match grpc::within(ACCEPT_DEADLINE, control.attach(request)).await {
                Ok(response) => {
                    let events = stream::unfold(response.into_inner(), next_event);
                    stream::once(async { StreamEvent::Opened }).chain(events).boxed()
                }
                Err(status) => {
                    let refused = StreamEvent::Over(refused(&status));
                    stream::once(async { refused }).boxed()
                }
            }
        };
        Self { outgoing, events: opening.flatten_stream().boxed() }
    }

    /// Sends a batch; false when the stream takes no more.
    pub(crate) fn send(&self, batch: Batch) -> bool {
        let Batch { number, keys } = batch;
        self.outgoing.try_send(AttachRequest { batch: number, worker_keys: keys }).is_ok()
    }

    /// Waits for the next event. [`StreamEvent::Over`] is the last one. Cancellation safe.
    pub(crate) async fn next(&mut self) -> StreamEvent {
        self.events.next().await.unwrap_or(StreamEvent::Over(Detached::Broken))
    }
}

/// Reads the next event of an open stream. What follows after [`StreamEvent::Over`] is not read.
async fn next_event(
    mut events: Streaming<AttachResponse>,
) -> Option<(StreamEvent, Streaming<AttachResponse>)> {
    let event = loop {
        break match events.message().await {
            Ok(Some(AttachResponse { event })) => match event {
                Some(Event::Answer(answer)) => {
                    StreamEvent::Answer { batch: answer.batch, places: places(answer) }
                }
                Some(Event::Revoked(revoked)) => {
                    let reason = reason(revoked.reason(), &revoked.message);
                    StreamEvent::Revoked { key: revoked.worker_key, reason }
                }
                Some(Event::Draining(_)) => StreamEvent::Over(Detached::Draining),
                // A server newer than this client may send other events.
                None => continue,
            },
            Ok(None) => StreamEvent::Over(Detached::Broken),
            Err(status) => StreamEvent::Over(refused(&status)),
        };
    };
    Some((event, events))
}

/// Reads the answers for the keys that do not have their full TTL again.
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
