//! The state behind the admin port, and its snapshots.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use lease::WallTime;
use store::{Clock, Store, StoreUrl, Unavailable};

use super::api::model::Overview;
use super::cache::Cache;
use super::snapshot::{Key, Snapshot, rows, service_rows};
use crate::blocking::blocking;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::refusals::Refusals;

/// The least time between two snapshots, unless an operator changed something.
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// The least time between two snapshots, as a multiple of the time that one takes.
const COST_FACTOR: u32 = 4;

/// The state behind the admin port.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(super) store: Arc<Store>,
    pub(super) store_url: String,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) operator: Arc<Operator>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) started_at: WallTime,
    /// Set while the server serves: after its start and before it drains.
    pub(super) serving: Arc<AtomicBool>,
    pub(super) cache: Cache,
    pub(super) dropped_log_lines: Arc<AtomicU64>,
    pub(super) certificate_not_after: Option<Arc<AtomicI64>>,
}

/// The parts of an [`Admin`].
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) store_url: StoreUrl,
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) operator: Arc<Operator>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) serving: Arc<AtomicBool>,
    pub(crate) dropped_log_lines: Arc<AtomicU64>,
    /// When the certificate of the gRPC port expires, in Unix time; `None` without TLS.
    pub(crate) certificate_not_after: Option<Arc<AtomicI64>>,
}

impl Admin {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { store, store_url, live, operator, metrics, refusals, clock, serving, .. } =
            parts;
        let Parts { dropped_log_lines, certificate_not_after, .. } = parts;
        Self {
            store,
            store_url: store_url.to_string(),
            live,
            operator,
            metrics,
            refusals,
            started_at: clock.wall(),
            cache: Cache::new(clock.unix()),
            clock,
            serving,
            dropped_log_lines,
            certificate_not_after,
        }
    }

    /// Whether the server accepts changes.
    pub(super) fn ready(&self) -> Result<(), Unavailable> {
        if self.serving.load(Ordering::Acquire) {
            self.store.ready()
        } else {
            Err(Unavailable::Closing)
        }
    }

    /// Returns the latest snapshot, or takes a new one: at most four in a second, and none while
    /// nothing changed.
    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, Unavailable> {
        let cache = &self.cache;
        let latest = || cache.snapshot.load_full().filter(|latest| self.is_fresh(latest));
        if let Some(latest) = latest() {
            return Ok(latest);
        }
        let _taking = cache.taking.lock().await;
        if let Some(latest) = latest() {
            return Ok(latest);
        }
        let revision = match &*cache.snapshot.load() {
            Some(latest) => latest.overview.revision + 1,
            None => cache.base,
        };
        let snapshot = Arc::new(self.take_snapshot(revision).await?);
        cache.snapshot.store(Some(snapshot.clone()));
        Ok(snapshot)
    }

    /// Whether something has changed since the snapshot was taken.
    pub(super) fn is_outdated(&self, snapshot: &Snapshot) -> bool {
        !std::ptr::eq(snapshot.live.as_ptr(), Arc::as_ptr(&self.live.load()))
            || snapshot.key != self.key()
    }

    fn is_fresh(&self, snapshot: &Snapshot) -> bool {
        let interval = MIN_INTERVAL.max(snapshot.cost * COST_FACTOR);
        let shows_changes = snapshot.key.changes == self.cache.changes.load(Ordering::Acquire);
        (shows_changes && snapshot.taken.elapsed() < interval) || !self.is_outdated(snapshot)
    }

    fn key(&self) -> Key {
        Key {
            changes: self.cache.changes.load(Ordering::Acquire),
            store: self.store.revision(),
            refusals: self.refusals.recorded(),
            streams: self.metrics.streams.attached.get(),
            problem: self.ready().err(),
            status: self.operator.policy_status(),
            minute: self.clock.monotonic().as_secs() / 60,
        }
    }

    async fn take_snapshot(&self, revision: u64) -> Result<Snapshot, Unavailable> {
        let (began, live, key) = (Instant::now(), Arc::downgrade(&self.live.load()), self.key());
        let (pools, usage) = (self.store.pools().await?, self.store.usage().await?);
        let (total, refused) = self.refusals.counts();
        let (policies, at) = (self.live.clone(), self.clock.wall());
        let organizations = {
            let (pools, usage) = (pools, usage);
            blocking(move || {
                let rows = rows(&policies, &pools, &usage, refused, at);
                (rows, pools, usage)
            })
            .await
        };
        let (organizations, pools, usage) = organizations;
        let overview = Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.as_unix(),
            ready: key.problem.is_none(),
            problem: key.problem.map(|problem| problem.to_string()),
            revision,
            store: self.store_url.clone(),
            sessions: pools.iter().map(|pool| pool.sessions).sum(),
            workers: pools.iter().map(|pool| pool.leases.saturating_sub(pool.sessions)).sum(),
            active_organizations: organizations.iter().filter(|row| row.active > 0).count() as u64,
            organizations: organizations.len() as u64,
            attached_streams: u64::try_from(key.streams).unwrap_or_default(),
            refusals: total.into(),
            services: service_rows(&self.live.load().policy, &pools),
            policy: key.status.clone().into(),
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
            by_utilization: OnceLock::new(),
            by_active: OnceLock::new(),
            by_refused: OnceLock::new(),
        })
    }
}
