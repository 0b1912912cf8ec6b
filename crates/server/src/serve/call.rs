//! The tasks of calls, which can be ended from outside.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

thread_local! {
    /// What the call that is being polled on this thread asks for.
    static RESET_BY: Cell<Option<CancellationToken>> = const { Cell::new(None) };
}

/// Lets the call that runs now be reset when `token` is cancelled, whatever it waits for then.
///
/// A response that nobody reads is not even polled any more, so it cannot end itself.
pub(crate) fn reset_call_by(token: CancellationToken) {
    RESET_BY.set(Some(token));
}

/// Runs each call of a connection as a task on the runtime of its thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls;

impl<F> Executor<F> for Calls
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        tokio::spawn(Call::new(call));
    }
}

pin_project! {
    /// One call. Dropping it before its end resets its HTTP/2 stream and nothing else.
    pub(super) struct Call<F> {
        #[pin]
        call: F,
        reset: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    }
}

impl<F> Call<F> {
    /// `call`, which [`reset_call_by`] may end.
    pub(super) fn new(call: F) -> Self {
        Self { call, reset: None }
    }
}

impl<F: Future> Future for Call<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let polled = this.call.poll(context);
        if let Some(token) = RESET_BY.take() {
            *this.reset = Some(Box::pin(token.cancelled_owned()));
        }
        if polled.is_ready() {
            return Poll::Ready(());
        }
        match this.reset {
            Some(reset) => reset.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_call_that_waits_for_ever_is_dropped_when_its_token_is_cancelled() {
        let token = CancellationToken::new();
        let alive = Arc::new(());
        let (asked, held) = (token.clone(), alive.clone());
        Calls.execute(async move {
            let _held = held;
            reset_call_by(asked);
            std::future::pending::<()>().await;
        });
        let held = alive.clone();
        Calls.execute(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 3);
        token.cancel();
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 2, "the other call goes on");
    }
}
