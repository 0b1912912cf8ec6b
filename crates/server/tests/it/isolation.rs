//! One caller cannot harm another: with a key, without a key, and before its key is known.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::client::conn::http2::SendRequest;
use prost::Message as _;
use tgm_session_server::Config;
use tgm_session_server::store::StoreUrl;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::worker::BorrowWorkerResponse;
use wire::worker::borrow_worker_response::BorrowStatus;

use crate::auth::two_indexers;
use crate::compressed::{flagged, gzip};
use crate::harness::{
    ManualClock, ROOMY, TestServer, channel, config, eventually, get, session, worker,
};
use crate::limits::{
    Body, HEADERS, PREFACE, RST_STREAM, Raw, SETTINGS, call, connect, frame, header_block, message,
    open_body, status,
};
use store::testing::Disk;

const SHORT: Duration = Duration::from_millis(150);
const GOAWAY: u8 = 7;

/// Starts a server with one serving thread and the settings that `set` changes.
async fn server(policy: &str, set: impl FnOnce(&mut Config)) -> TestServer {
    let clock = ManualClock::new();
    let mut config = config(policy, &clock, StoreUrl::Memory);
    config.threads = 1;
    set(&mut config);
    TestServer::start(config, clock).await
}

/// The same call, with a key.
fn with_key(mut request: Request<Body>, key: &str) -> Request<Body> {
    request.headers_mut().insert("x-api-key", key.parse().unwrap());
    request
}

/// The complete body of a call: one compressed message.
fn packed(bytes: &[u8]) -> Body {
    use http_body_util::BodyExt as _;
    http_body_util::Full::new(Bytes::from(flagged(1, &gzip(bytes)))).boxed_unsync()
}

/// The value of a metric without labels.
async fn metric(server: &TestServer, name: &str) -> u64 {
    let (_, page) = get(server.running.admin_address(), "/metrics", "").await;
    let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).expect("the metric");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Starts a call whose message stays incomplete, and waits for its answer in another task.
async fn begin_call(
    connection: &mut SendRequest<Body>,
    key: &str,
    bytes: &'static [u8],
) -> (tokio::sync::mpsc::Sender<Bytes>, tokio::task::JoinHandle<Code>) {
    let (sender, body) = open_body();
    sender.send(Bytes::from_static(bytes)).await.unwrap();
    connection.ready().await.unwrap();
    let answer = connection.send_request(with_key(call(body), key));
    (sender, tokio::spawn(async move { status(answer.await.unwrap()).await.0 }))
}

#[tokio::test]
async fn more_header_fields_than_the_setting_are_refused_and_the_connection_goes_on() {
    let server = server(ROOMY, |config| config.port.max_header_fields = 40).await;
    let mut connection = connect(server.running.grpc_address()).await;
    for (fields, refused) in [(30, false), (60, true), (30, false)] {
        let mut request = call(message(&session("acme").message.encode_to_vec()));
        for field in 0..fields {
            let name = http::HeaderName::try_from(format!("x-{field}")).unwrap();
            request.headers_mut().insert(name, "1".parse().unwrap());
        }
        let response = connection.send_request(request).await.unwrap();
        assert_eq!(response.status() == 431, refused, "{fields}: {response:?}");
    }
    assert_eq!(server.live().await, 2);
}

#[tokio::test]
async fn a_message_without_a_known_key_is_discarded_and_takes_no_memory() {
    let server = server(&two_indexers(), |config| config.port.request_timeout = SHORT).await;
    let mut connection = connect(server.running.grpc_address()).await;
    let before = metric(&server, "tgm_session_connection_memory_bytes").await;
    let mut answers = Vec::new();
    for key in ["guess", "nobody"] {
        for _ in 0..20 {
            answers.push(begin_call(&mut connection, key, &[7; 1_000]).await);
        }
    }
    for (_sender, answer) in answers {
        assert_eq!(answer.await.unwrap(), Code::Unauthenticated);
    }
    eventually("all of it is given back", || async {
        metric(&server, "tgm_session_connection_memory_bytes").await <= before + 3 * 65_536
    })
    .await;
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn a_client_that_comes_back_with_a_burst_is_served_with_and_without_keys() {
    for (policy, key) in
        [(two_indexers(), Some("west-new")), (String::from("[services.t1r]"), None)]
    {
        let disk = Disk::default();
        let server = TestServer::on_disk(&policy, disk.clone(), ManualClock::new()).await;
        // While the disk hangs no call is answered, so that many calls are in flight at once.
        disk.hold();
        let mut calls = JoinSet::new();
        let client = server.client();
        for _ in 0..1_000 {
            let mut client = key.map_or(client.clone(), |key| client.with_key(key));
            calls.spawn(async move { client.borrow(session("acme")).await });
        }
        eventually("the first of them are applied", || async { server.live().await >= 90 }).await;
        disk.release();
        assert_eq!(calls.join_all().await.len(), 1_000);
    }
}

#[tokio::test]
async fn a_caller_without_memory_is_refused_and_its_workers_are_told_to_try_again() {
    let server = server(&two_indexers(), |config| {
        config.port.max_connection_memory = 1 << 20;
        config.port.request_timeout = Duration::from_secs(60);
    })
    .await;
    let mut connection = connect(server.running.grpc_address()).await;
    // The connection shows its key, and then starts more calls than its memory allows.
    let asked = message(&session("acme").message.encode_to_vec());
    let first = connection.send_request(with_key(call(asked), "west-new")).await.unwrap();
    assert_eq!(status(first).await.0, Code::Ok);
    let mut begun = Vec::new();
    for _ in 0..300 {
        begun.push(begin_call(&mut connection, "west-new", &[0]).await);
    }
    let asked = message(&session("acme").message.encode_to_vec());
    let refused = connection.send_request(with_key(call(asked), "west-new")).await.unwrap();
    let (code, words) = status(refused).await;
    assert_eq!(code, Code::Unavailable, "{words}");
    assert!(words.contains("too much memory"), "{words}");
    // After an error, Substreams would fail its job.
    let asked = worker("acme", "trace", 3).message.encode_to_vec();
    for body in [message(&asked), packed(&asked)] {
        let mut request = with_key(call(body), "west-new");
        request.headers_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        let busy = connection.send_request(request).await.unwrap();
        assert_eq!(busy.headers()["x-denied-scope"], "server", "{busy:?}");
        let body = http_body_util::BodyExt::collect(busy.into_body()).await.unwrap().to_bytes();
        let answer = BorrowWorkerResponse::decode(&body[5..]).unwrap();
        assert_eq!((answer.status(), &*answer.worker_key), (BorrowStatus::ResourceExhausted, ""));
    }
    let (_, page) = get(server.running.admin_address(), "/metrics", "").await;
    for counted in [
        r#"borrows_total{service="t2w",outcome="server_busy",scope="server"} 2"#,
        r#"borrows_total{service="t1r",outcome="unavailable",scope=""} 1"#,
        r#"calls_refused_total{method="BorrowWorker",code="UNAVAILABLE"} "#,
    ] {
        assert!(page.contains(counted), "{counted}: {page}");
    }
    // Another caller has its own memory and is served. So is this caller after its calls end.
    server.client().with_key("east-key").borrow(session("acme")).await;
    drop(begun);
    let mut client = server.client().with_key("west-new");
    client.borrow(session("acme")).await;
}

#[tokio::test]
async fn callers_without_a_known_key_take_no_memory_from_a_caller_with_a_key() {
    let server = server(&two_indexers(), |config| {
        config.max_memory = 16 << 20;
        config.port.request_timeout = Duration::from_secs(60);
    })
    .await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        let mut connection = connect(server.running.grpc_address()).await;
        for _ in 0..90 {
            strangers.push(begin_call(&mut connection, "guess", &[0]).await);
        }
        strangers.push(begin_call(&mut connection, "guess", &[0]).await);
    }
    let used = metric(&server, "tgm_session_connection_memory_bytes").await;
    assert!(used <= 5 << 20, "{used}");
    let mut client = server.client().with_key("west-new");
    for _ in 0..100 {
        client.borrow(session("acme")).await;
    }
}

#[tokio::test]
async fn watches_of_health_have_few_places_and_checks_go_on() {
    let server = server(&two_indexers(), |_| {}).await;
    let mut health = HealthClient::new(channel(server.running.grpc_address()));
    let mut watches = Vec::new();
    for _ in 0..8 {
        watches.push(health.watch(HealthCheckRequest::default()).await.unwrap());
    }
    let refused = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    health.check(HealthCheckRequest::default()).await.unwrap();
    drop(watches);
    eventually("a place is free", || {
        let mut health = health.clone();
        async move { health.watch(HealthCheckRequest::default()).await.is_ok() }
    })
    .await;
}

#[tokio::test]
async fn a_health_check_whose_message_does_not_arrive_times_out() {
    let server = server(ROOMY, |config| config.port.request_timeout = SHORT).await;
    let mut connection = connect(server.running.grpc_address()).await;
    let (_sender, body) = open_body();
    let mut request = call(body);
    *request.uri_mut() = "http://test/grpc.health.v1.Health/Check".parse().unwrap();
    let answer = connection.send_request(request).await.unwrap();
    assert_eq!(status(answer).await.0, Code::Unavailable);
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_reset_in_time() {
    let server = server("[services.t1r]", |config| config.port.answer_timeout = SHORT).await;
    let mut raw = Raw::to(server.running.grpc_address()).await;
    raw.send(PREFACE).await;
    // A window of 0 bytes: the server may not send any of the answer.
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    let (end_headers, end_stream) = (4, 1);
    raw.send(&frame(HEADERS, end_headers, 1, &header_block())).await;
    let mut asked = vec![0];
    let bytes = session("acme").message.encode_to_vec();
    asked.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    asked.extend(bytes);
    raw.send(&frame(0, end_stream, 1, &asked)).await;
    loop {
        let (kind, _, stream, _) = raw.frame().await.expect("the connection goes on");
        if kind == RST_STREAM {
            assert_eq!(stream, 1);
            break;
        }
    }
    eventually("nobody heard of the lease", || async { server.live().await == 0 }).await;
}

#[tokio::test]
async fn the_oldest_silent_connection_makes_room_for_a_new_one() {
    let server = server(&two_indexers(), |config| config.max_connections = 8).await;
    let address = server.running.grpc_address();
    let mut keyed = server.client().with_key("west-new");
    let lease = keyed.borrow(session("acme")).await;
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(Raw::to(address).await);
    }
    // While places are short, an HTTP/2 connection has one second for its first call. Then the
    // server sends GOAWAY.
    let mut spoke = Raw::to(address).await;
    spoke.send(PREFACE).await;
    spoke.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(spoke.frame().await.unwrap().0, SETTINGS);
    let (_, frames) = tokio::select! {
        closed = spoke.closed() => closed,
        () = async {
            loop {
                silent.push(Raw::to(address).await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } => unreachable!("it goes on for ever"),
    };
    assert!(frames.contains(&GOAWAY), "{frames:?}");
    silent.remove(0).closed().await;
    server.client().with_key("east-key").borrow(session("acme")).await;
    keyed.keep_alive(&lease).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_cancels_too_many_calls_is_closed() {
    let server = server(&two_indexers(), |_| {}).await;
    let mut raw = Raw::to(server.running.grpc_address()).await;
    raw.send(PREFACE).await;
    raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    let mut flood = Vec::new();
    for stream in (1..40_000_u32).step_by(2) {
        for (kind, flags, payload) in
            [(HEADERS, 4, header_block()), (RST_STREAM, 0, vec![0, 0, 0, 8])]
        {
            let mut frame = frame(kind, flags, 0, &payload);
            frame[5..9].copy_from_slice(&stream.to_be_bytes());
            flood.extend(frame);
        }
    }
    let (mut reading, mut writing) = raw.0.into_split();
    let flooded = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        // The server may close the connection before the flood is written.
        let _ = writing.write_all(&flood).await;
        writing
    });
    let mut said = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut said);
    let _ = tokio::time::timeout(Duration::from_secs(30), end).await.expect("it is closed");
    drop(flooded.await.unwrap());
    server.client().with_key("west-new").borrow(session("acme")).await;
}
