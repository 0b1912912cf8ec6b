//! A policy that changes while a call looks at the one before.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tgm_session_server::store::{Store as _, StoreUrl};
use tgm_session_server::{Clock, Policy, Running, Server};
use tonic::Code;

use crate::harness::{Client, ManualClock, config, eventually, session};

/// Borrows look at the wall clock for the budget, once they have their terms and before they are
/// applied.
const SOLD: &str = "
    [services.t1r]
    [plans.pro]
    budgets = { egress_bytes = { amount = 100.0, per = \"day\" } }
    [organizations.acme]
    plan = \"pro\"
";

/// A clock of which one look at the wall takes until it is let go.
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
async fn a_borrow_that_was_ruled_on_before_the_policy_changed_ends_with_the_change_all_the_same() {
    let clock = ManualClock::new();
    let look = Mutex::new(Look::Quick);
    let slow = Arc::new(SlowWall { clock: clock.clone(), look, changed: Condvar::new() });
    let mut config = config(SOLD, &clock, StoreUrl::Memory);
    config.clock = slow.clone();
    let server = Arc::new(Server::bind(config).await.unwrap().start().await.unwrap());
    // On connections of their own: the thread of the slow borrow serves nothing else meanwhile.
    let mut client = Client::of(server.grpc_address());
    let mut late = Client::of(server.grpc_address());
    client.borrow(session("acme")).await;

    slow.set(Look::NextIsSlow);
    let borrowing = tokio::spawn(async move {
        let key = late.borrow(session("acme")).await;
        (late, key)
    });
    eventually("the borrow has its terms", || std::future::ready(*slow.look.lock() == Look::Slow))
        .await;
    let disabled = SOLD.replace("[organizations.acme]", "[organizations.acme]\ndisabled = true");
    let disabled = Policy::parse(&disabled, "test.toml").unwrap().policy;
    let changing = tokio::spawn({
        let server = server.clone();
        async move { server.set_policy(disabled).await.unwrap() }
    });
    eventually("what was there has ended", || async { live(&server).await == 0 }).await;
    slow.set(Look::Quick);

    let (mut late, key) = borrowing.await.unwrap();
    assert_eq!(
        changing.await.unwrap(),
        2,
        "the session that was there, and the one that came late"
    );
    assert_eq!(live(&server).await, 0);
    assert_eq!(late.keep_alive(&key).await.unwrap_err().code(), Code::PermissionDenied);
}
