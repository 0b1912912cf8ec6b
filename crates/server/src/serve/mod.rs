//! The whole server: both ports and the store behind them, started and stopped together.

mod connections;
mod operator;
mod pace;
mod running;
mod tls;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use policy::Policy;
use store::{AuditNote, Recovered, Store};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;
use wire::control::session_control_server::SessionControlServer;

use crate::admin::{self, Admin};
use crate::blocking::blocking;
use crate::bounds::memory::{CONNECTION_BYTES, MemoryBudget};
use crate::bounds::places::Places;
use crate::config::Config;
use crate::config::TokenInForce;
use crate::config::watch::Watched;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::grpc::control::{Control, StopNotice};
use crate::grpc::{self, Gateway, PublicServices, Reports, Tonic, UsageReports, Web, WorkerPool};
use crate::live::Live;
use crate::metrics::{Facts, Metrics};
use crate::operator::Operator;
use crate::refusals::RefusalLog;
use connections::Port;
pub use running::Running;
use tls::Tls;

/// The most connections that wait to be accepted: after a restart all clients reconnect at once.
const BACKLOG: u32 = 4_096;

/// A server that has taken both ports and opened its store, and does not accept connections yet.
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
    /// Opens the store that `config` names and takes both ports. It accepts no connection yet.
    ///
    /// # Errors
    ///
    /// A port would be open to everybody, a port is taken, or the store cannot be opened.
    pub async fn bind(mut config: Config) -> Result<Self, Error> {
        first_error(config.find_errors())?;
        let (url, options) = (config.store.clone(), config.store_options());
        let store = blocking(move || Recovered::open(&url, options)).await?;
        Self::take_ports(config, store)
    }

    /// Takes both ports for a store that is open already. It does not open the store that `config`
    /// names.
    ///
    /// # Errors
    ///
    /// A port would be open to everybody, or a port is taken.
    pub async fn with_store(mut config: Config, store: Recovered) -> Result<Self, Error> {
        first_error(config.find_port_errors())?;
        Self::take_ports(config, store)
    }

    fn take_ports(config: Config, mut store: Recovered) -> Result<Self, Error> {
        let tls = Tls::load(&config.tls, config.clock.clone())?;
        let token = config.token_in_force()?;
        let (grpc, grpc_address) = listen("gRPC", config.listen)?;
        if let Some(address) = config.fleet.address(grpc_address) {
            store.advertise(&address.to_string());
        }
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

    /// How many leases the store recovered.
    pub fn recovered_leases(&self) -> usize {
        self.store.leases()
    }

    /// Serves until `shutdown` is cancelled, or the store of a fleet has failed; then stops as
    /// [`Running::stop`] does.
    ///
    /// Cancellation: when the future is dropped, the server stops at once.
    ///
    /// # Errors
    ///
    /// As [`Server::start`] and [`Running::stop`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let running = self.start().await?;
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = running.useless() => {}
        }
        running.stop().await
    }

    /// Starts to accept on both ports. From now on every lease has its full TTL.
    ///
    /// Leases that the policy does not allow any more are revoked first.
    ///
    /// # Errors
    ///
    /// A thread cannot be started, or the store could not record the revocations.
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
        let is_alone = store.terms().borrow().is_some();
        if is_alone {
            revoke_disallowed(&store, &policy).await?;
        }
        let metrics = Arc::new(Metrics::for_server(&facts, store.commits()));
        let refusals = Arc::new(RefusalLog::new(config.clock.clone()));
        let default_organization = config.default_organization.clone().map(Arc::from);
        let live = Live::new(policy, &metrics, refusals, default_organization);
        let live = Arc::new(ArcSwap::from_pointee(live));
        let (tls, certificates) = tls.map(|(tls, files)| (Arc::new(tls), files)).unzip();
        let (health, stop_notice) = (HealthReporter::new(), StopNotice::default());
        let port = grpc_port(&config, &store, &live, &metrics, &health, &stop_notice, tls.clone());
        let port = Arc::new(port);
        let threads = config.threads;
        let operator = Arc::new(Operator::new(store.clone(), live, metrics, config));
        operator.warn_of_unreported_metrics().await;
        let serving = Arc::new(AtomicBool::new(false));
        let not_after = tls.as_ref().map(|tls| tls.not_after());
        let fleet = port.gateway.fleet.clone();
        let admin_state = Admin::new(operator.clone(), serving.clone(), not_after, fleet.clone());
        let admin_state = Arc::new(admin_state);
        let (token, token_file) = token.map(|(token, file)| (Arc::new(token), file)).unzip();
        let router = admin::router(admin_state.clone(), token.clone(), admin_address);
        if fleet.is_some() {
            let operators = of_fleet(admin::router_of_fleet(admin_state));
            // It is set once.
            let _ = port.gateway.operators.set(operators);
        }

        let mut running = Running {
            grpc_address,
            admin_address,
            draining: port.draining.clone(),
            stopped: port.stopped.clone(),
            port: port.clone(),
            stop_notice,
            operator,
            serving,
            health,
            threads: Vec::new(),
            runtimes: Vec::new(),
            tasks: Vec::new(),
            store,
        };
        running.serve_grpc(&port, &grpc, threads)?;
        running.serve_admin(admin, router);
        if let Some(fleet) = &fleet {
            running.watch_terms();
            running.tasks.push(tokio::spawn(fleet.clone().watch_leader()));
        }
        running.watch_health(fleet);
        running.watch_files(tls.zip(certificates), token.zip(token_file.flatten()));
        running.serving.store(true, Ordering::Release);
        Ok(running)
    }
}

/// Revokes the leases that the policy does not allow.
async fn revoke_disallowed(store: &Store, policy: &Policy) -> Result<(), Error> {
    let enforced = store.enforce(policy, AuditNote::None).await;
    let revoked = enforced
        .map_err(|error| Error::Store(store::Error::Failed { problem: error.to_string() }))?
        .ended;
    if revoked > 0 {
        tracing::info!(leases = revoked, "revoked leases that the policy does not allow");
    }
    Ok(())
}

/// Puts the gRPC port together.
fn grpc_port(
    config: &Config,
    store: &Arc<Store>,
    live: &Arc<ArcSwap<Live>>,
    metrics: &Metrics,
    health: &HealthReporter,
    stop_notice: &StopNotice,
    tls: Option<Arc<Tls>>,
) -> Port {
    let memory = MemoryBudget::new(config.max_memory as usize, metrics.memory.clone());
    // Connections without a key are not refused for lack of memory, so there are fewer of them.
    let unproven = config.max_memory as usize / 8 / CONNECTION_BYTES;
    let usage = metrics.usage.clone();
    let reports = UsageReports::new(store.clone(), usage, config.port.max_report_events);
    let fleet = Fleet::new(
        store,
        config.fleet.tls(),
        (config.port.max_streams, config.fleet.leader_ttl),
        metrics.forwarded.clone(),
    );
    let gateway = Gateway {
        pool: WorkerPool::new(store.clone(), config.clock.clone(), metrics.calls.clone()),
        reports: Reports::new(reports, config.port, fleet.clone()),
        live: live.clone(),
        control: control(store, live, metrics, config, stop_notice),
        public: PublicServices::new(health.clone()),
        web: Web::new(&config.grpc_web_origins),
        limits: config.port,
        fleet,
        operators: OnceLock::new(),
        stopping: stop_notice.begun(),
    };
    Port {
        gateway: Arc::new(gateway),
        places: Arc::new(Places::new(config.max_connections as usize, unproven, tls.is_some())),
        tls,
        limits: config.port,
        memory,
        open: metrics.connections.clone(),
        draining: CancellationToken::new(),
        stopped: CancellationToken::new(),
    }
}

fn control(
    store: &Arc<Store>,
    live: &Arc<ArcSwap<Live>>,
    metrics: &Metrics,
    config: &Config,
    stop_notice: &StopNotice,
) -> Tonic {
    let counters = (metrics.calls.clone(), metrics.streams.clone());
    let most = config.max_connections as usize;
    let control = Control::new(store.clone(), live.clone(), counters, most, stop_notice.clone());
    let control = SessionControlServer::new(control);
    grpc::boxed(control.max_decoding_message_size(config.port.max_message_bytes as usize))
}

/// The router for requests that other servers of the fleet pass on, as a service of the gRPC port.
fn of_fleet(router: axum::Router) -> Tonic {
    grpc::boxed(tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let answer = router.clone().oneshot(request.map(axum::body::Body::new));
        async move { answer.await.map(|answer| answer.map(tonic::body::Body::new)) }
    }))
}

/// Returns the first error. [`Config::find_errors`] returns all of them.
fn first_error(wrong: Vec<Error>) -> Result<(), Error> {
    wrong.into_iter().next().map_or(Ok(()), Err)
}

/// Takes a port. Without `SO_REUSEPORT`, so that a second server on the port is refused.
fn listen(port: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let take = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted server can take the port while connections of the old one time out.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    take().map_err(|source| Error::Listen { port, address, source })
}
