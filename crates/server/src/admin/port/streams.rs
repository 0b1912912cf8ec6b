//! The stream of a connection of the admin port.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_io_timeout::TimeoutWriter;

use super::places::Connection;

/// How long a write may wait for the caller to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// A stream that updates the state of its connection when bytes are received or flushed, and whose
/// writes fail when the caller reads nothing for a while.
pub(super) struct Tracked<I> {
    stream: Pin<Box<TimeoutWriter<I>>>,
    connection: Arc<Connection>,
}

impl<I: AsyncWrite> Tracked<I> {
    pub(super) fn new(stream: I, connection: Arc<Connection>) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(WRITE_TIMEOUT));
        Self { stream: Box::pin(stream), connection }
    }
}

impl<I: AsyncRead + AsyncWrite> AsyncRead for Tracked<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream.as_mut().poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.connection.bytes_received();
        }
        Poll::Ready(Ok(()))
    }
}

/// Hyper flushes the stream once everything is written.
impl<I: AsyncWrite> AsyncWrite for Tracked<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.as_mut().poll_flush(context))?;
        self.connection.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::super::places::Places;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_reader_that_reads_nothing_times_out_and_to_a_slow_one_does_not() {
        let (here, mut there) = duplex(8);
        let mut stream = Tracked::new(here, Places::new().admit());
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(WRITE_TIMEOUT - Duration::from_secs(1)).await;
                there.read_exact(&mut [0; 8]).await.unwrap();
            }
            there
        });
        stream.write_all(&[7; 40]).await.unwrap();
        let _there = slow.await.unwrap();
        let began = Instant::now();
        let error = stream.write_all(&[7; 40]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, WRITE_TIMEOUT));
    }
}
