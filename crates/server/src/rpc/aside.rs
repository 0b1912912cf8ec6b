//! What is served beside the worker pool: health and reflection, as tonic has them.

use std::convert::Infallible;
use std::fmt;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

use super::Body;

/// One tonic service.
pub(crate) type Tonic =
    BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, Infallible>;

/// The services that are open to all, by the start of their paths.
pub(crate) struct Aside {
    services: Vec<(&'static str, Tonic)>,
}

impl Aside {
    /// Health as `health` reports it, and reflection of every service of the port.
    pub(crate) fn new(health: HealthReporter) -> Self {
        let health = HealthServer::new(HealthService::from_health_reporter(health));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let sound = "the descriptors were compiled into the program";
        Self {
            services: vec![
                ("/grpc.health.v1.Health/", boxed(health)),
                (
                    "/grpc.reflection.v1.ServerReflection/",
                    boxed(reflection().build_v1().expect(sound)),
                ),
                (
                    "/grpc.reflection.v1alpha.ServerReflection/",
                    boxed(reflection().build_v1alpha().expect(sound)),
                ),
            ],
        }
    }

    /// The service that answers at `path`.
    pub(crate) fn at(&self, path: &str) -> Option<Tonic> {
        // All of them begin alike, so that this costs other calls one comparison.
        path.starts_with("/grpc.").then(|| {
            let found = self.services.iter().find(|(start, _)| path.starts_with(start));
            found.map(|(_, service)| service.clone())
        })?
    }

    /// Lets `service` answer.
    pub(crate) async fn answer<B>(service: Tonic, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        match service.oneshot(request.map(tonic::body::Body::new)).await {
            Ok(response) => response.map(Body::tonic),
            Err(infallible) => match infallible {},
        }
    }
}

/// A tonic service as one of many.
pub(crate) fn boxed<T>(service: T) -> Tonic
where
    T: Service<
            Request<tonic::body::Body>,
            Response = Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    BoxCloneSyncService::new(service)
}

impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.services.iter().map(|(start, _)| start)).finish()
    }
}
