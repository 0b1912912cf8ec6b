//! The start of a connection: who says nothing at first is let go.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// As long as the first words of HTTP/2; no request of HTTP/1.1 is shorter.
const FIRST_WORDS: usize = 24;

/// Makes of `stream` one that tells when the first words of HTTP came in, and of `by` the time-out
/// that ends with that.
pub(super) fn opening<I>(stream: I, by: Instant) -> (Heard<I>, Opening) {
    let spoke = Arc::new(AtomicBool::new(false));
    let opening = Opening(Some((Box::pin(tokio::time::sleep_until(by)), spoke.clone())));
    (Heard { stream, missing: FIRST_WORDS, spoke }, opening)
}

/// How long a connection has for its first words. Once it has said them, this costs nothing.
#[derive(Debug)]
pub(super) struct Opening(Option<(Pin<Box<Sleep>>, Arc<AtomicBool>)>);

impl Opening {
    /// Whether the time is over and nothing was said. Has to be asked after the stream was read.
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

/// A stream of which the first bytes are counted.
#[derive(Debug)]
pub(super) struct Heard<I> {
    stream: I,
    missing: usize,
    spoke: Arc<AtomicBool>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Heard<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.missing == 0 {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
        if self.missing == 0 {
            self.spoke.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Heard<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
