//! Routes each request of the gRPC port to the service that answers it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::HeaderMap;
use http::{Request, Response, StatusCode, Version};
use tokio::sync::Semaphore;
use tonic::Status;
use wire::control::session_control_server::SERVICE_NAME as SESSION_CONTROL;
use wire::worker::BorrowWorkerRequest;

use policy::Indexer;

use super::caller::{identify, key_of};
use super::compression::{Encoding, decompress, is_flagged, unsupported};
use super::control::AttachedCaller;
use super::deadline::WithDeadline;
use super::framing::{SMALL, decode, no_memory};
use super::public::{self, PublicServices, Tonic};
use super::report::Reports;
use super::route::{PoolCall, Protocol, is_of, is_report, method_of};
use super::service::{NotBorrowed, Undecided, WorkerPool};
use super::timed_body::RequestBody;
use super::unary::{self, Answer, Body, ForCall as _, Read, status_only};
use super::web::Web;
use crate::bounds::{Full, InFlight, work_of};
use crate::config::PortLimits;
use crate::live::Live;
use crate::metrics::Method;
use crate::text::plain;

/// The memory that is accounted for each call includes an answer of up to this many bytes.
const SHORT_ANSWER: usize = 1 << 10;

/// The memory of an attached stream without its waiting events: buffers of its codec, its task.
const ATTACHED_BYTES: usize = 16 << 10;

/// Routes the requests of the gRPC port.
///
/// Health and reflection are public. For all other requests the caller is identified first, before the
/// method and the message are checked.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) pool: WorkerPool,
    pub(crate) reports: Reports,
    pub(crate) live: Arc<ArcSwap<Live>>,
    /// Session control, which needs the same keys as the worker pool.
    pub(crate) control: Tonic,
    pub(crate) public: PublicServices,
    pub(crate) web: Web,
    pub(crate) limits: PortLimits,
}

impl Gateway {
    /// Answers one request. When the future is dropped before the answer, no lease is left behind.
    ///
    /// The caller is identified before a byte of the message is kept. The future is moved and stored
    /// for every call, so it is kept small: it stores its arguments once, and unusual cases are boxed.
    #[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
    pub(crate) fn answer<B: RequestBody>(
        self: Arc<Self>,
        mut request: Request<B>,
        mut call: InFlight,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send {
        async move {
            if call.has_too_many_fields() {
                return Ok(status_only(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).for_call(call));
            }
            let refusal = match Protocol::of(&request) {
                Protocol::Grpc => None,
                Protocol::Unsupported(refusal) => Some(refusal),
                Protocol::Web => return Ok(self.translate(request, call).await),
            };
            if let Some(public) = self.public.at(request.uri().path()) {
                let answer = self.public.answer(public, refusal, request, call, &self.limits);
                return Ok(Box::pin(answer).await);
            }
            let method = PoolCall::at(request.uri().path());
            let live = self.live.load();
            let caller = match identify(&live.policy, request.headers()) {
                Ok(caller) => caller,
                Err(status) => {
                    drop(live);
                    let refused = self.refuse(method_of(method, request.uri().path()), status);
                    return Ok(Box::pin(self.refuse_unread(refused, request, call)).await);
                }
            };
            call.connection().set_caller(caller.map(Indexer::name));
            call.begin_again(request.headers());
            let is_supported = Encoding::of(request.headers()).is_supported();
            let (Some(method), None, None, true) = (method, refusal, call.full(), is_supported)
            else {
                drop(live);
                return Ok(Box::pin(self.answer_unusual(method, refusal, request, call)).await);
            };
            // Most messages arrive with their headers. Then nothing is waited for, and the terms come
            // from the same policy as the caller.
            let read = match call.connection().admits(&call) {
                true => unary::read_ready(request.body_mut()).await,
                false => Ok(Read::Partial(Bytes::new())),
            };
            let mut began = Instant::now();
            let share = method.needs_place().then(|| call.connection().share());
            let place =
                share.as_deref().and_then(|share| method.places(share)).map(Semaphore::try_acquire);
            let has_turn = !matches!(place, Some(Err(_)));
            let answer = match read {
                Ok(Read::Whole(message))
                    if has_turn && message.len() <= self.most_bytes() && !is_flagged(&message) =>
                {
                    let (headers, mut undecided) = (request.headers(), Undecided::default());
                    let decided =
                        self.dispatch(method, &live, caller, headers, message, &mut undecided);
                    let answer = WithDeadline::new(decided, headers, began).await;
                    undecided.settle(answer)
                }
                Ok(Read::Whole(message) | Read::Partial(message)) => {
                    drop((live, place));
                    let later =
                        self.answer_later(method, &mut request, message, &mut call, &mut began);
                    Box::pin(later).await
                }
                Err(status) => Err(status),
            };
            self.pool.calls().answered(method.into(), began);
            Ok(self.finish(method, answer, call))
        }
    }

    /// Answers a call of the worker pool that has to wait for its message or for its turn.
    async fn answer_later<B: RequestBody>(
        &self,
        method: PoolCall,
        request: &mut Request<B>,
        begun: Bytes,
        call: &mut InFlight,
        began: &mut Instant,
    ) -> Result<Answer, Status> {
        call.connection().admitted(call).await;
        let message = unary::read(request.body_mut(), begun, &self.limits, call).await?;
        let encoding = Encoding::of(request.headers());
        let message = decompress(message, encoding, self.most_bytes(), call)?;
        *began = Instant::now();
        let share = call.connection().share();
        let _place = match method.places(&share) {
            Some(places) => places.acquire().await.ok(),
            None => None,
        };
        // The policy may have changed in the meantime.
        let live = self.live.load();
        let (headers, caller) = (request.headers(), identify(&live.policy, request.headers())?);
        let mut undecided = Undecided::default();
        let decided = self.dispatch(method, &live, caller, headers, message, &mut undecided);
        let answer = WithDeadline::new(decided, headers, *began).await;
        undecided.settle(answer)
    }

    fn finish(
        &self,
        method: PoolCall,
        answer: Result<Answer, Status>,
        mut call: InFlight,
    ) -> Response<Body> {
        call.connection().mark_proven();
        let answer = answer.and_then(|answer: Answer| {
            // The memory of each call includes a short answer.
            if answer.len() > SHORT_ANSWER {
                call.take(answer.len()).map_err(no_memory)?;
                call.connection().share().count(work_of(answer.len()));
            }
            Ok(answer)
        });
        answer
            .map_or_else(|status| self.refuse(method.into(), status), Answer::into_http)
            .for_call(call)
    }

    const fn most_bytes(&self) -> usize {
        self.limits.max_message_bytes as usize
    }

    /// Answers all requests except well-formed calls of the worker pool for which there is memory. The
    /// caller is identified.
    async fn answer_unusual<B: RequestBody>(
        &self,
        method: Option<PoolCall>,
        refusal: Option<StatusCode>,
        mut request: Request<B>,
        mut call: InFlight,
    ) -> Response<Body> {
        let path = request.uri().path();
        let (attaches, reports) = (is_of(SESSION_CONTROL, path), is_report(path));
        let is_known = method.is_some() || attaches || reports;
        if let Some(refusal) = refusal.filter(|_| is_known) {
            return self.refuse_unread(status_only(refusal), request, call).await;
        }
        if is_known && !Encoding::of(request.headers()).is_supported() {
            let refused = self.refuse(method_of(method, path), unsupported());
            return self.refuse_unread(refused, request, call).await;
        }
        if let (Some(problem), true) = (call.full(), is_known) {
            return self.refuse_full(method, problem, request, call).await;
        }
        call.connection().mark_proven();
        if reports {
            let answer = self.reports.answer(&self.live, request, &mut call).await;
            self.pool.calls().refused_by(Method::Report, answer.headers());
            return answer.for_call(call);
        }
        if attaches {
            if let Err(problem) = call.take(ATTACHED_BYTES) {
                return self.refuse(Method::Attach, no_memory(problem)).for_call(call);
            }
            let connection = Some(call.connection().clone());
            let caller = AttachedCaller::new(key_of(request.headers()), connection);
            request.extensions_mut().insert(caller);
            return match public::uncompressed(request, &self.limits, &mut call) {
                Ok(request) => {
                    public::call_streaming(self.control.clone(), request).await.for_call(call)
                }
                Err(status) => self.refuse(Method::Attach, status).for_call(call),
            };
        }
        // The message is not read: it may be a stream that waits for an answer.
        let problem = format!("there is no method {}", plain(path));
        self.refuse(Method::Other, Status::unimplemented(problem)).for_call(call)
    }

    /// Refuses a call for which there is no memory.
    ///
    /// A borrow is still read, because a borrow of a worker gets a different answer.
    async fn refuse_full<B: RequestBody>(
        &self,
        method: Option<PoolCall>,
        problem: Full,
        mut request: Request<B>,
        mut call: InFlight,
    ) -> Response<Body> {
        let mut refused = Err(no_memory(problem));
        if method == Some(PoolCall::BorrowWorker)
            && let Ok(message) = unary::read_small(request.body_mut(), &self.limits).await
            && let encoding = Encoding::of(request.headers())
            && let Ok(message) = decompress(message, encoding, SMALL, &mut call)
        {
            refused = Undecided::borrow(&self.live.load(), message).settle(refused);
        }
        match refused {
            Ok(answer) => answer.into_http().for_call(call),
            Err(status) => {
                let method = method_of(method, request.uri().path());
                self.refuse_unread(self.refuse(method, status), request, call).await
            }
        }
    }

    /// Refuses a call without using its message.
    ///
    /// The message is read and discarded first. Data that arrives for a stream that was answered
    /// already counts against its connection, which would be closed in the end. The message is not
    /// read for long, and not while many calls without a key are in flight.
    async fn refuse_unread<B: RequestBody>(
        &self,
        refused: Response<Body>,
        request: Request<B>,
        call: InFlight,
    ) -> Response<Body> {
        let attaches = is_of(SESSION_CONTROL, request.uri().path());
        // The headers are dropped before the message is waited for.
        let mut body = request.into_body();
        if !attaches && !call.connection().is_crowded() {
            unary::discard(&mut body, &self.limits).await;
        }
        refused.for_call(call)
    }

    fn refuse(&self, method: Method, status: Status) -> Response<Body> {
        self.pool.calls().refused(method, &status);
        unary::refuse(status)
    }

    /// Answers a gRPC-Web call as a gRPC call.
    fn translate<B: RequestBody>(
        self: Arc<Self>,
        request: Request<B>,
        call: InFlight,
    ) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> {
        let (gateway, mut call) = (self.clone(), Some(call));
        let answer = move |mut request: Request<tonic::body::Body>| {
            *request.version_mut() = Version::HTTP_2;
            let (gateway, call) = (gateway.clone(), call.take());
            async move {
                // A request has one answer.
                let Some(call) = call else {
                    return status_only(StatusCode::INTERNAL_SERVER_ERROR);
                };
                let Ok(response) = gateway.answer(request, call).await;
                response
            }
        };
        Box::pin(async move { self.web.answer(request, answer).await })
    }

    /// Passes a call to the worker pool. Its message has arrived.
    #[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
    fn dispatch<'c, 'l>(
        &'c self,
        call: PoolCall,
        live: &'l Live,
        caller: Option<&'c Indexer>,
        metadata: &'c HeaderMap,
        message: Bytes,
        undecided: &'c mut Undecided<'l>,
    ) -> impl Future<Output = Result<Answer, Status>> + use<'c, 'l> {
        async move {
            let pool = &self.pool;
            match call {
                PoolCall::BorrowWorker => {
                    let message = decode(message)?;
                    match pool.borrow(live, caller, metadata, message, &mut *undecided).await {
                        Ok(answer) => Ok(answer),
                        Err(NotBorrowed::Refused(status)) => Err(status),
                        Err(NotBorrowed::OldTerms(message)) => {
                            Box::pin(self.borrow_again(metadata, message, undecided)).await
                        }
                    }
                }
                PoolCall::KeepAlive => pool.keep_alive(caller, decode(message)?).await,
                PoolCall::ReturnWorker => {
                    pool.return_worker(caller, metadata, decode(message)?).await
                }
                PoolCall::WorkersState => pool.state(live, caller, decode(message)?).await,
            }
        }
    }

    /// Decides a borrow again, because another policy came into force in the meantime.
    async fn borrow_again(
        &self,
        metadata: &HeaderMap,
        mut message: BorrowWorkerRequest,
        undecided: &mut Undecided<'_>,
    ) -> Result<Answer, Status> {
        loop {
            let live = self.live.load();
            let caller = identify(&live.policy, metadata)?;
            let mut now = Undecided::default();
            let borrowed = self.pool.borrow(&live, caller, metadata, message, &mut now).await;
            undecided.set_limit(now.limit());
            message = match borrowed {
                Ok(answer) => return Ok(answer),
                Err(NotBorrowed::Refused(status)) => return Err(status),
                Err(NotBorrowed::OldTerms(message)) => message,
            }
        }
    }
}
