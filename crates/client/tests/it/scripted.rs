//! A session server whose answers all come from the test.
//!
//! Client and server use real gRPC, over a pipe in this process. So the runtime knows when no task
//! can run, and paused tests pass hours in milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tgm_session::{Dsn, Pool, SessionRequest, TgmConfig, TgmPool};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use wire::control::attach_response::Event;
use wire::control::session_control_server::{SessionControl, SessionControlServer};
use wire::control::{AttachRequest, AttachResponse, BatchAnswer};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::worker_pool_server::{WorkerPool, WorkerPoolServer};
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, KeepAliveResponse,
    ReturnWorkerRequest, ReturnWorkerResponse, WorkersStateRequest, WorkersStateResponse,
    keep_alive_response, return_worker_response,
};

/// One call that waits for its answer.
pub(crate) struct Asked<Q, A> {
    pub(crate) message: Q,
    pub(crate) metadata: MetadataMap,
    pub(crate) at: Instant,
    answer: oneshot::Sender<Result<Response<A>, Status>>,
}

impl<Q, A> Asked<Q, A> {
    pub(crate) fn answer(self, answer: Result<Response<A>, Status>) {
        // Some tests drop the call before it is answered.
        let _ = self.answer.send(answer);
    }

    pub(crate) fn fail(self, status: Status) {
        self.answer(Err(status));
    }

    /// Whether the client still waits.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.answer.is_closed()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(|value| value.to_str().unwrap())
    }
}

pub(crate) type Borrow = Asked<BorrowWorkerRequest, BorrowWorkerResponse>;
pub(crate) type KeepAlive = Asked<KeepAliveRequest, KeepAliveResponse>;
pub(crate) type Return = Asked<ReturnWorkerRequest, ReturnWorkerResponse>;

impl Borrow {
    pub(crate) fn grant(self, key: &str) {
        self.answer(Ok(granted(key)));
    }

    pub(crate) fn is_worker(&self) -> bool {
        self.message.max_worker_for_trace_id > 0
    }
}

impl KeepAlive {
    pub(crate) fn say(self, status: keep_alive_response::Status) {
        let mut body = KeepAliveResponse::default();
        body.set_status(status);
        self.answer(Ok(Response::new(body)));
    }

    pub(crate) fn extend(self) {
        self.say(keep_alive_response::Status::TtlExtended);
    }
}

impl Return {
    pub(crate) fn say(self, status: return_worker_response::Status) {
        let mut body = ReturnWorkerResponse::default();
        body.set_status(status);
        self.answer(Ok(Response::new(body)));
    }

    pub(crate) fn take(self) {
        self.say(return_worker_response::Status::Returned);
    }
}

pub(crate) fn granted(key: &str) -> Response<BorrowWorkerResponse> {
    let mut body = BorrowWorkerResponse { worker_key: key.to_owned(), ..Default::default() };
    body.set_status(BorrowStatus::Borrowed);
    Response::new(body)
}

pub(crate) fn answer_with_status(
    status: BorrowStatus,
    key: &str,
) -> Response<BorrowWorkerResponse> {
    let mut response = granted(key);
    response.get_mut().set_status(status);
    response
}

/// The answer to the borrow of a worker that the server cannot decide on now.
pub(crate) fn undecided() -> Response<BorrowWorkerResponse> {
    let mut response = answer_with_status(BorrowStatus::ResourceExhausted, "");
    response.metadata_mut().insert("x-denied-scope", "server".parse().unwrap());
    response
}

/// Any call.
pub(crate) enum Call {
    Borrow(Borrow),
    KeepAlive(KeepAlive),
    Return(Return),
}

struct Service(mpsc::UnboundedSender<Call>);

impl Service {
    async fn ask<Q, A>(
        &self,
        request: Request<Q>,
        call: impl FnOnce(Asked<Q, A>) -> Call,
    ) -> Result<Response<A>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (answer, answered) = oneshot::channel();
        let asked = Asked { message, metadata, at: Instant::now(), answer };
        self.0.send(call(asked)).map_err(|_| Status::unavailable("the test is over"))?;
        answered.await.unwrap_or_else(|_| Err(Status::unavailable("the test gave no answer")))
    }
}

#[tonic::async_trait]
impl WorkerPool for Service {
    async fn workers_state(
        &self,
        _: Request<WorkersStateRequest>,
    ) -> Result<Response<WorkersStateResponse>, Status> {
        Ok(Response::new(WorkersStateResponse::default()))
    }

    async fn borrow_worker(
        &self,
        request: Request<BorrowWorkerRequest>,
    ) -> Result<Response<BorrowWorkerResponse>, Status> {
        self.ask(request, Call::Borrow).await
    }

    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveResponse>, Status> {
        self.ask(request, Call::KeepAlive).await
    }

    async fn return_worker(
        &self,
        request: Request<ReturnWorkerRequest>,
    ) -> Result<Response<ReturnWorkerResponse>, Status> {
        self.ask(request, Call::Return).await
    }
}

/// One stream of batched keep-alives. All its answers come from the test.
pub(crate) struct Attached {
    batches: Streaming<AttachRequest>,
    events: mpsc::UnboundedSender<Result<AttachResponse, Status>>,
    pub(crate) metadata: MetadataMap,
}

impl Attached {
    /// Waits for the next batch; `None` when the client ended the stream.
    pub(crate) async fn batch(&mut self) -> Option<AttachRequest> {
        self.batches.message().await.ok().flatten()
    }

    pub(crate) fn say(&self, event: Event) {
        let response = AttachResponse { event: Some(event) };
        self.events.send(Ok(response)).expect("the client reads its stream");
    }

    /// Says that every key of the batch has its full TTL again.
    pub(crate) fn extend(&self, batch: &AttachRequest) {
        self.say(Event::Answer(BatchAnswer { batch: batch.batch, ..BatchAnswer::default() }));
    }

    /// Ends the stream with a status.
    pub(crate) fn fail(self, status: Status) {
        self.events.send(Err(status)).expect("the client reads its stream");
    }
}

struct Control(mpsc::UnboundedSender<Attached>);

#[tonic::async_trait]
impl SessionControl for Control {
    type AttachStream = UnboundedReceiverStream<Result<AttachResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (metadata, _, batches) = request.into_parts();
        let (events, answers) = mpsc::unbounded_channel();
        let attached = Attached { batches, events, metadata };
        self.0.send(attached).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(answers)))
    }
}

/// The scripted server, and the pipes through which pools connect to it.
pub(crate) struct Script {
    calls: mpsc::UnboundedReceiver<Call>,
    reachable: Arc<AtomicBool>,
    pipes: mpsc::UnboundedSender<io::Result<DuplexStream>>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::serving(None)
    }

    /// As [`Script::new`], but the server also accepts streams of batched keep-alives.
    pub(crate) fn attachable() -> (Self, mpsc::UnboundedReceiver<Attached>) {
        let (streams, attached) = mpsc::unbounded_channel();
        (Self::serving(Some(SessionControlServer::new(Control(streams)))), attached)
    }

    fn serving(control: Option<SessionControlServer<Control>>) -> Self {
        let (calls, asked) = mpsc::unbounded_channel();
        let (pipes, connections) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        let service = WorkerPoolServer::new(Service(calls));
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .add_optional_service(control)
                .serve_with_incoming(UnboundedReceiverStream::new(connections)),
        );
        Self { calls: asked, reachable: Arc::new(AtomicBool::new(true)), pipes }
    }

    /// A pool with these parameters, on a connection of its own.
    pub(crate) fn pool(&self, parameters: &str) -> Pool {
        self.pool_past(parameters, |server| server)
    }

    /// As [`Script::pool`], but `past` puts something between the pool and the server.
    pub(crate) fn pool_past(
        &self,
        parameters: &str,
        past: impl Fn(DuplexStream) -> DuplexStream + Send + Sync + 'static,
    ) -> Pool {
        Pool::new(Arc::new(self.plugin_past(parameters, past)))
    }

    /// As [`Script::pool`], without guards.
    pub(crate) fn plugin(&self, parameters: &str) -> TgmPool {
        self.plugin_past(parameters, |server| server)
    }

    fn plugin_past(
        &self,
        parameters: &str,
        past: impl Fn(DuplexStream) -> DuplexStream + Send + Sync + 'static,
    ) -> TgmPool {
        let dsn = Dsn::parse(&format!("tgm://scripted?plaintext=true&{parameters}")).unwrap();
        let config = TgmConfig::from_dsn(&dsn).unwrap();
        let (open, pipes) = (self.reachable.clone(), self.pipes.clone());
        let connect = move || {
            let (near, far) = duplex(64 * 1024);
            let connected = open.load(Ordering::Relaxed) && pipes.send(Ok(far)).is_ok();
            let near = past(near);
            async move { connected.then_some(near).ok_or(io::ErrorKind::ConnectionRefused.into()) }
        };
        TgmPool::with_connector(&config, connect).unwrap()
    }

    /// Refuses new connections, or accepts them again. Open connections stay open.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        self.reachable.store(reachable, Ordering::Relaxed);
    }

    /// Waits for the next call, for at most one hour of virtual time.
    pub(crate) async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(Duration::from_secs(3600), self.calls.recv()).await;
        call.expect("a call").expect("the service lives as long as the script")
    }

    pub(crate) async fn borrow(&mut self) -> Borrow {
        match self.call().await {
            Call::Borrow(borrow) => borrow,
            call => panic!("not a borrow: {}", call.name()),
        }
    }

    /// Waits for the next borrow, and answers the keep-alives that come before it.
    pub(crate) async fn borrow_amid_beats(&mut self) -> Borrow {
        loop {
            match self.call().await {
                Call::Borrow(borrow) => return borrow,
                Call::KeepAlive(beat) => beat.extend(),
                Call::Return(_) => panic!("nothing was released"),
            }
        }
    }

    pub(crate) async fn keep_alive(&mut self) -> KeepAlive {
        match self.call().await {
            Call::KeepAlive(keep_alive) => keep_alive,
            call => panic!("not a keep-alive: {}", call.name()),
        }
    }

    pub(crate) async fn give_back(&mut self) -> Return {
        match self.call().await {
            Call::Return(give_back) => give_back,
            call => panic!("not a return: {}", call.name()),
        }
    }

    /// Checks that no call comes during this time.
    pub(crate) async fn hears_nothing_for(&mut self, time: Duration) {
        if let Ok(call) = tokio::time::timeout(time, self.call()).await {
            panic!("an unexpected {}", call.name());
        }
    }

    /// Grants the next borrow while `borrow` waits for it.
    pub(crate) async fn grant<T>(&mut self, key: &str, borrow: impl Future<Output = T>) -> T {
        let (borrowed, ()) = tokio::join!(borrow, async { self.borrow().await.grant(key) });
        borrowed
    }

    /// Borrows a session that the server grants as `key`.
    pub(crate) async fn session(&mut self, pool: &Pool, key: &str) -> tgm_session::Session {
        self.grant(key, pool.borrow(stream())).await.unwrap()
    }

    /// Borrows a worker that the server grants as `key`.
    pub(crate) async fn worker(
        &mut self,
        session: &tgm_session::Session,
        key: &str,
    ) -> tgm_session::Worker {
        self.grant(key, session.borrow_worker("t2w", 10)).await.unwrap()
    }
}

impl Call {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Borrow(call) => format!("borrow {:?}", call.message),
            Self::KeepAlive(call) => format!("keep-alive {:?}", call.message),
            Self::Return(call) => format!("return {:?}", call.message),
        }
    }
}

pub(crate) fn stream() -> SessionRequest {
    SessionRequest::new("t1r", "acme").api_key("key-1").trace("trace-1")
}
