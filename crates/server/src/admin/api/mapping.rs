//! The types of the API, made from those of the server.

use lease::{Kind, WallTime};
use policy::overrides::{self, OverrideKey, Subject};
use policy::{DEFAULT_SERVICE, PlanEntry, Policy};
use store::ListedLease;

use super::model::{
    ApiKey, AuditEntry, BudgetRow, Ceiling, Disabled, Done, Organization, OrganizationService,
    Override, Plan, PlanBudget, PlanLimit, PolicyStatus, Refusal, Refusals, ServiceCeiling,
    Session, Source,
};
use crate::admin::snapshot::{OrganizationData, usage_of};
use crate::{operator, refusals};

impl From<policy::Source> for Source {
    fn from(source: policy::Source) -> Self {
        match source {
            policy::Source::Override => Self::Override,
            policy::Source::Own => Self::Own,
            policy::Source::Plan => Self::Plan,
            policy::Source::Service => Self::Service,
            policy::Source::Default => Self::Default,
            policy::Source::Nothing => Self::Nothing,
        }
    }
}

impl From<operator::PolicyStatus> for PolicyStatus {
    fn from(status: operator::PolicyStatus) -> Self {
        let operator::PolicyStatus { file, loaded_at, refused, warnings, overrides } = status;
        Self { file, loaded_at, refused, warnings, overrides }
    }
}

impl From<refusals::Counts> for Refusals {
    fn from(counts: refusals::Counts) -> Self {
        let refusals::Counts { service, organization, api_key, trace, budget, disabled } = counts;
        Self { service, organization, api_key, trace, budget, disabled }
    }
}

impl From<operator::Done> for Done {
    fn from(done: operator::Done) -> Self {
        let operator::Done { ended, summary } = done;
        Self { ended, summary }
    }
}

impl From<&refusals::RefusedBorrow> for Refusal {
    fn from(refused: &refusals::RefusedBorrow) -> Self {
        let (active, max) = refused.ceiling().unzip();
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
pub(super) fn organization(
    policy: &Policy,
    data: &OrganizationData<'_>,
    at: WallTime,
) -> Organization {
    let OrganizationData { name, pools, usage, refusals } = *data;
    let row = |service: &str, active| OrganizationService {
        service: service.into(),
        active,
        ceiling: ceiling(policy.limit(name, service)),
    };
    // The entry `default` has no row: its limit is in the row of each service that it applies to.
    let entries = policy.services().filter(|entry| *entry != DEFAULT_SERVICE);
    let mut services: Vec<_> = entries
        .map(|entry| {
            let held = pools.iter().find(|pool| *pool.service == *entry);
            row(entry, held.map_or(0, |pool| pool.leases))
        })
        .collect();
    let others = pools
        .iter()
        .filter(|pool| *pool.service == *DEFAULT_SERVICE || !policy.has_entry(&pool.service));
    services.extend(others.map(|pool| row(&pool.service, pool.leases)));
    let budgets = policy.organization_budgets(name).iter().map(|budget| {
        let (used, window) = usage_of(budget, usage, at);
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
        refusals,
    }
}

/// One API key, under the `policy` in force.
pub(super) fn api_key(policy: &Policy, id: String) -> ApiKey {
    let limits = policy.services().map(|service| ServiceCeiling {
        service: service.into(),
        ceiling: ceiling(policy.limit_of(Subject::ApiKey, &id, service)),
    });
    ApiKey {
        limits: limits.collect(),
        disabled: disabled(policy.disabled_by(Subject::ApiKey, &id)),
        api_key: id,
    }
}

fn ceiling((max, source): (Option<u64>, policy::Source)) -> Ceiling {
    Ceiling { max, source: source.into() }
}

fn disabled((disabled, source): (bool, policy::Source)) -> Disabled {
    Disabled { disabled, source: source.into() }
}
