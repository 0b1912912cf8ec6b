//! gRPC-Web in front of the layer, as browsers use it: over HTTP/1.1, with trailers in the body.

use std::net::SocketAddr;

use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tgm_session::SessionLayer;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Streaming};
use tonic_web::{GrpcWebCall, GrpcWebClientLayer, GrpcWebClientService, GrpcWebLayer};
use tower::util::BoxCloneSyncService;
use tower::{Layer as _, service_fn};

use crate::blocks::{Block, BlockStream, Blocks, BlocksClient, BlocksServer, Range};
use crate::harness::{ENDLESS, Sessions, Told, client, listen, of, soon};

type Fault = Box<dyn std::error::Error + Send + Sync>;
type WebBody = GrpcWebCall<tonic::body::Body>;
type Browser = BoxCloneSyncService<Request<WebBody>, Response<Incoming>, Fault>;

/// A service that sends the requested number of blocks. A stream without an end sends one block and
/// then waits.
fn quiet() -> impl Blocks {
    Told(async |_, Range { first, count }| {
        let blocks = (first..first + count.max(1)).map(|number| Ok(Block { number }));
        let blocks = tokio_stream::iter(blocks);
        Ok(match count {
            0 => Box::pin(blocks.chain(tokio_stream::pending())) as BlockStream,
            _ => Box::pin(blocks) as BlockStream,
        })
    })
}

/// Serves with the gRPC-Web layer outside of the session layer, as the documentation says.
async fn serve(layer: SessionLayer, blocks: impl Blocks) -> SocketAddr {
    let (address, listener) = listen().await;
    let server = Server::builder()
        .accept_http1(true)
        .layer(GrpcWebLayer::new())
        .layer(layer)
        .add_service(BlocksServer::new(blocks))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

async fn gate(sessions: &Sessions) -> SessionLayer {
    SessionLayer::new(sessions.pool("").await, "t1r")
}

/// Sends a request over HTTP/1.1, on a connection of its own that ends with its response.
async fn send<B>(address: SocketAddr, mut request: Request<B>) -> Result<Response<Incoming>, Fault>
where
    B: hyper::body::Body<Data: Send, Error: Into<Fault>> + Send + 'static,
{
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    request.headers_mut().insert(HOST, HeaderValue::from_static("test"));
    Ok(sender.send_request(request).await?)
}

/// A gRPC-Web client, as it runs in browsers.
fn web(address: SocketAddr) -> BlocksClient<GrpcWebClientService<Browser>> {
    let browser = service_fn(move |request| send(address, request));
    BlocksClient::new(GrpcWebClientLayer::new().layer(BoxCloneSyncService::new(browser)))
}

/// Opens an endless stream of `acme`, and returns the raw response.
async fn post(address: SocketAddr) -> Response<Incoming> {
    // A range of which every field is absent.
    let message = http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]));
    let request = Request::post("/example.v1.Blocks/Stream")
        .header(CONTENT_TYPE, "application/grpc-web+proto")
        .header("accept", "application/grpc-web+proto")
        .header("x-organization-id", "acme")
        .body(message);
    let response = send(address, request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response
}

async fn stream(address: SocketAddr, organization: &str, range: Range) -> Streaming<Block> {
    web(address).stream(of(organization, range)).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_stream_of_grpc_web_holds_its_session_until_its_body_is_over() {
    let sessions = Sessions::start().await;
    let address = serve(gate(&sessions).await, quiet()).await;

    let mut open = stream(address, "acme", ENDLESS).await;
    assert_eq!(open.message().await.unwrap(), Some(Block { number: 1 }));
    assert_eq!(sessions.count("t1r").await, 1);
    let mut whole = stream(address, "acme", Range { first: 5, count: 3 }).await;
    for number in 5..8 {
        assert_eq!(whole.message().await.unwrap(), Some(Block { number }));
    }
    assert_eq!(whole.message().await.unwrap(), None);
    sessions.until(1).await;
    // The user closes the tab of the browser.
    drop(open);
    sessions.until(0).await;
}

#[tokio::test]
async fn a_refusal_is_the_same_in_grpc_web_and_in_grpc() {
    let sessions = Sessions::start().await;
    let address = serve(gate(&sessions).await, quiet()).await;
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let held = [
        stream(address, "acme", ENDLESS).await,
        client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner(),
    ];
    let full = "Concurrent stream limit exceeded (active sessions: 2/2)";
    let refused = [
        web(address).stream(of("acme", ENDLESS)).await.unwrap_err(),
        client(&channel).stream(of("acme", ENDLESS)).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, full));
    }
    let stranger = web(address).head(tonic::Request::new(())).await.unwrap_err();
    assert_eq!(stranger.code(), Code::Unauthenticated);
    assert_eq!(sessions.count("t1r").await, held.len() as u64);
}

#[tokio::test]
async fn a_revocation_ends_the_body_with_the_trailers_of_grpc_web() {
    let sessions = Sessions::start().await;
    let address = serve(gate(&sessions).await, quiet()).await;
    let mut decoded = stream(address, "acme", ENDLESS).await;
    assert!(decoded.message().await.unwrap().is_some());
    let mut raw = post(address).await;
    assert_eq!(raw.headers()[CONTENT_TYPE], "application/grpc-web+proto");
    let block = raw.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(block[0], 0, "a message");

    sessions.disable_acme().await;
    let revoked = soon(decoded.message()).await.unwrap().unwrap_err();
    assert_eq!(revoked.code(), Code::PermissionDenied);
    assert!(revoked.message().contains("disabled"), "{}", revoked.message());
    let rest = soon(raw.collect()).await.unwrap().unwrap();
    assert_eq!(rest.trailers(), None, "HTTP/1.1 has none that a browser would show");
    let rest = rest.to_bytes();
    assert_eq!(rest[0], 0x80, "trailers, and after them the end");
    let length = u32::from_be_bytes(rest[1..5].try_into().unwrap());
    assert_eq!(length as usize, rest.len() - 5);
    assert!(rest.windows(14).any(|text| text == b"grpc-status:7\r"), "{rest:?}");
    sessions.until(0).await;
}

#[tokio::test]
async fn with_grpc_web_behind_the_layer_a_refusal_arrives_and_a_revocation_breaks_the_body_off() {
    let sessions = Sessions::start().await;
    let (address, listener) = listen().await;
    let server = Server::builder()
        .accept_http1(true)
        .layer(gate(&sessions).await)
        .layer(GrpcWebLayer::new())
        .add_service(BlocksServer::new(quiet()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let mut held = stream(address, "acme", ENDLESS).await;
    assert!(held.message().await.unwrap().is_some());
    let gone = web(address).stream(of("gone", ENDLESS)).await.unwrap_err();
    assert_eq!(gone.code(), Code::PermissionDenied);

    let mut raw = post(address).await;
    assert!(raw.frame().await.unwrap().is_ok());
    sessions.disable_acme().await;
    assert!(soon(raw.collect()).await.unwrap().is_err(), "nobody takes it for a good end");
    assert!(soon(held.message()).await.unwrap().is_err());
    sessions.until(0).await;
}
