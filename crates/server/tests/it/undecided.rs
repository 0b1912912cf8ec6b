//! Borrows on which the server cannot decide now. A session gets `UNAVAILABLE`. A worker gets the
//! status `resource_exhausted`, because Substreams retries a borrow only after that status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message as _;
use tgm_session_server::store::{Options, Recovered, StoreUrl};
use tgm_session_server::{Clock, Config, Server};
use tonic::{Code, Response};
use wire::worker::BorrowWorkerResponse;
use wire::worker::borrow_worker_response::BorrowStatus;

use crate::grpc_web;
use crate::harness::{
    Ask, Client, ManualClock, ROOMY, TestServer, config, eventually, get, session, text, worker,
};
use crate::limits::{HEADERS, PING, PREFACE, Raw, SETTINGS, frame, header_block};
use crate::stalled::{borrow_within, overdue, soon};
use store::testing::Disk;

const DATA: u8 = 0;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

fn a_worker() -> Ask {
    worker("acme", "trace", 3)
}

/// Checks that an answer makes a worker retry.
pub(crate) fn assert_busy(answer: &Response<BorrowWorkerResponse>) {
    let message = answer.get_ref();
    assert_eq!(message.status(), BorrowStatus::ResourceExhausted, "{answer:?}");
    assert_eq!(message.worker_key, "");
    let metadata = |name| text(answer.metadata(), name);
    assert_eq!(metadata("x-denied-scope").as_deref(), Some("server"), "{answer:?}");
    assert_eq!((metadata("x-denied-active"), metadata("x-denied-max")), (None, None));
}

/// Borrows a session and a worker, and checks that neither borrow is decided.
async fn neither(client: &mut Client, session: Ask, worker: Ask) {
    let status = client.ask(session).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_busy(&client.ask(worker).await.unwrap());
}

/// The value of a series on the metrics page; 0 if there is no such series.
async fn counted(server: &TestServer, series: &str) -> u64 {
    let (_, page) = get(server.running.admin_address(), "/metrics", "").await;
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |number| number.parse().unwrap())
}

async fn full(set: impl FnOnce(&mut Config)) -> TestServer {
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.max_leases = 1;
    set(&mut config);
    let server = TestServer::start(config, clock).await;
    server.client().borrow(session("first")).await;
    server
}

#[tokio::test]
async fn a_server_with_all_the_leases_it_may_have_counts_each_borrow_by_its_answer() {
    let server = full(|_| {}).await;
    let mut client = server.client();
    for _ in 0..3 {
        neither(&mut client, session("acme"), a_worker()).await;
    }
    let series = |service, outcome, scope| {
        format!(
            "tgm_session_borrows_total{{service=\"{service}\",outcome=\"{outcome}\",scope=\"{scope}\"}}"
        )
    };
    assert_eq!(counted(&server, &series("t2w", "server_busy", "server")).await, 3);
    assert_eq!(counted(&server, &series("t2w", "unavailable", "")).await, 0);
    assert_eq!(counted(&server, &series("t1r", "unavailable", "")).await, 3);
    assert_eq!(counted(&server, &series("t1r", "server_busy", "server")).await, 0);
    let refused = "tgm_session_calls_refused_total{method=\"BorrowWorker\",code=\"UNAVAILABLE\"}";
    assert_eq!(counted(&server, refused).await, 3, "a worker was not refused");
    // An invalid request is refused as invalid, although the server is full.
    let status = client.ask(a_worker().service("")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn a_worker_of_grpc_web_is_told_to_try_again_too() {
    let server = full(|_| {}).await;
    for (ask, scope, status) in
        [(a_worker(), Some("server"), None), (session("acme"), None, Some("14"))]
    {
        let answer = grpc_web::call_borrow(&server, &ask.message).await;
        assert_eq!(answer.header("x-denied-scope"), scope, "{answer:?}");
        assert_eq!(answer.header("grpc-status"), status, "{answer:?}");
    }
}

#[tokio::test]
async fn a_worker_that_waits_for_a_disk_that_hangs_is_told_to_try_again_and_holds_nothing() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    disk.hold();
    let mut client = server.client();
    let waits = tokio::spawn(async move { client.ask(a_worker()).await });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    let mut client = server.client();
    let gathers = tokio::spawn(async move { client.ask(a_worker()).await });
    eventually("both are applied", || async { server.live().await == 2 }).await;
    server.pass(Duration::from_secs(10));
    assert_busy(&soon(waits).await.unwrap());
    assert_busy(&soon(gathers).await.unwrap());
    eventually("both are taken back", || async { server.live().await == 0 }).await;
    // While the disk hangs, later borrows are answered without waiting.
    neither(&mut server.client(), session("acme"), a_worker()).await;
    disk.release();
}

#[tokio::test]
async fn a_worker_whose_deadline_passes_on_the_server_is_told_to_try_again() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    disk.hold();
    let address = server.running.grpc_address();
    let hasty = tokio::spawn(async move { borrow_within(address, a_worker(), "1n").await });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    let (headers, status) = overdue(&server, hasty).await;
    assert_eq!((status.code(), &headers["x-denied-scope"]), (Code::Ok, &"server".parse().unwrap()));
    eventually("it is taken back", || async { server.live().await == 0 }).await;
    disk.release();
}

#[tokio::test]
async fn a_worker_that_waits_for_the_disk_while_the_server_stops_is_answered_before_it_is_cut_off()
{
    let disk = Disk::default();
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.port.drain_timeout = Duration::from_secs(5);
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = Recovered::on_backend(disk.clone(), options).unwrap();
    let running = Server::with_store(config, store).await.unwrap().start().await.unwrap();
    let server = TestServer { running, clock };
    disk.hold();
    let mut client = server.client();
    let waits = tokio::spawn(async move { client.ask(a_worker()).await });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    let stop = tokio::spawn(server.running.stop());
    assert_busy(&soon(waits).await.unwrap());
    disk.release();
    soon(stop).await.unwrap();
}

#[tokio::test]
async fn a_borrow_during_a_stop_is_decided_or_beyond_the_last_stream_of_goaway() {
    let server = TestServer::memory(ROOMY).await;
    let mut raw = Raw::to(server.running.grpc_address()).await;
    raw.send(PREFACE).await;
    raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(raw.frame().await.unwrap().0, SETTINGS);
    let stop = tokio::spawn(server.running.stop());
    // The server announces the end with GOAWAY and a ping. The client does not answer the ping yet.
    let ping = loop {
        let (kind, flags, _, payload) = raw.frame().await.unwrap();
        if kind == PING && flags != ACK {
            break payload;
        }
    };
    let mut asked = vec![0];
    let bytes = a_worker().message.encode_to_vec();
    asked.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    asked.extend(bytes);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &header_block())).await;
    raw.send(&frame(DATA, END_STREAM, 1, &asked)).await;
    loop {
        let (kind, _, stream, payload) = raw.frame().await.unwrap();
        if kind == DATA {
            let answer = BorrowWorkerResponse::decode(&payload[5..]).unwrap();
            assert_eq!((stream, answer.status()), (1, BorrowStatus::Borrowed));
            break;
        }
    }
    // One write, because the server closes as soon as it has read the answer to its ping.
    let late = [
        frame(PING, ACK, 0, &ping),
        frame(HEADERS, END_HEADERS, 3, &header_block()),
        frame(DATA, END_STREAM, 3, &asked),
    ];
    raw.send(&late.concat()).await;
    let mut last = None;
    while let Some((kind, _, stream, payload)) = raw.frame().await {
        assert!(stream <= 1, "an answer to the call that came too late");
        if kind == GOAWAY {
            last = Some(payload[..4].to_vec());
        }
    }
    // gRPC clients retry the calls beyond the last stream by themselves.
    assert_eq!(last.as_deref(), Some(&[0, 0, 0, 1][..]));
    soon(stop).await.unwrap();
}

/// A clock that panics on the threads that serve calls once its flag is set.
#[derive(Debug, Default)]
struct Broken(AtomicBool);

impl Clock for Broken {
    fn monotonic(&self) -> Duration {
        let serves = std::thread::current().name().is_some_and(|name| name.starts_with("grpc-"));
        assert!(!(serves && self.0.load(Ordering::SeqCst)), "this clock is broken");
        Duration::from_secs(1)
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_800_000_000)
    }
}

#[tokio::test]
async fn a_borrow_that_panics_is_undecided_and_its_connection_goes_on() {
    let broken = Arc::new(Broken::default());
    let mut config = config(ROOMY, &ManualClock::new(), StoreUrl::Memory);
    config.clock = broken.clone();
    let server = TestServer::start(config, ManualClock::new()).await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    broken.0.store(true, Ordering::SeqCst);
    neither(&mut client, session("acme"), a_worker()).await;
    let status = client.state("t1r", "acme").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    broken.0.store(false, Ordering::SeqCst);
    client.borrow(a_worker()).await;
}
