//! What two servers of a fleet write on a link: records of protobuf, each after its length in four bytes.
//!
//! A record is encoded from borrowed parts into the buffer that is sent, and its parts are slices of one
//! copy when it is read. So a record costs a few allocations only.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

/// The bytes of the length.
const LENGTH: usize = 4;

/// A record from a standby to the leader: a call, or what became of the answer to one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ToLeader {
    /// The number of the call on this link.
    #[prost(uint64, tag = "1")]
    pub(crate) call: u64,
    /// A [`Word`], or 0 for a call.
    #[prost(uint32, tag = "2")]
    pub(crate) word: u32,
    /// The path of the method.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) path: Bytes,
    /// The octets of the IP address of the caller, if it is known.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) peer: Bytes,
    /// The name of the indexer whose key the caller has shown.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub(crate) indexer: Option<Bytes>,
    /// The names of the metadata, and their values in the same order.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) names: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) values: Vec<Bytes>,
    /// The message with its frame, not compressed.
    #[prost(bytes = "bytes", tag = "8")]
    pub(crate) message: Bytes,
}

/// What a standby says of a call that it has passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The caller has the answer.
    HandedOn = 1,
    /// The caller is gone, before or after the answer.
    CallerGone = 2,
}

/// A record from the leader to a standby: the answer to a call, or that the leader takes no more.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ToStandby {
    /// The number of the call on this link.
    #[prost(uint64, tag = "1")]
    pub(crate) call: u64,
    /// Whether the leader is stopping. It answers what it has read, and reads until the standby ends the
    /// link.
    #[prost(bool, tag = "2")]
    pub(crate) is_stopping: bool,
    /// The names of the metadata, and their values in the same order. A status other than OK is among
    /// them.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) names: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) values: Vec<Bytes>,
    /// The message with its frame.
    #[prost(bytes = "bytes", tag = "8")]
    pub(crate) message: Bytes,
}

/// Writes the fields of one record.
pub(crate) struct Fields<'b>(&'b mut BytesMut);

impl Fields<'_> {
    pub(crate) fn number(&mut self, tag: u32, value: u64) {
        encode_key(tag, WireType::Varint, self.0);
        encode_varint(value, self.0);
    }

    pub(crate) fn bytes(&mut self, tag: u32, value: &[u8]) {
        encode_key(tag, WireType::LengthDelimited, self.0);
        encode_varint(value.len() as u64, self.0);
        self.0.put_slice(value);
    }

    pub(crate) fn header(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.bytes(6, name.as_str().as_bytes());
        self.bytes(7, value.as_bytes());
    }
}

/// Appends the record whose fields `write` writes.
pub(crate) fn append(buffer: &mut BytesMut, write: impl FnOnce(&mut Fields<'_>)) {
    let begin = buffer.len();
    buffer.put_u32(0);
    write(&mut Fields(buffer));
    // A record has one message, which is bounded far below four gigabytes.
    let length = u32::try_from(buffer.len() - begin - LENGTH).unwrap_or(u32::MAX);
    buffer[begin..begin + LENGTH].copy_from_slice(&length.to_be_bytes());
}

/// Builds metadata from names and values. What is no valid header is left out.
pub(crate) fn metadata(names: &[Bytes], values: Vec<Bytes>) -> HeaderMap {
    let mut metadata = HeaderMap::with_capacity(names.len());
    for (name, value) in names.iter().zip(values) {
        if let Ok(name) = HeaderName::from_bytes(name)
            && let Ok(value) = HeaderValue::from_maybe_shared(value)
        {
            metadata.append(name, value);
        }
    }
    metadata
}

/// Why a link cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("a record is larger than {0} bytes")]
    TooLarge(usize),
    #[error("a record cannot be read: {0}")]
    Invalid(#[from] prost::DecodeError),
}

/// Cuts what arrives into records.
#[derive(Debug)]
pub(crate) struct Records {
    arrived: BytesMut,
    most: usize,
}

impl Records {
    /// Nothing has arrived yet. A record has at most `most` bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self { arrived: BytesMut::new(), most }
    }

    pub(crate) fn arrived(&mut self, data: &[u8]) {
        self.arrived.extend_from_slice(data);
    }

    /// The next record that has arrived as a whole. It is copied, since it would keep what arrived with
    /// it in memory.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] at a record that is too large or invalid. Nothing after it can be read.
    pub(crate) fn next<R: Message + Default>(&mut self) -> Result<Option<R>, Unreadable> {
        let Some((length, rest)) = self.arrived.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.most {
            return Err(Unreadable::TooLarge(self.most));
        }
        let Some(record) = rest.get(..length) else { return Ok(None) };
        let record = R::decode(Bytes::copy_from_slice(record))?;
        self.arrived.advance(LENGTH + length);
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> BytesMut {
        let mut buffer = BytesMut::new();
        for call in 1..=3 {
            append(&mut buffer, |fields| {
                fields.number(1, call);
                fields.bytes(3, b"/path");
                fields.header(&http::header::USER_AGENT, &HeaderValue::from_static("test"));
                fields.bytes(8, &[7; 300]);
            });
        }
        buffer
    }

    #[test]
    fn records_are_read_however_they_are_cut() {
        let sent = sent();
        for size in [1, 2, 7, 310, sent.len()] {
            let mut records = Records::new(1_000);
            let mut read = Vec::new();
            for piece in sent.chunks(size) {
                records.arrived(piece);
                while let Some(record) = records.next::<ToLeader>().unwrap() {
                    read.push(record);
                }
            }
            assert_eq!(read.iter().map(|record| record.call).collect::<Vec<_>>(), [1, 2, 3]);
            let ToLeader { path, names, values, message, word, indexer, .. } = read.remove(0);
            assert_eq!((&path[..], message.len(), word, indexer), (&b"/path"[..], 300, 0, None));
            assert_eq!(metadata(&names, values).get("user-agent").unwrap(), "test");
        }
    }

    #[test]
    fn a_record_that_is_too_large_or_invalid_is_refused() {
        let mut records = Records::new(100);
        records.arrived(&sent());
        assert!(matches!(records.next::<ToLeader>(), Err(Unreadable::TooLarge(100))));
        let mut records = Records::new(100);
        records.arrived(&[0, 0, 0, 1, 0xff]);
        assert!(matches!(records.next::<ToLeader>(), Err(Unreadable::Invalid(_))));
    }

    #[test]
    fn metadata_that_is_no_header_is_left_out() {
        let names = ["a", "not a name", "b"].map(Bytes::from);
        let read = metadata(&names, ["1", "2", "\n"].map(Bytes::from).to_vec());
        assert_eq!(read.len(), 1);
        assert_eq!(read.get("a").unwrap(), "1");
    }
}
