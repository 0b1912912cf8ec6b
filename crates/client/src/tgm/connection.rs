//! One HTTP/2 connection to the server: made when a call needs it, and made anew when it is gone.
//!
//! The calls of a pool are many and small. A channel for all kinds of calls makes each of them cost
//! two thirds more, so they go to HTTP/2 without one.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use connect::{Bytestream, Others};
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Status;

use super::tls::{Connect, Heard, Signs, UNTOLD, UnderWay};

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

/// How long a server may take to begin HTTP/2 until calls are sent to it all the same: they may
/// arrive where no answers come from. It has longer while other addresses are tried beside it.
const GRACE: Duration = Duration::from_millis(500);

/// Why a call never left: there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NotConnected {
    /// The next attempt may bring one.
    #[error("there is no connection to the session server")]
    Yet(#[source] Arc<io::Error>),
    /// None will come by this session URL, and what has to change in it.
    #[error("{0}")]
    ByThisUrl(String),
}

impl NotConnected {
    fn yet(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Yet(Arc::new(io::Error::other(error)))
    }
}

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
    /// Whether there ever was a connection: then the URL is right, whoever may answer now.
    worked: Arc<AtomicBool>,
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
        let worked = Arc::new(AtomicBool::new(false));
        Self(Arc::new(Inner { connect, runtime, phase, worked }))
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
                        return Err(NotConnected::yet(error).into());
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
            let (connect, worked) = (self.0.connect.clone(), self.0.worked.clone());
            let inner = Arc::downgrade(&self.0);
            self.0.runtime.spawn(attempt_to(connect, worked, inner, outcome));
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
        Err(NotConnected::yet("the runtime of the pool has shut down"))
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
async fn attempt_to(
    connect: Connect,
    worked: Arc<AtomicBool>,
    inner: Weak<Inner>,
    outcome: watch::Sender<Outcome>,
) {
    let (open, driven) = match open(&connect, &worked).await {
        Ok((open, http2)) => {
            let signs = open.signs.clone();
            (Ok(open), Some(drive(http2, signs)))
        }
        Err(error) => match connect.advice(&error) {
            Some(advice) if !worked.load(Ordering::Relaxed) => {
                (Err(NotConnected::ByThisUrl(advice)), None)
            }
            _ => (Err(NotConnected::Yet(Arc::new(error))), None),
        },
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

/// What has to be polled for anything to happen on a connection.
type Http2 = h2::client::Connection<Heard<Box<dyn Bytestream>>, Bytes>;

/// Connects to whoever answers as a server of HTTP/2.
async fn open(connect: &Connect, worked: &Arc<AtomicBool>) -> io::Result<(Open, Http2)> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    let opened = timeout_at(deadline, async {
        match connect {
            Connect::Way(way) => {
                let greet = |stream, others| greet(stream, others, deadline, worked.clone());
                way.connect(deadline, greet).await.map_err(io::Error::other)
            }
            Connect::Own(make) => {
                greet(make().await?, Others::None, deadline, worked.clone()).await
            }
        }
    });
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection within three seconds");
    opened.await.unwrap_or_else(|_| Err(late()))
}

/// Begins HTTP/2 on a stream, and waits a while for the server to begin it too: then it is a server
/// of HTTP/2, and it is known how much it has room for.
async fn greet(
    stream: Box<dyn Bytestream>,
    others: Others,
    deadline: Instant,
    worked: Arc<AtomicBool>,
) -> io::Result<(Open, Http2)> {
    let signs = Arc::new(Signs::new(worked));
    let stream = Heard { stream, signs: signs.clone() };
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(UNTOLD)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(UNREAD)
        .max_header_list_size(MOST_HEADERS)
        .handshake(stream)
        .await;
    let (requests, mut http2) = handshake.map_err(broken)?;
    // HTTP/2 keeps of a fault of the stream no more than its text.
    let broken = |error| signs.mismatch.get().map_or_else(|| broken(error), |&found| found.into());
    let begun = poll_fn(|cx| {
        let over = Pin::new(&mut http2).poll(cx);
        signs.has_room_for(http2.max_concurrent_send_streams());
        match over {
            _ if signs.has_begun() => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
            Poll::Ready(Ok(())) => Poll::Ready(Err(hung_up())),
            Poll::Pending => Poll::Pending,
        }
    });
    let until = match others {
        Others::None => Instant::now() + GRACE,
        Others::Some => deadline - GRACE,
    };
    if let Ok(begun) = timeout_at(until, begun).await {
        begun?;
    }
    Ok((Open { requests, signs }, http2))
}

/// What is in the way of HTTP/2; a fault of the stream is told as it is.
fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(hung_up);
    }
    io::Error::other(error)
}

fn hung_up() -> io::Error {
    let why = "the server hung up before it said anything";
    io::Error::new(io::ErrorKind::UnexpectedEof, why)
}

/// Lets a connection do its work until it is closed, or does not answer a ping.
async fn drive(mut http2: Http2, signs: Arc<Signs>) {
    let pings = http2.ping_pong();
    let work = poll_fn(|cx| {
        let over = Pin::new(&mut http2).poll(cx);
        signs.has_room_for(http2.max_concurrent_send_streams());
        over
    });
    tokio::select! {
        ended = work => match ended {
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

#[cfg(test)]
pub(super) mod tests;
