//! A stream whose reads are watched, and the check of the first bytes that a server sends: they show
//! whether it speaks TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mismatch::Mismatch;
use crate::protocol::Protocol;

/// Sees what is read from a stream.
pub(crate) trait Watch: Unpin {
    /// Sees the bytes of one read, or its error, and returns what the reader gets.
    fn see(&mut self, read: io::Result<&[u8]>) -> io::Result<()>;
}

/// A stream whose reads are watched.
#[derive(Debug)]
pub(crate) struct Watched<T, W> {
    pub(crate) stream: T,
    pub(crate) watch: W,
}

impl<T: AsyncRead + Unpin, W: Watch> AsyncRead for Watched<T, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        Poll::Ready(self.watch.see(read.map(|()| &buffer.filled()[before..])))
    }
}

impl<T: AsyncWrite + Unpin, W: Unpin> AsyncWrite for Watched<T, W> {
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

/// The types of the TLS records that a server may send first.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// What the client speaks, and so what the server may send first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A TLS record.
    Tls,
    /// HTTP/2 frames, or an HTTP/1.1 response.
    Plain(Protocol),
}

impl Expected {
    /// Checks the first bytes, of which there is at least one.
    fn check(self, received: &[u8]) -> io::Result<()> {
        match self {
            Self::Tls if !matches!(received[0], ALERT | HANDSHAKE) => {
                Err(Mismatch::Plaintext.into())
            }
            // No HTTP/2 frame is that long, and no HTTP/1 response begins with this byte.
            Self::Plain(_) if received[0] == ALERT => Err(Mismatch::Tls.into()),
            Self::Plain(Protocol::Http2) if received.starts_with(b"HTTP/1") => {
                Err(answered_in_http_1(received))
            }
            Self::Tls | Self::Plain(_) => Ok(()),
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

/// Checks the first bytes of a stream; `None` once they were checked.
impl Watch for Option<Expected> {
    fn see(&mut self, read: io::Result<&[u8]>) -> io::Result<()> {
        let received = read?;
        match self.take_if(|_| !received.is_empty()) {
            Some(expected) => expected.check(received),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    fn checked(
        stream: DuplexStream,
        expected: Expected,
    ) -> Watched<DuplexStream, Option<Expected>> {
        Watched { stream, watch: Some(expected) }
    }

    /// Reads `received` as a client that expects `expected`.
    async fn read_first(expected: Expected, received: &[u8]) -> Result<(), Option<Mismatch>> {
        let (near, mut far) = duplex(1024);
        far.write_all(received).await.unwrap();
        let mut buffer = [0; 1024];
        let read = checked(near, expected).read(&mut buffer).await;
        read.map(|length| assert_eq!(&buffer[..length], received))
            .map_err(|error| Mismatch::of(&error))
    }

    #[tokio::test]
    async fn the_first_bytes_of_a_server_show_whether_the_server_uses_tls() {
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
            (Expected::Plain(Protocol::Http2), settings, Ok(())),
            (Expected::Plain(Protocol::Http2), alert, Err(Some(Mismatch::Tls))),
            (Expected::Plain(Protocol::Http2), told, Err(Some(Mismatch::Tls))),
            (Expected::Plain(Protocol::Http2), refusal, Err(None)),
            (Expected::Plain(Protocol::Http1), refusal, Ok(())),
            (Expected::Plain(Protocol::Http1), alert, Err(Some(Mismatch::Tls))),
        ] {
            assert_eq!(read_first(expected, received).await, result, "{expected:?} {received:?}");
        }
    }

    #[tokio::test]
    async fn bytes_that_come_later_are_not_checked() {
        let (near, mut far) = duplex(1024);
        let mut near = checked(near, Expected::Plain(Protocol::Http1));
        for received in [&b"H"[..], b"\x15\x03"] {
            far.write_all(received).await.unwrap();
            let mut buffer = vec![0; received.len()];
            near.read_exact(&mut buffer).await.unwrap();
            assert_eq!(buffer, received);
        }
    }
}
