//! The stream under HTTP: who says nothing at first is let go, whoever reads nothing too, and no
//! connection reads more in one turn than its part.

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

/// Wraps `stream` so that the handshake timeout, which ends `by` then, stops at the first bytes of
/// HTTP, and so that a write fails when the peer takes nothing for as long as an answer may wait.
pub(super) fn opening<I>(
    stream: I,
    connection: Arc<Connection>,
    by: Instant,
) -> (Paced<I>, Opening) {
    let spoke = Arc::new(AtomicBool::new(false));
    let opening = Opening(Some((Box::pin(tokio::time::sleep_until(by)), spoke.clone())));
    let (missing, patience) = (PREFACE.len(), connection.patience());
    let is_http2 = true;
    (Paced { stream, connection, missing, is_http2, spoke, patience, stuck: None }, opening)
}

/// How long a connection has for its first bytes of HTTP. Once it has sent them, this costs nothing.
#[derive(Debug)]
pub(super) struct Opening(Option<(Pin<Box<Sleep>>, Arc<AtomicBool>)>);

impl Opening {
    /// Whether the time is over and nothing came. Has to be asked after the stream was read.
    pub(super) fn is_missed(&mut self, context: &mut Context<'_>) -> bool {
        match &mut self.0 {
            None => false,
            Some((_, spoke)) if spoke.load(Ordering::Relaxed) => {
                self.0 = None;
                false
            }
            Some((over, _)) => over.as_mut().poll(context).is_ready(),
        }
    }
}

/// A stream that is read in turns and written under a time limit.
#[derive(Debug)]
pub(super) struct Paced<I> {
    stream: I,
    connection: Arc<Connection>,
    /// Bytes of the preface that have not come yet.
    missing: usize,
    /// Whether those that have come are the preface of HTTP/2.
    is_http2: bool,
    spoke: Arc<AtomicBool>,
    patience: Duration,
    /// Runs while something waits for the peer to read.
    stuck: Option<Pin<Box<Sleep>>>,
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
            self.stuck = None;
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stuck.as_mut().poll(context));
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
            // The rest is read in the next turn, after everybody who is ready has had one.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let mut part = (&mut self.stream).take(readable as u64);
        ready!(Pin::new(&mut part).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.connection.has_read(read);
        if self.missing > 0 {
            let preface = &PREFACE[PREFACE.len() - self.missing..];
            let came = &buffer.filled()[before..];
            self.is_http2 &= preface.iter().zip(came).all(|(expected, byte)| expected == byte);
            self.missing = self.missing.saturating_sub(read);
            if self.missing == 0 {
                self.spoke.store(true, Ordering::Relaxed);
                if self.is_http2 {
                    self.connection.has_sent_preface();
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
