//! Unary gRPC over a hyper body: one message in, one message out.
//!
//! The calls of the worker pool are small and many. So they do not use tonic's streaming codec, which
//! buffers and boxes for the general case. The message is read directly from the frames, and the answer
//! is one buffer. The bytes on the wire are the same.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use wire::framing::frame;

use super::framing::{SMALL, no_memory, too_large};
use super::timed_body::{RequestBody, TimedBody, read_failed};
use crate::bounds::{InFlight, PublicStream, reset_call_after};
use crate::config::PortLimits;
use crate::fleet::{HandedOn, PassedOn};

/// How long to wait for a message that is not needed.
const UNWANTED_TIMEOUT: Duration = Duration::from_secs(5);

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// The part of a message that has arrived.
#[derive(Debug)]
pub(super) enum Read {
    /// All of it.
    Whole(Bytes),
    /// Its beginning, which may be empty.
    Partial(Bytes),
}

/// Reads the first frame of a body if it has arrived, without waiting. Most messages are one frame,
/// which is not copied.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when the body cannot be read.
pub(super) async fn read_ready<B: RequestBody>(body: &mut B) -> Result<Read, Status> {
    let frame = poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await;
    let data = match frame {
        Poll::Pending => return Ok(Read::Partial(Bytes::new())),
        Poll::Ready(None) => return Ok(Read::Whole(Bytes::new())),
        Poll::Ready(Some(frame)) => frame.map_err(read_failed)?.into_data().unwrap_or_default(),
    };
    Ok(if body.is_end_stream() { Read::Whole(data) } else { Read::Partial(data) })
}

/// Reads the rest of a body that began with `begun`. The bytes are copied, since a frame may keep much
/// more memory alive than it has bytes. They are taken from the memory of the call, except for a small
/// message.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when it is too large or cannot be read to its end, `UNAVAILABLE` when it does
/// not arrive in time or there is no memory for it.
pub(super) async fn read<B: RequestBody>(
    body: &mut B,
    begun: Bytes,
    limits: &PortLimits,
    call: &mut InFlight,
) -> Result<Bytes, Status> {
    let (most, within) = (limits.max_message_bytes as usize, limits.request_timeout);
    read_into(body, begun, most, within, |bytes| call.take(bytes).map_err(no_memory)).await
}

/// Reads a small message, such as a borrow, for which there is no memory.
///
/// # Errors
///
/// As [`read`], with a shorter timeout.
pub(super) async fn read_small<B: RequestBody>(
    body: &mut B,
    limits: &PortLimits,
) -> Result<Bytes, Status> {
    let within = limits.request_timeout.min(UNWANTED_TIMEOUT);
    read_into(body, Bytes::new(), SMALL, within, |_| Ok(())).await
}

async fn read_into<B: RequestBody>(
    body: &mut B,
    begun: Bytes,
    most: usize,
    within: Duration,
    mut take: impl FnMut(usize) -> Result<(), Status>,
) -> Result<Bytes, Status> {
    let mut message = BytesMut::new();
    let mut body = TimedBody::new(body, within);
    let mut next = Some(begun);
    while let Some(data) = next {
        let length = message.len() + data.len();
        if length > most {
            return Err(too_large(most));
        }
        take(length.saturating_sub(SMALL).min(data.len()))?;
        message.extend_from_slice(&data);
        drop(data);
        if !message.is_empty() && body.is_at_end() {
            break;
        }
        next = body.data().await?;
    }
    Ok(message.freeze())
}

/// Reads a body that is not needed, and keeps nothing of it.
pub(super) async fn discard<B: RequestBody>(body: &mut B, limits: &PortLimits) {
    let mut left = limits.max_message_bytes as usize;
    let mut body = TimedBody::new(body, limits.request_timeout.min(UNWANTED_TIMEOUT));
    while let Ok(Some(data)) = body.data().await {
        let Some(rest) = left.checked_sub(data.len()) else { return };
        left = rest;
    }
}

/// A successful answer: a message, initial metadata and, for a granted borrow, the delivery that takes
/// the lease back if the answer is lost.
#[derive(Debug)]
pub(crate) struct Answer {
    message: Bytes,
    metadata: HeaderMap,
    delivery: Option<Delivery>,
}

/// What has to know whether the caller got an answer. Dropping it says that the answer is lost.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The store of this server.
    Here(store::Delivery),
    /// The leader of the fleet.
    Leader(HandedOn),
}

impl Delivery {
    /// The answer was handed to the transport.
    fn complete(self) {
        match self {
            Self::Here(delivery) => delivery.complete(),
            Self::Leader(handed_on) => handed_on.complete(),
        }
    }
}

impl From<PassedOn> for Answer {
    fn from(PassedOn { metadata, message, handed_on }: PassedOn) -> Self {
        Self { message, metadata, delivery: handed_on.map(Delivery::Leader) }
    }
}

impl Answer {
    pub(crate) fn new(message: &impl prost::Message) -> Self {
        let mut metadata = HeaderMap::with_capacity(4);
        metadata.insert(CONTENT_TYPE, GRPC);
        Self { message: frame(message), metadata, delivery: None }
    }

    pub(crate) fn metadata(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.metadata.insert(name, value.into());
        self
    }

    /// The length of the message with its frame.
    pub(crate) const fn len(&self) -> usize {
        self.message.len()
    }

    pub(crate) fn delivery(self, delivery: store::Delivery) -> Self {
        Self { delivery: Some(Delivery::Here(delivery)), ..self }
    }

    /// The parts of an answer that this server gave: the metadata, the message with its frame, and the
    /// delivery to the store.
    pub(super) fn into_parts(self) -> (HeaderMap, Bytes, Option<store::Delivery>) {
        let Self { message, metadata, delivery } = self;
        let delivery = match delivery {
            Some(Delivery::Here(delivery)) => Some(delivery),
            Some(Delivery::Leader(_)) | None => None,
        };
        (metadata, message, delivery)
    }

    pub(crate) fn into_http(self) -> http::Response<Body> {
        let Self { message, metadata, delivery } = self;
        let mut response =
            http::Response::new(Body::from_kind(BodyKind::Message { message, delivery }));
        *response.headers_mut() = metadata;
        response
    }
}

/// The body of a response of the gRPC port. Its call is in flight until the answer was written.
#[derive(Debug)]
pub(crate) struct Body {
    kind: BodyKind,
    call: Option<InFlight>,
}

/// The place of a stream of a public service.
#[derive(Debug)]
pub(super) struct PublicPlace {
    pub(super) _on_connection: PublicStream,
    pub(super) _on_server: OwnedSemaphorePermit,
}

/// A message that is being sent. Its call is in flight until the message was written.
struct SentMessage {
    message: Bytes,
    _call: InFlight,
}

impl AsRef<[u8]> for SentMessage {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

#[derive(Debug)]
enum BodyKind {
    /// One message to send.
    Message { message: Bytes, delivery: Option<Delivery> },
    /// The status after the message. The transport polls it when it had room for the message; then the
    /// answer counts as handed over.
    Trailers { delivery: Option<Delivery> },
    /// Nothing is left to send.
    Done,
    /// The answer of a tonic service, with the place that it holds.
    Tonic { body: tonic::body::Body, is_stream: bool, _place: Option<PublicPlace> },
}

impl Body {
    /// An empty body.
    pub(crate) const fn none() -> Self {
        Self::from_kind(BodyKind::Done)
    }

    /// The streaming answer of a tonic service.
    pub(crate) const fn stream(body: tonic::body::Body) -> Self {
        Self::from_kind(BodyKind::Tonic { body, is_stream: true, _place: None })
    }

    /// The answer of a public service: a stream that holds `place`, or one short answer without a place.
    pub(super) fn public(body: tonic::body::Body, place: Option<PublicPlace>) -> Self {
        Self::from_kind(BodyKind::Tonic { body, is_stream: place.is_some(), _place: place })
    }

    const fn from_kind(kind: BodyKind) -> Self {
        Self { kind, call: None }
    }

    /// Whether the answer is a stream, which may stay open.
    pub(crate) const fn is_stream(&self) -> bool {
        matches!(self.kind, BodyKind::Tonic { is_stream: true, .. })
    }
}

/// Attaches a call to its response.
pub(super) trait ForCall {
    /// Returns the response with its call, which is in flight until the answer was written. An answer
    /// that is not read in time is reset.
    fn for_call(self, call: InFlight) -> Self;
}

impl ForCall for http::Response<Body> {
    fn for_call(self, call: InFlight) -> Self {
        if !self.body().is_stream() {
            reset_call_after(call.connection().answer_timeout());
        }
        self.map(|body| Body { call: Some(call), ..body })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let BodyKind::Tonic { body, .. } = &mut self.kind {
            return Pin::new(body).poll_frame(context);
        }
        let (frame, next) = match std::mem::replace(&mut self.kind, BodyKind::Done) {
            BodyKind::Message { message, delivery } => {
                // HTTP/2 may keep the message after the body was dropped, until the caller reads it.
                let message = match self.call.take() {
                    Some(call) => Bytes::from_owner(SentMessage { message, _call: call }),
                    None => message,
                };
                (Frame::data(message), BodyKind::Trailers { delivery })
            }
            BodyKind::Trailers { delivery } => {
                if let Some(delivery) = delivery {
                    delivery.complete();
                }
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, OK);
                (Frame::trailers(trailers), BodyKind::Done)
            }
            BodyKind::Done | BodyKind::Tonic { .. } => return Poll::Ready(None),
        };
        self.kind = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Message { .. } | BodyKind::Trailers { .. } => false,
            BodyKind::Done => true,
            BodyKind::Tonic { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Tonic { body, .. } => body.size_hint(),
            // Not exact: otherwise hyper would send a content-length, which gRPC does not use.
            _ => SizeHint::default(),
        }
    }
}

/// A response with a status and no message.
pub(crate) fn refuse(status: Status) -> http::Response<Body> {
    status.into_http::<()>().map(|()| Body::none())
}

/// A response with an HTTP status only.
pub(super) fn status_only(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::none());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;
    use http_body_util::StreamBody;

    use super::*;

    /// Reads a message of `length` bytes, the first of which was read before, without free memory.
    async fn read_without_memory(length: usize) -> Result<Bytes, Status> {
        let message = Bytes::from(vec![7; length]);
        let pieces = message.slice(1..);
        let pieces = pieces
            .chunks(100)
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))));
        let mut body = StreamBody::new(iter(pieces.collect::<Vec<_>>()));
        let take = |bytes| match bytes {
            0 => Ok(()),
            _ => Err(Status::unavailable("there is no memory")),
        };
        read_into(&mut body, message.slice(..1), 1 << 16, Duration::from_secs(1), take).await
    }

    #[tokio::test]
    async fn a_message_as_small_as_a_borrow_is_read_where_there_is_no_memory() {
        assert_eq!(read_without_memory(SMALL).await.unwrap().len(), SMALL);
        assert!(read_without_memory(SMALL + 1).await.is_err());
        let id = "i".repeat(lease::MAX_ID_BYTES);
        let borrow = wire::worker::BorrowWorkerRequest {
            service: id.clone(),
            organization_id: id.clone(),
            api_key_id: id.clone(),
            trace_id: id,
            max_worker_for_trace_id: i64::MAX,
        };
        let room_for_gzip = 24;
        assert!(
            wire::framing::PREFIX_BYTES + prost::Message::encoded_len(&borrow) + room_for_gzip
                <= SMALL
        );
    }
}
