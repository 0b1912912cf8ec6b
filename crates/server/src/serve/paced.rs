//! The stream under HTTP: it stops the handshake timeout at the first bytes of HTTP, limits how long a
//! write may wait, and limits how much a connection reads in one turn.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::bounds::connection::Connection;

/// The connection preface of HTTP/2; no request of HTTP/1.1 is shorter.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Wraps `stream` so that the handshake timeout stops at the first bytes of HTTP, and so that a write
/// fails when the peer reads nothing for the write timeout. The handshake timeout ends at `deadline`.
pub(super) fn paced<I>(
    stream: I,
    connection: Arc<Connection>,
    deadline: Instant,
) -> (Paced<I>, HandshakeTimeout) {
    let has_begun = Arc::new(AtomicBool::new(false));
    let timer = Box::pin(tokio::time::sleep_until(deadline));
    let timeout = HandshakeTimeout(Some((timer, has_begun.clone())));
    let (missing, write_timeout) = (PREFACE.len(), connection.patience());
    let is_http2 = true;
    let write_timer = None;
    let stream =
        Paced { stream, connection, missing, is_http2, has_begun, write_timeout, write_timer };
    (stream, timeout)
}

/// The handshake timeout: how long a connection has for its first bytes of HTTP. After them it costs
/// nothing.
#[derive(Debug)]
pub(super) struct HandshakeTimeout(Option<(Pin<Box<Sleep>>, Arc<AtomicBool>)>);

impl HandshakeTimeout {
    /// Whether the timeout is over before the first bytes of HTTP. To be called after the stream was read.
    pub(super) fn has_expired(&mut self, context: &mut Context<'_>) -> bool {
        match &mut self.0 {
            None => false,
            Some((_, has_begun)) if has_begun.load(Ordering::Relaxed) => {
                self.0 = None;
                false
            }
            Some((timer, _)) => timer.as_mut().poll(context).is_ready(),
        }
    }
}

/// A stream that is read in turns and written with a timeout.
#[derive(Debug)]
pub(super) struct Paced<I> {
    stream: I,
    connection: Arc<Connection>,
    /// How many bytes of the preface have not arrived yet.
    missing: usize,
    /// Whether the bytes that have arrived are those of the HTTP/2 preface.
    is_http2: bool,
    has_begun: Arc<AtomicBool>,
    write_timeout: Duration,
    /// Runs while a write waits for the peer to read.
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl<I> Paced<I> {
    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>>
    where
        I: Unpin,
    {
        if let Poll::Ready(written) = write(Pin::new(&mut self.stream), context) {
            self.write_timer = None;
            return Poll::Ready(written);
        }
        let timeout = self.write_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
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
                self.has_begun.store(true, Ordering::Relaxed);
                if self.is_http2 {
                    self.connection.mark_http2();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, |stream, context| stream.poll_shutdown(context))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
