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
fn a_server_without_room_for_a_worker_now_is_unavailable_and_asked_again() {
    let busy = with(response(BorrowStatus::ResourceExhausted, ""), &[("x-denied-scope", "server")]);
    let answer = borrow(busy, &worker(5));
    let BorrowAnswer::Fault { error: Error::Unavailable { .. }, sent: false } = answer else {
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
        let revoked = matches!(keep_alive(Err(Status::new(code, ""))), KeepAliveAnswer::Revoked(_));
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
