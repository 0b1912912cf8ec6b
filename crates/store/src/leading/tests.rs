//! Stores of one fleet on a real PostgreSQL.

mod lost_writes;
mod on_etcd;
mod pooled;
mod promoted;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lease::{LeaseId, Request, Terms};

use crate::fleet::{Member, MemberRole, StepDownError};
use crate::journal::postgres::tests::cluster::Cluster;
use crate::options::Options;
use crate::recovered::Recovered;
use crate::testing::{eventually, poison};
use crate::{BorrowError, Borrowed, Store, Unavailable};

/// Longer than a busy machine starves a process. A test that lets a leader be silent takes as long.
const LEADER_TTL: Duration = Duration::from_secs(5);

/// The hash of the policy at the start.
const POLICY: &str = "at the start";

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(60);

async fn open(cluster: &Cluster, schema: &str) -> Arc<Store> {
    open_at(cluster, schema, "10.0.0.1:9010").await
}

async fn open_at(cluster: &Cluster, schema: &str, address: &str) -> Arc<Store> {
    open_url(url(cluster.port, schema), address).await
}

fn url(port: u16, schema: &str) -> String {
    format!("postgres://tgm@127.0.0.1:{port}/postgres?schema={schema}")
}

async fn open_url(url: String, address: &str) -> Arc<Store> {
    let options = Options {
        leader_ttl: LEADER_TTL,
        advertised: address.into(),
        policy_hash: POLICY.into(),
        ..Options::default()
    };
    let open = move || Recovered::open(&url.parse().unwrap(), options).unwrap().resume().unwrap();
    let store = Arc::new(tokio::task::spawn_blocking(open).await.unwrap());
    // As a server does, once the overrides of the term are in force.
    let (serving, mut terms) = (Arc::downgrade(&store), store.terms());
    tokio::spawn(async move {
        loop {
            let term = *terms.borrow_and_update();
            match (serving.upgrade(), term) {
                (Some(store), Some(number)) => store.serve_term(number),
                (Some(_), None) => {}
                (None, _) => return,
            }
            if terms.changed().await.is_err() {
                return;
            }
        }
    });
    store
}

async fn borrow(store: &Store) -> Result<LeaseId, BorrowError> {
    let terms = Terms { ttl: Duration::from_secs(60), ..Terms::default() };
    let Borrowed { grant, delivery } =
        store.borrow(&Request::session("t1r", "acme"), &terms).await?;
    delivery.complete();
    Ok(grant.id)
}

/// Borrows until that succeeds.
async fn borrow_soon(store: &Store) -> LeaseId {
    let granted = tokio::time::timeout(SOON, async {
        loop {
            match borrow(store).await {
                Ok(id) => return id,
                Err(BorrowError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    granted.await.expect("a server that leads")
}

#[tokio::test]
async fn one_server_leads_and_another_follows_when_it_closes() {
    let Some(cluster) = Cluster::shared() else { return };
    let first = open(&cluster, "one_leads").await;
    let id = borrow_soon(&first).await;
    let second = open(&cluster, "one_leads").await;
    let refused = borrow(&second).await;
    assert_eq!(refused, Err(BorrowError::Unavailable(Unavailable::Standby)));
    assert_eq!(second.keep_alive(id, None).await, Err(Unavailable::Standby));

    first.close().unwrap();
    borrow_soon(&second).await;
    assert_eq!(second.live().await.unwrap(), [("t1r".into(), 2)]);
    let kept = second.keep_alive(id, None).await;
    assert!(matches!(kept, Ok(lease::KeptAlive::Extended { .. })), "{kept:?}");
    second.close().unwrap();
}

#[tokio::test]
async fn a_fleet_without_its_database_recovers_by_itself() {
    let Some(mut cluster) = Cluster::start() else { return };
    let store = open(&cluster, "away").await;
    let id = borrow_soon(&store).await;
    cluster.kill();
    // A change cannot be decided, and a keep-alive goes on while the leadership is valid.
    let waits = tokio::time::timeout(Duration::from_millis(300), borrow(&store));
    assert!(!matches!(waits.await, Ok(Ok(_))));
    let kept = store.keep_alive(id, None).await;
    assert!(matches!(kept, Ok(lease::KeptAlive::Extended { .. })), "{kept:?}");
    // When it has lapsed, nothing is kept alive, and nothing expires.
    while store.keep_alive(id, None).await != Err(Unavailable::Lapsed) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.resume();
    borrow_soon(&store).await;
    let kept = store.keep_alive(id, None).await;
    assert!(matches!(kept, Ok(lease::KeptAlive::Extended { .. })), "{kept:?}");
    store.close().unwrap();
}

/// A member of the fleet as `store` sees it, once it is so.
async fn member_soon(store: &Store, is_so: impl Fn(&Member) -> bool) -> Member {
    let found = tokio::time::timeout(SOON, async {
        loop {
            if let Some(member) = store.members().into_iter().find(&is_so) {
                return member;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("such a member")
}

fn is_standby(address: &str) -> impl Fn(&Member) -> bool {
    move |member| *member.address == *address && member.role == MemberRole::Standby
}

#[tokio::test]
async fn every_server_sees_the_members_of_its_fleet() {
    let Some(cluster) = Cluster::shared() else { return };
    let first = open_at(&cluster, "members", "10.0.0.1:9010").await;
    borrow_soon(&first).await;
    let second = open_at(&cluster, "members", "10.0.0.2:9010").await;
    second.set_policy_hash("abc");
    let seen = member_soon(&first, |member| &*member.policy_hash == "abc").await;
    assert_eq!((&*seen.address, seen.role, seen.led), ("10.0.0.2:9010", MemberRole::Standby, None));
    assert_eq!(&*seen.version, env!("CARGO_PKG_VERSION"));
    assert!(seen.seen_ago < SOON && seen.role_since > 1_700_000_000);
    let leader = member_soon(&second, |member| member.role == MemberRole::Leader).await;
    assert_eq!((&*leader.address, leader.led), ("10.0.0.1:9010", Some(1)));
    second.close().unwrap();
    eventually("a server that has stopped is no member", async || first.members().len() == 1).await;
    first.close().unwrap();
}

#[tokio::test]
async fn a_server_that_the_others_know_takes_over_at_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let first = open(&cluster, "known").await;
    borrow_soon(&first).await;
    let second = open(&cluster, "known").await;
    eventually("the others know it", async || second.is_member()).await;
    let successor = first.step_down(false).await.unwrap();
    assert_eq!((Some(successor.id), &*successor.policy_hash), (second.member(), POLICY));
    borrow_soon(&second).await;
    second.close().unwrap();
    first.close().unwrap();
}

#[tokio::test]
async fn a_leader_that_steps_down_fails_no_call_that_it_applied() {
    let Some(cluster) = Cluster::shared() else { return };
    let first = open_at(&cluster, "step_down", "10.0.0.1:9010").await;
    let id = borrow_soon(&first).await;
    let second = open_at(&cluster, "step_down", "10.0.0.2:9010").await;
    assert_eq!(second.step_down(false).await, Err(StepDownError::NotLeader));
    second.set_policy_hash("other");
    member_soon(&first, |member| &*member.policy_hash == "other").await;
    let others = Err(StepDownError::OtherPolicy { others: 1 });
    assert_eq!(first.successor(false).await, others);
    assert_eq!(first.step_down(false).await, others);
    let planned = first.successor(true).await.unwrap();
    assert_eq!((Some(planned.id), &*planned.address), (second.member(), "10.0.0.2:9010"));
    borrow(&first).await.expect("it leads on");

    // Many callers borrow meanwhile. What was granted is there afterwards, and all else was not applied.
    let mut callers = tokio::task::JoinSet::new();
    let under_way = Arc::new(AtomicU64::new(0));
    for _ in 0..32 {
        let (store, under_way) = (first.clone(), under_way.clone());
        callers.spawn(async move {
            let mut granted = 0;
            loop {
                match borrow(&store).await {
                    Ok(_) => {
                        granted += 1;
                        under_way.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(BorrowError::Unavailable(Unavailable::Standby)) => return granted,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    eventually("a hundred grants", async || under_way.load(Ordering::Relaxed) >= 100).await;
    let successor = first.step_down(true).await.unwrap();
    assert_eq!(&*successor.address, "10.0.0.2:9010");
    assert_eq!(first.keep_alive(id, None).await, Err(Unavailable::Standby));
    let granted: u64 = callers.join_all().await.into_iter().sum();
    borrow_soon(&second).await;
    assert_eq!(second.live().await.unwrap(), [("t1r".into(), granted + 3)]);
    assert!(matches!(second.keep_alive(id, None).await, Ok(lease::KeptAlive::Extended { .. })));

    // The first one is a standby, and leads again when the second one hands over to it.
    first.set_policy_hash("other");
    let found = |member: &Member| {
        is_standby("10.0.0.1:9010")(member) && member.policy_hash == "other".into()
    };
    member_soon(&second, found).await;
    second.step_down(false).await.unwrap();
    borrow_soon(&first).await;
    assert_eq!(first.live().await.unwrap(), [("t1r".into(), granted + 4)]);
    second.close().unwrap();
    assert_eq!(first.step_down(true).await, Err(StepDownError::NoSuccessor));
    borrow(&first).await.expect("it leads on");
    first.close().unwrap();
}

#[tokio::test]
async fn a_poisoned_leader_gives_up_at_once_and_says_that_it_is_useless() {
    let Some(cluster) = Cluster::shared() else { return };
    let first = open_at(&cluster, "poisoned", "10.0.0.1:9010").await;
    let id = borrow_soon(&first).await;
    let second = open_at(&cluster, "poisoned", "10.0.0.2:9010").await;
    poison(&first);
    tokio::time::timeout(SOON, first.useless()).await.expect("the leadership is released");
    assert_eq!(first.ready(), Err(Unavailable::Failed));
    assert!(first.keep_alive(id, None).await.is_err());
    borrow_soon(&second).await;
    assert!(matches!(second.keep_alive(id, None).await, Ok(lease::KeptAlive::Extended { .. })));
    assert!(first.close().is_err());
    second.close().unwrap();
}

async fn connect(cluster: &Cluster) -> tokio_postgres::Client {
    let url = format!("postgres://tgm@127.0.0.1:{}/postgres", cluster.port);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A row of a standby that does nothing.
const IDLE_MEMBER: &str = "VALUES ('0000000000000000000000000000002a', '10.0.0.9:9010', '', 1, '', \
                           'standby', now(), NULL, now() + interval '1 hour')";

#[tokio::test]
async fn a_leader_that_closes_names_its_successor() {
    let Some(cluster) = Cluster::shared() else { return };
    let store = open(&cluster, "closing").await;
    let id = borrow_soon(&store).await;
    let client = connect(&cluster).await;
    client.batch_execute(&format!("INSERT INTO closing.members {IDLE_MEMBER}")).await.unwrap();
    member_soon(&store, is_standby("10.0.0.9:9010")).await;
    store.close().unwrap();
    let row = client.query_one("SELECT released, successor FROM closing.fleet", &[]).await.unwrap();
    let successor: Option<String> = row.get(1);
    assert_eq!(
        (row.get(0), successor.as_deref()),
        (true, Some("0000000000000000000000000000002a"))
    );
    assert_eq!(store.keep_alive(id, None).await, Err(Unavailable::Standby));
}

#[tokio::test]
async fn a_leader_whose_last_changes_cannot_be_committed_leads_on() {
    let Some(cluster) = Cluster::shared() else { return };
    let store = open(&cluster, "unconfirmed").await;
    let id = borrow_soon(&store).await;
    let mut client = connect(&cluster).await;
    client.batch_execute(&format!("INSERT INTO unconfirmed.members {IDLE_MEMBER}")).await.unwrap();
    // Grants wait for this lock. Renewals read the journal row, and do not wait.
    let blocking = client.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE unconfirmed.leases IN SHARE MODE").await.unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { borrow(&store).await }
    });
    let pending = || store.shared.has_committed_all();
    eventually("a change waits", async || !pending()).await;
    assert_eq!(store.step_down(true).await, Err(StepDownError::Unconfirmed));
    assert!(matches!(store.keep_alive(id, None).await, Ok(lease::KeptAlive::Extended { .. })));
    blocking.rollback().await.unwrap();
    waiting.await.unwrap().expect("the change that waited");
    client
        .batch_execute("DELETE FROM unconfirmed.members WHERE address = '10.0.0.9:9010'")
        .await
        .unwrap();
    store.close().unwrap();
}
