//! gRPC-Web: gRPC for callers that cannot read trailers, such as browsers.
//!
//! Calls are translated to gRPC, over HTTP/1.1 and HTTP/2. Plain gRPC calls do not pass through here.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::caller::API_KEY;
use super::compression::{ACCEPT_ENCODING, ENCODING};
use super::timed_body::RequestBody;
use super::unary::{Body, status_only};
use crate::config::Origin;
use crate::headers::{
    BORROW_ID, DENIED_ACTIVE, DENIED_MAX, DENIED_SCOPE, EVENTS_SKIPPED, GRPC_TIMEOUT,
    IDEMPOTENCY_KEY, LEASE_TTL_MS, TRACES_OMITTED,
};

const X_GRPC_WEB: HeaderName = HeaderName::from_static("x-grpc-web");
const X_USER_AGENT: HeaderName = HeaderName::from_static("x-user-agent");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// How long a browser may cache the result of a CORS preflight.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// Translates gRPC-Web calls of programs, and of web pages of the allowed origins.
pub(crate) struct Web {
    origins: Box<[HeaderValue]>,
    cors: CorsLayer,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("origins", &self.origins).finish_non_exhaustive()
    }
}

impl Web {
    /// Allows web pages of `origins`.
    pub(crate) fn new(origins: &[Origin]) -> Self {
        let origins: Box<[_]> = origins.iter().map(|origin| origin.header().clone()).collect();
        let cors = CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins.iter().cloned()))
            .allow_methods([Method::POST])
            .allow_headers([
                CONTENT_TYPE,
                AUTHORIZATION,
                API_KEY,
                BORROW_ID,
                IDEMPOTENCY_KEY,
                GRPC_TIMEOUT,
                ENCODING,
                X_GRPC_WEB,
                X_USER_AGENT,
            ])
            .expose_headers([
                GRPC_STATUS,
                GRPC_MESSAGE,
                HeaderName::from_static(ACCEPT_ENCODING),
                LEASE_TTL_MS,
                DENIED_SCOPE,
                DENIED_ACTIVE,
                DENIED_MAX,
                EVENTS_SKIPPED,
                TRACES_OMITTED,
            ])
            .max_age(REMEMBERED);
        Self { origins, cors }
    }

    /// Answers a gRPC-Web call by `grpc`, or the CORS preflight of a browser.
    ///
    /// Browsers send the origin of the page that calls. A page of another origin is refused, even where
    /// the browser would hide the answer from it, and even if its origin is the address of this server:
    /// the attacker may own a DNS name that points to it.
    pub(crate) async fn answer<B: RequestBody, F: Future<Output = Response<Body>>>(
        &self,
        request: Request<B>,
        mut grpc: impl FnMut(Request<tonic::body::Body>) -> F,
    ) -> Response<Body> {
        if request.headers().get(ORIGIN).is_some_and(|origin| !self.origins.contains(origin)) {
            return status_only(StatusCode::FORBIDDEN);
        }
        if request.method() == Method::OPTIONS && self.origins.is_empty() {
            return status_only(StatusCode::METHOD_NOT_ALLOWED);
        }
        let translated = GrpcWebLayer::new().layer(service_fn(move |request| {
            let answer = grpc(request);
            async move { Ok::<_, Infallible>(answer.await) }
        }));
        let Ok(response) = self.cors.layer(translated).oneshot(request).await;
        response.map(Body::stream)
    }
}
