//! The frames of gRPC messages, their sizes, and the statuses of invalid messages.

use bytes::{Buf as _, Bytes};
use lease::MAX_ID_BYTES;
use tonic::Status;

use crate::bounds::Full;

/// The memory that is accounted for each call includes a message of up to this many bytes. Every borrow
/// is that small: four ids, and the overhead of frames and compression.
pub(super) const SMALL: usize = 4 * (MAX_ID_BYTES + 16);

/// The length of the flag and the length field before each message.
pub(super) const PREFIX_BYTES: usize = 5;

/// Decodes the one message of a body, which is not compressed.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when there is no message, more than one, or one of another type.
pub(crate) fn decode<M: prost::Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(message(body)?).map_err(unreadable)
}

/// The status of a message that cannot be decoded.
pub(crate) fn unreadable(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("the message cannot be read: {error}"))
}

/// Returns the bytes of the one message of a body.
///
/// # Errors
///
/// As [`decode`], except that the content of the message is not checked.
pub(crate) fn message(mut body: Bytes) -> Result<Bytes, Status> {
    if body.len() < PREFIX_BYTES {
        return Err(Status::invalid_argument("the call carries no message"));
    }
    body.advance(1);
    if body.get_u32() as usize != body.len() {
        return Err(Status::invalid_argument("the call carries not exactly one message"));
    }
    Ok(body)
}

/// The status of a message that is too large.
pub(super) fn too_large(most: usize) -> Status {
    Status::invalid_argument(format!("the message is larger than {most} bytes"))
}

/// The status of a call for which there is no memory.
pub(super) fn no_memory(problem: Full) -> Status {
    Status::unavailable(problem.to_string())
}
