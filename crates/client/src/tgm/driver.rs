//! The one task of a remote pool: does the I/O that the core asks for, and tells it what came.

use std::future::poll_fn;
#[cfg(feature = "metrics")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::answer;
use super::core::{Call, Core, Detached, Notice, Output, StreamEvent};
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
                let answer = answer::within(deadline, self.remote.keep_alive(&key, &api_key)).await;
                let answer = answer::keep_alive(answer);
                self.tell(|core, now| core.handle_keep_alive(number, answer, sent, now));
            }
            Call::Borrow { number, asked, id, deadline } => {
                let answer = answer::within(deadline, self.remote.borrow(&asked, id)).await;
                let answer = answer::borrow(answer, &asked);
                self.tell(|core, now| core.handle_borrow(number, answer, sent, now));
            }
            Call::Return { number, target, minimal_life } => {
                let answer = self.remote.give_back(&target, minimal_life);
                let answer = answer::give_back(answer::within(RETURN_DEADLINE, answer).await);
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
