//! The connections of the admin port. Each has time limits for headers, idleness and writes; none keeps
//! others from being answered; none outlives the server.

pub(super) mod places;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::api::Peer;
use crate::accept::Acceptor;
use crate::stream::{Tracked, Tracker};
use places::{AdminConnection, AdminPlaces};

/// The most bytes of the headers of a request, and of an answer in the write buffer.
const BUFFER: usize = 64 * 1024;

/// How long a write may wait for the caller to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

static ACCEPTOR: Acceptor = Acceptor::new("the admin port");

/// Serves `router` until the server stops, then drops every connection.
pub(crate) async fn serve(listener: TcpListener, router: Router, stopped: CancellationToken) {
    let places = AdminPlaces::new();
    let serve = |stream, peer| {
        let (router, stopped) = (router.clone(), stopped.clone());
        let connection = places.admit();
        tokio::spawn(async move {
            tokio::select! {
                () = drive(stream, Peer(peer), router, connection) => {}
                () = stopped.cancelled() => {}
            }
        });
        std::future::ready(())
    };
    ACCEPTOR.run(listener, &stopped, serve).await;
}

impl Tracker for Arc<AdminConnection> {
    fn received(&mut self, _: &[u8]) {
        self.bytes_received();
    }

    fn flushed(&mut self) {
        AdminConnection::flushed(self);
    }
}

/// Serves one connection until it ends, misses a deadline or is evicted.
async fn drive<I>(stream: I, peer: Peer, router: Router, connection: Arc<AdminConnection>)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let own = connection.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let in_flight = own.request_started();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(own.clone());
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await?.map(|body| in_flight.with(body))) }
    });
    let stream = Tracked::new(stream, WRITE_TIMEOUT, connection.clone());
    let mut http = http1::Builder::new();
    http.max_buf_size(BUFFER);
    let mut http = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
    let served = std::future::poll_fn(|context| {
        if let Poll::Ready(served) = http.as_mut().poll(context) {
            return Poll::Ready(served.map_err(|error| error.to_string()));
        }
        let Some(deadline) = connection.deadline() else { return Poll::Pending };
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(context).map(|()| Err("it took too long".into()))
    });
    let served = tokio::select! {
        served = served => served,
        () = connection.evicted().cancelled() => Err("it was evicted: there were too many connections".into()),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin port broke");
    }
}

#[cfg(test)]
mod tests;
