//! One HTTP/2 connection to a server: made when a call needs it, and made anew when it is gone.
//!
//! A general channel makes each of many small calls cost two thirds more. So the calls use HTTP/2
//! directly.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use http::uri::Authority;
use http::{Request, Uri};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Status;

use crate::mismatch::Mismatch;
use crate::race::Others;
use crate::signs::{InFlight, Signs, UNKNOWN_ROOM};
use crate::watched::Watched;
use crate::way::{Bytestream, Way};

/// How long one attempt to connect may take, so that a call has time for another.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// How long to wait for a server that is silent while a call waits.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long it may be silent before it is pinged. Some servers take pings on an idle connection for
    /// an attack.
    ping_after: Duration,
    /// How long the answer to a ping may take.
    answer_within: Duration,
}

/// The patience with the only server there is.
const WITH_THE_ONLY_ONE: Patience =
    Patience { ping_after: Duration::from_secs(10), answer_within: Duration::from_secs(5) };

/// The patience with a server of a list: a call has time for the next one.
const WITH_ONE_OF_SEVERAL: Patience =
    Patience { ping_after: Duration::from_secs(2), answer_within: Duration::from_secs(2) };

/// How much a server may send before it is read: of one call, and of all together.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How many bytes of bookkeeping the answers that were not read yet may take: enough for about a
/// hundred thousand calls that are answered at once. With more the connection is closed.
const UNREAD: usize = 64 << 20;

/// The most bytes of the headers of an answer.
const MOST_HEADERS: u32 = 16 * 1024;

/// How long to wait for the HTTP/2 settings of the server before calls are sent without them. The
/// wait is longer while other addresses are tried in parallel: the silent one may be the wrong one.
const SETTINGS_DEADLINE: Duration = Duration::from_millis(500);

/// How connections are made.
#[derive(Clone)]
pub enum Connector {
    /// By the host names of the server, or of a list of servers.
    Way(Arc<Way>),
    /// By a function of the application.
    Own(Arc<dyn Fn() -> Connecting + Send + Sync>),
}

/// A stream of bytes that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Bytestream>>> + Send>>;

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Why a call was not sent: there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotConnected {
    /// The next attempt may succeed.
    #[error("there is no connection to the session server")]
    Failed(#[source] Arc<io::Error>),
    /// One end speaks TLS and the other does not, so no attempt succeeds.
    #[error("{mismatch}")]
    Mismatch {
        /// The server, as messages show it.
        server: String,
        /// Which end speaks TLS.
        mismatch: Mismatch,
    },
}

impl NotConnected {
    fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::new(io::Error::other(error)))
    }
}

impl From<NotConnected> for Status {
    fn from(error: NotConnected) -> Self {
        Self::from_error(Box::new(error))
    }
}

/// A connection to one server, or to one of a list. All clones share it, and it is closed with the last of them.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    connector: Connector,
    /// Where connections live, whichever runtime the call that needs one is made in.
    runtime: Handle,
    /// The connection or the attempt to make it; `None` before the first call. The connection may be
    /// gone: the call that finds this out calls [`Connection::forget`].
    current: Mutex<Option<Attempt>>,
    /// Whether a connection has worked: then a mismatch is not a mistake in the configuration.
    worked: Arc<AtomicBool>,
}

/// An attempt to connect, and its result once it is over.
type Attempt = Shared<Pin<Box<dyn Future<Output = Result<Open, NotConnected>> + Send>>>;

#[derive(Clone)]
struct Open {
    requests: SendRequest<Bytes>,
    signs: Arc<Signs>,
    /// The authority of the server; `None` for the first of the list, which requests name.
    authority: Option<Authority>,
}

/// A connection that can take one request. The call counts as in flight until this is dropped.
pub(crate) struct Ready {
    pub(crate) requests: SendRequest<Bytes>,
    pub(crate) call: InFlight,
    /// The authority of the server, if it is not the one that requests name.
    authority: Option<Authority>,
}

impl Ready {
    /// Makes a request name the server that it is sent to.
    pub(crate) fn direct<B>(&self, request: &mut Request<B>) {
        let Some(authority) = &self.authority else { return };
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("only its authority was replaced");
    }
}

impl Connection {
    /// Makes a connection that `connector` opens for the first call, in the current runtime.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(connector: Connector) -> Self {
        let (runtime, current) = (Handle::current(), Mutex::new(None));
        let worked = Arc::new(AtomicBool::new(false));
        Self(Arc::new(Inner { connector, runtime, current, worked }))
    }

    /// Waits until a request can be sent, and connects first if necessary. Cancellation safe.
    ///
    /// # Errors
    ///
    /// A status whose source is [`NotConnected`].
    pub(crate) async fn ready(&self) -> Result<Ready, Status> {
        loop {
            let attempt = self.attempt();
            let is_new = attempt.peek().is_none();
            let Open { mut requests, signs, authority } = attempt.clone().await?;
            match poll_fn(|cx| requests.poll_ready(cx)).await {
                Ok(()) => return Ok(Ready { requests, call: InFlight::begin(signs), authority }),
                Err(error) => {
                    self.forget(&attempt);
                    if is_new {
                        return Err(NotConnected::failed(error).into());
                    }
                    // A server may close a connection between two calls. That is not a failure.
                    tracing::debug!(%error, "the connection to the server is gone");
                }
            }
        }
    }

    /// Returns the current attempt. Begins one if there is none, or if it has failed.
    fn attempt(&self) -> Attempt {
        let mut current = self.0.current.lock();
        if let Some(attempt) = &*current
            && attempt.peek().is_none_or(Result::is_ok)
        {
            return attempt.clone();
        }
        let (result, attempt) = oneshot::channel();
        let (connector, worked) = (self.0.connector.clone(), self.0.worked.clone());
        self.0.runtime.spawn(connect(connector, worked, result));
        // Without a result the task panicked, or its runtime was shut down.
        let aborted = |_| Err(NotConnected::failed("the attempt to connect was aborted"));
        let attempt = attempt.map(move |result| result.unwrap_or_else(aborted)).boxed().shared();
        current.insert(attempt).clone()
    }

    fn forget(&self, attempt: &Attempt) {
        self.0.current.lock().take_if(|current| current.ptr_eq(attempt));
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Connects, sends the result, and then runs the connection until it is closed.
async fn connect(
    connector: Connector,
    worked: Arc<AtomicBool>,
    result: oneshot::Sender<Result<Open, NotConnected>>,
) {
    match open(&connector, &worked).await {
        Ok((open, http2, host)) => {
            let signs = open.signs.clone();
            // This task keeps no `SendRequest`: the connection closes when the last one is dropped.
            let _ = result.send(Ok(open));
            match &connector {
                Connector::Way(way) if way.is_list() => {
                    drive(http2, signs, WITH_ONE_OF_SEVERAL, || way.silent(host)).await;
                }
                _ => drive(http2, signs, WITH_THE_ONLY_ONE, || {}).await,
            }
        }
        Err(error) => {
            let error = match (&connector, Mismatch::of(&error)) {
                (Connector::Way(way), Some(mismatch)) if !worked.load(Ordering::Relaxed) => {
                    NotConnected::Mismatch { server: way.to_string(), mismatch }
                }
                _ => NotConnected::Failed(Arc::new(error)),
            };
            // It is no error when no call waits any more.
            let _ = result.send(Err(error));
        }
    }
}

/// The part of a connection that does the I/O when it is polled.
type Http2 = h2::client::Connection<Watched<Box<dyn Bytestream>, Arc<Signs>>, Bytes>;

/// Connects to the first address that answers in HTTP/2. Returns the number of the server in the list,
/// too.
async fn open(connector: &Connector, worked: &Arc<AtomicBool>) -> io::Result<(Open, Http2, usize)> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    let opened = timeout_at(deadline, async {
        match connector {
            Connector::Way(way) => {
                let greet = |stream, others| greet(stream, others, deadline, worked.clone());
                let reached = way.connect(deadline, greet).await;
                let ((mut open, http2), host) = reached.map_err(io::Error::other)?;
                open.authority = way.authority(host);
                Ok((open, http2, host))
            }
            Connector::Own(make) => {
                let greeted = greet(make().await?, Others::None, deadline, worked.clone());
                let (open, http2) = greeted.await?;
                Ok((open, http2, 0))
            }
        }
    });
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection within three seconds");
    opened.await.unwrap_or_else(|_| Err(late()))
}

/// Begins HTTP/2 on a stream, and waits for the settings of the server for a while. They show that it
/// speaks HTTP/2, and how many calls it has room for.
async fn greet(
    stream: Box<dyn Bytestream>,
    others: Others,
    deadline: Instant,
    worked: Arc<AtomicBool>,
) -> io::Result<(Open, Http2)> {
    let signs = Arc::new(Signs::new(worked));
    let stream = Watched { stream, watch: signs.clone() };
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(UNKNOWN_ROOM)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(UNREAD)
        .max_header_list_size(MOST_HEADERS)
        .handshake(stream)
        .await;
    let (requests, mut http2) = handshake.map_err(broken)?;
    // h2 keeps only the text of an error of the stream.
    let broken = |error| signs.mismatch.get().map_or_else(|| broken(error), |&found| found.into());
    let begun = poll_fn(|cx| {
        let over = Pin::new(&mut http2).poll(cx);
        signs.set_room(http2.max_concurrent_send_streams());
        match over {
            _ if signs.has_begun() => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
            Poll::Ready(Ok(())) => Poll::Ready(Err(closed_early())),
            Poll::Pending => Poll::Pending,
        }
    });
    let until = match others {
        Others::None => Instant::now() + SETTINGS_DEADLINE,
        Others::Some => deadline - SETTINGS_DEADLINE,
    };
    if let Ok(begun) = timeout_at(until, begun).await {
        begun?;
    }
    Ok((Open { requests, signs, authority: None }, http2))
}

/// Returns the error of the stream if there is one, else that of HTTP/2.
fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(closed_early);
    }
    io::Error::other(error)
}

fn closed_early() -> io::Error {
    let why = "the server closed the connection before it sent anything";
    io::Error::new(io::ErrorKind::UnexpectedEof, why)
}

/// Runs a connection until it is closed, or a ping is not answered. Then it calls `silent` before any
/// call fails.
async fn drive(mut http2: Http2, signs: Arc<Signs>, patience: Patience, silent: impl FnOnce()) {
    let pings = http2.ping_pong();
    let work = poll_fn(|cx| {
        let over = Pin::new(&mut http2).poll(cx);
        signs.set_room(http2.max_concurrent_send_streams());
        over
    });
    tokio::select! {
        ended = work => match ended {
            Ok(()) => tracing::debug!("the connection to the server is closed"),
            Err(error) => tracing::debug!(%error, "the connection to the server broke"),
        },
        // Its calls fail when the connection is dropped.
        () = silence(pings, &signs, patience) => {
            silent();
            tracing::debug!("the server does not answer a ping; the connection is closed");
        }
    }
}

/// Waits until the server was silent under a call and then did not answer a ping.
async fn silence(pings: Option<PingPong>, signs: &Signs, patience: Patience) {
    let Patience { ping_after, answer_within } = patience;
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        let Some(since) = signs.silent_since() else {
            signs.begun.notified().await;
            continue;
        };
        if since.elapsed() < ping_after {
            sleep_until(since + ping_after).await;
            continue;
        }
        let pong = async {
            pings.send_ping(Ping::opaque())?;
            poll_fn(|cx| pings.poll_pong(cx)).await
        };
        match timeout(answer_within, pong).await {
            Ok(Ok(_)) => {}
            // The connection is broken, and `drive` ends for that reason.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
