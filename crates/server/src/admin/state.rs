//! The state behind the admin port, and its snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use lease::WallTime;
use store::{Store, Unavailable};
use tokio::sync::Mutex;

use super::api::model::Overview;
use super::snapshot::{Key, Snapshot, rows, service_rows};
use crate::blocking::blocking;
use crate::fleet::Fleet;
use crate::live::Live;
use crate::operator::Operator;
use crate::refusals::RefusalLog;

/// The least time between two snapshots, unless an operator changed something.
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// The least time between two snapshots, as a multiple of the time that one takes.
const COST_FACTOR: u32 = 4;

/// The state behind the admin port.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(super) operator: Arc<Operator>,
    pub(super) store: Arc<Store>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) refusals: Arc<RefusalLog>,
    /// When the certificate of the gRPC port expires, in Unix time; `None` without TLS.
    pub(super) certificate_not_after: Option<Arc<AtomicI64>>,
    /// The other servers of the fleet, if there are any.
    pub(super) fleet: Option<Arc<Fleet>>,
    /// Set while the server serves: after its start and before it drains.
    serving: Arc<AtomicBool>,
    started_at: WallTime,
    /// The latest snapshot. All requests share it.
    latest: ArcSwapOption<Snapshot>,
    /// Locked while a snapshot is taken, so that one is taken at a time.
    taking: Mutex<()>,
    /// How often an operator changed something through the API. The next snapshot shows the change.
    changes: AtomicU64,
    /// The revision of the first snapshot. At most a thousand snapshots are taken in a second, so
    /// revisions that begin with the time rise across restarts too.
    first_revision: u64,
}

impl Admin {
    /// `serving` is set while the server serves.
    pub(crate) fn new(
        operator: Arc<Operator>,
        serving: Arc<AtomicBool>,
        certificate_not_after: Option<Arc<AtomicI64>>,
        fleet: Option<Arc<Fleet>>,
    ) -> Self {
        let clock = &operator.clock;
        Self {
            store: operator.store.clone(),
            live: operator.live.clone(),
            refusals: operator.live.load().refusals.clone(),
            certificate_not_after,
            fleet,
            serving,
            started_at: clock.wall(),
            latest: ArcSwapOption::empty(),
            taking: Mutex::default(),
            changes: AtomicU64::new(0),
            first_revision: u64::try_from(clock.unix().as_millis()).unwrap_or(u64::MAX / 2),
            operator,
        }
    }

    /// Makes the next request take a new snapshot, because an operator changed something.
    pub(super) fn invalidate(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the server accepts changes.
    pub(super) fn ready(&self) -> Result<(), Unavailable> {
        match &self.fleet {
            _ if !self.serving.load(Ordering::Acquire) => Err(Unavailable::Closing),
            Some(fleet) => fleet.ready(),
            None => self.store.ready(),
        }
    }

    /// Returns the latest snapshot, or takes a new one: at most four in a second, and none while
    /// nothing changed.
    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, Unavailable> {
        let latest = || self.latest.load_full().filter(|latest| self.is_fresh(latest));
        if let Some(latest) = latest() {
            return Ok(latest);
        }
        let _taking = self.taking.lock().await;
        if let Some(latest) = latest() {
            return Ok(latest);
        }
        let before = self.latest.load();
        let revision =
            before.as_ref().map_or(self.first_revision, |latest| latest.overview.revision + 1);
        drop(before);
        let snapshot = Arc::new(self.take_snapshot(revision).await?);
        self.latest.store(Some(snapshot.clone()));
        Ok(snapshot)
    }

    /// Whether something has changed since the snapshot was taken.
    pub(super) fn is_outdated(&self, snapshot: &Snapshot) -> bool {
        !std::ptr::eq(snapshot.live.as_ptr(), Arc::as_ptr(&self.live.load()))
            || snapshot.key != self.key()
    }

    fn is_fresh(&self, snapshot: &Snapshot) -> bool {
        let interval = MIN_INTERVAL.max(snapshot.cost * COST_FACTOR);
        let shows_changes = snapshot.key.changes == self.changes.load(Ordering::Acquire);
        (shows_changes && snapshot.taken.elapsed() < interval) || !self.is_outdated(snapshot)
    }

    fn key(&self) -> Key {
        Key {
            changes: self.changes.load(Ordering::Acquire),
            store: self.store.revision(),
            refusals: self.refusals.recorded(),
            streams: self.operator.metrics.streams.attached.get(),
            problem: self.ready().err(),
            status: self.operator.policy_status(),
            minute: self.operator.clock.monotonic().as_secs() / 60,
        }
    }

    async fn take_snapshot(&self, revision: u64) -> Result<Snapshot, Unavailable> {
        let (began, live, key) = (Instant::now(), Arc::downgrade(&self.live.load()), self.key());
        let (pools, usage) = (self.store.pools().await?, self.store.usage().await?);
        let (total, refused) = self.refusals.counts();
        let (policies, at) = (self.live.clone(), self.operator.clock.wall());
        let (organizations, pools, usage) = blocking(move || {
            let rows = rows(&policies, &pools, &usage, refused, at);
            (rows, pools, usage)
        })
        .await;
        let overview = Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.as_unix(),
            ready: key.problem.is_none(),
            problem: key.problem.map(|problem| problem.to_string()),
            revision,
            store: self.operator.config.store.to_string(),
            sessions: pools.iter().map(|pool| pool.sessions).sum(),
            workers: pools.iter().map(|pool| pool.leases.saturating_sub(pool.sessions)).sum(),
            active_organizations: organizations.iter().filter(|row| row.active > 0).count() as u64,
            organizations: organizations.len() as u64,
            attached_streams: u64::try_from(key.streams).unwrap_or_default(),
            refusals: total,
            services: service_rows(&self.live.load().policy, &pools),
            policy: key.status.clone(),
        };
        Ok(Snapshot {
            key,
            live,
            taken: Instant::now(),
            cost: began.elapsed(),
            overview,
            at,
            organizations,
            pools,
            usage,
            orders: Default::default(),
        })
    }
}
