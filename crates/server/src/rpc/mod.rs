//! The gRPC port: who calls what.

mod aside;
mod report;
mod timely;
mod unary;
mod web;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName};
use http::{Method as HttpMethod, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use tonic::Status;

pub(crate) use aside::{Aside, Tonic, boxed};
pub(crate) use report::Reports;
pub(crate) use unary::{Answer, Body, message, unreadable};
pub(crate) use web::Web;

use crate::admin::metrics::Method;
use crate::control::{SESSION_CONTROL, ShownKey};
use crate::live::Live;
use crate::policy::{Indexer, Policy};
use crate::serve::PortLimits;
use crate::service::WorkerPool;
use crate::store::Store;
use crate::usage::USAGE_SERVICE;

/// The gRPC service whose calls are the reason for all of this.
pub(crate) const WORKER_POOL: &str = "sf.worker.v1.WorkerPool";

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// One call of the worker pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    BorrowWorker,
    KeepAlive,
    ReturnWorker,
    WorkersState,
}

impl Call {
    fn at(path: &str) -> Option<Self> {
        match path.strip_prefix('/')?.strip_prefix(WORKER_POOL)? {
            "/BorrowWorker" => Some(Self::BorrowWorker),
            "/KeepAlive" => Some(Self::KeepAlive),
            "/ReturnWorker" => Some(Self::ReturnWorker),
            "/WorkersState" => Some(Self::WorkersState),
            _ => None,
        }
    }
}

impl From<Call> for Method {
    fn from(call: Call) -> Self {
        match call {
            Call::BorrowWorker => Self::BorrowWorker,
            Call::KeepAlive => Self::KeepAlive,
            Call::ReturnWorker => Self::ReturnWorker,
            Call::WorkersState => Self::WorkersState,
        }
    }
}

/// Takes every request of the gRPC port to where it is answered.
///
/// Health and reflection are open to all. For everything else the caller is identified before
/// anything else decides the answer, the method and the message included.
#[derive(Debug)]
pub(crate) struct Gateway<S> {
    pool: WorkerPool<S>,
    reports: Reports<S>,
    live: Arc<ArcSwap<Live>>,
    control: Tonic,
    aside: Aside,
    web: Web,
    limits: PortLimits,
}

impl<S: Store> Gateway<S> {
    /// `control` is session control, which is served to whoever may call the worker pool.
    pub(crate) fn new(
        pool: WorkerPool<S>,
        reports: Reports<S>,
        live: Arc<ArcSwap<Live>>,
        control: Tonic,
        aside: Aside,
        web: Web,
        limits: PortLimits,
    ) -> Self {
        Self { pool, reports, live, control, aside, web, limits }
    }

    /// Answers one request. Dropped before it answers, it leaves no lease behind.
    ///
    /// The future is moved and stored for every call, so it is kept small: what needs much room
    /// is boxed, and calls are applied before anything is waited for.
    pub(crate) async fn answer<B>(&self, mut request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + fmt::Display + Send,
    {
        let refusal = match Speech::of(&request) {
            Speech::Grpc => None,
            Speech::Neither(refusal) => Some(refusal),
            Speech::Web => return self.translate(request).await,
        };
        if let Some(service) = self.aside.at(request.uri().path()) {
            if let Some(refusal) = refusal {
                return plain(refusal);
            }
            return Box::pin(Aside::answer(service, request)).await;
        }
        // Even a call that will be refused is read to its end: data that arrives for a stream that
        // was answered already counts against its connection, which would be closed in the end.
        // An unknown call is not, because it may be a stream that waits for an answer.
        let call = Call::at(request.uri().path());
        let message = match call {
            Some(_) => unary::read(request.body_mut(), &self.limits).await,
            None if is_report(request.uri().path()) => {
                let answer = Box::pin(self.reports.answer(&self.live, request, refusal)).await;
                self.pool.calls().refused_by(Method::Report, answer.headers());
                return answer;
            }
            None => Ok(Bytes::new()),
        };
        let began = Instant::now();
        let live = self.live.load();
        let caller = match identify(&live.policy, request.headers()) {
            Ok(caller) => caller,
            Err(status) => {
                let attaches = is_of(SESSION_CONTROL, request.uri().path());
                let other = if attaches { Method::Attach } else { Method::Other };
                return self.refuse(call.map_or(other, Method::from), status);
            }
        };
        let Some(call) = call else {
            if is_of(SESSION_CONTROL, request.uri().path()) {
                if let Some(refusal) = refusal {
                    return plain(refusal);
                }
                let key = ShownKey::new(key_of(request.headers()));
                request.extensions_mut().insert(key);
                drop(live);
                return Box::pin(Aside::answer(self.control.clone(), request)).await;
            }
            let problem = format!("there is no method {}", request.uri().path());
            return self.refuse(Method::Other, Status::unimplemented(problem));
        };
        if let Some(refusal) = refusal {
            return plain(refusal);
        }
        let answer = match message {
            Ok(message) => self.dispatch(call, &live, caller, request.headers(), message).await,
            Err(status) => Err(status),
        };
        self.pool.calls().answered(call.into(), began);
        answer.map_or_else(|status| self.refuse(call.into(), status), Answer::into_http)
    }

    fn refuse(&self, method: Method, status: Status) -> Response<Body> {
        self.pool.calls().refused(method, &status);
        unary::refuse(status)
    }

    /// Answers a call of gRPC-Web as one of gRPC.
    fn translate<'a, B>(
        &'a self,
        request: Request<B>,
    ) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + 'a>>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + fmt::Display + Send,
    {
        Box::pin(self.web.answer(request, |mut request| {
            *request.version_mut() = Version::HTTP_2;
            self.answer(request)
        }))
    }

    async fn dispatch(
        &self,
        call: Call,
        live: &Live,
        caller: Option<&Indexer>,
        metadata: &HeaderMap,
        message: Bytes,
    ) -> Result<Answer, Status> {
        match call {
            Call::BorrowWorker => {
                self.pool.borrow(live, caller, metadata, unary::decode(message)?).await
            }
            Call::KeepAlive => self.pool.keep_alive(caller, unary::decode(message)?).await,
            Call::ReturnWorker => {
                self.pool.give_back(caller, metadata, unary::decode(message)?).await
            }
            Call::WorkersState => self.pool.state(live, caller, unary::decode(message)?).await,
        }
    }
}

/// Whether `path` is that of a method of `service`.
fn is_of(service: &str, path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    method.is_some_and(|method| method.starts_with('/'))
}

fn is_report(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(USAGE_SERVICE)) == Some("/Report")
}

/// Who calls.
fn identify<'p>(policy: &'p Policy, headers: &HeaderMap) -> Result<Option<&'p Indexer>, Status> {
    let caller = policy.identify(key_of(headers));
    caller.map_err(|error| Status::unauthenticated(error.to_string()))
}

/// The key a caller shows: `x-api-key`, else the token of `authorization: Bearer`.
fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get(API_KEY) {
        return Some(key.as_bytes());
    }
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// How a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Grpc,
    Web,
    /// To be refused by an HTTP status, as the protocol has it.
    Neither(StatusCode),
}

impl Speech {
    fn of<B>(request: &Request<B>) -> Self {
        let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |it| it.as_bytes());
        let kind = content_type.strip_prefix(b"application/grpc");
        if request.method() != HttpMethod::POST {
            return match *request.method() {
                // The question of a browser whether a page may call.
                HttpMethod::OPTIONS => Self::Web,
                _ => Self::Neither(StatusCode::METHOD_NOT_ALLOWED),
            };
        }
        match kind {
            Some([] | [b'+' | b';', ..]) if request.version() == Version::HTTP_2 => Self::Grpc,
            // Without HTTP/2 the status of the call would not arrive.
            Some([] | [b'+' | b';', ..]) => Self::Neither(StatusCode::HTTP_VERSION_NOT_SUPPORTED),
            Some(b"-web" | b"-web+proto" | b"-web-text" | b"-web-text+proto") => Self::Web,
            _ => Self::Neither(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        }
    }
}

/// An HTTP status alone.
fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Done);
    *response.status_mut() = status;
    response
}
