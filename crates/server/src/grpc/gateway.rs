//! Routes each request of the gRPC port to the service that answers it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::HeaderMap;
use http::{Request, Response, StatusCode, Version};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use wire::control::session_control_server::SERVICE_NAME as SESSION_CONTROL;
use wire::worker::BorrowWorkerRequest;

use policy::Indexer;

use super::caller::{identify, key_of};
use super::compression::{Encoding, decompress, is_flagged, unsupported};
use super::control::{AttachedCaller, Via};
use super::deadline::{WithDeadline, timeout};
use super::framing::{SMALL, decode, no_memory};
use super::linked::{self, AnswersCalls};
use super::public::{self, PublicServices, Tonic};
use super::report::Reports;
use super::route::{PoolCall, Protocol, is_of, is_report, method_of};
use super::service::{NotBorrowed, Undecided, WorkerPool};
use super::timed_body::RequestBody;
use super::unary::{self, Answer, Body, ForCall as _, Read, status_only};
use super::web::Web;
use crate::bounds::{Full, InFlight, work_of};
use crate::config::PortLimits;
use crate::fleet::{
    Fleet, LINK, Origin, Outgoing, Over, Patience, answer_not_leading, is_not_leading,
};
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
    /// The other servers of the fleet; `None` where no other server uses the store.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// Answers requests of operators that other servers of the fleet pass on. They bring the address of
    /// the operator as an extension. Set once the server is put together.
    pub(crate) operators: OnceLock<Tonic>,
    /// Cancelled when the server begins to stop.
    pub(crate) stopping: CancellationToken,
}

/// Marks a request that another server of the fleet has passed on.
#[derive(Clone, Copy, Debug)]
struct IsPassedOn;

/// Who makes a call.
#[derive(Clone, Copy)]
struct Who<'c> {
    /// The indexer by the policy of this server. Where this server does not lead, an unknown one too.
    caller: Option<&'c Indexer>,
    peer: Option<SocketAddr>,
    /// Whether this server did not lead when the call was identified.
    is_standby: bool,
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
            let mut is_standby = false;
            if let Some(fleet) = &self.fleet {
                if let Some(origin) = fleet.take_origin(request.headers_mut()) {
                    return Ok(Box::pin(self.answer_passed_on(origin, request, call)).await);
                }
                is_standby = !fleet.leads();
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
                Ok(caller) => {
                    call.connection().set_caller(caller.map(Indexer::name));
                    caller
                }
                // The policy of the leader decides.
                Err(_) if is_standby => None,
                Err(status) => {
                    drop(live);
                    let refused = self.refuse(method_of(method, request.uri().path()), status);
                    return Ok(Box::pin(self.refuse_unread(refused, request, call)).await);
                }
            };
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
                    let who = Who { caller, peer: call.connection().peer(), is_standby };
                    let decided =
                        self.dispatch(method, &live, who, headers, message, &mut undecided);
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
        let (headers, is_standby) = (request.headers(), self.is_standby());
        let caller = match identify(&live.policy, headers) {
            Err(_) if is_standby => None,
            caller => caller?,
        };
        let who = Who { caller, peer: call.connection().peer(), is_standby };
        let mut undecided = Undecided::default();
        let decided = self.dispatch(method, &live, who, headers, message, &mut undecided);
        let answer = WithDeadline::new(decided, headers, *began).await;
        undecided.settle(answer)
    }

    fn finish(
        &self,
        method: PoolCall,
        answer: Result<Answer, Status>,
        mut call: InFlight,
    ) -> Response<Body> {
        // Where this server does not lead, the leader identifies the caller.
        if !matches!(&answer, Err(status) if status.code() == Code::Unauthenticated) {
            call.connection().mark_proven();
        }
        let answer = answer.and_then(|answer| count_answer(answer, &mut call));
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
        // Where this server does not lead, callers that it does not know come here too.
        if !self.is_standby() || identify(&self.live.load().policy, request.headers()).is_ok() {
            call.connection().mark_proven();
        }
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
            let headers = request.headers();
            let via = match &self.fleet {
                None => Via::Alone,
                Some(_) if request.extensions().get::<IsPassedOn>().is_some() => Via::PassedOn,
                Some(fleet) => Via::Fleet(fleet.clone(), Arc::new(headers.clone())),
            };
            let caller = AttachedCaller::new(key_of(headers), connection, via);
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

    /// Whether another server of a fleet leads, or none does.
    fn is_standby(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| !fleet.leads())
    }

    /// Passes a call to the worker pool, here or at the leader of the fleet. Its message has arrived.
    #[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
    fn dispatch<'c, 'l>(
        &'c self,
        call: PoolCall,
        live: &'l Live,
        who: Who<'c>,
        metadata: &'c HeaderMap,
        message: Bytes,
        undecided: &'c mut Undecided<'l>,
    ) -> impl Future<Output = Result<Answer, Status>> + use<'c, 'l> {
        async move {
            let Some(fleet) = &self.fleet else {
                return self.decide(call, live, who.caller, metadata, message, undecided).await;
            };
            if !who.is_standby {
                let again = message.clone();
                match self.decide(call, live, who.caller, metadata, again, undecided).await {
                    Err(status) if is_not_leading(&status) => {}
                    answer => return answer,
                }
            }
            let fleet = (&**fleet, who);
            Box::pin(self.decide_in_fleet(fleet, call, live, metadata, message, undecided)).await
        }
    }

    /// Passes a call on to the leader of the fleet. Decides it here if this server comes to lead.
    async fn decide_in_fleet<'l>(
        &self,
        (fleet, who): (&Fleet, Who<'_>),
        call: PoolCall,
        live: &'l Live,
        metadata: &HeaderMap,
        message: Bytes,
        undecided: &mut Undecided<'l>,
    ) -> Result<Answer, Status> {
        let timeout = timeout(metadata);
        let mut patience = Patience::new(timeout);
        let is_borrow = call == PoolCall::BorrowWorker;
        let from = (who.peer, who.caller.map(Indexer::name));
        let to = (call.path(), Over::Link { is_borrow });
        let call_on = Outgoing::new(fleet, to, metadata, message.clone(), from, timeout);
        let answer = loop {
            match fleet.pass_on(&call_on, &mut patience).await {
                Ok(Some(answer)) => break Ok(Answer::from(answer)),
                Ok(None) => {}
                Err(status) => break Err(status),
            }
            let live = self.live.load();
            let caller = identify(&live.policy, metadata)?;
            let (headers, mut here) = (call_on.metadata(), Undecided::default());
            let decided = self.decide(call, &live, caller, &headers, message.clone(), &mut here);
            let answer = decided.await;
            undecided.set_limit(here.limit());
            match answer {
                Err(status) if is_not_leading(&status) && fleet.settles(&mut patience).await => {}
                answer => break answer,
            }
        };
        if is_borrow && answer.is_err() {
            let limit = undecided.limit();
            *undecided = Undecided::borrow(live, message);
            undecided.set_limit(limit);
        }
        answer
    }

    /// Answers a call that another server of the fleet has passed on.
    async fn answer_passed_on<B: RequestBody>(
        self: Arc<Self>,
        origin: Origin,
        mut request: Request<B>,
        call: InFlight,
    ) -> Response<Body> {
        if let (LINK, true, Some(fleet)) = (request.uri().path(), origin.is_current, &self.fleet) {
            let (fleet, ends) = (fleet.clone(), (self.most_bytes(), self.stopping.clone()));
            return linked::open(self, fleet, ends, request.into_body(), call);
        }
        let call = call.on_behalf(
            origin.peer.map(|peer| peer.ip()),
            origin.indexer.as_deref(),
            request.headers_mut(),
        );
        let caller = call.connection().clone();
        poll_fn(|context| caller.poll_call(context)).await;
        let path = request.uri().path();
        if !origin.is_current {
            return self.refuse(method_of(None, path), answer_not_leading()).for_call(call);
        }
        if let (Some(operators), true) = (self.operators.get(), path.starts_with("/api/")) {
            if let Some(peer) = origin.peer {
                request.extensions_mut().insert(peer);
            }
            let request = request.map(tonic::body::Body::new);
            return public::call_streaming(operators.clone(), request).await.for_call(call);
        }
        let live = self.live.load();
        if let Err(status) = identify(&live.policy, request.headers()) {
            return self.refuse(method_of(None, path), status).for_call(call);
        }
        drop(live);
        request.extensions_mut().insert(IsPassedOn);
        self.answer_unusual(None, None, request, call).await
    }

    async fn decide_linked(
        &self,
        method: PoolCall,
        headers: &HeaderMap,
        message: Bytes,
        call: &mut InFlight,
        began: Instant,
    ) -> Result<Answer, Status> {
        let live = self.live.load();
        let full = call.full().map_or(Ok(()), Err);
        let taken = full.and_then(|()| call.take(message.len().saturating_sub(SMALL)));
        if let Err(problem) = taken {
            let undecided = match method {
                PoolCall::BorrowWorker => Undecided::borrow(&live, message),
                _ => Undecided::default(),
            };
            return undecided.settle(Err(no_memory(problem)));
        }
        let caller = identify(&live.policy, headers)?;
        let mut undecided = Undecided::default();
        let decided = self.decide(method, &live, caller, headers, message, &mut undecided);
        let answer = WithDeadline::new(decided, headers, began).await;
        match &answer {
            Err(status) if is_not_leading(status) => answer,
            _ => undecided.settle(answer),
        }
    }

    /// Decides a call of the worker pool here.
    #[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
    fn decide<'c, 'l>(
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

impl AnswersCalls for Gateway {
    async fn answer_linked(
        &self,
        method: PoolCall,
        headers: &HeaderMap,
        message: Bytes,
        call: &mut InFlight,
    ) -> Result<Answer, Status> {
        let caller = call.connection().clone();
        poll_fn(|context| caller.poll_call(context)).await;
        let share = caller.share();
        let _place = match method.places(&share) {
            Some(places) => places.acquire().await.ok(),
            None => None,
        };
        let began = Instant::now();
        let answer = self.decide_linked(method, headers, message, call, began).await;
        self.pool.calls().answered(method.into(), began);
        let answer = answer.and_then(|answer| count_answer(answer, call));
        answer.map_err(|status| {
            self.pool.calls().refused(method.into(), &status);
            if is_not_leading(&status) { answer_not_leading() } else { status }
        })
    }
}

/// Counts the memory and the work of an answer. The memory of each call includes a short one.
fn count_answer(answer: Answer, call: &mut InFlight) -> Result<Answer, Status> {
    if answer.len() > SHORT_ANSWER {
        call.take(answer.len()).map_err(no_memory)?;
        call.connection().share().count(work_of(answer.len()));
    }
    Ok(answer)
}
