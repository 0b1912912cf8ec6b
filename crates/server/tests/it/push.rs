//! Revocations are pushed at once to the stream that named the lease last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use lease::{LeaseId, Request, RevokedFor, Terms, Usage};
use parking_lot::Mutex;
use tgm_session_server::Policy;
use tgm_session_server::store::{AuditNote, Listener, Options, Recovered};
use tonic::Code;
use wire::control::Reason;
use wire::control::attach_response::Event;

use crate::attached::{Attached, metric};
use crate::harness::{ManualClock, ROOMY, TestServer, eventually, session};
use store::testing::Disk;

const SOLD: &str = "
    [services.t1r]
    [services.t2w]
    [services.watched]
    observe = true
    [plans.pro]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.acme]
    plan = \"pro\"
    [organizations.other]
    plan = \"pro\"
";

fn policy(text: &str) -> Policy {
    Policy::parse(text, "test.toml").unwrap().policy
}

fn egress(organization: &str, value: f64) -> Usage<'_> {
    Usage { organization, metric: "egress_bytes", value }
}

#[tokio::test]
async fn a_session_that_an_operator_ends_is_told_to_the_stream_that_named_it_last() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let moved = client.borrow(session("acme")).await;
    let stayed = client.borrow(session("acme")).await;
    let unnamed = client.borrow(session("acme")).await;
    let (mut first, mut second) = (Attached::to(&server).await, Attached::to(&server).await);
    first.name(&[&moved, &stayed]).await;
    second.name(&[&moved]).await;
    for key in [&unnamed, &moved, &stayed] {
        let id = key.parse().unwrap();
        assert!(server.running.revoke(id, lease::Reason::Operator).await.unwrap());
        assert!(!server.running.revoke(id, lease::Reason::Operator).await.unwrap());
    }
    assert_eq!(second.revoked().await, (moved.clone(), Reason::Operator));
    assert_eq!(first.revoked().await, (stayed, Reason::Operator));
    first.nothing_was_pushed().await;
    second.nothing_was_pushed().await;
    assert_eq!(client.keep_alive(&moved).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(metric(&server.running, "tgm_session_pushes_total").await, 2);
}

#[tokio::test]
async fn disabling_an_organization_or_a_key_is_told_at_once_and_to_its_leases_only() {
    let server = TestServer::memory(SOLD).await;
    let mut client = server.client();
    let acme = client.borrow(session("acme").service("watched")).await;
    let other = client.borrow(session("other")).await;
    let keyed = client.borrow(session("other").api_key("key-1")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&acme, &other, &keyed]).await;

    let disabled = format!("{SOLD}\n[organizations.rest]\n[api_keys.key-1]\ndisabled = true");
    assert_eq!(server.running.set_policy(policy(&disabled)).await.unwrap(), 1);
    assert_eq!(stream.revoked().await, (keyed, Reason::ApiKeyDisabled));

    let disabled = SOLD.replace("[organizations.acme]", "[organizations.acme]\ndisabled = true");
    assert_eq!(server.running.set_policy(policy(&disabled)).await.unwrap(), 1);
    assert_eq!(stream.revoked().await, (acme, Reason::OrganizationDisabled));
    stream.nothing_was_pushed().await;
    stream.name(&[&other]).await;
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "the policy is in force for borrows too");
}

#[tokio::test]
async fn a_spent_budget_is_told_at_once_but_for_observed_services() {
    let server = TestServer::memory(SOLD).await;
    let mut client = server.client();
    let acme = client.borrow(session("acme")).await;
    let watched = client.borrow(session("acme").service("watched")).await;
    let other = client.borrow(session("other")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&acme, &watched, &other]).await;

    let usages = [egress("acme", 60.0), egress("other", 60.0)];
    let reported = server.running.report(None, Some("one"), &usages).await.unwrap();
    assert_eq!((reported.counted, reported.revoked), (true, 0));
    let reported = server.running.report(None, Some("one"), &usages).await.unwrap();
    assert_eq!((reported.counted, reported.revoked), (false, 0), "a repeated report counts once");
    stream.nothing_was_pushed().await;

    let reported = server.running.report(None, Some("two"), &[egress("acme", 40.0)]).await.unwrap();
    assert_eq!((reported.counted, reported.revoked), (true, 1));
    assert_eq!(stream.revoked().await, (acme.clone(), Reason::BudgetSpent));
    stream.name(&[&watched, &other]).await;
    for status in [
        client.keep_alive(&acme).await.unwrap_err(),
        client.ask(session("acme")).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    }
    let reported = server.running.report(None, None, &[egress("acme", 1.0)]).await.unwrap();
    assert_eq!((reported.counted, reported.revoked), (true, 0), "there is nothing left to end");
}

#[tokio::test]
async fn invalid_usage_in_a_report_is_skipped_and_the_rest_counts() {
    let server = TestServer::memory(SOLD).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    let usages = [egress("acme", 100.0), egress("acme", f64::NAN)];
    let reported = server.running.report(None, None, &usages).await.unwrap();
    assert_eq!((reported.skipped.iter().sum::<u64>(), reported.revoked), (1, 1));
    assert_eq!(client.keep_alive(&key).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_lowered_limit_ends_nobody_and_refuses_the_next() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let keys = [client.borrow(session("acme")).await, client.borrow(session("acme")).await];
    let mut stream = Attached::to(&server).await;
    stream.name(&[&keys[0], &keys[1]]).await;
    let lowered = policy("[services.t1r]\nmax_per_organization = 1");
    assert_eq!(server.running.set_policy(lowered).await.unwrap(), 0);
    stream.name(&[&keys[0], &keys[1]]).await;
    let refused = client.refused(session("acme")).await;
    assert_eq!(refused, ("organization".to_owned(), 2, 1));
}

#[tokio::test]
async fn a_revocation_is_told_when_it_is_durable_and_not_before() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    disk.hold();
    let store = server.running.store().clone();
    let id = key.parse().unwrap();
    let revoking = tokio::spawn(async move { store.revoke(id, lease::Reason::Operator).await });
    eventually("the disk is asked", || std::future::ready(disk.is_waiting())).await;
    let live = server.live().await;
    stream.send(&[]).await;
    let said_meanwhile = stream.next().await;
    // The revocation is pushed even if its caller has gone.
    revoking.abort();
    disk.release();
    assert_eq!(live, 0, "it is applied");
    assert!(matches!(said_meanwhile, Ok(Some(Event::Answer(_)))), "{said_meanwhile:?}");
    assert_eq!(stream.revoked().await, (key, Reason::Operator));
}

#[tokio::test]
async fn a_revocation_that_the_disk_did_not_keep_is_told_to_nobody() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&key]).await;
    disk.fail();
    let id = key.parse().unwrap();
    assert!(server.running.revoke(id, lease::Reason::Operator).await.is_err());
    stream.nothing_was_pushed().await;
    assert_eq!(stream.keep_alive(&[&key]).await.unavailable, [0]);
}

#[tokio::test]
async fn policies_and_reports_that_race_with_borrows_leave_no_lease_that_may_not_live() {
    let server = TestServer::memory(SOLD).await;
    let borrows = std::array::from_fn::<_, 8, _>(|_| {
        let mut client = server.client();
        tokio::spawn(async move {
            let mut granted = 0;
            loop {
                match client.ask(session("acme")).await {
                    Ok(_) => granted += 1,
                    Err(status) => return (granted, status.code()),
                }
            }
        })
    });
    eventually("there are sessions", || async { server.live().await > 50 }).await;
    let disabled = SOLD.replace("[organizations.acme]", "[organizations.acme]\ndisabled = true");
    let ended = server.running.set_policy(policy(&disabled)).await.unwrap();
    assert_eq!(server.live().await, 0);
    let mut granted = 0;
    for borrow in borrows {
        let (some, code) = borrow.await.unwrap();
        assert_eq!(code, Code::PermissionDenied);
        granted += some;
    }
    assert_eq!(ended, granted);
}

#[tokio::test]
async fn ten_thousand_revocations_at_once_reach_a_stream_that_reads() {
    let server = TestServer::memory("[services.t1r]").await;
    let mut stream = Attached::to(&server).await;
    let client = server.client();
    let mut keys = Vec::new();
    for _ in 0..100 {
        let borrows = (0..100).map(|_| {
            let mut client = client.clone();
            async move { client.borrow(session("acme")).await }
        });
        keys.extend(futures_util::future::join_all(borrows).await);
    }
    for batch in keys.chunks(1_000) {
        stream.name(&batch.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let disabled = policy("[services.t1r]\n[organizations.acme]\ndisabled = true");
    let started = std::time::Instant::now();
    assert_eq!(server.running.set_policy(disabled).await.unwrap(), 10_000);
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..10_000 {
        let (key, reason) = stream.revoked().await;
        assert_eq!(reason, Reason::OrganizationDisabled);
        told.insert(key);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(told, keys.into_iter().collect());
    stream.nothing_was_pushed().await;
}

/// A listener that records the revoked leases.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<LeaseId>>);

impl Listener for Told {
    fn revoked(&self, id: LeaseId, why: RevokedFor) {
        assert_eq!(why, lease::Reason::OrganizationDisabled.into());
        self.0.lock().push(id);
    }
}

#[test]
fn a_lease_that_was_named_is_told_exactly_once_whenever_it_is_revoked() {
    let store = Arc::new(Recovered::memory(Options::default()).unwrap().resume().unwrap());
    let disabled = policy("[services.t1r]\n[organizations.acme]\ndisabled = true");
    let over = AtomicBool::new(false);
    // A long revocation needs a runtime, because it runs on a blocking thread.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let enforce = || runtime.block_on(async { store.enforce(&disabled, AuditNote::None).await });
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let told = Arc::<Told>::default();
                    let attachment = store.attach(told.clone());
                    let mut named = Vec::new();
                    for _ in 0..2_000 {
                        let request = Request::session("t1r", "acme");
                        let borrowed = store.borrow(&request, &Terms::default()).now_or_never();
                        let borrowed = borrowed.unwrap().unwrap();
                        let id = borrowed.grant.id;
                        borrowed.delivery.complete();
                        let kept = store.keep_alive_batch(&[Some(id)], None, &attachment);
                        if kept.now_or_never().unwrap().listed() == 0 {
                            named.push(id);
                        }
                    }
                    (told, named, attachment)
                })
            })
            .collect();
        let operator = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                enforce().unwrap();
            }
        });
        let clients: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        operator.join().unwrap();
        enforce().unwrap();
        for (told, named, _attachment) in clients {
            let mut told = told.0.lock().clone();
            told.sort_by_key(LeaseId::serial);
            assert!(!named.is_empty());
            assert_eq!(told, named);
        }
    });
}
