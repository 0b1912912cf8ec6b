//! Passes calls on to the leader.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{Method, Request};
use store::Unavailable;
use store::fleet::Leader;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::headers::{is_passed_on, passed_on};
use super::link::{ANSWER_AFTER_TERM, Answered, Fields, HandedOn, Lost};
use super::routing::{Fleet, Patience, no_leader, unreachable};
use crate::headers::{BORROW_ID, FLEET_NOT_LEADING, GRPC_TIMEOUT, IDEMPOTENCY_KEY};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: &str = "grpc-status";

/// How a call is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// A link, which small calls share. An answer that grants a lease is taken back if it does not reach
    /// the caller.
    Link { is_borrow: bool },
    /// A stream of its own, because its message may be large.
    Stream,
}

/// A call to pass on.
#[derive(Debug)]
pub(crate) struct Outgoing<'c> {
    path: &'static str,
    over: Over,
    metadata: &'c HeaderMap,
    /// The borrow id of a borrow that came without one.
    borrow_id: Option<HeaderValue>,
    /// The message with its frame, not compressed.
    message: Bytes,
    peer: Option<SocketAddr>,
    indexer: Option<&'c str>,
    /// When the caller gives up.
    deadline: Option<Instant>,
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

impl<'c> Outgoing<'c> {
    /// A call of `path` with this metadata and message. `timeout` is how long the caller waits.
    pub(crate) fn new(
        fleet: &Fleet,
        (path, over): (&'static str, Over),
        metadata: &'c HeaderMap,
        message: Bytes,
        (peer, indexer): (Option<SocketAddr>, Option<&'c str>),
        timeout: Option<Duration>,
    ) -> Self {
        let is_borrow = over == Over::Link { is_borrow: true };
        // So that it can be sent again, whatever became of it.
        let borrow_id = (is_borrow && !metadata.contains_key(BORROW_ID)).then(|| fleet.borrow_id());
        let deadline = timeout.and_then(|time| Instant::now().checked_add(time));
        Self { path, over, metadata, borrow_id, message, peer, indexer, deadline }
    }

    /// The metadata of the call, with its borrow id.
    pub(crate) fn metadata(&self) -> Cow<'c, HeaderMap> {
        let Some(id) = &self.borrow_id else { return Cow::Borrowed(self.metadata) };
        let mut metadata = self.metadata.clone();
        metadata.insert(BORROW_ID, id.clone());
        Cow::Owned(metadata)
    }

    /// The message of the call, with its frame.
    pub(crate) fn into_message(self) -> Bytes {
        self.message
    }

    /// How long the caller still waits, if it has said so.
    fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The header that tells how long the caller still waits.
    fn timeout(&self) -> Option<HeaderValue> {
        // At most eight digits.
        let left = format!("{}m", self.time_left()?.as_millis().clamp(1, 99_999_999));
        Some(HeaderValue::try_from(left).expect("digits are text"))
    }

    /// Whether the call counts once, however often it is sent.
    fn may_be_repeated(&self) -> bool {
        let has = |name| self.metadata.contains_key(name);
        self.borrow_id.is_some() || has(BORROW_ID) || has(IDEMPOTENCY_KEY)
    }

    /// Writes the fields of the record for a link.
    fn write(&self, fields: &mut Fields<'_>) {
        fields.path(self.path);
        match self.peer.map(|peer| peer.ip()) {
            Some(IpAddr::V4(address)) => fields.peer(&address.octets()),
            Some(IpAddr::V6(address)) => fields.peer(&address.octets()),
            None => {}
        }
        if let Some(indexer) = self.indexer {
            fields.indexer(indexer);
        }
        for (name, value) in self.metadata {
            if is_passed_on(name) {
                fields.header(name, value);
            }
        }
        if let Some(id) = &self.borrow_id {
            fields.header(&BORROW_ID, id);
        }
        if let Some(left) = self.timeout() {
            fields.header(&GRPC_TIMEOUT, &left);
        }
        fields.message(&self.message);
    }

    /// The request for a stream of its own.
    fn request(&self, fleet: &Fleet, leader: &Leader) -> Result<Request<()>, Status> {
        let mut request = Request::new(());
        *request.uri_mut() = fleet.uri(leader, PathAndQuery::from_static(self.path))?;
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        *headers = passed_on(self.metadata);
        headers.insert(CONTENT_TYPE, GRPC);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if let Some(left) = self.timeout() {
            headers.insert(GRPC_TIMEOUT, left);
        }
        fleet.add_origin(headers, leader, self.peer, self.indexer);
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

impl Failed {
    /// The leader has answered with this status.
    fn refused(status: Status) -> Self {
        if status.metadata().contains_key(FLEET_NOT_LEADING) {
            Self::NotApplied(no_leader())
        } else {
            Self::Refused(status)
        }
    }
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::NotHandled(status) => Self::NotApplied(unreachable(status.message())),
            Lost::Unknown(status) => Self::Unknown(unreachable(status.message())),
            Lost::Replaced => Self::Replaced,
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
        call: &Outgoing<'_>,
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

    async fn try_once(&self, call: &Outgoing<'_>, leader: &Leader) -> Result<PassedOn, Failed> {
        self.forwarded.inc();
        match call.over {
            Over::Link { is_borrow } => self.try_over_link(call, leader, is_borrow).await,
            Over::Stream => {
                let hangs = async {
                    self.is_replaced(leader.id).await;
                    if !call.may_be_repeated() {
                        sleep(ANSWER_AFTER_TERM).await;
                    }
                };
                tokio::select! {
                    biased;
                    answer = self.try_over_stream(call, leader) => answer,
                    () = hangs => Err(Failed::Replaced),
                }
            }
        }
    }

    async fn try_over_link(
        &self,
        call: &Outgoing<'_>,
        leader: &Leader,
        is_borrow: bool,
    ) -> Result<PassedOn, Failed> {
        let link = self.link(leader).map_err(Failed::NotApplied)?;
        let answered = link.call(call.may_be_repeated(), |fields| call.write(fields)).await?;
        let Answered { metadata, message, handed_on } = answered;
        let status = metadata.contains_key(GRPC_STATUS).then(|| Status::from_header_map(&metadata));
        if let Some(status) = status.flatten() {
            handed_on.forget();
            return Err(Failed::refused(status));
        }
        let handed_on = if is_borrow {
            Some(handed_on)
        } else {
            handed_on.forget();
            None
        };
        Ok(PassedOn { metadata, message, handed_on })
    }

    async fn try_over_stream(
        &self,
        call: &Outgoing<'_>,
        leader: &Leader,
    ) -> Result<PassedOn, Failed> {
        let connection = self.connection(leader).map_err(Failed::NotApplied)?;
        let request = call.request(self, leader).map_err(Failed::NotApplied)?;
        match connect::grpc::call_with_frame(&connection, request, call.message.clone()).await {
            Ok((metadata, message)) => Ok(PassedOn { metadata, message, handed_on: None }),
            // Only a status of the leader has no source.
            Err(status) if std::error::Error::source(&status).is_none() => {
                Err(Failed::refused(status))
            }
            Err(status) => Err(Lost::before_an_answer(status).into()),
        }
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
