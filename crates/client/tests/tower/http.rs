use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tgm_session::{Pool, Session, SessionLayer};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Sessions, listen, soon};

type Chunk = Result<Bytes, std::io::Error>;

async fn serve(pool: Pool, app: Router) -> SocketAddr {
    let (address, listener) = listen().await;
    let app = app.layer(SessionLayer::new(pool, "t1r").exempt("/live"));
    tokio::spawn(async { axum::serve(listener, app).await });
    address
}

/// One request, on a connection of its own that ends with the response.
async fn ask(address: SocketAddr, path: &str, organization: Option<&str>) -> Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::get(path).header("host", "test");
    if let Some(organization) = organization {
        request = request.header("x-organization-id", organization);
    }
    sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// An application with one response body, and the channel through which the test sends its chunks.
fn told() -> (Router, mpsc::Sender<Chunk>) {
    let (sender, chunks) = mpsc::channel(8);
    let chunks = Arc::new(std::sync::Mutex::new(Some(chunks)));
    let body = move || async move {
        let chunks = chunks.lock().unwrap().take().unwrap();
        Body::from_stream(ReceiverStream::new(chunks))
    };
    (Router::new().route("/stream", get(body)), sender)
}

#[tokio::test]
async fn a_body_holds_its_session_until_it_has_ended() {
    let sessions = Sessions::start().await;
    let (app, chunks) = told();
    let address = serve(sessions.pool("").await, app).await;
    let mut response = ask(address, "/stream", Some("acme")).await;
    chunks.send(Ok("one".into())).await.unwrap();
    let frame = response.frame().await.unwrap().unwrap();
    assert_eq!((&**frame.data_ref().unwrap(), sessions.count("t1r").await), (&b"one"[..], 1));
    drop(chunks);
    assert!(response.frame().await.is_none());
    sessions.until(0).await;
}

#[tokio::test]
async fn a_body_that_fails_frees_its_slot() {
    let sessions = Sessions::start().await;
    let (app, chunks) = told();
    let address = serve(sessions.pool("").await, app).await;
    let mut response = ask(address, "/stream", Some("acme")).await;
    chunks.send(Err(std::io::Error::other("the disk is gone"))).await.unwrap();
    assert!(response.frame().await.unwrap().is_err());
    sessions.until(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let sessions = Sessions::start().await;
    let (app, chunks) = told();
    let address = serve(sessions.pool("").await, app).await;
    let mut response = ask(address, "/stream", Some("acme")).await;
    chunks.send(Ok("one".into())).await.unwrap();
    assert!(response.frame().await.unwrap().is_ok());
    drop(response);
    sessions.until(0).await;
    // The body of the handler is dropped, too.
    soon(chunks.closed()).await.unwrap();
}

#[tokio::test]
async fn a_revoked_session_breaks_its_body_off() {
    let sessions = Sessions::start().await;
    let (app, chunks) = told();
    let address = serve(sessions.pool("").await, app).await;
    let mut response = ask(address, "/stream", Some("acme")).await;
    chunks.send(Ok("one".into())).await.unwrap();
    assert!(response.frame().await.unwrap().is_ok());
    sessions.disable_acme().await;
    // The body fails instead of ending, so that the client does not take it for complete.
    let broken = soon(response.frame()).await.unwrap().unwrap();
    assert!(broken.is_err(), "{broken:?}");
    soon(chunks.closed()).await.unwrap();
    assert_eq!(sessions.count("t1r").await, 0);
}

#[tokio::test]
async fn a_revocation_before_the_answer_is_the_answer() {
    let sessions = Sessions::start().await;
    let inside = Arc::new(Notify::new());
    let entered = inside.clone();
    let handler = move || {
        entered.notify_one();
        std::future::pending::<String>()
    };
    let address = serve(sessions.pool("").await, Router::new().route("/slow", get(handler))).await;
    let (response, ()) = tokio::join!(soon(ask(address, "/slow", Some("acme"))), async {
        inside.notified().await;
        sessions.disable_acme().await;
    });
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(text(response).await.contains("disabled"));
}

#[tokio::test]
async fn each_refusal_has_its_status_and_says_why() {
    let sessions = Sessions::start().await;
    let (app, _chunks) = told();
    let app = app.route("/hello", get(async || "hello"));
    let address = serve(sessions.pool("").await, app).await;
    let stream = ask(address, "/stream", Some("acme")).await;
    let pool = sessions.pool("").await;
    let _second = pool.borrow(tgm_session::SessionRequest::new("t1r", "acme")).await.unwrap();
    let long = "x".repeat(5000);
    for (organization, status, words) in [
        (Some("acme"), 429, "Concurrent stream limit exceeded (active sessions: 2/2)"),
        (Some("gone"), 403, "disabled"),
        (None, 401, "x-organization-id"),
        (Some(&*long), 400, "organization"),
        (Some("umbra"), 200, "hello"),
    ] {
        let response = ask(address, "/hello", organization).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        let said = text(response).await;
        assert!(said.contains(words), "{said}");
    }
    drop(stream);
}

#[tokio::test]
async fn without_a_session_server_the_response_is_service_unavailable() {
    let (nobody, listener) = listen().await;
    drop(listener);
    let url = format!("tgm://{nobody}?plaintext=true&borrow-timeout=200ms");
    let pool = tgm_session::connect(&url).await.unwrap();
    let app = Router::new().route("/hello", get(async || "hello"));
    let app = app.route("/live", get(async || "live"));
    let address = serve(pool, app).await;
    let response = ask(address, "/hello", Some("acme")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(response).await.starts_with("session server unavailable: "));
    // An exempt path needs no session.
    let response = ask(address, "/live", None).await;
    assert_eq!((response.status(), &*text(response).await), (StatusCode::OK, "live"));
}

#[tokio::test]
async fn a_handler_finds_its_session_among_the_extensions() {
    let sessions = Arc::new(Sessions::start().await);
    let seen = sessions.clone();
    let handler = move |Extension(session): Extension<Arc<Session>>| {
        let seen = seen.clone();
        async move {
            let _worker = session.borrow_worker("t2w", 1).await.unwrap();
            format!("{} {}", seen.count("t1r").await, seen.count("t2w").await)
        }
    };
    let app = Router::new().route("/count", get(handler));
    let address = serve(sessions.pool("").await, app).await;
    let response = ask(address, "/count", Some("acme")).await;
    // A body of known length is sent with its length.
    assert_eq!(response.headers()["content-length"], "3");
    assert_eq!(text(response).await, "1 1");
    sessions.until(0).await;
    assert_eq!(sessions.count("t2w").await, 0);
}

#[tokio::test]
async fn closing_the_pool_returns_every_session_and_breaks_its_body_off() {
    let sessions = Sessions::start().await;
    let pool = sessions.pool("").await;
    let (app, chunks) = told();
    let address = serve(pool.clone(), app).await;
    let mut response = ask(address, "/stream", Some("acme")).await;
    assert!(response.frame().now_or_never().is_none());
    assert_eq!(pool.close(Duration::from_secs(5)).await.returned, 1);
    assert!(soon(response.frame()).await.unwrap().unwrap().is_err());
    soon(chunks.closed()).await.unwrap();
    assert_eq!(sessions.count("t1r").await, 0);
}
