use std::future::pending;
use std::sync::atomic::AtomicBool;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::host::Host;
use crate::protocol::Protocol;

const PING_AFTER: Duration = WITH_THE_ONLY_ONE.ping_after;
const PING_DEADLINE: Duration = WITH_THE_ONLY_ONE.answer_within;

/// The first frame of an HTTP/2 server: SETTINGS without any setting.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// A pipe whose far end has written `said` already.
fn pipe(said: &[u8]) -> (Box<dyn Bytestream>, DuplexStream) {
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(said).now_or_never().expect("the pipe is empty").unwrap();
    (Box::new(near), far)
}

/// A connection over pipes, and a receiver of their far ends, which have written `said` already.
fn by_pipe_to(said: &'static [u8]) -> (Connection, mpsc::UnboundedReceiver<DuplexStream>) {
    let (ends, made) = mpsc::unbounded_channel();
    let connector = Connector::Own(Arc::new(move || {
        let (near, far) = pipe(said);
        let connected = ends.send(far).map(|()| near);
        Box::pin(async { connected.map_err(|_| io::ErrorKind::ConnectionRefused.into()) })
    }));
    (Connection::new(connector), made)
}

/// A connection over pipes, and a receiver of their far ends, which have written nothing yet.
pub(crate) fn by_pipe() -> (Connection, mpsc::UnboundedReceiver<DuplexStream>) {
    by_pipe_to(b"")
}

/// As [`by_pipe`], but each far end has sent its settings and sends nothing more.
fn to_silence() -> (Connection, mpsc::UnboundedReceiver<DuplexStream>) {
    by_pipe_to(SETTINGS)
}

/// A connection whose first attempt fails with `first`. All later attempts succeed.
fn after(first: impl Fn() -> io::Error + Send + Sync + 'static) -> Connection {
    let far_ends = Mutex::new(None);
    Connection::new(Connector::Own(Arc::new(move || {
        let (near, far) = pipe(SETTINGS);
        let connected = match far_ends.lock().replace(far) {
            None => Err(first()),
            Some(_) => Ok(near),
        };
        Box::pin(async { connected })
    })))
}

type Server = h2::server::Connection<DuplexStream, Bytes>;

/// Connects for a first call. Returns the server at the far end, and the call, which is not sent
/// yet.
async fn reach(
    connection: &Connection,
    made: &mut mpsc::UnboundedReceiver<DuplexStream>,
) -> (Server, Ready) {
    let server = async { h2::server::handshake(made.recv().await.unwrap()).await.unwrap() };
    let (server, ready) = tokio::join!(server, connection.ready());
    (server, ready.ok().unwrap())
}

/// Sends a call that waits for its answer.
fn send(ready: Ready) -> (InFlight, ResponseFuture) {
    let Ready { mut requests, call, .. } = ready;
    let request = http::Request::get("http://h/").body(()).unwrap();
    (call, requests.send_request(request, true).unwrap().0)
}

/// Connects, and sends a call that waits for its answer.
async fn call(connection: &Connection) -> (InFlight, ResponseFuture) {
    send(connection.ready().await.ok().unwrap())
}

fn is_not_connected(status: &Status) -> bool {
    std::error::Error::source(status).is_some_and(|source| source.is::<NotConnected>())
}

/// Awaits `future`, for one day at most.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(24 * 3600), future).await.expect("it happens")
}

/// Reads until the other side closes. Returns the bytes and the time of the close.
async fn until_hung_up(mut far: DuplexStream) -> (Vec<u8>, Instant) {
    let mut said = Vec::new();
    in_time(far.read_to_end(&mut said)).await.unwrap();
    (said, Instant::now())
}

/// The number of PING frames that a client sent after its preface.
fn pings(said: &[u8]) -> usize {
    let (mut frames, mut pings) = (&said["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()..], 0);
    while let [a, b, c, kind, rest @ ..] = frames {
        pings += usize::from(*kind == 6);
        frames = &rest[5 + u32::from_be_bytes([0, *a, *b, *c]) as usize..];
    }
    pings
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_at_once_share_one_connection() {
    let (connection, mut made) = to_silence();
    let ready = join_all((0..9).map(|_| connection.ready())).await;
    assert!(ready.iter().all(Result::is_ok));
    assert!(made.try_recv().is_ok() && made.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn all_waiting_calls_get_the_error_of_an_attempt_and_the_next_call_connects_again() {
    let connection = after(|| io::Error::other("no road"));
    for refused in join_all((0..3).map(|_| connection.ready())).await {
        let status = refused.err().unwrap();
        assert!(is_not_connected(&status), "{status:?}");
        assert!(format!("{status:?}").contains("no road"), "{status:?}");
    }
    assert!(connection.ready().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_fails() {
    let connection = Connection::new(Connector::Own(Arc::new(|| Box::pin(pending()))));
    let start = Instant::now();
    assert!(is_not_connected(&connection.ready().await.err().unwrap()));
    assert!(start.elapsed() <= CONNECT_DEADLINE + Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_connector_fails_only_the_calls_that_wait_for_it() {
    let connection = after(|| panic!("the connector has a bug"));
    assert!(is_not_connected(&connection.ready().await.err().unwrap()));
    assert!(connection.ready().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_closed_between_two_calls_is_replaced_without_an_error() {
    let (connection, mut made) = to_silence();
    connection.ready().await.ok().unwrap().call.answered();
    drop(made.recv().await.unwrap());
    // The connection's task notices the close.
    tokio::task::yield_now().await;
    assert!(connection.ready().await.is_ok());
    assert!(made.recv().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sends_goaway_finishes_its_calls_and_gets_no_new_ones() {
    let (connection, mut made) = by_pipe();
    let (mut server, ready) = reach(&connection, &mut made).await;
    let (_call, answer) = send(ready);
    let (_, mut respond): (_, SendResponse<Bytes>) = server.accept().await.unwrap().unwrap();
    server.graceful_shutdown();
    let served = tokio::spawn(async move { while server.accept().await.is_some() {} });
    // GOAWAY arrives before the next call, so that call uses a new connection.
    for _ in 0..9 {
        tokio::task::yield_now().await;
    }
    let (_elsewhere, _ready) = reach(&connection, &mut made).await;
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(in_time(answer).await.unwrap().status(), http::StatusCode::OK);
    in_time(served).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_when_its_last_user_is_dropped() {
    let (connection, mut made) = by_pipe();
    let (mut server, ready) = reach(&connection, &mut made).await;
    let gone = Arc::new(AtomicBool::new(false));
    let told = gone.clone();
    let served = tokio::spawn(async move {
        assert!(server.accept().await.is_none());
        assert!(told.load(Ordering::Relaxed), "it is closed while somebody has it");
    });
    drop(connection);
    tokio::task::yield_now().await;
    gone.store(true, Ordering::Relaxed);
    drop(ready);
    in_time(served).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_not_pinged_however_long_it_is_silent() {
    let (connection, mut made) = to_silence();
    connection.ready().await.ok().unwrap().call.answered();
    let far = made.recv().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(connection);
    assert_eq!(pings(&until_hung_up(far).await.0), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_silent_during_a_call_is_pinged_and_then_closed() {
    let (connection, mut made) = to_silence();
    let start = Instant::now();
    let (_call, answer) = call(&connection).await;
    let (said, at) = until_hung_up(made.recv().await.unwrap()).await;
    assert_eq!((pings(&said), at - start), (1, PING_AFTER + PING_DEADLINE));
    assert!(answer.await.is_err());
    assert!(connection.ready().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_does_not_restart_the_wait_for_a_ping() {
    let (connection, mut made) = to_silence();
    let start = Instant::now();
    let ready = connection.ready().await.ok().unwrap();
    tokio::time::sleep(PING_AFTER / 2).await;
    drop(ready);
    let (said, at) = until_hung_up(made.recv().await.unwrap()).await;
    assert_eq!((pings(&said), at - start), (1, PING_AFTER + PING_DEADLINE));
}

#[tokio::test(start_paused = true)]
async fn the_first_call_after_an_idle_time_is_not_pinged_earlier_than_others() {
    let (connection, mut made) = to_silence();
    connection.ready().await.ok().unwrap().call.answered();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let start = Instant::now();
    let (_call, answer) = call(&connection).await;
    let (said, at) = until_hung_up(made.recv().await.unwrap()).await;
    assert_eq!((pings(&said), at - start), (1, PING_AFTER + PING_DEADLINE));
    assert!(answer.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn several_dropped_calls_do_not_restart_the_wait_for_a_ping() {
    let (connection, mut made) = to_silence();
    let start = Instant::now();
    for _ in 0..3 {
        let ready = connection.ready().await.ok().unwrap();
        tokio::time::sleep(PING_AFTER / 4).await;
        drop(ready);
    }
    let (said, at) = until_hung_up(made.recv().await.unwrap()).await;
    assert_eq!((pings(&said), at - start), (1, PING_AFTER + PING_DEADLINE));
}

#[tokio::test(start_paused = true)]
async fn calls_are_sent_after_a_deadline_to_a_server_that_sends_no_settings() {
    let (connection, mut made) = by_pipe();
    let start = Instant::now();
    let _call = call(&connection).await;
    assert_eq!(start.elapsed(), SETTINGS_DEADLINE);
    assert!(!connection.0.worked.load(Ordering::Relaxed));
    let mut server = h2::server::handshake::<_>(made.recv().await.unwrap()).await.unwrap();
    assert!(server.accept().await.unwrap().is_ok());
}

#[tokio::test]
async fn a_server_that_accepts_and_sends_nothing_is_skipped_for_the_next_address() {
    let (silent, listener) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let (silent, listener) = (silent.await.unwrap(), listener.await.unwrap());
    let addresses = [&silent, &listener].map(|at| at.local_addr().unwrap());
    let way = Way::new(Host::new("sessions.example", 80), [], Protocol::Http2);
    let way = way.resolved_by(Arc::new(move |_, _| Box::pin(async move { Ok(addresses.into()) })));
    let connection = Connection::new(Connector::Way(Arc::new(way)));
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        h2::server::handshake::<_>(stream).await.unwrap()
    };
    let (server, ready) = tokio::join!(timeout(2 * CONNECT_DEADLINE, server), connection.ready());
    let _call = send(ready.ok().unwrap());
    assert!(server.unwrap().accept().await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_before_it_sends_anything_is_not_connected() {
    let (connection, mut made) = by_pipe();
    let hang_up = async { drop(made.recv().await.unwrap()) };
    let (ready, ()) = tokio::join!(connection.ready(), hang_up);
    assert!(is_not_connected(&ready.err().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_pings_may_take_as_long_for_a_call_as_it_likes() {
    let (connection, mut made) = by_pipe();
    let (mut server, ready) = reach(&connection, &mut made).await;
    let (_call, answer) = send(ready);
    let (_, mut respond): (_, SendResponse<Bytes>) = server.accept().await.unwrap().unwrap();
    tokio::spawn(async move { server.accept().await.is_none() });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), http::StatusCode::OK);
}
