//! Requests of operators at a server of a fleet that does not lead: the leader answers them.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::api::Peer;
use super::api::edge::{Failure, in_time};
use super::state::Admin;

/// What each server answers by itself: it tells about the fleet also while no server leads.
const OF_EACH_SERVER: [&str; 2] = ["/api/fleet", "/api/openapi.json"];

/// Passes a request for the API on to the leader of the fleet while this server does not lead.
pub(super) async fn pass_on(
    State(admin): State<Arc<Admin>>,
    Peer(peer): Peer,
    request: Request,
    next: Next,
) -> Response {
    let Some(fleet) = admin.fleet.as_ref().filter(|fleet| !fleet.leads()) else {
        return next.run(request).await;
    };
    let path = request.uri().path();
    let is_local = request.method() == Method::GET && OF_EACH_SERVER.contains(&path);
    if is_local || !path.starts_with("/api/") {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = Request::from_parts(head.clone(), body);
    let body = match in_time(Bytes::from_request(body, &())).await {
        Ok(body) => body,
        Err(failure) => return failure.into_response(),
    };
    match fleet.pass_on_request(&head, body.clone(), peer).await {
        Ok(Some(answer)) => answer.map(Body::new),
        Ok(None) => next.run(Request::from_parts(head, Body::from(body))).await,
        Err(status) => {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, status.message()).into_response()
        }
    }
}
