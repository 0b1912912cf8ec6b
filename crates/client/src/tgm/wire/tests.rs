use tonic::metadata::MetadataValue;

use super::*;
use crate::request::Ids;
use crate::tgm::core::OfWorker;

fn session() -> Asked {
    let ids = Ids {
        service: "t1r".into(),
        organization: "acme".into(),
        api_key: "".into(),
        trace: "t".into(),
    };
    Asked { number: 1, ids, worker: None }
}

fn worker(max_workers: i64) -> Asked {
    let worker = Some(OfWorker { session: 1, most: max_workers });
    Asked { number: 2, ids: session().ids.with_service("t2w".into()), worker }
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
    let BorrowAnswer::Refused { error, key: None } = answer else {
        panic!("not a refusal: {answer:?}")
    };
    error
}

/// A status that the transport creates because the server sent none.
fn from_transport(code: Code) -> Status {
    let mut status = Status::new(code, "h2 protocol error");
    status.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
    status
}

#[test]
fn a_full_pool_of_sessions_and_one_of_workers_are_different_errors_with_active_before_max() {
    let denied = [("x-denied-scope", "api_key"), ("x-denied-active", "7"), ("x-denied-max", "10")];
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
fn a_server_that_cannot_decide_on_a_worker_now_is_unavailable_and_asked_again() {
    let busy = with(response(BorrowStatus::ResourceExhausted, ""), &[("x-denied-scope", "server")]);
    let answer = borrow(busy, &worker(5));
    let BorrowAnswer::Fault { error: Error::Unavailable { .. }, sent: true } = answer else {
        panic!("not a fault: {answer:?}")
    };
}

#[test]
fn the_numbers_of_the_metadata_count_before_those_of_the_state() {
    let denied = [("x-denied-scope", "service"), ("x-denied-active", "2"), ("x-denied-max", "2")];
    let mut full = response(BorrowStatus::ResourceExhausted, "");
    let (borrowed_workers, max_workers) = (1, 5);
    full.get_mut().worker_state =
        Some(WorkersState { borrowed_workers, max_workers, ..Default::default() });
    assert_eq!(
        refusal(borrow(with(full, &denied), &session())),
        Error::ConcurrentStreamLimitExceeded { active: 2, max: 2, scope: Scope::Service }
    );
}

#[test]
fn without_metadata_the_state_of_the_pool_tells_which_limit_was_reached() {
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
}

#[test]
fn a_refusal_without_numbers_names_no_limit_and_shows_none() {
    let full = |state: Option<WorkersState>, metadata: &[_]| {
        let mut full = response(BorrowStatus::ResourceExhausted, "");
        full.get_mut().worker_state = state;
        with(full, metadata)
    };
    let unlimited = WorkersState { borrowed_workers: 9, ..Default::default() };
    let (active, max, scope) = (0, 0, Scope::Unknown);
    for (state, metadata) in [
        (None, &[][..]),
        (Some(WorkersState::default()), &[]),
        (Some(unlimited), &[]),
        (None, &[("x-denied-scope", "organization")]),
        (None, &[("x-denied-active", "3")]),
        (None, &[("x-denied-active", "-1"), ("x-denied-max", "many")]),
    ] {
        assert_eq!(
            refusal(borrow(full(state.clone(), metadata), &session())),
            Error::ConcurrentStreamLimitExceeded { active, max, scope }
        );
        assert_eq!(
            refusal(borrow(full(state, metadata), &worker(3))),
            Error::WorkersLimitExceeded { active, max, scope }
        );
    }
    // A limit of 0 in the metadata is a limit.
    let nobody = [("x-denied-active", "0"), ("x-denied-max", "0")];
    let (active, max, scope) = (0, 0, Scope::Organization);
    assert_eq!(
        refusal(borrow(full(None, &nobody), &session())),
        Error::ConcurrentStreamLimitExceeded { active, max, scope }
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
fn a_grant_without_a_ttl_lives_a_minute() {
    let granted = |metadata: &[_]| match borrow(
        with(response(BorrowStatus::Borrowed, "k"), metadata),
        &session(),
    ) {
        BorrowAnswer::Granted(grant) => grant.ttl,
        answer => panic!("not a grant: {answer:?}"),
    };
    assert_eq!(granted(&[]), DEFAULT_TTL);
    assert_eq!(granted(&[("x-lease-ttl-ms", "1500")]), Duration::from_millis(1500));
    for nonsense in ["0", "-1", "soon", "", "99999999999999999999999"] {
        assert_eq!(granted(&[("x-lease-ttl-ms", nonsense)]), DEFAULT_TTL, "{nonsense}");
    }
    assert_eq!(granted(&[("x-lease-ttl-ms", "18446744073709551615")]), MAX_TTL);
}

#[test]
fn an_inconsistent_answer_is_an_error_and_its_key_is_kept_for_the_return() {
    for (status, key, kept) in [
        (BorrowStatus::Unset, "k", Some("k")),
        (BorrowStatus::Unset, "", None),
        (BorrowStatus::Borrowed, "", None),
    ] {
        let mut answer = borrow(Ok(response(status, key)), &session());
        let BorrowAnswer::Invalid { error, .. } = &answer else { panic!("{answer:?}") };
        assert!(matches!(error, Error::Unavailable { .. }));
        assert_eq!(answer.take_key().as_deref(), kept);
    }
    let mut unknown = response(BorrowStatus::Unset, "k");
    unknown.get_mut().status = 77;
    let mut unknown = borrow(Ok(unknown), &session());
    assert!(matches!(unknown, BorrowAnswer::Invalid { .. }));
    assert_eq!(unknown.take_key().as_deref(), Some("k"));
    // A refusal because the server is full keeps its key, too.
    let busy =
        with(response(BorrowStatus::ResourceExhausted, "k"), &[("x-denied-scope", "server")]);
    assert_eq!(borrow(busy, &worker(3)).take_key().as_deref(), Some("k"));
}

#[test]
fn a_refusal_with_a_key_is_a_refusal_and_its_key_is_kept_for_the_return() {
    for asked in [session(), worker(3)] {
        let mut answer = borrow(Ok(response(BorrowStatus::ResourceExhausted, "k")), &asked);
        let BorrowAnswer::Refused { error, .. } = &answer else { panic!("{answer:?}") };
        assert!(error.is_limit());
        assert_eq!(answer.take_key().as_deref(), Some("k"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_passes_is_a_fault_that_says_so() {
    let late = grpc::within(Duration::from_secs(5), std::future::pending()).await;
    let answer = borrow(late, &session());
    let BorrowAnswer::Fault { error, sent: true } = answer else { panic!("{answer:?}") };
    assert_eq!(error.to_string(), "session server unavailable: no answer within 5.0s");
}

/// A short name for the kind of an error.
fn word(error: &Error) -> &'static str {
    match error {
        Error::Unavailable { .. } => "unavailable",
        Error::Unauthenticated { .. } => "unauthenticated",
        Error::PermissionDenied { .. } => "denied",
        Error::QuotaExceeded { .. } => "quota",
        Error::InvalidArgument { .. } => "invalid",
        Error::SessionNotFound => "no session",
        other => panic!("a status of gRPC says no such thing: {other}"),
    }
}

#[test]
fn every_code_means_one_thing_in_every_call() {
    use Code::{
        Aborted, AlreadyExists, Cancelled, DataLoss, DeadlineExceeded, FailedPrecondition,
        Internal, InvalidArgument, NotFound, OutOfRange, PermissionDenied, ResourceExhausted,
        Unauthenticated, Unavailable, Unimplemented, Unknown,
    };
    // The code; then what it means for a borrow of a session, a borrow of a worker, a keep-alive, a
    // return and any other call.
    for (code, of_session, of_worker, beat, back, question) in [
        (Cancelled, "spent", "spent", "fault", "again", "unavailable"),
        (Unknown, "fault", "fault", "fault", "again", "unavailable"),
        (InvalidArgument, "invalid", "invalid", "fault", "given up", "invalid"),
        (DeadlineExceeded, "fault", "fault", "fault", "again", "unavailable"),
        (NotFound, "unavailable", "no session", "forgotten", "missing", "unavailable"),
        (AlreadyExists, "unavailable", "unavailable", "fault", "again", "unavailable"),
        (PermissionDenied, "denied", "denied", "denied", "given up", "denied"),
        (ResourceExhausted, "quota", "quota", "quota", "again", "quota"),
        (FailedPrecondition, "unavailable", "unavailable", "fault", "again", "unavailable"),
        (Aborted, "fault", "fault", "fault", "again", "unavailable"),
        (OutOfRange, "unavailable", "unavailable", "fault", "again", "unavailable"),
        (Unimplemented, "unavailable", "unavailable", "fault", "given up", "unavailable"),
        (Internal, "fault", "fault", "fault", "again", "unavailable"),
        (Unavailable, "fault", "fault", "fault", "again", "unavailable"),
        (DataLoss, "fault", "fault", "fault", "again", "unavailable"),
        (
            Unauthenticated,
            "unauthenticated",
            "unauthenticated",
            "fault",
            "again",
            "unauthenticated",
        ),
    ] {
        let status = || Status::new(code, "in its own words");
        let borrowed = |asked| match borrow(Err(status()), &asked) {
            BorrowAnswer::Refused { error, key: None } => word(&error),
            BorrowAnswer::Fault { sent: true, .. } => "fault",
            BorrowAnswer::IdUsed(_) => "spent",
            answer => panic!("{code:?}: {answer:?}"),
        };
        assert_eq!(borrowed(session()), of_session, "{code:?}");
        assert_eq!(borrowed(worker(3)), of_worker, "{code:?}");
        let kept = match keep_alive(Err(status())) {
            KeepAliveAnswer::Revoked(error) => word(&error),
            KeepAliveAnswer::Fault(_) => "fault",
            KeepAliveAnswer::Forgotten => "forgotten",
            answer @ KeepAliveAnswer::Extended(_) => panic!("{code:?}: {answer:?}"),
        };
        assert_eq!(kept, beat, "{code:?}");
        let returned = match give_back(Err(status())) {
            ReturnAnswer { outcome: Err(_), again: true, .. } => "again",
            ReturnAnswer { outcome: Err(_), again: false, answered: true } => "given up",
            ReturnAnswer { outcome: Ok(Released::Missing), answered: true, .. } => "missing",
            answer => panic!("{code:?}: {answer:?}"),
        };
        assert_eq!(returned, back, "{code:?}");
        assert_eq!(word(&error(&status())), question, "{code:?}");
    }
}

#[test]
fn every_status_of_a_keep_alive_but_failed_is_a_success() {
    for (status, extends) in [(0, true), (1, true), (2, false), (3, true), (-1, true)] {
        let answer = keep_alive(Ok(Response::new(KeepAliveResponse { status })));
        match answer {
            KeepAliveAnswer::Extended(None) => assert!(extends, "{status}"),
            KeepAliveAnswer::Forgotten => assert!(!extends, "{status}"),
            answer => panic!("{status}: {answer:?}"),
        }
    }
}

#[test]
fn every_status_of_a_return_but_failed_ends_the_return() {
    for (status, outcome) in [
        (0, Some(Released::Returned)),
        (1, Some(Released::Missing)),
        (2, Some(Released::Returned)),
        (3, Some(Released::Lingers)),
        (4, None),
        (5, Some(Released::Returned)),
        (-1, Some(Released::Returned)),
    ] {
        let answer = give_back(Ok(Response::new(ReturnWorkerResponse { status })));
        assert!(answer.answered && answer.again, "{status}");
        assert_eq!(answer.outcome.ok(), outcome, "{status}");
    }
}

#[test]
fn a_status_of_the_transport_is_retried_whatever_its_code() {
    for code in 1..=16 {
        let status = || from_transport(Code::from(code));
        for asked in [session(), worker(3)] {
            let answer = borrow(Err(status()), &asked);
            assert!(matches!(answer, BorrowAnswer::Fault { sent: true, .. }), "{answer:?}");
        }
        let answer = keep_alive(Err(status()));
        assert!(matches!(answer, KeepAliveAnswer::Fault(_)), "{answer:?}");
        let answer = give_back(Err(status()));
        assert!(answer.again && !answer.answered && answer.outcome.is_err(), "{answer:?}");
        assert!(matches!(error(&status()), Error::Unavailable { .. }));
    }
}

#[test]
fn a_long_message_is_cut_between_two_characters() {
    let message = "é".repeat(LONGEST_MESSAGE);
    let error = refusal(borrow(Err(Status::permission_denied(message)), &session()));
    let Error::PermissionDenied { message } = error else { panic!("{error:?}") };
    assert_eq!(message.len(), LONGEST_MESSAGE);
}
