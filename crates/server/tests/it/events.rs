//! `/api/events`: a stream of changes as they happen.

use std::time::{Duration, Instant};

use serde_json::json;
use tgm_session_server::api::{AuditEntry, Done, Overview, PolicyStatus, Refusal};

use crate::admin_client::{AdminClient, Events};
use crate::harness::{ROOMY, TestServer, eventually, session};

async fn start() -> (TestServer, AdminClient, Events) {
    let server = TestServer::memory(ROOMY).await;
    let admin = AdminClient::of(&server).await;
    let events = admin.listen().await.unwrap();
    (server, admin, events)
}

async fn overview(events: &mut Events) -> Overview {
    serde_json::from_value(events.next_called("overview").await).unwrap()
}

#[tokio::test]
async fn an_overview_comes_first_and_then_within_a_second_of_a_borrow_and_of_a_return() {
    let (server, admin, mut events) = start().await;
    let (name, first) = events.next().await.unwrap();
    assert_eq!((&*name, &first["sessions"]), ("overview", &json!(0)));
    let mut client = server.client();
    let mut fastest = Duration::MAX;
    // Several attempts, because a busy machine may delay one of them.
    for _ in 0..3 {
        let key = client.borrow(session("acme")).await;
        let since = Instant::now();
        let shown = overview(&mut events).await;
        assert_eq!((shown.sessions, shown.active_organizations), (1, 1));
        client.give_back(&key).await;
        let next = overview(&mut events).await;
        fastest = fastest.min(since.elapsed());
        assert_eq!(next.sessions, 0);
        assert!(next.revision > shown.revision);
    }
    assert!(fastest < Duration::from_secs(2), "{fastest:?}");
    // A client that reconnects gets the current state at once.
    drop(events);
    client.borrow(session("acme")).await;
    let mut events = admin.listen().await.unwrap();
    eventually("the overview shows it", || async {
        admin.get::<Overview>("/api/overview").await.sessions == 1
    })
    .await;
    while overview(&mut events).await.sessions != 1 {}
}

#[tokio::test]
async fn many_borrows_cause_at_most_four_overviews_a_second() {
    let (server, _admin, mut events) = start().await;
    let mut client = server.client();
    overview(&mut events).await;
    let since = Instant::now();
    let mut told = 0_u32;
    while since.elapsed() < Duration::from_secs(2) {
        tokio::select! {
            _ = events.next() => told += 1,
            key = client.borrow(session("acme")) => { client.give_back(&key).await; }
        }
    }
    // Four for each second that has really passed, and one that was due at the start.
    let most = 4.0 * since.elapsed().as_secs_f64() + 1.0;
    assert!(told >= 2 && f64::from(told) <= most, "{told} and at most {most}");
}

#[tokio::test]
async fn what_operators_do_is_told_at_once_and_so_is_the_state_of_the_policy() {
    let (_server, admin, mut events) = start().await;
    let note = json!({ "max": 3, "note": "a fair" });
    let done: Done = admin.put("/api/organizations/acme/limits/t1r", &note).await;
    let (mut audit, mut policy) = (None, None);
    while audit.is_none() || policy.is_none() {
        let (name, data) = events.next().await.unwrap();
        match &*name {
            "audit" => audit = Some(serde_json::from_value::<AuditEntry>(data).unwrap()),
            "policy" => policy = Some(serde_json::from_value::<PolicyStatus>(data).unwrap()),
            _ => {}
        }
    }
    let entry = audit.unwrap();
    assert_eq!((&entry.action, &*entry.note), (&done.summary, "a fair"));
    assert_eq!(policy.unwrap().overrides, 1);
}

#[tokio::test]
async fn refusals_are_sent_and_of_many_at_once_only_the_latest() {
    let (server, admin, mut events) = start().await;
    let _: Done = admin.put("/api/organizations/acme/disabled", &json!({ "disabled": true })).await;
    let mut client = server.client();
    let refuse = async |client: &mut crate::harness::Client, trace: usize| {
        client.ask(session("acme").trace(&trace.to_string())).await.unwrap_err();
    };
    refuse(&mut client, 1_000).await;
    let refusal: Refusal = serde_json::from_value(events.next_called("refusal").await).unwrap();
    assert_eq!(
        (&*refusal.organization, &*refusal.scope, &*refusal.trace),
        ("acme", "disabled", "1000")
    );

    let since = Instant::now();
    for trace in 0..200 {
        refuse(&mut client, trace).await;
    }
    let mut told = Vec::new();
    while told.last().is_none_or(|latest: &String| latest != "199") {
        let data = events.next_called("refusal").await;
        told.push(data["trace"].as_str().unwrap().to_owned());
    }
    let numbers: Vec<u32> = told.iter().map(|trace| trace.parse().unwrap()).collect();
    // At most five refusals for each poll. One poll may have been due at the start.
    let looks = since.elapsed().as_millis() / 250 + 2;
    assert!(numbers.is_sorted() && numbers.len() as u128 <= 5 * looks, "{numbers:?}");
    // The list of refusals is complete.
    let all = admin.get::<tgm_session_server::api::RefusalPage>("/api/refusals?limit=1000").await;
    assert_eq!(all.refusals.len(), 201);
}

#[tokio::test]
async fn sixty_four_may_listen_and_one_more_when_one_of_them_has_left() {
    let (_server, admin, first) = start().await;
    let mut others = Vec::new();
    for _ in 1..64 {
        others.push(admin.listen().await.unwrap());
    }
    assert_eq!(admin.listen().await.unwrap_err(), 503);
    let refused = admin.ask("GET", "/api/events", "").await;
    assert!(refused.problem(503).contains("64 listen"));
    drop(first);
    eventually("a place is free", || async { admin.listen().await.is_ok() }).await;
    // The other streams go on.
    for events in &mut others {
        assert_eq!(events.next().await.unwrap().0, "overview");
    }
}

#[tokio::test]
async fn a_stream_without_events_sends_comments() {
    let (_server, _admin, mut events) = start().await;
    overview(&mut events).await;
    // A comment comes every ten seconds: the page takes a longer silence for a lost connection.
    let comment = tokio::time::timeout(Duration::from_secs(60), events.next_comment()).await;
    assert_eq!(comment.expect("a sign of life"), "the server is there");
}

#[tokio::test]
async fn streams_end_when_the_server_stops() {
    let (server, _admin, mut events) = start().await;
    overview(&mut events).await;
    server.stop().await;
    let end = async {
        while let Some((name, _)) = events.next().await {
            // One more overview may come before the end.
            assert_eq!(name, "overview");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), end).await.expect("the stream ends");
}
