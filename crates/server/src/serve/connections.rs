//! The connections of one serving thread: accepted, driven, closed when idle, drained at the end.

use std::convert::Infallible;
use std::net::TcpListener as StdListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::{Call, Calls};
use super::limits::PortLimits;
use super::opening::opening;
use super::tls::{self, Tls};
use crate::admin::metrics::Held;
use crate::repeated::Repeated;
use crate::rpc::Gateway;
use crate::store::Store;

/// Bytes that a caller may send ahead on one call, and on a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How long an HTTP/1.1 connection may take to its next call, headers included. It cannot be asked
/// whether anybody is there.
const HTTP1_IDLE: Duration = Duration::from_secs(60);

/// The least that hyper reads HTTP/1.1 into.
const HTTP1_BUFFER: usize = 8 * 1024;

/// How long to wait when the system has no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

static CANNOT_ACCEPT: Repeated = Repeated::new();

/// What the serving threads of a server share.
#[derive(Debug)]
pub(super) struct Port<S> {
    pub(super) gateway: Gateway<S>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) limits: PortLimits,
    pub(super) places: Arc<Semaphore>,
    /// Counts the connections.
    pub(super) open: Gauge,
    /// Cancelled when the server stops: accept nothing more, finish what is under way.
    pub(super) draining: CancellationToken,
    /// Cancelled when there is no more time: drop everything.
    pub(super) stopped: CancellationToken,
}

impl<S: Store> Port<S> {
    /// Serves connections on the current runtime until the server stops.
    pub(super) async fn serve(self: Arc<Self>, listener: StdListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let connections = Connections::default();
        tokio::select! {
            () = self.stopped.cancelled() => return Ok(()),
            () = self.draining.cancelled() => {}
            () = connections.close_idle(self.limits.idle_timeout) => {}
            () = self.accept(&listener, &connections) => {}
        }
        drop(listener);
        connections.close_all();
        tokio::select! {
            () = self.stopped.cancelled() => {}
            () = tokio::time::sleep(self.limits.drain_timeout) => {}
            () = connections.all_closed() => {}
        }
        Ok(())
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, connections: &Connections) {
        loop {
            let Ok(place) = self.places.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !is_about_one_connection(&error) {
                        if let Some(times) = CANNOT_ACCEPT.count() {
                            tracing::warn!(%error, times, "cannot accept a connection");
                        }
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                    continue;
                }
            };
            connections.spawn(self.clone(), stream, place);
            // Lets the other threads have their share of connections that come at once.
            tokio::task::yield_now().await;
        }
    }

    /// Serves one connection that came by other means than the socket, until it ends or the
    /// server stops.
    pub(super) async fn serve_stream<I>(self: Arc<Self>, stream: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(_place) = self.places.clone().acquire_owned().await else { return };
        let _open = Held::in_(&self.open);
        let connection = Arc::<Connection>::default();
        let by = Instant::now() + self.limits.handshake_timeout;
        let mut served = pin!(self.clone().drive(stream, connection.clone(), by));
        tokio::select! {
            () = &mut served => return,
            () = self.stopped.cancelled() => return,
            () = self.draining.cancelled() => connection.close(),
        }
        tokio::select! {
            () = served => {}
            () = self.stopped.cancelled() => {}
            () = tokio::time::sleep(self.limits.drain_timeout) => {}
        }
    }

    /// Serves one connection from the socket, under TLS if that is what the port has.
    async fn greet(self: Arc<Self>, stream: TcpStream, connection: Arc<Connection>) {
        // Answers are small and awaited; without it they would wait for acknowledgements. A stream
        // that cannot be told is gone already.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let by = Instant::now() + self.limits.handshake_timeout;
        match self.tls.clone() {
            None => self.drive(stream, connection, by).await,
            // Boxed, so that a connection without TLS takes no room for it.
            Some(tls) => Box::pin(self.greet_with_tls(tls, stream, connection, by)).await,
        }
    }

    async fn greet_with_tls(
        self: Arc<Self>,
        tls: Arc<Tls>,
        stream: TcpStream,
        connection: Arc<Connection>,
        by: Instant,
    ) {
        let handshake = tls.acceptor().accept(stream).into_fallible();
        let handshake = tokio::time::timeout_at(by, handshake);
        let stream = tokio::select! {
            stream = handshake => stream,
            () = self.draining.cancelled() => return,
        };
        match stream {
            Ok(Ok(stream)) => self.drive(stream, connection, by).await,
            Ok(Err((error, stream))) => {
                tracing::debug!(%error, "a TLS handshake failed");
                tls::hang_up(stream).await;
            }
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Serves HTTP on `stream`, which has to begin `by` then.
    async fn drive<I>(self: Arc<Self>, stream: I, connection: Arc<Connection>, by: Instant)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http = http(&self.limits);
        let (stream, mut opening) = opening(stream, by);
        let calls = connection.clone();
        let service = service_fn(move |request| {
            calls.calls.fetch_add(1, Ordering::Relaxed);
            let (port, calls) = (self.clone(), calls.clone());
            async move {
                let response = port.gateway.answer(request).await;
                Ok::<_, Infallible>(response.map(|body| body.on(calls)))
            }
        });
        let mut http = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut told = false;
        let ended = std::future::poll_fn(|context| {
            connection.waker.register(context.waker());
            if !told && connection.leave.load(Ordering::Acquire) {
                told = true;
                http.as_mut().graceful_shutdown();
            }
            let polled = http.as_mut().poll(context);
            if polled.is_pending() && opening.is_missed(context) {
                return Poll::Ready(Err("nothing was said in time".into()));
            }
            polled
        });
        // A call of HTTP/1.1 runs within its connection, which is reset together with it.
        let served = Call::new(async {
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
        served.await;
    }
}

/// HTTP/2 for gRPC; HTTP/1.1 for gRPC-Web alone, as browsers and their proxies speak it.
fn http(limits: &PortLimits) -> auto::Builder<Calls> {
    let mut builder = auto::Builder::new(Calls);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_IDLE)
        .max_buf_size(HTTP1_BUFFER.max(limits.max_header_bytes as usize));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        // A client may give up all its calls at once. The default allows 20 of them before it says
        // ENHANCE_YOUR_CALM, which clients take for RESOURCE_EXHAUSTED and end their streams.
        .max_pending_accept_reset_streams(limits.max_streams as usize)
        .max_header_list_size(limits.max_header_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout)
        // gRPC has no use for a date.
        .auto_date_header(false);
    builder
}

fn is_about_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One connection, as seen from outside its task.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// Calls so far.
    calls: AtomicU64,
    /// Streams that are open beyond one answer, such as a health watch.
    streams: AtomicUsize,
    leave: AtomicBool,
    waker: AtomicWaker,
}

impl Connection {
    /// Finishes the calls under way, takes no more and closes.
    fn close(&self) {
        self.leave.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// A stream of a connection that is not idle while it is open.
#[derive(Debug)]
pub(crate) struct OpenStream(Arc<Connection>);

impl OpenStream {
    /// Counts a stream of `connection` until it is dropped.
    pub(crate) fn on(connection: Arc<Connection>) -> Self {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Self(connection)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of one serving thread.
#[derive(Debug, Default)]
struct Connections {
    open: Arc<Mutex<Open>>,
    tasks: TaskTracker,
}

/// Every open connection, with the calls it had made when somebody last looked whether it is idle.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: std::collections::HashMap<u64, (Arc<Connection>, u64)>,
}

impl Open {
    fn add(&mut self) -> (u64, Arc<Connection>) {
        let (number, connection) = (self.next, Arc::<Connection>::default());
        self.next += 1;
        self.connections.insert(number, (connection.clone(), u64::MAX));
        (number, connection)
    }

    /// Closes what made no call since the last look and has no stream open.
    fn close_idle(&mut self) {
        for (connection, calls_then) in self.connections.values_mut() {
            let calls = connection.calls.load(Ordering::Relaxed);
            if calls == *calls_then && connection.streams.load(Ordering::Relaxed) == 0 {
                connection.close();
            }
            *calls_then = calls;
        }
    }
}

impl Connections {
    fn spawn<S: Store>(&self, port: Arc<Port<S>>, stream: TcpStream, place: OwnedSemaphorePermit) {
        let (number, connection) = self.open.lock().add();
        let open = self.open.clone();
        let held = Held::in_(&port.open);
        self.tasks.spawn(async move {
            port.greet(stream, connection).await;
            open.lock().connections.remove(&number);
            drop((place, held));
        });
    }

    /// Looks for idle connections for ever.
    async fn close_idle(&self, idle: Duration) {
        loop {
            tokio::time::sleep(idle).await;
            self.open.lock().close_idle();
        }
    }

    fn close_all(&self) {
        for (connection, _) in self.open.lock().connections.values() {
            connection.close();
        }
        self.tasks.close();
    }

    async fn all_closed(&self) {
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_leaving(connection: &Connection) -> bool {
        connection.leave.load(Ordering::Relaxed)
    }

    #[test]
    fn a_connection_is_idle_after_a_whole_period_without_calls_or_streams() {
        let mut open = Open::default();
        let (_, silent) = open.add();
        let (_, calling) = open.add();
        let (_, watching) = open.add();
        let stream = OpenStream::on(watching.clone());

        open.close_idle();
        assert!(!is_leaving(&silent), "a connection that is new is given a whole period");

        calling.calls.fetch_add(1, Ordering::Relaxed);
        open.close_idle();
        assert!(is_leaving(&silent));
        assert!(!is_leaving(&calling) && !is_leaving(&watching));

        drop(stream);
        open.close_idle();
        assert!(is_leaving(&calling) && is_leaving(&watching));
    }
}
