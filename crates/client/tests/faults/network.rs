//! A bad network in front of a healthy server: resets, lost packets, low bandwidth, no answers.

use std::time::Duration;

use futures_util::future::join_all;
use tgm_session::{Error, Released};
use tokio::time::{Instant, sleep};

use crate::proxy::{Arrival, Flow, Weather};
use crate::world::{LOST, SECOND, Streams, TTL, World, stream};

/// The deadline of a borrow when the URL gives none.
const BORROW_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn keep_alives_use_a_stream_if_the_server_has_one() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 1).await;
        sleep(2 * TTL).await;
        let stats = pool.stats();
        assert_eq!(stats.attached, world.has_stream());
        assert!(stats.kept_alive >= 3 * 4, "{stats:?}");
        streams.assert_alive();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connections_reset_again_and_again_end_nothing_and_leak_nothing() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("request-keep-alive-delay=1s");
        let streams = Streams::begin(&pool, 5).await;
        let keys = streams.keys();
        let before = world.proxy.seen().connections;
        let start = Instant::now();
        let mut round = 0;
        while start.elapsed() < 2 * TTL {
            // The delays vary, so that the reset comes sometimes between two calls and sometimes
            // during one.
            world.proxy.set(Weather::slow(Duration::from_millis(round % 7)));
            let (borrowed, ()) = tokio::join!(pool.borrow(stream(format!("r{round}"))), async {
                sleep(Duration::from_millis(round % 11)).await;
                world.proxy.cut();
            });
            // The client retries for up to five seconds, so a reset causes no error for the caller.
            drop(borrowed.unwrap());
            sleep(Duration::from_millis(700)).await;
            round += 1;
        }
        world.proxy.clear();
        streams.assert_alive();
        assert_eq!(streams.keys(), keys);
        assert!(world.proxy.seen().connections >= before + round, "each reset cost a connection");
        world.until_held(streams.slots()).await;
        assert_eq!(pool.close(TTL).await.not_returned, 0);
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_borrow_whose_answer_is_lost_with_the_connection_gets_the_same_slot_again() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        drop(pool.borrow(stream("warm")).await.unwrap());
        world.until_held((0, 0)).await;

        world.proxy.set(Weather::answers(Flow::Held));
        let (session, ()) = tokio::join!(pool.borrow(stream(1)), async {
            // The server has granted the session, but the proxy holds its answer back.
            world.until_held((1, 0)).await;
            sleep(SECOND).await;
            world.proxy.cut();
            world.proxy.clear();
        });
        let session = session.unwrap();
        assert_eq!(world.held().await, (1, 0), "the retry took no second slot");
        sleep(5 * TTL).await;
        assert_eq!((world.held().await, session.end_reason()), ((1, 0), None));
        assert_eq!(session.release().await, Ok(Released::Returned));
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_borrow_that_is_dropped_in_flight_leaves_no_slot_taken() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let session = pool.borrow(stream("kept")).await.unwrap();
        world.proxy.set(Weather::answers(Flow::Held));
        let borrows = (0..5).map(|number| pool.borrow(stream(number)));
        let workers = (0..5).map(|_| session.borrow_worker("t2w", 10));
        tokio::select! {
            _ = join_all(borrows) => panic!("no answer arrives"),
            _ = join_all(workers) => panic!("no answer arrives"),
            _ = world.until_held((6, 5)) => {}
        }
        // All borrows are dropped now. The server counts their slots until it receives their
        // returns.
        world.proxy.clear();
        world.until_held((1, 0)).await;
        sleep(2 * TTL).await;
        assert_eq!((world.held().await, session.end_reason()), ((1, 0), None));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn with_a_third_of_all_packets_lost_no_session_ends_and_no_slot_leaks() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("borrow-timeout=1m");
        world.proxy.set(Weather::lossy(0.3));
        let streams = Streams::begin(&pool, 5).await;
        let keys = streams.keys();
        for round in 0..10 {
            let session = pool.borrow(stream(format!("r{round}"))).await.unwrap();
            // If the answer to the first try comes too late, a second try finds no lease to return.
            let released = session.release().await.unwrap();
            assert!(matches!(released, Released::Returned | Released::Missing), "{released:?}");
            sleep(12 * SECOND).await;
        }
        streams.assert_alive();
        assert_eq!(streams.keys(), keys);
        assert_eq!(world.held().await, streams.slots());
        assert_eq!(pool.close(TTL).await.not_returned, 0);
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_kilobyte_per_second_is_enough_for_keep_alives() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("borrow-timeout=1m");
        world.proxy.set(Weather::throttled(1024));
        let streams = Streams::begin(&pool, 3).await;
        let keys = streams.keys();
        sleep(5 * TTL).await;
        streams.assert_alive();
        assert_eq!(streams.keys(), keys);
        assert_eq!(world.held().await, streams.slots());
        assert_eq!(pool.close(TTL).await.not_returned, 0);
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_half_open_connection_is_noticed_and_replaced_before_any_session_is_lost() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        let keys = streams.keys();
        sleep(TTL).await;
        for _ in 0..3 {
            // Open connections carry nothing more, without a reset. New connections work.
            let before = world.proxy.seen().connections;
            let silent = Weather { arrival: Arrival::Carried, ..Weather::half_open() };
            world.proxy.set(silent);
            let start = Instant::now();
            let asked = world.proxy.seen().from_clients;
            while world.proxy.seen().from_clients == asked {
                sleep(SECOND / 10).await;
            }
            world.proxy.clear();
            let vanished = Instant::now();
            while world.proxy.seen().connections == before {
                assert!(start.elapsed() < TTL, "the connection is still believed in");
                sleep(SECOND / 10).await;
            }
            // The client sends a ping ten seconds after the last bytes arrived, and waits five
            // seconds for the answer.
            let noticed = vanished.elapsed();
            assert!(noticed <= 16 * SECOND, "{noticed:?}");
            sleep(TTL).await;
            streams.assert_alive();
            assert_eq!(world.held().await, streams.slots());
        }
        assert_eq!(streams.keys(), keys);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_accepts_and_never_answers_refuses_borrows_in_time_and_holds_nothing() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        world.proxy.set(Weather::half_open());
        let start = Instant::now();
        let refused = pool.borrow(stream(1)).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
        let took = start.elapsed();
        assert!(took.abs_diff(BORROW_TIMEOUT) <= SECOND, "{took:?}");
        assert!(world.proxy.seen().connections >= 1);
        world.proxy.clear();
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (0, 0));
        // The failed borrow does not block later borrows.
        let session = pool.borrow(stream(1)).await.unwrap();
        assert_eq!(session.release().await, Ok(Released::Returned));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lost_requests_take_no_slot_and_end_every_session_after_one_ttl() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        world.proxy.set(Weather::requests(Flow::BlackHole));
        let start = Instant::now();
        let refused = pool.borrow(stream("new")).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
        assert_eq!(world.held().await, streams.slots());
        let (_, lost) = streams.lost().await;
        assert!(lost - start <= LOST, "{:?}", lost - start);
        let freed = start.elapsed() + world.until_held((0, 0)).await;
        assert!(freed <= TTL + SECOND, "{freed:?}");
        world.proxy.clear();
        world.proxy.cut();
        assert_eq!(
            pool.borrow(stream("new")).await.unwrap().release().await,
            Ok(Released::Returned)
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lost_answers_end_every_session_and_the_returns_still_free_the_slots() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        world.proxy.set(Weather::answers(Flow::BlackHole));
        let start = Instant::now();
        let refused = pool.borrow(stream("new")).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
        let (_, lost) = streams.lost().await;
        assert!(lost - start <= LOST, "{:?}", lost - start);
        // Requests still arrive, so the unanswered borrow was returned by its borrow id.
        assert_eq!(world.held().await, streams.slots());
        drop(streams);
        world.until_held((0, 0)).await;
        world.proxy.clear();
        world.proxy.cut();
        assert_eq!(
            pool.borrow(stream("new")).await.unwrap().release().await,
            Ok(Released::Returned)
        );
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_return_whose_answers_are_lost_is_repeated_and_frees_one_slot() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let mut streams = Streams::begin(&pool, 3).await;
        world.proxy.set(Weather::answers(Flow::BlackHole));
        let (session, workers) = streams.0.pop().unwrap();
        let release = tokio::spawn(session.release());
        world.until_held((2, 4)).await;
        sleep(25 * SECOND).await;
        assert!(!release.is_finished());
        world.proxy.clear();
        world.proxy.cut();
        // The first try freed the slot, so the last try found no lease to return.
        assert_eq!(release.await.unwrap(), Ok(Released::Missing));
        drop(workers);
        sleep(TTL).await;
        assert_eq!(world.held().await, streams.slots());
        streams.assert_alive();
    })
    .await;
}
