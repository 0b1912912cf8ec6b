use std::sync::Arc;

use futures_util::future::join_all;
use h2::Reason;
use h2::server::SendResponse;
use http::HeaderValue;
use tokio::net::TcpListener;
use wire::worker::{KeepAliveRequest, KeepAliveResponse, keep_alive_response};

use super::*;
use crate::host::Host;
use crate::http2::Connector;
use crate::http2::tests::by_pipe;
use crate::protocol::Protocol;
use crate::way::Way;

/// A gRPC frame with a message whose status is 1.
const EXTENDED: &[u8] = b"\0\0\0\0\x02\x08\x01";

fn keep_alive() -> (Request<()>, KeepAliveRequest) {
    let request = Request::post("http://h/sf.worker.v1.WorkerPool/KeepAlive").body(()).unwrap();
    (request, KeepAliveRequest { worker_key: "key".into(), api_key_id: String::new() })
}

/// Makes a call to a server that responds with `answer`.
async fn called(
    answer: impl FnOnce(SendResponse<Bytes>) + Send + 'static,
) -> Result<Response<KeepAliveResponse>, Status> {
    let (connection, mut made) = by_pipe();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(made.recv().await.unwrap()).await.unwrap();
        let (_, respond) = server.accept().await.unwrap().unwrap();
        answer(respond);
        while server.accept().await.is_some() {}
    });
    let (request, message) = keep_alive();
    call(&connection, request, &message).await
}

fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
    of.iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// Responds with pieces of a body and then trailers.
fn with(
    pieces: &'static [&'static [u8]],
    trailers: &'static [(&'static str, &'static str)],
) -> impl FnOnce(SendResponse<Bytes>) + Send {
    move |mut respond| {
        let mut head = HttpResponse::new(());
        *head.headers_mut() = headers(&[("x-lease-ttl-ms", "60000")]);
        let mut body = respond.send_response(head, false).unwrap();
        for piece in pieces {
            body.send_data(Bytes::from_static(piece), false).unwrap();
        }
        body.send_trailers(headers(trailers)).unwrap();
    }
}

/// Responds with headers only.
fn head(
    status: u16,
    of: &'static [(&'static str, &'static str)],
) -> impl FnOnce(SendResponse<Bytes>) + Send {
    move |mut respond| {
        let mut head = HttpResponse::new(());
        *head.status_mut() = StatusCode::from_u16(status).unwrap();
        *head.headers_mut() = headers(of);
        respond.send_response(head, true).unwrap();
    }
}

fn is_made_up_here(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

#[tokio::test]
async fn an_answer_in_any_number_of_pieces_is_one_message_with_the_metadata_of_both_ends() {
    for pieces in
        [&[EXTENDED][..], &[b"\0\0", b"\0\0\x02", b"\x08", b"\x01"], &[b"", EXTENDED, b""]]
    {
        let trailers = &[("grpc-status", "0"), ("x-denied-scope", "trace")];
        let answer = called(with(pieces, trailers)).await.unwrap();
        assert_eq!(answer.get_ref().status(), keep_alive_response::Status::TtlExtended);
        assert_eq!(answer.metadata().get("x-lease-ttl-ms").unwrap(), "60000");
        assert_eq!(answer.metadata().get("x-denied-scope").unwrap(), "trace");
    }
}

#[tokio::test]
async fn a_status_of_the_server_is_read_from_headers_and_from_trailers() {
    let denied = &[("grpc-status", "7"), ("grpc-message", "acme%20is disabled")];
    for status in [
        called(head(200, denied)).await.unwrap_err(),
        called(with(&[], denied)).await.unwrap_err(),
        // A message before the error status in the trailers is ignored.
        called(with(&[EXTENDED], denied)).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "acme is disabled"));
        assert!(!is_made_up_here(&status), "{status:?}");
    }
}

#[tokio::test]
async fn invalid_details_of_a_status_cause_no_panic() {
    let nonsense =
        &[("grpc-status", "8"), ("grpc-message", "spent"), ("grpc-status-details-bin", "%$!")];
    for status in [
        called(head(200, nonsense)).await.unwrap_err(),
        called(with(&[], nonsense)).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "spent"));
    }
}

#[tokio::test]
async fn a_status_keeps_its_code_when_its_message_is_not_utf_8() {
    for (code, number) in [(Code::PermissionDenied, "7"), (Code::ResourceExhausted, "8")] {
        let told: &'static [(&str, &str)] = match number {
            "7" => &[("grpc-status", "7"), ("grpc-message", "acme%FF is%20out")],
            _ => &[("grpc-status", "8"), ("grpc-message", "acme%FF is%20out")],
        };
        for status in
            [called(head(200, told)).await.unwrap_err(), called(with(&[], told)).await.unwrap_err()]
        {
            assert_eq!((status.code(), status.message()), (code, "acme\u{fffd} is out"));
            assert!(!is_made_up_here(&status), "{status:?}");
        }
    }
}

#[tokio::test]
async fn a_response_that_is_no_valid_grpc_becomes_a_status_of_the_client() {
    let fine = &[("grpc-status", "0")];
    for (why, status) in [
        ("503", called(head(503, &[])).await),
        ("403", called(head(403, &[("content-type", "text/html")])).await),
        ("without gRPC status", called(head(200, &[])).await),
        ("without gRPC status", called(with(&[EXTENDED], &[])).await),
        ("without a message", called(head(200, fine)).await),
        ("without a message", called(with(&[], fine)).await),
        ("without a message", called(with(&[b"\0\0\0"], fine)).await),
        ("exactly one message", called(with(&[EXTENDED, EXTENDED], fine)).await),
        ("exactly one message", called(with(&[b"\0\0\0\0\x09\x08\x01"], fine)).await),
        ("compressed", called(with(&[b"\x01\0\0\0\x02\x08\x01"], fine)).await),
        ("cannot be read", called(with(&[b"\0\0\0\0\x02\x08\xff"], fine)).await),
        ("more than 4194304 bytes", called(with(&[&[0; MOST_BYTES], b"1"], fine)).await),
        (
            "excessive load",
            called(|mut respond| respond.send_reset(Reason::ENHANCE_YOUR_CALM)).await,
        ),
        ("", called(|mut respond| drop(respond.send_response(HttpResponse::new(()), false))).await),
    ] {
        let status = status.unwrap_err();
        assert!(is_made_up_here(&status), "{why}: {status:?}");
        assert!(format!("{status:?}").contains(why), "{why}: {status:?}");
    }
}

#[tokio::test]
async fn a_great_many_calls_may_be_answered_at_once() {
    const CALLS: usize = 12_000;
    let (connection, mut made) = by_pipe();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(made.recv().await.unwrap()).await.unwrap();
        let mut waiting = Vec::new();
        while let Some(call) = server.accept().await {
            waiting.push(call.unwrap().1);
            if waiting.len() == CALLS {
                for respond in waiting.drain(..) {
                    with(&[EXTENDED], &[("grpc-status", "0")])(respond);
                }
            }
        }
    });
    let (request, message) = keep_alive();
    let calls = (0..CALLS).map(|_| call(&connection, request.clone(), &message));
    let answers: Vec<Result<Response<KeepAliveResponse>, _>> = join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled_on_the_server_too() {
    let (connection, mut made) = by_pipe();
    let (request, message) = keep_alive();
    let waits = call::<KeepAliveResponse>(&connection, request, &message);
    let server = async {
        let mut server = h2::server::handshake(made.recv().await.unwrap()).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(request.uri().path(), "/sf.worker.v1.WorkerPool/KeepAlive");
        (server, respond)
    };
    let (mut server, mut respond) = tokio::select! {
        _ = waits => panic!("nobody answers"),
        server = server => server,
    };
    let reset = std::future::poll_fn(|cx| respond.poll_reset(cx));
    tokio::select! {
        reason = reset => assert_eq!(reason.unwrap(), Reason::CANCEL),
        _ = server.accept() => panic!("nothing more is asked"),
    }
}

#[tokio::test]
async fn a_call_names_the_server_of_the_list_that_it_is_sent_to() {
    for (there, expected) in [("h", "http://h/"), ("::1", "http://[::1]:81/")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let way = Way::new(Host::new("h", 80), [Host::new("[::1]", 81)], Protocol::Http2);
        let way = way.resolved_by(Arc::new(move |host, _| {
            let addresses = if host == there { vec![address] } else { Vec::new() };
            Box::pin(async move { Ok(addresses) })
        }));
        let mut connection = Connection::new(Connector::Way(Arc::new(way)));
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut server = h2::server::handshake(stream).await.unwrap();
            let mut asked = Vec::new();
            while asked.len() < 2 {
                let (request, respond) = server.accept().await.unwrap().unwrap();
                asked.push(request.uri().to_string());
                with(&[EXTENDED], &[("grpc-status", "0")])(respond);
            }
            tokio::spawn(async move { while server.accept().await.is_some() {} });
            asked
        };
        let calls = async {
            let (request, message) = keep_alive();
            call::<KeepAliveResponse>(&connection.clone(), request, &message).await.unwrap();
            let streamed = Request::post("http://h/Attach").body(Body::empty()).unwrap();
            connection.call(streamed).await.unwrap();
        };
        let (asked, ()) = tokio::join!(server, calls);
        let expected =
            ["sf.worker.v1.WorkerPool/KeepAlive", "Attach"].map(|path| format!("{expected}{path}"));
        assert_eq!(asked, expected);
    }
}

#[tokio::test]
async fn only_a_stream_that_was_refused_was_certainly_not_handled() {
    let reset_for = |reason| move |mut respond: SendResponse<Bytes>| respond.send_reset(reason);
    for (reason, expected) in [
        (Reason::REFUSED_STREAM, true),
        (Reason::CANCEL, false),
        (Reason::INTERNAL_ERROR, false),
        (Reason::NO_ERROR, false),
    ] {
        let status = called(reset_for(reason)).await.unwrap_err();
        assert_eq!(was_not_handled(&status), expected, "{reason:?}: {status:?}");
    }
    let refused = called(head(200, &[("grpc-status", "14")])).await.unwrap_err();
    assert!(!was_not_handled(&refused));
}
