//! HTTP to one server, for callers that block their thread.

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

/// The part of the timeout that connecting may take. The rest is for the error, which says what was tried.
const CONNECT_PART: f64 = 0.9;

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
    /// A link over `way`. Every answer may take `timeout`.
    pub(super) fn new(way: Way, timeout: Duration) -> Result<Self, Failure> {
        let connector = Connector { way: Arc::new(way), within: timeout.mul_f64(CONNECT_PART) };
        let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
        let runtime = Arc::new(Background(Some(runtime::current_thread()?)));
        Ok(Self { runtime, client, timeout })
    }

    /// How long an answer may take.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes a call, and waits for its result.
    pub(super) fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, Unanswered>,
    ) -> Result<T, Unanswered> {
        let runtime = self.runtime.0.as_ref().expect("it is taken only by the drop");
        runtime.block_on(async {
            let answered = tokio::time::timeout(self.timeout, ask(&self.client)).await;
            answered.unwrap_or(Err(Unanswered::Late))
        })
    }
}

/// Why no answer came.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The timeout passed.
    Late,
    /// The request could not be sent, or the answer did not begin.
    Call(legacy::Error),
    /// The answer broke off, or was too long.
    Body(Box<dyn Error + Send + Sync>),
}

/// A runtime whose drop does not wait: a lookup of a name may still run.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Connects to the server, whatever URI a request has.
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
            let (stream, _) = way.connect(deadline, |stream, _| async { Ok(stream) }).await?;
            Ok(TokioIo::new(Stream(stream)))
        })
    }
}

/// A connection without further information for hyper.
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
