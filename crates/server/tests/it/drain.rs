//! A server that stops notifies its attached clients, and ends no session.

use std::time::{Duration, Instant};

use tonic::Code;
use wire::control::attach_response::Event;
use wire::worker::keep_alive_response::Status as Kept;

use crate::attached::Attached;
use crate::harness::{
    Client, LONGEST_STOP, ManualClock, ROOMY, TestServer, eventually, get, session,
};

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
    // Batches are still answered for a second.
    stream.name(&[&key]).await;
    let end = stream.next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let clock = stop.await.unwrap();
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(Client::of(address).keep_alive(&key).await.is_err(), "it has stopped");

    let server = TestServer::file(ROOMY, &path, clock).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_leave() {
    let mut fastest = Duration::MAX;
    // Several attempts, because a busy machine may delay one of them.
    for _ in 0..3 {
        let server = TestServer::memory(ROOMY).await;
        let mut stream = Attached::to(&server).await;
        stream.nothing_was_pushed().await;
        let started = Instant::now();
        let stop = tokio::spawn(server.stop());
        assert!(matches!(stream.next().await.unwrap(), Some(Event::Draining(_))));
        drop(stream);
        stop.await.unwrap();
        fastest = fastest.min(started.elapsed());
        if fastest < Duration::from_millis(900) {
            return;
        }
    }
    panic!("the fastest stop took {fastest:?}");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_do_not_read() {
    let server = TestServer::slow_to_drain(ROOMY).await;
    let mut stream = Attached::to(&server).await;
    stream.send(&[]).await;
    tokio::time::timeout(LONGEST_STOP, server.stop()).await.expect("it does not drain to the end");
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
