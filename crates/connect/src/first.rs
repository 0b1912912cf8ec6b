//! Looks at the first bytes of a server, which tell whether it speaks TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mismatch::Mismatch;

/// How the records of TLS begin that a server may send first.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// What the client speaks, and so what may come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// A record of TLS.
    Tls,
    /// Frames of HTTP/2.
    Http2,
    /// An answer in HTTP/1.1.
    Http1,
}

impl Spoken {
    /// Judges what came first, which is not empty.
    fn check(self, said: &[u8]) -> io::Result<()> {
        match self {
            Self::Tls if !matches!(said[0], ALERT | HANDSHAKE) => Err(Mismatch::Plaintext.into()),
            // No frame is so long, and no text begins so.
            Self::Http1 | Self::Http2 if said[0] == ALERT => Err(Mismatch::Tls.into()),
            Self::Http2 if said.starts_with(b"HTTP/1") => Err(only_http_1(said)),
            Self::Tls | Self::Http2 | Self::Http1 => Ok(()),
        }
    }
}

/// Some servers answer in plain words to plain words on a port for TLS, as nginx and Apache do.
fn only_http_1(said: &[u8]) -> io::Error {
    let told = |word: &[u8]| said.windows(word.len()).any(|part| part == word);
    if told(b"HTTPS") || told(b"SSL") {
        return Mismatch::Tls.into();
    }
    io::Error::other("the server answers in HTTP/1 and does not speak HTTP/2")
}

/// A stream of bytes of which the first that come are looked at.
#[derive(Debug)]
pub(crate) struct First<T> {
    stream: T,
    awaited: Option<Spoken>,
}

impl<T> First<T> {
    pub(crate) fn new(stream: T, awaited: Spoken) -> Self {
        Self { stream, awaited: Some(awaited) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for First<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let said = &buffer.filled()[before..];
        if !said.is_empty()
            && let Some(awaited) = self.awaited.take()
        {
            awaited.check(said)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for First<T> {
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

    /// What a client that speaks `awaited` takes a server for that says this first.
    async fn heard(awaited: Spoken, said: &[u8]) -> Result<(), Option<Mismatch>> {
        let (near, mut far) = duplex(1024);
        far.write_all(said).await.unwrap();
        let mut buffer = [0; 1024];
        let read = First::new(near, awaited).read(&mut buffer).await;
        read.map(|length| assert_eq!(&buffer[..length], said)).map_err(|error| Mismatch::of(&error))
    }

    #[tokio::test]
    async fn the_first_bytes_of_a_server_tell_whether_it_speaks_tls() {
        let alert = b"\x15\x03\x03\0\x02\x02\x32";
        let hello = b"\x16\x03\x03\0\x7a\x02";
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
        let refusal = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        let told = b"HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port";
        for (awaited, said, result) in [
            (Spoken::Tls, &hello[..], Ok(())),
            (Spoken::Tls, alert, Ok(())),
            (Spoken::Tls, settings, Err(Some(Mismatch::Plaintext))),
            (Spoken::Tls, refusal, Err(Some(Mismatch::Plaintext))),
            (Spoken::Http2, settings, Ok(())),
            (Spoken::Http2, alert, Err(Some(Mismatch::Tls))),
            (Spoken::Http2, told, Err(Some(Mismatch::Tls))),
            (Spoken::Http2, refusal, Err(None)),
            (Spoken::Http1, refusal, Ok(())),
            (Spoken::Http1, alert, Err(Some(Mismatch::Tls))),
        ] {
            assert_eq!(heard(awaited, said).await, result, "{awaited:?} {said:?}");
        }
    }

    #[tokio::test]
    async fn what_comes_later_is_not_looked_at() {
        let (near, mut far) = duplex(1024);
        let mut near = First::new(near, Spoken::Http1);
        for said in [&b"H"[..], b"\x15\x03"] {
            far.write_all(said).await.unwrap();
            let mut buffer = vec![0; said.len()];
            near.read_exact(&mut buffer).await.unwrap();
            assert_eq!(buffer, said);
        }
    }
}
