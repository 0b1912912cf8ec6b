//! Accepts connections, with one loop for every port.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::repeated::Repeated;

/// How long to wait after an error that concerns the whole port: the system has no file descriptors
/// left, for example.
const BACKOFF: Duration = Duration::from_millis(50);

/// Accepts the connections of one port.
#[derive(Debug)]
pub(crate) struct Acceptor {
    port: &'static str,
    failures: Repeated,
}

impl Acceptor {
    /// Accepts for the port with this name.
    pub(crate) const fn new(port: &'static str) -> Self {
        Self { port, failures: Repeated::new() }
    }

    /// Accepts connections until `shutdown` is cancelled, then closes the listener.
    ///
    /// Each connection is given to `serve`. The next one is accepted when the future of `serve` is
    /// ready, so `serve` spawns what takes long.
    pub(crate) async fn run<F>(
        &self,
        listener: TcpListener,
        shutdown: &CancellationToken,
        serve: impl FnMut(TcpStream, SocketAddr) -> F,
    ) where
        F: Future<Output = ()>,
    {
        tokio::select! {
            () = self.accept(&listener, serve) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn accept<F>(
        &self,
        listener: &TcpListener,
        mut serve: impl FnMut(TcpStream, SocketAddr) -> F,
    ) where
        F: Future<Output = ()>,
    {
        loop {
            match listener.accept().await {
                // Answers are small, and clients wait for them: no delay until the last packet is
                // acknowledged. A stream on which this cannot be set is closed already.
                Ok((stream, peer)) if stream.set_nodelay(true).is_ok() => serve(stream, peer).await,
                Ok(_) => {}
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if let Some(times) = self.failures.count() {
                        tracing::warn!(%error, times, "{} cannot accept a connection", self.port);
                    }
                    tokio::time::sleep(BACKOFF).await;
                }
            }
            // When many connections come at once, the other threads accept some of them, and
            // requests that have arrived are answered first.
            tokio::task::yield_now().await;
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
