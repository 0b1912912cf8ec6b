//! The stream under HTTP, of both ports: its writes fail when the peer reads nothing for a while, and its
//! connection tracks what is received and flushed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_io_timeout::TimeoutWriter;

/// Tracks the stream of a connection.
pub(crate) trait Tracker: Unpin {
    /// How many bytes may be read now. The rest is read in the next turn of the connection.
    fn readable(&self) -> usize {
        usize::MAX
    }

    /// Called with each part that was received.
    fn received(&mut self, bytes: &[u8]);

    /// Called when the stream was flushed. Hyper flushes it once everything is written.
    fn flushed(&mut self) {}
}

/// A stream with a write timeout and a tracker.
#[derive(Debug)]
pub(crate) struct Tracked<I, T> {
    stream: Pin<Box<TimeoutWriter<I>>>,
    tracker: T,
}

impl<I: AsyncWrite, T> Tracked<I, T> {
    /// A write fails when the peer reads nothing for the time `timeout`.
    pub(crate) fn new(stream: I, timeout: Duration, tracker: T) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(timeout));
        Self { stream: Box::pin(stream), tracker }
    }
}

impl<I: AsyncRead + AsyncWrite, T: Tracker> AsyncRead for Tracked<I, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let readable = self.tracker.readable();
        if readable == 0 {
            // Other connections that are ready have their turns first.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let mut part = (&mut self.stream).take(readable as u64);
        ready!(Pin::new(&mut part).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.tracker.received(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite, T: Tracker> AsyncWrite for Tracked<I, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.as_mut().poll_flush(context))?;
        self.tracker.flushed();
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    struct Nothing;

    impl Tracker for Nothing {
        fn received(&mut self, _: &[u8]) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_reader_that_reads_nothing_times_out_and_to_a_slow_one_does_not() {
        const TIMEOUT: Duration = Duration::from_secs(20);
        let (here, mut there) = duplex(8);
        let mut stream = Tracked::new(here, TIMEOUT, Nothing);
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(TIMEOUT - Duration::from_secs(1)).await;
                there.read_exact(&mut [0; 8]).await.unwrap();
            }
            there
        });
        stream.write_all(&[7; 40]).await.unwrap();
        let _there = slow.await.unwrap();
        let began = Instant::now();
        let error = stream.write_all(&[7; 40]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, TIMEOUT));
    }
}
