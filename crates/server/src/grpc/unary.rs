//! Unary gRPC over a hyper body: one message in, one message out.
//!
//! The calls of the worker pool are small and many, so they do not go through tonic's streaming
//! codec, which buffers and boxes for the general case: the message is read from the frames as
//! they are, and the answer is one buffer. What is on the wire is the same.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use store::Delivery;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::codegen::StdError;

use super::framing::{PREFIX_BYTES, SMALL, full, too_large};
use super::timely::{Timely, broken_off};
use crate::bounds::{InFlight, StreamAside, reset_call_after};
use crate::config::PortLimits;

/// How long a message is waited for that nobody wants.
const UNWANTED_TIMEOUT: Duration = Duration::from_secs(5);

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// What was there of a message.
#[derive(Debug)]
pub(super) enum Read {
    /// All of it.
    Whole(Bytes),
    /// Its beginning, and it may be nothing.
    Begun(Bytes),
}

/// Reads the first frame of a body if it is there, without a wait. Most messages are one frame,
/// which is not copied.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when the body cannot be read.
pub(super) async fn read_at_once<B>(body: &mut B) -> Result<Read, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let frame = poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await;
    let data = match frame {
        Poll::Pending => return Ok(Read::Begun(Bytes::new())),
        Poll::Ready(None) => return Ok(Read::Whole(Bytes::new())),
        Poll::Ready(Some(frame)) => frame.map_err(broken_off)?.into_data().unwrap_or_default(),
    };
    Ok(if body.is_end_stream() { Read::Whole(data) } else { Read::Begun(data) })
}

/// Reads a body to its end that began with `begun`. What is kept of it is copied, since a frame may
/// hold on to much more memory than it has bytes, and taken from the memory of the call, except where
/// it is small.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when it is too large or cannot be read to its end, `UNAVAILABLE` when it does
/// not arrive in time or there is no memory for it.
pub(super) async fn read<B>(
    body: &mut B,
    begun: Bytes,
    limits: &PortLimits,
    call: &mut InFlight,
) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let (most, within) = (limits.max_message_bytes as usize, limits.request_timeout);
    read_into(body, begun, most, within, |bytes| call.take(bytes).map_err(full)).await
}

/// Reads a small message, such as a borrow, for which there is no memory.
///
/// # Errors
///
/// As [`read`], and sooner.
pub(super) async fn read_small<B>(body: &mut B, limits: &PortLimits) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let within = limits.request_timeout.min(UNWANTED_TIMEOUT);
    read_into(body, Bytes::new(), SMALL, within, |_| Ok(())).await
}

async fn read_into<B>(
    body: &mut B,
    begun: Bytes,
    most: usize,
    within: Duration,
    mut take: impl FnMut(usize) -> Result<(), Status>,
) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let mut message = BytesMut::new();
    let mut body = Timely::new(body, within);
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

/// Reads a body that nobody wants, and keeps nothing of it.
pub(super) async fn pass_over<B>(body: &mut B, limits: &PortLimits)
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let mut left = limits.max_message_bytes as usize;
    let mut body = Timely::new(body, limits.request_timeout.min(UNWANTED_TIMEOUT));
    while let Ok(Some(data)) = body.data().await {
        let Some(rest) = left.checked_sub(data.len()) else { return };
        left = rest;
    }
}

/// A good answer: a message, initial metadata and, for a granted borrow, what becomes of the lease
/// if nobody hears of it.
#[derive(Debug)]
pub(crate) struct Answer {
    message: Bytes,
    metadata: HeaderMap,
    delivery: Option<Delivery>,
}

impl Answer {
    pub(crate) fn new(message: &impl prost::Message) -> Self {
        let length = message.encoded_len();
        let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + length);
        buffer.put_u8(0);
        buffer.put_u32(u32::try_from(length).expect("an answer is far smaller than 4 GiB"));
        message.encode_raw(&mut buffer);
        let mut metadata = HeaderMap::with_capacity(4);
        metadata.insert(CONTENT_TYPE, GRPC);
        Self { message: buffer.freeze(), metadata, delivery: None }
    }

    pub(crate) fn metadata(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.metadata.insert(name, value.into());
        self
    }

    /// The bytes of the message, framed.
    pub(crate) const fn len(&self) -> usize {
        self.message.len()
    }

    pub(crate) fn delivery(self, delivery: Delivery) -> Self {
        Self { delivery: Some(delivery), ..self }
    }

    pub(crate) fn into_http(self) -> http::Response<Body> {
        let Self { message, metadata, delivery } = self;
        let mut response =
            http::Response::new(Body::from_kind(Kind::Message { message, delivery }));
        *response.headers_mut() = metadata;
        response
    }
}

/// The body of any response of the gRPC port, with its call, which is in flight until the answer was
/// written.
#[derive(Debug)]
pub(crate) struct Body {
    kind: Kind,
    call: Option<InFlight>,
}

/// A place among the streams that are open to all.
#[derive(Debug)]
pub(super) struct AsidePlace {
    pub(super) _on_connection: StreamAside,
    pub(super) _on_server: OwnedSemaphorePermit,
}

/// A message on its way, with its call, which is in flight until the message was written.
struct Unread {
    message: Bytes,
    _call: InFlight,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

#[derive(Debug)]
enum Kind {
    /// One message to send.
    Message { message: Bytes, delivery: Option<Delivery> },
    /// The status that follows the message. It is taken when the transport had room for the message,
    /// and that is what hands the answer over.
    Trailers { delivery: Option<Delivery> },
    /// Nothing, or nothing more.
    Done,
    /// Whatever a tonic service answers, as long as it takes, with what it holds on to.
    Tonic { body: tonic::body::Body, is_stream: bool, _place: Option<AsidePlace> },
}

impl Body {
    /// No body at all.
    pub(crate) const fn none() -> Self {
        Self::from_kind(Kind::Done)
    }

    /// Whatever a tonic service answers with a stream.
    pub(crate) const fn stream(body: tonic::body::Body) -> Self {
        Self::from_kind(Kind::Tonic { body, is_stream: true, _place: None })
    }

    /// Whatever a tonic service answers, which holds on to `place`; one short answer without it.
    pub(super) fn aside(body: tonic::body::Body, place: Option<AsidePlace>) -> Self {
        Self::from_kind(Kind::Tonic { body, is_stream: place.is_some(), _place: place })
    }

    const fn from_kind(kind: Kind) -> Self {
        Self { kind, call: None }
    }

    /// Whether the answer may take long: it is no message that ends.
    pub(crate) const fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Tonic { is_stream: true, .. })
    }
}

/// Responses that belong to a call.
pub(super) trait OfCall {
    /// The same response; the call is in flight until the answer was written, for which it has so much
    /// time.
    fn of(self, call: InFlight) -> Self;
}

impl OfCall for http::Response<Body> {
    fn of(self, call: InFlight) -> Self {
        if !self.body().is_stream() {
            reset_call_after(call.connection().patience());
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
        if let Kind::Tonic { body, .. } = &mut self.kind {
            return Pin::new(body).poll_frame(context);
        }
        let (frame, next) = match std::mem::replace(&mut self.kind, Kind::Done) {
            Kind::Message { message, delivery } => {
                // HTTP/2 may keep the message long after the body is gone, until the caller reads it.
                let message = match self.call.take() {
                    Some(call) => Bytes::from_owner(Unread { message, _call: call }),
                    None => message,
                };
                (Frame::data(message), Kind::Trailers { delivery })
            }
            Kind::Trailers { delivery } => {
                if let Some(delivery) = delivery {
                    delivery.complete();
                }
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, OK);
                (Frame::trailers(trailers), Kind::Done)
            }
            Kind::Done | Kind::Tonic { .. } => return Poll::Ready(None),
        };
        self.kind = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Message { .. } | Kind::Trailers { .. } => false,
            Kind::Done => true,
            Kind::Tonic { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Tonic { body, .. } => body.size_hint(),
            // Not exact, or hyper would announce a content-length, which gRPC does without.
            _ => SizeHint::default(),
        }
    }
}

/// A response that is a status alone.
pub(crate) fn refuse(status: Status) -> http::Response<Body> {
    status.into_http::<()>().map(|()| Body::none())
}

/// An HTTP status alone.
pub(super) fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::none());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;
    use http_body_util::StreamBody;

    use super::*;

    /// Reads a message of so many bytes, of which the first came before, where there is no memory.
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
        assert!(PREFIX_BYTES + prost::Message::encoded_len(&borrow) + room_for_gzip <= SMALL);
    }
}
