//! Overrides: what an operator sets for an organization or an API key. They win over the policy file
//! until they are cleared, across restarts.
//!
//! Organizations and API keys have the same endpoints, each below a path of its own.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use lease::validate_id;
use policy::overrides::Subject;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Required, Type};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Peer;
use super::edge::{Body, Failure, Json, Path, Query, answer_change};
use super::model::{Done, NoteQuery, Problem, SetDisabled, SetLimit};
use crate::admin::state::Admin;
use crate::operator::By;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .nest("/api/organizations/{organization}", routes_of(Subject::Organization))
        .nest("/api/api-keys/{api_key}", routes_of(Subject::ApiKey))
}

/// The endpoints of one kind of subject.
fn routes_of(subject: Subject) -> OpenApiRouter<Arc<Admin>> {
    let mut routes = OpenApiRouter::new()
        .routes(routes!(set_disabled, clear_disabled))
        .routes(routes!(set_limit, clear_limit));
    for path in routes.get_openapi_mut().paths.paths.values_mut() {
        for operation in [&mut path.put, &mut path.delete].into_iter().flatten() {
            describe(operation, subject);
        }
    }
    routes.layer(Extension(subject))
}

/// Adds to the documentation of an endpoint what depends on the kind of subject: the parameter of the
/// path, and the end of the operation id.
fn describe(operation: &mut Operation, subject: Subject) {
    let id = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    let id = ParameterBuilder::new()
        .name(subject.as_str())
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("Its id"))
        .schema(Some(id.max_length(Some(256))));
    operation.parameters.get_or_insert_default().insert(0, id.build());
    let prefix = operation.operation_id.take().unwrap_or_default();
    operation.operation_id = Some(format!("{prefix}_{}", subject.as_str()));
}

/// Disables or enables an organization or an API key, whatever the policy file says.
///
/// Disabling an organization ends its sessions and workers at once. Disabling an API key ends those
/// that were borrowed with it.
#[utoipa::path(
    put,
    path = "/disabled",
    tag = "organizations",
    operation_id = "disable",
    request_body = SetDisabled,
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 409, description = "The server has as many overrides as it may have", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn set_disabled(
    State(admin): State<Arc<Admin>>,
    Extension(subject): Extension<Subject>,
    Peer(peer): Peer,
    Path(id): Path<String>,
    Body(SetDisabled { disabled, note }): Body<SetDisabled>,
) -> Result<Json<Done>, Failure> {
    let by = By { from: &peer.to_string(), note: &note };
    answer_change(&admin, admin.operator.set_disabled(subject, &id, Some(disabled), by).await)
}

/// Clears the override that disables or enables an organization or an API key: the policy file
/// decides again.
#[utoipa::path(
    delete,
    path = "/disabled",
    tag = "organizations",
    operation_id = "clear_disabled",
    params(NoteQuery),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "No operator disabled or enabled it", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn clear_disabled(
    State(admin): State<Arc<Admin>>,
    Extension(subject): Extension<Subject>,
    Peer(peer): Peer,
    Path(id): Path<String>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    let by = By { from: &peer.to_string(), note: &note };
    answer_change(&admin, admin.operator.set_disabled(subject, &id, None, by).await)
}

/// Sets how many leases of a service an organization may hold, in all or with one API key, whatever
/// the policy file says.
///
/// The limit applies to the next borrow and ends no lease.
#[utoipa::path(
    put,
    path = "/limits/{service}",
    tag = "organizations",
    operation_id = "limit",
    params(
        ("service" = String, Path, description = "A service entry of the policy", min_length = 1, max_length = 256),
    ),
    request_body = SetLimit,
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "The policy has no such service", body = Problem),
        (status = 409, description = "The server has as many overrides as it may have", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn set_limit(
    State(admin): State<Arc<Admin>>,
    Extension(subject): Extension<Subject>,
    Peer(peer): Peer,
    Path((id, service)): Path<(String, String)>,
    Body(SetLimit { max, note }): Body<SetLimit>,
) -> Result<Json<Done>, Failure> {
    validate_id("service", &service, true)?;
    let by = By { from: &peer.to_string(), note: &note };
    answer_change(&admin, admin.operator.set_limit(subject, &id, &service, Some(max), by).await)
}

/// Clears the override of a limit of an organization or an API key: the policy file decides again.
#[utoipa::path(
    delete,
    path = "/limits/{service}",
    tag = "organizations",
    operation_id = "clear_limit_of",
    params(
        ("service" = String, Path, description = "A service entry", min_length = 1, max_length = 256),
        NoteQuery,
    ),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "No operator set that limit", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn clear_limit(
    State(admin): State<Arc<Admin>>,
    Extension(subject): Extension<Subject>,
    Peer(peer): Peer,
    Path((id, service)): Path<(String, String)>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    validate_id("service", &service, true)?;
    let by = By { from: &peer.to_string(), note: &note };
    answer_change(&admin, admin.operator.set_limit(subject, &id, &service, None, by).await)
}
