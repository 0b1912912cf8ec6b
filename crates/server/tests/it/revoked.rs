//! After the revocation of a session no worker is borrowed under it, and all answers give the
//! reason in the same words.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lease::Usage;
use tgm_session_server::Policy;
use tonic::{Code, Status};
use wire::control::Reason;
use wire::worker::keep_alive_response::Status as Kept;

use crate::attached::{Attached, metric};
use crate::harness::{Client, ManualClock, ROOMY, TestServer, session, worker};

const SOLD: &str = "
    [services.t1r]
    [services.t2w]
    [plans.pro]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.acme]
    plan = \"pro\"
";

fn policy(text: &str) -> Policy {
    Policy::parse(text, "test.toml").unwrap().policy
}

fn store() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    (folder, path)
}

async fn restart(server: TestServer, policy: &str, path: &Path) -> (TestServer, Client) {
    let clock: Arc<ManualClock> = server.stop().await;
    let server = TestServer::file(policy, path, clock).await;
    let client = server.client();
    (server, client)
}

async fn refused(client: &mut Client, trace: &str) -> Status {
    client.ask(worker("acme", trace, 5)).await.unwrap_err()
}

#[tokio::test]
async fn a_worker_of_a_session_that_an_operator_ended_is_refused_across_restarts() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let mut client = server.client();
    let key = client.borrow(session("acme").trace("a1")).await;
    client.borrow(worker("acme", "a1", 5)).await;
    assert!(server.running.revoke(key.parse().unwrap(), lease::Reason::Operator).await.unwrap());
    let status = refused(&mut client, "a1").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "the session of the trace has ended: revoked by an operator");
    let counted = r#"tgm_session_borrows_total{service="t2w",outcome="refused",scope=""}"#;
    assert_eq!(metric(&server.running, counted).await, 1);
    client.borrow(worker("acme", "a2", 5)).await;

    let (server, mut client) = restart(server, ROOMY, &path).await;
    assert_eq!(refused(&mut client, "a1").await.code(), Code::PermissionDenied);
    // Workers of a session that is granted later are allowed.
    let later = client.borrow(session("acme").trace("a1")).await;
    client.borrow(worker("acme", "a1", 5)).await;
    client.give_back(&later).await;
    assert_eq!(refused(&mut client, "a1").await.code(), Code::PermissionDenied);
    assert_eq!(metric(&server.running, counted).await, 2);
}

#[tokio::test]
async fn a_worker_is_refused_for_as_long_as_the_revocation_is_remembered() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let key = client.borrow(session("acme").trace("a1")).await;
    assert!(server.running.revoke(key.parse().unwrap(), lease::Reason::Operator).await.unwrap());
    server.pass(Duration::from_secs(599));
    assert_eq!(refused(&mut client, "a1").await.code(), Code::PermissionDenied);
    server.pass(Duration::from_secs(1));
    client.borrow(worker("acme", "a1", 5)).await;
}

#[tokio::test]
async fn a_worker_is_refused_for_the_reason_of_its_session_even_after_that_reason_is_gone() {
    let server = TestServer::memory(SOLD).await;
    let mut client = server.client();
    client.borrow(session("acme").trace("a1")).await;
    client.borrow(session("acme").trace("a2").api_key("stolen")).await;
    let stolen = format!("{SOLD}\n[api_keys.stolen]\ndisabled = true");
    assert_eq!(server.running.set_policy(policy(&stolen)).await.unwrap(), 1);
    let usage = Usage { organization: "acme", metric: "egress_bytes", value: 100.0 };
    assert_eq!(server.running.report(None, None, &[usage]).await.unwrap().revoked, 1);
    // The budget is raised and the key is no longer disabled.
    server.running.set_policy(policy(&SOLD.replace("100.0", "500.0"))).await.unwrap();
    let status = refused(&mut client, "a1").await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("egress_bytes 100 B of 100 B per day"), "{status}");
    let status = refused(&mut client, "a2").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().ends_with("the API key is disabled"), "{status}");
}

#[tokio::test]
async fn a_keep_alive_denied_for_a_budget_has_the_message_of_the_borrow_in_every_call() {
    let (_folder, path) = store();
    let server = TestServer::file(SOLD, &path, ManualClock::new()).await;
    let mut client = server.client();
    let key = client.borrow(session("acme").trace("a1")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    let usage = Usage { organization: "acme", metric: "egress_bytes", value: 120.0 };
    assert_eq!(server.running.report(None, None, &[usage]).await.unwrap().revoked, 1);

    let pushed = stream.pushed().await;
    assert_eq!(pushed.reason(), Reason::BudgetSpent);
    let borrow = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(borrow.code(), Code::ResourceExhausted);
    let message = borrow.message();
    assert!(
        message.contains("egress_bytes 120 B of 100 B per day, resets at 2027-01-16T00:00"),
        "{message}"
    );
    assert_eq!(pushed.message, message);
    let answer = stream.keep_alive(&[&key]).await;
    assert_eq!(answer.revoked[0].message, message);
    let unary = client.keep_alive(&key).await.unwrap_err();
    assert_eq!((unary.code(), unary.message()), (Code::ResourceExhausted, message));

    let message = message.to_owned();
    let (server, mut client) = restart(server, SOLD, &path).await;
    let unary = client.keep_alive(&key).await.unwrap_err();
    assert_eq!((unary.code(), unary.message()), (Code::ResourceExhausted, &*message));
    let answer = Attached::to(&server).await.keep_alive(&[&key]).await;
    assert_eq!(answer.revoked[0].message, message);
}

#[tokio::test]
async fn a_revocation_by_a_policy_names_the_budget_too() {
    let server = TestServer::memory(&SOLD.replace("100.0", "500.0")).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    let usage = Usage { organization: "acme", metric: "egress_bytes", value: 200.0 };
    assert_eq!(server.running.report(None, None, &[usage]).await.unwrap().revoked, 0);
    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    assert_eq!(server.running.set_policy(policy(SOLD)).await.unwrap(), 1);
    let unary = client.keep_alive(&key).await.unwrap_err();
    assert!(unary.message().contains("egress_bytes 200 B of 100 B per day, resets at "), "{unary}");
}
