//! Organizations and API keys: what they may, what they hold, and changing what they may.

use std::sync::Arc;

use axum::extract::State;
use lease::{WallTime, validate_id};
use policy::overrides::Subject;
use policy::{DEFAULT_SERVICE, Policy, Source};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Peer;
use super::edge::{self, Body, Failure, Json, Path, Query};
use super::model::{
    ApiKey, BudgetRow, Ceiling, Disabled, Done, NoteQuery, Organization, OrganizationPage,
    OrganizationService, OrganizationsQuery, Problem, ServiceCeiling, SetDisabled, SetLimit,
};
use crate::admin::picture::{Shown, used};
use crate::admin::state::Admin;
use crate::operator::By;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(organizations))
        .routes(routes!(organization))
        .routes(routes!(disable_organization, clear_disabled_organization))
        .routes(routes!(limit_organization, clear_limit_of_organization))
        .routes(routes!(api_key))
        .routes(routes!(disable_api_key, clear_disabled_api_key))
        .routes(routes!(limit_api_key, clear_limit_of_api_key))
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

/// Disables or enables an organization, whatever the policy file says.
///
/// Disabling ends its sessions and workers at once. It is an override: it wins over the file until it
/// is cleared, across restarts.
#[utoipa::path(
    put,
    path = "/api/organizations/{organization}/disabled",
    tag = "organizations",
    params(("organization" = String, Path, description = "Its id", min_length = 1, max_length = 256)),
    request_body = SetDisabled,
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 409, description = "There are as many overrides as may be", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn disable_organization(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path(name): Path<String>,
    Body(body): Body<SetDisabled>,
) -> Result<Json<Done>, Failure> {
    let SetDisabled { disabled, note } = body;
    set_disabled(admin, peer, Subject::Organization, &name, Some(disabled), &note).await
}

/// Leaves it to the policy file again whether an organization is disabled.
#[utoipa::path(
    delete,
    path = "/api/organizations/{organization}/disabled",
    tag = "organizations",
    params(
        ("organization" = String, Path, description = "Its id", min_length = 1, max_length = 256),
        NoteQuery,
    ),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "No operator disabled or enabled it", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn clear_disabled_organization(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path(name): Path<String>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    set_disabled(admin, peer, Subject::Organization, &name, None, &note).await
}

/// Sets how many leases of a service an organization may hold, whatever the policy file says.
///
/// It holds for the next borrow and ends nobody. It is an override: it wins over the file until it is
/// cleared, across restarts.
#[utoipa::path(
    put,
    path = "/api/organizations/{organization}/limits/{service}",
    tag = "organizations",
    params(
        ("organization" = String, Path, description = "Its id", min_length = 1, max_length = 256),
        ("service" = String, Path, description = "A service entry of the policy", min_length = 1, max_length = 256),
    ),
    request_body = SetLimit,
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "The policy has no such service", body = Problem),
        (status = 409, description = "There are as many overrides as may be", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn limit_organization(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path((name, service)): Path<(String, String)>,
    Body(SetLimit { max, note }): Body<SetLimit>,
) -> Result<Json<Done>, Failure> {
    set_limit(admin, peer, (Subject::Organization, &name, &service), Some(max), &note).await
}

/// Leaves a limit of an organization to the policy file again.
#[utoipa::path(
    delete,
    path = "/api/organizations/{organization}/limits/{service}",
    tag = "organizations",
    params(
        ("organization" = String, Path, description = "Its id", min_length = 1, max_length = 256),
        ("service" = String, Path, description = "A service entry", min_length = 1, max_length = 256),
        NoteQuery,
    ),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "No operator set that limit", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn clear_limit_of_organization(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path((name, service)): Path<(String, String)>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    set_limit(admin, peer, (Subject::Organization, &name, &service), None, &note).await
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

/// Disables or enables an API key, whatever the policy file says.
///
/// Disabling ends the sessions and workers that were borrowed with it at once. It is an override: it
/// wins over the file until it is cleared, across restarts.
#[utoipa::path(
    put,
    path = "/api/api-keys/{api_key}/disabled",
    tag = "organizations",
    params(("api_key" = String, Path, description = "Its id", min_length = 1, max_length = 256)),
    request_body = SetDisabled,
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 409, description = "There are as many overrides as may be", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn disable_api_key(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path(name): Path<String>,
    Body(SetDisabled { disabled, note }): Body<SetDisabled>,
) -> Result<Json<Done>, Failure> {
    set_disabled(admin, peer, Subject::ApiKey, &name, Some(disabled), &note).await
}

/// Leaves it to the policy file again whether an API key is disabled.
#[utoipa::path(
    delete,
    path = "/api/api-keys/{api_key}/disabled",
    tag = "organizations",
    params(
        ("api_key" = String, Path, description = "Its id", min_length = 1, max_length = 256),
        NoteQuery,
    ),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "No operator disabled or enabled it", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn clear_disabled_api_key(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path(name): Path<String>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    set_disabled(admin, peer, Subject::ApiKey, &name, None, &note).await
}

/// Sets how many leases of a service an organization may hold with an API key, whatever the policy
/// file says.
///
/// It holds for the next borrow and ends nobody. It is an override: it wins over the file until it is
/// cleared, across restarts.
#[utoipa::path(
    put,
    path = "/api/api-keys/{api_key}/limits/{service}",
    tag = "organizations",
    params(
        ("api_key" = String, Path, description = "Its id", min_length = 1, max_length = 256),
        ("service" = String, Path, description = "A service entry of the policy", min_length = 1, max_length = 256),
    ),
    request_body = SetLimit,
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "The policy has no such service", body = Problem),
        (status = 409, description = "There are as many overrides as may be", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn limit_api_key(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path((name, service)): Path<(String, String)>,
    Body(SetLimit { max, note }): Body<SetLimit>,
) -> Result<Json<Done>, Failure> {
    set_limit(admin, peer, (Subject::ApiKey, &name, &service), Some(max), &note).await
}

/// Leaves a limit of an API key to the policy file again.
#[utoipa::path(
    delete,
    path = "/api/api-keys/{api_key}/limits/{service}",
    tag = "organizations",
    params(
        ("api_key" = String, Path, description = "Its id", min_length = 1, max_length = 256),
        ("service" = String, Path, description = "A service entry", min_length = 1, max_length = 256),
        NoteQuery,
    ),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "No operator set that limit", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn clear_limit_of_api_key(
    admin: State<Arc<Admin>>,
    peer: Peer,
    Path((name, service)): Path<(String, String)>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    set_limit(admin, peer, (Subject::ApiKey, &name, &service), None, &note).await
}

async fn set_disabled(
    State(admin): State<Arc<Admin>>,
    Peer(peer): Peer,
    subject: Subject,
    id: &str,
    disabled: Option<bool>,
    note: &str,
) -> Result<Json<Done>, Failure> {
    let by = By { from: &peer.to_string(), note };
    let done = admin.operator.set_disabled(subject, id, disabled, by).await;
    admin.view.changed();
    Ok(Json(done?.into()))
}

async fn set_limit(
    State(admin): State<Arc<Admin>>,
    Peer(peer): Peer,
    (subject, id, service): (Subject, &str, &str),
    max: Option<u64>,
    note: &str,
) -> Result<Json<Done>, Failure> {
    validate_id("service", service, true)?;
    let by = By { from: &peer.to_string(), note };
    let done = admin.operator.set_limit(subject, id, service, max, by).await;
    admin.view.changed();
    Ok(Json(done?.into()))
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
