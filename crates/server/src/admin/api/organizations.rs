//! Organizations and API keys: their limits, their leases and their usage.

use std::sync::Arc;

use axum::extract::State;
use lease::{WallTime, validate_id};
use policy::{DEFAULT_SERVICE, Policy, Source};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::edge::{self, Failure, Json, Path, Query};
use super::model::{
    ApiKey, BudgetRow, Ceiling, Disabled, Organization, OrganizationPage, OrganizationService,
    OrganizationsQuery, Problem, ServiceCeiling,
};
use crate::admin::picture::{Shown, used};
use crate::admin::state::Admin;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(organizations))
        .routes(routes!(organization))
        .routes(routes!(api_key))
}

/// Organizations, page by page.
///
/// Known are those of the policy, those that operators set something for, and those with leases,
/// usage, or refusals in the last hour.
#[utoipa::path(
    get,
    path = "/api/organizations",
    tag = "organizations",
    params(OrganizationsQuery),
    responses(
        (status = 200, description = "One page, at most 250 ms old", body = OrganizationPage),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn organizations(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<OrganizationsQuery>,
) -> Result<Json<OrganizationPage>, Failure> {
    let picture = admin.picture().await?;
    // A million organizations take a while to be looked through.
    let page = crate::blocking::blocking(move || {
        let OrganizationsQuery { search, sort, offset, limit } = query;
        let limit = edge::organizations(limit);
        let (total, shown) = picture.page(&search, sort, offset as usize, limit);
        let policy = admin.operator.policy();
        let organizations = shown.iter().map(|shown| told(&policy, shown, picture.at)).collect();
        OrganizationPage { total, organizations }
    });
    Ok(Json(page.await))
}

/// One organization.
#[utoipa::path(
    get,
    path = "/api/organizations/{organization}",
    tag = "organizations",
    params(("organization" = String, Path, description = "Its id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The organization, at most 250 ms old", body = Organization),
        (status = 404, description = "Nobody knows the organization", body = Problem),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn organization(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<Organization>, Failure> {
    validate_id("organization", &name, true)?;
    let picture = admin.picture().await?;
    let unknown = || Failure::not_found(format!("nobody knows an organization {name:?}"));
    let shown = picture.organization(&name).ok_or_else(unknown)?;
    Ok(Json(told(&admin.operator.policy(), &shown, picture.at)))
}

/// One API key.
#[utoipa::path(
    get,
    path = "/api/api-keys/{api_key}",
    tag = "organizations",
    params(("api_key" = String, Path, description = "Its id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The API key", body = ApiKey),
        (status = 404, description = "Neither the policy nor an operator says anything about it", body = Problem),
    ),
)]
async fn api_key(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<ApiKey>, Failure> {
    validate_id("api_key", &name, true)?;
    let policy = admin.operator.policy();
    if !policy.knows_api_key(&name) {
        let problem =
            format!("neither the policy nor an operator says anything of API key {name:?}");
        return Err(Failure::not_found(problem));
    }
    let limits = policy.services().map(|service| ServiceCeiling {
        service: service.into(),
        ceiling: ceiling(policy.api_key_ceiling(&name, service)),
    });
    let limits = limits.collect();
    Ok(Json(ApiKey { disabled: switch(policy.api_key_disabled(&name)), limits, api_key: name }))
}

/// What the policy says about an organization, and what it holds and used.
fn told(policy: &Policy, shown: &Shown<'_>, at: WallTime) -> Organization {
    let Shown { name, pools, usage, refusals } = *shown;
    let service = |service: &str, active| OrganizationService {
        service: service.into(),
        active,
        ceiling: ceiling(policy.ceiling(name, service)),
    };
    // What the entry `default` says shows at each service that it speaks for.
    let entries = policy.services().filter(|entry| *entry != DEFAULT_SERVICE);
    let mut services: Vec<_> = entries
        .map(|entry| {
            let held = pools.iter().find(|pool| *pool.service == *entry);
            service(entry, held.map_or(0, |pool| pool.leases))
        })
        .collect();
    let others = pools
        .iter()
        .filter(|pool| *pool.service == *DEFAULT_SERVICE || !policy.has_entry(&pool.service));
    services.extend(others.map(|pool| service(&pool.service, pool.leases)));
    let budgets = policy.organization_budgets(name).iter().map(|budget| {
        let (used, window) = used(budget, usage, at);
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
        disabled: switch(policy.organization_disabled(name)),
        services,
        budgets: budgets.collect(),
        refusals,
    }
}

fn ceiling((max, source): (Option<u64>, Source)) -> Ceiling {
    Ceiling { max, source: source.into() }
}

fn switch((disabled, source): (bool, Source)) -> Disabled {
    Disabled { disabled, source: source.into() }
}
