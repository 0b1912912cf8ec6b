//! What all viewers look at: one picture of the server, taken seldom and shared.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use lease::WallTime;
use policy::Policy;
use store::{PoolCount, Unavailable, UsageCount};
use tokio::sync::Mutex;

use super::api::model::{OrganizationOrder, Overview, Refusals};
use super::{Admin, api};
use crate::blocking::blocking;
use crate::live::Live;
use crate::operator::PolicyStatus;
use crate::refusals::Counts;

/// How old a picture is at least before another is taken, unless an operator changed something.
const PAUSE: Duration = Duration::from_millis(250);

/// Taking pictures takes at most this part of the time, however long one takes.
const SHARE: u32 = 4;

/// The latest picture.
#[derive(Debug)]
pub(super) struct View {
    picture: ArcSwapOption<Picture>,
    /// Held by whoever takes a picture; the others wait for it.
    taking: Mutex<()>,
    /// How often an operator changed something through the API, and has to see it there next.
    changes: AtomicU64,
    /// What the first revision follows: numbers rise across restarts too.
    base: u64,
}

/// Everything that a picture shows comes from what this names.
#[derive(Debug, PartialEq)]
struct Key {
    changes: u64,
    store: u64,
    refusals: u64,
    streams: i64,
    problem: Option<Unavailable>,
    status: PolicyStatus,
    /// Refusals fall out of the last hour, and budgets start anew.
    minute: u64,
}

/// The server at one moment.
#[derive(Debug)]
pub(super) struct Picture {
    key: Key,
    /// The policy it was taken under. Weak: whoever replaces a policy waits until it is let go of.
    live: Weak<Live>,
    taken: Instant,
    cost: Duration,
    pub(super) overview: Overview,
    pub(super) at: WallTime,
    organizations: Vec<Row>,
    pools: Vec<PoolCount>,
    usage: Vec<UsageCount>,
    by_fullness: OnceLock<Vec<u32>>,
    by_active: OnceLock<Vec<u32>>,
    by_refused: OnceLock<Vec<u32>>,
}

/// One organization of a picture; they are ordered by name.
#[derive(Debug)]
struct Row {
    name: Box<str>,
    pools: Range<usize>,
    usage: Range<usize>,
    refusals: Refusals,
    active: u64,
    /// How much of a ceiling or budget is in use, of that of which it is most; 1 is all.
    fullness: f64,
}

/// What a picture shows of one organization.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'p> {
    pub(super) name: &'p str,
    pub(super) pools: &'p [PoolCount],
    pub(super) usage: &'p [UsageCount],
    pub(super) refusals: Refusals,
}

impl View {
    /// `started_at` is when the server started.
    pub(super) fn new(started_at: Duration) -> Self {
        Self {
            picture: ArcSwapOption::empty(),
            taking: Mutex::default(),
            changes: AtomicU64::new(0),
            // More than a thousand pictures a second are never taken.
            base: u64::try_from(started_at.as_millis()).unwrap_or(u64::MAX / 2),
        }
    }

    /// Lets the next look see what an operator changed just now.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl Admin {
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
            services: api::service_rows(&self.live.load().policy, &pools),
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

impl Picture {
    /// One organization, if anybody knows it.
    pub(super) fn organization(&self, name: &str) -> Option<Shown<'_>> {
        let at = self.organizations.binary_search_by(|row| (*row.name).cmp(name)).ok()?;
        Some(self.shown(&self.organizations[at]))
    }

    /// How many organizations have `search` in their name, and `limit` of those past `offset`.
    pub(super) fn page(
        &self,
        search: &str,
        order: OrganizationOrder,
        offset: usize,
        limit: usize,
    ) -> (u64, Vec<Shown<'_>>) {
        let ordered: Box<dyn Iterator<Item = &Row>> = match self.ordered(order) {
            Some(places) => {
                Box::new(places.iter().map(|&place| &self.organizations[place as usize]))
            }
            None => Box::new(self.organizations.iter()),
        };
        let mut matching = 0;
        let mut page = Vec::new();
        for row in ordered.filter(|row| contains(&row.name, search)) {
            if matching >= offset && page.len() < limit {
                page.push(self.shown(row));
            }
            matching += 1;
        }
        (matching as u64, page)
    }

    /// The places of the organizations in that order; `None` when they are in it already.
    fn ordered(&self, order: OrganizationOrder) -> Option<&[u32]> {
        let rows = &self.organizations;
        let by = |rank: fn(&Row, &Row) -> std::cmp::Ordering| {
            let most = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            let mut places: Vec<u32> = (0..most).collect();
            places.sort_by(|&a, &b| rank(&rows[b as usize], &rows[a as usize]));
            places
        };
        Some(match order {
            OrganizationOrder::Name => return None,
            OrganizationOrder::Fullest => {
                self.by_fullness.get_or_init(|| by(|a, b| a.fullness.total_cmp(&b.fullness)))
            }
            OrganizationOrder::Active => {
                self.by_active.get_or_init(|| by(|a, b| a.active.cmp(&b.active)))
            }
            OrganizationOrder::Refused => self
                .by_refused
                .get_or_init(|| by(|a, b| a.refusals.total().cmp(&b.refusals.total()))),
        })
    }

    fn shown<'p>(&'p self, row: &'p Row) -> Shown<'p> {
        Shown {
            name: &row.name,
            pools: &self.pools[row.pools.clone()],
            usage: &self.usage[row.usage.clone()],
            refusals: row.refusals,
        }
    }
}

/// Whether `name` has `part` in it, whatever the case of ASCII letters.
fn contains(name: &str, part: &str) -> bool {
    let (name, part) = (name.as_bytes(), part.as_bytes());
    part.is_empty() || name.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

/// Every organization that somebody knows: the policy, an operator, a lease, usage or a refusal.
fn rows(
    live: &ArcSwap<Live>,
    pools: &[PoolCount],
    usage: &[UsageCount],
    mut refused: Vec<(Arc<str>, Counts)>,
    at: WallTime,
) -> Vec<Row> {
    let live = live.load();
    let policy = &live.policy;
    refused.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut names: Vec<&str> = policy.organizations().collect();
    names.extend(pools.iter().map(|pool| &*pool.organization));
    names.extend(usage.iter().map(|count| &*count.organization));
    names.extend(refused.iter().map(|(name, _)| &**name));
    names.sort_unstable();
    names.dedup();
    let (mut next_pool, mut next_usage, mut next_refused) = (0, 0, 0);
    let row = |name: &str| {
        let held = run(pools, &mut next_pool, |pool| &*pool.organization == name);
        let used = run(usage, &mut next_usage, |count| &*count.organization == name);
        let refusals = run(&refused, &mut next_refused, |(refused, _)| **refused == *name);
        Row {
            name: name.into(),
            active: pools[held.clone()].iter().map(|pool| pool.leases).sum(),
            fullness: fullness(policy, name, &pools[held.clone()], &usage[used.clone()], at),
            refusals: refused[refusals]
                .first()
                .map_or_else(Refusals::default, |(_, counts)| (*counts).into()),
            pools: held,
            usage: used,
        }
    };
    names.into_iter().map(row).collect()
}

/// The items from `next` on that are `wanted`; `next` is then past them.
fn run<T>(items: &[T], next: &mut usize, wanted: impl Fn(&T) -> bool) -> Range<usize> {
    let start = *next;
    *next += items[start..].iter().take_while(|item| wanted(item)).count();
    start..*next
}

fn fullness(
    policy: &Policy,
    organization: &str,
    pools: &[PoolCount],
    usage: &[UsageCount],
    at: WallTime,
) -> f64 {
    // Which of two that hold millions of leases is the fuller one makes no difference.
    #[allow(clippy::cast_precision_loss, reason = "see above")]
    let held = pools.iter().filter_map(|pool| {
        let (max, _) = policy.ceiling(organization, &pool.service);
        max.map(|max| pool.leases as f64 / max.max(1) as f64)
    });
    let budgets = policy.organization_budgets(organization).iter().map(|budget| {
        let (used, _) = api::used(budget, usage, at);
        if budget.amount > 0.0 { used / budget.amount } else { 1.0 }
    });
    held.chain(budgets).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn a_search_ignores_the_case_of_ascii_letters_and_finds_any_part() {
        assert!(contains("Acme-Corp", "cme-c"));
        assert!(contains("straße", "ße") && !contains("straße", "RASSE"));
        assert!(contains("acme", "") && contains("", ""));
        assert!(!contains("ac", "acme"));
    }
}
