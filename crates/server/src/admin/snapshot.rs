//! A snapshot of the server, which the API shows.

use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use lease::{Budget, WallTime};
use policy::overrides::Subject;
use policy::{Policy, Service};
use store::{PoolCount, Unavailable, UsageCount};

use super::api::model::{OrganizationOrder, Overview, Refusals, ServiceRow};
use crate::live::Live;
use crate::operator::PolicyStatus;

/// The versions of everything that a snapshot shows. While they are equal, nothing has changed.
#[derive(Debug, PartialEq)]
pub(super) struct Key {
    pub(super) changes: u64,
    pub(super) store: u64,
    pub(super) refusals: u64,
    pub(super) streams: i64,
    pub(super) problem: Option<Unavailable>,
    pub(super) status: PolicyStatus,
    /// With each minute, refusals leave the last hour and windows of budgets end.
    pub(super) minute: u64,
}

/// The server at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) key: Key,
    /// The policy in force when it was taken. Weak, because an old policy is freed once nobody holds it.
    pub(super) live: Weak<Live>,
    pub(super) taken: Instant,
    pub(super) cost: Duration,
    pub(super) overview: Overview,
    pub(super) at: WallTime,
    pub(super) organizations: Vec<Row>,
    pub(super) pools: Vec<PoolCount>,
    pub(super) usage: Vec<UsageCount>,
    /// The indices of the organizations in each [`OrganizationOrder`] except by name.
    pub(super) orders: [OnceLock<Vec<u32>>; OrganizationOrder::Name as usize],
}

/// One organization of a snapshot. The rows are ordered by name.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: Box<str>,
    pub(super) pools: Range<usize>,
    pub(super) usage: Range<usize>,
    pub(super) refusals: Refusals,
    pub(super) active: u64,
    /// The highest utilization of its limits and budgets; 1 means that one is used up.
    pub(super) utilization: f64,
}

impl Snapshot {
    /// One organization, if it is known.
    pub(super) fn organization(&self, name: &str) -> Option<&Row> {
        let at = self.organizations.binary_search_by(|row| (*row.name).cmp(name)).ok()?;
        Some(&self.organizations[at])
    }

    /// Counts the organizations with `search` in their name, and lists `limit` of them from `offset` on.
    pub(super) fn page(
        &self,
        search: &str,
        order: OrganizationOrder,
        offset: usize,
        limit: usize,
    ) -> (u64, Vec<&Row>) {
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
                page.push(row);
            }
            matching += 1;
        }
        (matching as u64, page)
    }

    /// The indices of the organizations in this order; `None` for the order that the rows have already.
    fn ordered(&self, order: OrganizationOrder) -> Option<&[u32]> {
        let compare: fn(&Row, &Row) -> std::cmp::Ordering = match order {
            OrganizationOrder::Fullest => |a, b| b.utilization.total_cmp(&a.utilization),
            OrganizationOrder::Active => |a, b| b.active.cmp(&a.active),
            OrganizationOrder::Refused => |a, b| b.refusals.total().cmp(&a.refusals.total()),
            OrganizationOrder::Name => return None,
        };
        let rows = &self.organizations;
        Some(self.orders[order as usize].get_or_init(|| {
            let most = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            let mut places: Vec<u32> = (0..most).collect();
            places.sort_by(|&a, &b| compare(&rows[a as usize], &rows[b as usize]));
            places
        }))
    }
}

/// Whether `name` contains `part`, ignoring the case of ASCII letters.
fn contains(name: &str, part: &str) -> bool {
    let (name, part) = (name.as_bytes(), part.as_bytes());
    part.is_empty() || name.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

/// Every known organization: those of the policy, of overrides, of leases, of usage and of refusals.
pub(super) fn rows(
    live: &ArcSwap<Live>,
    pools: &[PoolCount],
    usage: &[UsageCount],
    mut refused: Vec<(Arc<str>, Refusals)>,
    at: WallTime,
) -> Vec<Row> {
    let live = live.load();
    let policy = &live.policy;
    refused.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut names: Vec<&str> = policy.subjects(Subject::Organization).collect();
    names.extend(pools.iter().map(|pool| &*pool.organization));
    names.extend(usage.iter().map(|count| &*count.organization));
    names.extend(refused.iter().map(|(name, _)| &**name));
    names.sort_unstable();
    names.dedup();
    let (mut next_pool, mut next_usage, mut next_refused) = (0, 0, 0);
    let row = |name: &str| {
        let held = take_range(pools, &mut next_pool, |pool| &*pool.organization == name);
        let used = take_range(usage, &mut next_usage, |count| &*count.organization == name);
        let refusals = take_range(&refused, &mut next_refused, |(refused, _)| **refused == *name);
        Row {
            name: name.into(),
            active: pools[held.clone()].iter().map(|pool| pool.leases).sum(),
            utilization: utilization(policy, name, &pools[held.clone()], &usage[used.clone()], at),
            refusals: refused[refusals].first().map(|(_, counts)| *counts).unwrap_or_default(),
            pools: held,
            usage: used,
        }
    };
    names.into_iter().map(row).collect()
}

/// The range of the items from `next` on that are `wanted`. Moves `next` to its end.
fn take_range<T>(items: &[T], next: &mut usize, wanted: impl Fn(&T) -> bool) -> Range<usize> {
    let start = *next;
    *next += items[start..].iter().take_while(|item| wanted(item)).count();
    start..*next
}

fn utilization(
    policy: &Policy,
    organization: &str,
    pools: &[PoolCount],
    usage: &[UsageCount],
    at: WallTime,
) -> f64 {
    // The loss of precision begins at counts that no organization reaches.
    #[allow(clippy::cast_precision_loss, reason = "see above")]
    let held = pools.iter().filter_map(|pool| {
        let (max, _) = policy.limit(organization, &pool.service);
        max.map(|max| pool.leases as f64 / max.max(1) as f64)
    });
    let budgets = policy.organization_budgets(organization).iter().map(|budget| {
        let (used, _) = usage_of(budget, usage, at);
        if budget.amount > 0.0 { used / budget.amount } else { 1.0 }
    });
    held.chain(budgets).fold(0.0, f64::max)
}

/// The service entries of the policy, each with its leases. The entry `default` has the leases of
/// services without an entry.
pub(super) fn service_rows(policy: &Policy, pools: &[PoolCount]) -> Vec<ServiceRow> {
    let row = |service: &Service| ServiceRow {
        service: service.name.to_string(),
        active: 0,
        max_total: service.limits.service,
        max_per_organization: service.limits.organization,
        max_per_api_key: service.limits.api_key,
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

/// The usage of a budget in its current window, and the number of that window.
pub(super) fn usage_of(budget: &Budget, usage: &[UsageCount], at: WallTime) -> (f64, u32) {
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
