//! Passes calls on to the leader, and tells it what became of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use connect::grpc::{NotPassedOn, OpenRequest, pass_on};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{Method, Request};
use http_body::Body as HttpBody;
use store::fleet::Leader;
use store::{Delivery, Unavailable};
use tonic::Status;
use tonic::codegen::StdError;
use tonic::metadata::MetadataValue;

use super::headers::passed_on;
use super::routing::{Fleet, Patience, no_leader, unreachable};
use crate::headers::{BORROW_ID, FLEET_NOT_LEADING, GRPC_TIMEOUT, IDEMPOTENCY_KEY};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What the standby says when the caller has the answer, and when the caller is gone.
const HANDED_ON: &[u8] = b"1";
const CALLER_GONE: &[u8] = b"0";

/// How long the leader waits for one of them. A caller has less time to read an answer.
const REPORT_WITHIN: Duration = Duration::from_secs(120);

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

    fn request(&self, fleet: &Fleet, leader: &Leader) -> Result<Request<()>, Status> {
        let mut request = Request::new(());
        *request.uri_mut() = fleet.uri(leader, PathAndQuery::from_static(self.path))?;
        *request.method_mut() = Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.metadata.clone();
        let headers = request.headers_mut();
        if let Some(left) = self.time_left() {
            // At most eight digits.
            let left = format!("{}m", left.as_millis().clamp(1, 99_999_999));
            let left = HeaderValue::try_from(left).expect("digits are text");
            headers.insert(GRPC_TIMEOUT, left);
        }
        fleet.add_origin(headers, leader, self.peer, self.indexer.as_deref());
        Ok(request)
    }
}

/// Why one attempt to pass a call on has no answer.
enum Failed {
    /// The leader has answered with this status.
    Refused(Status),
    /// The call was certainly not applied. The status says why.
    NotApplied(Status),
    /// The call may have been applied. The status says why there is no answer.
    Unknown(Status),
    /// The call may have been applied, and another server leads now.
    Replaced,
}

impl From<NotPassedOn> for Failed {
    fn from(error: NotPassedOn) -> Self {
        match error {
            NotPassedOn::Refused(status) if status.metadata().contains_key(FLEET_NOT_LEADING) => {
                Self::NotApplied(no_leader())
            }
            NotPassedOn::Refused(status) => Self::Refused(status),
            NotPassedOn::NotHandled(status) => Self::NotApplied(unreachable(status.message())),
            NotPassedOn::Unknown(status) => Self::Unknown(unreachable(status.message())),
        }
    }
}

impl Fleet {
    /// Passes a call on to the leader, and waits for a leader at first, within `patience`. Returns `None`
    /// when this server leads now.
    ///
    /// A call is sent again if it was certainly not applied, or if it counts once however often it is
    /// sent.
    ///
    /// # Errors
    ///
    /// The status of the leader, or `UNAVAILABLE` when there is no answer.
    pub(crate) async fn pass_on(
        &self,
        call: &Outgoing,
        patience: &mut Patience,
    ) -> Result<Option<PassedOn>, Status> {
        loop {
            let Some(leader) = self.route(patience).await? else { return Ok(None) };
            let why = match self.try_once(call, &leader).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(Failed::Refused(status)) => return Err(status),
                Err(Failed::Unknown(_) | Failed::Replaced) if !call.may_be_repeated() => {
                    let problem = "the leader of the fleet is gone, and the outcome is unknown";
                    return Err(Status::unavailable(problem));
                }
                Err(Failed::Replaced) => {
                    // Until now nobody waited for a leader.
                    *patience = Patience::new(call.time_left());
                    continue;
                }
                Err(Failed::NotApplied(why) | Failed::Unknown(why)) => why,
            };
            // A new leader is known after a while, or this one serves.
            if !patience.wait().await {
                return Err(why);
            }
        }
    }

    async fn try_once(&self, call: &Outgoing, leader: &Leader) -> Result<PassedOn, Failed> {
        let connection = self.connection(leader).map_err(Failed::NotApplied)?;
        let request = call.request(self, leader).map_err(Failed::NotApplied)?;
        self.forwarded.inc();
        let answer = pass_on(&connection, request, call.message.clone(), call.is_borrow);
        let answer = tokio::select! {
            biased;
            answer = answer => answer?,
            // A leader that hands over answers what it has begun. One that hangs answers no more.
            () = self.hangs_after_term(leader.id, call.may_be_repeated()) => {
                return Err(Failed::Replaced);
            }
        };
        let connect::grpc::PassedOn { metadata, message, request } = answer;
        let handed_on = call.is_borrow.then(|| HandedOn(Some(request)));
        Ok(PassedOn { metadata, message, handed_on })
    }
}

/// The answer to a call that another server has passed on, of a server that does not lead.
pub(crate) fn answer_not_leading() -> Status {
    let mut status = Status::unavailable("this server does not lead the fleet");
    status.metadata_mut().insert(FLEET_NOT_LEADING, MetadataValue::from_static("1"));
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
pub(crate) async fn wait_for_caller<B>(mut body: B, delivery: Delivery)
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
