//! Refused borrows, the audit list, and the stream of events.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::edge::{self, Failure, Json, Query};
use super::model::{AuditPage, AuditQuery, Event, Problem, RefusalPage, RefusalsQuery};
use crate::admin::events;
use crate::admin::state::Admin;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(refusals)).routes(routes!(audit)).routes(routes!(listen))
}

/// The latest refused borrows, the latest first.
#[utoipa::path(
    get,
    path = "/api/refusals",
    tag = "records",
    params(RefusalsQuery),
    responses(
        (status = 200, description = "The refusals", body = RefusalPage),
    ),
)]
async fn refusals(
    State(admin): State<Arc<Admin>>,
    Query(RefusalsQuery { organization, limit }): Query<RefusalsQuery>,
) -> Json<RefusalPage> {
    let refusals = admin.refusals.latest(organization.as_deref(), edge::entries_per_page(limit));
    Json(RefusalPage { refusals: refusals.iter().map(|refused| (&**refused).into()).collect() })
}

/// The audit list: what operators did, the latest first.
#[utoipa::path(
    get,
    path = "/api/audit",
    tag = "records",
    params(AuditQuery),
    responses(
        (status = 200, description = "The entries", body = AuditPage),
    ),
)]
async fn audit(
    State(admin): State<Arc<Admin>>,
    Query(AuditQuery { before, limit }): Query<AuditQuery>,
) -> Json<AuditPage> {
    let entries = admin.store.audit(before, edge::entries_per_page(limit));
    Json(AuditPage { entries: entries.into_iter().map(Into::into).collect() })
}

/// Server-sent events: `overview`, `refusal`, `audit` and `policy`.
///
/// `overview` is sent first, and then at most four times a second, when something changed. At most 20
/// refusals are sent in a second, the latest. A comment every 10 seconds shows that the server is
/// there. A slow reader misses events; the other endpoints have the same data.
#[utoipa::path(
    get,
    path = "/api/events",
    tag = "records",
    operation_id = "events",
    responses(
        (
            status = 200,
            description = "The events, without an end",
            body = Event,
            content_type = "text/event-stream"
        ),
        (status = 503, description = "There are 64 listeners already, or the store cannot be read", body = Problem),
    ),
)]
async fn listen(State(admin): State<Arc<Admin>>) -> Result<Response, Failure> {
    events::listen(admin).await
}
