//! The admin API: what it changes.

use serde_json::{Value, json};
use tgm_session_server::api::Source;
use tgm_session_server::api::{AuditPage, Done, Organization, Overview, SessionPage};
use tonic::Code;
use wire::control::Reason;

use crate::admin_client::AdminClient;
use crate::attached::Attached;
use crate::harness::{ManualClock, ROOMY, TestServer, session, worker};

async fn start(policy: &str) -> (TestServer, AdminClient) {
    let server = TestServer::memory(policy).await;
    let admin = AdminClient::of(&server).await;
    (server, admin)
}

#[tokio::test]
async fn a_session_revoked_by_its_number_ends_with_its_workers_and_its_holder_is_told_at_once() {
    let (server, admin) = start(ROOMY).await;
    let mut client = server.client();
    let other = client.borrow(session("acme").trace("b2")).await;
    let held = client.borrow(session("acme").trace("a1")).await;
    let working = client.borrow(worker("acme", "a1", 3)).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&other, &held]).await;
    let page: SessionPage = admin.get("/api/sessions?trace=a1").await;
    let number = &page.sessions[0].lease;
    // The number of a lease does not reveal its key.
    assert!(!held.contains(&**number));
    let done: Done = admin.delete(&format!("/api/sessions/{number}?note=they%20asked")).await;
    let summary = format!("ended session {number} of organization acme on t1r");
    assert_eq!(done, Done { ended: 2, summary: summary.clone() });
    assert_eq!(stream.revoked().await, (held.clone(), Reason::Operator));
    stream.nothing_was_pushed().await;
    assert_eq!(client.keep_alive(&held).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        client.keep_alive(&working).await.unwrap(),
        wire::worker::keep_alive_response::Status::Failed
    );
    assert_eq!((client.count("t1r", "acme").await, client.count("t2w", "acme").await), (1, 0));
    // The next answer shows the change.
    let acme: Organization = admin.get("/api/organizations/acme").await;
    assert_eq!(acme.services.iter().map(|row| row.active).collect::<Vec<_>>(), [1, 0]);
    admin.ask("DELETE", &format!("/api/sessions/{number}"), "").await.problem(404);

    let AuditPage { entries } = admin.get("/api/audit").await;
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((&*entry.action, &*entry.note, entry.ended), (&*summary, "they asked", 2));
    assert_eq!((entry.number, entry.at), (1, 1_800_000_000));
    assert!(entry.from.starts_with("127.0.0.1:"), "{}", entry.from);
}

#[tokio::test]
async fn a_disabled_organization_ends_at_once_stays_disabled_across_restarts_and_is_enabled_again()
{
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let admin = AdminClient::of(&server).await;
    let mut client = server.client();
    let held = client.borrow(session("acme")).await;
    let others = client.borrow(session("other")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&held, &others]).await;
    let switch = "/api/organizations/acme/disabled";
    let done: Done = admin.put(switch, &json!({ "disabled": true, "note": "unpaid" })).await;
    assert_eq!((done.ended, &*done.summary), (1, "disabled organization acme"));
    assert_eq!(stream.revoked().await, (held.clone(), Reason::OrganizationDisabled));
    stream.nothing_was_pushed().await;
    assert_eq!(client.keep_alive(&held).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.ask(session("acme")).await.unwrap_err().code(), Code::PermissionDenied);
    drop(stream);
    let clock = server.stop().await;

    let server = TestServer::file(ROOMY, &path, clock).await;
    let admin = AdminClient::of(&server).await;
    let mut client = server.client();
    assert_eq!(client.ask(session("acme")).await.unwrap_err().code(), Code::PermissionDenied);
    let acme: Organization = admin.get("/api/organizations/acme").await;
    assert!(acme.disabled.disabled && acme.disabled.source == Source::Override);
    let done: Done = admin.delete(switch).await;
    let cleared = "cleared the override that disabled organization acme";
    assert_eq!((done.ended, &*done.summary), (0, cleared));
    client.borrow(session("acme")).await;
    let actions: Value = admin.get("/api/audit").await;
    let entries = actions["entries"].as_array().unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, [cleared, "disabled organization acme"]);
}

#[tokio::test]
async fn an_api_key_is_disabled_for_every_organization() {
    let (server, admin) = start(ROOMY).await;
    let mut client = server.client();
    for organization in ["acme", "other"] {
        client.borrow(session(organization).api_key("key-1")).await;
        client.borrow(session(organization)).await;
    }
    let switch = "/api/api-keys/key-1/disabled";
    let done: Done = admin.put(switch, &json!({ "disabled": true })).await;
    assert_eq!((done.ended, &*done.summary), (2, "disabled API key key-1"));
    assert_eq!(server.live().await, 2);
    let refused = client.ask(session("acme").api_key("key-1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let _: Done = admin.put(switch, &json!({ "disabled": false })).await;
    client.borrow(session("acme").api_key("key-1")).await;
}

#[tokio::test]
async fn a_limit_holds_for_the_next_borrow_ends_nobody_and_is_cleared_again() {
    let (server, admin) = start(ROOMY).await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    client.borrow(session("acme").api_key("key-1")).await;
    let limit = "/api/organizations/acme/limits/t1r";
    let overrides = async || admin.get::<Overview>("/api/overview").await.policy.overrides;
    assert_eq!(overrides().await, 0);
    let done: Done = admin.put(limit, &json!({ "max": 1 })).await;
    let set = "set the limit of organization acme on t1r to 1 (was 10 by the service)";
    assert_eq!((done.ended, &*done.summary), (0, set));
    // A change is visible as soon as its call has returned.
    assert_eq!(overrides().await, 1);
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 2, 1));
    let _: Done = admin.put(limit, &json!({ "max": 11 })).await;
    for _ in 0..9 {
        client.borrow(session("acme")).await;
    }
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 11, 11));
    let done: Done = admin.delete(&format!("{limit}?note=over")).await;
    assert_eq!(
        done.summary,
        "cleared the limit of organization acme on t1r (was 11 by an override)"
    );
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 11, 10));
    let acme: Organization = admin.get("/api/organizations/acme").await;
    let ceiling = acme.services[0].ceiling;
    assert_eq!((ceiling.max, ceiling.source), (Some(10), Source::Service));

    let limit = "/api/api-keys/key-1/limits/t1r";
    let _: Done = admin.put(limit, &json!({ "max": 1 })).await;
    let _: Done = admin.put("/api/organizations/acme/limits/t1r", &json!({ "max": 99 })).await;
    let refused = client.refused(session("acme").api_key("key-1")).await;
    assert_eq!(refused, ("api_key".to_owned(), 1, 1));
    let _: Done = admin.delete(limit).await;
    client.borrow(session("acme").api_key("key-1")).await;
}

#[tokio::test]
async fn the_audit_list_is_walked_by_its_numbers() {
    let (_server, admin) = start(ROOMY).await;
    for max in 0..7 {
        let _: Done = admin.put("/api/organizations/acme/limits/t1r", &json!({ "max": max })).await;
    }
    let (mut numbers, mut before) = (Vec::new(), String::new());
    loop {
        let page: AuditPage = admin.get(&format!("/api/audit?limit=3{before}")).await;
        let Some(last) = page.entries.last() else { break };
        before = format!("&before={}", last.number);
        numbers.extend(page.entries.iter().map(|entry| entry.number));
    }
    assert_eq!(numbers, [7, 6, 5, 4, 3, 2, 1]);
}
