//! The tasks of calls: each waits for its turn, and can be reset from outside.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::connection::Connection;

thread_local! {
    /// The reset that the call that is polled on this thread has requested.
    static RESET: Cell<Option<When>> = const { Cell::new(None) };
}

/// When to reset a call whose answer is not read.
enum When {
    Cancelled(CancellationToken),
    Over(Duration),
}

/// Requests that the current call is reset when `token` is cancelled, whatever it waits for then.
///
/// A response that is not read is not polled, so it cannot end itself.
pub(crate) fn reset_call_by(token: CancellationToken) {
    RESET.set(Some(When::Cancelled(token)));
}

/// Requests that the current call is reset when it is not over within `time`. This costs nothing where
/// the call ends with the current poll, as most short answers do.
pub(crate) fn reset_call_after(time: Duration) {
    RESET.set(Some(When::Over(time)));
}

/// Runs each call of a connection as a task on the runtime of its thread. A call waits for a turn of
/// its caller.
#[derive(Clone, Debug)]
pub(crate) struct Calls(pub(crate) Arc<Connection>);

impl<F> Executor<F> for Calls
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        let connection = Some(self.0.clone());
        tokio::spawn(Call { call, connection, has_begun: false, reset: Reset::Never });
    }
}

pin_project! {
    /// One call. Dropping it before its end resets its HTTP/2 stream only.
    pub(crate) struct Call<F> {
        #[pin]
        call: F,
        // Gives turns. `None` for a call that runs within the task of its connection.
        connection: Option<Arc<Connection>>,
        // Whether it had its turn. After that it runs whenever it is woken: other calls may wait for
        // it to pass a notice on.
        has_begun: bool,
        reset: Reset,
    }
}

enum Reset {
    Never,
    Cancelled(Pin<Box<WaitForCancellationFutureOwned>>),
    Over(Pin<Box<Sleep>>),
}

impl<F> Call<F> {
    /// Runs `call` within the task of its connection; [`reset_call_by`] may end both.
    pub(crate) fn within_connection(call: F) -> Self {
        Self { call, connection: None, has_begun: true, reset: Reset::Never }
    }
}

impl<F: Future> Future for Call<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if !*this.has_begun
            && let Some(connection) = this.connection
        {
            ready!(connection.poll_call(context));
            *this.has_begun = true;
        }
        let polled = this.call.poll(context);
        let when = RESET.take();
        if polled.is_ready() {
            return Poll::Ready(());
        }
        match when {
            Some(When::Cancelled(token)) => {
                *this.reset = Reset::Cancelled(Box::pin(token.cancelled_owned()));
            }
            // Not for HTTP/1.1: there the next call begins when the answer to this one was written.
            Some(When::Over(time)) if this.connection.is_some() => {
                *this.reset = Reset::Over(Box::pin(tokio::time::sleep(time)));
            }
            _ => {}
        }
        match this.reset {
            Reset::Never => Poll::Pending,
            Reset::Cancelled(token) => token.as_mut().poll(context),
            Reset::Over(over) => over.as_mut().poll(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_call_that_waits_for_ever_is_dropped_when_its_token_is_cancelled() {
        let token = CancellationToken::new();
        let alive = Arc::new(());
        let (asked, held) = (token.clone(), alive.clone());
        let calls = Calls(Connection::of_a_test());
        calls.execute(async move {
            let _held = held;
            reset_call_by(asked);
            std::future::pending::<()>().await;
        });
        let held = alive.clone();
        calls.execute(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 3);
        token.cancel();
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 2, "the other call goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_answer_is_not_read_is_dropped_when_its_time_is_over() {
        let alive = Arc::new(());
        let held = alive.clone();
        Calls(Connection::of_a_test()).execute(async move {
            let _held = held;
            reset_call_after(Duration::from_secs(30));
            std::future::pending::<()>().await;
        });
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(Arc::strong_count(&alive), 2);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[tokio::test]
    async fn a_call_that_has_begun_goes_on_however_much_its_caller_has_done() {
        let connection = Connection::of_a_test();
        let other = connection.another_of_a_test();
        let (begun, goes_on) = (CancellationToken::new(), CancellationToken::new());
        let (begins, asked) = (begun.clone(), goes_on.clone());
        let (done, is_done) = tokio::sync::oneshot::channel();
        Calls(connection.clone()).execute(async move {
            begins.cancel();
            asked.cancelled().await;
            let _ = done.send(());
        });
        begun.cancelled().await;
        // The share is used up, and nothing begins the next round.
        connection.share().count(u32::MAX);
        let turn = poll_fn(|context| Poll::Ready(connection.poll_call(context)));
        assert!(turn.await.is_pending(), "no other call begins");
        goes_on.cancel();
        is_done.await.unwrap();
        drop(other);
    }
}
