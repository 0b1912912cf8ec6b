//! The answers of KeepAlive.

use std::time::Duration;

use lease::{LeaseId, Reason};
use tonic::Code;
use wire::worker::KeepAliveRequest;
use wire::worker::keep_alive_response::Status as Kept;

use crate::harness::{ROOMY, TestServer, seconds, session, text, worker};

#[tokio::test]
async fn a_lease_that_is_kept_alive_outlives_its_ttl() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    for _ in 0..5 {
        server.pass(Duration::from_secs(59));
        assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    }
    server.pass(Duration::from_secs(59));
    assert_eq!(client.count("t1r", "acme").await, 1);
}

#[tokio::test]
async fn an_extended_ttl_is_told_in_metadata() {
    let server = TestServer::memory("[services.t1r]\nttl = \"75s\"").await;
    let mut client = server.client();
    let worker_key = client.borrow(session("acme")).await;
    let message = KeepAliveRequest { worker_key, ..Default::default() };
    let answer = client.pool.keep_alive(message).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-lease-ttl-ms").unwrap(), "75000");
}

#[tokio::test]
async fn a_key_that_is_no_live_lease_is_an_ok_answer_that_says_failed() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let live = client.borrow(session("acme")).await;
    // A well-formed key that the server never issued.
    let mut forged = live.clone().into_bytes();
    forged.swap(20, 21);
    forged[22] = if forged[22] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for key in ["", "nonsense", &forged, &"k".repeat(5_000), "é"] {
        assert_eq!(client.keep_alive(key).await.unwrap(), Kept::Failed, "{key}");
    }
    assert_eq!(client.keep_alive(&live).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_keep_alive_revives_nothing_that_expired_or_was_returned() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let expired = client.borrow(session("acme")).await;
    server.pass(Duration::from_secs(60));
    let returned = client.borrow(session("acme")).await;
    client.give_back(&returned).await;
    let lingering = client.borrow(session("acme")).await;
    client.give_back_after(&lingering, Some(seconds(30))).await.unwrap();
    for key in [&expired, &returned, &lingering] {
        assert_eq!(client.keep_alive(key).await.unwrap(), Kept::Failed);
    }
    assert_eq!(client.count("t1r", "acme").await, 1, "the lingering one counts");
    server.pass(Duration::from_secs(30));
    assert_eq!(client.count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_worker_that_ended_with_its_session_is_not_kept_alive() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let stream = client.borrow(session("acme").trace("a1")).await;
    let job = client.borrow(worker("acme", "a1", 3)).await;
    assert_eq!(client.keep_alive(&job).await.unwrap(), Kept::TtlExtended);
    client.give_back(&stream).await;
    assert_eq!(client.keep_alive(&job).await.unwrap(), Kept::Failed);
}

#[tokio::test]
async fn the_status_of_a_revoked_lease_gives_its_reason_for_ten_minutes() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let mut revoked = Vec::new();
    for (reason, code) in [
        (Reason::Operator, Code::PermissionDenied),
        (Reason::OrganizationDisabled, Code::PermissionDenied),
        (Reason::ApiKeyDisabled, Code::PermissionDenied),
        (Reason::BudgetSpent, Code::ResourceExhausted),
    ] {
        let key = client.borrow(session("acme")).await;
        let id: LeaseId = key.parse().unwrap();
        assert!(server.running.store().revoke(id, reason).await.unwrap());
        revoked.push((key, code));
    }
    assert_eq!(server.live().await, 0);
    server.pass(Duration::from_secs(599));
    for (key, code) in &revoked {
        assert_eq!(client.keep_alive(key).await.unwrap_err().code(), *code);
        assert_eq!(
            client.give_back(key).await,
            wire::worker::return_worker_response::Status::MissingKey
        );
    }
    server.pass(Duration::from_secs(1));
    assert_eq!(client.keep_alive(&revoked[0].0).await.unwrap(), Kept::Failed);
}
