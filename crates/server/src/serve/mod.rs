//! A whole server: both ports, the store behind them, and how they start and stop.

mod connections;
mod opening;
mod operator;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinHandle as TaskHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use wire::control::session_control_server::SessionControlServer;

use store::{Noted, Recovered, Store, Unavailable};

use crate::admin::{self, Admin};
use crate::blocking::blocking;
use crate::bounds::memory::{CONNECTION_BYTES, MemoryBudget};
use crate::bounds::places::Places;
use crate::config::Config;
use crate::config::token_file::TokenInForce;
use crate::config::watch::Watched;
use crate::error::Error;
use crate::grpc::control::{Control, Farewell, SESSION_CONTROL};
use crate::grpc::{
    self, Aside, Gateway, Reports, Tonic, USAGE_SERVICE, UsageReports, WORKER_POOL, Web, WorkerPool,
};
use crate::live::Live;
use crate::metrics::{Facts, Metrics};
use crate::operator::{Operator, Parts};
use crate::refusals::Refusals;
use connections::Port;

use tls::Tls;

/// Connections that may wait to be accepted: after a restart all clients come back at once.
const BACKLOG: u32 = 4_096;

/// The names under which gRPC health says how the server is.
const HEALTH_OF: [&str; 4] = ["", WORKER_POOL, SESSION_CONTROL, USAGE_SERVICE];

/// How often gRPC health looks at the store.
const HEALTH_EVERY: Duration = Duration::from_millis(500);

/// What the store has for its last commit, however long calls took to finish.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// A server that has both its ports and its store, and accepts nothing yet.
///
/// ```
/// use tgm_session_server::store::StoreUrl;
/// use tgm_session_server::{Config, Policy, Server};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
/// config.listen.set_port(0);
/// config.admin_listen.set_port(0);
/// let server = Server::bind(config).await?.start().await?;
/// println!("sessions on {}, probes on {}", server.grpc_address(), server.admin_address());
/// server.stop().await
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Server {
    config: Config,
    store: Recovered,
    tls: Option<(Tls, Watched)>,
    token: Option<(TokenInForce, Option<Watched>)>,
    grpc: StdListener,
    admin: TcpListener,
    grpc_address: SocketAddr,
    admin_address: SocketAddr,
}

impl Server {
    /// Opens the store that `config` names and takes both ports. Nothing is accepted yet.
    ///
    /// # Errors
    ///
    /// An address is open to everybody, a port is taken, or the store cannot be had.
    pub async fn bind(mut config: Config) -> Result<Self, Error> {
        first(config.judge())?;
        let (url, options) = (config.store.clone(), config.store_options());
        let store = blocking(move || Recovered::open(&url, options)).await?;
        Self::take_ports(config, store)
    }

    /// Takes both ports for a store that is open already; the one that `config` names is left alone.
    ///
    /// # Errors
    ///
    /// An address is open to everybody, or a port is taken.
    pub async fn with_store(mut config: Config, store: Recovered) -> Result<Self, Error> {
        first(config.judge_ports())?;
        Self::take_ports(config, store)
    }

    fn take_ports(config: Config, store: Recovered) -> Result<Self, Error> {
        let tls = Tls::load(&config.tls, config.clock.clone())?;
        let token = TokenInForce::load(&config)?;
        let (grpc, grpc_address) = listen("gRPC", config.listen)?;
        let (admin, admin_address) = listen("the admin port", config.admin_listen)?;
        let grpc = grpc.into_std().map_err(|source| Error::Listen {
            port: "gRPC",
            address: config.listen,
            source,
        })?;
        Ok(Self { config, store, tls, token, grpc, admin, grpc_address, admin_address })
    }

    /// Where gRPC will be served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where the admin port will be served.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// How many leases the store brought back.
    pub fn recovered_leases(&self) -> usize {
        self.store.leases()
    }

    /// Serves until `shutdown` is cancelled, then stops as [`Running::stop`] does.
    ///
    /// Cancellation: dropped, the server stops at once.
    ///
    /// # Errors
    ///
    /// As [`Server::start`] and [`Running::stop`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let running = self.start().await?;
        shutdown.cancelled().await;
        running.stop().await
    }

    /// Starts to accept on both ports. From now on every lease has its full TTL.
    ///
    /// Leases that the policy no longer lets live are revoked first.
    ///
    /// # Errors
    ///
    /// A thread cannot be started, or the revocations could not be kept.
    pub async fn start(self) -> Result<Running, Error> {
        let Self { config, store, tls, token, grpc, admin, grpc_address, admin_address } = self;
        let facts = Facts {
            max_leases: config.max_leases,
            max_connections: config.max_connections,
            max_memory: config.max_memory,
            recovered_leases: store.leases(),
            started_at: config.clock.wall(),
        };
        let store = Arc::new(store.resume()?);
        let policy = config.policy.with_overrides(&store.overrides());
        let revoked = store.enforce(&policy, Noted::Nowhere).await.map_err(store_failed)?.ended;
        if revoked > 0 {
            tracing::info!(leases = revoked, "revoked what the policy no longer lets live");
        }
        let metrics = Arc::new(Metrics::of_server(&facts, store.commits()));
        let refusals = Arc::new(Refusals::new(config.clock.clone()));
        let default_organization = config.default_organization.clone().map(Arc::from);
        let live = Live::new(policy, &metrics, refusals.clone(), default_organization);
        let live = Arc::new(ArcSwap::from_pointee(live));
        let health = HealthReporter::new();
        let farewell = Farewell::default();
        let memory = MemoryBudget::new(config.max_memory as usize, metrics.memory.clone());
        // Connections of strangers are not refused for want of memory, so there are fewer of them.
        let strangers = config.max_memory as usize / 8 / CONNECTION_BYTES;
        let places =
            Arc::new(Places::new(config.max_connections as usize, strangers, tls.is_some()));
        let (tls, certificates) = tls.map(|(tls, files)| (Arc::new(tls), files)).unzip();
        let control = control(&store, &live, &metrics, &config, &farewell);
        let pool = WorkerPool::new(store.clone(), config.clock.clone(), metrics.calls.clone());
        let port = Arc::new(Port {
            gateway: Arc::new(Gateway::new(
                pool,
                Reports::new(
                    UsageReports::new(
                        store.clone(),
                        metrics.usage.clone(),
                        config.port.max_report_events,
                    ),
                    config.port,
                ),
                live.clone(),
                control,
                Aside::new(health.clone()),
                Web::new(&config.grpc_web_origins),
                config.port,
            )),
            tls: tls.clone(),
            limits: config.port,
            places,
            memory,
            open: metrics.connections.clone(),
            draining: CancellationToken::new(),
            stopped: CancellationToken::new(),
        });
        let operator = Arc::new(Operator::new(Parts {
            store: store.clone(),
            live: live.clone(),
            metrics: metrics.clone(),
            config: config.clone(),
        }));
        operator.tell_of_unreported().await;
        let serving = Arc::new(AtomicBool::new(false));
        let certificate_not_after = tls.as_ref().map(|tls| tls.not_after());
        let pages = Admin::new(admin::Parts {
            store: store.clone(),
            store_url: config.store,
            live,
            operator: operator.clone(),
            metrics,
            refusals,
            clock: config.clock,
            serving: serving.clone(),
            dropped_log_lines: config.dropped_log_lines,
            certificate_not_after,
        });
        let (token, token_file) = token.map(|(token, file)| (Arc::new(token), file)).unzip();
        let router = admin::router(pages, token.clone(), admin_address);

        let mut running = Running {
            grpc_address,
            admin_address,
            draining: port.draining.clone(),
            stopped: port.stopped.clone(),
            port: port.clone(),
            farewell,
            operator,
            serving,
            health,
            threads: Vec::new(),
            runtimes: Vec::new(),
            tasks: Vec::new(),
            store,
        };
        running.serve_grpc(&port, &grpc, config.threads)?;
        running.serve_admin(admin, router);
        running.watch_health();
        running.tasks.push(tokio::spawn(running.operator.clone().watch()));
        if let (Some(tls), Some(certificates)) = (tls, certificates) {
            running.tasks.push(tokio::spawn(tls.follow(certificates)));
        }
        if let (Some(token), Some(file)) = (token, token_file.flatten()) {
            running.tasks.push(tokio::spawn(token.follow(file)));
        }
        running.serving.store(true, Ordering::Release);
        Ok(running)
    }
}

/// A server that serves.
///
/// Dropped, it stops at once: calls under way are cut off, and only what was acknowledged is sure
/// to be kept. [`Running::stop`] is the good way.
#[derive(Debug)]
pub struct Running {
    grpc_address: SocketAddr,
    admin_address: SocketAddr,
    draining: CancellationToken,
    stopped: CancellationToken,
    port: Arc<Port>,
    farewell: Farewell,
    operator: Arc<Operator>,
    serving: Arc<AtomicBool>,
    health: HealthReporter,
    threads: Vec<JoinHandle<io::Result<()>>>,
    runtimes: Vec<Handle>,
    tasks: Vec<TaskHandle<()>>,
    store: Arc<Store>,
}

impl Running {
    /// Where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where the admin port is served.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The store behind the ports, for whoever runs the server within a program of their own.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether the server still does its work: answers once every thread that serves gRPC has turned
    /// and the store has been looked at. `false` when a thread has ended.
    ///
    /// A server that hangs does not answer, for as long as it hangs; that is what a watchdog is for.
    /// One whose store cannot make changes does answer: `/readyz` says that.
    ///
    /// Cancellation safe.
    pub async fn responds(&self) -> bool {
        for runtime in &self.runtimes {
            if runtime.spawn(std::future::ready(())).await.is_err() {
                return false;
            }
        }
        // What the store says does not matter, only that it does.
        let store = self.store.clone();
        blocking(move || drop(store.live())).await;
        true
    }

    /// Serves gRPC on `stream`, a connection that this program has by its own means: a pipe, a Unix
    /// socket, a stream of which TLS was taken off.
    ///
    /// Ends when the connection does, or when the server stops: calls under way may finish as on
    /// every other connection. It counts as a connection, but is not closed for being idle.
    ///
    /// Cancellation: dropped, the connection breaks; no lease ends by that.
    pub fn serve_stream<I>(&self, stream: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.port.clone().serve_stream(stream)
    }

    /// Starts the threads that serve gRPC, all on the one socket.
    fn serve_grpc(
        &mut self,
        port: &Arc<Port>,
        listener: &StdListener,
        threads: usize,
    ) -> Result<(), Error> {
        let failed = |source| Error::System { action: "start a thread that serves gRPC", source };
        for number in 0..threads {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(failed)?;
            self.runtimes.push(runtime.handle().clone());
            runtime.spawn(self.store.serving_threads().answer_probes());
            let (port, listener) = (port.clone(), listener.try_clone().map_err(failed)?);
            let thread = std::thread::Builder::new()
                .name(format!("grpc-{number}"))
                .spawn(move || runtime.block_on(port.serve(listener)))
                .map_err(failed)?;
            self.threads.push(thread);
        }
        Ok(())
    }

    fn serve_admin(&mut self, listener: TcpListener, router: axum::Router) {
        self.tasks.push(tokio::spawn(admin::serve(listener, router, self.stopped.clone())));
    }

    /// Lets gRPC health say what the store says.
    fn watch_health(&mut self) {
        let (health, store) = (self.health.clone(), self.store.clone());
        let draining = self.draining.clone();
        self.tasks.push(tokio::spawn(async move {
            let mut told = None;
            loop {
                let status = match store.ready() {
                    Ok(()) => ServingStatus::Serving,
                    Err(_) => ServingStatus::NotServing,
                };
                if told != Some(status) {
                    told = Some(status);
                    for name in HEALTH_OF {
                        health.set_service_status(name, status).await;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(HEALTH_EVERY) => {}
                    () = draining.cancelled() => return,
                }
            }
        }));
    }

    /// Stops: attached streams get their notice, probes say so, no connection is accepted any more,
    /// calls under way may finish for at most 10 s, and what the store has pending is flushed. Calls
    /// that wait for a disk that hangs are answered a second before that. An attached stream is ended
    /// about a second after its notice; no lease ends with it. A disk that hangs has the rest of these
    /// 10 s, and a second at least.
    ///
    /// Cancellation: dropped, the server stops at once.
    ///
    /// # Errors
    ///
    /// [`store::Error::Failed`] when the store could not keep everything, [`store::Error::Unconfirmed`]
    /// when the disk did not confirm it in time, and [`Error::System`] when a serving thread broke.
    pub async fn stop(mut self) -> Result<(), Error> {
        let by = Instant::now() + self.port.limits.drain_timeout;
        self.farewell.announce().await;
        self.serving.store(false, Ordering::Release);
        self.draining.cancel();
        for name in HEALTH_OF {
            self.health.set_service_status(name, ServingStatus::NotServing).await;
            // Whoever watches is told and then let go, so that watching does not hold up the end.
            self.health.clear_service_status(name).await;
        }
        // Calls that still wait for the disk then are answered before they are cut off.
        let (store, last_answers) = (self.store.clone(), by - self.port.limits.drain_timeout / 10);
        let answering = tokio::spawn(async move {
            tokio::time::sleep_until(last_answers.into()).await;
            store.stop_waiting();
        });
        let threads = std::mem::take(&mut self.threads);
        let stopped = self.stopped.clone().drop_guard();
        let served = blocking(move || {
            let ended = threads
                .into_iter()
                .map(JoinHandle::join)
                .map(|ended| ended.unwrap_or_else(|_| Err(io::Error::other("it panicked"))));
            ended.collect::<io::Result<Vec<()>>>().map(drop)
        })
        .await;
        drop(stopped);
        answering.abort();
        let store = self.store.clone();
        let left = by.saturating_duration_since(Instant::now()).max(LAST_COMMIT);
        blocking(move || store.close_within(left)).await?;
        served.map_err(|source| Error::System { action: "serve gRPC", source })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.store(false, Ordering::Release);
        self.draining.cancel();
        self.stopped.cancel();
        for task in &self.tasks {
            task.abort();
        }
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread itself; here is nobody left to tell.
            drop(thread.join());
        }
        // Not left to the last reference: tasks that were aborted may keep one for a while.
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the store closed badly");
        }
    }
}

fn control(
    store: &Arc<Store>,
    live: &Arc<ArcSwap<Live>>,
    metrics: &Metrics,
    config: &Config,
    farewell: &Farewell,
) -> Tonic {
    let counters = (metrics.calls.clone(), metrics.streams.clone());
    let most = config.max_connections as usize;
    let control = Control::new(store.clone(), live.clone(), counters, most, farewell.clone());
    let control = SessionControlServer::new(control);
    grpc::boxed(control.max_decoding_message_size(config.port.max_message_bytes as usize))
}

/// The first of what is wrong. [`Config::judge`] tells all of it.
fn first(wrong: Vec<Error>) -> Result<(), Error> {
    wrong.into_iter().next().map_or(Ok(()), Err)
}

/// Takes a port. Not with SO_REUSEPORT: a second server on it has to be refused.
fn listen(port: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let take = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Lets a restarted server have the port while connections of the old one time out.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    take().map_err(|source| Error::Listen { port, address, source })
}

fn store_failed(error: Unavailable) -> Error {
    Error::Store(store::Error::Failed { problem: error.to_string() })
}
