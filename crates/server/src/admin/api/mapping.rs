//! The types of the API, made from those of the server.

use lease::Kind;
use policy::overrides::{self, OverrideKey, Subject};
use policy::{DEFAULT_SERVICE, PlanEntry, Policy};
use store::ListedLease;

use super::model::{
    ApiKey, AuditEntry, BudgetRow, Ceiling, Disabled, Organization, OrganizationService, Override,
    Plan, PlanBudget, PlanLimit, Refusal, ServiceCeiling, Session, Source,
};
use crate::admin::snapshot::{Row, Snapshot, usage_of};
use crate::refusals::RefusedBorrow;

impl From<&RefusedBorrow> for Refusal {
    fn from(refused: &RefusedBorrow) -> Self {
        let (active, max) = refused.limit().unzip();
        Self {
            at: refused.at.as_unix(),
            organization: refused.organization.to_string(),
            service: refused.service.to_string(),
            api_key: refused.api_key.to_string(),
            trace: refused.trace.to_string(),
            scope: refused.scope().to_owned(),
            reason: refused.reason(),
            active,
            max,
            observed: refused.observed,
        }
    }
}

impl From<overrides::AuditEntry> for AuditEntry {
    fn from(entry: overrides::AuditEntry) -> Self {
        Self {
            number: entry.number,
            at: entry.at.as_unix(),
            from: entry.from.into(),
            action: entry.action.into(),
            note: entry.note.into(),
            ended: entry.ended,
        }
    }
}

impl From<ListedLease> for Session {
    fn from(lease: ListedLease) -> Self {
        let kind = match lease.kind {
            Kind::Session => "session",
            Kind::Worker => "worker",
        };
        Self {
            lease: lease.number.to_string(),
            kind: kind.to_owned(),
            service: lease.service.into(),
            organization: lease.organization.into(),
            api_key: lease.api_key.into(),
            trace: lease.trace.into(),
            indexer: lease.indexer.map(Into::into),
            age_seconds: lease.age.as_secs_f64(),
            ttl_seconds: lease.ttl.as_secs_f64(),
            ends_in_seconds: lease.ends_in.as_secs_f64(),
            lingers: lease.lingers,
            workers: lease.workers,
        }
    }
}

impl From<PlanEntry<'_>> for Plan {
    fn from(plan: PlanEntry<'_>) -> Self {
        let limits =
            plan.limits.iter().map(|&(service, max)| PlanLimit { service: service.into(), max });
        let budgets = plan.budgets.iter().map(|budget| PlanBudget {
            metric: budget.metric.to_string(),
            amount: budget.amount,
            per: budget.per.to_string(),
        });
        Self { plan: plan.name.into(), limits: limits.collect(), budgets: budgets.collect() }
    }
}

/// One override, under the `policy` in force.
pub(super) fn override_row(
    policy: &Policy,
    key: &OverrideKey,
    set: &overrides::Override,
) -> Override {
    let is_limit = key.service.is_some();
    Override {
        subject: key.subject.as_str().to_owned(),
        id: key.id.to_string(),
        disabled: (!is_limit).then_some(set.value != 0),
        service: key.service.as_deref().map(Into::into),
        max: is_limit.then_some(set.value),
        effective: policy.is_effective(key),
        set_at: set.set_at.as_unix(),
        note: set.note.to_string(),
    }
}

/// One organization, under the `policy` in force.
pub(super) fn organization(policy: &Policy, snapshot: &Snapshot, row: &Row) -> Organization {
    let (name, pools) = (&*row.name, &snapshot.pools[row.pools.clone()]);
    let usage = &snapshot.usage[row.usage.clone()];
    let service_row = |service: &str, active| OrganizationService {
        service: service.into(),
        active,
        ceiling: sourced(policy.limit(name, service)),
    };
    // The entry `default` has no row: its limit is in the row of each service that it applies to.
    let entries = policy.services().filter(|entry| *entry != DEFAULT_SERVICE);
    let mut services: Vec<_> = entries
        .map(|entry| {
            let held = pools.iter().find(|pool| *pool.service == *entry);
            service_row(entry, held.map_or(0, |pool| pool.leases))
        })
        .collect();
    let others = pools
        .iter()
        .filter(|pool| *pool.service == *DEFAULT_SERVICE || !policy.has_entry(&pool.service));
    services.extend(others.map(|pool| service_row(&pool.service, pool.leases)));
    let budgets = policy.organization_budgets(name).iter().map(|budget| {
        let (used, window) = usage_of(budget, usage, snapshot.at);
        BudgetRow {
            metric: budget.metric.to_string(),
            used,
            amount: budget.amount,
            per: budget.per.to_string(),
            resets_at: budget.per.end(window).as_unix(),
            spent: budget.is_spent_by(used),
        }
    });
    Organization {
        organization: name.into(),
        plan: policy.plan_of(name).map(Into::into),
        disabled: disabled(policy.disabled_by(Subject::Organization, name)),
        services,
        budgets: budgets.collect(),
        refusals: row.refusals,
    }
}

/// One API key, under the `policy` in force.
pub(super) fn api_key(policy: &Policy, id: String) -> ApiKey {
    let limits = policy.services().map(|service| ServiceCeiling {
        service: service.into(),
        ceiling: sourced(policy.limit_of(Subject::ApiKey, &id, service)),
    });
    ApiKey {
        limits: limits.collect(),
        disabled: disabled(policy.disabled_by(Subject::ApiKey, &id)),
        api_key: id,
    }
}

fn sourced((max, source): (Option<u64>, Source)) -> Ceiling {
    Ceiling { max, source }
}

fn disabled((disabled, source): (bool, Source)) -> Disabled {
    Disabled { disabled, source }
}
