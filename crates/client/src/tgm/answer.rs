//! What the server's answers mean.
//!
//! A server may be old, broken, or not a session server at all; and the transport makes up
//! statuses of its own. Only a status that the server itself sent ends a session or refuses a
//! borrow: a refused HTTP/2 stream must not look like a spent budget.

use std::error::Error as _;
use std::time::Duration;

use lease::MAX_TTL;
use tonic::metadata::MetadataMap;
use tonic::{Code, ConnectError, Response, Status};
use wire::worker::{
    BorrowWorkerResponse, KeepAliveResponse, ReturnWorkerResponse, WorkersState,
    borrow_worker_response::BorrowStatus, keep_alive_response, return_worker_response,
};

use super::keeper::Asked;
use crate::error::{Error, Scope};
use crate::held::Released;

/// The TTL of a server that tells none.
pub(crate) const UNTOLD_TTL: Duration = Duration::from_secs(60);

/// Most bytes of a server's message that are kept.
const LONGEST_MESSAGE: usize = 1024;

/// A granted borrow.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) key: String,
    pub(crate) ttl: Duration,
    pub(crate) minimal_life: Option<Duration>,
}

/// What came of one try to borrow.
#[derive(Clone, Debug)]
pub(crate) enum BorrowAnswer {
    Granted(Grant),
    /// The server said no, and holds nothing for it.
    Refused(Error),
    /// Nobody knows whether the server holds something, unless the call never left: not `sent`.
    Fault {
        error: Error,
        sent: bool,
    },
    /// The answer contradicts itself; `key`, if any, has to be given back.
    Nonsense {
        error: Error,
        key: Option<String>,
    },
}

/// What came of one keep-alive.
#[derive(Clone, Debug)]
pub(crate) enum KeepAliveAnswer {
    /// The lease has its full TTL again, and that TTL if the server told it.
    Extended(Option<Duration>),
    /// The server holds no such lease.
    Forgotten,
    /// The session has to end.
    Revoked(Error),
    Fault(Error),
}

/// What came of one try to return, and whether another try may help.
#[derive(Clone, Debug)]
pub(crate) struct ReturnAnswer {
    pub(crate) outcome: Result<Released, Error>,
    pub(crate) again: bool,
    /// Whether the server answered at all.
    pub(crate) answered: bool,
}

/// Reads the answer to a borrow of what was `asked`.
pub(crate) fn borrow(
    answer: Result<Response<BorrowWorkerResponse>, Status>,
    asked: &Asked,
) -> BorrowAnswer {
    let response = match answer {
        Ok(response) => response,
        Err(status) => {
            return match Failure::of(&status) {
                Failure { error, fault: true, sent } => BorrowAnswer::Fault { error, sent },
                Failure { error, .. } => BorrowAnswer::Refused(error),
            };
        }
    };
    let (metadata, body, _) = response.into_parts();
    let status = body.status();
    let key = Some(body.worker_key).filter(|key| !key.is_empty());
    match (status, key) {
        (BorrowStatus::Borrowed, Some(key)) => BorrowAnswer::Granted(Grant {
            key,
            ttl: told_ttl(&metadata).unwrap_or(UNTOLD_TTL),
            minimal_life: body.minimal_worker_life_duration.and_then(|life| life.try_into().ok()),
        }),
        (BorrowStatus::ResourceExhausted, None) => {
            BorrowAnswer::Refused(ceiling(&metadata, &body.worker_state.unwrap_or_default(), asked))
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
            keep_alive_response::Status::TtlExtended => {
                KeepAliveAnswer::Extended(told_ttl(response.metadata()))
            }
            keep_alive_response::Status::Failed => KeepAliveAnswer::Forgotten,
            keep_alive_response::Status::Unset => KeepAliveAnswer::Fault(Error::unavailable(
                "a keep-alive was answered with status unset",
            )),
        },
        Err(status) => match Failure::of(&status).error {
            error @ (Error::PermissionDenied { .. } | Error::QuotaExceeded { .. }) => {
                KeepAliveAnswer::Revoked(error)
            }
            error => KeepAliveAnswer::Fault(error),
        },
    }
}

/// Reads the answer to a return.
pub(crate) fn give_back(answer: Result<Response<ReturnWorkerResponse>, Status>) -> ReturnAnswer {
    let status = match answer {
        Ok(response) => response.into_inner().status(),
        Err(status) => {
            let Failure { error, fault, .. } = Failure::of(&status);
            let hopeless = matches!(
                status.code(),
                Code::InvalidArgument
                    | Code::NotFound
                    | Code::PermissionDenied
                    | Code::Unimplemented
            );
            return ReturnAnswer {
                outcome: Err(error),
                again: fault || !hopeless,
                answered: !fault,
            };
        }
    };
    let outcome = match status {
        return_worker_response::Status::Returned => Ok(Released::Returned),
        return_worker_response::Status::TtlUpdated => Ok(Released::Lingers),
        return_worker_response::Status::MissingKey => Ok(Released::Missing),
        status => {
            let status = status.as_str_name();
            Err(Error::unavailable(format!("a return was answered with status {status}")))
        }
    };
    ReturnAnswer { outcome, again: true, answered: true }
}

/// Reads a status that answers a question.
pub(crate) fn error(status: &Status) -> Error {
    Failure::of(status).error
}

/// The status of a call whose deadline passed here.
pub(crate) fn late(deadline: Duration) -> Status {
    let message = format!("no answer within {deadline:.1?}");
    Status::from_error(Box::new(std::io::Error::new(std::io::ErrorKind::TimedOut, message)))
}

/// What a gRPC status means.
struct Failure {
    error: Error,
    /// Whether the next try may bring another answer.
    fault: bool,
    /// Whether the call may have reached the server.
    sent: bool,
}

impl Failure {
    fn of(status: &Status) -> Self {
        // A status with a source was made up on this side of the wire.
        if status.source().is_some() {
            let error = Error::unavailable(describe(status));
            return Self { error, fault: true, sent: !caused_by::<ConnectError>(status) };
        }
        let message = clip(status.message());
        let error = match status.code() {
            Code::Unauthenticated => Error::Unauthenticated { message },
            Code::PermissionDenied => Error::PermissionDenied { message },
            Code::ResourceExhausted => Error::QuotaExceeded { message },
            Code::InvalidArgument => Error::InvalidArgument { message },
            // Wrong server or wrong path among them: asking again gives the same answer.
            _ => Error::unavailable(describe(status)),
        };
        Self { error, fault: is_fault(status.code()), sent: true }
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
    let told = number("x-denied-active").zip(number("x-denied-max"));
    let scope =
        metadata.get("x-denied-scope").and_then(|name| Scope::from_wire(name.to_str().ok()?));
    // A server without the metadata leaves it to the client to see which ceiling it was.
    let of_trace = state.worker_count_per_trace_id.get(&*asked.trace).copied().unwrap_or(0);
    let (seen, counts) = if asked.is_worker() && of_trace >= asked.max_workers {
        (Scope::Trace, (of_trace, asked.max_workers))
    } else {
        (Scope::Organization, (state.borrowed_workers, state.max_workers))
    };
    let counted = |count| u64::try_from(count).unwrap_or(0);
    let (active, max) = told.unwrap_or((counted(counts.0), counted(counts.1)));
    let scope = scope.unwrap_or(seen);
    if asked.is_worker() {
        Error::WorkersLimitExceeded { active, max, scope }
    } else {
        Error::ConcurrentStreamLimitExceeded { active, max, scope }
    }
}

/// The TTL a server told, if it makes sense.
fn told_ttl(metadata: &MetadataMap) -> Option<Duration> {
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

fn caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn clip(message: &str) -> String {
    message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned()
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    fn session() -> Asked {
        Asked {
            service: "t1r".into(),
            organization: "acme".into(),
            api_key: "".into(),
            trace: "t".into(),
            max_workers: 0,
        }
    }

    fn worker(max_workers: i64) -> Asked {
        Asked { service: "t2w".into(), max_workers, ..session() }
    }

    fn response(status: BorrowStatus, key: &str) -> Response<BorrowWorkerResponse> {
        let mut body = BorrowWorkerResponse { worker_key: key.into(), ..Default::default() };
        body.set_status(status);
        Response::new(body)
    }

    fn with(
        mut response: Response<BorrowWorkerResponse>,
        metadata: &[(&'static str, &'static str)],
    ) -> Result<Response<BorrowWorkerResponse>, Status> {
        for (name, value) in metadata {
            response.metadata_mut().insert(*name, MetadataValue::from_static(value));
        }
        Ok(response)
    }

    fn refusal(answer: BorrowAnswer) -> Error {
        let BorrowAnswer::Refused(error) = answer else { panic!("not a refusal: {answer:?}") };
        error
    }

    /// A status as the transport makes it up.
    fn from_transport(code: Code) -> Status {
        let mut status = Status::new(code, "h2 protocol error");
        status.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        status
    }

    #[test]
    fn a_full_pool_of_sessions_and_one_of_workers_are_different_errors_with_active_before_max() {
        let denied =
            [("x-denied-scope", "api_key"), ("x-denied-active", "7"), ("x-denied-max", "10")];
        let full = || with(response(BorrowStatus::ResourceExhausted, ""), &denied);
        let scope = Scope::ApiKey;
        assert_eq!(
            refusal(borrow(full(), &session())),
            Error::ConcurrentStreamLimitExceeded { active: 7, max: 10, scope }
        );
        assert_eq!(
            refusal(borrow(full(), &worker(5))),
            Error::WorkersLimitExceeded { active: 7, max: 10, scope }
        );
    }

    #[test]
    fn without_metadata_the_state_of_the_pool_tells_which_ceiling_was_reached() {
        let full = |own_trace: i64| {
            let mut full = response(BorrowStatus::ResourceExhausted, "");
            full.get_mut().worker_state = Some(WorkersState {
                borrowed_workers: 9,
                max_workers: 10,
                worker_count_per_trace_id: [("t".to_owned(), own_trace)].into(),
                ..Default::default()
            });
            with(full, &[])
        };
        assert_eq!(
            refusal(borrow(full(3), &worker(3))),
            Error::WorkersLimitExceeded { active: 3, max: 3, scope: Scope::Trace }
        );
        let scope = Scope::Organization;
        assert_eq!(
            refusal(borrow(full(2), &worker(3))),
            Error::WorkersLimitExceeded { active: 9, max: 10, scope }
        );
        assert_eq!(
            refusal(borrow(full(3), &session())),
            Error::ConcurrentStreamLimitExceeded { active: 9, max: 10, scope }
        );
        let bare = with(response(BorrowStatus::ResourceExhausted, ""), &[]);
        assert_eq!(
            refusal(borrow(bare, &session())),
            Error::ConcurrentStreamLimitExceeded { active: 0, max: 0, scope }
        );
    }

    #[test]
    fn a_spent_budget_is_a_quota_error_for_sessions_and_workers_alike() {
        for asked in [session(), worker(3)] {
            let spent = Status::resource_exhausted("egress_bytes 10/10");
            let message = "egress_bytes 10/10".into();
            assert_eq!(refusal(borrow(Err(spent), &asked)), Error::QuotaExceeded { message });
        }
    }

    #[test]
    fn a_grant_without_a_told_ttl_lives_a_minute() {
        let granted = |metadata: &[_]| match borrow(
            with(response(BorrowStatus::Borrowed, "k"), metadata),
            &session(),
        ) {
            BorrowAnswer::Granted(grant) => grant.ttl,
            answer => panic!("not a grant: {answer:?}"),
        };
        assert_eq!(granted(&[]), UNTOLD_TTL);
        assert_eq!(granted(&[("x-lease-ttl-ms", "1500")]), Duration::from_millis(1500));
        for nonsense in ["0", "-1", "soon", "", "99999999999999999999999"] {
            assert_eq!(granted(&[("x-lease-ttl-ms", nonsense)]), UNTOLD_TTL, "{nonsense}");
        }
        assert_eq!(granted(&[("x-lease-ttl-ms", "18446744073709551615")]), MAX_TTL);
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_an_error_and_its_key_is_kept_to_be_given_back() {
        for (status, key, kept) in [
            (BorrowStatus::Unset, "k", Some("k")),
            (BorrowStatus::Unset, "", None),
            (BorrowStatus::Borrowed, "", None),
            (BorrowStatus::ResourceExhausted, "k", Some("k")),
        ] {
            let answer = borrow(Ok(response(status, key)), &session());
            let BorrowAnswer::Nonsense { error, key } = answer else { panic!("{answer:?}") };
            assert_eq!(key.as_deref(), kept);
            assert!(matches!(error, Error::Unavailable { .. }));
        }
        let mut unknown = response(BorrowStatus::Unset, "k");
        unknown.get_mut().status = 77;
        assert!(matches!(borrow(Ok(unknown), &session()), BorrowAnswer::Nonsense { .. }));
    }

    #[test]
    fn a_status_made_up_by_the_transport_neither_refuses_nor_revokes() {
        for code in [Code::ResourceExhausted, Code::PermissionDenied, Code::Unauthenticated] {
            let answer = borrow(Err(from_transport(code)), &session());
            assert!(matches!(answer, BorrowAnswer::Fault { sent: true, .. }), "{answer:?}");
            let answer = keep_alive(Err(from_transport(code)));
            assert!(matches!(answer, KeepAliveAnswer::Fault(_)), "{answer:?}");
        }
        let late = borrow(Err(late(Duration::from_secs(5))), &session());
        let BorrowAnswer::Fault { error, sent: true } = late else { panic!("{late:?}") };
        assert_eq!(error.to_string(), "session server unavailable: no answer within 5.0s");
    }

    #[test]
    fn only_permission_denied_and_resource_exhausted_revoke() {
        for code in 0..=16 {
            let code = Code::from(code);
            let revoked =
                matches!(keep_alive(Err(Status::new(code, ""))), KeepAliveAnswer::Revoked(_));
            assert_eq!(revoked, matches!(code, Code::PermissionDenied | Code::ResourceExhausted));
        }
    }

    #[test]
    fn a_return_is_tried_again_unless_the_server_cannot_ever_take_it() {
        let with = |code| give_back(Err(Status::new(code, "")));
        assert!(with(Code::Unavailable).again && !with(Code::Unavailable).answered);
        assert!(!with(Code::InvalidArgument).again && with(Code::InvalidArgument).answered);
        assert!(give_back(Err(from_transport(Code::PermissionDenied))).again);
        let failed = give_back(Ok(Response::new(ReturnWorkerResponse::default())));
        assert!(failed.again && failed.outcome.is_err());
    }

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let message = "é".repeat(LONGEST_MESSAGE);
        let error = refusal(borrow(Err(Status::permission_denied(message)), &session()));
        let Error::PermissionDenied { message } = error else { panic!("{error:?}") };
        assert_eq!(message.len(), LONGEST_MESSAGE);
    }
}
