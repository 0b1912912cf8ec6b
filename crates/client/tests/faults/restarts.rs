//! Restarts of a server that keeps its leases on the disk. The tests run in real time, because a
//! paused runtime cannot wait for the thread of the journal.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tgm_session::{Error, Released};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::{Proxy, Weather, over_tcp};
use crate::world::{POLICY, Streams, is_silence, pool, stream};

/// A timeout that is much longer than every step of these tests.
const SOON: Duration = Duration::from_secs(20);

/// A server on a file. Tests stop it and start it again on the same port.
struct Machine {
    policy: String,
    folder: tempfile::TempDir,
    address: SocketAddr,
    running: Option<Running>,
}

impl Machine {
    async fn start(ttl: &str) -> Self {
        let policy = POLICY.replace("minimal_life", &format!("ttl = \"{ttl}\"\nminimal_life"));
        let folder = tempfile::tempdir().unwrap();
        let running = serve(&policy, folder.path(), 0).await;
        let address = running.grpc_address();
        Self { policy, folder, address, running: Some(running) }
    }

    /// Ends the server at once, without draining.
    fn kill(&mut self) {
        drop(self.running.take().expect("a server runs"));
    }

    /// Stops the server gracefully: it drains, and informs the attached clients.
    async fn stop(&mut self) {
        self.running.take().expect("a server runs").stop().await.unwrap();
    }

    async fn start_again(&mut self) {
        let running = serve(&self.policy, self.folder.path(), self.address.port()).await;
        self.running = Some(running);
    }

    async fn held(&self) -> (u64, u64) {
        let store = self.running.as_ref().expect("a server runs").store();
        let count = async |service| store.state(service, "acme").await.unwrap().leases;
        (count("t1r").await, count("t2w").await)
    }

    async fn until_held(&self, expected: (u64, u64)) {
        let reached = async {
            while self.held().await != expected {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SOON, reached).await.is_err() {
            panic!("{:?} and never {expected:?}", self.held().await);
        }
    }
}

async fn serve(policy: &str, folder: &Path, port: u16) -> Running {
    let store = StoreUrl::File { path: folder.join("leases"), make_folders: false };
    let mut config = Config::new(Policy::parse(policy, "test.toml").unwrap().policy, store);
    config.listen.set_port(port);
    config.admin_listen.set_port(0);
    config.threads = 1;
    Server::bind(config).await.unwrap().start().await.unwrap()
}

#[tokio::test]
async fn a_server_killed_or_stopped_and_started_again_on_its_file_keeps_every_session_and_slot() {
    let mut machine = Machine::start("1m").await;
    let (pool, _plugin) = pool(machine.address, "request-keep-alive-delay=100ms");
    let mut streams = Streams::begin(&pool, 5).await;
    for round in 0..4 {
        if round % 2 == 0 {
            machine.kill();
        } else {
            machine.stop().await;
        }
        // One session is released and one is borrowed while no server runs.
        let (gone, workers) = streams.0.pop().unwrap();
        let released = tokio::spawn(gone.release());
        let (begun, ()) = tokio::join!(pool.borrow(stream(format!("r{round}"))), async {
            sleep(Duration::from_millis(200)).await;
            machine.start_again().await;
        });
        assert_eq!(released.await.unwrap(), Ok(Released::Returned));
        drop(workers);
        let begun = begun.unwrap();
        let (sessions, workers) = streams.slots();
        machine.until_held((sessions + 1, workers)).await;
        drop(begun);
        machine.until_held(streams.slots()).await;
    }
    // The server still knows every session: it extends each one, and no key changes.
    let keys = streams.keys();
    let kept: Vec<u64> = streams.0.iter().map(|(session, _)| session.keep_alives()).collect();
    let beat = async {
        for ((session, _), kept) in streams.0.iter().zip(kept) {
            while session.keep_alives() == kept {
                sleep(Duration::from_millis(5)).await;
            }
        }
    };
    timeout(SOON, beat).await.unwrap();
    assert_eq!(streams.keys(), keys);
    streams.assert_alive();
    assert_eq!(pool.close(SOON).await.not_returned, 0);
    assert_eq!(machine.held().await, (0, 0));
}

#[tokio::test]
async fn a_server_on_a_file_gone_for_longer_than_the_ttl_gets_back_what_it_still_counts() {
    let mut machine = Machine::start("2s").await;
    let proxy = Proxy::start(over_tcp(machine.address)).await.unwrap();
    let (pool, _plugin) = pool(proxy.address(), "");
    let streams = Streams::begin(&pool, 4).await;
    machine.kill();
    let gone = Instant::now();
    for (session, _) in &streams.0 {
        let reason = timeout(SOON, session.ended()).await.unwrap();
        assert!(is_silence(&reason), "{reason}");
    }
    let refused = pool.borrow(stream("new")).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    assert!(gone.elapsed() > Duration::from_secs(2), "{:?}", gone.elapsed());

    machine.start_again().await;
    // The server counts the lost sessions, because it does not know that they ended. The streams
    // then return them.
    assert_eq!(machine.held().await, streams.slots());
    proxy.set(Weather::default());
    drop(streams);
    machine.until_held((0, 0)).await;
    let session = pool.borrow(stream("new")).await.unwrap();
    assert_eq!(machine.held().await, (1, 0));
    drop(session);
    machine.until_held((0, 0)).await;
}
