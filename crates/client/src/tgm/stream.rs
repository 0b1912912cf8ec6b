//! The I/O of one stream of batched keep-alives.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::poll_fn;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use wire::control::attach_response::Event;
use wire::control::{AttachRequest, AttachResponse, BatchAnswer, Reason};

use super::answer::{self, KeepAliveAnswer};
use super::attachment::{Detached, MOST_BATCHES};
use super::driver::{Shared, within};
use super::keeper::BatchCall;
use super::streaming::NoRoom;
use crate::error::Error;
use crate::plugin::BoxFuture;

/// How long a server may take to accept a stream.
const DEADLINE: Duration = Duration::from_secs(5);

/// One stream, from its opening until it breaks. Dropping it ends it without a word.
pub(crate) struct Stream {
    outgoing: mpsc::Sender<AttachRequest>,
    incoming: BoxFuture<'static, ()>,
}

impl Stream {
    /// Opens a stream, which tells the keeper what it hears as it is polled.
    pub(crate) fn open(shared: Arc<Shared>) -> Self {
        let (outgoing, batches) = mpsc::channel(MOST_BATCHES);
        Self { outgoing, incoming: Box::pin(run(shared, batches)) }
    }

    /// Sends a batch; false when the stream takes no more.
    pub(crate) fn send(&self, batch: BatchCall) -> bool {
        let BatchCall { batch, keys } = batch;
        self.outgoing.try_send(AttachRequest { batch, worker_keys: keys }).is_ok()
    }

    /// Waits until the stream is over; the keeper knows by then. Cancellation safe.
    pub(crate) async fn over(&mut self) {
        self.incoming.as_mut().await;
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

async fn run(shared: Arc<Shared>, mut batches: mpsc::Receiver<AttachRequest>) {
    let request = shared.remote.stream(poll_fn(move |cx| batches.poll_recv(cx))).await;
    let mut control = shared.remote.control();
    let why = match within(DEADLINE, control.attach(request)).await {
        Ok(response) => {
            shared.tell(|keeper, now| keeper.attached(now));
            let mut events = response.into_inner();
            loop {
                match events.message().await {
                    Ok(Some(AttachResponse { event })) => {
                        if let Err(why) = hear(&shared, event) {
                            break why;
                        }
                    }
                    Ok(None) => break Detached::Broken,
                    Err(status) => break refused(&status),
                }
            }
        }
        Err(status) => refused(&status),
    };
    shared.tell(|keeper, now| keeper.detached(why, now));
}

fn hear(shared: &Shared, event: Option<Event>) -> Result<(), Detached> {
    match event {
        Some(Event::Answer(answer)) => {
            let batch = answer.batch;
            let places = places(answer);
            if !shared.tell(|keeper, now| keeper.batch_answered(batch, places, now)) {
                tracing::warn!("the server answered a batch that does not exist; attaching again");
                return Err(Detached::Broken);
            }
        }
        Some(Event::Revoked(revoked)) => {
            let reason = reason(revoked.reason(), &revoked.message);
            shared.tell(|keeper, _| keeper.pushed(&revoked.worker_key, &reason));
        }
        Some(Event::Draining(_)) => return Err(Detached::Draining),
        // A server newer than this client has more to say.
        None => {}
    }
    Ok(())
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
