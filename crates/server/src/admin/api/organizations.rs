//! Organizations and API keys: their limits, their leases and their usage.

use std::sync::Arc;

use axum::extract::State;
use lease::validate_id;
use policy::overrides::Subject;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::edge::{self, Failure, Json, Path, Query};
use super::mapping;
use super::model::{ApiKey, Organization, OrganizationPage, OrganizationsQuery, Problem};
use crate::admin::state::Admin;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(organizations))
        .routes(routes!(organization))
        .routes(routes!(api_key))
}

/// Organizations, page by page.
///
/// An organization is known if it is in the policy, has an override, a lease or usage, or had a
/// refusal in the last hour.
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
    let snapshot = admin.snapshot().await?;
    // A search through a million organizations takes a while.
    let page = crate::blocking::blocking(move || {
        let OrganizationsQuery { search, sort, offset, limit } = query;
        let limit = edge::organizations_per_page(limit);
        let (total, found) = snapshot.page(&search, sort, offset as usize, limit);
        let policy = admin.operator.policy();
        let organizations =
            found.into_iter().map(|row| mapping::organization(&policy, &snapshot, row)).collect();
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
        (status = 404, description = "The organization is unknown", body = Problem),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn organization(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<Organization>, Failure> {
    validate_id("organization", &name, true)?;
    let snapshot = admin.snapshot().await?;
    let unknown = || Failure::not_found(format!("the organization {name:?} is unknown"));
    let row = snapshot.organization(&name).ok_or_else(unknown)?;
    Ok(Json(mapping::organization(&admin.operator.policy(), &snapshot, row)))
}

/// One API key.
#[utoipa::path(
    get,
    path = "/api/api-keys/{api_key}",
    tag = "organizations",
    params(("api_key" = String, Path, description = "Its id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The API key", body = ApiKey),
        (status = 404, description = "The API key has neither an entry in the policy nor an override", body = Problem),
    ),
)]
async fn api_key(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<ApiKey>, Failure> {
    validate_id("api_key", &name, true)?;
    let policy = admin.operator.policy();
    if !policy.is_known(Subject::ApiKey, &name) {
        let problem =
            format!("the API key {name:?} has neither an entry in the policy nor an override");
        return Err(Failure::not_found(problem));
    }
    Ok(Json(mapping::api_key(&policy, name)))
}
