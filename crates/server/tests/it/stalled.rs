//! A disk that hangs: the server is not ready, and every wait for the disk has a timeout.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lease::{LeaseId, Reason, Request, RevokedFor, Terms};
use tgm_session_server::operator::{By, OperatorError};
use tgm_session_server::policy::overrides::Subject;
use tgm_session_server::store::{
    BorrowError, Error, LeaseFilter, Listener, Options, Order, Recovered, StoreUrl, Unavailable,
};
use tgm_session_server::{Clock, Server};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::worker::keep_alive_response::Status as Kept;

use crate::harness::{
    Ask, ManualClock, ROOMY, TestServer, channel, config, eventually, get, session,
};
use store::testing::Disk;
use store::testing::{entry, note, set};

/// The longest time that a call waits for the disk.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The result of a task. Panics if the task takes longer than 30 seconds.
pub(crate) async fn soon<T>(task: tokio::task::JoinHandle<T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("an answer").unwrap()
}

/// The result of a call whose own deadline has passed, before [`LONGEST_WAIT`] is over.
///
/// Time passes in several steps, because the call checks its deadline only when time passes, and
/// may begin to wait after its commit has begun.
pub(crate) async fn overdue<T>(server: &TestServer, mut call: tokio::task::JoinHandle<T>) -> T {
    for _ in 0..18 {
        server.pass(Duration::from_millis(500));
        let answer = tokio::time::timeout(Duration::from_millis(50), &mut call).await;
        if let Ok(answer) = answer {
            return answer.unwrap();
        }
    }
    soon(call).await
}

async fn on(disk: &Disk) -> TestServer {
    TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await
}

/// Starts a borrow that waits for the disk, which does not confirm its commit.
async fn waiting(server: &TestServer, disk: &Disk) -> tokio::task::JoinHandle<Result<(), Status>> {
    let before = server.live().await;
    disk.hold();
    let mut client = server.client();
    let borrow = tokio::spawn(async move { client.ask(session("waits")).await.map(drop) });
    eventually("the grant is applied", || async { server.live().await == before + 1 }).await;
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    borrow
}

/// The value of the metric for the duration of the commit in flight.
async fn stalled(admin: SocketAddr) -> f64 {
    let (_, page) = get(admin, "/metrics", "").await;
    let value =
        page.lines().find_map(|line| line.strip_prefix("tgm_session_commit_stalled_seconds "));
    value.unwrap().parse().unwrap()
}

async fn serves(health: &HealthClient<tonic::transport::Channel>) -> bool {
    let answer = health.clone().check(HealthCheckRequest::default()).await.unwrap();
    answer.into_inner().status == 1
}

#[tokio::test]
async fn a_commit_that_takes_longer_than_two_seconds_makes_the_server_not_ready_until_it_ends() {
    let disk = Disk::default();
    let server = on(&disk).await;
    let admin = server.running.admin_address();
    let health = HealthClient::new(channel(server.running.grpc_address()));
    let borrow = waiting(&server, &disk).await;
    server.pass(Duration::from_secs(2));
    assert_eq!(get(admin, "/readyz", "").await.0, 200);
    assert_eq!(stalled(admin).await, 2.0);
    server.pass(Duration::from_millis(100));
    let (status, body) = get(admin, "/readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("the disk takes too long") && body.contains("2.1 s"), "{body}");
    assert_eq!(get(admin, "/livez", "").await.0, 200);
    eventually("gRPC health says not serving", || async { !serves(&health).await }).await;

    disk.release();
    soon(borrow).await.unwrap();
    eventually("it is ready again", || async { get(admin, "/readyz", "").await.0 == 200 }).await;
    assert_eq!(stalled(admin).await, 0.0);
    eventually("gRPC health says serving", || async { serves(&health).await }).await;
}

#[tokio::test]
async fn no_call_waits_longer_than_ten_seconds_and_unanswered_borrows_are_returned() {
    let disk = Disk::default();
    let server = on(&disk).await;
    let mut client = server.client();
    let (held, returned) =
        (client.borrow(session("acme")).await, client.borrow(session("acme")).await);
    let borrow = waiting(&server, &disk).await;
    // The next two changes are in the batch that waits behind the commit in flight.
    let (mut a, mut b, key) = (server.client(), server.client(), returned.clone());
    let second = tokio::spawn(async move { a.ask(session("second")).await.map(drop) });
    eventually("the second grant is applied", || async { server.live().await == 4 }).await;
    let returning = tokio::spawn(async move { b.give_back_after(&key, None).await.map(drop) });
    eventually("the return is applied", || async { server.live().await == 3 }).await;

    server.pass(Duration::from_millis(9_900));
    assert!(!borrow.is_finished() && !second.is_finished() && !returning.is_finished());
    server.pass(Duration::from_millis(100));
    for call in [borrow, second, returning] {
        assert_eq!(soon(call).await.unwrap_err().code(), Code::Unavailable);
    }
    eventually("what was borrowed is taken back", || async { server.live().await == 1 }).await;

    // Later calls are refused at once, and change nothing.
    for _ in 0..3 {
        let status = client.ask(session("third")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("the disk takes too long"), "{status}");
        let status = client.give_back_after(&held, None).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
    assert_eq!(server.live().await, 1);
    assert_eq!(client.keep_alive(&held).await.unwrap(), Kept::TtlExtended);

    disk.release();
    let admin = server.running.admin_address();
    eventually("it takes changes again", || async {
        get(admin, "/readyz", "").await.0 == 200
            && server.client().ask(session("later")).await.is_ok()
    })
    .await;
    assert_eq!(client.keep_alive(&held).await.unwrap(), Kept::TtlExtended);
    assert_eq!(client.keep_alive(&returned).await.unwrap(), Kept::Failed);
    assert_eq!(client.count("t1r", "waits").await + client.count("t1r", "second").await, 0);
    server.running.stop().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_hung_while_nobody_else_called_takes_changes_again() {
    let disk = Disk::default();
    let server = on(&disk).await;
    let (held, borrow) =
        (server.client().borrow(session("acme")).await, waiting(&server, &disk).await);
    server.pass(LONGEST_WAIT);
    soon(borrow).await.unwrap_err();
    disk.release();
    eventually("it takes changes again", || async {
        server.client().ask(session("later")).await.is_ok()
    })
    .await;
    assert_eq!(server.client().keep_alive(&held).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_process_that_was_suspended_reports_no_stalled_disk() {
    let disk = Disk::default();
    let server = on(&disk).await;
    let borrow = waiting(&server, &disk).await;
    server.clock.jump(Duration::from_secs(3_600));
    server.running.store().tick();
    assert_eq!(get(server.running.admin_address(), "/readyz", "").await.0, 200);
    disk.release();
    soon(borrow).await.unwrap();
}

/// Calls BorrowWorker with `timeout` over plain HTTP/2, because a gRPC client would enforce the
/// timeout itself.
pub(crate) async fn borrow_within(
    address: SocketAddr,
    ask: Ask,
    timeout: &'static str,
) -> (HeaderMap, Status) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let message = prost::Message::encode_to_vec(&ask.message);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    let request = hyper::Request::post("http://test/sf.worker.v1.WorkerPool/BorrowWorker")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let headers = response.headers().clone();
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned();
    let status = Status::from_header_map(trailers.as_ref().unwrap_or(&headers)).unwrap();
    (headers, status)
}

#[tokio::test]
async fn a_call_with_a_deadline_of_its_own_is_answered_soon_after_it() {
    let disk = Disk::default();
    let server = on(&disk).await;
    let patient = waiting(&server, &disk).await;
    let address = server.running.grpc_address();
    let hasty = tokio::spawn(async move { borrow_within(address, session("hasty"), "1n").await });
    eventually("the grant is applied", || async { server.live().await == 2 }).await;
    let (_, status) = overdue(&server, hasty).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("deadline"), "{status}");
    eventually("it is taken back", || async { server.live().await == 1 }).await;
    assert!(!patient.is_finished());
    disk.release();
    soon(patient).await.unwrap();
}

#[tokio::test]
async fn an_operators_change_is_recorded_however_long_the_disk_takes() {
    let disk = Disk::default();
    let clock = ManualClock::new();
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = Arc::new(Recovered::on_backend(disk.clone(), options).unwrap().resume().unwrap());
    disk.hold();
    let recording = store.clone();
    let recording = tokio::spawn(async move {
        recording.record(Some(set("acme", 40)), entry("set the limit of acme")).await
    });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    for _ in 0..30 {
        clock.jump(Duration::from_millis(500));
        store.tick();
    }
    assert_eq!(store.ready(), Err(Unavailable::Stalled));
    assert!(!recording.is_finished());
    disk.release();
    soon(recording).await.unwrap();
    assert_eq!(note(&store.audit(None, 10)), ["set the limit of acme"]);
    store.close().unwrap();
}

#[tokio::test]
async fn an_operator_waits_no_longer_than_other_callers_and_the_change_is_still_made() {
    let disk = Disk::default();
    let server = on(&disk).await;
    disk.hold();
    let operator = server.running.operator().clone();
    let changing = tokio::spawn(async move {
        let by = By { from: "test", note: "" };
        operator.set_limit(Subject::Organization, "acme", "t1r", Some(3), by).await
    });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    server.pass(LONGEST_WAIT);
    let refused = soon(changing).await.unwrap_err();
    assert_eq!(refused, OperatorError::Unavailable(Unavailable::Stalled));
    let ceiling = || server.running.operator().policy().limit("acme", "t1r").0;
    assert_eq!(ceiling(), Some(10), "nothing is in force that is not durable");
    disk.release();
    eventually("it is in force", || async { ceiling() == Some(3) }).await;
}

#[tokio::test]
async fn a_stop_while_the_disk_hangs_ends_in_time_and_says_what_was_not_confirmed() {
    let disk = Disk::default();
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.port.drain_timeout = Duration::from_millis(100);
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = Recovered::on_backend(disk.clone(), options).unwrap();
    let running = Server::with_store(config, store).await.unwrap().start().await.unwrap();
    let server = TestServer { running, clock };
    let borrow = waiting(&server, &disk).await;
    let mut client = server.client();
    let second = tokio::spawn(async move { client.ask(session("second")).await.map(drop) });
    eventually("both are applied", || async { server.live().await == 2 }).await;

    let store = server.running.store().clone();
    let error = server.running.stop().await.unwrap_err();
    let tgm_session_server::Error::Store(Error::Unconfirmed { path, changes, .. }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(path.to_str(), Some("(custom backend)"));
    // Two grants, and their returns if the stop has already reset their connections.
    assert!(*changes >= 2, "{error}");
    soon(borrow).await.unwrap_err();
    soon(second).await.unwrap_err();
    // When the disk works again, the file is a valid store.
    disk.release();
    eventually("the file is let go", || async {
        let options = Options { clock: ManualClock::new(), ..Options::default() };
        Arc::strong_count(&store) == 1
            && Recovered::on_backend(Disk::with(disk.bytes()), options).is_ok()
    })
    .await;
}

/// A clock that panics on the thread `store-clock` once `is_broken` is set.
#[derive(Debug, Default)]
struct Broken {
    is_broken: AtomicBool,
}

impl Clock for Broken {
    fn monotonic(&self) -> Duration {
        let here = std::thread::current().name() == Some("store-clock");
        assert!(!(here && self.is_broken.load(Ordering::SeqCst)), "this clock is broken");
        Duration::from_secs(1)
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_800_000_000)
    }
}

#[tokio::test]
async fn a_panic_on_the_clock_thread_is_noticed_and_fails_waiting_calls() {
    let disk = Disk::default();
    let clock = Arc::new(Broken::default());
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = Arc::new(Recovered::on_backend(disk.clone(), options).unwrap().resume().unwrap());
    disk.hold();
    let waits = store.clone();
    let waits = tokio::spawn(async move {
        waits.borrow(&Request::session("t1r", "acme"), &Terms::default()).await.map(drop)
    });
    eventually("its commit is under way", || async { disk.is_waiting() }).await;
    assert_eq!(store.ready(), Ok(()));
    clock.is_broken.store(true, Ordering::SeqCst);
    assert_eq!(soon(waits).await, Err(BorrowError::Unavailable(Unavailable::Failed)));
    assert_eq!(store.ready(), Err(Unavailable::Failed));
    disk.release();
    assert!(matches!(store.close(), Err(Error::Failed { .. })));
}

/// A listener that panics at every revocation.
#[derive(Debug)]
struct Panics;

impl Listener for Panics {
    fn revoked(&self, _: LeaseId, _: RevokedFor) {
        panic!("this listener is broken");
    }
}

#[tokio::test]
async fn a_panic_on_the_journal_thread_is_noticed_and_fails_later_calls() {
    let disk = Disk::default();
    let store = Recovered::on_backend(disk, Options::default()).unwrap().resume().unwrap();
    let request = Request::session("t1r", "acme");
    let borrowed = store.borrow(&request, &Terms::default()).await.unwrap();
    borrowed.delivery.complete();
    let attachment = store.attach(Arc::new(Panics));
    store.keep_alive_batch(&[Some(borrowed.grant.id)], None, &attachment).await;
    assert!(store.revoke(borrowed.grant.id, Reason::Operator).await.unwrap(), "it is durable");
    eventually("the panic is seen", || async { store.ready() == Err(Unavailable::Failed) }).await;
    let refused = store.borrow(&request, &Terms::default()).await;
    assert!(matches!(refused, Err(BorrowError::Unavailable(Unavailable::Failed))));
    let page = store.leases(LeaseFilter::default(), Order::Oldest, None, 1).await.unwrap();
    assert!(page.leases.is_empty());
}
