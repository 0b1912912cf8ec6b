//! A server that runs: its threads and tasks, its health, and how it stops.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use store::Store;
use store::fleet::StepDownError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle as TaskHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::connections::Port;
use super::tls::Tls;
use crate::admin;
use crate::blocking::blocking;
use crate::config::TokenInForce;
use crate::config::watch::Watched;
use crate::error::Error;
use crate::fleet::{Fleet, Patience};
use crate::grpc::control::{SESSION_CONTROL, StopNotice};
use crate::grpc::{USAGE_SERVICE, WORKER_POOL};
use crate::operator::Operator;

/// The service names under which gRPC health reports.
const HEALTH_OF: [&str; 4] = ["", WORKER_POOL, SESSION_CONTROL, USAGE_SERVICE];

/// How often gRPC health polls the store.
const HEALTH_EVERY: Duration = Duration::from_millis(500);

/// The least time that the store has for its last commit.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// A server that runs.
///
/// When it is dropped, it stops at once: calls in flight are cut off, and only acknowledged changes are
/// sure to be kept. [`Running::stop`] stops it gracefully.
#[derive(Debug)]
pub struct Running {
    pub(super) grpc_address: SocketAddr,
    pub(super) admin_address: SocketAddr,
    pub(super) draining: CancellationToken,
    pub(super) stopped: CancellationToken,
    pub(super) port: Arc<Port>,
    pub(super) stop_notice: StopNotice,
    pub(super) operator: Arc<Operator>,
    pub(super) serving: Arc<AtomicBool>,
    pub(super) health: HealthReporter,
    pub(super) threads: Vec<JoinHandle<io::Result<()>>>,
    pub(super) runtimes: Vec<Handle>,
    pub(super) tasks: Vec<TaskHandle<()>>,
    pub(super) store: Arc<Store>,
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

    /// The store behind the ports, for a program that embeds the server.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Checks that the server responds: that every thread that serves gRPC runs a task, and that the
    /// store can be read. Returns `false` when a thread has ended.
    ///
    /// While the server hangs, this future does not finish; a watchdog can use that. It does finish
    /// while the store cannot make changes: `/readyz` reports that.
    ///
    /// Cancellation safe.
    pub async fn responds(&self) -> bool {
        for runtime in &self.runtimes {
            if runtime.spawn(std::future::ready(())).await.is_err() {
                return false;
            }
        }
        // Only that the store answers matters.
        let store = self.store.clone();
        blocking(move || drop(store.live())).await;
        true
    }

    /// Resolves when the store of a fleet has failed and the leadership is released: another server takes
    /// over, and this process should stop and be started again. [`Running::stop`] then returns why.
    ///
    /// A store that no other server uses goes on to extend leases, and the future never resolves.
    /// Cancellation safe.
    pub fn useless(&self) -> impl Future<Output = ()> + Send + use<> {
        self.store.useless()
    }

    /// Serves gRPC on `stream`, a connection that this program opened by its own means: a pipe, a Unix
    /// socket, or a stream on which the program terminates TLS.
    ///
    /// Ends when the connection ends or the server stops; calls in flight may finish as on every
    /// other connection. It counts as a connection, but is not closed when it is idle.
    ///
    /// Cancellation: when the future is dropped, the connection breaks. No lease ends by that.
    pub fn serve_stream<I>(&self, stream: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.port.clone().serve_stream(stream)
    }

    /// Starts the threads that serve gRPC. All accept on the same socket.
    pub(super) fn serve_grpc(
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

    pub(super) fn serve_admin(&mut self, listener: TcpListener, router: axum::Router) {
        self.tasks.push(tokio::spawn(admin::serve(listener, router, self.stopped.clone())));
    }

    /// Watches the files of the policy, of TLS and of the admin token, and reloads them when they change.
    pub(super) fn watch_files(
        &mut self,
        tls: Option<(Arc<Tls>, Watched)>,
        token: Option<(Arc<TokenInForce>, Watched)>,
    ) {
        self.tasks.push(tokio::spawn(self.operator.clone().watch()));
        if let Some((tls, files)) = tls {
            self.tasks.push(tokio::spawn(files.follow(move |contents| tls.reload(contents))));
        }
        if let Some((token, file)) = token {
            self.tasks.push(tokio::spawn(file.follow(move |contents| token.reload(contents))));
        }
    }

    /// Begins each term that this server leads in its fleet.
    pub(super) fn watch_terms(&mut self) {
        let (operator, mut terms) = (self.operator.clone(), self.store.terms());
        self.tasks.push(tokio::spawn(async move {
            loop {
                let term = *terms.borrow_and_update();
                if let Some(number) = term {
                    operator.begin_term(number).await;
                }
                if terms.changed().await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Keeps gRPC health equal to the readiness of the store.
    pub(super) fn watch_health(&mut self, fleet: Option<Arc<Fleet>>) {
        let (health, store) = (self.health.clone(), self.store.clone());
        let draining = self.draining.clone();
        self.tasks.push(tokio::spawn(async move {
            let mut reported = None;
            loop {
                let ready = match &fleet {
                    Some(fleet) => fleet.ready(),
                    None => store.ready(),
                };
                let status = match ready {
                    Ok(()) => ServingStatus::Serving,
                    Err(_) => ServingStatus::NotServing,
                };
                if reported != Some(status) {
                    reported = Some(status);
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

    /// Hands the leadership of a fleet over, and waits until the next leader is known: calls that arrive
    /// until the end are passed on to it.
    async fn hand_over(&self, deadline: Instant) {
        let Some(fleet) = &self.port.gateway.fleet else { return };
        let handed_over = async {
            match self.store.retire().await {
                Ok(successor) => {
                    tracing::info!(successor = %successor.address, "handed the leadership over");
                    if let Err(status) = fleet.route(&mut Patience::new(None)).await {
                        tracing::info!("{}", status.message());
                    }
                }
                Err(StepDownError::NotLeader) => {}
                Err(error) => tracing::info!(%error, "the leadership was not handed over"),
            }
        };
        // The connections have the rest of the time.
        let within = deadline.saturating_duration_since(Instant::now()) / 2;
        if tokio::time::timeout(within, handed_over).await.is_err() {
            tracing::warn!("the leadership was not handed over in time");
        }
    }

    /// Stops the server gracefully.
    ///
    /// A server that leads a fleet first hands the leadership over, if another server can take it.
    /// Attached streams get a notice, probes report that the server is not ready, and no connection is
    /// accepted any more. Calls in flight may finish for at most 10 s, and the store commits its
    /// pending changes. Calls that wait for a disk that hangs are answered a second before the end. An
    /// attached stream is ended about a second after its notice; no lease ends with it. A disk that
    /// hangs has the rest of these 10 s, and at least one second.
    ///
    /// Cancellation: when the future is dropped, the server stops at once.
    ///
    /// # Errors
    ///
    /// [`store::Error::Failed`] when the store could not keep everything, [`store::Error::Unconfirmed`]
    /// when the disk did not confirm it in time, and [`Error::System`] when a serving thread failed.
    pub async fn stop(mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.port.limits.drain_timeout;
        self.hand_over(deadline).await;
        self.stop_notice.send().await;
        self.serving.store(false, Ordering::Release);
        self.draining.cancel();
        for name in HEALTH_OF {
            self.health.set_service_status(name, ServingStatus::NotServing).await;
            // Watchers get the status, and then their streams end, so that they do not delay the stop.
            self.health.clear_service_status(name).await;
        }
        // Calls that still wait for the disk are answered before they are cut off.
        let (store, last_answers) =
            (self.store.clone(), deadline - self.port.limits.drain_timeout / 10);
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
        let left = deadline.saturating_duration_since(Instant::now()).max(LAST_COMMIT);
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
            // The panic hook has reported a panic of the thread already.
            drop(thread.join());
        }
        // Closed here and not with the last reference: aborted tasks may hold one for a while.
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the store did not close cleanly");
        }
    }
}
