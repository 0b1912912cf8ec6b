//! Checks the first bytes that a server sends: they show whether it speaks TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mismatch::Mismatch;

/// The types of the TLS records that a server may send first.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// What the client speaks, and so what the server may send first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A TLS record.
    Tls,
    /// HTTP/2 frames.
    Http2,
    /// An HTTP/1.1 response.
    Http1,
}

impl Expected {
    /// Checks the first bytes, of which there is at least one.
    fn check(self, received: &[u8]) -> io::Result<()> {
        match self {
            Self::Tls if !matches!(received[0], ALERT | HANDSHAKE) => {
                Err(Mismatch::Plaintext.into())
            }
            // No HTTP/2 frame is that long, and no HTTP/1 response begins with this byte.
            Self::Http1 | Self::Http2 if received[0] == ALERT => Err(Mismatch::Tls.into()),
            Self::Http2 if received.starts_with(b"HTTP/1") => Err(answered_in_http_1(received)),
            Self::Tls | Self::Http2 | Self::Http1 => Ok(()),
        }
    }
}

/// Returns the error for a response in HTTP/1. nginx and Apache answer plain HTTP on a TLS port with an
/// HTTP/1 response whose text names HTTPS or SSL.
fn answered_in_http_1(received: &[u8]) -> io::Error {
    let contains = |word: &[u8]| received.windows(word.len()).any(|part| part == word);
    if contains(b"HTTPS") || contains(b"SSL") {
        return Mismatch::Tls.into();
    }
    io::Error::other("the server answers in HTTP/1 and does not speak HTTP/2")
}

/// A stream that checks the first bytes it reads.
#[derive(Debug)]
pub(crate) struct CheckFirst<T> {
    stream: T,
    expected: Option<Expected>,
}

impl<T> CheckFirst<T> {
    pub(crate) fn new(stream: T, expected: Expected) -> Self {
        Self { stream, expected: Some(expected) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CheckFirst<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let received = &buffer.filled()[before..];
        if !received.is_empty()
            && let Some(expected) = self.expected.take()
        {
            expected.check(received)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CheckFirst<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Reads `received` as a client that speaks `expected`.
    async fn read_first(expected: Expected, received: &[u8]) -> Result<(), Option<Mismatch>> {
        let (near, mut far) = duplex(1024);
        far.write_all(received).await.unwrap();
        let mut buffer = [0; 1024];
        let read = CheckFirst::new(near, expected).read(&mut buffer).await;
        read.map(|length| assert_eq!(&buffer[..length], received))
            .map_err(|error| Mismatch::of(&error))
    }

    #[tokio::test]
    async fn the_first_bytes_of_a_server_tell_whether_it_speaks_tls() {
        let alert = b"\x15\x03\x03\0\x02\x02\x32";
        let hello = b"\x16\x03\x03\0\x7a\x02";
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
        let refusal = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        let told = b"HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port";
        for (expected, received, result) in [
            (Expected::Tls, &hello[..], Ok(())),
            (Expected::Tls, alert, Ok(())),
            (Expected::Tls, settings, Err(Some(Mismatch::Plaintext))),
            (Expected::Tls, refusal, Err(Some(Mismatch::Plaintext))),
            (Expected::Http2, settings, Ok(())),
            (Expected::Http2, alert, Err(Some(Mismatch::Tls))),
            (Expected::Http2, told, Err(Some(Mismatch::Tls))),
            (Expected::Http2, refusal, Err(None)),
            (Expected::Http1, refusal, Ok(())),
            (Expected::Http1, alert, Err(Some(Mismatch::Tls))),
        ] {
            assert_eq!(read_first(expected, received).await, result, "{expected:?} {received:?}");
        }
    }

    #[tokio::test]
    async fn bytes_that_come_later_are_not_checked() {
        let (near, mut far) = duplex(1024);
        let mut near = CheckFirst::new(near, Expected::Http1);
        for received in [&b"H"[..], b"\x15\x03"] {
            far.write_all(received).await.unwrap();
            let mut buffer = vec![0; received.len()];
            near.read_exact(&mut buffer).await.unwrap();
            assert_eq!(buffer, received);
        }
    }
}
