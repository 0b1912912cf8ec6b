//! The bodies of requests, and their timeout.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::time::Sleep;
use tonic::Status;
use tonic::codegen::StdError;

/// The body of a request to the gRPC port.
pub(crate) trait RequestBody:
    HttpBody<Data = Bytes, Error: Into<StdError> + fmt::Display + Send> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: HttpBody<Data = Bytes, Error: Into<StdError> + fmt::Display + Send> + Send + Unpin + 'static
{
}

/// A body that has to arrive within a time.
///
/// Most bodies have arrived when they are read. The timer is created, and the time starts, with the
/// first wait.
#[derive(Debug)]
pub(super) struct TimedBody<'b, B> {
    body: &'b mut B,
    within: Duration,
    over: Option<Pin<Box<Sleep>>>,
}

impl<'b, B: RequestBody> TimedBody<'b, B> {
    pub(super) fn new(body: &'b mut B, within: Duration) -> Self {
        Self { body, within, over: None }
    }

    /// The next data, `None` at the end. Cancellation safe.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE` when the time is over: the caller may be slow, and may try again.
    /// `INVALID_ARGUMENT` when the body is incomplete, or is no valid gRPC-Web.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Status> {
        poll_fn(|context| {
            loop {
                let frame = match Pin::new(&mut *self.body).poll_frame(context) {
                    Poll::Ready(frame) => frame.transpose().map_err(read_failed)?,
                    Poll::Pending => {
                        let within = self.within;
                        let over = || Box::pin(tokio::time::sleep(within));
                        let over = self.over.get_or_insert_with(over);
                        return over.as_mut().poll(context).map(|()| {
                            let problem = format!("the message did not arrive within {within:?}");
                            Err(Status::unavailable(problem))
                        });
                    }
                };
                match frame.map(Frame::into_data) {
                    None => return Poll::Ready(Ok(None)),
                    Some(Ok(data)) => return Poll::Ready(Ok(Some(data))),
                    Some(Err(_trailers)) => {}
                }
            }
        })
        .await
    }

    /// Whether the body is known to have ended, without waiting.
    pub(super) fn is_at_end(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The status of a body that is incomplete, or is no valid gRPC-Web.
pub(super) fn read_failed(error: impl Into<StdError>) -> Status {
    Status::invalid_argument(format!("the request cannot be read to its end: {}", error.into()))
}
