//! The admin API: operators read and change the state of the server, as JSON.
//!
//! The annotation of each handler lists all its answers. The OpenAPI document is generated from the
//! annotations.

mod document;
pub(super) mod edge;
pub(super) mod fleet;
mod mapping;
pub mod model;
mod organizations;
mod overrides;
mod records;
mod server;
mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use utoipa_axum::router::OpenApiRouter;

use super::state::Admin;
use edge::Failure;

/// The endpoints of the API. The document says whether they need a token; the guard checks it.
pub(super) fn router(needs_token: bool) -> Router<Arc<Admin>> {
    let routes = OpenApiRouter::with_openapi(document::empty())
        .merge(server::routes())
        .merge(fleet::routes())
        .merge(organizations::routes())
        .merge(overrides::routes())
        .merge(sessions::routes())
        .merge(records::routes());
    let (router, document) = routes.split_for_parts();
    document::serve(router, document, needs_token)
}

/// The address that a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(*parts.extensions.get().expect("the port puts it into every request"))
    }
}
