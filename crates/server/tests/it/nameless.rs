//! Callers that name no organization, as services without authentication do.

use lease::Usage;
use serde_json::Value;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy};
use tonic::{Code, Request};
use wire::metering::{Event, Metric};
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;
use wire::worker::return_worker_response::Status as Returned;

use crate::admin_client::AdminClient;
use crate::harness::{Client, ManualClock, TestServer, channel, config, session, text, worker};

const ID: &str = "00112233445566778899aabbccddeeff";

const POLICY: &str = "
    [services.t1r]
    max_per_organization = 2
    [services.t2w]
    [plans.free]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.nobody]
    plan = \"free\"
";

async fn serve(policy: Policy, adjust: impl FnOnce(&mut Config)) -> TestServer {
    let clock = ManualClock::new();
    let mut config = Config { policy: policy.clone(), ..config("", &clock, StoreUrl::Memory) };
    config.default_organization = Config::new(policy, StoreUrl::Memory).default_organization;
    adjust(&mut config);
    TestServer::start(config, clock).await
}

/// A server on which calls without an organization belong to the organization `nobody`.
async fn with_nobody() -> TestServer {
    let policy = Policy::parse(POLICY, "test.toml").unwrap().policy;
    serve(policy, |config| config.default_organization = Some("nobody".into())).await
}

/// Reports usage of `bytes` without an organization. Returns whether a budget is spent and how many
/// events were skipped.
async fn report(server: &TestServer, bytes: f64) -> (bool, Option<String>) {
    let mut client = UsageServiceClient::new(channel(server.running.grpc_address()));
    let metrics = vec![Metric { key: "egress_bytes".to_owned(), value: bytes }];
    let events = vec![Event { metrics, ..Event::default() }];
    let answer = client.report(Request::new(ReportRequest { events })).await.unwrap();
    let skipped = text(answer.metadata(), "x-events-skipped");
    (answer.into_inner().revoked, skipped)
}

async fn refusal(client: &mut Client) -> (Code, String) {
    let status = client.ask(session("")).await.unwrap_err();
    assert_eq!(client.state("t1r", "").await.unwrap_err().message(), status.message());
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn under_the_built_in_policy_a_call_without_an_organization_is_of_anonymous() {
    let server = serve(Policy::built_in(), |_| {}).await;
    let mut client = server.client();
    client.borrow(session("")).await;
    client.borrow(session("anonymous")).await;
    assert_eq!(client.count("t1r", "").await, 2);
    assert_eq!(client.count("t1r", "anonymous").await, 2);
    let admin = AdminClient::of(&server).await;
    let listed: Value = admin.get("/api/sessions?organization=anonymous").await;
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 2, "{listed}");
}

#[tokio::test]
async fn a_default_organization_stands_for_the_empty_one_in_every_call() {
    let server = with_nobody().await;
    let mut client = server.client();
    let first = client.borrow(session("").trace("a1").borrow_id(ID)).await;
    // A retry gets the same lease, whether it names the organization or not.
    assert_eq!(client.borrow(session("").trace("a1").borrow_id(ID)).await, first);
    assert_eq!(client.borrow(session("nobody").trace("a1").borrow_id(ID)).await, first);
    client.borrow(worker("", "a1", 1)).await;
    assert_eq!(client.refused(worker("nobody", "a1", 1)).await.0, "trace");
    client.borrow(session("")).await;
    assert_eq!(client.refused(session("")).await, ("organization".to_owned(), 2, 2));
    let admin = AdminClient::of(&server).await;
    let refusals: Value = admin.get("/api/refusals?organization=nobody").await;
    assert_eq!(refusals["refusals"].as_array().unwrap().len(), 2, "{refusals}");
    // The worker ends with its session: both belong to the same organization.
    assert_eq!(client.give_back_borrow(ID).await.unwrap(), Returned::Returned);
    assert_eq!(client.count("t2w", "").await, 0);
}

#[tokio::test]
async fn usage_of_an_organization_without_a_name_counts_for_the_default_one() {
    let server = with_nobody().await;
    assert_eq!(report(&server, 60.0).await, (false, None));
    let usage = [Usage { organization: "", metric: "egress_bytes", value: 30.0 }];
    let reported = server.running.report(None, None, &usage).await.unwrap();
    assert_eq!(reported.skipped.iter().sum::<u64>(), 0);
    assert_eq!(report(&server, 10.0).await, (true, None));
    let status = server.client().ask(session("nobody")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn without_a_default_organization_the_refusal_names_the_setting() {
    let policy = Policy::parse(POLICY, "test.toml").unwrap().policy;
    let server = serve(policy, |_| {}).await;
    let refused = "organization_id is empty, and no default_organization is set".to_owned();
    assert_eq!(refusal(&mut server.client()).await, (Code::InvalidArgument, refused));
    assert_eq!(report(&server, 1.0).await, (false, Some("1".to_owned())));
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn another_policy_changes_nothing_about_the_default_organization() {
    let server = with_nobody().await;
    let other = Policy::parse("[services.t1r]\nmax_per_organization = 1", "test.toml").unwrap();
    server.running.set_policy(other.policy).await.unwrap();
    let mut client = server.client();
    client.borrow(session("")).await;
    assert_eq!(client.refused(session("nobody")).await, ("organization".to_owned(), 1, 1));
}
