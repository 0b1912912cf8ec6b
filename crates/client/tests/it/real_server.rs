//! The real server over TCP, in real time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tgm_session::{
    CloseReport, Dsn, Error, Pool, Released, Scope, SessionPool as _, SessionRequest, TgmPool,
    WorkerRequest,
};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};

const POLICY: &str = r#"
    [services.t1r]
    max_per_organization = 3
    max_per_api_key = 2
    minimal_life = "0s"
    [services.t2w]
    max_per_organization = 50
    [organizations.gone]
    disabled = true
"#;

const SOON: Duration = Duration::from_secs(40);

async fn serve(policy: &str, store: StoreUrl, port: u16) -> Running {
    let mut config = Config::new(Policy::parse(policy, "test.toml").unwrap().policy, store);
    config.listen.set_port(port);
    config.admin_listen.set_port(0);
    config.threads = 1;
    Server::bind(config).await.unwrap().start().await.unwrap()
}

pub(crate) async fn memory() -> Running {
    serve(POLICY, StoreUrl::Memory, 0).await
}

fn on_disk(path: &Path) -> StoreUrl {
    StoreUrl::File { path: path.to_owned(), make_folders: false }
}

/// A pool, and the plugin behind it, which tests ask for what the server counts.
pub(crate) fn pool(address: SocketAddr, parameters: &str) -> (Pool, Arc<TgmPool>) {
    let dsn = Dsn::parse(&format!("tgm://{address}?plaintext=true&{parameters}")).unwrap();
    let plugin = Arc::new(TgmPool::from_dsn(&dsn).unwrap());
    (Pool::new(plugin.clone()), plugin)
}

fn stream(api_key: &str) -> SessionRequest {
    SessionRequest::new("t1r", "acme").api_key(api_key).trace(format!("trace-of-{api_key}"))
}

async fn held(plugin: &TgmPool) -> (u64, u64) {
    let count = async |service| plugin.state(service, "acme").await.unwrap().borrowed;
    (count("t1r").await, count("t2w").await)
}

/// Waits until the server counts the expected sessions and workers of the organization.
pub(crate) async fn until_held(plugin: &TgmPool, expected: (u64, u64)) {
    // A call may fail because it shares a failed attempt to connect from before the restart.
    let count =
        async |service| plugin.state(service, "acme").await.ok().map(|state| state.borrowed);
    let (sessions, workers) = expected;
    let reached = async {
        while (count("t1r").await, count("t2w").await) != (Some(sessions), Some(workers)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(SOON, reached).await.is_err() {
        panic!("the server counts {:?} and not {expected:?}", held(plugin).await);
    }
}

#[tokio::test]
async fn sessions_and_workers_are_borrowed_counted_refused_and_released() {
    let server = memory().await;
    let (pool, plugin) = pool(server.grpc_address(), "");
    let one = pool.borrow(stream("k1")).await.unwrap();
    let two = pool.borrow(stream("k1")).await.unwrap();
    let full = |active, max, scope| Error::ConcurrentStreamLimitExceeded { active, max, scope };
    assert_eq!(pool.borrow(stream("k1")).await.unwrap_err(), full(2, 2, Scope::ApiKey));
    let three = pool.borrow(stream("k2")).await.unwrap();
    assert_eq!(pool.borrow(stream("k3")).await.unwrap_err(), full(3, 3, Scope::Organization));

    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(three.borrow_worker("t2w", 4).await.unwrap());
    }
    let (active, max, scope) = (4, 4, Scope::Trace);
    assert_eq!(
        three.borrow_worker("t2w", 4).await.unwrap_err(),
        Error::WorkersLimitExceeded { active, max, scope }
    );
    assert_eq!(held(&plugin).await, (3, 4));

    // A release that resolved has freed the slot.
    assert_eq!(workers.pop().unwrap().release().await, Ok(Released::Returned));
    assert_eq!(held(&plugin).await, (3, 3));
    assert!(three.borrow_worker("t2w", 4).await.is_ok());
    assert_eq!(one.release().await, Ok(Released::Returned));
    let again = pool.borrow(stream("k1")).await.unwrap();
    drop((two, three, workers, again));
    until_held(&plugin, (0, 0)).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_limit_on_the_workers_of_a_session_holds_without_a_trace() {
    let server = memory().await;
    let (pool, plugin) = pool(server.grpc_address(), "");
    let request = || SessionRequest::new("t1r", "acme");
    let (one, other) = (pool.borrow(request()).await.unwrap(), pool.borrow(request()).await);
    let (active, max, scope) = (2, 2, Scope::Trace);
    let full = Error::WorkersLimitExceeded { active, max, scope };
    let mut workers = Vec::new();
    for session in [&one, &other.unwrap()] {
        workers.push(session.borrow_worker("t2w", 2).await.unwrap());
        workers.push(session.borrow_worker("t2w", 2).await.unwrap());
        assert_eq!(session.borrow_worker("t2w", 2).await.unwrap_err(), full);
    }
    // A session that the plugin borrows without guards has a trace, too.
    let lease = plugin.borrow_session(request()).await.unwrap();
    for _ in 0..2 {
        plugin.borrow_worker(&lease, WorkerRequest::new("t2w", 2)).await.unwrap();
    }
    let refused = plugin.borrow_worker(&lease, WorkerRequest::new("t2w", 2)).await;
    assert_eq!(refused.unwrap_err(), full);
}

#[tokio::test]
async fn a_session_younger_than_its_minimal_life_lingers_and_keeps_its_slot() {
    let server = memory().await;
    let (pool, plugin) = pool(server.grpc_address(), "");
    let session = pool.borrow(stream("k1")).await.unwrap();
    let released = session.release_after(Duration::from_millis(1234)).await;
    assert_eq!(released, Ok(Released::Lingers));
    assert_eq!(held(&plugin).await, (1, 0));
    until_held(&plugin, (0, 0)).await;
}

#[tokio::test]
async fn refusals_that_are_no_limit_keep_their_kind() {
    let server = memory().await;
    let (pool, _) = pool(server.grpc_address(), "borrow-wait=1h");
    let disabled = pool.borrow(SessionRequest::new("t1r", "gone")).await.unwrap_err();
    assert!(matches!(disabled, Error::PermissionDenied { .. }), "{disabled}");
    let unknown = pool.borrow(SessionRequest::new("nothing", "acme")).await.unwrap_err();
    assert!(matches!(unknown, Error::InvalidArgument { .. }), "{unknown}");
    assert!(unknown.to_string().contains("nothing"), "{unknown}");
}

#[tokio::test]
async fn a_request_without_an_organization_counts_for_the_default_organization() {
    let nameless = || SessionRequest::new("t1r", "");
    let server = memory().await;
    let (refusing, _) = pool(server.grpc_address(), "");
    let refused = refusing.borrow(nameless()).await.unwrap_err();
    assert!(refused.to_string().contains("no default_organization is set"), "{refused}");
    server.stop().await.unwrap();

    let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
    config.listen.set_port(0);
    config.admin_listen.set_port(0);
    let server = Server::bind(config).await.unwrap().start().await.unwrap();
    let (pool, plugin) = pool(server.grpc_address(), "");
    let session = pool.borrow(nameless()).await.unwrap();
    assert_eq!(plugin.state("t1r", "anonymous").await.unwrap().borrowed, 1);
    drop(session);

    let local = tgm_session::connect("local://?max_sessions_per_organization=1").await.unwrap();
    let _session = local.borrow(nameless()).await.unwrap();
    let refused = local.borrow(SessionRequest::new("t1r", "anonymous")).await.unwrap_err();
    let (active, max, scope) = (1, 1, Scope::Organization);
    assert_eq!(refused, Error::ConcurrentStreamLimitExceeded { active, max, scope });
}

#[tokio::test]
async fn the_server_knows_an_indexer_by_the_key_of_its_url() {
    // The digest of `s3cret`, as a policy holds it.
    let policy = format!(
        "{POLICY}\n[[indexers]]\nname = \"west\"\nkey_sha256 = \"{}\"\n",
        "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0"
    );
    let server = serve(&policy, StoreUrl::Memory, 0).await;
    let (stranger, _) = pool(server.grpc_address(), "");
    let refused = stranger.borrow(stream("k1")).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthenticated { .. }), "{refused}");
    let (known, plugin) = pool(server.grpc_address(), "indexer-api-key=s3cret");
    let session = known.borrow(stream("k1")).await.unwrap();
    assert_eq!(session.release().await, Ok(Released::Returned));
    assert_eq!(held(&plugin).await, (0, 0));
}

#[tokio::test]
async fn a_close_leaves_nothing_on_the_server() {
    let server = memory().await;
    let (pool, plugin) = pool(server.grpc_address(), "minimal-worker-life-duration=1h");
    let mut guards = Vec::new();
    for key in ["k1", "k2", "k3"] {
        let session = pool.borrow(stream(key)).await.unwrap();
        let worker = session.borrow_worker("t2w", 9).await.unwrap();
        guards.push((session, worker));
    }
    assert_eq!(held(&plugin).await, (3, 3));
    let report = pool.close(SOON).await;
    assert_eq!(report, CloseReport { returned: 6, not_returned: 0 });
    // The slots are free, so the next process is not refused.
    assert_eq!(held(&plugin).await, (0, 0));
    for (session, worker) in &guards {
        assert_eq!((session.ended().await, worker.ended().await), (Error::Closed, Error::Closed));
    }
}

#[tokio::test]
async fn borrows_dropped_at_any_point_leave_nothing_on_the_server() {
    let server = memory().await;
    let (pool, plugin) = pool(server.grpc_address(), "");
    for polls in 0..40u64 {
        // The borrow is dropped after this time, at whatever point it waits.
        let patience = Duration::from_micros(polls * 50);
        drop(tokio::time::timeout(patience, pool.borrow(stream("k1"))).await);
    }
    until_held(&plugin, (0, 0)).await;
    assert_eq!(pool.close(SOON).await.not_returned, 0);
    assert_eq!(held(&plugin).await, (0, 0));
}

#[tokio::test]
async fn many_guards_dropped_in_any_order_leave_nothing_on_the_server() {
    let server = memory().await;
    let (pool, plugin) = pool(server.grpc_address(), "");
    for round in 0..20 {
        let session = pool.borrow(stream("k1")).await.unwrap();
        let workers = (0..10).map(|_| session.borrow_worker("t2w", 10));
        let workers = futures_util::future::try_join_all(workers).await.unwrap();
        if round % 2 == 0 {
            drop((session, workers));
        } else {
            drop((workers, session));
        }
        // Every round must free all its slots.
        until_held(&plugin, (0, 0)).await;
    }
}

#[tokio::test]
async fn a_server_that_forgot_everything_grants_the_same_sessions_and_workers_again() {
    let server = memory().await;
    let address = server.grpc_address();
    let (pool, plugin) = pool(address, "request-keep-alive-delay=200ms");
    let session = pool.borrow(stream("k1")).await.unwrap();
    let worker = session.borrow_worker("t2w", 9).await.unwrap();
    let keys = (session.key(), worker.key());
    server.stop().await.unwrap();
    let server = serve(POLICY, StoreUrl::Memory, address.port()).await;
    until_held(&plugin, (1, 1)).await;
    assert_ne!((session.key(), worker.key()), keys);
    assert_eq!((session.end_reason(), worker.end_reason()), (None, None));
    assert_eq!(session.release().await, Ok(Released::Returned));
    assert_eq!(held(&plugin).await, (0, 0));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_restarted_on_its_file_knows_every_lease_by_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("leases");
    let server = serve(POLICY, on_disk(&file), 0).await;
    let address = server.grpc_address();
    let (pool, plugin) = pool(address, "request-keep-alive-delay=200ms");
    let session = pool.borrow(stream("k1")).await.unwrap();
    let worker = session.borrow_worker("t2w", 9).await.unwrap();
    let keys = (session.key(), worker.key());
    server.stop().await.unwrap();
    let server = serve(POLICY, on_disk(&file), address.port()).await;
    let seen = session.keep_alives();
    let kept = async {
        while session.keep_alives() == seen {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, kept).await.unwrap();
    assert_eq!((session.key(), worker.key()), keys);
    assert_eq!(held(&plugin).await, (1, 1));
    assert_eq!(pool.close(SOON).await, CloseReport { returned: 2, not_returned: 0 });
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_a_restarted_server_refuses_ends_as_lost() {
    let server = memory().await;
    let address = server.grpc_address();
    let (pool, _) = pool(address, "request-keep-alive-delay=200ms");
    let session = pool.borrow(stream("k1")).await.unwrap();
    let worker = session.borrow_worker("t2w", 9).await.unwrap();
    server.stop().await.unwrap();
    let closed = POLICY.replace("max_per_organization = 3", "max_per_organization = 0");
    let _server = serve(&closed, StoreUrl::Memory, address.port()).await;
    let (active, max, scope) = (0, 0, Scope::Organization);
    let cause = Error::ConcurrentStreamLimitExceeded { active, max, scope };
    let reason = tokio::time::timeout(SOON, session.ended()).await.unwrap();
    assert_eq!(reason, Error::Lost { cause: Box::new(cause) });
    assert_eq!(worker.ended().await, reason);
}
