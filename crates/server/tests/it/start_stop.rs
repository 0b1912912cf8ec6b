//! How a server starts and stops.

use std::net::SocketAddr;
use std::time::Duration;

use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Error, Server};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::worker::keep_alive_response::Status as Kept;

use crate::harness::{ManualClock, ROOMY, TestServer, channel, config, eventually, get, session};
use store::testing::Disk;

#[tokio::test]
async fn a_taken_port_is_refused_by_name() {
    let server = TestServer::memory(ROOMY).await;
    let taken = [server.running.grpc_address(), server.running.admin_address()];
    for address in taken {
        for grpc in [true, false] {
            let mut config = config(ROOMY, &server.clock, StoreUrl::Memory);
            if grpc {
                config.listen = address
            } else {
                config.admin_listen = address
            }
            let error = Server::bind(config).await.unwrap_err();
            assert!(matches!(error, Error::Listen { .. }), "{error:?}");
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
    }
}

#[tokio::test]
async fn no_port_is_open_unless_both_ports_are_bound() {
    let server = TestServer::memory(ROOMY).await;
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.admin_listen = server.running.admin_address();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    config.listen = free;
    Server::bind(config).await.unwrap_err();
    assert!(TcpStream::connect(free).await.is_err(), "the gRPC port was let go again");
}

#[tokio::test]
async fn an_address_off_loopback_needs_indexers_or_allow_anonymous() {
    let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let clock = ManualClock::new();
    let mut open = config(ROOMY, &clock, StoreUrl::Memory);
    open.listen = everywhere;
    let error = Server::bind(open).await.unwrap_err();
    assert!(matches!(error, Error::Anonymous { .. }), "{error:?}");

    let mut told = config(ROOMY, &clock, StoreUrl::Memory);
    (told.listen, told.allow_anonymous) = (everywhere, true);
    Server::bind(told).await.unwrap();

    let indexers = format!("[[indexers]]\nname = \"west\"\nkey_sha256 = \"{}\"", "0".repeat(64));
    let mut keyed = config(&indexers, &clock, StoreUrl::Memory);
    keyed.listen = everywhere;
    Server::bind(keyed).await.unwrap();

    let mut exposed = config(ROOMY, &clock, StoreUrl::Memory);
    exposed.admin_listen = everywhere;
    let error = Server::bind(exposed).await.unwrap_err();
    assert!(matches!(error, Error::AdminExposed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stopping_server_finishes_the_calls_under_way_and_takes_no_new_ones() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let (grpc, admin) = (server.running.grpc_address(), server.running.admin_address());
    let mut idle = server.client();
    let key = idle.borrow(session("acme")).await;
    disk.hold();
    let mut client = server.client();
    let under_way = tokio::spawn(async move { client.borrow(session("acme")).await });
    eventually("the grant is applied", || async { server.live().await == 2 }).await;

    let stopping = tokio::spawn(server.running.stop());
    eventually("the port is closed", || async { TcpStream::connect(grpc).await.is_err() }).await;
    let (status, body) = get(admin, "/readyz", "").await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(idle.keep_alive(&key).await.unwrap_err().code(), Code::Unavailable);
    assert!(!under_way.is_finished() && !stopping.is_finished());
    disk.release();
    under_way.await.unwrap();
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_health_watch_is_notified_of_a_stop_and_does_not_delay_it() {
    let server = TestServer::memory(ROOMY).await;
    let mut health = HealthClient::new(channel(server.running.grpc_address()));
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1, "serving");
    let stopping = tokio::spawn(server.running.stop());
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2, "not serving");
    assert!(watch.message().await.unwrap().is_none());
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_runs_until_it_is_told_to_stop() {
    let clock = ManualClock::new();
    let server = Server::bind(config(ROOMY, &clock, StoreUrl::Memory)).await.unwrap();
    let grpc = server.grpc_address();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let key = crate::harness::Client::of(grpc).borrow(session("acme")).await;
    let kept = crate::harness::Client::of(grpc).keep_alive(&key).await.unwrap();
    assert_eq!(kept, Kept::TtlExtended);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(TcpStream::connect(grpc).await.is_err());
}

#[tokio::test]
async fn a_dropped_server_frees_its_ports_and_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.redb");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let (grpc, clock) = (server.running.grpc_address(), server.clock.clone());
    drop(server);
    let mut again =
        config(ROOMY, &clock, StoreUrl::File { path: path.clone(), make_folders: false });
    again.listen = grpc;
    let server = TestServer::start(again, clock).await;
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

/// A clock that blocks its readers while the test holds it.
#[derive(Debug, Default)]
struct HeldClock {
    is_held: parking_lot::Mutex<bool>,
    changed: parking_lot::Condvar,
}

impl HeldClock {
    fn hold(&self, hold: bool) {
        *self.is_held.lock() = hold;
        self.changed.notify_all();
    }
}

impl tgm_session_server::Clock for HeldClock {
    fn monotonic(&self) -> Duration {
        self.changed.wait_while(&mut self.is_held.lock(), |is_held| *is_held);
        Duration::from_secs(1)
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_800_000_000)
    }
}

#[tokio::test]
async fn a_server_responds_unless_a_thread_of_it_hangs() {
    let clock = std::sync::Arc::new(HeldClock::default());
    let mut config = config(ROOMY, &ManualClock::new(), StoreUrl::Memory);
    (config.clock, config.threads) = (clock.clone(), 1);
    let running = Server::bind(config).await.unwrap().start().await.unwrap();
    assert!(running.responds().await);

    clock.hold(true);
    let mut client = crate::harness::Client::of(running.grpc_address());
    let borrow = tokio::spawn(async move { client.borrow(session("acme")).await });
    // The test cannot see when the thread begins to hang, so it tries until then.
    eventually("the server no longer responds", || async {
        tokio::time::timeout(Duration::from_millis(200), running.responds()).await.is_err()
    })
    .await;
    clock.hold(false);
    assert!(running.responds().await);
    borrow.await.unwrap();
    running.stop().await.unwrap();
}
