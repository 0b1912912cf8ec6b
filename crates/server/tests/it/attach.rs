//! Keep-alives in batches.

use std::time::{Duration, Instant};

use lease::LeaseId;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Policy, Server};
use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use wire::control::attach_response::Event;
use wire::control::{AttachRequest, BatchAnswer, Reason, RevokedPlace};
use wire::worker::keep_alive_response::Status as Kept;

use crate::attached::{Attached, metric};
use crate::auth::two_indexers;
use crate::harness::{
    ManualClock, ROOMY, TestServer, channel, config, eventually, seconds, session, worker,
};
use store::testing::Disk;

#[tokio::test]
async fn a_batch_is_answered_by_the_places_of_its_keys() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let live = client.borrow(session("acme")).await;
    let returned = client.borrow(session("acme")).await;
    client.give_back(&returned).await;
    let lingering = client.borrow(session("acme")).await;
    client.give_back_after(&lingering, Some(seconds(60))).await.unwrap();
    let revoked = client.borrow(session("acme")).await;
    let id: LeaseId = revoked.parse().unwrap();
    assert!(server.running.revoke(id, lease::Reason::Operator).await.unwrap());

    let mut stream = Attached::to(&server).await;
    let answer =
        stream.keep_alive(&[&returned, &live, "nonsense", &revoked, "", &lingering, &live]).await;
    let message = "revoked by an operator".to_owned();
    let revoked = RevokedPlace { place: 3, reason: Reason::Operator.into(), message };
    let expected = BatchAnswer {
        batch: 1,
        failed: vec![0, 2, 4, 5],
        revoked: vec![revoked],
        unavailable: vec![],
    };
    assert_eq!(answer, expected);
    assert_eq!(stream.keep_alive(&[]).await, BatchAnswer { batch: 2, ..BatchAnswer::default() });
}

#[tokio::test]
async fn every_lease_of_a_batch_has_its_full_time_to_live_again() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    for number in 0..5 {
        kept.push(client.borrow(worker("acme", "4bf92f3577b34da6", 100)).await);
        left.push(client.borrow(session(&format!("other-{number}"))).await);
    }
    let mut stream = Attached::to(&server).await;
    server.pass(Duration::from_secs(50));
    stream.name(&kept.iter().map(String::as_str).collect::<Vec<_>>()).await;
    server.pass(Duration::from_secs(50));
    assert_eq!(server.live().await, 5);
    for (kept, left) in kept.iter().zip(&left) {
        assert_eq!(client.keep_alive(kept).await.unwrap(), Kept::TtlExtended);
        assert_eq!(client.keep_alive(left).await.unwrap(), Kept::Failed);
    }
}

#[tokio::test]
async fn to_another_indexer_the_leases_of_a_batch_do_not_exist() {
    let server = TestServer::memory(&two_indexers()).await;
    let key = server.client().with_key("west-old").borrow(session("acme")).await;
    let mut west = Attached::with_key(&server, "west-new").await.unwrap();
    let mut east = Attached::with_key(&server, "east-key").await.unwrap();
    west.name(&[&key]).await;
    assert_eq!(east.keep_alive(&[&key]).await.failed, [0]);
    // The revocation goes to the indexer of the lease, although the other one named the lease last.
    server.running.revoke(key.parse().unwrap(), lease::Reason::Operator).await.unwrap();
    assert_eq!(west.revoked().await, (key.clone(), Reason::Operator));
    east.nothing_was_pushed().await;
    assert_eq!(east.keep_alive(&[&key]).await.failed, [0], "nor is it told why it ended");
}

#[tokio::test]
async fn attaching_needs_a_key_before_anything_else_is_looked_at() {
    let server = TestServer::memory(&two_indexers()).await;
    let address = server.running.grpc_address();
    let codes = [
        Attached::over(channel(address), None).await.map(drop).unwrap_err().code(),
        Attached::with_key(&server, "guess").await.map(drop).unwrap_err().code(),
    ];
    assert_eq!(codes, [Code::Unauthenticated; 2]);
    let mut grpc = Grpc::new(channel(address));
    for (key, code) in [("guess", Code::Unauthenticated), ("east-key", Code::Unimplemented)] {
        grpc.ready().await.unwrap();
        let mut request = tonic::Request::new(AttachRequest::default());
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        let codec = tonic_prost::ProstCodec::<AttachRequest, AttachRequest>::default();
        let path = PathAndQuery::from_static("/tgm.session.v1.SessionControl/Nothing");
        assert_eq!(grpc.unary(request, path, codec).await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_first_batch_after_its_key_was_withdrawn() {
    let server = TestServer::memory(&two_indexers()).await;
    let key = server.client().with_key("west-old").borrow(session("acme")).await;
    let mut old = Attached::with_key(&server, "west-old").await.unwrap();
    let mut new = Attached::with_key(&server, "west-new").await.unwrap();
    old.name(&[&key]).await;
    let without_old = two_indexers().replace(&crate::auth::digest("west-old"), &"0".repeat(64));
    let policy = Policy::parse(&without_old, "test.toml").unwrap().policy;
    assert_eq!(server.running.set_policy(policy).await.unwrap(), 0);
    old.send(&[&key]).await;
    assert_eq!(old.next().await.unwrap_err().code(), Code::Unauthenticated);
    new.name(&[&key]).await;
}

#[tokio::test]
async fn a_batch_that_is_too_long_ends_the_stream_and_no_lease() {
    let server = TestServer::memory(ROOMY).await;
    let key = server.client().borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[key.as_str(); 1_000]).await;
    stream.send(&[key.as_str(); 1_001]).await;
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("1001") && status.message().contains("1000"), "{status}");

    let mut stream = Attached::to(&server).await;
    stream.send(&["x".repeat(70_000).as_str()]).await;
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn losing_the_stream_ends_nothing() {
    let server = TestServer::memory(ROOMY).await;
    let key = server.client().borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    assert_eq!(metric(&server.running, "tgm_session_attached_streams").await, 1);
    drop(stream);
    eventually("the stream is gone", || async {
        metric(&server.running, "tgm_session_attached_streams").await == 0
    })
    .await;
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    assert!(server.running.revoke(key.parse().unwrap(), lease::Reason::Operator).await.unwrap());
    let status = server.client().keep_alive(&key).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "nobody was told, and it is known still");
}

#[tokio::test]
async fn a_client_that_half_closes_gets_its_answers_and_the_status_ok() {
    let server = TestServer::memory(ROOMY).await;
    let mut stream = Attached::to(&server).await;
    stream.send(&["nonsense"]).await;
    stream.batches = tokio::sync::mpsc::channel(1).0;
    assert_eq!(stream.answer().await.failed, [0]);
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test]
async fn many_small_batches_at_once_are_answered_in_order() {
    let server = TestServer::memory(ROOMY).await;
    let mut stream = Attached::to(&server).await;
    let batches = stream.batches.clone();
    // The batches are small enough to arrive together.
    let sending = tokio::spawn(async move {
        for batch in 1..=5_000 {
            let worker_keys = vec!["x".to_owned()];
            batches.send(AttachRequest { batch, worker_keys }).await.unwrap();
        }
    });
    sending.await.unwrap();
    for batch in 1..=5_000 {
        let event = stream.next().await.unwrap();
        let Some(Event::Answer(answer)) = event else { panic!("{event:?}") };
        assert_eq!((answer.batch, answer.failed), (batch, vec![0]));
    }
}

#[tokio::test]
async fn more_streams_than_there_are_places_for_are_unavailable() {
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.max_connections = 2;
    let running = Server::bind(config).await.unwrap().start().await.unwrap();
    let channel = channel(running.grpc_address());
    let first = Attached::over(channel.clone(), None).await.unwrap();
    let _second = Attached::over(channel.clone(), None).await.unwrap();
    let refused = Attached::over(channel.clone(), None).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    drop(first);
    eventually("the place is free", || async {
        Attached::over(channel.clone(), None).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn after_a_failed_write_leases_are_extended_and_nothing_is_called_failed() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let mut client = server.client();
    let held = client.borrow(session("acme")).await;
    let returned = client.borrow(session("acme")).await;
    let revoked = client.borrow(session("acme")).await;
    client.give_back(&returned).await;
    server.running.revoke(revoked.parse().unwrap(), lease::Reason::Operator).await.unwrap();
    disk.fail();
    assert_eq!(client.ask(session("acme")).await.unwrap_err().code(), Code::Unavailable);
    let mut stream = Attached::to(&server).await;
    let answer = stream.keep_alive(&[&returned, &held, "nonsense", &revoked]).await;
    let expected = BatchAnswer { batch: 1, unavailable: vec![0, 2, 3], ..BatchAnswer::default() };
    assert_eq!(answer, expected);
    let refused = server.running.revoke(held.parse().unwrap(), lease::Reason::Operator).await;
    assert!(refused.is_err());
    stream.nothing_was_pushed().await;
}

#[tokio::test]
async fn a_lease_whose_return_is_not_durable_yet_is_unavailable_and_others_are_extended() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let mut client = server.client();
    let held = client.borrow(session("acme")).await;
    let returned = client.borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    disk.hold();
    let (mut caller, key) = (client.clone(), returned.clone());
    let call = tokio::spawn(async move { caller.give_back(&key).await });
    eventually("the return is applied", || async { server.live().await == 1 }).await;

    let start = Instant::now();
    let extended = stream.keep_alive(&[&held]).await;
    let took = start.elapsed();
    let unknown = stream.keep_alive(&[&held, &returned]).await;
    // Released before the assertions, because dropping a server waits for its disk.
    disk.release();
    assert_eq!(extended, BatchAnswer { batch: 1, ..BatchAnswer::default() });
    assert!(took < Duration::from_secs(1), "what is extended waits for no disk: {took:?}");
    assert_eq!((unknown.failed, unknown.unavailable), (vec![], vec![1]));
    call.await.unwrap();
    assert_eq!(stream.keep_alive(&[&held, &returned]).await.failed, [1]);
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_disconnected_and_its_lease_lives_on() {
    let server = TestServer::memory(ROOMY).await;
    let key = server.client().borrow(session("acme")).await;
    let address = format!("http://{}", server.running.grpc_address());
    let narrow = Endpoint::from_shared(address).unwrap().initial_stream_window_size(65_535);
    let mut stream = Attached::over(narrow.connect_lazy(), None).await.unwrap();
    stream.name(&[&key]).await;
    let nonsense = vec!["x"; 1_000];
    let mut sent = 0;
    eventually("the stream is reset", || {
        sent += 1;
        let worker_keys = nonsense.iter().map(|key| (*key).to_owned()).collect();
        let sending = stream.batches.try_send(AttachRequest { batch: sent, worker_keys });
        let over = matches!(sending, Err(tokio::sync::mpsc::error::TrySendError::Closed(_)));
        std::future::ready(over)
    })
    .await;
    eventually("the stream is gone", || async {
        metric(&server.running, "tgm_session_attached_streams").await == 0
    })
    .await;
    let end = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended well"),
            Err(status) => break status,
        }
    };
    assert!(matches!(end.code(), Code::Unavailable | Code::Cancelled), "{end}");
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn keep_alives_of_a_reader_that_does_not_read_count() {
    let server = TestServer::memory(ROOMY).await;
    let key = server.client().borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    for _ in 0..3 {
        let extended = "tgm_session_keep_alives_total{outcome=\"ttl_extended\"}";
        let before = metric(&server.running, extended).await;
        server.pass(Duration::from_secs(50));
        stream.send(&[&key]).await;
        eventually("the batch is applied", || async {
            metric(&server.running, extended).await > before
        })
        .await;
    }
    assert_eq!(server.live().await, 1);
}
