//! Passes calls on to the leader, and tells it what became of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use connect::grpc::{NotPassedOn, OpenRequest, pass_on};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri};
use http_body::Body as HttpBody;
use store::fleet::Leader;
use store::{Delivery, Unavailable};
use tokio::time::sleep;
use tonic::Status;
use tonic::codegen::StdError;
use tonic::metadata::MetadataValue;

use super::headers::{NOT_LEADING, TIMEOUT, passed_on};
use super::routing::{AGAIN_AFTER, Fleet, Patience, Route, no_leader};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What the standby says when the caller has the answer, and when the caller is gone.
const HANDED_ON: &[u8] = b"1";
const CALLER_GONE: &[u8] = b"0";

/// How long the leader waits for one of them. A caller has less time to read an answer.
const REPORT_WITHIN: Duration = Duration::from_secs(120);

const BORROW_ID: HeaderName = HeaderName::from_static("x-borrow-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");

/// A call to pass on.
#[derive(Debug)]
pub(crate) struct Outgoing {
    path: &'static str,
    metadata: HeaderMap,
    /// The message with its frame, not compressed.
    message: Bytes,
    peer: Option<SocketAddr>,
    indexer: Option<Box<str>>,
    is_borrow: bool,
    /// When the caller gives up.
    deadline: Option<tokio::time::Instant>,
}

/// The answer to a call that was passed on.
#[derive(Debug)]
pub(crate) struct PassedOn {
    pub(crate) metadata: HeaderMap,
    /// The message with its frame.
    pub(crate) message: Bytes,
    /// Tells the leader whether the caller got the answer, where that matters.
    pub(crate) handed_on: Option<HandedOn>,
}

/// Tells the leader that the caller got the answer of a borrow. If it is dropped instead, it tells that
/// the caller is gone, and the leader takes the lease back.
#[derive(Debug)]
pub(crate) struct HandedOn(Option<OpenRequest>);

impl HandedOn {
    pub(crate) fn complete(mut self) {
        if let Some(request) = self.0.take() {
            request.end(HANDED_ON);
        }
    }
}

impl Drop for HandedOn {
    fn drop(&mut self) {
        if let Some(request) = self.0.take() {
            request.end(CALLER_GONE);
        }
    }
}

impl Outgoing {
    /// A call of `path` with this metadata and message. `timeout` is how long the caller waits.
    pub(crate) fn new(
        fleet: &Fleet,
        path: &'static str,
        metadata: &HeaderMap,
        message: Bytes,
        (peer, indexer): (Option<SocketAddr>, Option<&str>),
        is_borrow: bool,
        timeout: Option<Duration>,
    ) -> Self {
        let mut passed = passed_on(metadata);
        passed.insert(CONTENT_TYPE, GRPC);
        passed.insert(TE, HeaderValue::from_static("trailers"));
        if is_borrow && !passed.contains_key(BORROW_ID) {
            // So that it can be sent again, whatever became of it.
            passed.insert(BORROW_ID, fleet.borrow_id());
        }
        Self {
            path,
            metadata: passed,
            message,
            peer,
            indexer: indexer.map(Into::into),
            is_borrow,
            deadline: timeout.and_then(|time| tokio::time::Instant::now().checked_add(time)),
        }
    }

    /// The metadata of the call, with its borrow id.
    pub(crate) const fn metadata(&self) -> &HeaderMap {
        &self.metadata
    }

    /// The message of the call, with its frame.
    pub(crate) fn into_message(self) -> Bytes {
        self.message
    }

    /// How long the caller still waits, if it has said so.
    fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()))
    }

    /// Whether the call counts once, however often it is sent.
    fn may_be_repeated(&self) -> bool {
        self.metadata.contains_key(BORROW_ID) || self.metadata.contains_key(IDEMPOTENCY_KEY)
    }

    fn request(&self, fleet: &Fleet, leader: &Leader) -> Option<Request<()>> {
        let mut uri = fleet.uri(leader).ok()?.into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static(self.path));
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(uri).ok()?;
        *request.method_mut() = Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.metadata.clone();
        let headers = request.headers_mut();
        if let Some(left) = self.time_left() {
            // At most eight digits.
            let left = format!("{}m", left.as_millis().clamp(1, 99_999_999));
            headers.insert(TIMEOUT, HeaderValue::try_from(left).ok()?);
        }
        fleet.add_origin(headers, leader, self.peer, self.indexer.as_deref());
        Some(request)
    }
}

/// What one attempt to pass a call on has come to.
enum Attempt {
    Answered(PassedOn),
    /// The leader has answered with this status.
    Refused(Status),
    /// The call was certainly not applied.
    NotApplied,
    /// The call may have been applied.
    Unknown,
    /// The call may have been applied, and another server leads now.
    Replaced,
}

impl Fleet {
    /// Passes a call on to the leader, and waits for a leader at first, within `patience`. Returns `None`
    /// when this server leads now.
    ///
    /// A call is sent again if it was certainly not applied, or if it counts once however often it is
    /// sent.
    pub(crate) async fn pass_on(
        &self,
        call: &Outgoing,
        patience: &Patience,
    ) -> Option<Result<PassedOn, Status>> {
        let mut patience = *patience;
        loop {
            let leader = match self.route(&patience).await {
                None => return Some(Err(no_leader())),
                Some(Route::Here) => return None,
                Some(Route::To(leader)) => leader,
            };
            match self.try_once(call, &leader).await {
                Attempt::Answered(answer) => return Some(Ok(answer)),
                Attempt::Refused(status) => return Some(Err(status)),
                Attempt::Unknown | Attempt::Replaced if !call.may_be_repeated() => {
                    let problem = "the leader of the fleet is gone, and the outcome is unknown";
                    return Some(Err(Status::unavailable(problem)));
                }
                Attempt::NotApplied | Attempt::Unknown if patience.is_over() => {
                    return Some(Err(no_leader()));
                }
                // Until now nobody waited for a leader.
                Attempt::Replaced => patience = Patience::new(call.time_left()),
                // A new leader is known within that time, or this one serves.
                Attempt::NotApplied | Attempt::Unknown => sleep(AGAIN_AFTER).await,
            }
        }
    }

    async fn try_once(&self, call: &Outgoing, leader: &Leader) -> Attempt {
        let connection = match self.connection(leader) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(address = %leader.address, %error, "the leader cannot be reached");
                return Attempt::NotApplied;
            }
        };
        let Some(request) = call.request(self, leader) else { return Attempt::NotApplied };
        self.forwarded.inc();
        let answer = pass_on(&connection, request, call.message.clone(), call.is_borrow);
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            // A leader that hands over answers what it has begun. One that hangs answers no more.
            () = self.hangs_after_term(leader.id, call.may_be_repeated()) => {
                return Attempt::Replaced;
            }
        };
        match answer {
            Ok(connect::grpc::PassedOn { metadata, message, request }) => {
                let handed_on = call.is_borrow.then(|| HandedOn(Some(request)));
                Attempt::Answered(PassedOn { metadata, message, handed_on })
            }
            Err(NotPassedOn::Refused(status)) => {
                if status.metadata().contains_key(NOT_LEADING) {
                    Attempt::NotApplied
                } else {
                    Attempt::Refused(status)
                }
            }
            Err(NotPassedOn::NotHandled(status)) => {
                tracing::debug!(%status, "a call was not passed on");
                Attempt::NotApplied
            }
            Err(NotPassedOn::Unknown(status)) => {
                tracing::debug!(%status, "a call was passed on and has no answer");
                Attempt::Unknown
            }
        }
    }
}

/// The answer to a call that another server has passed on, of a server that does not lead.
pub(crate) fn answer_not_leading() -> Status {
    let mut status = Status::unavailable("this server does not lead the fleet");
    status.metadata_mut().insert(NOT_LEADING, MetadataValue::from_static("1"));
    status
}

/// Whether a status says that the store does not lead, so that the call was not applied.
pub(crate) fn is_not_leading(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    let error = source.and_then(|source| source.downcast_ref::<Unavailable>());
    error.is_some_and(|error| error.is_for_the_leader())
}

/// Waits until the standby that passed a borrow on tells what became of its answer. If the caller is
/// gone, the lease is taken back. If the standby is gone, the caller may have the lease: it ends one TTL
/// later if nobody keeps it alive.
pub(crate) async fn report<B>(mut body: B, delivery: Delivery)
where
    B: HttpBody<Data = Bytes, Error: Into<StdError>> + Unpin,
{
    let mut delivery = Unreported(Some(delivery));
    let word = async {
        loop {
            let frame =
                std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context));
            match frame.await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return data[..] == *CALLER_GONE,
                    Err(_) => {}
                },
                // A standby that has handed the answer on says so before it ends the call.
                Some(Err(error)) => return was_cancelled(&*error.into()),
                // hyper ends a body that was cancelled as if it were complete.
                None => return true,
            }
        }
    };
    if let Ok(true) = tokio::time::timeout(REPORT_WITHIN, word).await {
        drop(delivery.0.take());
    }
}

/// Whether the other end has cancelled the call, over a connection that works.
fn was_cancelled(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let error = causes.find_map(|error| error.downcast_ref::<h2::Error>());
    error.is_some_and(|error| error.is_reset() && error.is_remote())
}

/// The delivery of an answer of which nothing is known. The lease stays when this is dropped.
struct Unreported(Option<Delivery>);

impl Drop for Unreported {
    fn drop(&mut self) {
        if let Some(delivery) = self.0.take() {
            delivery.complete();
        }
    }
}
