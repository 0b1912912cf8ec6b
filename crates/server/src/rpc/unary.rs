//! Unary gRPC over a hyper body: one message in, one message out.
//!
//! The calls of the worker pool are small and many, so they do not go through tonic's streaming
//! codec, which buffers and boxes for the general case: the message is read from the frames as
//! they are, and the answer is one buffer. What is on the wire is the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::codegen::StdError;

use super::timely::Timely;
use crate::serve::{Connection, OpenStream, PortLimits};
use crate::store::Delivery;

/// The flag and the length in front of every message.
const PREFIX_BYTES: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// Reads the one message of a call from the bytes of its body.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when there is no message, more than one, or one that is not of this type;
/// `UNIMPLEMENTED` when it is compressed.
pub(super) fn decode<M: prost::Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(message(body)?).map_err(unreadable)
}

/// The status of a message that is not what it should be.
pub(crate) fn unreadable(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("the message cannot be read: {error}"))
}

/// The bytes of the one message of a call.
///
/// # Errors
///
/// As [`decode`], but for what is in the message.
pub(crate) fn message(mut body: Bytes) -> Result<Bytes, Status> {
    if body.len() < PREFIX_BYTES {
        return Err(Status::invalid_argument("the call carries no message"));
    }
    let compressed = body.get_u8() != 0;
    let length = body.get_u32() as usize;
    if compressed {
        return Err(Status::unimplemented("compressed messages are not supported"));
    }
    if length != body.len() {
        return Err(Status::invalid_argument("the call carries not exactly one message"));
    }
    Ok(body)
}

/// Reads a body to its end; most have one frame, which is not copied.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when it is too large or cannot be read to its end, `UNAVAILABLE` when it does
/// not arrive in time.
pub(super) async fn read<B>(body: &mut B, limits: &PortLimits) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let most = limits.max_message_bytes as usize;
    let mut body = Timely::new(body, limits.request_timeout);
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(data) = body.data().await? {
        if first.len() + joined.len() + data.len() > most {
            let problem = format!("the message is larger than {most} bytes");
            return Err(Status::invalid_argument(problem));
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut first));
            joined.extend_from_slice(&data);
        }
        if body.is_at_end() {
            break;
        }
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
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

    pub(crate) fn delivery(self, delivery: Delivery) -> Self {
        Self { delivery: Some(delivery), ..self }
    }

    pub(crate) fn into_http(self) -> http::Response<Body> {
        let Self { message, metadata, delivery } = self;
        let mut response = http::Response::new(Body::Message { message, delivery });
        *response.headers_mut() = metadata;
        response
    }
}

/// The body of any response of the gRPC port.
#[derive(Debug)]
pub(crate) enum Body {
    /// One message to send. Taking it is what hands the answer to the transport.
    Message { message: Bytes, delivery: Option<Delivery> },
    /// The status that follows the message.
    Trailers,
    /// Nothing, or nothing more.
    Done,
    /// Whatever a tonic service answers, as long as it takes.
    Tonic { body: tonic::body::Body, _open: Option<OpenStream> },
}

impl Body {
    /// Whatever a tonic service answers.
    pub(crate) fn tonic(body: tonic::body::Body) -> Self {
        Self::Tonic { body, _open: None }
    }

    /// The same body, which keeps `connection` from being idle where it may take long.
    pub(crate) fn on(self, connection: Arc<Connection>) -> Self {
        match self {
            Self::Tonic { body, _open: _ } => {
                Self::Tonic { body, _open: Some(OpenStream::on(connection)) }
            }
            short => short,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Self::Tonic { body, .. } = &mut *self {
            return Pin::new(body).poll_frame(context);
        }
        let (frame, next) = match std::mem::replace(&mut *self, Self::Done) {
            Self::Message { message, delivery } => {
                if let Some(delivery) = delivery {
                    delivery.complete();
                }
                (Frame::data(message), Self::Trailers)
            }
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, OK);
                (Frame::trailers(trailers), Self::Done)
            }
            Self::Done | Self::Tonic { .. } => return Poll::Ready(None),
        };
        *self = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message { .. } | Self::Trailers => false,
            Self::Done => true,
            Self::Tonic { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tonic { body, .. } => body.size_hint(),
            // Not exact, or hyper would announce a content-length, which gRPC does without.
            _ => SizeHint::default(),
        }
    }
}

/// A response that is a status alone.
pub(crate) fn refuse(status: Status) -> http::Response<Body> {
    status.into_http::<()>().map(|()| Body::Done)
}
