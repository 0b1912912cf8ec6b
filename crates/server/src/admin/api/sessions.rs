//! Live leases: list them, read one, end one.

use std::sync::Arc;

use axum::extract::State;
use lease::Kind;
use store::{LeaseFilter, Order};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Peer;
use super::edge::{self, Failure, Json, Path, Query, answer_change, lease_number};
use super::model::{
    AgeOrder, Done, LeaseKinds, NoteQuery, Problem, Session, SessionPage, SessionsQuery,
};
use crate::admin::state::Admin;
use crate::operator::By;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(sessions)).routes(routes!(session, revoke))
}

/// Live leases, page by page.
///
/// Pages that are read along `next` neither miss nor repeat a lease that lives the whole time.
#[utoipa::path(
    get,
    path = "/api/sessions",
    tag = "sessions",
    params(SessionsQuery),
    responses(
        (status = 200, description = "One page", body = SessionPage),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn sessions(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<SessionsQuery>,
) -> Result<Json<SessionPage>, Failure> {
    let SessionsQuery { organization, service, trace, api_key, indexer, .. } = query;
    let name = |id: Option<String>| id.map(Into::into);
    let filter = LeaseFilter {
        organization: name(organization),
        service: name(service),
        trace: name(trace),
        api_key: name(api_key),
        indexer: name(indexer),
        kind: match query.kind {
            LeaseKinds::Session => Some(Kind::Session),
            LeaseKinds::Worker => Some(Kind::Worker),
            LeaseKinds::Any => None,
        },
    };
    let order = match query.order {
        AgeOrder::Newest => Order::Newest,
        AgeOrder::Oldest => Order::Oldest,
    };
    let after = query.after.as_deref().map(lease_number).transpose()?;
    let page =
        admin.store.leases(filter, order, after, edge::entries_per_page(query.limit)).await?;
    Ok(Json(SessionPage {
        total: page.total,
        sessions: page.leases.into_iter().map(Into::into).collect(),
        next: page.next.map(|number| number.to_string()),
    }))
}

/// One live lease.
#[utoipa::path(
    get,
    path = "/api/sessions/{lease}",
    tag = "sessions",
    params(("lease" = String, Path, description = "Its number", pattern = "^[0-9a-fA-F]{24}$")),
    responses(
        (status = 200, description = "The lease", body = Session),
        (status = 404, description = "There is no such lease, or it has ended", body = Problem),
        (status = 503, description = "The store cannot be read", body = Problem),
    ),
)]
async fn session(
    State(admin): State<Arc<Admin>>,
    Path(lease): Path<String>,
) -> Result<Json<Session>, Failure> {
    let number = lease_number(&lease)?;
    let gone = || Failure::not_found(format!("there is no lease {number}"));
    Ok(Json(admin.store.find(number).await?.ok_or_else(gone)?.into()))
}

/// Ends a lease at once, and with the last session of a trace its workers.
///
/// An attached holder is notified at once, any other holder with its next keep-alive.
#[utoipa::path(
    delete,
    path = "/api/sessions/{lease}",
    tag = "sessions",
    params(
        ("lease" = String, Path, description = "Its number", pattern = "^[0-9a-fA-F]{24}$"),
        NoteQuery,
    ),
    responses(
        (status = 200, description = "Done, durably", body = Done),
        (status = 404, description = "There is no such lease, or it has ended", body = Problem),
        (status = 503, description = "The store cannot make changes", body = Problem),
    ),
)]
async fn revoke(
    State(admin): State<Arc<Admin>>,
    Peer(peer): Peer,
    Path(lease): Path<String>,
    Query(NoteQuery { note }): Query<NoteQuery>,
) -> Result<Json<Done>, Failure> {
    let by = By { from: &peer.to_string(), note: &note };
    answer_change(&admin, admin.operator.revoke(lease_number(&lease)?, by).await)
}
