//! `SessionLayer`: one session per request, held as long as its response lasts.

mod body;
mod headers;
mod protocol;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use self::body::HeldSession;
pub use self::body::SessionBody;
use self::protocol::{Protocol, answer_to_caller};
use crate::error::Error;
use crate::guard::Session;
use crate::plugin::BoxFuture;
use crate::pool::Pool;
use crate::request::{Id, SessionRequest};

type Identify = dyn Fn(&Parts) -> Result<SessionRequest, Error> + Send + Sync;

/// Paths that need no session: probes must work while everything else is refused.
const EXEMPT: [&str; 3] = [
    "/grpc.health.v1.Health",
    "/grpc.reflection.v1.ServerReflection",
    "/grpc.reflection.v1alpha.ServerReflection",
];

/// Gates a tonic or axum service: each request needs a session, held until its response is over.
///
/// The session is borrowed before the handler runs. It is returned when the response body has ended
/// or failed, or is dropped because the client left; also when the handler fails, panics or is
/// dropped. The handler finds it in the extensions of the request, as `Arc<`[`Session`]`>`, to borrow
/// workers under it. Keeping that `Arc` does not keep the session.
///
/// A refusal is answered in the protocol of the request: `application/grpc` with a gRPC status (HTTP
/// 200 without a body), everything else with 400, 401, 403, 429 or 503 and a line of text. A session
/// that is revoked or lost ends the response at once: in gRPC with status and message as trailers, else
/// with an error of the body, so that a part is not taken for the whole body. A handler that has not
/// answered by then is dropped, as if its client had left.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tgm_session::SessionLayer;
///
/// let pool = tgm_session::connect("tgm://sessions.example:9010?indexer-api-key=$KEY").await?;
/// let mut server = tonic::transport::Server::builder().layer(SessionLayer::new(pool, "t1r"));
/// # Ok(())
/// # }
/// ```
///
/// # Who is asking
///
/// [`SessionLayer::new`] trusts the headers that [`SessionRequest::from_headers`] reads. The
/// authentication in front of it must set them, and remove those that callers sent.
/// [`SessionLayer::identified_by`] takes a closure instead.
///
/// # Limits
///
/// - gRPC-Web: put `GrpcWebLayer` outside of this one, in tonic's builder as
///   `.layer(GrpcWebLayer::new()).layer(SessionLayer::new(pool, "t1r"))`; plain gRPC passes through
///   both. In the other order refusals work, but a revocation ends the response without its status:
///   a translated body has its trailers in its data. Outside of the translation a layer cannot see
///   where a message ends, so trailers could be read as a part of it.
/// - A client that does not read learns of a revocation late: the server does not poll a body that
///   cannot be sent. The slot is free in any case.
/// - An upgraded connection (a WebSocket) is no response body: borrow in its handler.
#[derive(Clone)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct SessionLayer {
    pool: Pool,
    identify: Arc<Identify>,
    exempt: Vec<String>,
}

impl SessionLayer {
    /// Gates by sessions of `service`, for the organization in the trusted headers of each request.
    pub fn new(pool: Pool, service: impl Into<Id>) -> Self {
        let service: Arc<str> = service.into().into();
        Self::identified_by(pool, move |parts| {
            SessionRequest::from_headers(service.clone(), &parts.headers)
        })
    }

    /// Gates by the session that `identify` asks for, given the head of each request.
    ///
    /// It runs on every request that is not exempt, and must not block. Its error is the answer;
    /// [`Error::Unauthenticated`] means that the caller is unknown.
    ///
    /// ```
    /// # async fn example() -> Result<(), tgm_session::Error> {
    /// use tgm_session::{Error, SessionLayer, SessionRequest};
    ///
    /// #[derive(Clone)]
    /// struct Caller { organization: String } // an authentication layer put it there
    ///
    /// # let pool = tgm_session::connect("local://").await?;
    /// let layer = SessionLayer::identified_by(pool, |request| {
    ///     let caller = request.extensions.get::<Caller>();
    ///     let caller = caller.ok_or(Error::Unauthenticated { message: "who is it?".into() })?;
    ///     Ok(SessionRequest::new("t1r", &*caller.organization))
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn identified_by(
        pool: Pool,
        identify: impl Fn(&Parts) -> Result<SessionRequest, Error> + Send + Sync + 'static,
    ) -> Self {
        let exempt = EXEMPT.map(str::to_owned).to_vec();
        Self { pool, identify: Arc::new(identify), exempt }
    }

    /// Lets requests to `path`, and to everything below it, pass without a session.
    ///
    /// gRPC health and reflection always pass. A path of gRPC is `/package.Service/Method`, so
    /// `/package.Service` is a whole service.
    pub fn exempt(mut self, path: &str) -> Self {
        self.exempt.push(path.trim_end_matches('/').to_owned());
        self
    }

    fn is_exempt(&self, path: &str) -> bool {
        self.exempt.iter().any(|exempt| {
            let below = path.strip_prefix(exempt.as_str());
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        })
    }

    /// Answers one request. Dropped at any point, it leaves no session behind.
    async fn serve<S, A, B>(
        &self,
        mut inner: S,
        request: Request<A>,
    ) -> Result<Response<SessionBody<B>>, S::Error>
    where
        S: Service<Request<A>, Response = Response<B>>,
        B: Body<Data = Bytes>,
    {
        if self.is_exempt(request.uri().path()) {
            return Ok(inner.call(request).await?.map(SessionBody::open));
        }
        let protocol = Protocol::of(request.headers());
        let (mut parts, body) = request.into_parts();
        let held = match self.admit(&parts).await {
            Ok(session) => HeldSession(Arc::new(session)),
            Err(error) => return Ok(protocol.refuse(error).map(SessionBody::text)),
        };
        parts.extensions.insert(held.0.clone());
        let mut ended: BoxFuture<'static, Error> = Box::pin(held.0.ended());
        let response = tokio::select! {
            biased;
            reason = &mut ended => return Ok(protocol.refuse(answer_to_caller(reason)).map(SessionBody::text)),
            response = inner.call(Request::from_parts(parts, body)) => response?,
        };
        Ok(response.map(|body| SessionBody::held(body, protocol, ended, held)))
    }

    async fn admit(&self, parts: &Parts) -> Result<Session, Error> {
        let request = (self.identify)(parts)?;
        let (service, organization) = (request.service.clone(), request.organization.clone());
        self.pool.borrow(request).await.map_err(|error| {
            tracing::debug!(%service, %organization, %error, "a request is refused its session");
            answer_to_caller(error)
        })
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService { gate: Arc::new(self.clone()), inner }
    }
}

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("pool", &self.pool)
            .field("exempt", &self.exempt)
            .finish_non_exhaustive()
    }
}

/// A service behind a [`SessionLayer`].
#[derive(Clone, Debug)]
pub struct SessionService<S> {
    gate: Arc<SessionLayer>,
    inner: S,
}

impl<S, A, B> Service<Request<A>> for SessionService<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    A: Send + 'static,
    B: Body<Data = Bytes> + Send,
{
    type Response = Response<SessionBody<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        // The service that was polled ready is the one to be called; its clone may not be.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        Box::pin(async move { gate.serve(inner, request).await })
    }
}
