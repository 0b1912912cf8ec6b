//! Stores of one fleet on a real PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use lease::{LeaseId, Request, Terms};

use crate::journal::postgres::tests::cluster::Cluster;
use crate::options::Options;
use crate::recovered::Recovered;
use crate::{BorrowError, Borrowed, Store, Unavailable};

/// Short, so that a takeover does not take long.
const LEADER_TTL: Duration = Duration::from_secs(2);

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(60);

async fn open(cluster: &Cluster, schema: &str) -> Arc<Store> {
    let url = format!("postgres://tgm@127.0.0.1:{}/postgres?schema={schema}", cluster.port);
    let options = Options {
        leader_ttl: LEADER_TTL,
        advertised: "10.0.0.1:9010".into(),
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
