//! The records of one end of a link that wait to be sent. What gathers meanwhile is sent together.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tonic::Status;

use super::records::{Fields, append};

/// A buffer that once held more is not kept.
const KEPT_BYTES: usize = 64 << 10;

/// The records that wait.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    has_ended: bool,
    /// Who sends, while nothing is there to send.
    sender: Option<Waker>,
}

impl Outbox {
    /// Adds the record whose fields `write` writes.
    pub(crate) fn push(&self, write: impl FnOnce(&mut Fields<'_>)) {
        let mut state = self.0.lock();
        append(&mut state.buffer, write);
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// Ends the records: what waits is still sent.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.has_ended = true;
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().buffer.len()
    }
}

/// The records as the body of a request or an answer. It ends after [`Outbox::end`].
#[derive(Debug)]
pub(crate) struct Sent(pub(crate) Arc<Outbox>);

impl Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = self.0.0.lock();
        if !state.buffer.is_empty() {
            let data = state.buffer.split().freeze();
            if state.buffer.capacity() > KEPT_BYTES {
                state.buffer = BytesMut::new();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        state.sender = Some(context.waker().clone());
        Poll::Pending
    }
}
