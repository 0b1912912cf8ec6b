//! Decompresses gzip messages, one at a time, with a bound on the decompressed size.
//!
//! Each message starts with a flag that says whether it is compressed. The header `grpc-encoding` of
//! the call names the compression. This module decompresses messages and frames them again, so that
//! other modules see uncompressed messages only. Answers are not compressed.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::buf::Reader;
use bytes::{Buf as _, Bytes, BytesMut};
use flate2::bufread::GzDecoder;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::codegen::StdError;
use tonic::metadata::MetadataValue;

use super::framing::{PREFIX_BYTES, SMALL, no_memory, too_large};
use crate::bounds::{Connection, InFlight, work_of};

pub(super) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub(super) const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// The encodings that a caller may use.
const ACCEPTED: &str = "identity,gzip";

/// How many bytes are decompressed at a time.
pub(super) const STEP: usize = 16 << 10;

/// The compression of the flagged messages of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// No compression.
    Identity,
    Gzip,
    /// A compression that the server does not support.
    Other,
}

impl Encoding {
    /// Reads the compression from the headers of a call.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match headers.get(ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(_) => Self::Other,
        }
    }

    pub(super) const fn is_supported(self) -> bool {
        !matches!(self, Self::Other)
    }
}

/// The status of a call whose encoding is [`Encoding::Other`].
pub(super) fn unsupported() -> Status {
    let problem = format!("grpc-encoding is not supported: it may be one of {ACCEPTED}");
    let mut status = Status::unimplemented(problem);
    let accepted = MetadataValue::from_static(ACCEPTED);
    status.metadata_mut().insert(ACCEPT_ENCODING, accepted);
    status
}

/// Whether the flag of the first message of a body is not 0: the message is compressed or invalid.
pub(super) fn is_flagged(body: &[u8]) -> bool {
    body.first().is_some_and(|flag| *flag != 0)
}

/// Decompresses the one message of a body. The result is framed again.
///
/// The decompressed bytes are taken from the memory of the call, unless they are few, and the work is
/// counted for the caller.
///
/// # Errors
///
/// As [`Gunzip::of`] and [`Gunzip::step`], and `UNAVAILABLE` when there is no memory for the message.
pub(super) fn decompress(
    body: Bytes,
    encoding: Encoding,
    most: usize,
    call: &mut InFlight,
) -> Result<Bytes, Status> {
    if !is_flagged(&body) {
        return Ok(body);
    }
    let mut gunzip = Gunzip::of(body, encoding, most)?;
    let mut is_done = gunzip.step(SMALL)?;
    while !is_done {
        call.take(STEP).map_err(no_memory)?;
        call.connection().share().count(work_of(STEP));
        is_done = gunzip.step(STEP)?;
    }
    Ok(gunzip.finish())
}

/// Decompresses a message part by part.
#[derive(Debug)]
pub(super) struct Gunzip {
    decoder: GzDecoder<Reader<Bytes>>,
    /// The decompressed bytes so far, after the room for the flag and the length.
    message: Vec<u8>,
    most: usize,
}

impl Gunzip {
    /// Starts to decompress the one message of `body`, which is flagged. With its frame, the result may
    /// have `most` bytes.
    ///
    /// # Errors
    ///
    /// `INTERNAL` when the flag is invalid, or the call names no encoding, as the protocol demands.
    /// `INVALID_ARGUMENT` when the body is not exactly one message.
    pub(super) fn of(mut body: Bytes, encoding: Encoding, most: usize) -> Result<Self, Status> {
        let problem = match (body.first(), encoding) {
            (Some(1), Encoding::Gzip) => None,
            (Some(1), _) => Some("a message is compressed, and grpc-encoding does not say how"),
            _ => Some("the flag in front of a message is neither 0 nor 1"),
        };
        if let Some(problem) = problem {
            return Err(Status::internal(format!("protocol error: {problem}")));
        }
        if body.len() < PREFIX_BYTES {
            return Err(Status::invalid_argument("the call carries no message"));
        }
        body.advance(1);
        if body.get_u32() as usize != body.len() {
            return Err(Status::invalid_argument("the call carries not exactly one message"));
        }
        let message = vec![0; PREFIX_BYTES];
        Ok(Self { decoder: GzDecoder::new(body.reader()), message, most })
    }

    /// The length of the result so far, with its frame.
    pub(super) fn len(&self) -> usize {
        self.message.len()
    }

    /// Decompresses at most `bytes` more, and returns whether the message is complete.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` when the message is too large, or is not exactly one complete gzip member.
    pub(super) fn step(&mut self, bytes: usize) -> Result<bool, Status> {
        let begin = self.message.len();
        // One byte more than allowed shows that the message is too large.
        let end = (begin + bytes).min(self.most + 1);
        // Reserves exactly the bytes that were taken from the memory of the call.
        self.message.reserve_exact(end - begin);
        self.message.resize(end, 0);
        let mut filled = begin;
        while filled < end {
            match self.decoder.read(&mut self.message[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) => return Err(unreadable(&error)),
            }
        }
        self.message.truncate(filled);
        if filled > self.most {
            return Err(too_large(self.most));
        }
        if filled == end {
            return Ok(false);
        }
        if self.decoder.get_ref().get_ref().has_remaining() {
            let problem = "the message cannot be decompressed: more than one gzip member";
            return Err(Status::invalid_argument(problem));
        }
        Ok(true)
    }

    /// Returns the message, framed as uncompressed.
    pub(super) fn finish(mut self) -> Bytes {
        let length = self.message.len() - PREFIX_BYTES;
        let length = u32::try_from(length).expect("the most bytes of a message are a u32");
        self.message[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        self.message.into()
    }
}

fn unreadable(error: &io::Error) -> Status {
    Status::invalid_argument(format!("the message cannot be decompressed: {error}"))
}

/// Decompresses the messages of a streaming body, one by one.
#[derive(Debug)]
pub(super) struct Decompressed<B> {
    body: B,
    /// Received bytes of messages that are not complete.
    begun: BytesMut,
    most: usize,
    connection: Arc<Connection>,
}

impl<B> Decompressed<B> {
    /// Wraps `body`. With its frame, each message may have `most` bytes, compressed or not.
    pub(super) fn new(body: B, most: usize, connection: Arc<Connection>) -> Self {
        Self { body, begun: BytesMut::new(), most, connection }
    }

    /// Returns the next message, if it is complete.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(mut prefix) = self.begun.get(..PREFIX_BYTES) else { return Ok(None) };
        prefix.advance(1);
        let length = PREFIX_BYTES + prefix.get_u32() as usize;
        if length > self.most {
            return Err(too_large(self.most));
        }
        if self.begun.len() < length {
            return Ok(None);
        }
        let message = self.begun.split_to(length).freeze();
        if !is_flagged(&message) {
            return Ok(Some(message));
        }
        let mut gunzip = Gunzip::of(message, Encoding::Gzip, self.most)?;
        while !gunzip.step(STEP)? {
            self.connection.share().count(work_of(STEP));
        }
        Ok(Some(gunzip.finish()))
    }
}

impl<B> HttpBody for Decompressed<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        loop {
            if let Some(message) = self.next()? {
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(frame) => frame.map_err(Into::into)?,
                None if self.begun.is_empty() => return Poll::Ready(None),
                None => {
                    self.begun.clear();
                    let problem = Status::invalid_argument("the last message is cut off");
                    return Poll::Ready(Some(Err(problem.into())));
                }
            };
            match frame.into_data() {
                Ok(data) => self.begun.extend_from_slice(&data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    /// This many zeros, compressed and with the gRPC prefix.
    fn packed(bytes: usize) -> Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; bytes]).unwrap();
        let packed = encoder.finish().unwrap();
        let length = u32::try_from(packed.len()).unwrap().to_be_bytes();
        [&[1][..], &length, &packed].concat().into()
    }

    #[test]
    fn a_bomb_takes_no_more_memory_than_its_bound() {
        const MOST: usize = 100_000;
        let mut gunzip = Gunzip::of(packed(10 << 20), Encoding::Gzip, MOST).unwrap();
        let status = loop {
            match gunzip.step(STEP) {
                Ok(is_done) => assert!(!is_done),
                Err(status) => break status,
            }
            assert!(gunzip.message.capacity() <= MOST + 1, "{}", gunzip.message.capacity());
        };
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(gunzip.message.capacity() <= MOST + 1, "{}", gunzip.message.capacity());
    }

    #[test]
    fn a_message_comes_out_whole_whatever_the_steps() {
        for length in [0, 1, SMALL - 1, SMALL, SMALL + 1, STEP, 50_000] {
            for step in [1_000, SMALL, STEP] {
                let mut gunzip = Gunzip::of(packed(length), Encoding::Gzip, 60_000).unwrap();
                while !gunzip.step(step).unwrap() {}
                let message = crate::grpc::framing::message(gunzip.finish()).unwrap();
                assert_eq!(message, vec![0; length], "{length} by {step}");
            }
        }
    }

    #[tokio::test]
    async fn decompressing_the_messages_of_a_stream_counts_as_work_of_the_caller() {
        let connection = Connection::of_a_test();
        let _other = connection.another_of_a_test();
        let _call = connection.begin(&mut HeaderMap::new());
        let mut has_turns = [true, false].into_iter();
        for length in [SMALL, 60_000] {
            let body = Full::new(packed(length));
            let mut stream = Decompressed::new(body, 1 << 20, connection.clone());
            let message = stream.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(message.len(), length + PREFIX_BYTES);
            let has_turn =
                poll_fn(|context| Poll::Ready(connection.share().poll_turn(0, context).is_ready()));
            assert_eq!(Some(has_turn.await), has_turns.next(), "{length}");
        }
    }

    #[tokio::test]
    async fn decompressing_takes_memory_and_counts_as_work_of_the_caller() {
        let connection = Connection::of_a_test();
        let _other = connection.another_of_a_test();
        let mut call = connection.begin(&mut HeaderMap::new());
        let has_turn =
            || poll_fn(|context| Poll::Ready(connection.share().poll_turn(0, context).is_ready()));
        let small = decompress(packed(SMALL - 100), Encoding::Gzip, 1 << 20, &mut call);
        assert_eq!(small.unwrap().len(), SMALL - 100 + PREFIX_BYTES);
        assert!(has_turn().await);
        let large = decompress(packed(60_000), Encoding::Gzip, 1 << 20, &mut call);
        assert_eq!(large.unwrap().len(), 60_000 + PREFIX_BYTES);
        assert!(!has_turn().await, "the work of a round is done");
        // The memory of a connection of an unknown caller is 1 MiB.
        let larger = decompress(packed(2 << 20), Encoding::Gzip, 4 << 20, &mut call);
        assert_eq!(larger.unwrap_err().code(), tonic::Code::Unavailable);
    }
}
