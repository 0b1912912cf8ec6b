//! The public services, which need no key: health and reflection, as tonic implements them.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

use super::compression::{Decompressed, ENCODING, Encoding, decompress, unsupported};
use super::framing::no_memory;
use super::timed_body::RequestBody;
use super::unary::{self, Body, ForCall as _, PublicPlace, status_only};
use crate::bounds::{InFlight, reset_call_after};
use crate::config::PortLimits;

/// The most health watches at once on all connections.
const WATCHES: usize = 1_024;

/// The most reflection streams at once on all connections.
const REFLECTIONS: usize = 64;

/// How long a reflection stream may be open. Tools need it for a moment only.
const REFLECTION_TIME: Duration = Duration::from_secs(60);

/// One tonic service.
pub(crate) type Tonic =
    BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, Infallible>;

/// The calls of the public services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublicCall {
    /// The health, once.
    Check,
    /// The health now and after each change.
    Watch,
    Reflection,
}

/// The public services, by the prefix of their paths.
pub(crate) struct PublicServices {
    services: Vec<(&'static str, Tonic)>,
    watches: Arc<Semaphore>,
    reflections: Arc<Semaphore>,
}

impl PublicServices {
    /// Health as `health` reports it, and reflection of all services of the port.
    pub(crate) fn new(health: HealthReporter) -> Self {
        let health = HealthServer::new(HealthService::from_health_reporter(health));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let valid = "the descriptors were compiled into the program";
        Self {
            services: vec![
                ("/grpc.health.v1.Health/", boxed(health)),
                (
                    "/grpc.reflection.v1.ServerReflection/",
                    boxed(reflection().build_v1().expect(valid)),
                ),
                (
                    "/grpc.reflection.v1alpha.ServerReflection/",
                    boxed(reflection().build_v1alpha().expect(valid)),
                ),
            ],
            watches: Arc::new(Semaphore::new(WATCHES)),
            reflections: Arc::new(Semaphore::new(REFLECTIONS)),
        }
    }

    /// Returns the service and the call of `path`, if it is public.
    pub(super) fn at(&self, path: &str) -> Option<(PublicCall, Tonic)> {
        // All paths have this prefix, so other calls cost one comparison.
        path.starts_with("/grpc.").then(|| {
            let found = self.services.iter().find(|(start, _)| path.starts_with(start));
            let call = match path.rsplit('/').next() {
                Some("Watch") => PublicCall::Watch,
                Some("ServerReflectionInfo") => PublicCall::Reflection,
                _ => PublicCall::Check,
            };
            found.map(|(_, service)| (call, service.clone()))
        })?
    }

    /// Answers a call by its service, if its protocol is not refused and there is a place for its
    /// stream.
    pub(super) async fn answer<B: RequestBody>(
        &self,
        (asked, service): (PublicCall, Tonic),
        refusal: Option<StatusCode>,
        request: Request<B>,
        mut call: InFlight,
        limits: &PortLimits,
    ) -> Response<Body> {
        if let Some(refusal) = refusal {
            return status_only(refusal).for_call(call);
        }
        let (places, what) = match asked {
            PublicCall::Check => (None, "calls"),
            PublicCall::Watch => (Some(&self.watches), "health watches"),
            PublicCall::Reflection => (Some(&self.reflections), "reflection streams"),
        };
        let place = places.map(|places| {
            let on_connection = call.connection().open_public_stream()?;
            let on_server = places.clone().try_acquire_owned().ok()?;
            Some(PublicPlace { _on_connection: on_connection, _on_server: on_server })
        });
        let place = match (place, call.full()) {
            (Some(None), _) => {
                let problem = format!("too many {what} are open");
                return unary::refuse(Status::unavailable(problem)).for_call(call);
            }
            (_, Some(problem)) => return unary::refuse(no_memory(problem)).for_call(call),
            (place, None) => place.flatten(),
        };
        if asked == PublicCall::Reflection {
            reset_call_after(REFLECTION_TIME);
            return match uncompressed(request, limits, &mut call) {
                Ok(request) => call_service(service, request, place).await.for_call(call),
                Err(status) => unary::refuse(status).for_call(call),
            };
        }
        let (mut parts, mut body) = request.into_parts();
        let encoding = Encoding::of(&parts.headers);
        parts.headers.remove(ENCODING);
        // Both health calls have one small message.
        call.connection().admitted(&call).await;
        let read = unary::read(&mut body, Bytes::new(), limits, &mut call).await;
        let most = limits.max_message_bytes as usize;
        match read.and_then(|body| match encoding {
            Encoding::Other => Err(unsupported()),
            _ => decompress(body, encoding, most, &mut call),
        }) {
            Ok(message) => {
                let body = tonic::body::Body::new(Full::new(message));
                call_service(service, Request::from_parts(parts, body), place).await.for_call(call)
            }
            Err(status) => unary::refuse(status).for_call(call),
        }
    }
}

async fn call_service(
    service: Tonic,
    request: Request<tonic::body::Body>,
    place: Option<PublicPlace>,
) -> Response<Body> {
    let Ok(response) = service.oneshot(request).await;
    response.map(|body| Body::public(body, place))
}

/// Calls `service`, which answers with a stream that has bounds of its own.
pub(super) async fn call_streaming(
    service: Tonic,
    request: Request<tonic::body::Body>,
) -> Response<Body> {
    let Ok(response) = service.oneshot(request).await;
    response.map(Body::stream)
}

/// Turns a request into one for a tonic service, and decompresses the messages of its stream.
///
/// # Errors
///
/// `UNIMPLEMENTED` when the compression is not gzip, `UNAVAILABLE` when there is no memory for
/// decompression.
pub(super) fn uncompressed<B: RequestBody>(
    request: Request<B>,
    limits: &PortLimits,
    call: &mut InFlight,
) -> Result<Request<tonic::body::Body>, Status> {
    match Encoding::of(request.headers()) {
        Encoding::Identity => return Ok(request.map(tonic::body::Body::new)),
        Encoding::Gzip => {}
        Encoding::Other => return Err(unsupported()),
    }
    let most = limits.max_message_bytes as usize;
    // For the compressed and the decompressed message.
    call.take(2 * most).map_err(no_memory)?;
    let connection = call.connection().clone();
    let mut request =
        request.map(|body| tonic::body::Body::new(Decompressed::new(body, most, connection)));
    request.headers_mut().remove(ENCODING);
    Ok(request)
}

/// Boxes a tonic service.
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

impl fmt::Debug for PublicServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.services.iter().map(|(start, _)| start)).finish()
    }
}
