//! Unary gRPC over the connection: one message there, one message back.
//!
//! Borrows, keep-alives and returns are small and many, so they do not go through the codec of
//! streams, which buffers for the general case: a message is framed and read as it is. What is on
//! the wire is the same.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response as HttpResponse, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Response, Status};

use super::connection::Connection;

/// The flag and the length in front of every message.
const PREFIX_BYTES: usize = 5;

/// The most bytes of an answer: gRPC's usual bound.
const MOST_BYTES: usize = 4 << 20;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Makes the call that `request` begins. Takes as long as the server does.
///
/// Dropped before it is answered, it is cancelled.
///
/// # Errors
///
/// The status that the server answered; or one with a source when no whole answer came, which is
/// [`NotConnected`](super::connection::NotConnected) when nothing can have been sent.
pub(crate) async fn call<A: Message + Default>(
    connection: &Connection,
    request: Request<()>,
    message: &impl Message,
) -> Result<Response<A>, Status> {
    let message = framed(message);
    let mut ready = connection.ready().await?;
    let (answer, mut body) = ready.requests.send_request(request, false).map_err(broken)?;
    body.send_data(message, true).map_err(broken)?;
    let answer = answer.await.map_err(broken)?;
    ready.call.answered();
    read(answer).await
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("ids are short"));
    message.encode(&mut frame).expect("there is room");
    frame.freeze()
}

/// Reads an answer to its end.
async fn read<A: Message + Default>(
    answer: HttpResponse<RecvStream>,
) -> Result<Response<A>, Status> {
    let (mut head, mut body) = answer.into_parts();
    let mut message = Bytes::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(broken)?;
        if message.len() + data.len() > MOST_BYTES {
            return Err(nonsense(format!("an answer of more than {MOST_BYTES} bytes")));
        }
        body.flow_control().release_capacity(data.len()).map_err(broken)?;
        if message.is_empty() {
            // Most come in one piece, which is not copied.
            message = data;
        } else {
            let mut longer = BytesMut::from(message);
            longer.extend_from_slice(&data);
            message = longer.freeze();
        }
    }
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
    // An answer that is a status alone has it among its headers.
    let of_whom = if trailers.contains_key(GRPC_STATUS) { &trailers } else { &head.headers };
    if of_whom.get(GRPC_STATUS).is_none_or(|status| status != "0") {
        return Err(refusal(of_whom.clone(), head.status));
    }
    if trailers.len() > 1 {
        head.headers.extend(trailers);
    }
    let metadata = MetadataMap::from_headers(head.headers);
    Ok(Response::from_parts(metadata, unframed(message)?, Extensions::default()))
}

/// The status of a call that did not succeed.
fn refusal(mut headers: HeaderMap, status: StatusCode) -> Status {
    make_status_readable(&mut headers);
    match Status::from_header_map(&headers) {
        Some(status) if status.code() != Code::Ok => status,
        _ if status != StatusCode::OK => {
            nonsense(format!("an answer without gRPC status, of HTTP status {status}"))
        }
        _ => nonsense("an answer without gRPC status"),
    }
}

fn unframed<A: Message + Default>(mut body: Bytes) -> Result<A, Status> {
    if body.len() < PREFIX_BYTES {
        return Err(nonsense("an answer without a message"));
    }
    let compressed = body.get_u8() != 0;
    let length = body.get_u32() as usize;
    if compressed {
        return Err(nonsense("a compressed message, which nobody asked for"));
    }
    if length != body.len() {
        return Err(nonsense("an answer that is not exactly one message"));
    }
    A::decode(body).map_err(|error| nonsense(format!("a message that cannot be read: {error}")))
}

/// Something came that is no answer of gRPC.
fn nonsense(what: impl Into<String>) -> Status {
    Status::from_error(what.into().into())
}

/// The status of a call that HTTP/2 did not bring to an end.
pub(crate) fn broken(error: h2::Error) -> Status {
    Status::from_error(error.into())
}

/// Makes a gRPC status among `headers` one that tonic reads with its own code. tonic panics at
/// details that are not base64, which nobody reads here, and takes a status whose message is not
/// UTF-8 for one of code 2. What such a message says in UTF-8 is kept.
pub(super) fn make_status_readable(headers: &mut HeaderMap) {
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

#[cfg(test)]
mod tests;
