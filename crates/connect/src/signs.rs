//! Signs that the far end of a connection lives, and whether a call waits for one.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::mismatch::Mismatch;
use crate::watched::Watch;

/// The room of a connection until its server has announced one. No server announces this number.
pub(crate) const UNKNOWN_ROOM: usize = usize::MAX - 1;

/// Signs that the far end of a connection lives, and whether a call waits for one.
#[derive(Debug)]
pub(crate) struct Signs {
    made: Instant,
    /// Calls in flight.
    calls: AtomicUsize,
    /// Notified when waiting may have begun: a first call began, or the last one was given up.
    pub(crate) begun: Notify,
    /// Whether the last call was given up, and nothing was received since: then the silence goes on
    /// to count although no call is in flight.
    unanswered: AtomicBool,
    /// When something was received last, in nanoseconds since `made`.
    received: AtomicU64,
    /// When the oldest call in flight began to wait, in nanoseconds since `made`.
    awaited: AtomicU64,
    /// How many calls the server has room for at once.
    room: watch::Sender<usize>,
    /// Whether any connection to this server has worked.
    worked: Arc<AtomicBool>,
    /// Set when one end speaks TLS and the other does not.
    pub(crate) mismatch: OnceLock<Mismatch>,
}

impl Signs {
    pub(crate) fn new(worked: Arc<AtomicBool>) -> Self {
        Self {
            made: Instant::now(),
            calls: AtomicUsize::new(0),
            begun: Notify::new(),
            unanswered: AtomicBool::new(false),
            received: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            room: watch::Sender::new(UNKNOWN_ROOM),
            worked,
            mismatch: OnceLock::new(),
        }
    }

    /// The present, in nanoseconds since `made`.
    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Since when the connection is silent while a call waits; `None` while no call waits. Silence
    /// before the call began does not count.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        let is_awaited =
            self.calls.load(Ordering::Acquire) > 0 || self.unanswered.load(Ordering::Relaxed);
        let [received, awaited] =
            [&self.received, &self.awaited].map(|at| at.load(Ordering::Relaxed));
        is_awaited.then(|| self.made + Duration::from_nanos(received.max(awaited)))
    }

    /// Notes how many calls the server has room for at once, once it has announced it.
    pub(crate) fn set_room(&self, calls: usize) {
        if *self.room.borrow() != calls {
            self.worked.store(true, Ordering::Relaxed);
            self.room.send_replace(calls);
        }
    }

    /// Whether the server has begun HTTP/2.
    pub(crate) fn has_begun(&self) -> bool {
        *self.room.borrow() != UNKNOWN_ROOM
    }
}

impl Watch for Arc<Signs> {
    fn see(&mut self, read: io::Result<&[u8]>) -> io::Result<()> {
        match &read {
            Ok([]) => {}
            Ok(_) => {
                self.received.store(self.now(), Ordering::Relaxed);
                self.unanswered.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                if let Some(found) = Mismatch::of(error) {
                    self.mismatch.get_or_init(|| found);
                }
            }
        }
        read.map(drop)
    }
}

/// A call in flight: until it is answered, or dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    signs: Arc<Signs>,
    is_answered: bool,
}

impl InFlight {
    pub(crate) fn begin(signs: Arc<Signs>) -> Self {
        let is_idle = signs.calls.load(Ordering::Relaxed) == 0;
        if is_idle && !signs.unanswered.load(Ordering::Relaxed) {
            signs.awaited.store(signs.now(), Ordering::Relaxed);
        }
        // Whoever sees the call also sees since when it waits.
        if signs.calls.fetch_add(1, Ordering::Release) == 0 {
            signs.begun.notify_one();
        }
        Self { signs, is_answered: false }
    }

    /// Returns how many calls the server has room for at once, as that changes. Waits until the
    /// server has announced it.
    pub(crate) async fn room(&self) -> watch::Receiver<usize> {
        let mut room = self.signs.room.subscribe();
        room.wait_for(|room| *room != UNKNOWN_ROOM).await.expect("the sender is among the signs");
        room
    }

    /// Ends the call, which was answered.
    pub(crate) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.signs.calls.fetch_sub(1, Ordering::Relaxed) == 1 && !self.is_answered {
            self.signs.unanswered.store(true, Ordering::Relaxed);
            // No call before it may have been given up.
            self.signs.begun.notify_one();
        }
    }
}
