//! A disk that fails: the server never guesses.

use tonic::Code;
use wire::worker::keep_alive_response::Status as Kept;

use crate::disk::Disk;
use crate::harness::{ManualClock, ROOMY, TestServer, eventually, get, session};

/// A server with two leases, of which the second was returned, whose disk then broke.
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
    assert!(matches!(error, tgm_session_server::Error::StoreFailed { .. }), "{error}");
}
