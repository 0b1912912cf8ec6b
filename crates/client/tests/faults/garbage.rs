//! A program that is no session server answers in place of the server, or bytes are corrupted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use prost::Message as _;
use tgm_session::{Error, Released};
use tokio::time::{Instant, sleep};
use wire::worker::{BorrowWorkerResponse, KeepAliveResponse, ReturnWorkerResponse};

use crate::proxy::{Flow, Weather};
use crate::world::{Impostor, LOST, SECOND, Streams, TTL, World, stream};

/// Lets `impostor` answer for `time`. Resets all connections before and after, so that clients
/// connect again.
async fn impersonate(world: &World, impostor: Impostor, time: Duration) {
    let fooled = world.fooled();
    world.set_impostor(Some(impostor));
    world.proxy.cut();
    sleep(time).await;
    world.set_impostor(None);
    world.proxy.cut();
    assert!(world.fooled() > fooled, "nobody came");
}

/// Checks that a borrow failed as unavailable. The answer of an impostor is no decision, so it must
/// never look like one, such as a spent budget.
fn assert_nobody_knows(error: &Error) {
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn corrupted_answers_end_no_session_and_take_no_second_slot() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        let keys = streams.keys();
        for _ in 0..3 {
            world.proxy.set(Weather::answers(Flow::Garbled));
            let (borrowed, ()) = tokio::join!(pool.borrow(stream("new")), async {
                sleep(3 * SECOND).await;
                world.proxy.clear();
            });
            let session = borrowed.unwrap();
            assert_eq!(world.held().await, (4, 6));
            assert_eq!(session.release().await, Ok(Released::Returned));
            world.proxy.set(Weather::answers(Flow::Garbled));
            sleep(30 * SECOND).await;
            world.proxy.clear();
            sleep(30 * SECOND).await;
            assert_eq!(world.held().await, streams.slots());
        }
        streams.assert_alive();
        assert_eq!(streams.keys(), keys);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn corrupted_requests_end_no_session_and_take_no_slot() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        world.proxy.set(Weather::requests(Flow::Garbled));
        assert_nobody_knows(&pool.borrow(stream("new")).await.unwrap_err());
        sleep(25 * SECOND).await;
        world.proxy.clear();
        sleep(TTL).await;
        streams.assert_alive();
        assert_eq!(world.held().await, streams.slots());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_port_where_something_else_listens_ends_no_session_and_refuses_borrows() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        let keys = streams.keys();
        for said in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..],
            b"220 mail.example ESMTP\r\n",
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff",
            b"",
        ] {
            let borrow = async {
                sleep(SECOND).await;
                assert_nobody_knows(&pool.borrow(stream("new")).await.unwrap_err());
            };
            tokio::join!(impersonate(world, Impostor::Says(said), 20 * SECOND), borrow);
            sleep(40 * SECOND).await;
            assert_eq!(world.held().await, streams.slots());
        }
        streams.assert_alive();
        assert_eq!(streams.keys(), keys);
    })
    .await;
}

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// An HTTP answer with this body and these trailers.
fn answer(
    status: u16,
    content_type: &str,
    body: impl Into<Bytes>,
    trailers: &[(&'static str, &'static str)],
) -> Answer {
    let mut map = HeaderMap::new();
    for (name, value) in trailers {
        map.insert(*name, value.parse().unwrap());
    }
    let never = |never: std::convert::Infallible| match never {};
    let body = Full::new(body.into()).map_err(never);
    let body = if map.is_empty() {
        body.boxed()
    } else {
        body.with_trailers(std::future::ready(Some(Ok(map)))).boxed()
    };
    Response::builder().status(status).header("content-type", content_type).body(body).unwrap()
}

/// A gRPC response with this message and the status OK.
fn fine(message: Vec<u8>) -> Answer {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    answer(200, "application/grpc", body, &[("grpc-status", "0")])
}

/// A response whose body fails in the middle of a message.
fn cut_short() -> Answer {
    let parts = vec![
        Ok(http_body::Frame::data(Bytes::from_static(&[0, 0, 0, 0, 40, 10]))),
        Err(std::io::Error::other("the impostor gave up")),
    ];
    let body = StreamBody::new(tokio_stream::iter(parts)).boxed();
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// Makes the response of an impostor, which is the same for every request.
type Nonsense = fn() -> Answer;

/// Responses of every kind that no session server gives, each with a description.
fn nonsense() -> Vec<(&'static str, Nonsense)> {
    const GRPC: &str = "application/grpc";
    vec![
        ("a page", || answer(200, "text/html", "<h1>Welcome to the hotel</h1>", &[])),
        ("a gateway", || answer(502, "text/plain", "bad gateway", &[])),
        ("a missing page", || answer(404, "text/plain", "not found", &[])),
        ("a gateway that is too busy", || answer(429, "text/plain", "slow down", &[])),
        ("a gateway that forbids", || answer(403, "text/html", "<h1>Forbidden</h1>", &[])),
        ("a gateway that forbids without a word", || answer(403, "text/html", "", &[])),
        ("a gateway that is too busy to say so", || answer(429, "text/html", "", &[])),
        ("a gateway that wants a password", || answer(401, "text/html", "", &[])),
        ("nothing at that place", || answer(404, "text/html", "", &[])),
        ("no message", || answer(200, GRPC, "", &[("grpc-status", "0")])),
        ("no status", || answer(200, GRPC, &[0, 0, 0, 0, 0][..], &[])),
        ("an unknown status", || answer(200, GRPC, "", &[("grpc-status", "pumpkin")])),
        ("a message of four gigabytes", || {
            answer(200, GRPC, &[0, 255, 255, 255, 255, 1][..], &[("grpc-status", "0")])
        }),
        ("a compressed message", || {
            answer(200, GRPC, &[1, 0, 0, 0, 1, 1][..], &[("grpc-status", "0")])
        }),
        ("a message of another kind", || fine(vec![0xff; 40])),
        ("a message that breaks off", cut_short),
        ("empty messages", || fine(Vec::new())),
        ("a borrow without a key", || {
            fine(BorrowWorkerResponse { status: 1, ..Default::default() }.encode_to_vec())
        }),
        ("a borrow of unknown status with a key", || {
            let (worker_key, status) = ("not-yours".to_owned(), 99);
            fine(BorrowWorkerResponse { worker_key, status, ..Default::default() }.encode_to_vec())
        }),
        ("a keep-alive of unknown status", || {
            fine(KeepAliveResponse { status: 77 }.encode_to_vec())
        }),
        ("a return that failed", || fine(ReturnWorkerResponse { status: 4 }.encode_to_vec())),
    ]
}

/// Responses that the client accepts as a successful return, because some servers answer only OK.
const READ_AS_DONE: [&str; 3] =
    ["empty messages", "a borrow without a key", "a keep-alive of unknown status"];

#[tokio::test(start_paused = true)]
async fn invalid_answers_end_no_session_and_leave_no_slot() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        for (what, nonsense) in nonsense() {
            println!("{what}");
            let mut streams = Streams::begin(&pool, 3).await;
            let keys = streams.keys();
            let calls = async {
                sleep(SECOND).await;
                assert_nobody_knows(&pool.borrow(stream("new")).await.unwrap_err());
                let (session, _workers) = &streams.0[0];
                assert_nobody_knows(&session.borrow_worker("t2w", 3).await.unwrap_err());
            };
            let answers = Impostor::Answers(Arc::new(nonsense));
            tokio::join!(impersonate(world, answers.clone(), 12 * SECOND), calls);
            sleep(20 * SECOND).await;
            streams.assert_alive();
            assert_eq!((world.held().await, streams.keys()), (streams.slots(), keys), "{what}");

            // A return that an impostor answered did not reach the server.
            let (session, _) = streams.0.pop().unwrap();
            let release = async {
                sleep(SECOND).await;
                session.release().await
            };
            let (released, ()) = tokio::join!(release, impersonate(world, answers, 5 * SECOND));
            assert_eq!(released, Ok(Released::Returned), "{what}");
            // The client accepted this answer as a return, so only the TTL frees the slot.
            if READ_AS_DONE.contains(&what) {
                world.until_held(streams.slots()).await;
            }
            assert_eq!(world.held().await, streams.slots(), "{what}");
            streams.assert_alive();
            drop(streams);
            world.until_held((0, 0)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn with_an_impostor_every_session_is_lost_after_one_ttl() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        let start = Instant::now();
        world.set_impostor(Some(Impostor::Answers(Arc::new(|| fine(vec![0xff; 40])))));
        world.proxy.cut();
        let (_, lost) = streams.lost().await;
        assert!(lost - start <= LOST, "{:?}", lost - start);
        world.until_held((0, 0)).await;
    })
    .await;
}
