//! gRPC calls over a [`Connection`]: unary calls, and streams for the clients that tonic generates.
//!
//! A unary call does not use tonic's codec, which has buffers for streams: its one message is framed
//! and read directly. The bytes on the wire are the same.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use h2::{Reason, RecvStream, SendStream};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response as HttpResponse, StatusCode};
use http_body::{Body as HttpBody, Frame};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};
use prost::Message;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Response, Status};
use tower_service::Service;
use wire::framing::{self, NotOne};

use crate::http2::Connection;
use crate::signs::InFlight;

/// The most bytes of an answer, as in most gRPC libraries.
const MOST_BYTES: usize = 4 << 20;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Makes a unary call. It has no deadline of its own; dropping it cancels the call.
///
/// # Errors
///
/// The status that the server answered. Without a complete answer the status has a source, which is
/// [`NotConnected`](crate::NotConnected) if nothing was sent.
pub async fn call<A: Message + Default>(
    connection: &Connection,
    request: Request<()>,
    message: &impl Message,
) -> Result<Response<A>, Status> {
    let answer = call_with_frame(connection, request, framing::frame(message));
    let (metadata, message) = answer.await?;
    let metadata = MetadataMap::from_headers(metadata);
    Ok(Response::from_parts(metadata, unframed(message)?, Extensions::default()))
}

/// Makes a unary call, as [`call`] does, with a message in its frame. Returns the metadata of the answer and its
/// message in its frame.
///
/// # Errors
///
/// As [`call`].
pub async fn call_with_frame(
    connection: &Connection,
    mut request: Request<()>,
    message: Bytes,
) -> Result<(HeaderMap, Bytes), Status> {
    let mut ready = connection.ready().await?;
    ready.direct(&mut request);
    let (answer, mut body) = ready.requests.send_request(request, false).map_err(broken)?;
    body.send_data(message, true).map_err(broken)?;
    let answer = answer.await.map_err(broken)?;
    ready.call.answered();
    Ok(read(answer).await?)
}

/// Why an answer cannot be read to its end.
enum Unread {
    /// HTTP/2 ended the call.
    Broken(h2::Error),
    /// The server answered with a status, or with something that is not valid gRPC.
    Refused(Status),
}

impl From<h2::Error> for Unread {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Unread> for Status {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Broken(error) => broken(error),
            Unread::Refused(status) => status,
        }
    }
}

/// Reads an answer to its end, and returns its metadata and its message with the frame.
async fn read(answer: HttpResponse<RecvStream>) -> Result<(HeaderMap, Bytes), Unread> {
    let (mut head, mut body) = answer.into_parts();
    // An answer without a message has its status in the headers, and nothing has to follow them.
    if head.headers.get(GRPC_STATUS).is_some_and(|status| status != "0") {
        return Err(Unread::Refused(refusal(head.headers, head.status)));
    }
    let mut message = Bytes::new();
    while let Some(data) = body.data().await {
        let data = data?;
        if message.len() + data.len() > MOST_BYTES {
            let problem = format!("an answer of more than {MOST_BYTES} bytes");
            return Err(Unread::Refused(invalid(problem)));
        }
        body.flow_control().release_capacity(data.len())?;
        if message.is_empty() {
            // Most answers are one piece, which is not copied.
            message = data;
        } else {
            let mut longer = BytesMut::from(message);
            longer.extend_from_slice(&data);
            message = longer.freeze();
        }
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let with_status = if trailers.contains_key(GRPC_STATUS) { &trailers } else { &head.headers };
    if with_status.get(GRPC_STATUS).is_none_or(|status| status != "0") {
        return Err(Unread::Refused(refusal(with_status.clone(), head.status)));
    }
    if trailers.len() > 1 {
        head.headers.extend(trailers);
    }
    Ok((head.headers, message))
}

/// Whether a status says that the server has certainly not handled the call: it refuses the stream, or it
/// says that it will not handle it because it stops.
pub fn was_not_handled(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    let error = source.and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        error.is_remote()
            && (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)
                || error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
    })
}

/// The status of a call that did not succeed.
fn refusal(mut headers: HeaderMap, status: StatusCode) -> Status {
    make_status_readable(&mut headers);
    match Status::from_header_map(&headers) {
        Some(status) if status.code() != Code::Ok => status,
        _ if status != StatusCode::OK => {
            invalid(format!("an answer without gRPC status, of HTTP status {status}"))
        }
        _ => invalid("an answer without gRPC status"),
    }
}

fn unframed<A: Message + Default>(body: Bytes) -> Result<A, Status> {
    let message = match framing::unframe(body) {
        Ok((false, message)) => message,
        Ok((true, _)) => return Err(invalid("a compressed message, which was not asked for")),
        Err(NotOne::Missing) => return Err(invalid("an answer without a message")),
        Err(NotOne::Other) => return Err(invalid("an answer that is not exactly one message")),
    };
    A::decode(message).map_err(|error| invalid(format!("a message that cannot be read: {error}")))
}

/// The status of an answer that is not valid gRPC.
fn invalid(what: impl Into<String>) -> Status {
    Status::from_error(what.into().into())
}

/// The status of a call that an error of HTTP/2 ended.
fn broken(error: h2::Error) -> Status {
    Status::from_error(error.into())
}

/// Changes a gRPC status in `headers` so that tonic reads its code: tonic panics at details that are
/// not base64, and replaces the code by 2 if the message is not UTF-8. The details are not used.
fn make_status_readable(headers: &mut HeaderMap) {
    headers.remove("grpc-status-details-bin");
    let Some(message) = headers.get(GRPC_MESSAGE) else { return };
    let decoded = percent_decode(message.as_bytes());
    if decoded.clone().decode_utf8().is_ok() {
        return;
    }
    let readable = decoded.decode_utf8_lossy();
    let encoded = percent_encode(readable.as_bytes(), NON_ALPHANUMERIC).to_string();
    let message = HeaderValue::try_from(encoded).expect("percent-encoded text is ASCII");
    headers.insert(GRPC_MESSAGE, message);
}

/// Gives an answer a deadline. When it has passed, the status has a source, as one of the transport has.
pub fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> impl Future<Output = Result<T, Status>> {
    let answer = tokio::time::timeout(deadline, answer);
    answer.map(move |answer| {
        answer.unwrap_or_else(|_| {
            let message = format!("no answer within {deadline:.1?}");
            Err(Status::from_error(Box::new(io::Error::new(io::ErrorKind::TimedOut, message))))
        })
    })
}

// ---- streams ----

/// The fewest calls at once that a server must allow for a stream: one more call has to fit.
const LEAST_ROOM: usize = 2;

/// Why a stream is not opened, or is ended: the other calls would wait for its end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the server has room for one call at a time")]
pub struct NoRoom;

impl From<NoRoom> for Status {
    fn from(error: NoRoom) -> Self {
        Self::from_error(Box::new(error))
    }
}

impl Service<Request<Body>> for Connection {
    type Response = HttpResponse<BothWays>;
    type Error = Status;
    type Future = Boxed<Result<HttpResponse<BothWays>, Status>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // The call waits for the connection, within its own deadline.
        Poll::Ready(Ok(()))
    }

    /// Sends a request. Its body is sent while the future and then the body of the answer are polled.
    ///
    /// It fails with [`NoRoom`], now or later, when the server has no room for another call beside it.
    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let connection = self.clone();
        Box::pin(async move {
            let mut ready = connection.ready().await?;
            ready.direct(&mut request);
            let mut crowded = crowded(ready.call.room().await);
            if crowded.as_mut().now_or_never().is_some() {
                return Err(NoRoom.into());
            }
            let (head, body) = request.into_parts();
            let request = Request::from_parts(head, ());
            let (mut answer, to) = ready.requests.send_request(request, false).map_err(broken)?;
            let mut outgoing = Outgoing { body, to, waiting: Bytes::new(), ended: false };
            let answer = poll_fn(|cx| {
                if crowded.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(NoRoom.into()));
                }
                outgoing.send(cx);
                Pin::new(&mut answer).poll(cx).map_err(broken)
            });
            let mut answer = answer.await?;
            make_status_readable(answer.headers_mut());
            // No compressed answer was asked for. tonic reports this header as an unknown method.
            // Without the header the flag of each message decides, as in unary calls.
            answer.headers_mut().remove(GRPC_ENCODING);
            Ok(answer.map(|incoming| BothWays { outgoing, incoming, crowded, _call: ready.call }))
        })
    }
}

/// Waits until a server has no room for a stream beside other calls.
fn crowded(mut room: watch::Receiver<usize>) -> Boxed<()> {
    Box::pin(async move {
        // The sender lives as long as the calls of its connection.
        if room.wait_for(|room| *room < LEAST_ROOM).await.is_err() {
            std::future::pending().await
        }
    })
}

/// The body of a request on its way.
struct Outgoing {
    body: Body,
    to: SendStream<Bytes>,
    /// Bytes for which the server has not given a window yet.
    waiting: Bytes,
    ended: bool,
}

impl Outgoing {
    /// Sends as much of the body as the window of the server allows. Errors show in the answer.
    fn send(&mut self, cx: &mut Context<'_>) {
        while !self.ended {
            if self.waiting.is_empty() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(frame))) => {
                        self.waiting = frame.into_data().unwrap_or_default();
                    }
                    Poll::Ready(Some(Err(_))) => {
                        self.to.send_reset(Reason::INTERNAL_ERROR);
                        self.ended = true;
                    }
                    Poll::Ready(None) => {
                        // An error means that the stream is closed already.
                        let _ = self.to.send_data(Bytes::new(), true);
                        self.ended = true;
                    }
                }
                continue;
            }
            self.to.reserve_capacity(self.waiting.len());
            match self.to.capacity() {
                0 => match self.to.poll_capacity(cx) {
                    Poll::Pending => return,
                    // The window may still be 0.
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(_)) | None) => self.ended = true,
                },
                room => {
                    let now = self.waiting.split_to(room.min(self.waiting.len()));
                    self.ended = self.to.send_data(now, false).is_err();
                }
            }
        }
    }
}

/// The body of an answer. Polling it also sends the body of the request.
pub struct BothWays {
    outgoing: Outgoing,
    incoming: RecvStream,
    crowded: Boxed<()>,
    _call: InFlight,
}

impl fmt::Debug for BothWays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BothWays").finish_non_exhaustive()
    }
}

impl HttpBody for BothWays {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { outgoing, incoming, crowded, .. } = &mut *self;
        if crowded.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(NoRoom.into())));
        }
        outgoing.send(cx);
        let data = ready!(incoming.poll_data(cx)).transpose().map_err(broken)?;
        if let Some(data) = data {
            incoming.flow_control().release_capacity(data.len()).map_err(broken)?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(incoming.poll_trailers(cx)).map_err(broken)?;
        Poll::Ready(trailers.map(|mut trailers| {
            make_status_readable(&mut trailers);
            Ok(Frame::trailers(trailers))
        }))
    }
}

#[cfg(test)]
mod tests;
