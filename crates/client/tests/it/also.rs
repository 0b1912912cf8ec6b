//! Several servers, listed by the parameter `also`. Ports in front of one real server stand for the
//! servers of a fleet: they share what is counted.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tgm_session::{CloseReport, Error, Pool, PoolStats, Released, SessionRequest, TgmPool};
use tgm_session_server::Running;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::real_server::{memory, pool, until_held};

const SOON: Duration = Duration::from_secs(40);

/// A port in front of a server. When it is dropped, it listens no more and its connections break.
struct Front {
    address: SocketAddr,
    came: Arc<AtomicUsize>,
    connections: Arc<parking_lot::Mutex<JoinSet<()>>>,
    frozen: Arc<AtomicBool>,
    accepting: AbortHandle,
}

impl Front {
    /// A free port, behind which `server` answers.
    async fn of(server: &Arc<Running>) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), Some(server.clone())).await
    }

    /// A free port where connections are accepted and nobody answers.
    async fn hanging() -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), None).await
    }

    async fn at(address: SocketAddr, server: Option<Arc<Running>>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (came, connections) = (Arc::<AtomicUsize>::default(), Arc::default());
        let frozen = Arc::<AtomicBool>::default();
        let (counted, is_frozen) = (came.clone(), frozen.clone());
        let open: Arc<parking_lot::Mutex<JoinSet<()>>> = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                open.lock().spawn(serve(stream, server.clone(), is_frozen.clone()));
            }
        });
        Self { address, came, connections, frozen, accepting: accepting.abort_handle() }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::Relaxed)
    }

    /// Answers nothing any more. Connections stay open, and new ones are accepted.
    fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }

    /// Breaks the connections. New ones are accepted.
    async fn cut(&self) {
        let mut connections = std::mem::take(&mut *self.connections.lock());
        connections.shutdown().await;
    }
}

async fn serve(stream: TcpStream, server: Option<Arc<Running>>, frozen: Arc<AtomicBool>) {
    let Some(server) = server else {
        let _open = stream;
        return std::future::pending().await;
    };
    let mut served = pin!(server.serve_stream(stream));
    poll_fn(|cx| match frozen.load(Ordering::Relaxed) {
        true => Poll::Pending,
        false => served.as_mut().poll(cx),
    })
    .await
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
        self.connections.lock().abort_all();
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A pool of several servers.
fn pool_of(servers: &[SocketAddr], parameters: &str) -> (Pool, Arc<TgmPool>) {
    let further: Vec<_> = servers[1..].iter().map(ToString::to_string).collect();
    pool(servers[0], &format!("also={}&{parameters}", further.join(",")))
}

fn stream() -> SessionRequest {
    SessionRequest::new("t1r", "acme").trace("trace")
}

async fn borrow_and_release(pool: &Pool) {
    pool.borrow(stream()).await.unwrap().release().await.unwrap();
}

/// Waits until `is_so` of what the pool says of itself.
async fn until(pool: &Pool, is_so: impl Fn(PoolStats) -> bool) {
    let reached = async {
        while !is_so(pool.stats()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{:?}", pool.stats()));
}

#[tokio::test]
async fn a_borrow_succeeds_at_the_second_server_when_the_first_is_gone() {
    let server = Arc::new(memory().await);
    let front = Front::of(&server).await;
    for servers in [[nobody().await, front.address], [front.address, nobody().await]] {
        let (pool, plugin) = pool_of(&servers, "on-unavailable=allow");
        let session = pool.borrow(stream()).await.unwrap();
        until_held(&plugin, (1, 0)).await;
        assert_eq!(session.release().await, Ok(Released::Returned));
        let stats = pool.stats();
        assert_eq!((stats.failed_open, stats.retried), (0, 0));
    }
    assert_eq!(front.came(), 2);
}

#[tokio::test]
async fn leases_are_kept_alive_at_the_second_server_when_the_first_dies() {
    let server = Arc::new(memory().await);
    let (first, second) = (Front::of(&server).await, Front::of(&server).await);
    let servers = [first.address, second.address];
    let (pool, plugin) = pool_of(&servers, "request-keep-alive-delay=200ms");
    let session = pool.borrow(stream()).await.unwrap();
    let worker = session.borrow_worker("t2w", 9).await.unwrap();
    let keys = (session.key(), worker.key());
    until(&pool, |stats| stats.attached && stats.kept_alive > 2).await;
    assert_eq!(second.came(), 0);

    drop(first);
    until(&pool, |stats| !stats.attached).await;
    let seen = pool.stats().kept_alive;
    until(&pool, |stats| stats.attached && stats.kept_alive > seen + 4).await;
    assert_eq!(second.came(), 1);
    assert_eq!((session.key(), worker.key()), keys);
    assert_eq!((session.end_reason(), worker.end_reason()), (None, None));
    let other = pool.borrow(stream()).await.unwrap();
    until_held(&plugin, (2, 1)).await;

    let stats = pool.stats();
    assert_eq!((stats.borrowed_again, stats.lost, stats.failed_open), (0, 0, 0));
    assert_eq!(other.release().await, Ok(Released::Returned));
    assert_eq!(pool.close(SOON).await, CloseReport { returned: 2, not_returned: 0 });
    until_held(&plugin, (0, 0)).await;
}

#[tokio::test]
async fn a_borrow_fails_with_the_usual_error_when_every_server_is_gone() {
    let servers = [nobody().await, nobody().await];
    let (pool, _) = pool_of(&servers, "borrow-timeout=300ms");
    let Error::Unavailable { message, .. } = pool.borrow(stream()).await.unwrap_err() else {
        panic!("another error")
    };
    for server in servers {
        assert!(message.contains(&server.to_string()), "{message}");
    }
    assert!(message.contains("Connection refused"), "{message}");
}

#[tokio::test]
async fn a_pool_fails_open_only_when_no_server_answers_and_borrows_from_the_first_that_does() {
    let server = Arc::new(memory().await);
    let (first, second) = (Front::of(&server).await, Front::of(&server).await);
    let servers = [first.address, second.address];
    let parameters = "on-unavailable=allow&borrow-timeout=500ms&request-keep-alive-delay=200ms";
    let (pool, plugin) = pool_of(&servers, parameters);
    let one = pool.borrow(stream()).await.unwrap();
    drop(first);
    let two = pool.borrow(stream()).await.unwrap();
    assert_eq!(pool.stats().failed_open, 0);
    drop(second);
    let three = pool.borrow(stream()).await.unwrap();
    assert!(three.key().starts_with("offline-"), "{}", three.key());
    assert_eq!(pool.stats().failed_open, 1);
    let _second = Front::at(servers[1], Some(server)).await;
    until_held(&plugin, (3, 0)).await;
    assert!([&one, &two, &three].iter().all(|session| session.end_reason().is_none()));
    assert!(!three.key().starts_with("offline-"), "{}", three.key());
}

#[tokio::test]
async fn one_attempt_to_connect_goes_on_from_a_server_that_accepts_and_sends_nothing() {
    let server = Arc::new(memory().await);
    let (hanging, front) = (Front::hanging().await, Front::of(&server).await);
    let (pool, _) = pool_of(&[hanging.address, front.address], "borrow-timeout=30s");
    let session = pool.borrow(stream()).await.unwrap();
    assert_eq!(session.release().await, Ok(Released::Returned));
    // A second attempt would have come to the silent server again.
    assert_eq!((hanging.came(), front.came(), pool.stats().retried), (1, 1, 0));
}

#[tokio::test]
async fn a_borrow_succeeds_at_the_second_server_when_the_first_freezes() {
    let server = Arc::new(memory().await);
    let (first, second) = (Front::of(&server).await, Front::of(&server).await);
    // With one server alone the pool is patient for longer than this.
    let (pool, plugin) = pool_of(&[first.address, second.address], "borrow-timeout=12s");
    let session = pool.borrow(stream()).await.unwrap();
    first.freeze();
    let other = pool.borrow(stream()).await.unwrap();
    until_held(&plugin, (2, 0)).await;
    assert_eq!((session.end_reason(), other.end_reason()), (None, None));
    // The frozen server was not tried first.
    assert_eq!((first.came(), second.came()), (1, 1));
}

#[tokio::test]
async fn a_pool_stays_at_its_server_and_begins_with_it_when_it_connects_again() {
    let server = Arc::new(memory().await);
    let (first, second) = (Front::of(&server).await, Front::of(&server).await);
    let servers = [first.address, second.address];
    let (pool, _) = pool_of(&servers, "");
    let _session = pool.borrow(stream()).await.unwrap();
    drop(first);
    borrow_and_release(&pool).await;
    let first = Front::at(servers[0], Some(server)).await;
    borrow_and_release(&pool).await;
    assert_eq!((first.came(), second.came()), (0, 1));
    second.cut().await;
    borrow_and_release(&pool).await;
    assert_eq!((first.came(), second.came()), (0, 2));
    drop(second);
    borrow_and_release(&pool).await;
    assert_eq!(first.came(), 1);
}

#[tokio::test]
async fn a_server_that_stops_fails_no_borrow_and_ends_no_session() {
    let (first, second) = (memory().await, memory().await);
    let servers = [first.grpc_address(), second.grpc_address()];
    let (pool, plugin) = pool_of(&servers, "request-keep-alive-delay=200ms");
    let session = pool.borrow(stream()).await.unwrap();
    let stopping = tokio::spawn(first.stop());
    // These servers share nothing, so the second one grants the session again.
    while pool.stats().borrowed_again == 0 || !stopping.is_finished() {
        borrow_and_release(&pool).await;
    }
    stopping.await.unwrap().unwrap();
    until_held(&plugin, (1, 0)).await;
    assert_eq!(session.end_reason(), None);
    assert_eq!(session.release().await, Ok(Released::Returned));
    second.stop().await.unwrap();
}
