//! The I/O of one stream of batched keep-alives.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, poll_fn, unfold};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};
use wire::control::attach_response::Event;
use wire::control::{AttachRequest, AttachResponse, BatchAnswer, Reason};

use super::answer;
use super::core::{Batch, Detached, KeepAliveAnswer, MOST_BATCHES, StreamEvent};
use super::remote::Remote;
use super::streaming::NoRoom;
use crate::error::Error;

/// How long a server may take to accept a stream.
const DEADLINE: Duration = Duration::from_secs(5);

/// One stream, from its opening until it breaks. Dropping it ends it without a word.
pub(crate) struct Stream {
    outgoing: mpsc::Sender<AttachRequest>,
    events: BoxStream<'static, StreamEvent>,
}

impl Stream {
    /// Opens a stream, as it is polled.
    pub(crate) fn open(remote: Arc<Remote>) -> Self {
        let (outgoing, batches) = mpsc::channel(MOST_BATCHES);
        let events = unfold(Incoming::Opening(remote, batches), Incoming::next);
        Self { outgoing, events: events.boxed() }
    }

    /// Sends a batch; false when the stream takes no more.
    pub(crate) fn send(&self, batch: Batch) -> bool {
        let Batch { number, keys } = batch;
        self.outgoing.try_send(AttachRequest { batch: number, worker_keys: keys }).is_ok()
    }

    /// Waits for the next event; the last one is [`StreamEvent::Over`]. Cancellation safe.
    pub(crate) async fn next(&mut self) -> StreamEvent {
        self.events.next().await.unwrap_or(StreamEvent::Over(Detached::Broken))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// What comes over a stream.
enum Incoming {
    Opening(Arc<Remote>, mpsc::Receiver<AttachRequest>),
    Open(Box<Streaming<AttachResponse>>),
    Over,
}

impl Incoming {
    async fn next(self) -> Option<(StreamEvent, Self)> {
        let mut events = match self {
            Self::Opening(remote, mut batches) => {
                let request = remote.stream(poll_fn(move |cx| batches.poll_recv(cx))).await;
                let mut control = remote.control();
                return Some(match answer::within(DEADLINE, control.attach(request)).await {
                    Ok(response) => {
                        (StreamEvent::Opened, Self::Open(Box::new(response.into_inner())))
                    }
                    Err(status) => (StreamEvent::Over(refused(&status)), Self::Over),
                });
            }
            Self::Open(events) => events,
            Self::Over => return None,
        };
        loop {
            let why = match events.message().await {
                Ok(Some(AttachResponse { event })) => match event {
                    Some(Event::Answer(answer)) => {
                        let batch = answer.batch;
                        let event = StreamEvent::Answer { batch, places: places(answer) };
                        return Some((event, Self::Open(events)));
                    }
                    Some(Event::Revoked(revoked)) => {
                        let reason = reason(revoked.reason(), &revoked.message);
                        let event = StreamEvent::Revoked { key: revoked.worker_key, reason };
                        return Some((event, Self::Open(events)));
                    }
                    Some(Event::Draining(_)) => Detached::Draining,
                    // A server newer than this client has more to say.
                    None => continue,
                },
                Ok(None) => Detached::Broken,
                Err(status) => refused(&status),
            };
            return Some((StreamEvent::Over(why), Self::Over));
        }
    }
}

/// Reads what became of the keys that do not simply have their full TTL again.
fn places(answer: BatchAnswer) -> HashMap<u32, KeepAliveAnswer> {
    let unknown = || Error::unavailable("the server cannot look leases up now");
    let unavailable = answer.unavailable.into_iter();
    let failed = answer.failed.into_iter();
    let revoked = answer.revoked.into_iter();
    unavailable
        .map(|place| (place, KeepAliveAnswer::Fault(unknown())))
        .chain(failed.map(|place| (place, KeepAliveAnswer::Forgotten)))
        .chain(revoked.map(|revoked| {
            let reason = reason(revoked.reason(), &revoked.message);
            (revoked.place, KeepAliveAnswer::Revoked(reason))
        }))
        .collect()
}

fn reason(reason: Reason, message: &str) -> Error {
    let message = answer::clip(match (message, reason) {
        ("", Reason::OrganizationDisabled) => "the organization is disabled",
        ("", Reason::ApiKeyDisabled) => "the API key is disabled",
        ("", Reason::BudgetSpent) => "a usage budget is spent",
        ("", Reason::Operator | Reason::Unspecified) => "the session was revoked",
        (message, _) => message,
    });
    match reason {
        Reason::BudgetSpent => Error::QuotaExceeded { message },
        // A reason that this client does not know ends the session just the same.
        _ => Error::PermissionDenied { message },
    }
}

fn refused(status: &Status) -> Detached {
    if answer::cause::<NoRoom>(status).is_some() {
        tracing::debug!("the server has room for one call at a time, and none for a stream");
        return Detached::NoRoom;
    }
    if status.code() == Code::Unimplemented && std::error::Error::source(status).is_none() {
        tracing::debug!("the server has no stream for keep-alives");
        return Detached::Unknown;
    }
    let error = answer::error(status);
    tracing::debug!(%error, "the stream for keep-alives is over");
    Detached::Broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_refused_is_broken_unless_the_server_does_not_know_it() {
        for code in (0..=16).map(Code::from) {
            let why = match code {
                Code::Unimplemented => Detached::Unknown,
                _ => Detached::Broken,
            };
            assert_eq!(refused(&Status::new(code, "")), why, "{code:?}");
            let mut made_up = Status::new(code, "reset");
            made_up.set_source(Arc::new(std::io::Error::other("reset")));
            assert_eq!(refused(&made_up), Detached::Broken, "{code:?}");
        }
    }

    #[test]
    fn every_reason_of_a_revocation_ends_the_session_and_has_words() {
        for (reason, is_quota) in [(0, false), (1, false), (2, false), (3, false), (4, true)] {
            let reason = Reason::try_from(reason).unwrap();
            let told = super::reason(reason, "in its own words");
            let silent = super::reason(reason, "");
            for error in [&told, &silent] {
                match error {
                    Error::QuotaExceeded { message } => assert!(is_quota && !message.is_empty()),
                    Error::PermissionDenied { message } => {
                        assert!(!is_quota && !message.is_empty())
                    }
                    error => panic!("{reason:?}: {error}"),
                }
            }
            assert!(told.to_string().ends_with("in its own words"));
        }
        // What a newer server says reads as unspecified.
        let newer = wire::control::Revocation { reason: 99, ..Default::default() };
        assert_eq!(newer.reason(), Reason::Unspecified);
    }
}
