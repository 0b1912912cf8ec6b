//! What the server's answers mean.
//!
//! A server may be old, broken, or not a session server at all; and the transport makes up
//! statuses of its own. Only a status that the server itself sent ends a session or refuses a
//! borrow: a refused HTTP/2 stream must not look like a spent budget.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;
use lease::MAX_TTL;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};
use wire::worker::{
    BorrowWorkerResponse, KeepAliveResponse, ReturnWorkerResponse, WorkersState,
    borrow_worker_response::BorrowStatus, keep_alive_response, return_worker_response,
};

use super::connection::NotConnected;
use super::core::{Asked, BorrowAnswer, Grant, KeepAliveAnswer, ReturnAnswer, UNTOLD_TTL};
use crate::error::{Error, Scope};
use crate::held::Released;

/// Most bytes of a server's message that are kept.
const LONGEST_MESSAGE: usize = 1024;

/// Reads the answer to a borrow of what was `asked`.
pub(crate) fn borrow(
    answer: Result<Response<BorrowWorkerResponse>, Status>,
    asked: &Asked,
) -> BorrowAnswer {
    let response = match answer {
        Ok(response) => response,
        Err(status) => {
            let cancelled = status.code() == Code::Cancelled;
            return match Failure::of(&status) {
                Failure { error, by_server: true, .. } if cancelled => BorrowAnswer::Spent(error),
                Failure { error, fault: true, sent, .. } => BorrowAnswer::Fault { error, sent },
                // It is the session that is not found.
                _ if status.code() == Code::NotFound && asked.is_worker() => {
                    BorrowAnswer::Refused { error: Error::SessionNotFound, key: None }
                }
                Failure { error, .. } => BorrowAnswer::Refused { error, key: None },
            };
        }
    };
    let (metadata, body, _) = response.into_parts();
    let status = body.status();
    let key = Some(body.worker_key).filter(|key| !key.is_empty());
    match (status, key) {
        (BorrowStatus::Borrowed, Some(key)) => BorrowAnswer::Granted(Grant {
            key,
            ttl: read_ttl(&metadata).unwrap_or(UNTOLD_TTL),
            minimal_life: body.minimal_worker_life_duration.and_then(|life| life.try_into().ok()),
        }),
        // What a session is told by UNAVAILABLE: it says nothing of the ceilings, and not for sure that
        // nothing is held.
        (BorrowStatus::ResourceExhausted, None)
            if metadata.get("x-denied-scope").is_some_and(|scope| scope == "server") =>
        {
            let error = Error::unavailable("the server cannot decide now");
            BorrowAnswer::Fault { error, sent: true }
        }
        (BorrowStatus::ResourceExhausted, key) => {
            let error = ceiling(&metadata, &body.worker_state.unwrap_or_default(), asked);
            BorrowAnswer::Refused { error, key }
        }
        (status, key) => {
            let with = if key.is_some() { "a key" } else { "no key" };
            let status = status.as_str_name();
            let error = Error::unavailable(format!(
                "a borrow was answered with status {status} and {with}"
            ));
            BorrowAnswer::Nonsense { error, key }
        }
    }
}

/// Reads the answer to a keep-alive.
pub(crate) fn keep_alive(answer: Result<Response<KeepAliveResponse>, Status>) -> KeepAliveAnswer {
    match answer {
        Ok(response) => match response.get_ref().status() {
            keep_alive_response::Status::Failed => KeepAliveAnswer::Forgotten,
            // Some servers answer OK and nothing more; a status that is not known here reads as unset.
            keep_alive_response::Status::TtlExtended | keep_alive_response::Status::Unset => {
                KeepAliveAnswer::Extended(read_ttl(response.metadata()))
            }
        },
        Err(status) => match Failure::of(&status) {
            Failure {
                error: error @ (Error::PermissionDenied { .. } | Error::QuotaExceeded { .. }),
                ..
            } => KeepAliveAnswer::Revoked(error),
            Failure { by_server: true, .. } if status.code() == Code::NotFound => {
                KeepAliveAnswer::Forgotten
            }
            Failure { error, .. } => KeepAliveAnswer::Fault(error),
        },
    }
}

/// Reads the answer to a return.
pub(crate) fn give_back(answer: Result<Response<ReturnWorkerResponse>, Status>) -> ReturnAnswer {
    let status = match answer {
        Ok(response) => response.into_inner().status(),
        Err(status) => {
            let Failure { error, fault, by_server, .. } = Failure::of(&status);
            let hopeless = matches!(
                status.code(),
                Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented
            );
            let outcome = match status.code() {
                Code::NotFound if by_server => Ok(Released::Missing),
                _ => Err(error),
            };
            return ReturnAnswer { outcome, again: fault || !hopeless, answered: !fault };
        }
    };
    let outcome = match status {
        // As with keep-alives: some servers answer OK and nothing more.
        return_worker_response::Status::Returned | return_worker_response::Status::Unset => {
            Ok(Released::Returned)
        }
        return_worker_response::Status::TtlUpdated => Ok(Released::Lingers),
        return_worker_response::Status::MissingKey => Ok(Released::Missing),
        return_worker_response::Status::Failed => {
            Err(Error::unavailable("a return was answered with status failed"))
        }
    };
    ReturnAnswer { outcome, again: true, answered: true }
}

/// Reads a status that answers a question.
pub(crate) fn error(status: &Status) -> Error {
    Failure::of(status).error
}

/// Waits for an answer until the deadline, which looks like a fault of the transport.
pub(crate) fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> impl Future<Output = Result<T, Status>> {
    let answer = tokio::time::timeout(deadline, answer);
    answer.map(move |answer| answer.unwrap_or_else(|_| Err(late(deadline))))
}

/// The status of a call whose deadline passed here.
fn late(deadline: Duration) -> Status {
    let message = format!("no answer within {deadline:.1?}");
    Status::from_error(Box::new(io::Error::new(io::ErrorKind::TimedOut, message)))
}

/// What a gRPC status means.
struct Failure {
    error: Error,
    /// Whether the next try may bring another answer.
    fault: bool,
    /// Whether the call may have reached the server.
    sent: bool,
    /// Whether it is the server's own.
    by_server: bool,
}

impl Failure {
    fn of(status: &Status) -> Self {
        // A status with a source was made up on this side of the wire.
        if status.source().is_some() {
            let not_connected = cause::<NotConnected>(status);
            let error = match not_connected {
                Some(NotConnected::ByThisUrl(advice)) => Error::invalid(advice),
                _ => Error::unavailable(describe(status)),
            };
            let (error, sent) = (error.caused_by_status(status), not_connected.is_none());
            return Self { error, fault: true, sent, by_server: false };
        }
        let message = clip(status.message());
        let error = match status.code() {
            Code::Unauthenticated => Error::Unauthenticated { message },
            Code::PermissionDenied => Error::PermissionDenied { message },
            Code::ResourceExhausted => Error::QuotaExceeded { message },
            Code::InvalidArgument => Error::invalid(message),
            // Wrong server or wrong path among them: asking again gives the same answer.
            _ => Error::unavailable(describe(status)),
        };
        Self { error, fault: is_fault(status.code()), sent: true, by_server: true }
    }
}

/// Whether a server that answers `code` may answer otherwise a moment later.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Internal
            | Code::Unknown
            | Code::DataLoss
    )
}

/// The ceiling that an answer of status `resource_exhausted` names.
fn ceiling(metadata: &MetadataMap, state: &WorkersState, asked: &Asked) -> Error {
    let number = |name| metadata.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let stated = number("x-denied-active").zip(number("x-denied-max"));
    let scope =
        metadata.get("x-denied-scope").and_then(|name| Scope::from_wire(name.to_str().ok()?));
    // A server without the metadata leaves it to the client to see which ceiling it was.
    let of_trace = state.worker_count_per_trace_id.get(&*asked.ids.trace).copied().unwrap_or(0);
    let (seen, counts) = if asked.is_worker() && of_trace >= asked.max_workers {
        (Scope::Trace, (of_trace, asked.max_workers))
    } else {
        (Scope::Organization, (state.borrowed_workers, state.max_workers))
    };
    let counted = |count| u64::try_from(count).unwrap_or(0);
    let seen_counts = || (counts.1 > 0).then(|| (counted(counts.0), counted(counts.1)));
    let (scope, (active, max)) = match stated.or_else(seen_counts) {
        Some(counts) => (scope.unwrap_or(seen), counts),
        None => (Scope::Unknown, (0, 0)),
    };
    if asked.is_worker() {
        Error::WorkersLimitExceeded { active, max, scope }
    } else {
        Error::ConcurrentStreamLimitExceeded { active, max, scope }
    }
}

/// The TTL a server told, if it makes sense.
fn read_ttl(metadata: &MetadataMap) -> Option<Duration> {
    let millis =
        metadata.get("x-lease-ttl-ms")?.to_str().ok()?.parse().ok().filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(millis).min(MAX_TTL))
}

/// What a status says, with what caused it.
fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    let mut cause = status.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    clip(&text)
}

/// The cause of a status that is an `E`.
pub(crate) fn cause<E: std::error::Error + 'static>(status: &Status) -> Option<&E> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

pub(crate) fn clip(message: &str) -> String {
    message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned()
}

#[cfg(test)]
mod tests;
