//! A borrow whose answer reaches no caller takes no slot.

use crate::harness::{Client, ManualClock, ROOMY, TestServer, eventually, session};
use store::testing::Disk;

const ID: &str = "00112233445566778899aabbccddeeff";

/// A server whose disk hangs, so that grants are applied but not answered yet.
async fn held_back() -> (TestServer, Disk) {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    disk.hold();
    (server, disk)
}

/// Starts a borrow, and waits until `live` leases count.
async fn start(
    server: &TestServer,
    mut client: Client,
    ask: crate::harness::Ask,
    live: u64,
) -> tokio::task::JoinHandle<()> {
    let call = tokio::spawn(async move {
        let answer = client.ask(ask).await;
        panic!("the journal is held back, but there is an answer: {answer:?}");
    });
    eventually("the grant is applied", || async { server.live().await == live }).await;
    call
}

#[tokio::test]
async fn a_caller_that_cancels_before_the_answer_leaves_no_lease() {
    let (server, disk) = held_back().await;
    let first = start(&server, server.client(), session("acme"), 1).await;
    let second = start(&server, server.client(), session("acme").borrow_id(ID), 2).await;
    first.abort();
    second.abort();
    // The disk still hangs: the slots are free at once, not only when the disk works again.
    eventually("the leases are returned", || async { server.live().await == 0 }).await;
    eventually("the journal comes to the disk", || async { disk.is_waiting() }).await;
    disk.release();
    assert_eq!(server.client().count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_caller_whose_connection_breaks_before_the_answer_leaves_no_lease() {
    let (server, disk) = held_back().await;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let address = server.running.grpc_address();
    runtime.spawn(async move {
        let answer = Client::of(address).ask(session("acme")).await;
        panic!("the journal is held back, but there is an answer: {answer:?}");
    });
    eventually("the grant is applied", || async { server.live().await == 1 }).await;
    // This closes the socket of the connection, without a reset of the call.
    runtime.shutdown_background();
    eventually("the lease is returned", || async { server.live().await == 0 }).await;
    disk.release();
}

#[tokio::test]
async fn a_lease_lives_as_long_as_one_try_of_its_borrow_waits_for_it() {
    let (server, disk) = held_back().await;
    let lost = start(&server, server.client(), session("acme").borrow_id(ID), 1).await;
    let client = server.client();
    let mut retry = client.clone();
    let retry = tokio::spawn(async move { retry.borrow(session("acme").borrow_id(ID)).await });
    // A later call on the same connection is applied only after the retry has arrived.
    let marker = start(&server, client, session("marker"), 2).await;
    lost.abort();
    marker.abort();
    eventually("the marker is returned", || async { server.live().await == 1 }).await;
    disk.release();
    let key = retry.await.unwrap();
    let mut client = server.client();
    assert_eq!(client.count("t1r", "acme").await, 1);
    assert_eq!(
        client.keep_alive(&key).await.unwrap(),
        wire::worker::keep_alive_response::Status::TtlExtended
    );
}

#[tokio::test]
async fn a_lost_answer_lets_the_same_borrow_id_be_tried_again() {
    let (server, disk) = held_back().await;
    let lost = start(&server, server.client(), session("acme").borrow_id(ID), 1).await;
    lost.abort();
    eventually("the lease is returned", || async { server.live().await == 0 }).await;
    disk.release();
    server.client().borrow(session("acme").borrow_id(ID)).await;
    assert_eq!(server.live().await, 1);
}
