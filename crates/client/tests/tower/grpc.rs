use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tgm_session::{Error, Session, SessionLayer, SessionRequest};
use tokio::sync::Notify;
use tonic::{Code, Request, Status};

use crate::blocks::{Block, BlockStream, Range};
use crate::harness::{ENDLESS, NEVER, POLICY, Sessions, Told, busy, client, of, serve, soon};

async fn gate(sessions: &Sessions) -> SessionLayer {
    SessionLayer::new(sessions.pool("").await, "t1r")
}

#[tokio::test]
async fn a_stream_holds_one_session_from_before_its_handler_until_its_end() {
    let sessions = Arc::new(Sessions::start().await);
    let seen = sessions.clone();
    let service = Told(move |_: Arc<Session>, Range { first, .. }| {
        let seen = seen.clone();
        async move {
            let counted = seen.count("t1r").await;
            let blocks = [first, counted].map(|number| Ok(Block { number }));
            Ok(Box::pin(tokio_stream::iter(blocks)) as BlockStream)
        }
    });
    let channel = serve(gate(&sessions).await, service).await;
    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), Some(Block { number: 1 }));
    assert_eq!(stream.message().await.unwrap(), Some(Block { number: 1 }), "counted inside");
    assert_eq!(stream.message().await.unwrap(), None);
    sessions.until(0).await;
}

#[tokio::test]
async fn each_open_stream_counts_as_a_session() {
    let sessions = Sessions::start().await;
    let channel = serve(gate(&sessions).await, Told(async |_, _| Ok(NEVER()))).await;
    let one = client(&channel).stream(of("acme", ENDLESS)).await.unwrap();
    let two = client(&channel).stream(of("acme", ENDLESS)).await.unwrap();
    let other = client(&channel).stream(of("umbra", ENDLESS)).await.unwrap();
    assert_eq!(sessions.count("t1r").await, 3);
    drop((one, two, other));
    sessions.until(0).await;
}

#[tokio::test]
async fn a_stream_above_the_limit_is_refused_before_its_handler_runs() {
    let sessions = Sessions::start().await;
    let ran = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = ran.clone();
    let service = Told(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok(NEVER()) }
    });
    let channel = serve(gate(&sessions).await, service).await;
    let one = client(&channel).stream(of("acme", ENDLESS)).await.unwrap();
    let _two = client(&channel).stream(of("acme", ENDLESS)).await.unwrap();
    let refused = client(&channel).stream(of("acme", ENDLESS)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "Concurrent stream limit exceeded (active sessions: 2/2)");
    assert_eq!((ran.load(Ordering::Relaxed), sessions.count("t1r").await), (2, 2));
    // The next stream can use a slot that is free again.
    drop(one);
    sessions.until(1).await;
    let _three = client(&channel).stream(of("acme", ENDLESS)).await.unwrap();
    assert_eq!(sessions.count("t1r").await, 2);
}

#[tokio::test]
async fn the_limit_on_its_workers_holds_for_a_request_without_a_trace() {
    let sessions = Sessions::start().await;
    let service = Told(async |session: Arc<Session>, _| {
        let _one = session.borrow_worker("t2w", 1).await?;
        drop(session.borrow_worker("t2w", 1).await?);
        Ok(NEVER())
    });
    let channel = serve(gate(&sessions).await, service).await;
    let mut zeros = of("acme", ENDLESS);
    zeros.metadata_mut().insert("x-trace-id", "00000000000000000000000000000000".parse().unwrap());
    for request in [of("acme", ENDLESS), zeros] {
        let refused = client(&channel).stream(request).await.unwrap_err();
        assert_eq!(refused.message(), "Worker limit exceeded (active workers: 1/1)");
        sessions.until(0).await;
    }
}

#[tokio::test]
async fn a_unary_call_holds_its_session_until_it_is_answered() {
    let sessions = Sessions::start().await;
    let channel = serve(gate(&sessions).await, busy()).await;
    for _ in 0..5 {
        let head = client(&channel).head(of("acme", ())).await.unwrap();
        assert_eq!(head.get_ref().number, 7);
        sessions.until(0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_frees_its_slot() {
    let sessions = Sessions::start().await;
    let channel = serve(gate(&sessions).await, busy()).await;
    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(sessions.count("t1r").await, 1);
    drop(stream);
    sessions.until(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_frees_its_slot() {
    let sessions = Sessions::start().await;
    let inside = Arc::new(Notify::new());
    let entered = inside.clone();
    let service = Told(move |_, _| {
        entered.notify_one();
        pending()
    });
    let channel = serve(gate(&sessions).await, service).await;
    tokio::select! {
        _ = async { client(&channel).stream(of("acme", ENDLESS)).await } => panic!("answered"),
        () = inside.notified() => {}
    }
    sessions.until(0).await;
}

#[tokio::test]
async fn a_handler_that_fails_and_a_stream_that_fails_free_their_slots() {
    let sessions = Sessions::start().await;
    let service = Told(async |_, Range { first, .. }| {
        if first == 0 {
            return Err(Status::out_of_range("there is no block 0"));
        }
        let blocks = [Ok(Block { number: first }), Err(Status::data_loss("no more"))];
        Ok(Box::pin(tokio_stream::iter(blocks)) as BlockStream)
    });
    let channel = serve(gate(&sessions).await, service).await;
    let failed = client(&channel).stream(of("acme", Range { first: 0, count: 0 })).await;
    assert_eq!(failed.unwrap_err().code(), Code::OutOfRange);
    sessions.until(0).await;

    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), Some(Block { number: 1 }));
    let failed = stream.message().await.unwrap_err();
    assert_eq!((failed.code(), failed.message()), (Code::DataLoss, "no more"));
    sessions.until(0).await;
}

#[tokio::test]
async fn a_revoked_session_ends_its_stream_with_status_and_message() {
    let sessions = Sessions::start().await;
    let service = Told(async |_, Range { first, .. }| {
        use tokio_stream::StreamExt as _;
        let block = tokio_stream::once(Ok(Block { number: first }));
        Ok(Box::pin(block.chain(tokio_stream::pending())) as BlockStream)
    });
    let channel = serve(gate(&sessions).await, service).await;
    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    let mut other = client(&channel).stream(of("umbra", ENDLESS)).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some() && other.message().await.unwrap().is_some());
    sessions.disable_acme().await;
    let revoked = soon(stream.message()).await.unwrap().unwrap_err();
    assert_eq!(revoked.code(), Code::PermissionDenied);
    assert!(revoked.message().contains("disabled"), "{}", revoked.message());
    // The stream of the other organization goes on.
    assert_eq!(sessions.count("t1r").await, 1);
    assert!(other.message().now_or_never().is_none());
}

#[tokio::test]
async fn a_stream_that_always_has_another_block_does_not_outrun_its_revocation() {
    let sessions = Sessions::start().await;
    let channel = serve(gate(&sessions).await, busy()).await;
    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    let mut expected = 1;
    let mut revoke = Some(sessions.disable_acme());
    let revoked = soon(async {
        loop {
            match stream.message().await {
                Ok(block) => assert_eq!(block, Some(Block { number: expected }), "none is lost"),
                Err(status) => break status,
            }
            expected += 1;
            if expected > 1000
                && let Some(revoke) = revoke.take()
            {
                revoke.await;
            }
        }
    });
    assert_eq!(revoked.await.unwrap().code(), Code::PermissionDenied);
    assert_eq!(sessions.count("t1r").await, 0);
}

#[tokio::test]
async fn a_revocation_before_the_answer_is_the_answer_and_drops_the_handler() {
    struct Left(Arc<AtomicBool>);
    impl Drop for Left {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let sessions = Sessions::start().await;
    let left = Arc::new(AtomicBool::new(false));
    let handler = left.clone();
    let inside = Arc::new(Notify::new());
    let entered = inside.clone();
    let service = Told(move |_, _| {
        let guard = Left(handler.clone());
        entered.notify_one();
        async move {
            let _guard = guard;
            pending().await
        }
    });
    let channel = serve(gate(&sessions).await, service).await;
    let mut caller = client(&channel);
    let (answer, ()) = tokio::join!(soon(caller.head(of("acme", ()))), async {
        inside.notified().await;
        sessions.disable_acme().await;
    });
    assert_eq!(answer.unwrap().unwrap_err().code(), Code::PermissionDenied);
    assert!(left.load(Ordering::Acquire));
    assert_eq!(sessions.count("t1r").await, 0);
}

#[tokio::test]
async fn a_handler_borrows_workers_under_the_session_of_its_request() {
    let sessions = Sessions::start().await;
    let service = Told(async |session: Arc<Session>, _| {
        let worker = session.borrow_worker("t2w", 3).await?;
        let stream = async_stream(worker);
        Ok(Box::pin(stream) as BlockStream)
    });
    let channel = serve(gate(&sessions).await, service).await;
    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    assert_eq!((sessions.count("t1r").await, sessions.count("t2w").await), (1, 1));
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    sessions.until(0).await;
    assert_eq!(sessions.count("t2w").await, 0);
}

/// A stream of blocks that holds `worker` until it is dropped.
fn async_stream(
    worker: tgm_session::Worker,
) -> impl tokio_stream::Stream<Item = Result<Block, Status>> {
    use tokio_stream::StreamExt as _;
    let block = tokio_stream::once(Ok(Block { number: 1 }));
    block.chain(tokio_stream::pending()).map(move |block| {
        assert!(worker.end_reason().is_none());
        block
    })
}

#[tokio::test]
async fn a_handler_that_keeps_the_session_does_not_keep_its_slot() {
    let sessions = Sessions::start().await;
    let kept: Arc<std::sync::Mutex<Vec<Arc<Session>>>> = Arc::default();
    let keep = kept.clone();
    let service = Told(move |session, _| {
        keep.lock().unwrap().push(session);
        async { Ok(NEVER()) }
    });
    let channel = serve(gate(&sessions).await, service).await;
    let stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap();
    assert_eq!(sessions.count("t1r").await, 1);
    drop(stream);
    sessions.until(0).await;
    let session = kept.lock().unwrap().pop().unwrap();
    let late = session.borrow_worker("t2w", 3).await.unwrap_err();
    assert_eq!(late, Error::SessionNotFound);
}

#[tokio::test]
async fn a_request_without_an_organization_is_unauthenticated_and_borrows_nothing() {
    let sessions = Sessions::start().await;
    let channel = serve(gate(&sessions).await, busy()).await;
    let refused = client(&channel).stream(Request::new(ENDLESS)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("x-organization-id"), "{}", refused.message());
    assert_eq!(sessions.count("t1r").await, 0);
}

#[tokio::test]
async fn health_is_answered_without_a_session_and_everything_else_is_not() {
    let sessions = Sessions::start().await;
    let pool = sessions.pool("").await;
    assert_eq!(pool.close(Duration::from_secs(1)).await.not_returned, 0);
    let channel = serve(SessionLayer::new(pool, "t1r"), busy()).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let check = tonic_health::pb::HealthCheckRequest::default();
    assert_eq!(health.check(check.clone()).await.unwrap().get_ref().status, 1);
    let mut watch = health.watch(check).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let refused = client(&channel).head(of("acme", ())).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "the session pool is closed")
    );
}

#[tokio::test]
async fn exempt_services_need_no_session_and_services_with_similar_names_do() {
    let sessions = Sessions::start().await;
    let layer = gate(&sessions).await.exempt("/example.v1.Block");
    let channel = serve(layer, busy()).await;
    let refused = client(&channel).head(Request::new(())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let layer = gate(&sessions).await.exempt("/example.v1.Blocks/");
    let channel = serve(layer, Ungated).await;
    assert_eq!(client(&channel).head(Request::new(())).await.unwrap().get_ref().number, 3);
    assert_eq!(sessions.count("t1r").await, 0);
}

/// Answers only requests that have no session.
struct Ungated;

impl crate::blocks::Blocks for Ungated {
    async fn stream(&self, _: Request<Range>) -> Result<tonic::Response<BlockStream>, Status> {
        Err(Status::unimplemented("nobody calls this"))
    }

    async fn head(&self, request: Request<()>) -> Result<tonic::Response<Block>, Status> {
        assert!(request.extensions().get::<Arc<Session>>().is_none());
        Ok(tonic::Response::new(Block { number: 3 }))
    }
}

#[tokio::test]
async fn a_closure_can_name_the_organization_and_service_of_a_request() {
    let sessions = Sessions::start().await;
    let layer = SessionLayer::identified_by(sessions.pool("").await, |request| {
        let token = request
            .headers
            .get("authorization")
            .ok_or(Error::Unauthenticated { message: "no token".into() })?;
        assert_eq!(
            (token.as_bytes(), request.uri.path()),
            (&b"let me in"[..], "/example.v1.Blocks/Stream")
        );
        Ok(SessionRequest::new("t1r", "gone"))
    });
    let channel = serve(layer, busy()).await;
    let refused = client(&channel).stream(of("acme", ENDLESS)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unauthenticated, "unauthenticated: no token")
    );
    let mut request = Request::new(ENDLESS);
    request.metadata_mut().insert("authorization", "let me in".parse().unwrap());
    let refused = client(&channel).stream(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("disabled"), "{}", refused.message());
}

#[tokio::test]
async fn a_service_without_an_indexer_key_is_unavailable_and_blames_no_caller() {
    let indexers = format!("[[indexers]]\nname = \"west\"\nkey_sha256 = \"{}\"", "0".repeat(64));
    let sessions = Sessions::with(&format!("{POLICY}\n{indexers}")).await;
    let channel = serve(gate(&sessions).await, busy()).await;
    let refused = client(&channel).stream(of("acme", ENDLESS)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(!refused.message().contains("key"), "{}", refused.message());
}

#[tokio::test]
async fn closing_the_pool_ends_every_stream_as_unavailable() {
    let sessions = Sessions::start().await;
    let pool = sessions.pool("").await;
    let channel =
        serve(SessionLayer::new(pool.clone(), "t1r"), Told(async |_, _| Ok(NEVER()))).await;
    let mut stream = client(&channel).stream(of("acme", ENDLESS)).await.unwrap().into_inner();
    let report = pool.close(Duration::from_secs(5)).await;
    assert_eq!((report.returned, report.not_returned), (1, 0));
    let ended = soon(stream.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "the session pool is closed"));
    assert_eq!(sessions.count("t1r").await, 0);
}
