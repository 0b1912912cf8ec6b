//! The limits of one connection: sizes, numbers and timeouts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Error, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::harness::{ManualClock, ROOMY, TestServer, config, session};

pub(crate) const BORROW: &str = "/sf.worker.v1.WorkerPool/BorrowWorker";
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SHORT: Duration = Duration::from_millis(150);

/// Types of HTTP/2 frames.
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// Starts a server with the settings that `set` changes.
async fn server(set: impl FnOnce(&mut Config)) -> TestServer {
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    set(&mut config);
    TestServer::start(config, clock).await
}

/// A frame of HTTP/2 without flags.
pub(crate) fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    frame.extend(payload);
    frame
}

/// A TCP connection on which the test itself writes and reads HTTP/2 frames.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn to(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Type, flags, stream and payload of the next frame; `None` after the server closed the
    /// connection.
    pub(crate) async fn frame(&mut self) -> Option<(u8, u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], head[8], payload))
    }

    /// Waits until the server closes the connection. Returns how long that took, and the types of
    /// the frames before it.
    pub(crate) async fn closed(mut self) -> (Duration, Vec<u8>) {
        let (start, mut frames) = (Instant::now(), Vec::new());
        while let Some((kind, ..)) = self.frame().await {
            frames.push(kind);
        }
        (start.elapsed(), frames)
    }
}

/// The HPACK header block of a call. Path, authority and content type are not compressed.
pub(crate) fn header_block() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(&[4][..], BORROW), (&[1], "test"), (&[0x0f, 16], "application/grpc")] {
        block.extend(index);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    block
}

pub(crate) async fn connect(address: SocketAddr) -> SendRequest<Body> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let executor = TokioExecutor::new();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) fn call(body: Body) -> Request<Body> {
    Request::post(format!("http://test{BORROW}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// The complete body of a call: one message with the gRPC prefix.
pub(crate) fn message(bytes: &[u8]) -> Body {
    let mut body = vec![0];
    body.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    body.extend(bytes);
    Full::new(body.into()).boxed_unsync()
}

/// A body with the chunks that the test sends. It ends when the sender is dropped.
pub(crate) fn open_body() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(64);
    let frames = ReceiverStream::new(receiver).map(|data| Ok(Frame::data(data)));
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// The gRPC status code and message of a response.
pub(crate) async fn status(response: Response<Incoming>) -> (Code, String) {
    let headers = response.headers().clone();
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned();
    let status = Status::from_header_map(&trailers.unwrap_or(headers)).unwrap();
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn a_connection_past_the_handshake_timeout_is_closed_and_frees_its_place() {
    let server = server(|config| {
        config.port.handshake_timeout = SHORT;
        config.max_connections = 1;
    })
    .await;
    for first in [&b""[..], &PREFACE[..20], b"POST "] {
        let mut silent = Raw::to(server.running.grpc_address()).await;
        silent.send(first).await;
        let (took, _) = silent.closed().await;
        assert!(took < Duration::from_secs(8), "{took:?}");
    }
    server.client().borrow(session("acme")).await;
}

#[tokio::test]
async fn a_connection_after_its_preface_may_be_idle_past_the_handshake_timeout() {
    let server = server(|config| config.port.handshake_timeout = SHORT).await;
    let address = server.running.grpc_address();
    let mut spoke = Raw::to(address).await;
    spoke.send(PREFACE).await;
    spoke.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(spoke.frame().await.unwrap().0, SETTINGS);
    // A later connection is closed by the handshake timeout, so this one is older than the timeout.
    Raw::to(address).await.closed().await;
    spoke.send(&frame(PING, 0, 0, b"12345678")).await;
    loop {
        let (kind, flags, _, payload) = spoke.frame().await.expect("it was let go");
        if (kind, flags) == (PING, 1) {
            assert_eq!(payload, b"12345678");
            break;
        }
    }
}

#[tokio::test]
async fn a_call_whose_message_does_not_arrive_is_unavailable_and_the_others_go_on() {
    let server = server(|config| config.port.request_timeout = SHORT).await;
    let mut connection = connect(server.running.grpc_address()).await;
    for begun in [&b""[..], &[0, 0, 0], &[0, 0, 0, 0, 9, 10]] {
        let (sender, body) = open_body();
        sender.send(Bytes::copy_from_slice(begun)).await.unwrap();
        let slow = connection.send_request(call(body)).await.unwrap();
        let (code, words) = status(slow).await;
        assert_eq!((code, &*words), (Code::Unavailable, "the message did not arrive within 150ms"));
        let quick = connection.send_request(call(message(&[]))).await.unwrap();
        assert_eq!(status(quick).await.0, Code::InvalidArgument);
    }
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn a_message_that_arrives_slowly_has_no_more_time_than_one_that_stops() {
    let server = server(|config| config.port.request_timeout = SHORT).await;
    let mut connection = connect(server.running.grpc_address()).await;
    let (sender, body) = open_body();
    let trickle = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SHORT / 10);
        while sender.send(Bytes::from_static(&[0])).await.is_ok() {
            ticks.tick().await;
        }
    });
    let response = connection.send_request(call(body)).await.unwrap();
    assert_eq!(status(response).await.0, Code::Unavailable);
    trickle.abort();
}

#[tokio::test]
async fn a_message_may_be_as_large_as_the_setting_says() {
    let asked = session("acme").message.encode_to_vec();
    let limit = 100_000;
    let server = server(|config| config.port.max_message_bytes = limit).await;
    let mut connection = connect(server.running.grpc_address()).await;
    // An unknown field, number 15, makes the message longer.
    let padded = |length: usize| {
        let mut bytes = asked.clone();
        bytes.push(0x7a);
        prost::encoding::encode_varint(length as u64, &mut bytes);
        bytes.resize(bytes.len() + length, b'x');
        bytes
    };
    let fits = padded(90_000);
    let response = connection.send_request(call(message(&fits))).await.unwrap();
    assert_eq!(status(response).await.0, Code::Ok);
    let response = connection.send_request(call(message(&padded(100_000)))).await.unwrap();
    let (code, words) = status(response).await;
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(words, "the message is larger than 100000 bytes");
}

#[tokio::test]
async fn headers_past_the_setting_are_refused_and_the_connection_goes_on() {
    let server = server(|config| config.port.max_header_bytes = 8 << 10).await;
    let mut connection = connect(server.running.grpc_address()).await;
    for (size, refused) in [(7_000, false), (9_000, true)] {
        let mut request = call(message(&session("acme").message.encode_to_vec()));
        request.headers_mut().insert("x-filler", "x".repeat(size).parse().unwrap());
        let response = connection.send_request(request).await.unwrap();
        assert_eq!(response.status() == 431, refused, "{size}: {response:?}");
    }
    assert_eq!(server.live().await, 1);
}

#[tokio::test]
async fn calls_past_the_setting_are_refused_one_by_one() {
    let server = server(|config| config.port.max_streams = 2).await;
    let mut raw = Raw::to(server.running.grpc_address()).await;
    raw.send(PREFACE).await;
    raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    let (kind, _, _, settings) = raw.frame().await.unwrap();
    assert_eq!(kind, SETTINGS);
    let announced = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
    assert_eq!(announced[2..], [0, 0, 0, 2], "most concurrent streams");
    // Three calls at once. None of them ends its stream.
    let end_headers = 4;
    raw.send(&frame(HEADERS, end_headers, 1, &header_block())).await;
    raw.send(&frame(HEADERS, end_headers, 3, &header_block())).await;
    raw.send(&frame(HEADERS, end_headers, 5, &header_block())).await;
    loop {
        let (kind, _, stream, payload) = raw.frame().await.expect("the connection was closed");
        if kind == RST_STREAM {
            assert_eq!(
                (stream, &payload[..]),
                (5, &[0, 0, 0, 7][..]),
                "refused, and safe to retry"
            );
            break;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_disconnected() {
    let server = server(|config| {
        config.port.ping_interval = SHORT;
        config.port.ping_timeout = SHORT;
    })
    .await;
    let mut raw = Raw::to(server.running.grpc_address()).await;
    raw.send(PREFACE).await;
    raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    let (took, frames) = raw.closed().await;
    assert!(frames.contains(&PING), "{frames:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn a_stop_waits_for_calls_as_long_as_the_setting_says() {
    for drain in [Duration::ZERO, SHORT] {
        let server = server(|config| config.port.drain_timeout = drain).await;
        let mut connection = connect(server.running.grpc_address()).await;
        let (sender, body) = open_body();
        let call = tokio::spawn(connection.send_request(call(body)));
        sender.send(Bytes::from_static(&[0])).await.unwrap();
        // When a later call has been answered, the first one is in flight.
        connection.send_request(self::call(message(&[]))).await.unwrap();
        let started = Instant::now();
        server.stop().await;
        let took = started.elapsed();
        assert!(took >= drain && took < Duration::from_secs(8), "{took:?}");
        assert!(call.await.unwrap().is_err(), "the call was cut off");
        drop(sender);
    }
}

#[tokio::test]
async fn a_setting_out_of_its_bounds_keeps_a_server_from_being_bound() {
    let clock = ManualClock::new();
    let set: [fn(&mut Config); 4] = [
        |config| config.port.idle_timeout = Duration::from_secs(299),
        |config| config.port.max_streams = 1,
        |config| config.max_connections = 0,
        |config| config.threads = 0,
    ];
    for (set, name) in set.into_iter().zip(["idle_timeout", "max_streams", "max_conn", "threads"]) {
        let mut config = config(ROOMY, &clock, StoreUrl::Memory);
        set(&mut config);
        let error = Server::bind(config).await.unwrap_err();
        assert!(matches!(error, Error::Setting { .. }) && error.is_usage(), "{error:?}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
}
