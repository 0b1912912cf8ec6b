//! The admin port: is the server alive, is it ready, and what has it counted.

pub(crate) mod api;
pub(crate) mod metrics;
mod page;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::live::Live;
use crate::store::{Store, Unavailable};
use metrics::Metrics;

/// The media type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bearer token of the admin port, kept as its SHA-256.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// Takes the token that callers have to show; only its digest is kept.
    pub fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn matches(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken([REDACTED])")
    }
}

/// What the admin port looks at.
#[derive(Debug)]
pub(crate) struct Admin<S> {
    pub(crate) store: Arc<S>,
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Set while the server serves: not before, and not once it drains.
    pub(crate) serving: Arc<AtomicBool>,
}

/// The pages of the admin port. Probes are open to all; the rest needs the token where there is one.
pub(crate) fn router<S: Store>(admin: Arc<Admin<S>>, token: Option<AdminToken>) -> Router {
    let guarded = Router::new().route("/metrics", get(metrics_page::<S>));
    let guarded = match token {
        None => guarded,
        Some(token) => guarded.layer(middleware::from_fn_with_state(token, require_token)),
    };
    Router::new()
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/readyz", get(ready::<S>))
        .merge(page::router())
        .merge(guarded)
        .with_state(admin)
}

async fn require_token(State(token): State<AdminToken>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    let shown = shown
        .and_then(|value| value.split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    match shown {
        Some((_, shown)) if token.matches(shown) => next.run(request).await,
        _ => (StatusCode::UNAUTHORIZED, "the admin token is needed, as authorization: Bearer\n")
            .into_response(),
    }
}

/// The process answers. The store is not asked: restarting does not mend a disk.
async fn alive() -> &'static str {
    "ok\n"
}

async fn ready<S: Store>(State(admin): State<Arc<Admin<S>>>) -> Response {
    let ready = if admin.serving.load(Ordering::Acquire) {
        admin.store.ready()
    } else {
        Err(Unavailable::Closing)
    };
    match ready {
        Ok(()) => "ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn metrics_page<S: Store>(State(admin): State<Arc<Admin<S>>>) -> Response {
    let live = match admin.store.live().await {
        Ok(live) => live,
        Err(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response();
        }
    };
    admin.metrics.set_live(&admin.live.load().policy, &live);
    match admin.metrics.encode() {
        Ok(page) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
