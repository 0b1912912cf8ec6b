//! gRPC-Web: gRPC for callers that are shown no trailers, browsers above all.
//!
//! Translated in front of the calls, over HTTP/1.1 and HTTP/2; calls of plain gRPC do not come by.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::caller::API_KEY;
use super::compression::{ACCEPT_ENCODING, ENCODING};
use super::unary::{Body, plain};
use crate::config::Origin;
use crate::grpc::headers::{
    BORROW_ID, DENIED_ACTIVE, DENIED_MAX, DENIED_SCOPE, EVENTS_SKIPPED, IDEMPOTENCY_KEY,
    LEASE_TTL_MS, TRACES_OMITTED,
};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const X_GRPC_WEB: HeaderName = HeaderName::from_static("x-grpc-web");
const X_USER_AGENT: HeaderName = HeaderName::from_static("x-user-agent");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// How long a browser may remember what it is allowed.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// Speaks gRPC-Web with callers that are no web page, and with pages of certain origins.
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
    /// Serves pages of `origins`; without any, no page at all.
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

    /// Answers a call of gRPC-Web, or the question of a browser whether it may make one, by `grpc`.
    ///
    /// Browsers say from where a page comes that calls. Pages that nobody allowed are refused even
    /// where no answer would be shown to them, and even if they come from this very address: a name
    /// of their own may point to it.
    pub(crate) async fn answer<B, F>(
        &self,
        request: Request<B>,
        mut grpc: impl FnMut(Request<tonic::body::Body>) -> F,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + fmt::Display,
        F: Future<Output = Response<Body>>,
    {
        if request.headers().get(ORIGIN).is_some_and(|origin| !self.origins.contains(origin)) {
            return plain(StatusCode::FORBIDDEN);
        }
        if request.method() == Method::OPTIONS && self.origins.is_empty() {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        let translated = GrpcWebLayer::new().layer(service_fn(move |request| {
            let answer = grpc(request);
            async move { Ok::<_, Infallible>(answer.await) }
        }));
        match self.cors.layer(translated).oneshot(request).await {
            Ok(response) => response.map(Body::stream),
            Err(infallible) => match infallible {},
        }
    }
}
