//! A database that loses what it had acknowledged: its leader writes that again.

use std::time::Duration;

use lease::{BorrowId, KeptAlive, Reason, Released};
use tokio_postgres::Client;

use super::*;
use crate::testing::{entry, set};

/// The tables with what a store keeps, and the key of each.
const CONTENT: [(&str, &str); 5] = [
    ("leases", "serial"),
    ("remembered", "key"),
    ("usage", "organization, metric"),
    ("overrides", "subject, id, service"),
    ("audit", "number"),
];

/// Everything that the tables hold, as text.
async fn content(client: &Client, schema: &str) -> Vec<String> {
    let mut texts = Vec::new();
    for (table, key) in CONTENT {
        let query = format!(
            "SELECT coalesce(json_agg(t ORDER BY {key})::text, '') FROM {schema}.{table} t"
        );
        texts.push(format!(
            "{table}: {}",
            client.query_one(&query, &[]).await.unwrap().get::<_, String>(0)
        ));
    }
    texts
}

/// Keeps a copy of all tables.
async fn keep_copy(client: &Client, schema: &str) {
    let copy =
        |table| format!("CREATE TABLE {schema}.old_{table} AS SELECT * FROM {schema}.{table};");
    let tables = CONTENT.iter().map(|(table, _)| *table).chain(["fleet", "journal"]);
    let copies: String = tables.map(copy).collect();
    client
        .batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {copies} COMMIT"))
        .await
        .unwrap();
}

/// Sets all tables back to the copy, as the promotion of a replica does.
async fn set_back(client: &Client, schema: &str) {
    let tables = ["fleet", "journal"].into_iter().chain(CONTENT.map(|(table, _)| table));
    let copies: String = tables
        .map(|table| {
            format!("DELETE FROM {schema}.{table}; INSERT INTO {schema}.{table} SELECT * FROM {schema}.old_{table};")
        })
        .collect();
    let lock = format!("LOCK TABLE {schema}.journal, {schema}.fleet IN SHARE ROW EXCLUSIVE MODE");
    client.batch_execute(&format!("BEGIN; {lock}; {copies} COMMIT")).await.unwrap();
}

async fn epoch(client: &Client, schema: &str) -> i64 {
    let query = format!("SELECT epoch FROM {schema}.fleet");
    client.query_one(&query, &[]).await.unwrap().get(0)
}

fn session(trace: &str) -> Request<'_> {
    Request::session("t1r", "acme").trace(trace).indexer("west")
}

async fn grant(store: &Store, request: &Request<'_>) -> LeaseId {
    let terms = Terms { ttl: Duration::from_secs(60), ..Terms::default() };
    let Borrowed { grant, delivery } = store.borrow(request, &terms).await.unwrap();
    delivery.complete();
    grant.id
}

async fn report(store: &Store, key: &str) -> u64 {
    let usage = [lease::Usage { organization: "acme", metric: "egress_bytes", value: 7.0 }];
    let policy = Arc::new(policy::Policy::default());
    let (report, _) = crate::UsageReport::of(Some("west"), Some(key), &usage, policy);
    store.report(report).await.unwrap();
    let used = store.used("acme").await.unwrap();
    used.iter().map(|(_, used)| used.day.1 as u64).sum()
}

const BORROWED: BorrowId = BorrowId(77);
const RETURNED: BorrowId = BorrowId(88);

/// Does something of each kind.
async fn do_everything(store: &Store, trace: &str) -> Vec<LeaseId> {
    let kept = grant(store, &session(trace)).await;
    let named = grant(store, &session(trace).borrow_id(BORROWED)).await;
    let worker = grant(store, &Request { max_workers: 9, ..session(trace) }).await;
    let returned = grant(store, &session(trace).borrow_id(RETURNED)).await;
    let outcome = store.release(returned, Some("west"), Duration::ZERO).await;
    assert!(matches!(outcome, Ok(Released::Returned)), "{outcome:?}");
    let lingers = grant(store, &session("")).await;
    let outcome = store.release(lingers, Some("west"), Duration::from_secs(600)).await;
    assert!(matches!(outcome, Ok(Released::Lingers { .. })), "{outcome:?}");
    let revoked = grant(store, &session("revoked")).await;
    store.revoke(revoked, Reason::Operator).await.unwrap();
    assert_eq!(report(store, trace).await % 7, 0);
    store.record(Some(set("acme", 40)), entry("a limit")).await.unwrap();
    vec![kept, named, worker]
}

async fn check_everything(store: &Store, leases: &[LeaseId], trace: &str) {
    for id in leases {
        let kept = store.keep_alive(*id, Some("west")).await;
        assert!(matches!(kept, Ok(KeptAlive::Extended { .. })), "{kept:?}");
    }
    // The borrow ids and the key of the report are remembered.
    assert_eq!(grant(store, &session(trace).borrow_id(BORROWED)).await, leases[1]);
    let again = store.borrow(&session(trace).borrow_id(RETURNED), &Terms::default()).await;
    assert!(matches!(again, Err(BorrowError::Refused(_))), "{again:?}");
    let used = store.used("acme").await.unwrap();
    report(store, trace).await;
    assert_eq!(store.used("acme").await.unwrap(), used, "the report counts once");
    assert_eq!(store.overrides().len(), 1);
}

#[tokio::test]
async fn a_leader_writes_again_what_its_database_has_lost() {
    let Some(cluster) = Cluster::shared() else { return };
    let (client, schema) = (connect(&cluster).await, "set_back");
    let store = open(&cluster, schema).await;
    borrow_soon(&store).await;
    // Something that is gone later comes back with the earlier state.
    let gone = grant(&store, &session("gone")).await;
    let (lingers, differs) = (grant(&store, &session("")).await, grant(&store, &session("")).await);
    keep_copy(&client, schema).await;
    store.release(gone, Some("west"), Duration::ZERO).await.unwrap();
    store.release(lingers, Some("west"), Duration::from_secs(600)).await.unwrap();
    // A replica has no other lease of the same number, but if it had, it would be replaced.
    let serial = differs.number().serial();
    let other = format!(
        "UPDATE {schema}.old_leases SET secret = '\\x00', trace = 'other' WHERE serial = {serial}"
    );
    assert_eq!(client.execute(&other, &[]).await.unwrap(), 1);
    let leases = do_everything(&store, "trace-a").await;
    let (before, term) = (content(&client, schema).await, epoch(&client, schema).await);
    let last_number = store.audit(None, 1)[0].number;

    set_back(&client, schema).await;
    assert_ne!(content(&client, schema).await, before);
    eventually("a new term", async || epoch(&client, schema).await > term).await;
    assert_eq!(content(&client, schema).await, before, "every row is as it was");
    eventually("the leader acts", async || store.ready().is_ok()).await;

    check_everything(&store, &leases, "trace-a").await;
    let next = borrow_soon(&store).await;
    assert!(leases.iter().all(|id| id.number().serial() < next.number().serial()));
    assert!(store.record(None, entry("later")).await.unwrap() > last_number);
    // Another server reads all of it.
    let count = store.live().await.unwrap();
    store.close().unwrap();
    let other = open(&cluster, schema).await;
    let after = borrow_soon(&other).await;
    assert!(after.number().serial() > next.number().serial());
    assert_eq!(other.live().await.unwrap()[0].1, count[0].1 + 1);
    check_everything(&other, &leases, "trace-a").await;
    other.close().unwrap();
}

#[tokio::test]
async fn calls_that_wait_while_the_journal_is_written_again_are_in_it_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let (client, schema) = (connect(&cluster).await, "set_back_under_load");
    let store = open(&cluster, schema).await;
    borrow_soon(&store).await;
    keep_copy(&client, schema).await;
    let mut callers = tokio::task::JoinSet::new();
    let (grants, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for _ in 0..16 {
        let (store, grants, stop) = (store.clone(), grants.clone(), stop.clone());
        callers.spawn(async move {
            let mut granted = Vec::new();
            while stop.load(Ordering::Relaxed) == 0 {
                match borrow(&store).await {
                    Ok(id) => {
                        granted.push(id);
                        grants.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(BorrowError::Unavailable(Unavailable::Lapsed)) => {
                        tokio::task::yield_now().await
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            granted
        });
    }
    let mut term = epoch(&client, schema).await;
    for _ in 0..3 {
        let more = grants.load(Ordering::Relaxed) + 300;
        eventually("more grants", async || grants.load(Ordering::Relaxed) >= more).await;
        set_back(&client, schema).await;
        eventually("a new term", async || epoch(&client, schema).await > term).await;
        term = epoch(&client, schema).await;
    }
    let more = grants.load(Ordering::Relaxed) + 300;
    eventually("more grants", async || grants.load(Ordering::Relaxed) >= more).await;
    stop.store(1, Ordering::Relaxed);
    let granted: Vec<LeaseId> = callers.join_all().await.into_iter().flatten().collect();
    store.close().unwrap();
    let other = open(&cluster, schema).await;
    borrow_soon(&other).await;
    assert_eq!(other.live().await.unwrap()[0].1, granted.len() as u64 + 2);
    for id in granted {
        let kept = other.keep_alive(id, None).await;
        assert!(matches!(kept, Ok(KeptAlive::Extended { .. })), "{kept:?}");
    }
    other.close().unwrap();
}

#[tokio::test]
async fn a_leader_whose_takeover_was_lost_takes_its_term_again() {
    let Some(cluster) = Cluster::shared() else { return };
    let (client, schema) = (connect(&cluster).await, "set_back_takeover");
    let first = open(&cluster, schema).await;
    borrow_soon(&first).await;
    first.close().unwrap();
    keep_copy(&client, schema).await;
    let second = open(&cluster, schema).await;
    let leases = [borrow_soon(&second).await, borrow_soon(&second).await];
    let third = open_at(&cluster, schema, "10.0.0.3:9010").await;
    // The standby has seen the term that is lost, so it does not take the released row at once.
    eventually("the standby knows the leader", async || leader_of(&third).is_some()).await;
    let term = epoch(&client, schema).await;
    set_back(&client, schema).await;
    eventually("a new term", async || epoch(&client, schema).await > term).await;
    borrow_soon(&second).await;
    assert_eq!(borrow(&third).await, Err(BorrowError::Unavailable(Unavailable::Standby)));
    second.close().unwrap();
    borrow_soon(&third).await;
    for id in leases {
        let kept = third.keep_alive(id, None).await;
        assert!(matches!(kept, Ok(KeptAlive::Extended { .. })), "{kept:?}");
    }
    third.close().unwrap();
}

fn leader_of(store: &Store) -> Option<u64> {
    let (_, leader) = store.fleet()?;
    leader.borrow().as_ref().map(|leader| leader.epoch)
}
