//! Malformed calls, as raw bytes.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use tonic::Code;
use tonic::body::Body;
use tower::{Service as _, ServiceExt as _};
use wire::worker::KeepAliveRequest;

use crate::harness::{ROOMY, TestServer, channel, session};

/// A response: the HTTP status, and the gRPC status and message if it has any.
struct Raw {
    http: u16,
    grpc: Option<Code>,
    message: String,
}

async fn send(
    server: &TestServer,
    method: &str,
    content_type: &str,
    path: &str,
    body: &[u8],
) -> Raw {
    let mut channel = channel(server.running.grpc_address());
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::copy_from_slice(body))))
        .unwrap();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let find = |name| {
        let value = parts.headers.get(name).or_else(|| trailers.get(name))?;
        Some(value.to_str().unwrap().to_owned())
    };
    Raw {
        http: parts.status.as_u16(),
        grpc: find("grpc-status").map(|code| Code::from_bytes(code.as_bytes())),
        message: find("grpc-message").unwrap_or_default(),
    }
}

const BORROW: &str = "/sf.worker.v1.WorkerPool/BorrowWorker";

async fn borrow(server: &TestServer, body: &[u8]) -> Raw {
    send(server, "POST", "application/grpc", BORROW, body).await
}

/// A message with the gRPC prefix.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    body
}

#[tokio::test]
async fn a_body_that_is_not_one_message_is_an_invalid_argument() {
    let server = TestServer::memory(ROOMY).await;
    let good = framed(&prost::Message::encode_to_vec(&session("acme").message));
    let two = [good.clone(), good.clone()].concat();
    let cut = &good[..good.len() - 1];
    for body in [&[][..], &[0, 0], cut, &two, &framed(&[0xff; 8]), &framed(b"\x0a\x02\xff\xff")] {
        let answer = borrow(&server, body).await;
        assert_eq!(answer.grpc, Some(Code::InvalidArgument), "{body:?}: {}", answer.message);
    }
    assert_eq!(server.live().await, 0);
    assert_eq!(borrow(&server, &good).await.grpc, Some(Code::Ok));
    assert_eq!(server.live().await, 1);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_not_taken_for_a_spent_budget() {
    let server = TestServer::memory(ROOMY).await;
    let answer = borrow(&server, &framed(&vec![0x0a; 100_000])).await;
    assert_eq!(answer.grpc, Some(Code::InvalidArgument), "{}", answer.message);
    assert!(answer.message.contains("larger"), "{}", answer.message);
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = TestServer::memory(ROOMY).await;
    for path in ["/", "/sf.worker.v1.WorkerPool/", "/sf.worker.v1.WorkerPoolX/BorrowWorker", "/a/b"]
    {
        let answer = send(&server, "POST", "application/grpc", path, &framed(b"")).await;
        assert_eq!((answer.http, answer.grpc), (200, Some(Code::Unimplemented)), "{path}");
    }
}

#[tokio::test]
async fn an_unknown_stream_is_refused_though_its_caller_goes_on_sending() {
    let server = TestServer::memory(ROOMY).await;
    let mut grpc = tonic::client::Grpc::new(channel(server.running.grpc_address()));
    for path in ["/sf.worker.v1.Nothing/Attach", "/tgm.session.v1.SessionControl/Nothing"] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<KeepAliveRequest, KeepAliveRequest>::default();
        let endless = tokio_stream::pending();
        let path = http::uri::PathAndQuery::from_static(path);
        let call = grpc.streaming(tonic::Request::new(endless), path, codec);
        let status = call.await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
    }
}

#[tokio::test]
async fn a_request_that_is_not_grpc_is_refused_by_http_status() {
    let server = TestServer::memory(ROOMY).await;
    let answer = send(&server, "POST", "application/json", BORROW, b"{}").await;
    assert_eq!((answer.http, answer.grpc), (415, None));
    const ATTACH: &str = "/tgm.session.v1.SessionControl/Attach";
    for path in [BORROW, ATTACH] {
        let answer = send(&server, "GET", "application/grpc", path, b"").await;
        assert_eq!((answer.http, answer.grpc), (405, None));
    }
}

#[tokio::test]
async fn headers_that_are_too_large_are_not_taken_for_a_spent_budget() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let mut request = tonic::Request::new(session("acme").message);
    request.metadata_mut().insert("x-padding", "p".repeat(40 * 1024).parse().unwrap());
    let status = client.pool.borrow_worker(request).await.unwrap_err();
    assert!(!matches!(status.code(), Code::ResourceExhausted | Code::PermissionDenied), "{status}");
    assert_eq!(server.live().await, 0);
    client.borrow(session("acme")).await;
}

#[tokio::test]
async fn many_calls_refused_before_they_are_read_do_not_end_the_connection() {
    let policy = format!(
        "[services.t1r]\n[[indexers]]\nname = \"west\"\nkey_sha256 = \"{}\"",
        "0".repeat(64)
    );
    let server = TestServer::memory(&policy).await;
    let mut calls = tokio::task::JoinSet::new();
    let client = server.client().with_key("guess");
    for _ in 0..50 {
        let mut client = client.clone();
        calls.spawn(async move {
            for _ in 0..100 {
                let status = client.ask(session("acme")).await.unwrap_err();
                assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            }
        });
    }
    calls.join_all().await;
}

#[tokio::test]
async fn many_calls_cancelled_at_once_do_not_end_the_connection() {
    let server = TestServer::memory("[services.t1r]").await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    for _ in 0..20 {
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.ask(session("acme")).await.map(drop) })
            })
            .collect();
        tokio::task::yield_now().await;
        for call in calls {
            call.abort();
        }
        client.keep_alive(&key).await.unwrap();
    }
}
