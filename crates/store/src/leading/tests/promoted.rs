//! A primary dies, and its asynchronous replica, which lacks the last changes, takes its place.

use std::net::TcpListener;
use std::sync::Mutex;

use lease::KeptAlive;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;

/// A port that leads to a database, and to another one when that takes its place.
struct Proxy {
    port: u16,
    to: Arc<Mutex<u16>>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Proxy {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (to, connections) = (Arc::new(Mutex::new(to)), Arc::<Mutex<JoinSet<()>>>::default());
        let proxy = Self { port, to: to.clone(), connections: connections.clone() };
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = *to.lock().unwrap();
                connections.lock().unwrap().spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        proxy
    }

    /// Breaks all connections, and leads to `port` from now on.
    fn lead_to(&self, port: u16) {
        *self.to.lock().unwrap() = port;
        self.connections.lock().unwrap().abort_all();
    }
}

async fn kept(store: &Store, id: LeaseId) -> bool {
    matches!(store.keep_alive(id, None).await, Ok(KeptAlive::Extended { .. }))
}

async fn count(client: &tokio_postgres::Client) -> i64 {
    let leases = client.query_one("SELECT count(*) FROM promoted.leases", &[]).await;
    leases.map_or(0, |row| row.get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_grant_that_was_acknowledged_is_lost_with_a_primary_while_the_leader_lives() {
    let Some(mut primary) = Cluster::start() else { return };
    let replica = primary.replica();
    let proxy = Proxy::start(primary.port);
    let url = || url(proxy.port, "promoted");
    let leader = open_url(url(), "10.0.0.1:9010").await;
    let early = borrow_soon(&leader).await;
    let standby = open_url(url(), "10.0.0.2:9010").await;
    let returned = borrow_soon(&leader).await;

    // The replica has what was until now, and nothing that comes later.
    let client = connect(&replica).await;
    eventually("the replica follows", async || count(&client).await == 2).await;
    client.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
    let is_cut = async || client.query_one(receivers, &[]).await.unwrap().get::<_, i64>(0) == 0;
    eventually("the replica is cut off", is_cut).await;

    let (callers, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (store, granted, stop) = (leader.clone(), callers.clone(), stop.clone());
        tasks.spawn(async move {
            while stop.load(Ordering::Relaxed) == 0 {
                match borrow(&store).await {
                    Ok(id) => granted.lock().unwrap().push(id),
                    Err(BorrowError::Unavailable(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    let granted = || callers.lock().unwrap().len();
    eventually("grants that the replica lacks", async || granted() > 200).await;
    let released = leader.release(returned, None, Duration::ZERO).await;
    assert!(matches!(released, Ok(lease::Released::Returned)), "{released:?}");

    primary.kill();
    replica.promote();
    assert_eq!(count(&client).await, 2, "the replica lacks all of them");
    let before = granted();
    proxy.lead_to(replica.port);
    eventually("more grants", async || granted() > before + 200).await;
    stop.store(1, Ordering::Relaxed);
    while tasks.join_next().await.is_some() {}
    assert!(leader.leads() && !standby.leads());

    leader.close().unwrap();
    borrow_soon(&standby).await;
    let all = callers.lock().unwrap().clone();
    for id in all.iter().chain([&early]) {
        assert!(kept(&standby, *id).await, "{id:?} of {}", all.len());
    }
    assert!(!kept(&standby, returned).await, "what was returned has come back");
    assert_eq!(standby.live().await.unwrap()[0].1, all.len() as u64 + 2);
    standby.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_away_for_long_does_not_undo_what_was_granted_since() {
    let Some(primary) = Cluster::start() else { return };
    // The replica stays at the first term.
    let first = open_url(url(primary.port, "promoted"), "10.0.0.1:9010").await;
    let shared = borrow_soon(&first).await;
    first.close().unwrap();
    let replica = primary.replica();
    let client = connect(&replica).await;
    client.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
    let is_cut = async || client.query_one(receivers, &[]).await.unwrap().get::<_, i64>(0) == 0;
    eventually("the replica is cut off", is_cut).await;

    // Two more terms follow, which it lacks. The leader of the last one is cut off from the databases.
    let second = open_url(url(primary.port, "promoted"), "10.0.0.2:9010").await;
    borrow_soon(&second).await;
    second.close().unwrap();
    let proxy = Proxy::start(primary.port);
    let away = open_url(url(proxy.port, "promoted"), "10.0.0.3:9010").await;
    let lost = borrow_soon(&away).await;
    proxy.lead_to(1);
    eventually("its validity has lapsed", async || {
        away.keep_alive(lost, None).await == Err(Unavailable::Lapsed)
    })
    .await;

    // The replica takes the place of the primary, and another server leads and grants.
    replica.promote();
    let now = open_url(url(replica.port, "promoted"), "10.0.0.4:9010").await;
    let granted = borrow_soon(&now).await;
    proxy.lead_to(replica.port);
    eventually("it yields", async || {
        away.keep_alive(lost, None).await == Err(Unavailable::Standby)
    })
    .await;
    assert!(kept(&now, granted).await && kept(&now, shared).await);
    assert!(!kept(&now, lost).await, "its client borrows again");
    borrow(&now).await.unwrap();
    assert!(now.leads() && !away.leads());
    now.close().unwrap();
    away.close().unwrap();
}

#[tokio::test]
async fn a_replica_is_refused_as_a_store() {
    let Some(primary) = Cluster::start() else { return };
    let replica = primary.replica();
    let url = url(replica.port, "replica").parse().unwrap();
    let opened = tokio::task::spawn_blocking(move || Recovered::open(&url, Options::default()));
    let refused = opened.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("only the primary can be a store"), "{refused}");
}
