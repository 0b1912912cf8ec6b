//! The stream under HTTP: it limits how much a connection reads in one turn, and how long a write may
//! wait.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_io_timeout::TimeoutWriter;

use crate::bounds::connection::Connection;

/// The connection preface of HTTP/2; no request of HTTP/1.1 is shorter.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream that is read in turns, and whose writes fail when the peer reads nothing for the answer
/// timeout.
#[derive(Debug)]
pub(super) struct Paced<I> {
    stream: Pin<Box<TimeoutWriter<I>>>,
    connection: Arc<Connection>,
    /// How many bytes of the preface have not arrived yet.
    missing: usize,
    /// Whether the bytes that have arrived are those of the HTTP/2 preface.
    is_http2: bool,
}

impl<I: AsyncWrite> Paced<I> {
    pub(super) fn new(stream: I, connection: Arc<Connection>) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(connection.answer_timeout()));
        let missing = PREFACE.len();
        Self { stream: Box::pin(stream), connection, missing, is_http2: true }
    }
}

impl<I: AsyncRead + AsyncWrite> AsyncRead for Paced<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let readable = self.connection.readable();
        if readable == 0 {
            // The rest is read in the next turn, after the other connections that are ready had theirs.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let mut part = (&mut self.stream).take(readable as u64);
        ready!(Pin::new(&mut part).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.connection.count_read(read);
        if self.missing > 0 {
            let preface = &PREFACE[PREFACE.len() - self.missing..];
            let arrived = &buffer.filled()[before..];
            self.is_http2 &= preface.iter().zip(arrived).all(|(expected, byte)| expected == byte);
            self.missing = self.missing.saturating_sub(read);
            if self.missing == 0 {
                self.connection.mark_http(self.is_http2);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite> AsyncWrite for Paced<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
