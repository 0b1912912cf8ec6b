//! A disk that fails: the server gives no answer that may be wrong.

use std::time::Duration;

use lease::{KeptAlive, Request, Terms};
use tgm_session_server::store::{BorrowError, Options, Recovered, Unavailable};
use tonic::Code;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Kept;

use crate::harness::{ManualClock, ROOMY, TestServer, eventually, get, session, text, worker};
use store::testing::Disk;

/// A server whose disk has failed, with a live lease and a returned lease.
async fn broken() -> (TestServer, String, String) {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let mut client = server.client();
    let held = client.borrow(session("acme")).await;
    let returned = client.borrow(session("acme")).await;
    client.give_back(&returned).await;
    assert_eq!(get(server.running.admin_address(), "/readyz", "").await.0, 200);
    disk.fail();
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    (server, held, returned)
}

#[tokio::test]
async fn after_a_failed_write_every_change_is_unavailable() {
    let (server, held, _) = broken().await;
    let mut client = server.client();
    for _ in 0..3 {
        let codes = [
            client.ask(session("acme")).await.unwrap_err().code(),
            client.ask(session("other")).await.unwrap_err().code(),
            client.give_back_after(&held, None).await.unwrap_err().code(),
            client.state("t1r", "acme").await.unwrap_err().code(),
        ];
        assert_eq!(codes, [Code::Unavailable; 4]);
    }
}

#[tokio::test]
async fn after_a_failed_write_keep_alives_go_on_and_never_say_failed() {
    let (server, held, returned) = broken().await;
    let mut client = server.client();
    assert_eq!(client.keep_alive(&held).await.unwrap(), Kept::TtlExtended);
    for key in [&returned, "nonsense"] {
        assert_eq!(client.keep_alive(key).await.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn after_a_failed_write_the_server_is_alive_and_not_ready() {
    let (server, ..) = broken().await;
    let admin = server.running.admin_address();
    let (status, body) = get(admin, "/readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("restart"), "{body}");
    assert_eq!(get(admin, "/healthz", "").await.0, 200);
    assert_eq!(get(admin, "/livez", "").await.0, 200);

    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let health = HealthClient::new(crate::harness::channel(server.running.grpc_address()));
    eventually("gRPC health says not serving", || {
        let mut health = health.clone();
        async move {
            let answer = health.check(HealthCheckRequest::default()).await.unwrap();
            answer.into_inner().status == 2
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_whose_disk_failed_says_so_when_it_stops() {
    let (server, ..) = broken().await;
    let error = server.running.stop().await.unwrap_err();
    assert!(
        matches!(error, tgm_session_server::Error::Store(store::Error::Failed { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn changes_that_pile_up_before_a_slow_disk_are_refused_and_keep_alives_go_on() {
    let disk = Disk::default();
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    let store = Recovered::on_backend(disk.clone(), options).unwrap().resume().unwrap();
    let (request, terms) = (Request::session("t1r", "acme"), Terms::default());
    let held = store.borrow(&request, &terms).await.unwrap();
    let key = held.grant.id;
    held.delivery.complete();
    disk.hold();
    let mut granted = 0_u32;
    // Each borrow is polled once and dropped, which makes a grant and a return.
    while !matches!(store.borrow(&request, &terms).now(), Some(Err(BorrowError::Unavailable(_)))) {
        granted += 1;
        assert!(granted < 1_000_000, "what waits for the disk has no bound");
    }
    assert!(granted > 10_000, "only {granted} borrows were let wait");
    let refused = store.release(key, None, Duration::ZERO).await;
    assert_eq!(refused.unwrap_err(), Unavailable::Overloaded);
    let kept = store.keep_alive(key, None).await.unwrap();
    assert!(matches!(kept, KeptAlive::Extended { .. }));
    disk.release();
    eventually("the disk has caught up", || async {
        store.release(key, None, Duration::ZERO).await.is_ok()
    })
    .await;
}

/// The result of polling a future once.
trait Now: Future + Sized {
    fn now(self) -> Option<Self::Output> {
        let mut future = std::pin::pin!(self);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(answer) => Some(answer),
            std::task::Poll::Pending => None,
        }
    }
}

impl<F: Future> Now for F {}

#[tokio::test]
async fn after_a_failed_write_a_worker_is_told_to_try_again_and_a_session_that_the_store_failed() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let mut client = server.client();
    disk.fail();
    client.ask(session("acme")).await.unwrap_err();
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let busy = client.ask(worker("acme", "trace", 3)).await.unwrap();
    assert_eq!(busy.get_ref().status(), BorrowStatus::ResourceExhausted);
    assert_eq!(text(busy.metadata(), "x-denied-scope").as_deref(), Some("server"));
    let (_, page) = get(server.running.admin_address(), "/metrics", "").await;
    let counted =
        r#"tgm_session_borrows_total{service="t2w",outcome="server_busy",scope="server"} 1"#;
    assert!(page.contains(counted), "{page}");
}
