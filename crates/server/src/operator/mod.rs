//! Changes by operators while the server runs: they disable organizations, change limits, end leases and
//! reload the policy file.
//!
//! Every change has the same steps. It is checked, recorded durably together with who made it, and put
//! into force for the next call. Then the leases that it does not allow are ended, and its audit entry
//! counts them. A change runs in its own task, so it is completed even when its caller goes away.
//! Policies come into force one at a time. No lock is held during a wait for the disk.

mod changes;
mod fleet;
mod outcome;
mod reload;
mod words;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use futures_util::TryFutureExt as _;
use lease::{Usage, WallTime};
use parking_lot::Mutex;
use policy::overrides::{AuditEntry, Overrides};
use policy::{Policy, Warning};
use store::Clock;
use store::{AuditNote, LONGEST_WAIT, ReportError, Reported, Store, Unavailable, UsageReport};
use tokio::sync::broadcast;

use crate::blocking::{blocking, detached};
use crate::config::watch::FileDigests;
use crate::config::{Config, NO_FILE, PolicyFile};
use crate::error::Error;
use crate::live::Live;
use crate::metrics::Metrics;
pub use outcome::{Done, PolicyStatus};

/// How often to check whether an old policy is still in use.
const CHECK_UNUSED_EVERY: Duration = Duration::from_millis(50);

/// How often a caller that waits for a change checks whether the disk hangs.
const CHECK_DISK_EVERY: Duration = Duration::from_millis(500);

/// The most events that wait for a slow subscriber. With more, it misses the oldest.
const EVENTS: usize = 256;

/// The longest note of an operator, in characters.
pub const MAX_NOTE: usize = 512;

/// The highest limit an operator may set.
pub const MAX_LIMIT: u64 = 1_000_000_000_000;

/// The operator's side of a running server.
///
/// Its changes are durable if the store is. Overrides win over the policy file until they are cleared.
/// A lowered limit ends no lease. An attached holder of a lease that ends is notified at once, any
/// other holder with its next keep-alive.
///
/// ```
/// use tgm_session_server::operator::By;
/// use tgm_session_server::policy::overrides::Subject;
/// use tgm_session_server::store::StoreUrl;
/// use tgm_session_server::{Config, Policy, Server};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// # let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
/// # config.listen.set_port(0);
/// # config.admin_listen.set_port(0);
/// let server = Server::bind(config).await.unwrap().start().await.unwrap();
/// let by = By { from: "the documentation", note: "the customer asked for it" };
/// let done = server.operator().set_limit(Subject::Organization, "acme", "t1r", Some(40), by).await;
/// let summary = done.unwrap().summary;
/// assert_eq!(summary, "set the limit of organization acme on t1r to 40 (was 10 by the service)");
/// assert_eq!(server.operator().policy().limit("acme", "t1r").0, Some(40));
/// # server.stop().await.unwrap();
/// # });
/// ```
pub struct Operator {
    pub(crate) store: Arc<Store>,
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The configuration at the start, with the policy file of that time.
    pub(crate) config: Config,
    state: Mutex<State>,
    /// Locked while one policy replaces another, and never during a wait for the disk.
    in_force: tokio::sync::Mutex<InForceOverrides>,
    events: broadcast::Sender<OperatorEvent>,
}

/// The state of the policy file.
#[derive(Debug)]
struct State {
    status: PolicyStatus,
    /// The digests of the policy file and the files that it names when they were last read, whether
    /// they were valid or not; `None` for a file that could not be read.
    read: FileDigests,
}

/// The durable overrides. Only these are in force.
#[derive(Debug)]
struct InForceOverrides {
    /// The number of the audit entry of the latest override; 0 at the start.
    number: u64,
    overrides: Arc<Overrides>,
}

impl InForceOverrides {
    /// Replaces the overrides by newer durable ones. `number` is the audit entry of the latest. A call
    /// with a lower number than before changes nothing.
    fn set_durable(&mut self, number: u64, overrides: Arc<Overrides>) {
        if number > self.number {
            *self = Self { number, overrides };
        }
    }
}

/// Who makes a change, and why.
#[derive(Clone, Copy, Debug)]
pub struct By<'a> {
    /// The address of the caller, or `signal` or `file` for a reload.
    pub from: &'a str,
    /// Why, as the operator wrote it; at most [`MAX_NOTE`] characters.
    pub note: &'a str,
}

/// An event for subscribers of the operator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OperatorEvent {
    /// An operator made a change.
    Audit(AuditEntry),
    /// The file was loaded or refused, or overrides changed.
    Policy(PolicyStatus),
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The subject of the change does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A field is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The current state does not allow the change: the file is invalid, or there are too many overrides.
    #[error("{0}")]
    Conflict(String),
    /// The fleet cannot do it now.
    #[error("{0}")]
    NotNow(String),
    /// The store cannot make changes.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Operator {
    /// The operator's side of a server whose policy and overrides are in force already.
    pub(crate) fn new(
        store: Arc<Store>,
        live: Arc<ArcSwap<Live>>,
        metrics: Arc<Metrics>,
        config: Config,
    ) -> Self {
        let (clock, file) = (config.clock.clone(), config.policy_file.as_ref());
        let warnings = file.map_or(&[][..], PolicyFile::warnings);
        let status = PolicyStatus {
            file: file.map(|file| file.path().display().to_string()),
            loaded_at: clock.wall().as_unix(),
            refused: None,
            warnings: warnings.iter().map(Warning::to_string).collect(),
            overrides: live.load().policy.overrides() as u64,
        };
        let read = file.map_or_else(Vec::new, |file| file.files().to_vec());
        let in_force = InForceOverrides { number: 0, overrides: store.overrides() };
        Self {
            store,
            live,
            metrics,
            clock,
            config,
            state: Mutex::new(State { status, read }),
            in_force: tokio::sync::Mutex::new(in_force),
            events: broadcast::Sender::new(EVENTS),
        }
    }

    /// The policy in force, with its overrides. Drop it soon: while it is held, it uses memory, even when
    /// another policy has replaced it.
    pub fn policy(&self) -> InForce {
        InForce(self.live.load())
    }

    /// The file of the policy, and the outcome of its last reload.
    pub fn policy_status(&self) -> PolicyStatus {
        self.state.lock().status.clone()
    }

    /// Subscribes to the events from now on. A subscriber that is more than 256 events behind misses the
    /// oldest, and receives an error that says so.
    pub fn subscribe(&self) -> broadcast::Receiver<OperatorEvent> {
        self.events.subscribe()
    }

    /// Puts another policy into force in place of the file's. Returns how many leases it ended: those of
    /// disabled organizations and API keys, and of organizations with a spent budget.
    ///
    /// Overrides stay in force on top of it. Lowered limits end no lease. Attached streams of indexers
    /// that are removed end with their next batch. Cancellation: the change is still made.
    ///
    /// # Errors
    ///
    /// [`Error::Anonymous`] when the policy would open the port to everybody; nothing changed then.
    /// [`store::Error::Failed`] when leases could not be ended; the policy is in force then.
    pub async fn set_policy(self: &Arc<Self>, policy: Policy) -> Result<usize, Error> {
        let config = Config { policy: policy.clone(), ..self.config.clone() };
        config.check_open_port().map_or(Ok(()), Err)?;
        let operator = self.clone();
        detached(async move {
            let enforced = {
                let in_force = operator.in_force.lock().await;
                let overrides = in_force.overrides.clone();
                let policy = blocking(move || policy.with_overrides(&overrides)).await;
                let live = operator.put_into_force(policy).await;
                operator.store.set_policy_hash(NO_FILE);
                operator.update_status(|status| PolicyStatus {
                    file: None,
                    loaded_at: operator.now().as_unix(),
                    refused: None,
                    warnings: Vec::new(),
                    ..status
                });
                operator.store.enforce(&live.policy, AuditNote::None)
            };
            let enforced = enforced.await;
            let enforced = enforced
                .map_err(|error| Error::Store(store::Error::Failed { problem: error.to_string() }));
            Ok(enforced?.ended)
        })
        .await
    }

    /// Begins a term as the leader of a fleet: the overrides that came with it are put into force, then
    /// the store serves, and the leases that the policy does not allow are revoked.
    pub(crate) async fn begin_term(self: &Arc<Self>, number: u64) {
        let enforced = {
            let mut in_force = self.in_force.lock().await;
            let overrides = self.store.overrides();
            *in_force = InForceOverrides { number: 0, overrides: overrides.clone() };
            let before = self.live.load_full();
            let policy = blocking(move || before.policy.with_overrides(&overrides)).await;
            let live = self.put_into_force(policy).await;
            self.update_status(|status| status);
            self.store.serve_term(number);
            self.store.enforce(&live.policy, AuditNote::None)
        };
        match enforced.await {
            Ok(enforced) if enforced.ended > 0 => {
                tracing::info!(
                    leases = enforced.ended,
                    "revoked leases that the policy does not allow"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "leases could not be checked against the policy"),
        }
    }

    /// Counts a report of usage, and ends the leases of each organization whose budget it spends,
    /// except those of observed services. Events that cannot be counted are skipped.
    ///
    /// The same `idempotency_key` from the same `indexer` counts once in ten minutes. Durable when
    /// it returns. Cancellation: when the future is dropped, the report may have been counted.
    ///
    /// # Errors
    ///
    /// The idempotency key is invalid or was used for another report, the indexer has as many keys
    /// remembered as it may have, or the store cannot make changes.
    pub async fn report(
        &self,
        indexer: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
    ) -> Result<Reported, ReportError> {
        let reported = {
            let live = self.live.load();
            let mut usages = usages.to_vec();
            for usage in &mut usages {
                usage.organization = live.organization(usage.organization).unwrap_or_default();
            }
            let policy = live.policy.clone();
            let (report, skipped) = UsageReport::of(indexer, idempotency_key, &usages, policy);
            let report = self.store.report(report);
            report.map_ok(move |mut reported| {
                reported.skipped.iter_mut().zip(skipped).for_each(|(sum, more)| *sum += more);
                reported
            })
        };
        reported.await
    }

    /// Replaces the policy in force. The caller holds the lock.
    ///
    /// It waits for no call: a borrow that was decided under the policy before, and is not applied yet,
    /// is decided again.
    async fn put_into_force(&self, policy: Policy) -> Arc<Live> {
        let before = self.live.load_full();
        let policy = policy.numbered(before.policy.number() + 1);
        // A policy with many services has many counters.
        let (old, metrics) = (before.clone(), self.metrics.clone());
        let live = Arc::new(blocking(move || old.with_policy(policy, &metrics)).await);
        self.live.store(live.clone());
        self.store.set_policy(&live.policy);
        tokio::spawn(drop_when_unused(before));
        live
    }

    /// Changes the status of the policy, and publishes it to the subscribers.
    fn update_status(&self, change: impl FnOnce(PolicyStatus) -> PolicyStatus) {
        let mut state = self.state.lock();
        let overrides = self.live.load().policy.overrides() as u64;
        state.status = PolicyStatus { overrides, ..change(state.status.clone()) };
        // Published under the lock, so that the last event has the current status. An error means that
        // there are no subscribers.
        let _ = self.events.send(OperatorEvent::Policy(state.status.clone()));
    }

    /// Runs a change to its end, even when its caller goes away. When the disk hangs, the caller waits as
    /// long as every other caller, and then gets an error while the change goes on.
    ///
    /// # Errors
    ///
    /// Those of the change, and [`Unavailable::Stalled`] while the disk hangs.
    async fn run_change<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, OperatorError>> + Send + 'static,
    ) -> Result<T, OperatorError> {
        let mut done = std::pin::pin!(detached(change));
        loop {
            match tokio::time::timeout(CHECK_DISK_EVERY, &mut done).await {
                Ok(done) => return done,
                Err(_) if self.store.stalled() >= LONGEST_WAIT => {
                    return Err(Unavailable::Stalled.into());
                }
                Err(_) => {}
            }
        }
    }

    fn now(&self) -> WallTime {
        self.clock.wall()
    }
}

/// A reference to the policy that was in force when it was taken.
#[derive(Debug)]
pub struct InForce(Guard<Arc<Live>>);

impl std::ops::Deref for InForce {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.0.policy
    }
}

/// Drops an old policy once no call uses it. With ten thousand organizations that takes a while, and no
/// call has to wait for it.
async fn drop_when_unused(before: Arc<Live>) {
    while Arc::strong_count(&before) > 1 {
        tokio::time::sleep(CHECK_UNUSED_EVERY).await;
    }
    blocking(move || drop(before)).await;
}
