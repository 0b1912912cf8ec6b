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

/// A call or its answer, or a word about one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    /// The number of the call on this link.
    #[prost(uint64, tag = "1")]
    pub(crate) call: u64,
    /// A [`Word`], or 0 for a call and for an answer.
    #[prost(uint32, tag = "2")]
    pub(crate) word: u32,
    /// Of a call: the path of the method.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) path: Bytes,
    /// Of a call: the octets of the IP address of the caller, if it is known.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) peer: Bytes,
    /// Of a call: the name of the indexer whose key the caller has shown.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub(crate) indexer: Option<Bytes>,
    /// The names of the metadata, and their values in the same order. In an answer a status other than OK
    /// is among them.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) names: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) values: Vec<Bytes>,
    /// The message with its frame, not compressed.
    #[prost(bytes = "bytes", tag = "8")]
    pub(crate) message: Bytes,
}

/// What one end of a link tells the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The standby: the caller has the answer.
    HandedOn = 1,
    /// The standby: the caller is gone, before or after the answer.
    CallerGone = 2,
    /// The leader: it is stopping. It answers what it has read, and reads until the standby ends the link.
    Stopping = 3,
}

impl Record {
    /// Whether the record is this word.
    pub(crate) const fn is(&self, word: Word) -> bool {
        self.word == word as u32
    }

    /// Whether the record is a word about a call, and no call or answer.
    pub(crate) const fn is_word(&self) -> bool {
        self.word != 0
    }

    /// Takes the metadata out. What is no valid header is left out.
    pub(crate) fn take_metadata(&mut self) -> HeaderMap {
        let mut metadata = HeaderMap::with_capacity(self.names.len());
        for (name, value) in self.names.drain(..).zip(self.values.drain(..)) {
            if let Ok(name) = HeaderName::from_bytes(&name)
                && let Ok(value) = HeaderValue::from_maybe_shared(value)
            {
                metadata.append(name, value);
            }
        }
        metadata
    }
}

/// Writes the fields of a [`Record`].
pub(crate) struct Fields<'b>(&'b mut BytesMut);

impl Fields<'_> {
    pub(crate) fn call(&mut self, number: u64) {
        self.number(1, number);
    }

    pub(crate) fn word(&mut self, word: Word) {
        self.number(2, word as u64);
    }

    pub(crate) fn path(&mut self, path: &str) {
        self.bytes(3, path.as_bytes());
    }

    pub(crate) fn peer(&mut self, octets: &[u8]) {
        self.bytes(4, octets);
    }

    pub(crate) fn indexer(&mut self, name: &str) {
        self.bytes(5, name.as_bytes());
    }

    pub(crate) fn header(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.bytes(6, name.as_str().as_bytes());
        self.bytes(7, value.as_bytes());
    }

    pub(crate) fn message(&mut self, message: &[u8]) {
        self.bytes(8, message);
    }

    fn number(&mut self, tag: u32, value: u64) {
        encode_key(tag, WireType::Varint, self.0);
        encode_varint(value, self.0);
    }

    fn bytes(&mut self, tag: u32, value: &[u8]) {
        encode_key(tag, WireType::LengthDelimited, self.0);
        encode_varint(value.len() as u64, self.0);
        self.0.put_slice(value);
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
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Unreadable> {
        let Some((length, rest)) = self.arrived.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.most {
            return Err(Unreadable::TooLarge(self.most));
        }
        let Some(record) = rest.get(..length) else { return Ok(None) };
        let record = Record::decode(Bytes::copy_from_slice(record))?;
        self.arrived.advance(LENGTH + length);
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use http::header::USER_AGENT;

    use super::*;

    fn sent() -> BytesMut {
        let mut buffer = BytesMut::new();
        for call in 1..=3 {
            append(&mut buffer, |fields| {
                fields.call(call);
                fields.word(Word::CallerGone);
                fields.path("/path");
                fields.peer(&[127, 0, 0, 1]);
                fields.indexer("west");
                fields.header(&USER_AGENT, &HeaderValue::from_static("test"));
                fields.message(&[7; 300]);
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
                while let Some(record) = records.next().unwrap() {
                    read.push(record);
                }
            }
            let expected = (1..=3).map(|call| Record {
                call,
                word: Word::CallerGone as u32,
                path: "/path".into(),
                peer: Bytes::from_static(&[127, 0, 0, 1]),
                indexer: Some("west".into()),
                names: vec!["user-agent".into()],
                values: vec!["test".into()],
                message: vec![7; 300].into(),
            });
            assert_eq!(read, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_record_that_is_too_large_or_invalid_is_refused() {
        let mut records = Records::new(100);
        records.arrived(&sent());
        assert!(matches!(records.next(), Err(Unreadable::TooLarge(100))));
        let mut records = Records::new(100);
        records.arrived(&[0, 0, 0, 1, 0xff]);
        assert!(matches!(records.next(), Err(Unreadable::Invalid(_))));
    }

    #[test]
    fn metadata_that_is_no_header_is_left_out() {
        let (names, values) = (["a", "not a name", "b"], ["1", "2", "\n"]);
        let [names, values] = [names, values].map(|texts| texts.map(Bytes::from).to_vec());
        let read = Record { names, values, ..Record::default() }.take_metadata();
        assert_eq!(read.len(), 1);
        assert_eq!(read.get("a").unwrap(), "1");
    }
}
