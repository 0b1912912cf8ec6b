//! The real server, real pools and a bad network, in virtual time.
//!
//! Pools connect over TCP to a fault proxy, with the library's own channel. The proxy passes each
//! connection to the real server through a pipe. All code that has a connection runs on the one
//! paused runtime of the test, and bytes on loopback have arrived when the call that sent them
//! returns. So the runtime advances its clock only when no task can run, and two minutes pass in a
//! fraction of a second.
//!
//! The store is `memory:`. A `file:` store answers from the thread of its journal, and a paused
//! runtime cannot wait for that thread. `restarts.rs` tests restarts on a file, in real time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tgm_session::{Dsn, Error, Pool, Session, SessionRequest, TgmPool, Worker};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Clock, Config, Policy, Running, Server};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use crate::gateway;
use crate::proxy::{Dial, Proxy, Wire};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The TTL of every lease in these tests: the default.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// How long a session lives at most without an answer: the TTL, and one second because a last call
/// may still be in flight.
pub(crate) const LOST: Duration = Duration::from_secs(61);

/// Allows ten sessions at once. A slot is free as soon as its lease is returned.
pub(crate) const POLICY: &str = r#"
    [services.t1r]
    max_per_organization = 10
    minimal_life = "0s"
    [services.t2w]
    max_per_organization = 50
    minimal_life = "0s"
"#;

/// How often the store reads its clock. It treats a pause of more than 500 ms as a stall of the
/// process.
const TICK: Duration = Duration::from_millis(200);

/// The least real time of a tick, so that the threads of the kernel can run on a busy machine. It
/// allows at most 2000 virtual seconds per second.
const PACE: Duration = Duration::from_micros(100);

/// Bytes that fit into a pipe to the server.
const PIPE: usize = 256 * 1024;

/// The paused clock of the test's runtime. Threads of the server read it from outside of the
/// runtime.
#[derive(Debug)]
struct PausedClock {
    runtime: Handle,
    start: Instant,
}

impl PausedClock {
    fn new() -> Self {
        Self { runtime: Handle::current(), start: Instant::now() }
    }
}

impl Clock for PausedClock {
    fn monotonic(&self) -> Duration {
        let _within = self.runtime.enter();
        self.start.elapsed()
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_800_000_000) + self.monotonic()
    }
}

/// A program that answers in place of the server.
#[derive(Clone)]
pub(crate) enum Impostor {
    /// A program that sends these bytes on each connection, ignores every request, and disconnects.
    Says(&'static [u8]),
    /// An HTTP/2 server that answers every request with the result of this function.
    Answers(Arc<dyn Fn() -> Response<BoxBody<Bytes, io::Error>> + Send + Sync>),
}

impl Impostor {
    async fn serve(self, mut stream: DuplexStream) {
        match self {
            Self::Says(said) => {
                // The client may have closed the connection already.
                let _ = stream.write_all(said).await;
                let _ = stream.shutdown().await;
            }
            Self::Answers(answer) => {
                let service = service_fn(move |_: Request<_>| {
                    let answer = answer();
                    async move { Ok::<_, Infallible>(answer) }
                });
                let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                let service = TowerToHyperService::new(service);
                // It ends when the client disconnects, with or without an error.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    }
}

/// The machine of the server. The server runs on it, or is stopped.
#[derive(Default)]
struct Machine {
    /// Whether the server is an old one, without `SessionControl`.
    is_old: bool,
    server: Mutex<Option<Arc<Running>>>,
    impostor: Mutex<Option<Impostor>>,
    /// How many connections went to an impostor.
    fooled: AtomicU64,
}

/// A server that can be stopped, and the proxy through which clients reach it. Tests can also read
/// what the server counts.
pub(crate) struct World {
    clock: Arc<PausedClock>,
    machine: Arc<Machine>,
    pub(crate) proxy: Proxy,
}

impl World {
    /// Starts a server with [`POLICY`]. Clients keep leases alive over a stream if `stream` is set,
    /// else by single calls.
    pub(crate) async fn new(stream: bool) -> Self {
        let clock = Arc::new(PausedClock::new());
        let machine = Arc::new(Machine { is_old: !stream, ..Machine::default() });
        let proxy = Proxy::start(by_pipe(machine.clone())).await.unwrap();
        let world = Self { clock, machine, proxy };
        world.start_server(POLICY).await;
        tokio::spawn(tick(Arc::downgrade(&world.machine)));
        world
    }

    /// Runs `play` twice: with keep-alives over a stream, and with keep-alives by single calls.
    pub(crate) async fn each(play: impl AsyncFn(&Self)) {
        for stream in [true, false] {
            println!("keep-alives over a stream: {stream}");
            play(&Self::new(stream).await).await;
        }
    }

    /// Whether the server accepts keep-alives over a stream.
    pub(crate) fn has_stream(&self) -> bool {
        !self.machine.is_old
    }

    /// Starts a server. It knows none of the leases of an earlier server.
    pub(crate) async fn start_server(&self, policy: &str) {
        let policy = Policy::parse(policy, "test.toml").unwrap().policy;
        let mut config = Config::new(policy, StoreUrl::Memory);
        config.listen.set_port(0);
        config.admin_listen.set_port(0);
        config.threads = 1;
        config.clock = self.clock.clone();
        let running = Server::bind(config).await.unwrap().start().await.unwrap();
        let running = Arc::new(running);
        assert!(self.machine.server.lock().replace(running).is_none(), "one server at a time");
    }

    /// Ends the server at once. Its connections break, and its leases are forgotten.
    pub(crate) fn kill_server(&self) {
        drop(self.machine.server.lock().take().expect("a server runs"));
    }

    /// Disables `acme`, the organization of every stream in these tests, while the server runs.
    pub(crate) async fn disable(&self) {
        let policy = format!("{POLICY}\n[organizations.acme]\ndisabled = true\n");
        let policy = Policy::parse(&policy, "test.toml").unwrap().policy;
        let server = self.machine.server.lock().clone().expect("a server runs");
        assert!(server.set_policy(policy).await.unwrap() > 0, "nothing was revoked");
    }

    /// Sends new connections to `impostor`, or to the server again if it is `None`.
    pub(crate) fn set_impostor(&self, impostor: Option<Impostor>) {
        *self.machine.impostor.lock() = impostor;
    }

    /// How many connections went to an impostor instead of the server.
    pub(crate) fn fooled(&self) -> u64 {
        self.machine.fooled.load(Ordering::Relaxed)
    }

    /// A pool that reaches the server through the proxy, and the plugin behind it.
    pub(crate) fn pool(&self, parameters: &str) -> (Pool, Arc<TgmPool>) {
        pool(self.proxy.address(), parameters)
    }

    /// How many sessions and workers the server counts now.
    pub(crate) async fn held(&self) -> (u64, u64) {
        let count = async |service| self.state(service).await.leases;
        (count("t1r").await, count("t2w").await)
    }

    /// How many leases of each trace the server counts now, sessions and workers together.
    pub(crate) async fn held_by_trace(&self) -> BTreeMap<String, u64> {
        let mut traces = BTreeMap::new();
        for service in ["t1r", "t2w"] {
            for (trace, leases) in self.state(service).await.traces {
                *traces.entry(trace.to_string()).or_default() += leases;
            }
        }
        traces
    }

    async fn state(&self, service: &str) -> lease::PoolUse {
        let store = self.machine.server.lock().as_ref().expect("a server runs").store().clone();
        store.state(service, "acme").await.unwrap()
    }

    /// Waits until the server counts the expected sessions and workers, and returns how long it
    /// took.
    pub(crate) async fn until_held(&self, expected: (u64, u64)) -> Duration {
        let start = Instant::now();
        while self.held().await != expected {
            assert!(start.elapsed() < 3 * TTL, "{:?} and never {expected:?}", self.held().await);
            sleep(TICK).await;
        }
        start.elapsed()
    }
}

/// Connects to the impostor if one is set, else to the server. Without a server, it refuses.
fn by_pipe(machine: Arc<Machine>) -> Dial {
    Arc::new(move || {
        let machine = machine.clone();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(PIPE);
            if let Some(impostor) = machine.impostor.lock().clone() {
                machine.fooled.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(impostor.serve(far));
                return Ok(Box::new(near) as Box<dyn Wire>);
            }
            let server = machine.server.lock();
            let server = server.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?;
            if machine.is_old {
                tokio::spawn(serve_as_of_old(far, server));
            } else {
                tokio::spawn(server.serve_stream(far));
            }
            Ok(Box::new(near) as Box<dyn Wire>)
        })
    })
}

/// Serves a connection as an old server does, without `SessionControl`.
fn serve_as_of_old(client: DuplexStream, server: &Running) -> impl Future<Output = ()> + use<> {
    let (near, far) = tokio::io::duplex(PIPE);
    let served = server.serve_stream(far);
    let mut near = Some(TokioIo::new(near));
    let connector = service_fn(move |_: Uri| {
        let near = near.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { near }
    });
    let channel = Endpoint::from_static("http://old").connect_with_connector_lazy(connector);
    async move {
        tokio::select! {
            () = gateway::serve(client, channel) => {}
            () = served => {}
        }
    }
}

/// Makes the store read its clock regularly, so that store time follows the clock of the runtime.
async fn tick(machine: Weak<Machine>) {
    loop {
        sleep(TICK).await;
        let Some(machine) = machine.upgrade() else { return };
        if let Some(server) = &*machine.server.lock() {
            server.store().tick();
        }
        std::thread::sleep(PACE);
    }
}

/// A pool of the server at `address`, and the plugin behind it.
pub(crate) fn pool(address: SocketAddr, parameters: &str) -> (Pool, Arc<TgmPool>) {
    let dsn = Dsn::parse(&format!("tgm://{address}?plaintext=true&{parameters}")).unwrap();
    let plugin = Arc::new(TgmPool::from_dsn(&dsn).unwrap());
    (Pool::new(plugin.clone()), plugin)
}

/// A stream of `acme` under this trace.
pub(crate) fn stream(trace: impl std::fmt::Display) -> SessionRequest {
    SessionRequest::new("t1r", "acme").api_key("key-1").trace(format!("trace-{trace}"))
}

/// Running streams. Each is a session with two workers.
pub(crate) struct Streams(pub(crate) Vec<(Session, [Worker; 2])>);

impl Streams {
    /// Begins `count` streams, each under its own trace.
    pub(crate) async fn begin(pool: &Pool, count: usize) -> Self {
        static TRACES: AtomicU64 = AtomicU64::new(0);
        let mut streams = Vec::new();
        for _ in 0..count {
            let trace = TRACES.fetch_add(1, Ordering::Relaxed);
            let session = pool.borrow(stream(trace)).await.unwrap();
            let workers = [
                session.borrow_worker("t2w", 2).await.unwrap(),
                session.borrow_worker("t2w", 2).await.unwrap(),
            ];
            streams.push((session, workers));
        }
        Self(streams)
    }

    /// The number of sessions and workers that the server must count for these streams.
    pub(crate) fn slots(&self) -> (u64, u64) {
        (self.0.len() as u64, 2 * self.0.len() as u64)
    }

    /// The lease keys of all sessions and workers.
    pub(crate) fn keys(&self) -> Vec<Arc<str>> {
        let of = |(session, workers): &(Session, [Worker; 2])| {
            [session.key(), workers[0].key(), workers[1].key()]
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Checks that no session and no worker has ended.
    pub(crate) fn assert_alive(&self) {
        for (session, workers) in &self.0 {
            assert_eq!(session.end_reason(), None);
            assert!(workers.iter().all(|worker| worker.end_reason().is_none()));
        }
    }

    /// Waits until all streams have ended as lost. Returns when the first and when the last ended.
    pub(crate) async fn lost(&self) -> (Instant, Instant) {
        let ends = self.0.iter().map(|(session, workers)| async move {
            let reason = session.ended().await;
            assert!(is_silence(&reason), "{reason}");
            let at = Instant::now();
            for worker in workers {
                assert!(matches!(worker.ended().await, Error::Lost { .. }));
            }
            assert_eq!(at, Instant::now(), "workers end with their session");
            at
        });
        let ends = futures_util::future::join_all(ends).await;
        let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
        (*first, *last)
    }
}

/// Whether a session is lost because the server could not be reached or did not answer.
pub(crate) fn is_silence(reason: &Error) -> bool {
    matches!(reason, Error::Lost { cause } if matches!(**cause, Error::Unavailable { .. }))
}
