//! The frame of one message in a unary call of gRPC, for clients and servers.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;

/// The length of what stands before a message: a flag for compression, and the message's length.
pub const PREFIX_BYTES: usize = 5;

/// Why the bytes of a unary call are not one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOne {
    /// There is no message.
    Missing,
    /// There is a part of a message, or more than one.
    Other,
}

/// Returns a message in its frame, not compressed.
///
/// ```
/// let message = wire::worker::KeepAliveRequest::default();
/// let framed = wire::framing::frame(&message);
/// assert_eq!(wire::framing::unframe(framed), Ok((false, Default::default())));
/// ```
///
/// # Panics
///
/// For a message of 4 GiB and more.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("a message is far smaller than 4 GiB"));
    message.encode_raw(&mut framed);
    framed.freeze()
}

/// Takes the frame off the one message of a call: whether it is compressed, and its bytes.
///
/// # Errors
///
/// The bytes are not one whole message.
pub fn unframe(mut bytes: Bytes) -> Result<(bool, Bytes), NotOne> {
    if bytes.len() < PREFIX_BYTES {
        return Err(NotOne::Missing);
    }
    let is_compressed = bytes.get_u8() != 0;
    if bytes.get_u32() as usize == bytes.len() {
        Ok((is_compressed, bytes))
    } else {
        Err(NotOne::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_message_is_not_one_and_neither_are_two() {
        let worker_key = "key".to_owned();
        let message = crate::worker::KeepAliveRequest { worker_key, ..Default::default() };
        let framed = frame(&message);
        assert_eq!(unframe(framed.clone()), Ok((false, message.encode_to_vec().into())));
        for length in 0..framed.len() {
            let problem = if length < PREFIX_BYTES { NotOne::Missing } else { NotOne::Other };
            assert_eq!(unframe(framed.slice(..length)), Err(problem), "{length}");
        }
        assert_eq!(unframe([&framed[..], &framed[..]].concat().into()), Err(NotOne::Other));
    }
}
