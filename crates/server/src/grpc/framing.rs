//! The frames of gRPC messages, their sizes, and the statuses of invalid messages.

use bytes::Bytes;
use lease::MAX_ID_BYTES;
use tonic::Status;
pub(super) use wire::framing::PREFIX_BYTES;
use wire::framing::{NotOne, unframe};

use crate::bounds::Full;

/// The memory that is accounted for each call includes a message of up to this many bytes. Every borrow
/// is that small: four ids, and the overhead of frames and compression.
pub(super) const SMALL: usize = 4 * (MAX_ID_BYTES + 16);

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
pub(crate) fn message(body: Bytes) -> Result<Bytes, Status> {
    let unframed = unframe(body).map_err(|problem| match problem {
        NotOne::Missing => "the call carries no message",
        NotOne::Other => "the call carries not exactly one message",
    });
    // The message is decompressed by now, whatever its flag.
    unframed.map(|(_, message)| message).map_err(Status::invalid_argument)
}

/// The status of a message that is too large.
pub(super) fn too_large(most: usize) -> Status {
    Status::invalid_argument(format!("the message is larger than {most} bytes"))
}

/// The status of a call for which there is no memory.
pub(super) fn no_memory(problem: Full) -> Status {
    Status::unavailable(problem.to_string())
}
