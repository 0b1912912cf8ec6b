//! Probes are answered while all other places of the admin port are taken.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::admin_client::{AdminClient, raw};
use crate::harness::{ROOMY, TestServer};

/// Sends requests on a new connection. The last request may be incomplete.
async fn send(address: SocketAddr, requests: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // A small buffer, so that an answer to a client that does not read soon blocks.
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(requests.as_bytes()).await.unwrap();
    stream
}

fn request(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")
}

/// Reads until `text` has come.
async fn read_until(stream: &mut TcpStream, text: &str) {
    let mut read = Vec::new();
    while !read.ends_with(text.as_bytes()) {
        read.push(stream.read_u8().await.unwrap());
    }
}

async fn probe(address: SocketAddr, while_what: &str) {
    for path in ["/healthz", "/livez", "/readyz"] {
        // `raw` waits less than the minute that idle connections and slow readers may stay open.
        let answer = raw(address, "GET", path, &[("host", "any")], "").await;
        assert_eq!(answer.status, 200, "{path} {while_what}");
    }
}

#[tokio::test]
async fn probes_answer_beside_silent_incomplete_and_idle_connections() {
    let server = TestServer::memory(ROOMY).await;
    let address = server.running.admin_address();
    let mut others = Vec::new();
    for _ in 0..300 {
        others.push(send(address, "").await);
    }
    probe(address, "beside silent connections").await;
    for _ in 0..300 {
        others.push(send(address, "GET /api/overview HTTP/1.1\r\nhost:").await);
    }
    probe(address, "beside headers that do not end").await;
    for _ in 0..300 {
        let mut idle = send(address, &request(address, "/healthz")).await;
        read_until(&mut idle, "ok\n").await;
        others.push(idle);
    }
    probe(address, "beside idle connections").await;
    // The last connection was idle for the shortest time, so older connections were closed for it.
    let last = others.last_mut().unwrap();
    last.write_all(request(address, "/livez").as_bytes()).await.unwrap();
    read_until(last, "ok\n").await;
    let first = &mut others[0];
    assert_eq!(first.read(&mut [0; 16]).await.unwrap_or_default(), 0, "it was cut");
    assert_eq!(raw(address, "GET", "/metrics", &[("host", "localhost")], "").await.status, 200);
}

#[tokio::test]
async fn probes_and_the_metrics_answer_beside_streams_of_events_and_readers_that_read_nothing() {
    let server = TestServer::memory(ROOMY).await;
    let client = AdminClient::of(&server).await;
    let address = client.address;
    let mut others = Vec::new();
    for _ in 0..64 {
        let mut stream = send(address, &request(address, "/api/events")).await;
        read_until(&mut stream, "event: overview").await;
        others.push(stream);
    }
    client.ask("GET", "/api/events", "").await.problem(503);
    // Unread answers fill the buffers of their connections, until all places are taken.
    let path = "/api/openapi.json";
    let refused = loop {
        for _ in 0..16 {
            others.push(send(address, &request(address, path).repeat(100)).await);
        }
        let answer = raw(address, "GET", path, &[("host", "localhost")], "").await;
        assert!(others.len() < 500, "nobody who reads nothing has a place");
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.header("connection")), (503, Some("close")));
    probe(address, "beside readers that read nothing").await;
    assert_eq!(raw(address, "GET", "/metrics", &[("host", "localhost")], "").await.status, 200);
    assert_eq!(raw(address, "GET", "/", &[("host", "localhost")], "").await.status, 200);
}
