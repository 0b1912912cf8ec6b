//! The answers of WorkersState.

use std::sync::atomic::{AtomicBool, Ordering};

use lease::{Request, Terms};
use tonic::Code;
use wire::worker::WorkersStateRequest;

use crate::harness::{ROOMY, TestServer, session, text, worker};

/// Grants this many leases in the pool (acme, t1r), each with its own trace.
async fn fill(server: &TestServer, leases: usize) {
    for number in 1..=leases {
        let trace = format!("{number:032x}");
        let request = Request::session("t1r", "acme").trace(&trace);
        let borrowed = server.running.store().borrow(&request, &Terms::default()).await.unwrap();
        borrowed.delivery.complete();
    }
}

fn ask(service: &str, organization: &str) -> WorkersStateRequest {
    let (service, organization_id) = (service.to_owned(), organization.to_owned());
    WorkersStateRequest { service, organization_id, ..Default::default() }
}

#[tokio::test]
async fn the_state_of_a_large_pool_has_its_largest_traces_and_the_number_of_omitted_traces() {
    let server = TestServer::memory(ROOMY).await;
    fill(&server, 5_000).await;
    let more = Request::session("t1r", "acme").trace("large");
    for _ in 0..3 {
        let borrowed = server.running.store().borrow(&more, &Terms::default()).await.unwrap();
        borrowed.delivery.complete();
    }
    let mut client = server.client();
    let answer = client.pool.workers_state(ask("t1r", "acme")).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-traces-omitted").unwrap(), "905");
    let state = answer.into_inner().worker_state.unwrap();
    assert_eq!((state.borrowed_workers, state.active_trace_id), (5_003, 5_001));
    assert_eq!(state.worker_count_per_trace_id.len(), 4_096);
    assert_eq!(state.worker_count_per_trace_id["large"], 3);
    // The metadata is absent if no trace is omitted.
    client.borrow(session("globex").trace("a1")).await;
    let answer = client.pool.workers_state(ask("t1r", "globex")).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-traces-omitted"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alives_of_another_client_go_on_while_the_state_of_a_large_pool_is_read_continuously()
{
    let server = TestServer::memory(ROOMY).await;
    fill(&server, 50_000).await;
    let mut other = server.client();
    let key = other.borrow(session("globex")).await;
    let over = AtomicBool::new(false);
    let asking = async |mut client: crate::harness::Client| {
        let mut answers = 0;
        while !over.load(Ordering::Relaxed) {
            let state = client.state("t1r", "acme").await.unwrap();
            let traces = state.worker_count_per_trace_id.len();
            assert_eq!((state.borrowed_workers, traces), (50_000, 4_096));
            answers += 1;
        }
        answers
    };
    let keeping = async {
        for _ in 0..200 {
            let kept = other.keep_alive(&key).await.unwrap();
            assert_eq!(kept, wire::worker::keep_alive_response::Status::TtlExtended);
        }
        over.store(true, Ordering::Relaxed);
    };
    let (first, second, third, ()) = tokio::join!(
        asking(server.client()),
        asking(server.client()),
        asking(server.client()),
        keeping
    );
    // Every client got answers: long calls take turns with each other and with keep-alives.
    assert!(first > 0 && second > 0 && third > 0);
}

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
