//! The connections of one serving thread: they are accepted, served, closed when idle, and drained when
//! the server stops.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pace::Pace;
use super::tls::{self, Tls};
use crate::accept::Acceptor;
use crate::bounds::connection::Connection;
use crate::bounds::memory::MemoryBudget;
use crate::bounds::places::{Place, Places};
use crate::bounds::rounds::Rounds;
use crate::bounds::{Call, Calls};
use crate::config::PortLimits;
use crate::grpc::Gateway;
use crate::metrics::GaugeGuard;
use crate::stream::Tracked;

/// The HTTP/2 flow control windows of a call and of a connection, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// How long an HTTP/1.1 connection may take until the headers of its next call are complete. HTTP/1.1
/// has no pings.
const HTTP1_IDLE: Duration = Duration::from_secs(60);

/// The smallest read buffer that hyper allows for HTTP/1.1.
const HTTP1_BUFFER: usize = 8 * 1024;

/// The cost of a TLS handshake, in units of [`Rounds`].
const HANDSHAKE_COST: u32 = 300;

static ACCEPTOR: Acceptor = Acceptor::new("the gRPC port");

/// The gRPC port. All serving threads share it.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) gateway: Arc<Gateway>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) limits: PortLimits,
    pub(super) places: Arc<Places>,
    /// The memory budget of connections and calls.
    pub(super) memory: Arc<MemoryBudget>,
    /// Counts the connections.
    pub(super) open: Gauge,
    /// Cancelled when the server stops: no connection is accepted any more, calls in flight may finish.
    pub(super) draining: CancellationToken,
    /// Cancelled when the drain timeout is over: all connections are dropped.
    pub(super) stopped: CancellationToken,
}

impl Port {
    /// Serves connections on the current runtime until the server stops.
    pub(super) async fn serve(self: Arc<Self>, listener: StdListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let (connections, rounds) = (Connections::default(), Arc::<Rounds>::default());
        let running_rounds = rounds.clone();
        // In its own task, so that it runs after the tasks that are ready.
        let running_rounds = tokio::spawn(async move { running_rounds.run().await });
        let (port, connections, rounds) = (&self, &connections, &rounds);
        let serve = |stream, peer: SocketAddr| async move {
            let connection = port.connection(Some(peer.ip()), rounds);
            let place = port.places.take(connection.clone()).await;
            connections.spawn(port.clone(), stream, connection, place);
        };
        tokio::select! {
            () = connections.close_idle_every(self.limits.idle_timeout) => {}
            () = ACCEPTOR.run(listener, &self.draining, serve) => {}
        }
        connections.close_all();
        tokio::select! {
            () = self.stopped.cancelled() => {}
            () = tokio::time::sleep(self.limits.drain_timeout) => {}
            () = connections.all_closed() => {}
        }
        running_rounds.abort();
        Ok(())
    }

    fn connection(&self, peer: Option<IpAddr>, rounds: &Arc<Rounds>) -> Arc<Connection> {
        Connection::new(peer, &self.memory, rounds, &self.limits)
    }

    /// Serves one connection that did not come from the socket, until it ends or the server stops.
    pub(super) async fn serve_stream<I>(self: Arc<Self>, stream: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The program that embeds the server runs this on a thread without other connections.
        let connection = self.connection(None, &Arc::default());
        let _place = self.places.take(connection.clone()).await;
        let _open = GaugeGuard::new(&self.open);
        let deadline = Instant::now() + self.limits.handshake_timeout;
        let mut served = pin!(self.clone().drive(stream, connection.clone(), deadline));
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

    /// Serves one connection from the socket, with TLS if the port has it.
    async fn serve_socket(self: Arc<Self>, stream: TcpStream, connection: Arc<Connection>) {
        let deadline = Instant::now() + self.limits.handshake_timeout;
        match self.tls.clone() {
            None => self.drive(stream, connection, deadline).await,
            // Boxed, so that a connection without TLS uses no memory for it.
            Some(tls) => Box::pin(self.serve_tls(tls, stream, connection, deadline)).await,
        }
    }

    async fn serve_tls(
        self: Arc<Self>,
        tls: Arc<Tls>,
        stream: TcpStream,
        connection: Arc<Connection>,
        deadline: Instant,
    ) {
        let handshake = async {
            // Other callers have their turns between the handshakes of connections without a key.
            let share = connection.share();
            std::future::poll_fn(|context| share.poll_turn(HANDSHAKE_COST, context)).await;
            tls.acceptor().accept(stream).into_fallible().await
        };
        let handshake = tokio::time::timeout_at(deadline, handshake);
        let stream = tokio::select! {
            stream = handshake => stream,
            () = self.draining.cancelled() => return,
            () = std::future::poll_fn(|context| connection.poll_close_at_once(context)) => return,
        };
        match stream {
            Ok(Ok(stream)) => self.drive(stream, connection, deadline).await,
            Ok(Err((error, stream))) => {
                tracing::debug!(%error, "a TLS handshake failed");
                tls::close_after_alert(stream).await;
            }
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Serves HTTP on `stream`. Its first bytes of HTTP have to arrive before `deadline`.
    async fn drive<I>(self: Arc<Self>, stream: I, connection: Arc<Connection>, deadline: Instant)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http = http(&self.limits, &connection);
        let pace = Pace::new(connection.clone());
        let stream = TokioIo::new(Tracked::new(stream, connection.answer_timeout(), pace));
        let (calls, gateway) = (connection.clone(), self.gateway.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            let call = calls.begin(request.headers_mut());
            gateway.clone().answer(request, call)
        });
        let mut http = pin!(http.serve_connection(stream, service));
        let mut is_shutting_down = false;
        // Dropped at the first bytes of HTTP: it costs nothing after them.
        let mut handshake_timeout = Some(Box::pin(tokio::time::sleep_until(deadline)));
        let ended = std::future::poll_fn(|context| {
            connection.waker.register(context.waker());
            let is_evicted = connection.has_to_close_at_once();
            if !is_shutting_down && (is_evicted || connection.has_to_close()) {
                is_shutting_down = true;
                http.as_mut().graceful_shutdown();
            }
            if !is_evicted {
                ready!(connection.poll_turn(context));
            }
            if let Poll::Ready(ended) = http.as_mut().poll(context) {
                return Poll::Ready(ended.map_err(|error| error.to_string()));
            }
            handshake_timeout.take_if(|_| connection.speaks_http());
            let timer = handshake_timeout.as_mut();
            if is_evicted {
                Poll::Ready(Err("it was evicted".to_owned()))
            } else if timer.is_some_and(|timer| timer.as_mut().poll(context).is_ready()) {
                Poll::Ready(Err("the handshake timeout is over".to_owned()))
            } else {
                Poll::Pending
            }
        });
        // A call of HTTP/1.1 runs within its connection, and both are reset together.
        let served = Call::within_connection(async {
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
        served.await;
    }
}

/// Configures HTTP/2 for gRPC, and HTTP/1.1 for gRPC-Web, which browsers and their proxies use.
fn http(limits: &PortLimits, connection: &Arc<Connection>) -> auto::Builder<Calls> {
    let mut builder = auto::Builder::new(Calls(connection.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_IDLE)
        .max_buf_size(HTTP1_BUFFER.max(limits.max_header_bytes as usize));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        // A client may cancel all its calls at once. The default allows 20 and then sends
        // ENHANCE_YOUR_CALM, which clients read as RESOURCE_EXHAUSTED: they would end their streams.
        .max_pending_accept_reset_streams(limits.max_streams as usize)
        .max_header_list_size(limits.max_header_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout)
        // gRPC does not use the date.
        .auto_date_header(false);
    builder
}

/// Every open connection, by the number of its place, with the number of its calls at the last idle check.
type Open = HashMap<u64, (Arc<Connection>, u64)>;

/// The connections of one serving thread.
#[derive(Debug, Default)]
struct Connections {
    open: Arc<Mutex<Open>>,
    tasks: TaskTracker,
}

impl Connections {
    fn spawn(&self, port: Arc<Port>, stream: TcpStream, connection: Arc<Connection>, place: Place) {
        connection.set_place(&port.places, &place);
        self.open.lock().insert(place.number(), (connection.clone(), u64::MAX));
        let open = self.open.clone();
        let counted = GaugeGuard::new(&port.open);
        self.tasks.spawn(async move {
            port.serve_socket(stream, connection).await;
            open.lock().remove(&place.number());
            drop((place, counted));
        });
    }

    /// Closes connections that made no call for the time `idle` and have none in flight; never returns.
    async fn close_idle_every(&self, idle: Duration) {
        loop {
            tokio::time::sleep(idle).await;
            self.close_idle();
        }
    }

    /// Closes connections that made no call since the last check and have none in flight.
    fn close_idle(&self) {
        for (connection, calls_before) in self.open.lock().values_mut() {
            let calls = connection.calls();
            if calls == *calls_before && connection.is_idle() {
                connection.close();
            }
            *calls_before = calls;
        }
    }

    fn close_all(&self) {
        for (connection, _) in self.open.lock().values() {
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
    use http::HeaderMap;

    use super::*;

    #[test]
    fn a_connection_is_idle_after_a_whole_period_without_calls() {
        let connections = Connections::default();
        let [silent, calling, watching] = std::array::from_fn(|_| Connection::of_a_test());
        for (number, connection) in (0..).zip([&silent, &calling, &watching]) {
            connections.open.lock().insert(number, (connection.clone(), u64::MAX));
        }
        let stream = watching.begin(&mut HeaderMap::new());

        connections.close_idle();
        assert!(!silent.has_to_close(), "a new connection has a whole period");

        drop(calling.begin(&mut HeaderMap::new()));
        connections.close_idle();
        assert!(silent.has_to_close());
        assert!(!calling.has_to_close() && !watching.has_to_close());

        drop(stream);
        connections.close_idle();
        assert!(calling.has_to_close() && watching.has_to_close());
    }
}
