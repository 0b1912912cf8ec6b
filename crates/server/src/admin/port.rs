//! The connections of the admin port: so many at once, none that is idle or stuck for long, and none
//! that outlives the server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::api::Peer;

/// The most connections at once; more wait in the socket. Most of what is held are streams of events.
const MAX_CONNECTIONS: usize = 256;

/// How long a connection may take to its next request, headers included.
const IDLE: Duration = Duration::from_secs(60);

/// How long a caller may read nothing of what is there for it.
const STUCK: Duration = Duration::from_secs(20);

/// The most bytes of the headers of a request, and of an answer under way.
const BUFFER: usize = 64 * 1024;

/// How long to wait when the system has no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Serves `router` until the server stops, and lets go of every connection then.
pub(crate) async fn serve(listener: TcpListener, router: Router, stopped: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accept = async {
        while let Ok(place) = places.clone().acquire_owned().await {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the admin port cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let connection = drive(stream, Peer(peer), router.clone());
            let stopped = stopped.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = connection => {}
                    () = stopped.cancelled() => {}
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = stopped.cancelled() => {}
    }
}

async fn drive(stream: TcpStream, peer: Peer, router: Router) {
    // Answers are small and awaited. A stream that cannot be told is gone already.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(BUFFER);
    let served = http.serve_connection(TokioIo::new(Impatient::new(stream)), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin port broke");
    }
}

/// A stream that fails once its reader took nothing for a while.
struct Impatient<I> {
    stream: I,
    /// Runs while something waits for the reader.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<I> Impatient<I> {
    fn new(stream: I) -> Self {
        Self { stream, patience: None }
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(&mut I, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(written) = write(&mut self.stream, context) {
            self.patience = None;
            return Poll::Ready(written);
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(STUCK)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the caller reads nothing")))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Impatient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Impatient<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |stream, context| Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |stream, context| Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |stream, context| Pin::new(stream).poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_reads_nothing_is_given_up_and_a_slow_one_is_not() {
        let (here, mut there) = duplex(8);
        let mut stream = Impatient::new(here);
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(STUCK - Duration::from_secs(1)).await;
                there.read_exact(&mut [0; 8]).await.unwrap();
            }
            there
        });
        stream.write_all(&[7; 40]).await.unwrap();
        let _there = slow.await.unwrap();
        let began = Instant::now();
        let error = stream.write_all(&[7; 40]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, STUCK));
    }
}
