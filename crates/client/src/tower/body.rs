//! The body of a gated response. It ends when the session ends, and returns the session at its end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::protocol::{Protocol, answer_to_caller};
use crate::error::Error;
use crate::guard::Session;
use crate::plugin::BoxFuture;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// The response body of a service behind a [`SessionLayer`](crate::SessionLayer).
    ///
    /// It holds the session of the response until the inner body has ended or failed, or until it is
    /// dropped. When the session ends first, the body ends, between two frames.
    pub struct SessionBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<B> {
        /// The path is exempt, and there is no session.
        Open { #[pin] body: B },
        Held {
            // Dropped in this order: workers in the body before their session.
            #[pin] body: B,
            protocol: Protocol,
            ended: BoxFuture<'static, Error>,
            held: HeldSession,
        },
        /// The text of a refusal.
        Text { text: Bytes },
        Over,
    }
}

/// The session of one response, returned when this is dropped, even if the handler keeps the guard.
pub(super) struct HeldSession(pub(super) Arc<Session>);

impl Drop for HeldSession {
    fn drop(&mut self) {
        drop(self.0.give_back(None));
    }
}

impl<B> SessionBody<B> {
    pub(super) fn open(body: B) -> Self {
        Self { state: State::Open { body } }
    }

    pub(super) fn held(
        body: B,
        protocol: Protocol,
        ended: BoxFuture<'static, Error>,
        held: HeldSession,
    ) -> Self {
        Self { state: State::Held { body, protocol, ended, held } }
    }

    pub(super) fn text(text: Bytes) -> Self {
        Self { state: if text.is_empty() { State::Over } else { State::Text { text } } }
    }
}

impl<B> Body for SessionBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.project().state;
        let (frame, over) = match state.as_mut().project() {
            StateProjection::Open { body } => {
                return body
                    .poll_frame(cx)
                    .map(|frame| frame.map(|frame| frame.map_err(Into::into)));
            }
            // The session first: otherwise a body that always has a frame would ignore a revocation.
            StateProjection::Held { mut body, protocol, ended, .. } => {
                match ended.as_mut().poll(cx) {
                    Poll::Ready(reason) => {
                        (Some(protocol.break_off(answer_to_caller(reason))), true)
                    }
                    Poll::Pending => {
                        let frame = ready!(body.as_mut().poll_frame(cx));
                        let over = match &frame {
                            Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
                            Some(Err(_)) | None => true,
                        };
                        (frame.map(|frame| frame.map_err(Into::into)), over)
                    }
                }
            }
            StateProjection::Text { text } => (Some(Ok(Frame::data(std::mem::take(text)))), true),
            StateProjection::Over => (None, true),
        };
        if over {
            state.set(State::Over);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Open { body } | State::Held { body, .. } => body.is_end_stream(),
            State::Text { .. } => false,
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Open { body } => body.size_hint(),
            State::Held { body, protocol, .. } if protocol.announces_length() => body.size_hint(),
            State::Held { .. } => SizeHint::default(),
            State::Text { text } => SizeHint::with_exact(text.len() as u64),
            State::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B> fmt::Debug for SessionBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Open { .. } => "open",
            State::Held { .. } => "held",
            State::Text { .. } => "text",
            State::Over => "over",
        };
        f.debug_struct("SessionBody").field("state", &state).finish_non_exhaustive()
    }
}
