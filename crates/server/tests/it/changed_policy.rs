//! A policy that changes while a call uses the old one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tgm_session_server::operator::By;
use tgm_session_server::policy::overrides::Subject;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Clock, Policy, Running, Server};
use tonic::Code;
use wire::worker::borrow_worker_response::BorrowStatus as Status;

use crate::harness::{Client, ManualClock, ROOMY, TestServer, config, eventually, session, worker};
use crate::undecided::assert_busy;
use store::testing::Disk;

/// A policy with a budget. For the budget, a borrow reads the wall clock after it has its terms and
/// before it is applied.
const SOLD: &str = "
    [services.t1r]
    [plans.pro]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.acme]
    plan = \"pro\"
";

/// A clock that blocks one read of the wall clock until the test releases it.
#[derive(Debug)]
struct SlowWall {
    clock: Arc<ManualClock>,
    look: Mutex<Look>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Quick,
    NextIsSlow,
    Slow,
}

impl SlowWall {
    fn set(&self, look: Look) {
        *self.look.lock() = look;
        self.changed.notify_all();
    }
}

impl Clock for SlowWall {
    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn unix(&self) -> Duration {
        let mut look = self.look.lock();
        if *look == Look::NextIsSlow {
            *look = Look::Slow;
            self.changed.wait_while(&mut look, |look| *look == Look::Slow);
        }
        drop(look);
        self.clock.unix()
    }
}

async fn live(server: &Running) -> u64 {
    server.store().live().await.unwrap().iter().map(|(_, leases)| leases).sum()
}

#[tokio::test]
async fn a_borrow_decided_under_an_old_policy_is_decided_again_and_does_not_delay_the_policy_change()
 {
    let clock = ManualClock::new();
    let look = Mutex::new(Look::Quick);
    let slow = Arc::new(SlowWall { clock: clock.clone(), look, changed: Condvar::new() });
    let mut config = config(SOLD, &clock, StoreUrl::Memory);
    config.clock = slow.clone();
    let server = Arc::new(Server::bind(config).await.unwrap().start().await.unwrap());
    // Two connections, because the thread of the slow borrow serves nothing else meanwhile.
    let mut client = Client::of(server.grpc_address());
    let mut late = Client::of(server.grpc_address());
    let held = client.borrow(session("acme")).await;

    slow.set(Look::NextIsSlow);
    let borrowing = tokio::spawn(async move { late.ask(session("acme")).await });
    eventually("the borrow has its terms", || std::future::ready(*slow.look.lock() == Look::Slow))
        .await;
    let disabled = SOLD.replace("[organizations.acme]", "[organizations.acme]\ndisabled = true");
    let disabled = Policy::parse(&disabled, "test.toml").unwrap().policy;
    assert_eq!(server.set_policy(disabled).await.unwrap(), 1, "the session that was there");
    assert_eq!(*slow.look.lock(), Look::Slow, "the borrow is under way all the while");
    slow.set(Look::Quick);

    let refused = borrowing.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(live(&server).await, 0);
    assert_eq!(client.keep_alive(&held).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_borrow_during_a_policy_change_gets_the_terms_of_the_new_policy() {
    let clock = ManualClock::new();
    let look = Mutex::new(Look::Quick);
    let slow = Arc::new(SlowWall { clock: clock.clone(), look, changed: Condvar::new() });
    let mut config = config(SOLD, &clock, StoreUrl::Memory);
    config.clock = slow.clone();
    let server = Server::bind(config).await.unwrap().start().await.unwrap();
    let mut late = Client::of(server.grpc_address());
    slow.set(Look::NextIsSlow);
    let borrowing = tokio::spawn(async move { late.refused(session("acme")).await });
    eventually("the borrow has its terms", || std::future::ready(*slow.look.lock() == Look::Slow))
        .await;
    let by = By { from: "test", note: "" };
    let set = server.operator().set_limit(Subject::Organization, "acme", "t1r", Some(0), by).await;
    set.unwrap();
    slow.set(Look::Quick);
    assert_eq!(borrowing.await.unwrap(), ("organization".to_owned(), 0, 0));
    assert_eq!(live(&server).await, 0);
}

#[tokio::test]
async fn a_worker_borrowed_during_a_policy_change_is_shown_the_servers_own_limit_too() {
    let clock = ManualClock::new();
    let look = Mutex::new(Look::Quick);
    let slow = Arc::new(SlowWall { clock: clock.clone(), look, changed: Condvar::new() });
    let mut config = config(SOLD, &clock, StoreUrl::Memory);
    config.clock = slow.clone();
    config.max_leases = 1;
    let server = Server::bind(config).await.unwrap().start().await.unwrap();
    let mut late = Client::of(server.grpc_address());
    late.borrow(session("acme")).await;
    slow.set(Look::NextIsSlow);
    let ask = worker("acme", "trace", 3).service("t1r");
    let borrowing = tokio::spawn(async move { late.ask(ask).await.unwrap() });
    eventually("the borrow has its terms", || std::future::ready(*slow.look.lock() == Look::Slow))
        .await;
    let by = By { from: "test", note: "" };
    let set = server.operator().set_limit(Subject::Organization, "acme", "t1r", Some(9), by).await;
    set.unwrap();
    slow.set(Look::Quick);
    let answer = borrowing.await.unwrap();
    assert_busy(&answer);
    assert_eq!(answer.get_ref().worker_state.as_ref().unwrap().max_workers, 1);
}

/// A server whose disk hangs, with a borrow that waits for the disk.
async fn hung() -> (TestServer, Disk) {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    disk.hold();
    let mut client = server.client();
    tokio::spawn(async move { client.ask(session("waits")).await.map(drop) });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    (server, disk)
}

#[tokio::test]
async fn a_policy_comes_into_force_while_the_disk_hangs_and_an_override_waits_for_it() {
    let (server, disk) = hung().await;
    let operator = server.running.operator().clone();
    let set = |max| {
        let operator = operator.clone();
        tokio::spawn(async move {
            let by = By { from: "test", note: "" };
            operator.set_limit(Subject::Organization, "acme", "t1r", Some(max), by).await
        })
    };
    let waits = set(3);
    eventually("it is on its way", || async { !server.running.store().overrides().is_empty() })
        .await;
    let ceiling = |organization: &str| operator.policy().limit(organization, "t1r").0;
    let wider = Policy::parse(&ROOMY.replace("= 10\n", "= 20\n"), "test.toml").unwrap().policy;
    let setting = tokio::spawn({
        let operator = operator.clone();
        async move { operator.set_policy(wider).await.unwrap() }
    });
    eventually("the file is in force", || async { ceiling("other") == Some(20) }).await;
    assert!(disk.is_waiting() && !waits.is_finished());
    assert_eq!(ceiling("acme"), Some(20), "an override that is not durable is not in force");
    // The summary of this change names the limit before it, which the first change will have set.
    let again = set(5);

    disk.release();
    setting.await.unwrap();
    let summaries = [waits.await, again.await].map(|done| done.unwrap().unwrap().summary);
    assert_eq!(
        summaries,
        [
            "set the limit of organization acme on t1r to 3 (was 10 by the service)",
            "set the limit of organization acme on t1r to 5 (was 3 by an override)",
        ]
    );
    assert_eq!((ceiling("acme"), ceiling("other")), (Some(5), Some(20)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_lease_of_an_organization_outlives_its_disabling_however_it_is_borrowed_meanwhile() {
    let server = Arc::new(TestServer::memory("[services.t1r]").await);
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, over) = (server.client(), over.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match client.ask(session("acme")).await {
                        Ok(answer) => assert_eq!(answer.get_ref().status(), Status::Borrowed),
                        Err(status) => assert_eq!(status.code(), Code::PermissionDenied),
                    }
                }
            })
        })
        .collect();
    let (operator, by) = (server.running.operator(), By { from: "test", note: "" });
    let mut ended = 0;
    for _ in 0..50 {
        eventually("there are leases", || async { server.live().await > 0 }).await;
        let (subject, id) = (Subject::Organization, "acme");
        ended += operator.set_disabled(subject, id, Some(true), by).await.unwrap().ended;
        for _ in 0..20 {
            assert_eq!(server.live().await, 0);
            tokio::task::yield_now().await;
        }
        operator.set_disabled(subject, id, None, by).await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(ended >= 50, "{ended}");
}
