//! One HTTP/2 connection to the server: made when a call needs it, and made anew when it is gone.
//!
//! The calls of a pool are many and small. A channel for all kinds of calls makes each of them cost
//! two thirds more, so they go to HTTP/2 without one.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use super::connect::{Bytestream, Connect};

/// How long one attempt to connect may take, so that a borrow has time for another.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// How long a connection may be silent under a call before it is pinged, and how long the answer
/// may take. Only under a call: some servers take pings on an idle connection for an attack.
const PING_AFTER: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(5);

/// How much a server may send before it is read: of one call, and of all together.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How many bytes of bookkeeping may lie in answers that nobody has read yet: what there is for some
/// hundred thousand calls that are answered at once. Beyond it the connection is closed.
const UNREAD: usize = 64 << 20;

/// The most bytes of the headers of an answer.
const MOST_HEADERS: u32 = 16 * 1024;

/// Why a call never left: there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("there is no connection to the session server")]
pub(crate) struct NotConnected(#[source] Arc<io::Error>);

impl From<NotConnected> for Status {
    fn from(error: NotConnected) -> Self {
        Self::from_error(Box::new(error))
    }
}

/// The connection of one pool. All clones are one, which ends with the last of them.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    connect: Connect,
    /// Where connections live: with the task of the pool, whoever makes the call that needs one.
    runtime: Handle,
    /// `None` while there was no connection yet, or it is gone.
    phase: Mutex<Option<Phase>>,
}

#[derive(Clone)]
enum Phase {
    Connecting(watch::Receiver<Outcome>),
    /// It may be gone by now; whoever finds out says so.
    Open(Open),
}

/// What became of an attempt to connect; `None` while it goes on.
type Outcome = Option<Result<Open, NotConnected>>;

#[derive(Clone)]
struct Open {
    requests: SendRequest<Bytes>,
    signs: Arc<Signs>,
}

/// Where one request can be sent, which keeps the connection watched until it is dropped.
pub(crate) struct Ready {
    pub(crate) requests: SendRequest<Bytes>,
    pub(crate) call: UnderWay,
}

impl Connection {
    /// A connection that `connect` makes, in the runtime that this is called in.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn new(connect: Connect) -> Self {
        let (runtime, phase) = (Handle::current(), Mutex::new(None));
        Self(Arc::new(Inner { connect, runtime, phase }))
    }

    /// Waits until a request can be sent, and connects for it if need be. Cancellation safe.
    ///
    /// # Errors
    ///
    /// A status with a source, which is [`NotConnected`] when nothing can have been sent.
    pub(crate) async fn ready(&self) -> Result<Ready, Status> {
        loop {
            let (Open { mut requests, signs }, is_new) = match self.phase() {
                Phase::Open(open) => (open, false),
                Phase::Connecting(attempt) => (self.connected(attempt).await?, true),
            };
            match poll_fn(|cx| requests.poll_ready(cx)).await {
                Ok(()) => return Ok(Ready { requests, call: UnderWay::begin(signs) }),
                Err(error) => {
                    self.forget(&signs);
                    if is_new {
                        return Err(NotConnected(Arc::new(io::Error::other(error))).into());
                    }
                    // A server may close a connection between two calls: that is no fault.
                    tracing::debug!(%error, "the connection to the session server is gone");
                }
            }
        }
    }

    /// What there is, or the attempt that this begins if there is nothing.
    fn phase(&self) -> Phase {
        let mut phase = self.0.phase.lock();
        let begin = || {
            let (outcome, attempt) = watch::channel(None);
            let (connect, inner) = (self.0.connect.clone(), Arc::downgrade(&self.0));
            self.0.runtime.spawn(attempt_to(connect, inner, outcome));
            Phase::Connecting(attempt)
        };
        phase.get_or_insert_with(begin).clone()
    }

    /// Waits for what comes of an attempt to connect.
    async fn connected(&self, mut attempt: watch::Receiver<Outcome>) -> Result<Open, NotConnected> {
        if let Ok(outcome) = attempt.wait_for(Option::is_some).await
            && let Some(outcome) = &*outcome
        {
            return outcome.clone();
        }
        // Whoever was at it is gone without a word, and so is the runtime.
        let mut phase = self.0.phase.lock();
        if matches!(&*phase, Some(Phase::Connecting(now)) if now.same_channel(&attempt)) {
            *phase = None;
        }
        Err(NotConnected(Arc::new(io::Error::other("the runtime of the pool has shut down"))))
    }

    fn forget(&self, signs: &Arc<Signs>) {
        let mut phase = self.0.phase.lock();
        if matches!(&*phase, Some(Phase::Open(open)) if Arc::ptr_eq(&open.signs, signs)) {
            *phase = None;
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Connects, tells everyone what came of it, and lets the connection live.
async fn attempt_to(connect: Connect, inner: Weak<Inner>, outcome: watch::Sender<Outcome>) {
    let (open, driven) = match open(connect()).await {
        Ok((open, driven)) => (Ok(open), Some(driven)),
        Err(error) => (Err(error), None),
    };
    if let Some(inner) = inner.upgrade() {
        *inner.phase.lock() = open.as_ref().ok().map(|open| Phase::Open(open.clone()));
    }
    // Perhaps nobody waits any more. What was made is handed over and not kept, or the connection
    // would never be one that nobody can use, and close.
    let _ = outcome.send(Some(open));
    drop(outcome);
    if let Some(driven) = driven {
        driven.await;
    }
}

/// Connects; returns what sends requests, and what has to be polled for anything to happen.
async fn open(
    connecting: impl Future<Output = io::Result<Box<dyn Bytestream>>>,
) -> Result<(Open, impl Future<Output = ()>), NotConnected> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection within three seconds");
    let opened = timeout(CONNECT_DEADLINE, async {
        let signs = Arc::new(Signs::new());
        let stream = Heard { stream: connecting.await?, signs: signs.clone() };
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(UNREAD)
            .max_header_list_size(MOST_HEADERS)
            .handshake(stream)
            .await;
        let (requests, connection) = handshake.map_err(io::Error::other)?;
        Ok((Open { requests, signs: signs.clone() }, drive(connection, signs)))
    });
    opened.await.unwrap_or_else(|_| Err(late())).map_err(|error| NotConnected(Arc::new(error)))
}

/// Lets a connection do its work until it is closed, or does not answer a ping.
async fn drive(
    mut connection: h2::client::Connection<Heard<Box<dyn Bytestream>>, Bytes>,
    signs: Arc<Signs>,
) {
    let pings = connection.ping_pong();
    tokio::select! {
        ended = connection => match ended {
            Ok(()) => tracing::debug!("the connection to the session server is closed"),
            Err(error) => tracing::debug!(%error, "the connection to the session server broke"),
        },
        // Its calls fail when it is dropped.
        () = silence(pings, &signs) => {
            tracing::debug!("the session server does not answer a ping; the connection is given up");
        }
    }
}

/// Waits until the far end does not answer a ping, after it was silent while somebody waited.
async fn silence(pings: Option<PingPong>, signs: &Signs) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        let Some(since) = signs.awaited_since() else {
            signs.begun.notified().await;
            continue;
        };
        if since.elapsed() < PING_AFTER {
            sleep_until(since + PING_AFTER).await;
            continue;
        }
        let pong = async {
            pings.send_ping(Ping::opaque())?;
            poll_fn(|cx| pings.poll_pong(cx)).await
        };
        match timeout(PING_DEADLINE, pong).await {
            Ok(Ok(_)) => {}
            // Where it is broken already, whoever drives it knows.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// What shows that the far end lives, and whether anybody waits for it.
#[derive(Debug)]
struct Signs {
    made: Instant,
    /// Calls under way.
    calls: AtomicUsize,
    /// Notified when somebody may have begun to wait: a first call began, or the last gave up.
    begun: Notify,
    /// Whether the last of them gave up, and nothing came since. That does not make the silence
    /// any better.
    in_vain: AtomicBool,
    /// When something came last, in nanoseconds since it was made.
    heard: AtomicU64,
}

impl Signs {
    fn new() -> Self {
        Self {
            made: Instant::now(),
            calls: AtomicUsize::new(0),
            begun: Notify::new(),
            in_vain: AtomicBool::new(false),
            heard: AtomicU64::new(0),
        }
    }

    fn hear(&self) {
        let since = self.made.elapsed().as_nanos();
        self.heard.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.in_vain.store(false, Ordering::Relaxed);
    }

    /// Since when it is silent while somebody waits; `None` while nobody does.
    fn awaited_since(&self) -> Option<Instant> {
        let waits = self.calls.load(Ordering::Relaxed) > 0 || self.in_vain.load(Ordering::Relaxed);
        let heard = Duration::from_nanos(self.heard.load(Ordering::Relaxed));
        waits.then(|| self.made + heard)
    }
}

/// A call under way: until it is answered, or dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    signs: Arc<Signs>,
    answered: bool,
}

impl UnderWay {
    fn begin(signs: Arc<Signs>) -> Self {
        if signs.calls.fetch_add(1, Ordering::Relaxed) == 0 {
            signs.begun.notify_one();
        }
        Self { signs, answered: false }
    }

    /// Ends the call, which was answered.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.signs.calls.fetch_sub(1, Ordering::Relaxed) == 1 && !self.answered {
            self.signs.in_vain.store(true, Ordering::Relaxed);
            // It may be the first to wait in vain.
            self.signs.begun.notify_one();
        }
    }
}

/// A stream of bytes of which it is known when something came.
struct Heard<T> {
    stream: T,
    signs: Arc<Signs>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.signs.hear();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(super) mod tests;
