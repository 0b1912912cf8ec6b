//! What operators do while the server runs: switch organizations off, change limits, end leases,
//! load the policy file again.
//!
//! Each change goes the same way: it is checked, written down durably together with who did it, put
//! into force for the next call, and then ends the leases that may live no longer, with each of which
//! its entry in the audit list counts one more. It runs in a task of its own, so a caller that goes
//! away leaves no change half done. Policies come into force one at a time; nothing that one of them
//! waits for is held while the disk is waited for.

mod changes;
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
use store::{LONGEST_WAIT, Noted, ReportError, Reported, Store, Unavailable, UsageReport};
use tokio::sync::broadcast;

use crate::blocking::blocking;
use crate::config::Config;
use crate::config::PolicyFile;
use crate::config::watch::Read;
use crate::error::Error;
use crate::live::Live;
use crate::metrics::Metrics;
pub use outcome::{Done, PolicyStatus};

/// How often to look whether nobody looks at an old policy any more.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often whoever waits for a change looks whether the disk hangs.
const LOOK_AT_DISK_EVERY: Duration = Duration::from_millis(500);

/// Events that wait for a subscriber that is slow; past that it misses the oldest.
const EVENTS: usize = 256;

/// The longest note of an operator, in characters.
pub const MAX_NOTE: usize = 512;

/// The highest limit an operator may set.
pub const MAX_LIMIT: u64 = 1_000_000_000_000;

/// The operator's side of a running server.
///
/// What it changes is durable where the store is. Overrides win over the policy file until they are
/// cleared; limits that are lowered end nobody; whoever holds a lease that ends hears of it at once
/// where it is attached, and with its next keep-alive otherwise.
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
/// let by = By { from: "the documentation", note: "they asked for it" };
/// let done = server.operator().set_limit(Subject::Organization, "acme", "t1r", Some(40), by).await;
/// let summary = done.unwrap().summary;
/// assert_eq!(summary, "set the limit of organization acme on t1r to 40 (was 10 by the service)");
/// assert_eq!(server.operator().policy().ceiling("acme", "t1r").0, Some(40));
/// # server.stop().await.unwrap();
/// # });
/// ```
pub struct Operator {
    store: Arc<Store>,
    live: Arc<ArcSwap<Live>>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    /// What the server was started with, its policy file as it was then.
    config: Config,
    state: Mutex<State>,
    /// Held while one policy takes the place of another, and never while the disk is waited for.
    in_force: tokio::sync::Mutex<InForceOverrides>,
    events: broadcast::Sender<OperatorEvent>,
}

/// What is told about the policy.
#[derive(Debug)]
struct State {
    status: PolicyStatus,
    /// The policy file and those that it names, as they were when they were last read, whatever
    /// came of it; without a digest where one could not be read.
    read: Read,
}

/// The overrides that are durable, and so in force.
#[derive(Debug)]
struct InForceOverrides {
    /// The number of the audit entry of the latest of them; 0 for those of the start.
    number: u64,
    overrides: Arc<Overrides>,
}

impl InForceOverrides {
    /// Those are durable, with the one of that audit entry as the latest. They become so in the order
    /// of their entries.
    fn are_durable(&mut self, number: u64, overrides: Arc<Overrides>) {
        if number > self.number {
            *self = Self { number, overrides };
        }
    }
}

/// Who does something, and why.
#[derive(Clone, Copy, Debug)]
pub struct By<'a> {
    /// The address of the caller, or `signal` or `file` for a reload.
    pub from: &'a str,
    /// Why, as the operator wrote it; at most [`MAX_NOTE`] characters.
    pub note: &'a str,
}

/// What happened that an operator wants to see at once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OperatorEvent {
    /// An operator did something.
    Audit(AuditEntry),
    /// The file was loaded or refused, or overrides changed.
    Policy(PolicyStatus),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// What it is about is not there.
    #[error("{0}")]
    NotFound(String),
    /// A field cannot be what it is.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be done as things are: the file is not sound, or there are too many overrides.
    #[error("{0}")]
    Conflict(String),
    /// The store cannot make changes.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What an operator acts on.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Config,
}

impl Operator {
    /// The operator's side of a server whose policy, overrides included, is in force already.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { store, live, metrics, config } = parts;
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

    /// The policy in force, overrides included. To be let go of soon: while it is held, it takes up
    /// memory, also when another one has taken its place.
    pub fn policy(&self) -> InForce {
        InForce(self.live.load())
    }

    /// Where the policy comes from and how its last reload went.
    pub fn policy_status(&self) -> PolicyStatus {
        self.state.lock().status.clone()
    }

    /// What happens from now on. A subscriber that falls 256 events behind misses some and is told
    /// so.
    pub fn subscribe(&self) -> broadcast::Receiver<OperatorEvent> {
        self.events.subscribe()
    }

    /// Puts another policy into force in place of the file's, and answers how many leases ended by
    /// it: those of disabled organizations and API keys, and of organizations with a spent budget.
    ///
    /// Overrides stay in force on top of it. Lowered limits end nobody. Attached streams of indexers
    /// that are no more end with their next batch. Cancellation: the change is made all the same.
    ///
    /// # Errors
    ///
    /// [`Error::Anonymous`] when the policy would open the port to everybody; nothing changed then.
    /// [`store::Error::Failed`] when leases could not be ended; the policy is in force then.
    pub async fn set_policy(self: &Arc<Self>, policy: Policy) -> Result<usize, Error> {
        let config = Config { policy: policy.clone(), ..self.config.clone() };
        config.is_open_to_everybody().map_or(Ok(()), Err)?;
        let operator = self.clone();
        to_its_end(async move {
            let enforced = {
                let in_force = operator.in_force.lock().await;
                let overrides = in_force.overrides.clone();
                let policy = blocking(move || policy.with_overrides(&overrides)).await;
                let live = operator.put_into_force(policy).await;
                operator.tell(|status| PolicyStatus {
                    file: None,
                    loaded_at: operator.now().as_unix(),
                    refused: None,
                    warnings: Vec::new(),
                    ..status
                });
                operator.store.enforce(&live.policy, Noted::Nowhere)
            };
            let enforced = enforced.await;
            let enforced = enforced
                .map_err(|error| Error::Store(store::Error::Failed { problem: error.to_string() }));
            Ok(enforced?.ended)
        })
        .await
    }

    /// Counts a report of usage and ends the leases of each organization of which it spends a
    /// budget; those of observed services live on. What cannot be counted is skipped.
    ///
    /// The same `idempotency_key` from the same `indexer` counts once in ten minutes. Durable when
    /// it answers. Cancellation: dropped, the report may have been counted.
    ///
    /// # Errors
    ///
    /// The idempotency key cannot be what it is or names another report, the indexer has as many
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

    /// Puts the policy in the place of the one in force. Whoever calls it holds the lock.
    ///
    /// It waits for no call: one that was ruled on under the policy before, and is not applied yet, is
    /// ruled on again.
    async fn put_into_force(&self, policy: Policy) -> Arc<Live> {
        let before = self.live.load_full();
        let policy = policy.numbered(before.policy.number() + 1);
        // A policy of many services has many counters.
        let (old, metrics) = (before.clone(), self.metrics.clone());
        let live = Arc::new(blocking(move || old.under(policy, &metrics)).await);
        self.live.store(live.clone());
        self.store.set_policy(&live.policy);
        tokio::spawn(let_go(before));
        live
    }

    /// Changes what is told about the policy, and tells it.
    fn tell(&self, change: impl FnOnce(PolicyStatus) -> PolicyStatus) {
        let mut state = self.state.lock();
        let overrides = self.live.load().policy.overrides() as u64;
        state.status = PolicyStatus { overrides, ..change(state.status.clone()) };
        // Told under the lock, so that the last one told is the one that holds. Nobody may listen.
        let _ = self.events.send(OperatorEvent::Policy(state.status.clone()));
    }

    fn now(&self) -> WallTime {
        self.clock.wall()
    }
}

/// The policy in force, as long as somebody looks at it.
#[derive(Debug)]
pub struct InForce(Guard<Arc<Live>>);

impl std::ops::Deref for InForce {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.0.policy
    }
}

/// Lets go of an old policy once nobody else looks at it: ten thousand organizations take a while, for
/// which no call is to wait.
async fn let_go(before: Arc<Live>) {
    while Arc::strong_count(&before) > 1 {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    blocking(move || drop(before)).await;
}

impl Operator {
    /// Runs a change to its end, whether its caller waits for it or not. The caller waits for a disk
    /// that hangs as long as every other one, and not for the end.
    ///
    /// # Errors
    ///
    /// Those of the change, and [`Unavailable::Stalled`] when it is not at its end yet.
    async fn change<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, OperatorError>> + Send + 'static,
    ) -> Result<T, OperatorError> {
        let mut done = std::pin::pin!(to_its_end(change));
        loop {
            match tokio::time::timeout(LOOK_AT_DISK_EVERY, &mut done).await {
                Ok(done) => return done,
                Err(_) if self.store.stalled() >= LONGEST_WAIT => {
                    return Err(Unavailable::Stalled.into());
                }
                Err(_) => {}
            }
        }
    }
}

/// Runs a change to its end, whether its caller waits for it or not.
async fn to_its_end<T: Send + 'static>(change: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(change).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
