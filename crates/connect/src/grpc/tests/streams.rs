use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use wire::control::session_control_client::SessionControlClient;
use wire::control::{AttachRequest, AttachResponse};

use super::*;
use crate::http2::tests::by_pipe;

/// A request whose body is what the sender sends.
fn request() -> (mpsc::UnboundedSender<Bytes>, Request<Body>) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let pieces = UnboundedReceiverStream::new(pieces);
    let frames = pieces.map(|piece| Ok::<_, Status>(Frame::data(piece)));
    (sender, Request::post("http://h/").body(Body::new(StreamBody::new(frames))).unwrap())
}

#[tokio::test]
async fn a_body_is_sent_within_the_flow_control_window_after_the_response_has_begun() {
    let (mut connection, mut made) = by_pipe();
    let (pieces, request) = request();
    let server = tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(100);
        let mut server = builder.handshake::<_, Bytes>(made.recv().await.unwrap()).await.unwrap();
        let (request, mut respond) = server.accept().await.unwrap().unwrap();
        let driven = tokio::spawn(async move { while server.accept().await.is_some() {} });
        let mut answer = respond.send_response(HttpResponse::new(()), false).unwrap();
        let (mut body, mut heard) = (request.into_body(), 0);
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            assert!(piece.len() <= 100);
            heard += piece.len();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
        answer.send_data(Bytes::from(heard.to_string()), true).unwrap();
        driven.await.unwrap();
    });
    let mut answer = connection.call(request).await.unwrap().into_body();
    for length in [1, 99, 100, 101, 0, 5000] {
        pieces.send(Bytes::from(vec![7; length])).unwrap();
    }
    drop(pieces);
    let said = answer.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(said, "5301");
    assert!(answer.frame().await.is_none());
    drop((answer, connection));
    server.await.unwrap();
}

#[tokio::test]
async fn a_response_before_the_end_of_the_request_is_read() {
    let (mut connection, mut made) = by_pipe();
    let (pieces, request) = request();
    pieces.send(Bytes::from(vec![7; 1 << 20])).unwrap();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(made.recv().await.unwrap()).await.unwrap();
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let unknown = Status::unimplemented("there is no such service").into_http::<()>();
        respond.send_response(unknown, true).unwrap();
        drop(respond);
        while server.accept().await.is_some() {}
    });
    let answer = connection.call(request).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    assert!(answer.into_body().frame().await.is_none_or(|frame| frame.is_err()));
}

#[tokio::test]
async fn details_of_a_status_are_removed_before_tonic_reads_them() {
    let (mut connection, mut made) = by_pipe();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(made.recv().await.unwrap()).await.unwrap();
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let nonsense =
            HttpResponse::builder().header("grpc-status-details-bin", "%$!").body(()).unwrap();
        let mut body = respond.send_response(nonsense.clone(), false).unwrap();
        let _: &mut SendStream<Bytes> = &mut body;
        body.send_trailers(nonsense.into_parts().0.headers).unwrap();
        while server.accept().await.is_some() {}
    });
    let answer = connection.call(request().1).await.unwrap();
    assert!(answer.headers().is_empty());
    let trailers = answer.into_body().frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert!(trailers.is_empty());
}

#[tokio::test]
async fn uncompressed_messages_of_a_stream_are_read_until_a_compressed_one() {
    let (connection, mut made) = by_pipe();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(made.recv().await.unwrap()).await.unwrap();
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let head = HttpResponse::builder().header("grpc-encoding", "gzip").body(()).unwrap();
        let mut body = respond.send_response(head, false).unwrap();
        body.send_data(Bytes::from_static(b"\0\0\0\0\0\x01\0\0\0\x01x"), false).unwrap();
        while server.accept().await.is_some() {}
    });
    let origin = http::Uri::from_static("http://h/");
    let mut control = SessionControlClient::with_origin(connection, origin);
    let answer = control.attach(tokio_stream::pending::<AttachRequest>()).await;
    let mut events = answer.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap(), Some(AttachResponse::default()));
    let status = events.message().await.unwrap_err();
    // Not UNIMPLEMENTED, which would say that the server has no such stream.
    assert_eq!(status.code(), tonic::Code::Internal, "{status}");
}
