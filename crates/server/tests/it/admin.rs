//! The admin port.

use tgm_session_server::AdminToken;
use tgm_session_server::store::StoreUrl;

use crate::harness::{ManualClock, ROOMY, TestServer, config, get, session, worker};

#[tokio::test]
async fn probes_answer_while_the_server_serves() {
    let server = TestServer::memory(ROOMY).await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(get(server.running.admin_address(), path, "").await.0, 200, "{path}");
    }
    assert_eq!(get(server.running.admin_address(), "/nothing", "").await.0, 404);
}

#[tokio::test]
async fn metrics_count_borrows_by_service_and_outcome_and_live_leases_by_service() {
    let policy = "
        [services.t1r]
        max_per_organization = 2
        [services.default]
        max_per_organization = 9
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    let first = client.borrow(session("acme")).await;
    client.borrow(session("acme")).await;
    client.refused(session("acme")).await;
    client.borrow(session("acme").service("t8")).await;
    client.borrow(worker("acme", "a1", 3)).await;
    client.keep_alive(&first).await.unwrap();
    client.keep_alive("nonsense").await.unwrap();
    client.give_back(&first).await;
    let (status, page) = get(server.running.admin_address(), "/metrics", "").await;
    assert_eq!(status, 200);
    for line in [
        "tgm_session_borrows_total{service=\"t1r\",outcome=\"borrowed\",scope=\"\"} 2",
        "tgm_session_borrows_total{service=\"t1r\",outcome=\"denied\",scope=\"organization\"} 1",
        "tgm_session_borrows_total{service=\"default\",outcome=\"borrowed\",scope=\"\"} 2",
        "tgm_session_live_leases{service=\"t1r\"} 1",
        "tgm_session_live_leases{service=\"default\"} 2",
        "tgm_session_keep_alives_total{outcome=\"ttl_extended\"} 1",
        "tgm_session_keep_alives_total{outcome=\"failed\"} 1",
        "tgm_session_returns_total{outcome=\"returned\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("acme") && !page.contains("t8"), "{page}");
}

#[tokio::test]
async fn with_a_token_only_probes_are_open() {
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.admin_token = Some(AdminToken::new("sesame"));
    assert!(!format!("{config:?}").contains("sesame"));
    let server = TestServer::start(config, clock).await;
    let admin = server.running.admin_address();
    assert_eq!(get(admin, "/readyz", "").await.0, 200);
    for (header, status) in [
        ("", 401),
        ("authorization: Bearer guess\r\n", 401),
        ("authorization: Basic sesame\r\n", 401),
        ("authorization: Bearer sesame\r\n", 200),
    ] {
        assert_eq!(get(admin, "/metrics", header).await.0, status, "{header}");
    }
}
