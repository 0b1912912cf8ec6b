//! What `/metrics` counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tgm_session_server::operator::By;
use tgm_session_server::policy::overrides::Subject;
use tgm_session_server::store::StoreUrl;
use tonic::Request;
use wire::control::session_control_client::SessionControlClient;
use wire::metering::{Event, Metric};
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;

use crate::harness::{
    Client, ManualClock, ROOMY, TestServer, channel, config, eventually, get, seconds, session,
    worker,
};

const BY: By<'_> = By { from: "a test", note: "" };

async fn page(server: &TestServer) -> String {
    let (status, page) = get(server.running.admin_address(), "/metrics", "").await;
    assert_eq!(status, 200, "{page}");
    page
}

/// The value of one series, such as `keep_alives_total{outcome="failed"}`; 0 when there is none.
fn value(page: &str, series: &str) -> f64 {
    let name = format!("tgm_session_{series} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0.0, |value| value.parse().unwrap())
}

#[track_caller]
fn assert_values(page: &str, expected: &[(&str, f64)]) {
    for (series, expected) in expected {
        assert_eq!(value(page, series), *expected, "{series} in\n{page}");
    }
}

#[tokio::test]
async fn every_way_a_lease_ends_is_counted_by_its_own_name() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let returned = client.borrow(session("acme")).await;
    client.give_back(&returned).await;
    let lingering = client.borrow(session("acme")).await;
    client.give_back_after(&lingering, Some(seconds(5))).await.unwrap();
    server.pass(Duration::from_secs(6));
    let first = client.borrow(session("acme").trace("a1")).await;
    client.borrow(worker("acme", "a1", 5)).await;
    client.borrow(worker("acme", "a1", 5)).await;
    client.give_back(&first).await;
    client.borrow(session("stays").trace("a2")).await;
    server.pass(Duration::from_secs(61));
    client.borrow(session("shut")).await;
    let operator = server.running.operator();
    operator.set_disabled(Subject::Organization, "shut", Some(true), BY).await.unwrap();
    client.borrow(session("acme").api_key("key-1")).await;
    operator.set_disabled(Subject::ApiKey, "key-1", Some(true), BY).await.unwrap();

    assert_values(
        &page(&server).await,
        &[
            ("leases_ended_total{how=\"returned\",reason=\"\"}", 2.0),
            ("leases_ended_total{how=\"lingered\",reason=\"\"}", 1.0),
            ("leases_ended_total{how=\"with_session\",reason=\"\"}", 2.0),
            ("leases_ended_total{how=\"expired\",reason=\"\"}", 1.0),
            ("leases_ended_total{how=\"revoked\",reason=\"organization_disabled\"}", 1.0),
            ("leases_ended_total{how=\"revoked\",reason=\"api_key_disabled\"}", 1.0),
            ("leases_ended_total{how=\"revoked\",reason=\"operator\"}", 0.0),
            ("live_leases{service=\"t1r\"}", 0.0),
        ],
    );
}

#[tokio::test]
async fn limits_stand_beside_live_leases_and_go_with_the_policy() {
    let policy = "
        [services.t1r]
        max_per_organization = 10
        max_per_api_key = 0
        max_total = 4000
        [services.t2w]
    ";
    let server = TestServer::memory(policy).await;
    let before = page(&server).await;
    assert_values(
        &before,
        &[
            ("limit{service=\"t1r\",kind=\"organization\"}", 10.0),
            ("limit{service=\"t1r\",kind=\"total\"}", 4000.0),
        ],
    );
    assert!(before.contains("tgm_session_limit{service=\"t1r\",kind=\"api_key\"} 0\n"), "{before}");
    assert!(!before.contains("tgm_session_limit{service=\"t2w\""), "absent is not 0: {before}");

    let policy = tgm_session_server::Policy::parse("[services.t9]", "test.toml").unwrap().policy;
    server.running.operator().set_policy(policy).await.unwrap();
    let after = page(&server).await;
    assert!(!after.contains("tgm_session_limit{"), "limits that are no more are told: {after}");
    assert!(after.contains("tgm_session_live_leases{service=\"t9\"} 0\n"), "{after}");
    assert!(!after.contains("tgm_session_live_leases{service=\"t1r\"}"), "{after}");
}

#[tokio::test]
async fn calls_are_timed_by_method_and_refusals_counted_by_code() {
    let policy = "
        [services.t1r]
        [organizations.closed]
        disabled = true
        [[indexers]]
        name = 'west'
        key_sha256 = '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'
    ";
    let server = TestServer::memory(policy).await;
    let mut west = server.client().with_key("test");
    let key = west.borrow(session("acme")).await;
    west.borrow(session("acme")).await;
    west.ask(session("closed")).await.unwrap_err();
    west.ask(session("")).await.unwrap_err();
    west.keep_alive(&key).await.unwrap();
    west.give_back(&key).await;
    west.state("t1r", "acme").await.unwrap();
    server.client().ask(session("acme")).await.unwrap_err();
    server.client().keep_alive(&key).await.unwrap_err();

    let page = page(&server).await;
    for (method, count) in
        [("BorrowWorker", 4.0), ("KeepAlive", 1.0), ("ReturnWorker", 1.0), ("WorkersState", 1.0)]
    {
        let series = |part, le| format!("call_duration_seconds_{part}{{{le}method=\"{method}\"}}");
        assert_eq!(value(&page, &series("count", "")), count, "{method} in\n{page}");
        let sum = value(&page, &series("sum", ""));
        assert!(sum > 0.0 && sum < 60.0, "{method} took {sum} s");
        let all = page.lines().find_map(|line| {
            let labels = line.strip_prefix("tgm_session_call_duration_seconds_bucket{")?;
            let (labels, value) = labels.split_once("} ")?;
            let is_it =
                labels.contains("le=\"+Inf\"") && labels.contains(&format!("method=\"{method}\""));
            is_it.then(|| value.parse::<f64>().unwrap())
        });
        assert_eq!(all, Some(count), "{method} in\n{page}");
    }
    assert_values(
        &page,
        &[
            ("calls_refused_total{method=\"BorrowWorker\",code=\"PERMISSION_DENIED\"}", 1.0),
            ("calls_refused_total{method=\"BorrowWorker\",code=\"INVALID_ARGUMENT\"}", 1.0),
            ("calls_refused_total{method=\"BorrowWorker\",code=\"UNAUTHENTICATED\"}", 1.0),
            ("calls_refused_total{method=\"KeepAlive\",code=\"UNAUTHENTICATED\"}", 1.0),
        ],
    );
}

#[tokio::test]
async fn reports_and_batches_are_timed_and_their_refusals_counted() {
    let policy = "
        [services.t1r]
        [plans.free]
        budgets = { egress_bytes = { amount = 5, per = 'day' } }
        [organizations.acme]
        plan = 'free'
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    let channel = channel(server.running.grpc_address());

    let (batches, receiver) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers =
        SessionControlClient::new(channel.clone()).attach(stream).await.unwrap().into_inner();
    let batch = wire::control::AttachRequest { batch: 1, worker_keys: vec![key] };
    batches.send(batch).await.unwrap();
    answers.message().await.unwrap().unwrap();
    assert_values(&page(&server).await, &[("attached_streams", 1.0)]);

    let mut usage = UsageServiceClient::new(channel.clone());
    let report = |value| {
        let metrics = vec![Metric { key: "egress_bytes".to_owned(), value }];
        let organization_id = "acme".to_owned();
        let event = Event { organization_id, metrics, ..Default::default() };
        Request::new(ReportRequest { events: vec![event] })
    };
    let mut under_no_name = report(1.0);
    under_no_name.metadata_mut().insert("x-idempotency-key", "".parse().unwrap());
    usage.report(under_no_name).await.unwrap_err();
    assert!(!usage.report(report(f64::NAN)).await.unwrap().into_inner().revoked);
    assert!(usage.report(report(5.0)).await.unwrap().into_inner().revoked);
    answers.message().await.unwrap().unwrap();
    client.ask(session("acme")).await.unwrap_err();

    assert_values(
        &page(&server).await,
        &[
            ("call_duration_seconds_count{method=\"Attach\"}", 1.0),
            ("call_duration_seconds_count{method=\"Report\"}", 2.0),
            ("calls_refused_total{method=\"Report\",code=\"INVALID_ARGUMENT\"}", 1.0),
            ("calls_refused_total{method=\"BorrowWorker\",code=\"RESOURCE_EXHAUSTED\"}", 1.0),
            ("leases_ended_total{how=\"revoked\",reason=\"budget_spent\"}", 1.0),
            ("pushes_total", 1.0),
            ("usage_reports_total{outcome=\"counted\"}", 2.0),
            ("usage_events_skipped_total{reason=\"value\"}", 1.0),
            ("usage_reports_total{outcome=\"invalid\"}", 1.0),
            ("usage_events_total", 1.0),
        ],
    );
    drop((batches, answers));
    eventually("the stream counts no more", async || {
        value(&page(&server).await, "attached_streams") == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_durable_store_counts_its_commits_and_its_recovered_leases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    client.borrow(session("acme")).await;
    let first = page(&server).await;
    assert_values(
        &first,
        &[
            ("store_commit_changes_count", 2.0),
            ("store_commit_changes_sum", 2.0),
            ("store_latency_seconds_count", 2.0),
            ("store_ready", 1.0),
            ("recovered_leases", 0.0),
            ("max_leases", 2_000_000.0),
            ("max_connections", 16_384.0),
            ("start_time_seconds", 1_800_000_000.0),
        ],
    );
    let (commits, waited) = ("store_commit_seconds_sum", "store_latency_seconds_sum");
    assert!(value(&first, commits) > 0.0, "{first}");
    assert!(value(&first, waited) > 0.0, "{first}");
    assert!(first.contains("tgm_session_build_info{version=\"0.1.0\"} 1\n"), "{first}");

    let clock = server.stop().await;
    let server = TestServer::file(ROOMY, &path, clock).await;
    assert_values(&page(&server).await, &[("recovered_leases", 2.0)]);
}

#[tokio::test]
async fn connections_count_while_they_are_open() {
    let server = TestServer::memory(ROOMY).await;
    assert_values(&page(&server).await, &[("connections", 0.0)]);
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for client in &mut clients {
        client.borrow(session("acme")).await;
    }
    assert_values(&page(&server).await, &[("connections", 3.0)]);
    drop(clients);
    eventually("closed connections count no more", async || {
        value(&page(&server).await, "connections") == 0.0
    })
    .await;
}

#[tokio::test]
async fn no_label_identifies_a_caller_whatever_names_callers_choose() {
    let server = TestServer::memory("[services.default]\nmax_total = 100").await;
    let mut client = server.client();
    for number in 0..20 {
        let (organization, service) = (format!("org-{number}"), format!("service-{number}"));
        let ask = session(&organization).service(&service).api_key("key-of").trace("trace-of");
        client.borrow(ask).await;
    }
    client.ask(session("acme").service("s").trace(&"x".repeat(300))).await.unwrap_err();
    let page = page(&server).await;
    for name in ["org-", "service-", "key-of", "trace-of", "acme", "xxx"] {
        assert!(!page.contains(name), "{name} is in\n{page}");
    }
    let labels: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0))
        .flat_map(|labels| labels.split(','))
        .filter_map(|label| Some(label.split_once('=')?.0))
        .collect();
    let known =
        ["code", "how", "kind", "le", "method", "outcome", "reason", "scope", "service", "version"];
    assert_eq!(labels, BTreeSet::from(known));
}

#[tokio::test]
async fn readiness_ends_with_the_store_while_liveness_and_metrics_go_on() {
    let clock = ManualClock::new();
    let server = TestServer::start(config(ROOMY, &clock, StoreUrl::Memory), clock).await;
    let admin = server.running.admin_address();
    assert_eq!(get(admin, "/readyz", "").await.0, 200);
    // A store that is closed while the server runs refuses changes like a store that has failed.
    let store = Arc::clone(server.running.store());
    tokio::task::spawn_blocking(move || store.close()).await.unwrap().unwrap();
    assert_eq!(server.running.store().ready().ok(), None);
    let (status, why) = get(admin, "/readyz", "").await;
    assert_eq!(status, 503);
    assert!(!why.trim().is_empty(), "it does not say why");
    for path in ["/livez", "/healthz"] {
        assert_eq!(get(admin, path, "").await.0, 200, "{path}");
    }
    assert_values(&page(&server).await, &[("store_ready", 0.0)]);
}
