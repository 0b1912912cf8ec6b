//! Calls of the layer without a transport, so that a test decides what is polled and what is
//! dropped.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use tgm_session::{Pool, SessionBody, SessionLayer, SessionRequest};
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;
use tower::{Layer as _, Service as _, ServiceExt as _};

use crate::harness::{Sessions, soon};

fn request(content_type: &str) -> Request<Body> {
    let request = Request::post("/x").header("content-type", content_type);
    request.header("x-organization-id", "acme").body(Body::empty()).unwrap()
}

/// A body of three data frames and trailers. Each of the four is pending once before it is ready.
fn slow_body() -> Body {
    let frames = tokio_stream::iter(0..4u8).then(async |number| {
        tokio::task::yield_now().await;
        let trailers = || HeaderMap::from_iter([("x-end".parse().unwrap(), 1.into())]);
        Ok::<_, Infallible>(match number {
            3 => Frame::trailers(trailers()),
            number => Frame::data(Bytes::from(vec![number])),
        })
    });
    Body::new(StreamBody::new(frames))
}

/// A gated service that is pending once, and then answers with `body`.
fn service(
    pool: Pool,
    body: fn() -> Body,
) -> impl tower::Service<
    Request<Body>,
    Response = Response<SessionBody<Body>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    SessionLayer::new(pool, "t1r").layer(tower::service_fn(move |_: Request<Body>| async move {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Response::new(body()))
    }))
}

/// Polls a future at most `times` times. Drops it if it is not ready then.
async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[test]
fn a_request_outside_of_a_runtime_or_of_a_pool_whose_runtime_is_gone_is_refused() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (home, elsewhere) = (runtime(), runtime());
    let pool = home.block_on(tgm_session::connect("tgm://127.0.0.1:1?plaintext=true")).unwrap();
    let gated = service(pool, slow_body);
    let outside = gated.clone().oneshot(request("text/plain")).now_or_never().unwrap().unwrap();
    assert_eq!(outside.status(), 400);
    drop(home);
    let gone = elsewhere.block_on(gated.oneshot(request("text/plain"))).unwrap();
    assert_eq!(gone.status(), 503);
}

#[tokio::test]
async fn a_request_dropped_at_any_point_leaves_no_session_behind() {
    let sessions = Sessions::start().await;
    let pool = sessions.pool("").await;
    let gated = service(pool.clone(), slow_body);
    let mut stopped = 0;
    loop {
        let done = polled(stopped, async {
            let response = gated.clone().oneshot(request("text/plain")).await.unwrap();
            response.into_body().collect().await.unwrap()
        })
        .await;
        sessions.until(0).await;
        if let Some(whole) = done {
            assert!(whole.trailers().is_some());
            assert_eq!(whole.to_bytes(), [0, 1, 2].as_slice());
            break;
        }
        stopped += 1;
    }
    assert!(stopped > 5, "it was dropped at {stopped} points only");
    // When the pool is closed, the server has handled every call that was in flight.
    assert_eq!(pool.close(Duration::from_secs(5)).await.not_returned, 0);
    assert_eq!(sessions.count("t1r").await, 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_borrow_is_in_flight_takes_no_slot() {
    let sessions = Sessions::start().await;
    let (arrived, ran) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
    let (arrival, running) = (arrived.clone(), ran.clone());
    let pool = sessions.pool("borrow-wait=1m").await;
    let layer = SessionLayer::identified_by(pool.clone(), move |_| {
        arrival.notify_one();
        Ok(SessionRequest::new("t1r", "acme"))
    });
    let mut gated = layer.layer(tower::service_fn(move |_: Request<Body>| {
        running.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, Infallible>(Response::new(slow_body())) }
    }));
    let one = gated.call(request("text/plain")).await.unwrap();
    let two = gated.call(request("text/plain")).await.unwrap();
    arrived.notified().await;
    let waiting = gated.call(request("text/plain"));
    tokio::select! {
        _ = waiting => panic!("there is no slot"),
        () = arrived.notified() => {}
    }
    drop((one, two));
    assert_eq!(pool.close(Duration::from_secs(5)).await.not_returned, 0);
    assert_eq!((sessions.count("t1r").await, ran.load(Ordering::Relaxed)), (0, 2));
}

#[tokio::test]
async fn the_session_is_returned_after_the_last_frame_and_before_the_body_is_dropped() {
    let sessions = Sessions::start().await;
    let gated = service(sessions.pool("").await, slow_body);
    let mut body = gated.oneshot(request("text/plain")).await.unwrap().into_body();
    for _ in 0..3 {
        assert!(body.frame().await.unwrap().unwrap().is_data());
        assert!(!body.is_end_stream());
        assert_eq!(sessions.count("t1r").await, 1);
    }
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    sessions.until(0).await;
    assert!(body.is_end_stream() && body.frame().await.is_none());
}

#[tokio::test]
async fn a_refusal_of_grpc_is_a_response_with_trailers_only() {
    let sessions = Sessions::start().await;
    let pool = sessions.pool("default-max-request-per-organization=0").await;
    for kind in ["application/grpc", "application/grpc-web+proto"] {
        let gated = service(pool.clone(), || panic!("the handler ran"));
        let response = gated.oneshot(request(kind)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], kind);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert!(response.headers().contains_key("grpc-message"));
        assert!(response.body().is_end_stream());
    }
}

#[tokio::test]
async fn a_revocation_ends_a_body_with_trailers_in_grpc_and_with_an_error_elsewhere() {
    for (kind, told) in [
        ("application/grpc", true),
        ("application/grpc-web+proto", false),
        ("text/event-stream", false),
    ] {
        let sessions = Sessions::start().await;
        let endless = || Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>());
        let gated = service(sessions.pool("").await, endless);
        let mut body = gated.oneshot(request(kind)).await.unwrap().into_body();
        sessions.disable_acme().await;
        let last = soon(body.frame()).await.unwrap().unwrap();
        match last {
            Ok(frame) if told => {
                let trailers = frame.into_trailers().unwrap();
                assert_eq!(trailers["grpc-status"], "7");
                assert!(trailers["grpc-message"].to_str().unwrap().contains("disabled"));
            }
            Err(error) if !told => assert!(error.to_string().contains("disabled"), "{error}"),
            last => panic!("{kind}: {last:?}"),
        }
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_plain_body_keeps_its_length_and_a_grpc_body_has_none() {
    let sessions = Sessions::start().await;
    for (kind, length) in [("text/plain", Some(5)), ("application/grpc", None)] {
        let gated = service(sessions.pool("").await, || Body::from("whole"));
        let body = gated.oneshot(request(kind)).await.unwrap().into_body();
        assert_eq!(body.size_hint().exact(), length);
    }
}
