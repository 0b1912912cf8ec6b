//! Calls the `on_error` callbacks of sessions on threads of their own.
//!
//! A callback is code of the application: it may block, panic, or drop guards of the same pool. So a
//! plugin gets a callback that only queues, and threads of the pool call that of the application. The
//! threads are made when the first callback is given, and end with the pool.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use crate::error::Error;
use crate::request::{Ids, OnError};

/// The most threads of one pool. Another one is made only while all others run a callback.
const MOST_THREADS: usize = 8;

/// The threads of one pool. Clones share them. When the last clone is dropped, the threads run the
/// callbacks that are due and end.
#[derive(Clone, Default)]
pub(crate) struct Callbacks(Arc<Owner>);

#[derive(Default)]
struct Owner(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Wakes one thread for a callback that is due, or all threads at the end.
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// At most one callback of each session.
    due: VecDeque<Due>,
    threads: usize,
    waiting: usize,
    over: bool,
}

/// A callback whose session has ended.
struct Due {
    callback: OnError,
    reason: Error,
    ids: Ids,
    /// The runtime that the callback may spawn tasks in.
    runtime: Option<Handle>,
}

/// The callback of a session that is held. Dropping this drops the callback.
pub(crate) struct Kept(Arc<Mutex<Option<OnError>>>);

impl Callbacks {
    /// Keeps the callback of a session until it ends. Also returns the callback for the plugin.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when no thread can be made.
    pub(crate) fn keep(&self, callback: OnError, ids: Ids) -> Result<(Kept, OnError), Error> {
        self.0.0.begin()?;
        let slot = Arc::new(Mutex::new(Some(callback)));
        let (callbacks, kept, runtime) = (self.clone(), slot.clone(), Handle::try_current().ok());
        let queue = move |reason| {
            let callback = kept.lock().take();
            if let Some(callback) = callback {
                callbacks.0.0.push(Due { callback, reason, ids, runtime });
            }
        };
        Ok((Kept(slot), Box::new(queue)))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Its drop is code of the application, and runs without the lock.
        let callback = self.0.lock().take();
        drop(callback);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.state.lock().over = true;
        self.0.wake.notify_all();
    }
}

impl Queue {
    /// Makes the first thread.
    fn begin(self: &Arc<Self>) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.threads > 0 {
            return Ok(());
        }
        self.add_thread(&mut state).map_err(|error| {
            Error::unavailable(format!("there is no thread for on_error callbacks: {error}"))
                .caused_by(error)
        })
    }

    fn add_thread(self: &Arc<Self>, state: &mut State) -> std::io::Result<()> {
        let queue = self.clone();
        let thread = thread::Builder::new().name("tgm-session-on-error".into());
        thread.spawn(move || queue.run())?;
        state.threads += 1;
        Ok(())
    }

    fn push(&self, due: Due) {
        self.state.lock().due.push_back(due);
        self.wake.notify_one();
    }

    fn run(self: Arc<Self>) {
        while let Some(due) = self.next() {
            due.call();
        }
    }

    /// Waits for a callback that is due; `None` when this thread is not needed any more.
    fn next(self: &Arc<Self>) -> Option<Due> {
        let mut state = self.state.lock();
        loop {
            if let Some(due) = state.due.pop_front() {
                // Another thread must wait for the next callback while this one runs.
                if state.waiting == 0
                    && state.threads < MOST_THREADS
                    && let Err(error) = self.add_thread(&mut state)
                {
                    tracing::warn!(%error, "on_error callbacks wait for each other");
                }
                return Some(due);
            }
            if state.over || state.waiting > 0 {
                state.threads -= 1;
                return None;
            }
            state.waiting += 1;
            self.wake.wait(&mut state);
            state.waiting -= 1;
        }
    }
}

impl Due {
    fn call(self) {
        let Self { callback, reason, ids, runtime } = self;
        let _runtime = runtime.as_ref().map(Handle::enter);
        // The callback is dropped after this call, so no half-changed state can be seen.
        if catch_unwind(AssertUnwindSafe(|| callback(reason))).is_err() {
            tracing::error!(
                service = &*ids.service,
                organization = &*ids.organization,
                trace = &*ids.trace,
                "the on_error callback of a session panicked"
            );
        }
    }
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn keep(
        callbacks: &Callbacks,
        callback: impl FnOnce(Error) + Send + 'static,
    ) -> (Kept, OnError) {
        callbacks.keep(Box::new(callback), Ids::default()).unwrap()
    }

    fn threads(queue: &Queue) -> usize {
        queue.state.lock().threads
    }

    #[test]
    fn callbacks_that_block_hold_up_neither_their_caller_nor_each_other() {
        let callbacks = Callbacks::default();
        let (called, calls) = mpsc::channel();
        let mut blocked = Vec::new();
        let mut kept = Vec::new();
        for number in 0..MOST_THREADS - 1 {
            let (release, wait) = mpsc::channel::<()>();
            let called = called.clone();
            let (keeps, call) = keep(&callbacks, move |_| {
                called.send(number).unwrap();
                let _ = wait.recv();
            });
            call(Error::Closed);
            assert_eq!(calls.recv(), Ok(number));
            blocked.push(release);
            kept.push(keeps);
        }
        let (_kept, call) = keep(&callbacks, move |_| called.send(99).unwrap());
        call(Error::Closed);
        assert_eq!(calls.recv(), Ok(99));
        assert_eq!(threads(&callbacks.0.0), MOST_THREADS);
    }

    #[test]
    fn threads_are_bounded_and_further_callbacks_wait_in_the_queue() {
        let callbacks = Callbacks::default();
        let (called, calls) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let kept: Vec<Kept> = (0..100)
            .map(|number| {
                let (called, wait) = (called.clone(), wait.clone());
                let (kept, call) = keep(&callbacks, move |_| {
                    let _ = wait.lock().recv();
                    called.send(number).unwrap();
                });
                call(Error::Closed);
                kept
            })
            .collect();
        for _ in 0..100 {
            release.send(()).unwrap();
        }
        let mut all: Vec<i32> = calls.iter().take(100).collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert!(threads(&callbacks.0.0) <= MOST_THREADS);
        drop(kept);
    }

    #[test]
    fn callbacks_that_panic_end_no_thread() {
        let callbacks = Callbacks::default();
        let (called, calls) = mpsc::channel();
        let mut kept = Vec::new();
        for _ in 0..2 * MOST_THREADS {
            let (keeps, call) = keep(&callbacks, |_| panic!("in a callback"));
            call(Error::Closed);
            kept.push(keeps);
        }
        let (_kept, call) = keep(&callbacks, move |reason| called.send(reason).unwrap());
        call(Error::SessionNotFound);
        assert_eq!(calls.recv_timeout(Duration::from_secs(60)), Ok(Error::SessionNotFound));
    }

    #[test]
    fn a_released_session_drops_its_callback_without_a_call() {
        let callbacks = Callbacks::default();
        let (called, calls) = mpsc::channel::<()>();
        let (kept, call) = keep(&callbacks, move |_| called.send(()).unwrap());
        drop(kept);
        assert_eq!(calls.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        call(Error::Closed);
        assert!(callbacks.0.0.state.lock().due.is_empty());
    }

    #[test]
    fn queued_callbacks_run_after_their_pool_is_dropped_and_then_the_threads_end() {
        let callbacks = Callbacks::default();
        let queue = callbacks.0.0.clone();
        let (called, calls) = mpsc::channel();
        let (_kept, call) = keep(&callbacks, move |_| called.send(()).unwrap());
        drop(callbacks);
        call(Error::Closed);
        assert_eq!(calls.recv(), Ok(()));
        while threads(&queue) > 0 {
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_callback_may_spawn_in_the_runtime_of_its_session() {
        let callbacks = Callbacks::default();
        let (called, calls) = tokio::sync::oneshot::channel();
        let (_kept, call) = keep(&callbacks, move |_| {
            tokio::spawn(async move { called.send(()).unwrap() });
        });
        call(Error::Closed);
        assert_eq!(calls.await, Ok(()));
    }
}
