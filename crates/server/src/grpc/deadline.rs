//! The deadlines of calls, from the header `grpc-timeout`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderMap;
use pin_project_lite::pin_project;
use tonic::Status;

use crate::headers::GRPC_TIMEOUT;

pin_project! {
    /// A call that always gets an answer: `UNAVAILABLE` once its deadline has passed, and after a
    /// panic.
    ///
    /// It has no timer, which would cost something on each call. It checks the time when it is
    /// polled. The store wakes calls that wait for a slow disk twice a second.
    pub(super) struct WithDeadline<'h, C> {
        #[pin]
        call: C,
        headers: &'h HeaderMap,
        began: Instant,
        deadline: Deadline,
    }
}

/// When a call has to be answered.
#[derive(Clone, Copy, Debug)]
enum Deadline {
    /// The header was not read yet: most calls never wait.
    Unread,
    None,
    At(Instant),
}

impl<'h, C> WithDeadline<'h, C> {
    /// Wraps `call`, which began at `began`. Its headers have the timeout.
    pub(super) fn new(call: C, headers: &'h HeaderMap, began: Instant) -> Self {
        Self { call, headers, began, deadline: Deadline::Unread }
    }
}

impl<T, C: Future<Output = Result<T, Status>>> Future for WithDeadline<'_, C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.project();
        match catch_unwind(AssertUnwindSafe(|| this.call.poll(context))) {
            Ok(Poll::Ready(answer)) => return Poll::Ready(answer),
            Ok(Poll::Pending) => {}
            // The panic hook has logged it.
            Err(_panic) => {
                tracing::error!("a call panicked: it is answered UNAVAILABLE");
                let problem = "the call failed by a defect of the server";
                return Poll::Ready(Err(Status::unavailable(problem)));
            }
        }
        match *this.deadline {
            Deadline::At(by) if Instant::now() >= by => {
                let problem = "the deadline of the call has passed while it waited for the disk";
                Poll::Ready(Err(Status::unavailable(problem)))
            }
            Deadline::At(_) | Deadline::None => Poll::Pending,
            Deadline::Unread => {
                let by = timeout(this.headers).and_then(|within| this.began.checked_add(within));
                *this.deadline = by.map_or(Deadline::None, Deadline::At);
                Poll::Pending
            }
        }
    }
}

/// Reads the timeout of a call: at most eight digits and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use tonic::Code;

    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        HeaderMap::from_iter([(GRPC_TIMEOUT, timeout.parse().unwrap())])
    }

    #[test]
    fn the_time_of_a_call_is_read_as_grpc_writes_it() {
        let read = |text| timeout(&headers(text));
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("5m"), Some(Duration::from_millis(5)));
        assert_eq!(read("6u"), Some(Duration::from_micros(6)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for text in ["", "S", "5", "5s", "+5S", "123456789S", "5 S"] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    /// The result of the second poll of a call that waits for ever.
    fn second_poll(headers: &HeaderMap, age: Duration) -> Poll<Result<(), Status>> {
        let began = Instant::now().checked_sub(age).unwrap();
        let mut call = pin!(WithDeadline::new(std::future::pending(), headers, began));
        let mut context = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut context).is_pending());
        call.poll(&mut context)
    }

    #[test]
    fn a_call_that_is_woken_after_its_deadline_is_unavailable() {
        let answer = second_poll(&headers("1S"), Duration::from_secs(2));
        assert!(matches!(answer, Poll::Ready(Err(status)) if status.code() == Code::Unavailable));
        assert!(second_poll(&headers("1H"), Duration::from_secs(2)).is_pending());
        assert!(second_poll(&HeaderMap::new(), Duration::from_secs(2)).is_pending());
    }

    #[test]
    fn a_call_that_panics_is_unavailable() {
        let headers = HeaderMap::new();
        let call = async { panic!("as if there were a defect") };
        let call = WithDeadline::<_>::new(call, &headers, Instant::now());
        let answer: Poll<Result<(), _>> = pin!(call).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Err(status)) if status.code() == Code::Unavailable));
    }

    #[test]
    fn a_ready_answer_is_given_even_after_the_deadline() {
        let headers = headers("1n");
        let call = WithDeadline::new(std::future::ready(Ok(7)), &headers, Instant::now());
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(pin!(call).poll(&mut context), Poll::Ready(Ok(7))));
    }
}
