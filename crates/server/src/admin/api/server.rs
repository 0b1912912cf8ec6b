//! The server as a whole: its totals and its policy.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Peer;
use super::edge::{Failure, Json, Query, answer_change};
use super::mapping::override_row;
use super::model::{Done, EffectivePolicy, NoteQuery, Overview, Problem};
use crate::admin::state::Admin;
use crate::operator::By;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(overview))
        .routes(routes!(policy))
        .routes(routes!(reload_policy))
}

/// The totals of the server.
#[utoipa::path(
    get,
    path = "/api/overview",
    tag = "server",
    responses(
        (status = 200, description = "The totals, at most 250 ms old", body = Overview),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn overview(State(admin): State<Arc<Admin>>) -> Result<Json<Overview>, Failure> {
    Ok(Json(admin.snapshot().await?.overview.clone()))
}

/// The policy in force, with the overrides of operators.
#[utoipa::path(
    get,
    path = "/api/policy",
    tag = "server",
    responses(
        (status = 200, description = "The policy in force", body = EffectivePolicy),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn policy(State(admin): State<Arc<Admin>>) -> Result<Json<EffectivePolicy>, Failure> {
    let services = admin.snapshot().await?.overview.services.clone();
    let (status, overrides) = (admin.operator.policy_status(), admin.store.overrides());
    let policy = admin.operator.policy();
    Ok(Json(EffectivePolicy {
        status,
        services,
        plans: policy.plans().map(Into::into).collect(),
        indexers: policy.indexers().map(Into::into).collect(),
        overrides: overrides.iter().map(|(key, set)| override_row(&policy, key, set)).collect(),
    }))
}

/// Loads the policy file again, even if it has not changed.
#[utoipa::path(
    post,
    path = "/api/policy/reload",
    tag = "server",
    params(NoteQuery),
    responses(
        (status = 200, description = "The file is in force", body = Done),
        (status = 409, description = "The file is refused, with file, line, column and reason, or the \
                                      server was started without one", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn reload_policy(
    State(admin): State<Arc<Admin>>,
    Peer(peer): Peer,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    let by = By { from: &peer.to_string(), note: &note };
    answer_change(&admin, admin.operator.reload(by).await)
}
