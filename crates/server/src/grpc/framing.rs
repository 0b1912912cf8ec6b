//! One message of gRPC: its frame, its size, and the statuses of one that cannot be taken.

use bytes::{Buf as _, Bytes};
use lease::MAX_ID_BYTES;
use tonic::Status;

use crate::bounds::Full;

/// A message up to this long is part of what every call takes up, in bytes. So is every borrow: four
/// ids, and what frames or compresses them.
pub(super) const SMALL: usize = 4 * (MAX_ID_BYTES + 16);

/// The flag and the length in front of every message.
pub(super) const PREFIX_BYTES: usize = 5;

/// Reads the one message of a call from the bytes of its body, which is not compressed any more.
///
/// # Errors
///
/// `INVALID_ARGUMENT` when there is no message, more than one, or one that is not of this type.
pub(crate) fn decode<M: prost::Message + Default>(body: Bytes) -> Result<M, Status> {
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
pub(super) fn full(problem: Full) -> Status {
    Status::unavailable(problem.to_string())
}
