use std::time::Duration;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::places::{HEADER_TIMEOUT, IDLE_TIMEOUT, take_place};
use super::*;

const SHORT: Duration = Duration::from_millis(100);

/// Connects to a port with a few pages, through a pipe that holds `room` bytes.
fn connect(places: &Arc<AdminPlaces>, room: usize) -> (DuplexStream, JoinHandle<()>) {
    let router = Router::new()
        .route("/api/long", get(|| async { "long ".repeat(10_000) }))
        .route("/api/body", post(|body: String| async move { body }))
        .layer(axum::middleware::from_fn(take_place))
        .route("/healthz", get(|| async { "ok" }));
    let (here, there) = duplex(room);
    let peer = Peer(([127, 0, 0, 1], 1).into());
    (here, tokio::spawn(drive(there, peer, router, places.admit())))
}

/// Reads the head of one answer and `body` bytes of its body.
async fn answer(stream: &mut DuplexStream, body: usize) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.unwrap());
    }
    let mut rest = vec![0; body];
    stream.read_exact(&mut rest).await.unwrap();
    read.extend(rest);
    String::from_utf8(read).unwrap()
}

async fn ends_after(connection: JoinHandle<()>) -> Duration {
    let began = Instant::now();
    connection.await.unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn headers_have_to_be_whole_two_seconds_after_they_began() {
    let places = AdminPlaces::new();
    let (_silent, connection) = connect(&places, 1024);
    assert_eq!(ends_after(connection).await, HEADER_TIMEOUT);

    // Single bytes do not extend the timeout.
    let (mut drips, connection) = connect(&places, 1024);
    let dripping = tokio::spawn(async move {
        for byte in b"GET /healthz HTTP/1.1\r\nhost: h\r\nx-more: and more\r\n" {
            if drips.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(SHORT).await;
        }
    });
    assert_eq!(ends_after(connection).await, HEADER_TIMEOUT);
    dripping.await.unwrap();

    // An idle connection has a minute, and two seconds after its next request has begun.
    let (mut idle, connection) = connect(&places, 1024);
    for _ in 0..3 {
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        assert!(answer(&mut idle, 2).await.ends_with("ok"));
        tokio::time::sleep(IDLE_TIMEOUT - SHORT).await;
    }
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    answer(&mut idle, 2).await;
    idle.write_all(b"G").await.unwrap();
    assert_eq!(ends_after(connection).await, HEADER_TIMEOUT);
    let (mut idle, connection) = connect(&places, 1024);
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    answer(&mut idle, 2).await;
    assert_eq!(ends_after(connection).await, IDLE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_too_slowly_and_a_body_that_never_ends_time_out() {
    let places = AdminPlaces::new();
    let (mut slow, connection) = connect(&places, 64);
    let reading = tokio::spawn(async move {
        slow.write_all(b"GET /api/long HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        // Each write makes progress in time, but the whole answer would take hours.
        while slow.read_u8().await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    assert_eq!(ends_after(connection).await, Duration::from_secs(60));
    reading.abort();

    let (mut unfinished, connection) = connect(&places, 1024);
    let head = b"POST /api/body HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n";
    unfinished.write_all(head).await.unwrap();
    assert_eq!(ends_after(connection).await, Duration::from_secs(60));
}

#[tokio::test]
async fn probes_are_answered_while_slow_readers_have_every_place() {
    let places = AdminPlaces::new();
    let mut slow = Vec::new();
    for _ in 0..64 {
        let (mut stream, connection) = connect(&places, 1024);
        stream.write_all(b"GET /api/long HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'H');
        slow.push((stream, connection));
    }
    let (mut other, connection) = connect(&places, 1 << 20);
    other.write_all(b"GET /api/long HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut refused = String::new();
    other.read_to_string(&mut refused).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("\r\nconnection: close\r\n"));
    assert!(
        refused.ends_with("{\"error\":\"64 requests are being answered already\"}"),
        "{refused}"
    );
    connection.await.unwrap();

    let (mut probe, _connection) = connect(&places, 1024);
    probe.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    assert!(answer(&mut probe, 2).await.starts_with("HTTP/1.1 200 "));

    // A slow reader frees its place when it has read its answer to the end.
    let (mut reader, _connection) = slow.pop().unwrap();
    answer(&mut reader, 0).await;
    reader.read_exact(&mut vec![0; 50_000]).await.unwrap();
    let (mut other, _connection) = connect(&places, 1 << 20);
    other.write_all(b"GET /api/long HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    assert!(answer(&mut other, 50_000).await.starts_with("HTTP/1.1 200 "));
}
