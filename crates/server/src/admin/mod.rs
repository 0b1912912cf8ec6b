//! The admin port: is the server alive, is it ready, what has it counted, who holds what, and
//! what operators do about it.

pub(crate) mod api;
mod events;
mod guard;
mod metrics_page;
mod page;
mod port;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lease::WallTime;
use store::Clock;
use store::{Store, StoreUrl, Unavailable};

use crate::config::token_file::TokenInForce;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::refusals::Refusals;
use api::edge::{Failure, MAX_BODY};
use guard::Guard;
pub(crate) use port::serve;
use view::View;

/// What the admin port looks at and acts on.
#[derive(Debug)]
pub(crate) struct Admin {
    store: Arc<Store>,
    store_url: String,
    live: Arc<ArcSwap<Live>>,
    operator: Arc<Operator>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    clock: Arc<dyn Clock>,
    started_at: WallTime,
    /// Set while the server serves: not before, and not once it drains.
    serving: Arc<AtomicBool>,
    view: View,
    dropped_log_lines: Arc<AtomicU64>,
    certificate_not_after: Option<Arc<AtomicI64>>,
}

/// What the admin port is made of.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) store_url: StoreUrl,
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) operator: Arc<Operator>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) serving: Arc<AtomicBool>,
    pub(crate) dropped_log_lines: Arc<AtomicU64>,
    /// When the certificate of the gRPC port expires, in Unix time; `None` without TLS.
    pub(crate) certificate_not_after: Option<Arc<AtomicI64>>,
}

impl Admin {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { store, store_url, live, operator, metrics, refusals, clock, serving, .. } =
            parts;
        let Parts { dropped_log_lines, certificate_not_after, .. } = parts;
        Self {
            store,
            store_url: store_url.to_string(),
            live,
            operator,
            metrics,
            refusals,
            started_at: clock.wall(),
            view: View::new(clock.unix()),
            clock,
            serving,
            dropped_log_lines,
            certificate_not_after,
        }
    }

    /// Whether the server takes changes.
    fn ready(&self) -> Result<(), Unavailable> {
        if self.serving.load(Ordering::Acquire) {
            self.store.ready()
        } else {
            Err(Unavailable::Closing)
        }
    }
}

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
