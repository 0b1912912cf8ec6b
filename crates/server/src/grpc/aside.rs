//! What is served beside the worker pool: health and reflection, as tonic has them.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use http_body_util::Full;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

use super::compression::{Decompressed, ENCODING, Encoding, decompress, unsupported};
use super::framing::full;
use super::unary::{self, AsidePlace, Body, OfCall as _};
use crate::bounds::{InFlight, reset_call_after};
use crate::config::PortLimits;

/// Health watches at once on all connections.
const WATCHES: usize = 1_024;

/// Reflection streams at once on all connections.
const REFLECTIONS: usize = 64;

/// How long a reflection stream may be open. A tool that describes a server takes a moment.
const REFLECTION_TIME: Duration = Duration::from_secs(60);

/// One tonic service.
pub(crate) type Tonic =
    BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, Infallible>;

/// What is asked of the services that are open to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AsideCall {
    /// Health, once.
    Check,
    /// Health, and whenever it changes.
    Watch,
    Reflection,
}

/// The services that are open to all, by the start of their paths.
pub(crate) struct Aside {
    services: Vec<(&'static str, Tonic)>,
    watches: Arc<Semaphore>,
    reflections: Arc<Semaphore>,
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
            watches: Arc::new(Semaphore::new(WATCHES)),
            reflections: Arc::new(Semaphore::new(REFLECTIONS)),
        }
    }

    /// The service that answers at `path`, and what is asked of it.
    pub(super) fn at(&self, path: &str) -> Option<(AsideCall, Tonic)> {
        // All of them begin alike, so that this costs other calls one comparison.
        path.starts_with("/grpc.").then(|| {
            let found = self.services.iter().find(|(start, _)| path.starts_with(start));
            let call = match path.rsplit('/').next() {
                Some("Watch") => AsideCall::Watch,
                Some("ServerReflectionInfo") => AsideCall::Reflection,
                _ => AsideCall::Check,
            };
            found.map(|(_, service)| (call, service.clone()))
        })?
    }

    /// Lets `service` answer, within the places that there are for its streams.
    pub(super) async fn answer<B>(
        &self,
        asked: AsideCall,
        service: Tonic,
        request: Request<B>,
        mut call: InFlight,
        limits: &PortLimits,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let (places, what) = match asked {
            AsideCall::Check => (None, "calls"),
            AsideCall::Watch => (Some(&self.watches), "health watches"),
            AsideCall::Reflection => (Some(&self.reflections), "reflection streams"),
        };
        let place = places.map(|places| {
            let on_connection = call.connection().stream_aside()?;
            let on_server = places.clone().try_acquire_owned().ok()?;
            Some(AsidePlace { _on_connection: on_connection, _on_server: on_server })
        });
        let place = match (place, call.full()) {
            (Some(None), _) => {
                let problem = format!("too many {what} are open");
                return unary::refuse(Status::unavailable(problem)).of(call);
            }
            (_, Some(problem)) => return unary::refuse(full(problem)).of(call),
            (place, None) => place.flatten(),
        };
        if asked == AsideCall::Reflection {
            reset_call_after(REFLECTION_TIME);
            return match uncompressed(request, limits, &mut call) {
                Ok(request) => told(service, request, place).await.of(call),
                Err(status) => unary::refuse(status).of(call),
            };
        }
        let (mut parts, mut body) = request.into_parts();
        let encoding = Encoding::of(&parts.headers);
        parts.headers.remove(ENCODING);
        // Both calls of health have one small message.
        call.connection().admitted(&call).await;
        let read = unary::read(&mut body, Bytes::new(), limits, &mut call).await;
        let most = limits.max_message_bytes as usize;
        match read.and_then(|body| match encoding {
            Encoding::Other => Err(unsupported()),
            _ => decompress(body, encoding, most, &mut call),
        }) {
            Ok(message) => {
                let body = tonic::body::Body::new(Full::new(message));
                told(service, Request::from_parts(parts, body), place).await.of(call)
            }
            Err(status) => unary::refuse(status).of(call),
        }
    }
}

async fn told(
    service: Tonic,
    request: Request<tonic::body::Body>,
    place: Option<AsidePlace>,
) -> Response<Body> {
    match service.oneshot(request).await {
        Ok(response) => response.map(|body| Body::aside(body, place)),
        Err(infallible) => match infallible {},
    }
}

/// Lets `service` answer with a stream that has bounds of its own.
pub(super) async fn oneshot(service: Tonic, request: Request<tonic::body::Body>) -> Response<Body> {
    match service.oneshot(request).await {
        Ok(response) => response.map(Body::stream),
        Err(infallible) => match infallible {},
    }
}

/// A request for a tonic service, with the messages of its stream uncompressed.
///
/// # Errors
///
/// `UNIMPLEMENTED` when they are compressed otherwise than by gzip, `UNAVAILABLE` when there is no
/// memory for what is compressed.
pub(super) fn uncompressed<B>(
    request: Request<B>,
    limits: &PortLimits,
    call: &mut InFlight,
) -> Result<Request<tonic::body::Body>, Status>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    match Encoding::of(request.headers()) {
        Encoding::Identity => return Ok(request.map(tonic::body::Body::new)),
        Encoding::Gzip => {}
        Encoding::Other => return Err(unsupported()),
    }
    let most = limits.max_message_bytes as usize;
    // A message as it came, and as it is handed on.
    call.take(2 * most).map_err(full)?;
    let connection = call.connection().clone();
    let mut request =
        request.map(|body| tonic::body::Body::new(Decompressed::new(body, most, connection)));
    request.headers_mut().remove(ENCODING);
    Ok(request)
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
