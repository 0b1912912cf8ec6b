//! Futures that are dropped at every point where they wait, against the real server.
//!
//! The client, the pipe and the server's side of it run on one thread. So a future is polled
//! exactly when something has happened for it. Dropping it after its first poll, after its second
//! poll and so on covers every point at which it waits.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tgm_session::{Dsn, Pool, SessionRequest, TgmConfig, TgmPool};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};
use tokio::io::duplex;

const POLICY: &str = r#"
    [services.t1r]
    max_per_organization = 3
    minimal_life = "0s"
    [services.t2w]
    max_per_organization = 3
    minimal_life = "0s"
"#;

const SOON: Duration = Duration::from_secs(40);

struct World {
    server: Arc<Running>,
}

impl World {
    async fn new() -> Self {
        let policy = Policy::parse(POLICY, "test.toml").unwrap().policy;
        let mut config = Config::new(policy, StoreUrl::Memory);
        config.listen.set_port(0);
        config.admin_listen.set_port(0);
        config.threads = 1;
        Self { server: Arc::new(Server::bind(config).await.unwrap().start().await.unwrap()) }
    }

    /// A pool with a connection of its own, made by its first call.
    fn pool(&self) -> (Pool, Arc<TgmPool>) {
        let server = self.server.clone();
        let connect = move || {
            let (near, far) = duplex(64 * 1024);
            tokio::spawn(server.serve_stream(far));
            async { Ok(near) }
        };
        let dsn = Dsn::parse("tgm://here?plaintext=true").unwrap();
        let config = TgmConfig::from_dsn(&dsn).unwrap();
        let plugin = Arc::new(TgmPool::with_connector(&config, connect).unwrap());
        (Pool::new(plugin.clone()), plugin)
    }
}

/// Polls `future` at most `polls` times, each time after it was woken. Returns `None` if it was
/// dropped before it was ready.
async fn polled<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Waits until the server counts the expected leases, and checks that the pool holds as many.
async fn agree(pool: &Pool, plugin: &TgmPool, expected: (u64, u64)) {
    let counted = async || {
        let count = async |service| plugin.state(service, "acme").await.unwrap().borrowed;
        (count("t1r").await, count("t2w").await)
    };
    let reached = async {
        while counted().await != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(SOON, reached).await.is_err() {
        panic!("the server counts {:?} and not {expected:?}", counted().await);
    }
    let stats = pool.stats();
    assert_eq!((stats.sessions_held, stats.workers_held), expected);
}

fn stream() -> SessionRequest {
    SessionRequest::new("t1r", "acme").trace("trace")
}

/// Runs `story` with no poll, with one poll and so on, until it returns that nothing was dropped.
/// Returns how many points were covered.
async fn at_every_point(mut story: impl AsyncFnMut(usize) -> bool) -> usize {
    for polls in 0..1000 {
        if story(polls).await {
            return polls;
        }
    }
    panic!("a thousand polls and no end");
}

#[tokio::test]
async fn a_borrow_of_a_session_dropped_at_any_point_leaves_nothing_behind() {
    let world = World::new().await;
    let points = at_every_point(async |polls| {
        // A new pool each time: connecting is a part of the first borrow.
        let (pool, plugin) = world.pool();
        let session = polled(polls, pool.borrow(stream())).await;
        let held = u64::from(session.is_some());
        agree(&pool, &plugin, (held, 0)).await;
        let whole = session.map(Result::unwrap).is_some();
        agree(&pool, &plugin, (0, 0)).await;
        whole
    })
    .await;
    assert!(points >= 2, "{points}");
}

#[tokio::test]
async fn a_borrow_of_a_worker_dropped_at_any_point_leaves_nothing_behind() {
    let world = World::new().await;
    let (pool, plugin) = world.pool();
    let session = pool.borrow(stream()).await.unwrap();
    let points = at_every_point(async |polls| {
        let worker = polled(polls, session.borrow_worker("t2w", 3)).await;
        agree(&pool, &plugin, (1, u64::from(worker.is_some()))).await;
        let whole = worker.map(Result::unwrap).is_some();
        agree(&pool, &plugin, (1, 0)).await;
        whole
    })
    .await;
    assert!(points >= 2, "{points}");
}

#[tokio::test]
async fn a_release_happens_at_whatever_point_its_future_is_dropped() {
    let world = World::new().await;
    let (pool, plugin) = world.pool();
    let points = at_every_point(async |polls| {
        let session = pool.borrow(stream()).await.unwrap();
        let worker = session.borrow_worker("t2w", 3).await.unwrap();
        let of_worker = polled(polls, worker.release()).await;
        agree(&pool, &plugin, (1, 0)).await;
        let of_session = polled(polls, session.release()).await;
        agree(&pool, &plugin, (0, 0)).await;
        of_worker.is_some() && of_session.is_some()
    })
    .await;
    assert!(points >= 2, "{points}");
}

#[tokio::test]
async fn a_close_goes_on_at_whatever_point_its_future_is_dropped() {
    let world = World::new().await;
    let points = at_every_point(async |polls| {
        let (pool, plugin) = world.pool();
        let session = pool.borrow(stream()).await.unwrap();
        let worker = session.borrow_worker("t2w", 3).await.unwrap();
        let report = polled(polls, pool.close(SOON)).await;
        if polls == 0 {
            // The pool is still open, because the future was never polled.
            agree(&pool, &plugin, (1, 1)).await;
        } else {
            agree(&pool, &plugin, (0, 0)).await;
            assert!(session.end_reason().is_some() && worker.end_reason().is_some());
        }
        report.is_some()
    })
    .await;
    assert!(points >= 2, "{points}");
}

#[tokio::test]
async fn waiting_for_the_end_of_a_session_may_be_given_up_and_begun_again_at_any_point() {
    let world = World::new().await;
    let points = at_every_point(async |polls| {
        let (pool, plugin) = world.pool();
        let session = pool.borrow(stream()).await.unwrap();
        let (reason, report) = tokio::join!(polled(polls, session.ended()), async {
            tokio::task::yield_now().await;
            pool.close(SOON).await
        });
        assert_eq!(report.returned, 1);
        // Another call returns the same reason.
        assert_eq!(session.ended().await, tgm_session::Error::Closed);
        agree(&pool, &plugin, (0, 0)).await;
        reason.is_some()
    })
    .await;
    assert!(points >= 2, "{points}");
}
