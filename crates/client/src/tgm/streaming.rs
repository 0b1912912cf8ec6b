//! Streams of gRPC over the connection, for the clients that tonic generates.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use super::connection::{Connection, UnderWay};
use super::unary::{broken, make_status_readable};
use crate::plugin::BoxFuture;

/// The least room of a server, in calls at once, in which a stream may stand beside other calls.
const LEAST_ROOM: usize = 2;

/// Why a stream is not opened, or goes on no longer: the other calls would wait for its end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the server has room for one call at a time")]
pub(crate) struct NoRoom;

impl From<NoRoom> for Status {
    fn from(error: NoRoom) -> Self {
        Self::from_error(Box::new(error))
    }
}

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

impl Service<Request<Body>> for Connection {
    type Response = Response<BothWays>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<BothWays>, Status>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // It is waited for under the deadline of the call.
        Poll::Ready(Ok(()))
    }

    /// Sends a request. Its body is sent while the future, and then the body of the answer, is
    /// polled: nothing is spawned for it.
    ///
    /// It fails with [`NoRoom`], at the beginning or later, when the server has no room beside it.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = self.clone();
        Box::pin(async move {
            let mut ready = connection.ready().await?;
            let mut crowded = crowded(ready.call.room().await);
            if crowded.as_mut().now_or_never().is_some() {
                return Err(NoRoom.into());
            }
            let (head, body) = request.into_parts();
            let request = Request::from_parts(head, ());
            let (mut answer, to) = ready.requests.send_request(request, false).map_err(broken)?;
            let mut outgoing = Outgoing { body, to, waiting: Bytes::new(), ended: false };
            let answer = poll_fn(|cx| {
                if crowded.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(NoRoom.into()));
                }
                outgoing.send(cx);
                Pin::new(&mut answer).poll(cx).map_err(broken)
            });
            let mut answer = answer.await?;
            make_status_readable(answer.headers_mut());
            // No compressed answer was asked for. Without the header the flag of each message decides, as
            // in unary calls; with it, tonic takes the server for one that does not know the method.
            answer.headers_mut().remove(GRPC_ENCODING);
            Ok(answer.map(|incoming| BothWays { outgoing, incoming, crowded, _call: ready.call }))
        })
    }
}

/// Waits until a server has no room for a stream beside other calls.
fn crowded(mut room: watch::Receiver<usize>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        // The connection lives as long as its calls do, and tells.
        if room.wait_for(|room| *room < LEAST_ROOM).await.is_err() {
            std::future::pending().await
        }
    })
}

/// What is sent in a call.
struct Outgoing {
    body: Body,
    to: SendStream<Bytes>,
    /// What the other side has not left room for yet.
    waiting: Bytes,
    ended: bool,
}

impl Outgoing {
    /// Sends what there is to send, as far as there is room. What is in the way of it shows in the
    /// answer.
    fn send(&mut self, cx: &mut Context<'_>) {
        while !self.ended {
            if self.waiting.is_empty() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(frame))) => {
                        self.waiting = frame.into_data().unwrap_or_default();
                    }
                    Poll::Ready(Some(Err(_))) => {
                        self.to.send_reset(Reason::INTERNAL_ERROR);
                        self.ended = true;
                    }
                    Poll::Ready(None) => {
                        // What cannot be ended is over already.
                        let _ = self.to.send_data(Bytes::new(), true);
                        self.ended = true;
                    }
                }
                continue;
            }
            self.to.reserve_capacity(self.waiting.len());
            match self.to.capacity() {
                0 => match self.to.poll_capacity(cx) {
                    Poll::Pending => return,
                    // It may be none yet.
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(_)) | None) => self.ended = true,
                },
                room => {
                    let now = self.waiting.split_to(room.min(self.waiting.len()));
                    self.ended = self.to.send_data(now, false).is_err();
                }
            }
        }
    }
}

/// What comes back in a call; what is sent goes out as this is polled.
pub(crate) struct BothWays {
    outgoing: Outgoing,
    incoming: RecvStream,
    crowded: BoxFuture<'static, ()>,
    _call: UnderWay,
}

impl HttpBody for BothWays {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { outgoing, incoming, crowded, .. } = &mut *self;
        if crowded.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(NoRoom.into())));
        }
        outgoing.send(cx);
        let data = ready!(incoming.poll_data(cx)).transpose().map_err(broken)?;
        if let Some(data) = data {
            incoming.flow_control().release_capacity(data.len()).map_err(broken)?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(incoming.poll_trailers(cx)).map_err(broken)?;
        Poll::Ready(trailers.map(|mut trailers| {
            make_status_readable(&mut trailers);
            Ok(Frame::trailers(trailers))
        }))
    }
}

#[cfg(test)]
mod tests;
