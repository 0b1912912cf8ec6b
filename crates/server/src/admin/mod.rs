//! The admin port: is the server alive, is it ready, what has it counted, who holds what, and
//! what operators do about it.

pub(crate) mod api;
mod events;
mod guard;
mod metrics_page;
mod page;
mod picture;
mod port;
mod state;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use store::Unavailable;

use crate::config::token_file::TokenInForce;
use api::edge::{Failure, MAX_BODY};
use guard::Guard;
pub(crate) use port::serve;
pub(crate) use state::{Admin, Parts};

/// The pages of the admin port, which listens on `address`.
///
/// Probes are open to all and answered whatever else is full, and the page, which has no data in it, to all but pages of other sites;
/// the rest needs the token where there is one.
pub(crate) fn router(
    admin: Admin,
    token: Option<Arc<TokenInForce>>,
    address: SocketAddr,
) -> Router {
    let guard = Guard::new(token, address);
    Router::new()
        .merge(api::router(guard.needs_token()))
        .route("/metrics", get(metrics_page::page))
        .fallback(nothing)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        // Whoever has no token takes no place.
        .layer(from_fn(port::places::place))
        .layer(from_fn_with_state(guard.clone(), guard::token))
        .merge(page::router().layer(from_fn(port::places::place)))
        .layer(from_fn_with_state(guard, guard::site))
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn(guard::headers))
        .with_state(Arc::new(admin))
}

async fn nothing(request: Request) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", request.uri().path()))
}

async fn no_such_method(request: Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("there is no {method} of {path}"))
}

/// The process answers. The store is not asked: restarting does not mend a disk.
async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match admin.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(error @ Unavailable::Stalled) => {
            let seconds = admin.store.stalled().as_secs_f64();
            let problem = format!("{error}: a commit has been under way for {seconds:.1} s\n");
            (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}
