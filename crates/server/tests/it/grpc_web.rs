//! gRPC-Web on the gRPC port, from a real client and as raw bytes.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tgm_session_server::store::StoreUrl;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_web::{GrpcWebCall, GrpcWebClientLayer, GrpcWebClientService};
use tower::util::BoxCloneSyncService;
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
use wire::control::attach_response::Event;
use wire::control::session_control_client::SessionControlClient;
use wire::control::{AttachRequest, BatchAnswer};
use wire::metering::Metric;
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::return_worker_response::Status as Returned;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, ReturnWorkerRequest,
    WorkersStateRequest,
};

use crate::auth::two_indexers;
use crate::compressed::{flagged, gzip};
use crate::harness::{
    LONGEST_STOP, ManualClock, ROOMY, TestServer, channel, config, eventually, session, text,
};
use store::testing::Disk;

const BORROW: &str = "/sf.worker.v1.WorkerPool/BorrowWorker";
const WEB: &str = "content-type: application/grpc-web+proto\r\n";

type Fault = Box<dyn std::error::Error + Send + Sync>;
type WebBody = GrpcWebCall<tonic::body::Body>;
pub(crate) type Browser =
    GrpcWebClientService<BoxCloneSyncService<Request<WebBody>, Response<Incoming>, Fault>>;

/// A client like that of a browser: HTTP/1.1, and a new connection for each call.
pub(crate) fn browser(address: SocketAddr) -> Browser {
    let send = service_fn(move |mut request: Request<WebBody>| async move {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        request.headers_mut().insert(HOST, HeaderValue::from_static("test"));
        Ok::<_, Fault>(sender.send_request(request).await?)
    });
    GrpcWebClientLayer::new().layer(BoxCloneSyncService::new(send))
}

/// A message with the gRPC prefix.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

/// An HTTP/1.1 response.
#[derive(Debug)]
pub(crate) struct Raw {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Raw {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// Sends one HTTP/1.1 request and reads the response until the connection ends.
async fn send(server: &TestServer, method: &str, path: &str, headers: &str, body: &[u8]) -> Raw {
    let mut stream = TcpStream::connect(server.running.grpc_address()).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
         content-length: {length}\r\n{headers}\r\n"
    );
    let request = [head.as_bytes(), body].concat();
    let mut answer = Vec::new();
    // A server that refuses a request before it is read resets the connection after its answer.
    for outcome in
        [stream.write_all(&request).await, stream.read_to_end(&mut answer).await.map(drop)]
    {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        if let Err(error) = outcome {
            assert!(matches!(error.kind(), BrokenPipe | ConnectionReset), "{error}");
        }
    }
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut raw = Raw {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: answer[end + 4..].to_vec(),
    };
    if raw.header("transfer-encoding") == Some("chunked") {
        raw.body = unchunked(&raw.body);
    }
    raw
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
}

async fn borrow(server: &TestServer, headers: &str) -> Raw {
    send(server, "POST", BORROW, headers, &framed(&session("acme").message)).await
}

/// Sends a borrow as gRPC-Web.
pub(crate) async fn call_borrow(server: &TestServer, message: &BorrowWorkerRequest) -> Raw {
    send(server, "POST", BORROW, WEB, &framed(message)).await
}

/// The request head of a borrow after which the connection stays open.
fn head(length: usize) -> Vec<u8> {
    format!("POST {BORROW} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{WEB}\r\n")
        .into_bytes()
}

/// Splits a body into its message and its trailers.
fn parts(body: &[u8]) -> (BorrowWorkerResponse, &str) {
    assert_eq!(body[0], 0, "an uncompressed message");
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
    let (message, rest) = body[5..].split_at(length);
    assert_eq!(rest[0], 0x80, "uncompressed trailers");
    let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
    assert_eq!(rest[5..].len(), length, "nothing follows the trailers");
    let trailers = std::str::from_utf8(&rest[5..]).unwrap();
    (prost::Message::decode(message).unwrap(), trailers)
}

#[tokio::test]
async fn a_browser_makes_every_unary_call() {
    let server = TestServer::memory(ROOMY).await;
    let address = server.running.grpc_address();
    let mut pool = WorkerPoolClient::new(browser(address));
    let answer = pool.borrow_worker(session("acme").message).await.unwrap();
    assert_eq!(text(answer.metadata(), "x-lease-ttl-ms").unwrap(), "60000");
    let worker_key = answer.into_inner().worker_key;
    let message = KeepAliveRequest { worker_key: worker_key.clone(), ..Default::default() };
    assert_eq!(pool.keep_alive(message).await.unwrap().into_inner().status(), Kept::TtlExtended);
    let state = || WorkersStateRequest {
        service: "t1r".to_owned(),
        organization_id: "acme".to_owned(),
        ..Default::default()
    };
    let counted = pool.workers_state(state()).await.unwrap().into_inner().worker_state.unwrap();
    assert_eq!(counted.borrowed_workers, 1);
    let message = ReturnWorkerRequest { worker_key, ..Default::default() };
    assert_eq!(
        pool.return_worker(message).await.unwrap().into_inner().status(),
        Returned::Returned
    );

    let metrics = vec![Metric { key: "blocks".to_owned(), value: 1.0 }];
    let organization_id = "acme".to_owned();
    let event = wire::metering::Event { organization_id, metrics, ..Default::default() };
    let large = ReportRequest { events: vec![event; 9_000] };
    let reported = UsageServiceClient::new(browser(address)).report(large).await.unwrap();
    assert!(!reported.into_inner().revoked);

    let ask = HealthCheckRequest { service: "sf.worker.v1.WorkerPool".to_owned() };
    let health = HealthClient::new(browser(address)).check(ask).await.unwrap().into_inner();
    assert_eq!(health.status, 1, "serving");
}

#[tokio::test]
async fn a_browser_reads_streams_whose_requests_are_one_message() {
    let server = TestServer::memory(ROOMY).await;
    let address = server.running.grpc_address();
    let ask = HealthCheckRequest { service: String::new() };
    let mut health = HealthClient::new(browser(address)).watch(ask).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1, "serving");

    let key = server.client().borrow(session("acme")).await;
    let batch = AttachRequest { batch: 7, worker_keys: vec![key, "nobody's".to_owned()] };
    let mut control = SessionControlClient::new(browser(address));
    let mut events = control.attach(tokio_stream::once(batch)).await.unwrap().into_inner();
    let answer = events.message().await.unwrap().unwrap().event.unwrap();
    assert_eq!(
        answer,
        Event::Answer(BatchAnswer { batch: 7, failed: vec![1], ..Default::default() })
    );
    assert_eq!(events.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_refusal_comes_with_its_facts_in_the_head_and_its_trailers_in_the_body() {
    let policy = "[services.t1r]\nmax_total = 1\nmax_per_organization = 5";
    let server = TestServer::memory(policy).await;
    let granted = borrow(&server, WEB).await;
    assert_eq!(granted.status, 200, "{granted:?}");
    assert_eq!(granted.header("content-type"), Some("application/grpc-web+proto"));
    let (message, trailers) = parts(&granted.body);
    assert_eq!(message.status(), BorrowStatus::Borrowed);
    assert_eq!(trailers, "grpc-status:0\r\n");

    let refused = borrow(&server, "content-type: application/grpc-web\r\n").await;
    assert_eq!(refused.header("x-denied-scope"), Some("service"), "{refused:?}");
    assert_eq!(refused.header("x-denied-max"), Some("1"));
    let (message, trailers) = parts(&refused.body);
    assert_eq!((message.status(), &*message.worker_key), (BorrowStatus::ResourceExhausted, ""));
    assert_eq!(message.worker_state.unwrap().max_workers, 1);
    assert_eq!(trailers, "grpc-status:0\r\n");
}

#[tokio::test]
async fn grpc_web_is_the_same_over_http_2() {
    let server = TestServer::memory(ROOMY).await;
    let mut channel = channel(server.running.grpc_address());
    let body = Full::new(Bytes::from(framed(&session("acme").message)));
    let request = Request::post(BORROW)
        .header(CONTENT_TYPE, "application/grpc-web+proto")
        .body(tonic::body::Body::new(body));
    let response = channel.ready().await.unwrap().call(request.unwrap()).await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc-web+proto");
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), None);
    let body = body.to_bytes();
    let (message, trailers) = parts(&body);
    assert_eq!((message.status(), trailers), (BorrowStatus::Borrowed, "grpc-status:0\r\n"));
}

#[tokio::test]
async fn text_mode_is_the_same_in_base64() {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let server = TestServer::memory(ROOMY).await;
    let headers =
        "content-type: application/grpc-web-text\r\naccept: application/grpc-web-text\r\n";
    let message = base64.encode(framed(&session("acme").message));
    let granted = send(&server, "POST", BORROW, headers, message.as_bytes()).await;
    let kind = granted.header("content-type").unwrap();
    assert!(kind.starts_with("application/grpc-web-text"), "{kind}");
    // The message and the trailers are encoded separately, each with its own padding.
    let quartets = granted.body.chunks(4).map(|quartet| base64.decode(quartet).unwrap());
    let body: Vec<u8> = quartets.flatten().collect();
    let (message, trailers) = parts(&body);
    assert_eq!((message.status(), trailers), (BorrowStatus::Borrowed, "grpc-status:0\r\n"));

    let garbled = send(&server, "POST", BORROW, headers, b"AAAA!!!!").await;
    assert_eq!((garbled.status, garbled.header("grpc-status")), (200, Some("3")), "{garbled:?}");
    assert_eq!(server.live().await, 1);
}

#[tokio::test]
async fn a_message_of_grpc_web_may_be_compressed() {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let server = TestServer::memory(ROOMY).await;
    let message = flagged(1, &gzip(&prost::Message::encode_to_vec(&session("acme").message)));
    let packed = "grpc-encoding: gzip\r\n";
    let granted = send(&server, "POST", BORROW, &format!("{WEB}{packed}"), &message).await;
    let (answer, trailers) = parts(&granted.body);
    assert_eq!((answer.status(), trailers), (BorrowStatus::Borrowed, "grpc-status:0\r\n"));
    let text = format!("content-type: application/grpc-web-text\r\n{packed}");
    let granted = send(&server, "POST", BORROW, &text, base64.encode(&message).as_bytes()).await;
    assert_eq!((granted.status, server.live().await), (200, 2), "{granted:?}");

    let other = "grpc-encoding: br\r\n";
    let refused = send(&server, "POST", BORROW, &format!("{WEB}{other}"), &message).await;
    assert_eq!((refused.status, refused.header("grpc-status")), (200, Some("12")), "{refused:?}");
    assert_eq!(refused.header("grpc-accept-encoding"), Some("identity,gzip"), "{refused:?}");
}

#[tokio::test]
async fn a_call_of_grpc_web_needs_a_key_like_any_other() {
    let server = TestServer::memory(&two_indexers()).await;
    for headers in [WEB.to_owned(), format!("{WEB}x-api-key: guess\r\n")] {
        let refused = borrow(&server, &headers).await;
        assert_eq!((refused.status, refused.header("grpc-status")), (200, Some("16")));
        assert!(!refused.head.contains("guess") && refused.body.is_empty(), "{refused:?}");
    }
    for header in ["x-api-key: east-key\r\n", "authorization: Bearer east-key\r\n"] {
        let granted = borrow(&server, &format!("{WEB}{header}")).await;
        assert_eq!(parts(&granted.body).0.status(), BorrowStatus::Borrowed);
    }
    assert_eq!(server.live().await, 2);
}

async fn with_origins(origins: &[&str]) -> TestServer {
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.grpc_web_origins = origins.iter().map(|origin| origin.parse().unwrap()).collect();
    TestServer::start(config, clock).await
}

const PREFLIGHT: &str = "access-control-request-method: POST\r\n\
     access-control-request-headers: content-type,x-api-key,x-borrow-id,x-grpc-web\r\n";

#[tokio::test]
async fn pages_of_the_origins_that_were_named_may_call_and_no_others() {
    let server = with_origins(&["https://a.example", "http://b.example:8080"]).await;
    for origin in ["https://a.example", "http://b.example:8080"] {
        let header = format!("origin: {origin}\r\n");
        let allowed = send(&server, "OPTIONS", BORROW, &format!("{header}{PREFLIGHT}"), b"").await;
        assert_eq!(allowed.status, 200, "{allowed:?}");
        assert_eq!(allowed.header("access-control-allow-origin"), Some(origin));
        assert_eq!(allowed.header("access-control-allow-methods"), Some("POST"));
        assert_eq!(allowed.header("access-control-allow-credentials"), None);
        let headers = allowed.header("access-control-allow-headers").unwrap();
        for header in
            ["content-type", "x-api-key", "x-borrow-id", "x-idempotency-key", "grpc-encoding"]
        {
            assert!(headers.split(',').any(|known| known == header), "{headers}");
        }
        let granted = borrow(&server, &format!("{WEB}{header}")).await;
        assert_eq!(granted.header("access-control-allow-origin"), Some(origin));
        assert!(granted.header("vary").unwrap().contains("origin"), "{granted:?}");
        let shown = granted.header("access-control-expose-headers").unwrap();
        for header in ["grpc-status", "x-denied-scope", "grpc-accept-encoding"] {
            assert!(shown.split(',').any(|known| known == header), "{shown}");
        }
        assert_eq!(parts(&granted.body).0.status(), BorrowStatus::Borrowed);
    }
    for origin in ["https://evil.example", "https://a.example:444", "http://a.example", "null"] {
        let header = format!("origin: {origin}\r\n");
        for refused in [
            send(&server, "OPTIONS", BORROW, &format!("{header}{PREFLIGHT}"), b"").await,
            borrow(&server, &format!("{WEB}{header}")).await,
        ] {
            assert_eq!(refused.status, 403, "{refused:?}");
            assert_eq!(refused.header("access-control-allow-origin"), None);
        }
    }
    assert_eq!(server.live().await, 2);
}

#[tokio::test]
async fn without_origins_no_page_may_call_not_even_one_with_the_origin_of_the_server() {
    let server = TestServer::memory(ROOMY).await;
    let here = format!("origin: http://{}\r\n", server.running.grpc_address());
    for refused in [
        send(&server, "OPTIONS", BORROW, &format!("{here}{PREFLIGHT}"), b"").await,
        borrow(&server, &format!("{WEB}{here}")).await,
        send(&server, "OPTIONS", BORROW, "", b"").await,
    ] {
        assert!([403, 405].contains(&refused.status), "{refused:?}");
        assert!(!refused.head.contains("access-control"), "{refused:?}");
    }
    assert_eq!(server.live().await, 0);
    // A client that is not a page of a browser sends no origin.
    let granted = borrow(&server, WEB).await;
    assert!(!granted.head.contains("access-control-allow"), "{granted:?}");
    assert_eq!(server.live().await, 1);
}

#[tokio::test]
async fn a_request_that_is_not_grpc_web_is_refused_over_http_1_by_http_status() {
    let server = TestServer::memory(ROOMY).await;
    for (method, kind, status) in [
        ("POST", "application/grpc", 505),
        ("POST", "application/grpc+proto", 505),
        ("POST", "application/json", 415),
        ("POST", "application/grpc-web+json", 415),
        ("POST", "application/grpc-web+proto-and-more", 415),
        ("POST", "text/plain", 415),
        ("GET", "application/grpc-web+proto", 405),
        ("PUT", "application/grpc-web+proto", 405),
    ] {
        let headers = format!("content-type: {kind}\r\n");
        let body = framed(&session("acme").message);
        let refused = send(&server, method, BORROW, &headers, &body).await;
        assert_eq!((refused.status, refused.body.len()), (status, 0), "{method} {kind}");
    }
    let unknown = send(&server, "POST", "/no.such.Service/Method", WEB, b"").await;
    assert_eq!((unknown.status, unknown.header("grpc-status")), (200, Some("12")));
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn headers_that_are_too_large_and_malformed_requests_end_the_connection() {
    let server = TestServer::memory(ROOMY).await;
    let large = borrow(&server, &format!("{WEB}x-padding: {}\r\n", "p".repeat(40 * 1024))).await;
    assert_eq!(large.status, 431);
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    assert_eq!(borrow(&server, &format!("{WEB}{many}")).await.status, 431);
    let garbage = send(&server, "\u{1}\u{2}", BORROW, "", b"").await;
    assert_eq!(garbage.status, 400);
    assert_eq!(server.live().await, 0);
    assert_eq!(borrow(&server, WEB).await.status, 200);
}

#[tokio::test]
async fn a_connection_carries_one_call_after_another() {
    let server = TestServer::memory(ROOMY).await;
    let stream = TcpStream::connect(server.running.grpc_address()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..5 {
        let body = Full::new(Bytes::from(framed(&session("acme").message)));
        let request = Request::post(BORROW)
            .header(HOST, "test")
            .header(CONTENT_TYPE, "application/grpc-web+proto")
            .body(body);
        let response = sender.send_request(request.unwrap()).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(parts(&body).0.status(), BorrowStatus::Borrowed);
    }
    assert_eq!(server.live().await, 5);
}

#[tokio::test]
async fn a_borrow_whose_browser_left_before_the_answer_takes_no_slot() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    disk.hold();
    let mut left = TcpStream::connect(server.running.grpc_address()).await.unwrap();
    let body = framed(&session("acme").message);
    left.write_all(&head(body.len())).await.unwrap();
    left.write_all(&body).await.unwrap();
    eventually("the borrow is applied", || async { server.live().await == 1 }).await;
    drop(left);
    eventually("it is taken back", || async { server.live().await == 0 }).await;
    disk.release();
}

#[tokio::test]
async fn a_stop_closes_idle_connections_of_browsers() {
    let server = TestServer::slow_to_drain(ROOMY).await;
    let mut idle = TcpStream::connect(server.running.grpc_address()).await.unwrap();
    let body = framed(&session("acme").message);
    idle.write_all(&head(body.len())).await.unwrap();
    idle.write_all(&body).await.unwrap();
    eventually("the borrow is answered", || async { server.live().await == 1 }).await;
    let silent = TcpStream::connect(server.running.grpc_address()).await.unwrap();
    tokio::time::timeout(LONGEST_STOP, server.stop()).await.expect("it does not drain to the end");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(rest.windows(13).any(|text| text == b"grpc-status:0"), "it was answered before");
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_does_not_finish_its_headers_is_disconnected() {
    let server = TestServer::memory(ROOMY).await;
    let (mut client, stream) = tokio::io::duplex(4_096);
    let served = tokio::spawn(server.running.serve_stream(stream));
    client.write_all(b"POST / HTTP/1.1\r\nhost: test\r\n").await.unwrap();
    let began = tokio::time::Instant::now();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    let took = began.elapsed();
    assert!((59..=61).contains(&took.as_secs()), "{took:?}");
    served.await.unwrap();
}
