//! WorkersState, row by row.

use tonic::Code;

use crate::harness::{ROOMY, TestServer, session, worker};

#[tokio::test]
async fn the_state_of_a_pool_counts_its_leases_by_trace() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    client.borrow(session("acme").trace("a1")).await;
    client.borrow(session("acme").trace("a2")).await;
    client.borrow(session("acme").trace("a2")).await;
    client.borrow(session("acme")).await;
    client.borrow(session("other").trace("a3")).await;
    client.borrow(worker("acme", "a1", 3)).await;
    let state = client.state("t1r", "acme").await.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (4, 10, 6));
    assert_eq!(state.active_trace_id, 2);
    let traces: Vec<_> = state.worker_count_per_trace_id.into_iter().collect();
    assert_eq!(traces, [("a1".to_owned(), 1), ("a2".to_owned(), 2)]);
}

#[tokio::test]
async fn an_unknown_service_or_an_empty_id_is_an_invalid_argument() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    for (service, organization) in [("t9", "acme"), ("", "acme"), ("t1r", "")] {
        let status = client.state(service, organization).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test]
async fn a_disabled_organization_still_has_a_state() {
    let policy = "
        [services.t1r]
        max_per_organization = 3
        [organizations.acme]
        disabled = true
    ";
    let server = TestServer::memory(policy).await;
    let state = server.client().state("t1r", "acme").await.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (0, 3, 3));
}
