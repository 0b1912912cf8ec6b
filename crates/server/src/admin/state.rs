//! What the admin port looks at and acts on, and the pictures it takes of it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use lease::WallTime;
use store::{Clock, Store, StoreUrl, Unavailable};

use super::api::model::Overview;
use super::picture::{Key, Picture, rows, service_rows};
use super::view::View;
use crate::blocking::blocking;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::refusals::Refusals;

/// How old a picture is at least before another is taken, unless an operator changed something.
const PAUSE: Duration = Duration::from_millis(250);

/// Taking pictures takes at most this part of the time, however long one takes.
const SHARE: u32 = 4;

/// What the admin port looks at and acts on.
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
    /// Set while the server serves: not before, and not once it drains.
    pub(super) serving: Arc<AtomicBool>,
    pub(super) view: View,
    pub(super) dropped_log_lines: Arc<AtomicU64>,
    pub(super) certificate_not_after: Option<Arc<AtomicI64>>,
}

/// What the admin port is made of.
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
            view: View::new(clock.unix()),
            clock,
            serving,
            dropped_log_lines,
            certificate_not_after,
        }
    }

    /// Whether the server takes changes.
    pub(super) fn ready(&self) -> Result<(), Unavailable> {
        if self.serving.load(Ordering::Acquire) {
            self.store.ready()
        } else {
            Err(Unavailable::Closing)
        }
    }

    /// The server as it is, or was a moment ago: at most four pictures are taken in a second, and
    /// none when nothing changed.
    pub(super) async fn picture(&self) -> Result<Arc<Picture>, Unavailable> {
        let view = &self.view;
        let latest = || view.picture.load_full().filter(|latest| self.shows_enough(latest));
        if let Some(latest) = latest() {
            return Ok(latest);
        }
        let _taking = view.taking.lock().await;
        if let Some(latest) = latest() {
            return Ok(latest);
        }
        let revision = match &*view.picture.load() {
            Some(latest) => latest.overview.revision + 1,
            None => view.base,
        };
        let picture = Arc::new(self.take(revision).await?);
        view.picture.store(Some(picture.clone()));
        Ok(picture)
    }

    /// Whether something changed since the picture was taken.
    pub(super) fn is_news(&self, picture: &Picture) -> bool {
        !std::ptr::eq(picture.live.as_ptr(), Arc::as_ptr(&self.live.load()))
            || picture.key != self.key()
    }

    fn shows_enough(&self, picture: &Picture) -> bool {
        let pause = PAUSE.max(picture.cost * SHARE);
        let seen = picture.key.changes == self.view.changes.load(Ordering::Acquire);
        (seen && picture.taken.elapsed() < pause) || !self.is_news(picture)
    }

    fn key(&self) -> Key {
        Key {
            changes: self.view.changes.load(Ordering::Acquire),
            store: self.store.revision(),
            refusals: self.refusals.noted(),
            streams: self.metrics.streams.attached.get(),
            problem: self.ready().err(),
            status: self.operator.policy_status(),
            minute: self.clock.monotonic().as_secs() / 60,
        }
    }

    async fn take(&self, revision: u64) -> Result<Picture, Unavailable> {
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
        Ok(Picture {
            key,
            live,
            taken: Instant::now(),
            cost: began.elapsed(),
            overview,
            at,
            organizations,
            pools,
            usage,
            by_fullness: OnceLock::new(),
            by_active: OnceLock::new(),
            by_refused: OnceLock::new(),
        })
    }
}
