//! `x-borrow-id`: all tries of one borrow get one lease.

use tonic::Code;
use wire::worker::return_worker_response::Status as Returned;

use crate::harness::{ManualClock, ROOMY, TestServer, session};

const ID: &str = "00112233445566778899aabbccddeeff";

#[tokio::test]
async fn a_retry_under_the_same_borrow_id_gets_the_same_live_lease() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let first = client.borrow(session("acme").borrow_id(ID)).await;
    let again = client.borrow(session("acme").borrow_id(&ID.to_uppercase())).await;
    assert_eq!(first, again);
    assert_eq!(client.count("t1r", "acme").await, 1);
}

#[tokio::test]
async fn another_request_under_the_same_borrow_id_is_an_invalid_argument() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    client.borrow(session("acme").borrow_id(ID)).await;
    let status = client.ask(session("acme").trace("a1").borrow_id(ID)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("x-borrow-id"), "{status}");
}

#[tokio::test]
async fn a_malformed_borrow_id_is_an_invalid_argument() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    for id in ["", "abc", "zz112233445566778899aabbccddeeff", &ID[1..], &format!("{ID}0")] {
        let status = client.ask(session("acme").borrow_id(id)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{id}");
        let status = client.give_back_borrow(id).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{id}");
    }
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn a_return_by_borrow_id_returns_what_the_borrow_took_once() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    assert_eq!(client.give_back_borrow(&ID.replace('0', "9")).await.unwrap(), Returned::MissingKey);
    client.borrow(session("acme").borrow_id(ID)).await;
    client.borrow(session("acme")).await;
    assert_eq!(client.give_back_borrow(ID).await.unwrap(), Returned::Returned);
    assert_eq!(client.give_back_borrow(ID).await.unwrap(), Returned::MissingKey);
    assert_eq!(client.count("t1r", "acme").await, 1);
}

#[tokio::test]
async fn a_borrow_that_was_given_up_before_it_arrived_takes_nothing() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    assert_eq!(client.give_back_borrow(ID).await.unwrap(), Returned::MissingKey);
    let status = client.ask(session("acme").borrow_id(ID)).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn a_borrow_id_that_was_returned_gets_no_lease_after_a_restart_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let mut client = server.client();
    let ids = ["1", "2", "3"].map(|digit| digit.repeat(32));
    let [returned, early, live] = &ids;
    let key = client.borrow(session("acme").borrow_id(returned)).await;
    assert_eq!(client.give_back(&key).await, Returned::Returned);
    assert_eq!(client.give_back_borrow(early).await.unwrap(), Returned::MissingKey);
    let key = client.borrow(session("acme").borrow_id(live)).await;
    let clock = server.stop().await;

    let server = TestServer::file(ROOMY, &path, clock).await;
    let mut client = server.client();
    for id in [returned, early] {
        let status = client.ask(session("acme").borrow_id(id)).await.unwrap_err();
        assert_eq!(status.code(), Code::Cancelled, "{id}");
    }
    let status = client.ask(session("other").borrow_id(returned)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(client.borrow(session("acme").borrow_id(live)).await, key);
    assert_eq!(server.live().await, 1);
}
