//! HTTP to one server, for callers that wait on their thread.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use connect::{Bytestream, Way};
use http_body_util::Full;
use hyper::Uri;
use hyper::body::Bytes;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::runtime;

/// How much of a caller's patience connecting may take: there is time left to say what was tried.
const FOR_CONNECTING: f64 = 0.9;

/// What makes the calls.
pub(super) type Client = legacy::Client<Connector, Full<Bytes>>;

/// A link to one server. Clones share its connections.
#[derive(Clone)]
pub(super) struct Link {
    runtime: Arc<Background>,
    client: Client,
    timeout: Duration,
}

impl Link {
    /// A link over `way`, of which every answer may take `timeout`.
    pub(super) fn new(way: Way, timeout: Duration) -> Result<Self, Failure> {
        let connector = Connector { way: Arc::new(way), within: timeout.mul_f64(FOR_CONNECTING) };
        let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
        let runtime = Arc::new(Background(Some(runtime::current_thread()?)));
        Ok(Self { runtime, client, timeout })
    }

    /// How long an answer may take.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks, and waits for what comes of it.
    pub(super) fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, Unanswered>,
    ) -> Result<T, Unanswered> {
        let runtime = self.runtime.0.as_ref().expect("it is there until it is dropped");
        runtime.block_on(async {
            let answered = tokio::time::timeout(self.timeout, ask(&self.client)).await;
            answered.unwrap_or(Err(Unanswered::Late))
        })
    }
}

/// Why no answer came.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The time was over.
    Late,
    /// It could not be asked, or the answer did not begin.
    Call(legacy::Error),
    /// The answer broke off, or was too long.
    Body(Box<dyn Error + Send + Sync>),
}

/// A runtime of which nobody waits for the end: a name may still be looked up.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Connects to the one server there is, whatever a request says.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    way: Arc<Way>,
    within: Duration,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = connect::Unreached;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (way, deadline) = (self.way.clone(), Instant::now() + self.within);
        Box::pin(async move {
            let stream = way.connect(deadline, |stream, _| async { Ok(stream) }).await?;
            Ok(TokioIo::new(Stream(stream)))
        })
    }
}

/// A connection of which nothing more is to be known.
pub(super) struct Stream(Box<dyn Bytestream>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}
