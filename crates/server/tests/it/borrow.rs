//! The answers of BorrowWorker.

use std::time::Duration;

use tonic::Code;

use crate::harness::{ROOMY, TestServer, config, session, text, worker};

#[tokio::test]
async fn an_empty_service_or_organization_is_refused_by_name() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    for (ask, field) in [(session("acme").service(""), "service"), (session(""), "organization_id")]
    {
        let status = client.ask(ask).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn an_id_over_256_bytes_is_refused_by_name_and_one_of_256_is_not() {
    let server = TestServer::memory("[services.default]").await;
    let mut client = server.client();
    let (fits, too_long) = ("x".repeat(256), "x".repeat(257));
    client.borrow(session(&fits).service(&fits).api_key(&fits).trace(&fits)).await;
    for (ask, field) in [
        (session("acme").service(&too_long), "service"),
        (session(&too_long), "organization_id"),
        (session("acme").api_key(&too_long), "api_key_id"),
        (session("acme").trace(&too_long), "trace_id"),
        (session(&"x".repeat(5_000)), "organization_id"),
    ] {
        let status = client.ask(ask).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    assert_eq!(server.live().await, 1);
}

#[tokio::test]
async fn a_negative_cap_is_refused_by_name() {
    let server = TestServer::memory(ROOMY).await;
    let status = server.client().ask(worker("acme", "a1", -1)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("max_worker_for_trace_id"), "{status}");
}

#[tokio::test]
async fn a_service_without_an_entry_is_refused_by_name_unless_there_is_a_default() {
    let server = TestServer::memory(ROOMY).await;
    let status = server.client().ask(session("acme").service("t9")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("\"t9\""), "{status}");

    let server = TestServer::memory("[services.default]\nmax_per_organization = 1").await;
    let mut client = server.client();
    client.borrow(session("acme").service("t9")).await;
    // Each service without an entry has its own pool, with the limits of the default.
    client.borrow(session("acme").service("t8")).await;
    let denied = client.refused(session("acme").service("t9")).await;
    assert_eq!(denied, ("organization".to_owned(), 1, 1));
}

#[tokio::test]
async fn a_disabled_organization_or_api_key_is_permission_denied() {
    let policy = "
        [services.t1r]
        [organizations.acme]
        disabled = true
        [api_keys.stolen]
        disabled = true
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    for ask in [session("acme"), session("bolt").api_key("stolen")] {
        let status = client.ask(ask).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().ends_with("is disabled"), "{status}");
    }
    client.borrow(session("bolt").api_key("fresh")).await;
}

#[tokio::test]
async fn every_limit_denies_with_its_scope_and_counts() {
    let policy = "
        [services.total]
        max_total = 2
        [services.t1r]
        max_per_organization = 2
        [services.keyed]
        max_per_api_key = 2
        [services.t2w]
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    for (asks, scope) in [
        ([session("a"), session("b"), session("c")].map(|ask| ask.service("total")), "service"),
        ([session("a"), session("a"), session("a")], "organization"),
        (
            [session("a"), session("a"), session("a")].map(|a| a.service("keyed").api_key("k")),
            "api_key",
        ),
        ([worker("a", "b7", 2), worker("a", "b7", 2), worker("a", "b7", 2)], "trace"),
    ] {
        let [first, second, third] = asks;
        client.borrow(first).await;
        client.borrow(second).await;
        assert_eq!(client.refused(third).await, (scope.to_owned(), 2, 2));
    }
    // Leases outside of a scope do not count in it.
    client.borrow(session("b")).await;
    client.borrow(session("a").service("keyed").api_key("l")).await;
    client.borrow(session("a").service("keyed")).await;
    client.borrow(worker("a", "b8", 2)).await;
}

#[tokio::test]
async fn limits_are_checked_from_the_service_down_to_the_trace() {
    let policy = "
        [services.t2w]
        max_total = 1
        max_per_organization = 1
        max_per_api_key = 1
        [organizations.roomy]
        limits = { t2w = 9 }
        [api_keys.roomy]
        limits = { t2w = 9 }
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    client.borrow(worker("acme", "a1", 1).api_key("k")).await;
    let ask = worker("acme", "a1", 1).api_key("k");
    assert_eq!(client.refused(ask.clone()).await.0, "service");

    let without_total = policy.replace("max_total = 1", "");
    let server = TestServer::memory(&without_total).await;
    let mut client = server.client();
    client.borrow(ask.clone()).await;
    assert_eq!(client.refused(ask.clone()).await.0, "organization");

    let ask = worker("roomy", "a1", 1).api_key("k");
    client.borrow(ask.clone()).await;
    assert_eq!(client.refused(ask).await.0, "api_key");

    let ask = worker("roomy", "a2", 1).api_key("roomy");
    client.borrow(ask.clone()).await;
    assert_eq!(client.refused(ask).await.0, "trace");
}

#[tokio::test]
async fn a_limit_of_zero_admits_nobody() {
    let server = TestServer::memory("[services.t1r]\nmax_per_organization = 0").await;
    let denied = server.client().refused(session("acme")).await;
    assert_eq!(denied, ("organization".to_owned(), 0, 0));
}

#[tokio::test]
async fn a_denial_tells_active_and_maximum_apart_in_metadata_and_state() {
    // After the limit was lowered, more leases are active than it allows.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.redb");
    let clock = crate::harness::ManualClock::new();
    let server = TestServer::file(ROOMY, &path, clock).await;
    for _ in 0..3 {
        server.client().borrow(session("acme").trace("a1")).await;
    }
    let clock = server.stop().await;
    let server = TestServer::file("[services.t1r]\nmax_per_organization = 2", &path, clock).await;
    let mut client = server.client();
    let answer = client.ask(session("acme").trace("a1")).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-denied-active").unwrap(), "3");
    assert_eq!(text(answer.metadata(), "x-denied-max").unwrap(), "2");
    let state = answer.into_inner().worker_state.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (3, 2, 0));
    assert_eq!(state.worker_count_per_trace_id["a1"], 3);
    assert_eq!(client.count("t1r", "acme").await, 3, "a lowered limit ends nobody");
}

#[tokio::test]
async fn the_state_of_a_refusal_shows_the_limit_that_refused_and_the_state_of_a_pool_its_own_limit()
{
    let policy = "
        [services.total]
        max_total = 2
        max_per_organization = 5
        [services.t2w]
        max_per_organization = 9
        max_per_api_key = 3
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    for organization in ["a", "b"] {
        client.borrow(session(organization).service("total")).await;
    }
    // The pool has 1 of 5 leases, and the service has 2 of 2.
    let answer = client.ask(session("a").service("total")).await.unwrap().into_inner();
    let state = answer.worker_state.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (1, 2, 0));
    let state = client.state("total", "a").await.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (1, 5, 4));

    for trace in ["b7", "b8", "b9"] {
        client.borrow(worker("a", trace, 1).api_key("k")).await;
    }
    for (ask, ceiling) in [(worker("a", "b6", 1).api_key("k"), 3), (worker("a", "b7", 1), 1)] {
        let state = client.ask(ask).await.unwrap().into_inner().worker_state.unwrap();
        assert_eq!((state.borrowed_workers, state.max_workers), (3, ceiling));
    }
    let state = client.state("t2w", "a").await.unwrap();
    assert_eq!((state.max_workers, state.available_workers), (9, 6));
}

#[tokio::test]
async fn a_worker_refused_by_the_servers_own_limit_is_shown_that_limit() {
    let clock = crate::harness::ManualClock::new();
    let mut config = config(ROOMY, &clock, tgm_session_server::store::StoreUrl::Memory);
    config.max_leases = 1;
    let server = TestServer::start(config, clock).await;
    let mut client = server.client();
    client.borrow(worker("acme", "a1", 5)).await;
    let answer = client.ask(worker("acme", "a1", 5)).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-denied-scope").unwrap(), "server");
    let state = answer.into_inner().worker_state.unwrap();
    assert_eq!((state.max_workers, state.available_workers), (1, 0));
}

#[tokio::test]
async fn the_servers_own_limit_is_unavailable() {
    let clock = crate::harness::ManualClock::new();
    let mut config = config(ROOMY, &clock, tgm_session_server::store::StoreUrl::Memory);
    config.max_leases = 1;
    let server = TestServer::start(config, clock).await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_grant_tells_key_pool_ttl_and_minimal_life_to_the_nanosecond() {
    let policy = "
        [services.t1r]
        max_per_organization = 10
        ttl = \"90s\"
        minimal_life = \"1500ms\"
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    let answer = client.ask(session("acme").trace("a1")).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-lease-ttl-ms").unwrap(), "90000");
    let answer = answer.into_inner();
    let key = &answer.worker_key;
    assert!(key.is_ascii() && (16..=64).contains(&key.len()) && !key.contains("acme"), "{key}");
    let life = answer.minimal_worker_life_duration.unwrap();
    assert_eq!((life.seconds, life.nanos), (1, 500_000_000));
    let state = answer.worker_state.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (1, 10, 9));
    assert_eq!((state.active_trace_id, state.worker_count_per_trace_id["a1"]), (1, 1));
}

#[tokio::test]
async fn a_pool_without_a_limit_has_a_maximum_of_zero_and_everything_available() {
    let server = TestServer::memory("[services.t1r]").await;
    let answer = server.client().ask(session("acme")).await.unwrap().into_inner();
    let state = answer.worker_state.unwrap();
    assert_eq!((state.max_workers, state.available_workers), (0, i64::MAX));
}

#[tokio::test]
async fn a_borrow_answer_maps_only_the_borrowers_trace() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    client.borrow(session("acme").trace("a1")).await;
    client.borrow(session("acme").trace("a2")).await;
    let answer = client.ask(session("acme").trace("a2")).await.unwrap().into_inner();
    let state = answer.worker_state.unwrap();
    assert_eq!(state.active_trace_id, 2);
    assert_eq!(state.worker_count_per_trace_id.into_iter().collect::<Vec<_>>(), [("a2".into(), 2)]);
}

#[tokio::test]
async fn an_empty_trace_and_one_of_zeros_form_no_scope() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    for trace in ["", "00000000000000000000000000000000"] {
        client.borrow(worker("acme", trace, 1)).await;
        let answer = client.ask(worker("acme", trace, 1)).await.unwrap().into_inner();
        let state = answer.worker_state.unwrap();
        assert_eq!(state.active_trace_id, 0);
        assert!(state.worker_count_per_trace_id.is_empty());
    }
}

#[tokio::test]
async fn workers_do_not_starve_the_streams_of_their_organization() {
    let policy = "
        [services.t1r]
        max_per_organization = 1
        [services.t2w]
        max_per_organization = 2
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    client.borrow(worker("acme", "a1", 5)).await;
    client.borrow(worker("acme", "a1", 5)).await;
    assert_eq!(client.refused(worker("acme", "a1", 5)).await.0, "organization");
    client.borrow(session("acme")).await;
}

#[tokio::test]
async fn counts_stay_true_when_a_session_is_returned_before_its_workers() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let stream = client.borrow(session("acme").trace("a1")).await;
    let workers = [
        client.borrow(worker("acme", "a1", 5)).await,
        client.borrow(worker("acme", "a1", 5)).await,
    ];
    client.give_back(&stream).await;
    assert_eq!(client.count("t1r", "acme").await, 0);
    assert_eq!(client.count("t2w", "acme").await, 0, "ending a session ends its workers");
    for key in &workers {
        client.give_back(key).await;
        client.give_back(key).await;
    }
    assert_eq!(client.count("t2w", "acme").await, 0);
    let fresh = client.borrow(worker("acme", "a1", 5)).await;
    assert!(!workers.contains(&fresh), "keys are never used again");
    assert_eq!(client.count("t2w", "acme").await, 1);
}

#[tokio::test]
async fn a_lease_that_nobody_keeps_alive_is_gone_after_its_ttl() {
    let server = TestServer::memory("[services.t1r]\nmax_per_organization = 1").await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    server.pass(Duration::from_secs(59));
    client.refused(session("acme")).await;
    server.pass(Duration::from_secs(1));
    client.borrow(session("acme")).await;
}

#[tokio::test]
async fn leases_expire_when_nobody_calls() {
    let server = TestServer::memory("[services.t1r]\nttl = \"300ms\"").await;
    server.client().borrow(session("acme")).await;
    server.clock.jump(Duration::from_millis(300));
    crate::harness::eventually("the lease expires", || async { server.live().await == 0 }).await;
}

#[tokio::test]
async fn concurrent_borrows_never_exceed_the_limit() {
    let server = TestServer::memory("[services.t1r]\nmax_per_organization = 7").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        // Each task has its own connection, so that both serving threads take part.
        let mut client = server.client();
        tasks.spawn(async move {
            let mut granted = 0;
            for _ in 0..20 {
                let answer = client.ask(session("acme")).await.unwrap().into_inner();
                let state = answer.worker_state.unwrap();
                assert!(state.borrowed_workers <= 7, "{state:?}");
                granted += i32::from(!answer.worker_key.is_empty());
            }
            granted
        });
    }
    assert_eq!(tasks.join_all().await.iter().sum::<i32>(), 7);
}
