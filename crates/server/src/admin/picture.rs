//! The server at one moment, as the API and the page show it.

use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use lease::{Budget, WallTime};
use policy::{Policy, ServiceSummary};
use store::{PoolCount, Unavailable, UsageCount};

use super::api::model::{OrganizationOrder, Overview, Refusals, ServiceRow};
use crate::live::Live;
use crate::operator::PolicyStatus;
use crate::refusals::Counts;

/// Everything that a picture shows comes from what this names.
#[derive(Debug, PartialEq)]
pub(super) struct Key {
    pub(super) changes: u64,
    pub(super) store: u64,
    pub(super) refusals: u64,
    pub(super) streams: i64,
    pub(super) problem: Option<Unavailable>,
    pub(super) status: PolicyStatus,
    /// Refusals fall out of the last hour, and budgets start anew.
    pub(super) minute: u64,
}

/// The server at one moment.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) key: Key,
    /// The policy it was taken under. Weak: whoever replaces a policy waits until it is let go of.
    pub(super) live: Weak<Live>,
    pub(super) taken: Instant,
    pub(super) cost: Duration,
    pub(super) overview: Overview,
    pub(super) at: WallTime,
    pub(super) organizations: Vec<Row>,
    pub(super) pools: Vec<PoolCount>,
    pub(super) usage: Vec<UsageCount>,
    pub(super) by_fullness: OnceLock<Vec<u32>>,
    pub(super) by_active: OnceLock<Vec<u32>>,
    pub(super) by_refused: OnceLock<Vec<u32>>,
}

/// One organization of a picture; they are ordered by name.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: Box<str>,
    pub(super) pools: Range<usize>,
    pub(super) usage: Range<usize>,
    pub(super) refusals: Refusals,
    pub(super) active: u64,
    /// How much of a ceiling or budget is in use, of that of which it is most; 1 is all.
    pub(super) fullness: f64,
}

/// What a picture shows of one organization.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'p> {
    pub(super) name: &'p str,
    pub(super) pools: &'p [PoolCount],
    pub(super) usage: &'p [UsageCount],
    pub(super) refusals: Refusals,
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
pub(super) fn rows(
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
        let (used, _) = used(budget, usage, at);
        if budget.amount > 0.0 { used / budget.amount } else { 1.0 }
    });
    held.chain(budgets).fold(0.0, f64::max)
}

/// The service entries of the policy, with what is held of each. Leases of services without an entry
/// go with the default.
pub(super) fn service_rows(policy: &Policy, pools: &[PoolCount]) -> Vec<ServiceRow> {
    let row = |service: &ServiceSummary<'_>| ServiceRow {
        service: service.name.to_owned(),
        active: 0,
        max_total: service.max_total,
        max_per_organization: service.max_per_organization,
        max_per_api_key: service.max_per_api_key,
        ttl_seconds: service.ttl.as_secs_f64(),
        minimal_life_seconds: service.minimal_life.as_secs_f64(),
        observe: service.observe,
    };
    let mut rows: Vec<ServiceRow> = policy.summary().services.iter().map(row).collect();
    for pool in pools {
        if let Some(service) = policy.service(&pool.service) {
            rows[service.index()].active += pool.leases;
        }
    }
    rows
}

/// What was used of a budget in its current window, and the number of that window.
pub(super) fn used(budget: &Budget, usage: &[UsageCount], at: WallTime) -> (f64, u32) {
    let count = usage.iter().find(|count| count.metric == budget.metric);
    let (window, used) =
        count.map(|count| count.used).unwrap_or_default().in_window(budget.per, at);
    (used, window)
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
