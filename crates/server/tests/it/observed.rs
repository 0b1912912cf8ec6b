//! Services that are only observed: limits and budgets are counted and shown, and refuse no borrow.

use lease::Usage;
use sha2::{Digest as _, Sha256};
use tgm_session_server::Policy;
use tonic::Code;
use wire::control::Reason;
use wire::worker::keep_alive_response::Status as Kept;

use crate::attached::{Attached, metric};
use crate::harness::{TestServer, session, worker};

const OBSERVED: &str = "
    [services.t1r]
    max_per_organization = 1
    max_per_api_key = 1
    max_total = 1
    observe = true
    [services.t2w]
    observe = true
    [plans.pro]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.acme]
    plan = \"pro\"
    [organizations.closed]
    disabled = true
    [api_keys.closed]
    disabled = true
";

fn policy(text: &str) -> Policy {
    Policy::parse(text, "test.toml").unwrap().policy
}

async fn spend(server: &TestServer) {
    let usage = Usage { organization: "acme", metric: "egress_bytes", value: 100.0 };
    let reported = server.running.report(None, None, &[usage]).await.unwrap();
    assert_eq!((reported.counted, reported.revoked), (true, 0));
}

async fn outcome(server: &TestServer, service: &str, outcome: &str) -> u64 {
    let labels = format!("service=\"{service}\",outcome=\"{outcome}\",scope=\"\"");
    metric(&server.running, &format!("tgm_session_borrows_total{{{labels}}}")).await
}

#[tokio::test]
async fn no_limit_of_an_observed_service_refuses_a_borrow_and_each_excess_is_counted() {
    let server = TestServer::memory(OBSERVED).await;
    let mut client = server.client();
    client.borrow(session("acme").api_key("key-1")).await;
    client.borrow(session("acme").api_key("key-1")).await;
    client.borrow(session("other")).await;
    client.borrow(worker("acme", "a1", 1)).await;
    client.borrow(worker("acme", "a1", 1)).await;
    assert_eq!(outcome(&server, "t1r", "borrowed").await, 1);
    assert_eq!(outcome(&server, "t1r", "observed").await, 2);
    assert_eq!(outcome(&server, "t2w", "observed").await, 1);
    let state = client.state("t1r", "acme").await.unwrap();
    assert_eq!((state.borrowed_workers, state.max_workers, state.available_workers), (2, 1, 0));
}

#[tokio::test]
async fn a_spent_budget_of_an_observed_service_refuses_and_ends_nobody() {
    let server = TestServer::memory(OBSERVED).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    spend(&server).await;
    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    client.borrow(session("acme")).await;
    assert_eq!(outcome(&server, "t1r", "observed").await, 1);
}

#[tokio::test]
async fn disabling_acts_on_an_observed_service_and_calls_need_a_key() {
    let server = TestServer::memory(OBSERVED).await;
    let mut client = server.client();
    for closed in [session("closed"), session("acme").api_key("closed")] {
        let status = client.ask(closed).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    let key = client.borrow(session("acme")).await;
    let digest = hex::encode(Sha256::digest("west"));
    let keyed = format!("{OBSERVED}\n[[indexers]]\nname = \"west\"\nkey_sha256 = \"{digest}\"\n");
    server.running.set_policy(policy(&keyed)).await.unwrap();
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    let disabled = OBSERVED.replace("plan = \"pro\"", "plan = \"pro\"\ndisabled = true");
    assert_eq!(server.running.set_policy(policy(&disabled)).await.unwrap(), 1);
    assert_eq!(client.keep_alive(&key).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_service_that_is_no_longer_observed_refuses_borrows_and_ends_sessions_of_spent_budgets() {
    let server = TestServer::memory(OBSERVED).await;
    let mut client = server.client();
    let spent = client.borrow(session("acme")).await;
    let others = client.borrow(session("other")).await;
    spend(&server).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&spent, &others]).await;
    let enforced = OBSERVED.replace("observe = true", "");
    assert_eq!(server.running.set_policy(policy(&enforced)).await.unwrap(), 1);
    assert_eq!(stream.revoked().await, (spent, Reason::BudgetSpent));
    stream.name(&[&others]).await;
    assert_eq!(client.refused(session("other")).await, ("service".to_owned(), 1, 1));
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}
