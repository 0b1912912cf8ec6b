//! The answers of ReturnWorker.

use std::time::Duration;

use tonic::Code;
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::return_worker_response::Status as Returned;

use crate::harness::{ROOMY, TestServer, seconds, session, worker};

#[tokio::test]
async fn a_return_frees_the_slot_before_it_is_answered() {
    let server = TestServer::memory("[services.t1r]\nmax_per_organization = 1").await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    assert_eq!(client.give_back(&key).await, Returned::Returned);
    client.borrow(session("acme")).await;
}

#[tokio::test]
async fn a_key_that_is_no_live_lease_is_missing() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    for key in ["", "nonsense", &"k".repeat(5_000)] {
        assert_eq!(client.give_back(key).await, Returned::MissingKey);
    }
    let expired = client.borrow(session("acme")).await;
    server.pass(Duration::from_secs(60));
    assert_eq!(client.give_back(&expired).await, Returned::MissingKey);
}

#[tokio::test]
async fn returning_twice_never_frees_two_slots() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let first = client.borrow(session("acme")).await;
    client.borrow(session("acme")).await;
    assert_eq!(client.give_back(&first).await, Returned::Returned);
    assert_eq!(client.give_back(&first).await, Returned::MissingKey);
    assert_eq!(client.count("t1r", "acme").await, 1);
}

#[tokio::test]
async fn a_return_before_the_minimal_life_is_answered_at_once_and_counts_until_then() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    server.pass(Duration::from_secs(10));
    // The clock stands still: an answer that waited for the minimal life would never come.
    let answer = client.give_back_after(&key, Some(seconds(200))).await.unwrap();
    assert_eq!(answer, Returned::TtlUpdated);
    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::Failed);
    // The lease ends at its minimal life, although the TTL ends earlier.
    server.pass(Duration::from_secs(189));
    assert_eq!(client.count("t1r", "acme").await, 1);
    server.pass(Duration::from_secs(1));
    assert_eq!(client.count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_lease_at_its_minimal_life_is_returned_to_the_nanosecond() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let life = prost_types::Duration { seconds: 1, nanos: 500_000_000 };
    let old = client.borrow(session("acme")).await;
    server.pass(Duration::from_millis(1_500));
    assert_eq!(client.give_back_after(&old, Some(life)).await.unwrap(), Returned::Returned);

    let young = client.borrow(session("acme")).await;
    server.pass(Duration::from_nanos(1_499_999_999));
    assert_eq!(client.give_back_after(&young, Some(life)).await.unwrap(), Returned::TtlUpdated);
    server.pass(Duration::from_nanos(1));
    assert_eq!(client.count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_further_return_may_only_shorten_the_minimal_life() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    for life in [30, 60, 20] {
        let answer = client.give_back_after(&key, Some(seconds(life))).await.unwrap();
        assert_eq!(answer, Returned::TtlUpdated);
    }
    server.pass(Duration::from_secs(19));
    assert_eq!(client.count("t1r", "acme").await, 1);
    assert_eq!(client.give_back(&key).await, Returned::Returned);
    assert_eq!(client.count("t1r", "acme").await, 0);
    assert_eq!(client.give_back(&key).await, Returned::MissingKey);
}

#[tokio::test]
async fn a_minimal_life_is_clamped_to_ten_minutes() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    for life in [seconds(601), seconds(i64::MAX)] {
        let key = client.borrow(session("acme")).await;
        client.give_back_after(&key, Some(life)).await.unwrap();
    }
    server.pass(Duration::from_secs(599));
    assert_eq!(client.count("t1r", "acme").await, 2);
    server.pass(Duration::from_secs(1));
    assert_eq!(client.count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_minimal_life_that_is_negative_or_no_duration_is_refused_and_changes_nothing() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    for (seconds, nanos) in [(-1, 0), (0, -1), (i64::MIN, 0), (1, i32::MAX), (0, 1_000_000_000)] {
        let life = prost_types::Duration { seconds, nanos };
        let status = client.give_back_after(&key, Some(life)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("minimal_worker_life_duration"), "{status}");
    }
    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn the_minimal_life_of_the_policy_is_told_and_not_enforced() {
    let server = TestServer::memory("[services.t1r]\nminimal_life = \"5m\"").await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    assert_eq!(client.give_back(&key).await, Returned::Returned);
}

#[tokio::test]
async fn workers_live_on_while_their_session_lingers_and_end_with_it() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let stream = client.borrow(session("acme").trace("a1")).await;
    client.borrow(worker("acme", "a1", 3)).await;
    client.give_back_after(&stream, Some(seconds(10))).await.unwrap();
    assert_eq!(client.count("t2w", "acme").await, 1);
    server.pass(Duration::from_secs(10));
    assert_eq!(client.count("t2w", "acme").await, 0);
}
