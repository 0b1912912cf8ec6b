//! A server that stops tells its attached clients, and ends no session.

use std::time::{Duration, Instant};

use tonic::Code;
use wire::control::attach_response::Event;
use wire::worker::keep_alive_response::Status as Kept;

use crate::attached::Attached;
use crate::harness::{Client, ManualClock, ROOMY, TestServer, eventually, get, session};

#[tokio::test]
async fn a_stop_gives_notice_first_and_ends_the_streams_a_second_later_and_no_session() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.redb");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    let (address, started) = (server.running.grpc_address(), Instant::now());
    let stop = tokio::spawn(server.stop());
    assert!(matches!(stream.next().await.unwrap(), Some(Event::Draining(_))));
    // The stream goes on for a moment.
    stream.name(&[&key]).await;
    let end = stream.next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let clock = stop.await.unwrap();
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(8), "{took:?}");
    assert!(Client::of(address).keep_alive(&key).await.is_err(), "it has stopped");

    let server = TestServer::file(ROOMY, &path, clock).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_leave() {
    let server = TestServer::memory(ROOMY).await;
    let mut stream = Attached::to(&server).await;
    stream.nothing_was_pushed().await;
    let started = Instant::now();
    let stop = tokio::spawn(server.stop());
    assert!(matches!(stream.next().await.unwrap(), Some(Event::Draining(_))));
    drop(stream);
    stop.await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_do_not_read() {
    let server = TestServer::memory(ROOMY).await;
    let mut stream = Attached::to(&server).await;
    stream.send(&[]).await;
    let started = Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    drop(stream);
}

#[tokio::test]
async fn a_server_that_drains_is_alive_and_not_ready() {
    let server = TestServer::memory(ROOMY).await;
    let admin = server.running.admin_address();
    let mut stream = Attached::to(&server).await;
    stream.nothing_was_pushed().await;
    assert_eq!(get(admin, "/readyz", "").await.0, 200);
    let stop = tokio::spawn(server.stop());
    assert!(matches!(stream.next().await.unwrap(), Some(Event::Draining(_))));
    eventually("it is not ready", async || get(admin, "/readyz", "").await.0 == 503).await;
    assert_eq!(get(admin, "/livez", "").await.0, 200);
    drop(stream);
    stop.await.unwrap();
}
