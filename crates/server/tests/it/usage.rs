//! Usage reports over gRPC.

use std::time::Duration;

use tgm_session_server::store::StoreUrl;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::control::Reason;
use wire::metering::{Event, Metric};
use wire::payment::usage_service_client::UsageServiceClient;
use wire::payment::{ReportRequest, ReportResponse};

use crate::attached::{Attached, metric};
use crate::auth::two_indexers;
use crate::harness::{ManualClock, TestServer, channel, config, session, text};
use store::testing::Disk;

/// A policy with a budget for each day. The manual clock starts at 2027-01-15T08:00:00Z.
const SOLD: &str = "
    [services.t1r]
    [services.watched]
    observe = true
    [plans.pro]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.acme]
    plan = \"pro\"
    [organizations.other]
    plan = \"pro\"
    [organizations.gone]
    disabled = true
";

/// A client that reports usage.
struct Reporter {
    client: UsageServiceClient<Channel>,
    key: Option<String>,
}

impl Reporter {
    fn of(server: &TestServer) -> Self {
        let client = UsageServiceClient::new(channel(server.running.grpc_address()));
        Self { client, key: None }
    }

    fn with_key(server: &TestServer, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..Self::of(server) }
    }

    async fn report(&mut self, events: Vec<Event>) -> Result<ReportResponse, Status> {
        self.send(Request::new(ReportRequest { events })).await
    }

    /// The answer, and its number of skipped events.
    async fn answer(&mut self, events: Vec<Event>) -> (ReportResponse, Option<String>) {
        let answer = self.client.report(Request::new(ReportRequest { events })).await.unwrap();
        let skipped = text(answer.metadata(), "x-events-skipped");
        (answer.into_inner(), skipped)
    }

    /// Reports with an idempotency key.
    async fn report_as(
        &mut self,
        name: &str,
        events: Vec<Event>,
    ) -> Result<ReportResponse, Status> {
        let mut request = Request::new(ReportRequest { events });
        request.metadata_mut().insert("x-idempotency-key", name.parse().unwrap());
        self.send(request).await
    }

    async fn send(
        &mut self,
        mut request: Request<ReportRequest>,
    ) -> Result<ReportResponse, Status> {
        if let Some(key) = &self.key {
            request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        }
        Ok(self.client.report(request).await?.into_inner())
    }

    /// Whether a budget of `organization` is spent. Sends a report without usage.
    async fn is_spent(&mut self, organization: &str) -> bool {
        let response = self.report(vec![event(organization, &[])]).await.unwrap();
        assert_eq!(response.revoked, !response.revocation_reason.is_empty());
        response.revoked
    }
}

fn event(organization: &str, metrics: &[(&str, f64)]) -> Event {
    let metrics = metrics.iter().map(|&(key, value)| Metric { key: key.to_owned(), value });
    Event {
        organization_id: organization.to_owned(),
        metrics: metrics.collect(),
        ..Event::default()
    }
}

pub(crate) fn egress(organization: &str, bytes: f64) -> Event {
    event(organization, &[("egress_bytes", bytes)])
}

/// The number of reports with this outcome.
async fn reports(server: &TestServer, outcome: &str) -> u64 {
    let name = format!("tgm_session_usage_reports_total{{outcome=\"{outcome}\"}}");
    metric(&server.running, &name).await
}

#[tokio::test]
async fn an_organization_with_a_spent_budget_loses_its_sessions_and_is_refused_until_the_reset() {
    let server = TestServer::memory(SOLD).await;
    let (mut client, mut reporter) = (server.client(), Reporter::of(&server));
    let acme = client.borrow(session("acme")).await;
    let watched = client.borrow(session("acme").service("watched")).await;
    let other = client.borrow(session("other")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&acme, &watched, &other]).await;

    let response = reporter.report(vec![egress("acme", 99.5), egress("other", 1.0)]).await.unwrap();
    assert_eq!(response, ReportResponse::default());
    stream.nothing_was_pushed().await;

    let response = reporter.report(vec![egress("other", 1.0), egress("acme", 0.5)]).await.unwrap();
    let spent =
        "usage budget spent: egress_bytes 100 B of 100 B per day, resets at 2027-01-16T00:00:00Z";
    assert!(response.revoked);
    assert_eq!(response.revocation_reason, format!("organization \"acme\": {spent}"));
    assert_eq!(stream.revoked().await, (acme.clone(), Reason::BudgetSpent));
    stream.name(&[&watched, &other]).await;
    let refused = client.ask(session("acme")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, spent));
    let ended = client.keep_alive(&acme).await.unwrap_err();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    client.borrow(session("acme").service("watched")).await;
    client.borrow(session("other")).await;

    server.clock.jump(Duration::from_secs(16 * 3_600));
    assert!(!reporter.is_spent("acme").await);
    client.borrow(session("acme")).await;
}

#[tokio::test]
async fn a_budget_goes_by_the_servers_time_whatever_the_events_say() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let last_year = prost_types::Timestamp { seconds: 1_770_000_000, nanos: 0 };
    let old = Event { timestamp: Some(last_year), ..egress("acme", 100.0) };
    assert!(reporter.report(vec![old]).await.unwrap().revoked);
}

#[tokio::test]
async fn the_events_of_a_report_add_up_metric_by_metric_of_each_organization() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let metrics = [("egress_bytes", 30.0), ("processed_blocks", 1e9), ("egress_bytes", 30.0)];
    let halves = vec![event("acme", &metrics), egress("other", 99.0), egress("acme", 39.0)];
    assert!(!reporter.report(halves).await.unwrap().revoked);
    assert!(!reporter.is_spent("acme").await);
    assert!(reporter.report(vec![egress("acme", 1.0)]).await.unwrap().revoked);
    let huge = vec![egress("other", f64::MAX), egress("other", f64::MAX)];
    assert!(reporter.report(huge).await.unwrap().revoked, "a sum may be larger than any number");
}

#[tokio::test]
async fn an_event_that_cannot_be_counted_is_skipped_and_reported_and_all_others_count() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let metrics = |number: usize| {
        let keys: Vec<_> = (0..number).map(|key| key.to_string()).collect();
        let metrics: Vec<_> = keys.iter().map(|key| (key.as_str(), 1.0)).collect();
        event("acme", &metrics)
    };
    let long = "o".repeat(257);
    let wrong = [
        (egress("acme", f64::NAN), "value"),
        (egress("acme", f64::INFINITY), "value"),
        (event("acme", &[("egress_bytes", 100.0), ("b", -0.5)]), "value"),
        (event("acme", &[("", 1.0)]), "metric"),
        (event("acme", &[(&long, 1.0)]), "metric"),
        (egress("", 1.0), "organization"),
        (egress(&long, 1.0), "organization"),
        (Event { api_key_id: long.clone(), ..egress("acme", 100.0) }, "api_key"),
        (metrics(65), "too_many_metrics"),
    ];
    for (number, (wrong, why)) in (1..).zip(&wrong) {
        let events = vec![egress("other", 1.0), wrong.clone(), egress("acme", 1.0)];
        let (response, skipped) = reporter.answer(events).await;
        assert_eq!((response.revoked, skipped.as_deref()), (false, Some("1")), "{why}");
        assert_eq!(metric(&server.running, "tgm_session_usage_events_total").await, 2 * number);
    }
    for (why, events) in
        [("value", 3), ("metric", 2), ("organization", 2), ("api_key", 1), ("too_many_metrics", 1)]
    {
        let name = format!("tgm_session_usage_events_skipped_total{{reason=\"{why}\"}}");
        assert_eq!(metric(&server.running, &name).await, events, "{why}");
    }
    let all = wrong.into_iter().map(|(event, _)| event).chain([egress("acme", 90.0)]).collect();
    let (response, skipped) = reporter.answer(all).await;
    assert_eq!((response.revoked, skipped.as_deref()), (false, Some("9")));
    let (response, skipped) = reporter.answer(vec![egress("acme", 1.0)]).await;
    assert_eq!((response.revoked, skipped), (true, None), "9, 90 and 1 were counted");
}

/// An event of about 410 bytes, like those that Firehose sends after a stall.
fn firehose(organization: &str) -> Event {
    Event {
        api_key_id: "0123456789abcdef0123456789abcdef".to_owned(),
        ip_address: "2001:db8:85a3:8d3:1319:8a2e:370:7348".to_owned(),
        endpoint: "sf.firehose.v2.Stream/Blocks".to_owned(),
        network: "arbitrum-one".to_owned(),
        meta: "m".repeat(90),
        timestamp: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 1 }),
        ..event(
            organization,
            &[
                ("egress_bytes", 1.0),
                ("processed_blocks", 2.0),
                ("live_uncompressed_read_bytes", 3.0),
                ("file_uncompressed_read_bytes", 4.0),
                ("file_compressed_read_bytes", 5.0),
            ],
        )
    }
}

#[tokio::test]
async fn a_report_after_a_stall_counts_whole_with_its_organizations_mixed() {
    let server = TestServer::memory(SOLD).await;
    let names: Vec<String> = (0..100).map(|number| format!("organization-{number:03}")).collect();
    let events: Vec<_> = names.iter().cycle().take(10_300).map(|name| firehose(name)).collect();
    let bytes = prost::Message::encoded_len(&ReportRequest { events: events.clone() });
    assert!((4 << 20..5 << 20).contains(&bytes) && bytes / 10_300 >= 405, "{bytes}");
    let (response, skipped) = Reporter::of(&server).answer(events).await;
    assert_eq!((response, skipped), (ReportResponse::default(), None));
    for name in names {
        let mut used = server.running.store().used(&name).await.unwrap();
        used.sort_by(|(_, one), (_, other)| one.day.1.total_cmp(&other.day.1));
        let used: Vec<_> = used.iter().map(|(metric, used)| (&**metric, used.day.1)).collect();
        let expected = [
            ("egress_bytes", 103.0),
            ("processed_blocks", 206.0),
            ("live_uncompressed_read_bytes", 309.0),
            ("file_uncompressed_read_bytes", 412.0),
            ("file_compressed_read_bytes", 515.0),
        ];
        assert_eq!(used, expected, "{name}");
    }
}

#[tokio::test]
async fn fields_that_no_budget_uses_may_have_any_length() {
    let server = TestServer::memory(SOLD).await;
    let long = || "x".repeat(300);
    let events = vec![
        Event { ip_address: long(), ..egress("acme", 25.0) },
        Event { endpoint: long(), ..egress("acme", 25.0) },
        Event { network: long(), ..egress("acme", 25.0) },
        Event { meta: long(), ..egress("acme", 25.0) },
    ];
    let (response, skipped) = Reporter::of(&server).answer(events).await;
    assert_eq!((response.revoked, skipped), (true, None), "all of them count");
}

#[tokio::test]
async fn a_report_of_too_many_events_or_under_an_invalid_name_counts_nothing() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let status = reporter.report(vec![egress("acme", 1.0); 65_537]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "events are 65537, and may be 65536");
    let status = reporter.report_as("", vec![egress("acme", 100.0)]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("x-idempotency-key "), "{status}");
    assert_eq!((reports(&server, "invalid").await, reports(&server, "counted").await), (2, 0));
    assert!(!reporter.is_spent("acme").await);
}

#[tokio::test]
async fn the_same_name_with_another_report_is_an_invalid_argument() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let events = vec![egress("acme", 40.0), egress("other", 10.0)];
    reporter.report_as("one", events.clone()).await.unwrap();
    let status = reporter.report_as("one", vec![egress("acme", 60.0)]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "x-idempotency-key names a report with other amounts");
    let turned = events.into_iter().rev().collect();
    assert!(!reporter.report_as("one", turned).await.unwrap().revoked, "it is the same report");
    assert_eq!((reports(&server, "invalid").await, reports(&server, "repeated").await), (1, 1));
    assert!(!reporter.is_spent("acme").await);
}

#[tokio::test]
async fn zeros_of_many_organizations_take_no_room() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let zeros = (0..20_000).map(|number| egress(&format!("o{number}"), 0.0)).collect();
    let (_, skipped) = reporter.answer(zeros).await;
    assert_eq!(skipped, None, "they count, as nothing");
    let usage = server.running.store().usage().await.unwrap();
    assert!(usage.is_empty(), "{usage:?}");
}

#[tokio::test]
async fn a_report_is_counted_once_under_its_name_and_each_caller_has_names_of_its_own() {
    let policy = format!(
        "{}\n[plans.pro]\nbudgets = {{ egress_bytes = {{ amount = 100.0, per = \"day\" }} }}\n\
         [organizations.acme]\nplan = \"pro\"",
        two_indexers()
    );
    let server = TestServer::memory(&policy).await;
    let mut west = Reporter::with_key(&server, "west-old");
    let mut rotated = Reporter::with_key(&server, "west-new");
    let mut east = Reporter::with_key(&server, "east-key");
    let used = || vec![egress("acme", 30.0)];
    for reporter in [&mut west, &mut rotated, &mut east] {
        assert!(!reporter.report_as("one", used()).await.unwrap().revoked);
    }
    assert_eq!((reports(&server, "counted").await, reports(&server, "repeated").await), (2, 1));
    server.pass(Duration::from_secs(601));
    assert!(!west.report_as("one", used()).await.unwrap().revoked);
    assert!(west.report_as("two", used()).await.unwrap().revoked);
    assert!(west.report_as("two", used()).await.unwrap().revoked, "told again what it was told");
    assert_eq!(metric(&server.running, "tgm_session_usage_events_total").await, 4);
}

#[tokio::test]
async fn a_report_needs_a_key_before_anything_else_is_looked_at() {
    let server = TestServer::memory(&two_indexers()).await;
    for mut reporter in [Reporter::of(&server), Reporter::with_key(&server, "guess")] {
        let large = vec![egress(&"o".repeat(1_000), -1.0); 3_000];
        for events in [vec![], vec![egress("", -1.0)], large] {
            for _ in 0..5 {
                let status = reporter.report(events.clone()).await.unwrap_err();
                assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            }
        }
    }
    Reporter::with_key(&server, "east-key").report(vec![egress("acme", 1.0)]).await.unwrap();
    for outcome in ["invalid", "unavailable", "repeated"] {
        assert_eq!(reports(&server, outcome).await, 0, "{outcome}");
    }
}

#[tokio::test]
async fn an_empty_report_is_fine_and_so_is_an_event_without_metrics() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    assert_eq!(reporter.report(vec![]).await.unwrap(), ReportResponse::default());
    assert_eq!(reporter.report_as("n", vec![]).await.unwrap(), ReportResponse::default());
    for organization in ["acme", "unknown"] {
        assert!(!reporter.is_spent(organization).await, "{organization}");
    }
}

#[tokio::test]
async fn usage_of_a_disabled_organization_is_counted_and_its_reporter_told() {
    let server = TestServer::memory(SOLD).await;
    let mut reporter = Reporter::of(&server);
    let events = vec![egress("gone", 1.0), egress("acme", 200.0), egress("gone", 1.0)];
    let response = reporter.report(events).await.unwrap();
    let (gone, acme) = response.revocation_reason.split_once("; ").unwrap();
    assert_eq!(gone, "organization \"gone\": the organization is disabled");
    assert!(
        acme.starts_with("organization \"acme\": usage budget spent: egress_bytes 200 B of 100 B")
    );
    assert_eq!(reports(&server, "counted").await, 1);
}

#[tokio::test]
async fn an_answer_gives_eight_reasons_and_says_that_there_are_more() {
    let mut policy = "[services.t1r]\n".to_owned();
    for number in 0..30 {
        policy += &format!("[organizations.o{number}]\ndisabled = true\n");
    }
    let server = TestServer::memory(&policy).await;
    let events = (0..30).map(|number| egress(&format!("o{number}"), 1.0)).collect();
    let response = Reporter::of(&server).report(events).await.unwrap();
    let reasons: Vec<_> = response.revocation_reason.split("; ").collect();
    assert_eq!((reasons.len(), reasons[8]), (9, "and more"));
}

#[tokio::test]
async fn large_reports_at_once_are_all_counted_and_larger_ones_refused() {
    let policy = "[services.t1r]\n[plans.p]\n\
                  budgets = { blocks = { amount = 160000.0, per = \"month\" } }\n\
                  [organizations.acme]\nplan = \"p\"";
    let clock = ManualClock::new();
    let mut config = config(policy, &clock, StoreUrl::Memory);
    config.port.max_report_bytes = 4 << 20;
    let server = TestServer::start(config, clock).await;
    // About 3 MiB.
    let large = Event { meta: "m".repeat(280), ..event("acme", &[("blocks", 1.0)]) };
    let large = vec![large; 10_000];
    let mut reports_at_once = tokio::task::JoinSet::new();
    for _ in 0..15 {
        let (mut reporter, large) = (Reporter::of(&server), large.clone());
        reports_at_once.spawn(async move { reporter.report(large).await.unwrap().revoked });
    }
    assert!(reports_at_once.join_all().await.into_iter().all(|revoked| !revoked));
    let mut reporter = Reporter::of(&server);
    let too_large = vec![Event { meta: "m".repeat(500), ..Event::default() }; 10_000];
    let status = reporter.report(too_large).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("larger than"), "{status}");
    assert!(!reporter.is_spent("acme").await);
    assert!(reporter.report(large).await.unwrap().revoked, "16 times 10,000");
}

#[tokio::test]
async fn a_message_of_a_million_empty_events_is_refused_before_it_is_read() {
    let server = TestServer::memory(SOLD).await;
    let status = Reporter::of(&server).report(vec![Event::default(); 1_000_000]).await.unwrap_err();
    assert_eq!(status.message(), "events are 1000000, and may be 65536");
}

#[tokio::test]
async fn reports_and_their_names_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    let server = TestServer::file(SOLD, &path, ManualClock::new()).await;
    let mut reporter = Reporter::of(&server);
    assert!(!reporter.report_as("one", vec![egress("acme", 60.0)]).await.unwrap().revoked);
    let clock = server.stop().await;

    let server = TestServer::file(SOLD, &path, clock).await;
    let mut reporter = Reporter::of(&server);
    assert!(!reporter.report_as("one", vec![egress("acme", 60.0)]).await.unwrap().revoked);
    assert_eq!((reports(&server, "counted").await, reports(&server, "repeated").await), (0, 1));
    let status = reporter.report_as("one", vec![egress("acme", 61.0)]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(!reporter.is_spent("acme").await);
    assert!(reporter.report_as("two", vec![egress("acme", 60.0)]).await.unwrap().revoked);
}

#[tokio::test]
async fn a_report_that_the_disk_did_not_keep_is_unavailable() {
    let disk = Disk::default();
    let server = TestServer::on_disk(SOLD, disk.clone(), ManualClock::new()).await;
    let mut reporter = Reporter::of(&server);
    reporter.report(vec![egress("acme", 1.0)]).await.unwrap();
    disk.fail();
    for _ in 0..2 {
        let status = reporter.report(vec![egress("acme", 1.0)]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
    assert_eq!((reports(&server, "counted").await, reports(&server, "unavailable").await), (1, 2));
}

#[tokio::test]
async fn health_knows_the_usage_service() {
    let server = TestServer::memory(SOLD).await;
    let service = "sf.gateway.payment.v1.UsageService".to_owned();
    let mut health = HealthClient::new(channel(server.running.grpc_address()));
    let answer = health.check(HealthCheckRequest { service }).await.unwrap();
    assert_eq!(answer.into_inner().status, 1, "serving");
}
