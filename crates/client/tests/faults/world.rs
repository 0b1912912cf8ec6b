//! The real server, real pools and a bad network, in virtual time.
//!
//! Pools connect over TCP, with the channel that the library makes itself, to a fault proxy; the
//! proxy hands each connection to the real server by a pipe. Everything that has a connection runs
//! on the one paused runtime of the test, and bytes on loopback are there when the call that sent
//! them returns: so the runtime sees whether anything is left to happen but time, and two minutes
//! pass in a fraction of a second.
//!
//! The store is `memory:`. A `file:` store answers from its journal's thread, which no paused
//! runtime can wait for; restarts on a file are tested in real time, in `restarts.rs`.

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

/// The time to live of every lease here: the default.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// When a session is lost that nobody answered for: a last call may be under way, for a second.
pub(crate) const LOST: Duration = Duration::from_secs(61);

/// Ten sessions at once, whose slots are free when they are returned.
pub(crate) const POLICY: &str = r#"
    [services.t1r]
    max_per_organization = 10
    minimal_life = "0s"
    [services.t2w]
    max_per_organization = 50
    minimal_life = "0s"
"#;

/// How often a server looks at its clock: a longer silence would count as a stall of the process.
const TICK: Duration = Duration::from_millis(200);

/// The least real time a tick takes, so that the kernel's own threads get their turn on a busy
/// machine: at most 2000 virtual seconds in a second.
const PACE: Duration = Duration::from_micros(100);

/// Bytes that fit into a pipe to the server.
const PIPE: usize = 256 * 1024;

/// The clock of the test's runtime, for the threads of a server that have none.
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

/// Who answers in the place of the server.
#[derive(Clone)]
pub(crate) enum Impostor {
    /// Something that says this to whoever connects, whatever it is told, and hangs up.
    Says(&'static [u8]),
    /// An HTTP/2 server that answers everything with what this makes.
    Answers(Arc<dyn Fn() -> Response<BoxBody<Bytes, io::Error>> + Send + Sync>),
}

impl Impostor {
    async fn serve(self, mut stream: DuplexStream) {
        match self {
            Self::Says(said) => {
                // Whoever does not listen does not hear.
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
                // It ends when the client hangs up, with an error or without.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    }
}

/// Where the server runs, if it does.
#[derive(Default)]
struct Machine {
    /// Whether it does not know `SessionControl`.
    is_old: bool,
    server: Mutex<Option<Arc<Running>>>,
    impostor: Mutex<Option<Impostor>>,
    /// How many connections impostors were given.
    fooled: AtomicU64,
}

/// A server that can be gone, a way to it, and those who look at it from the inside.
pub(crate) struct World {
    clock: Arc<PausedClock>,
    machine: Arc<Machine>,
    pub(crate) proxy: Proxy,
}

impl World {
    /// A world with a server of [`POLICY`], which keeps alive over a stream, or by calls alone.
    pub(crate) async fn new(stream: bool) -> Self {
        let clock = Arc::new(PausedClock::new());
        let machine = Arc::new(Machine { is_old: !stream, ..Machine::default() });
        let proxy = Proxy::start(by_pipe(machine.clone())).await.unwrap();
        let world = Self { clock, machine, proxy };
        world.start_server(POLICY).await;
        tokio::spawn(tick(Arc::downgrade(&world.machine)));
        world
    }

    /// Plays the same where keep-alives go over a stream, and where they go by calls alone.
    pub(crate) async fn each(play: impl AsyncFn(&Self)) {
        for stream in [true, false] {
            println!("keep-alives over a stream: {stream}");
            play(&Self::new(stream).await).await;
        }
    }

    /// Whether the server knows how to keep alive over a stream.
    pub(crate) fn has_stream(&self) -> bool {
        !self.machine.is_old
    }

    /// Starts a server that knows nothing of the one before.
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

    /// Ends the server at once: its connections break, what it counted is forgotten.
    pub(crate) fn kill_server(&self) {
        drop(self.machine.server.lock().take().expect("a server runs"));
    }

    /// Disables the organization of every stream here, while the server runs.
    pub(crate) async fn disable(&self) {
        let policy = format!("{POLICY}\n[organizations.acme]\ndisabled = true\n");
        let policy = Policy::parse(&policy, "test.toml").unwrap().policy;
        let server = self.machine.server.lock().clone().expect("a server runs");
        assert!(server.set_policy(policy).await.unwrap() > 0, "nothing was revoked");
    }

    /// Lets somebody else answer on connections made from now on, or the server again.
    pub(crate) fn set_impostor(&self, impostor: Option<Impostor>) {
        *self.machine.impostor.lock() = impostor;
    }

    /// How many connections came to somebody else than the server.
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

    /// Waits until the server counts so many sessions and workers, and returns how long it took.
    pub(crate) async fn until_held(&self, expected: (u64, u64)) -> Duration {
        let start = Instant::now();
        while self.held().await != expected {
            assert!(start.elapsed() < 3 * TTL, "{:?} and never {expected:?}", self.held().await);
            sleep(TICK).await;
        }
        start.elapsed()
    }
}

/// Hands each connection to the server that runs, if one does.
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

/// Serves a connection as a server does that does not know `SessionControl`.
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

/// Lets store time follow the runtime's.
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

/// Streams that run, each with two workers.
pub(crate) struct Streams(pub(crate) Vec<(Session, [Worker; 2])>);

impl Streams {
    /// Begins so many, each under a trace of its own.
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

    /// What the server has to count for them.
    pub(crate) fn slots(&self) -> (u64, u64) {
        (self.0.len() as u64, 2 * self.0.len() as u64)
    }

    /// The keys on the wire.
    pub(crate) fn keys(&self) -> Vec<Arc<str>> {
        let of = |(session, workers): &(Session, [Worker; 2])| {
            [session.key(), workers[0].key(), workers[1].key()]
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Checks that nothing of them has ended.
    pub(crate) fn assert_alive(&self) {
        for (session, workers) in &self.0 {
            assert_eq!(session.end_reason(), None);
            assert!(workers.iter().all(|worker| worker.end_reason().is_none()));
        }
    }

    /// Waits until all of them have ended as lost, and returns when the first and the last did.
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

/// Whether a session ended because nobody answered.
pub(crate) fn is_silence(reason: &Error) -> bool {
    matches!(reason, Error::Lost { cause } if matches!(**cause, Error::Unavailable { .. }))
}
