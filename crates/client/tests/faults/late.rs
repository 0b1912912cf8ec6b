//! Answers that come after their deadline.

use std::time::Duration;

use futures_util::future::join_all;
use tgm_session::{Error, Released};
use tokio::time::{Instant, sleep};

use crate::proxy::{Flow, Way, Weather};
use crate::world::{LOST, POLICY, SECOND, Streams, TTL, World, stream};

/// Answers take this long; requests arrive at once.
fn answers_after(delay: Duration) -> Weather {
    Weather { to_client: Way { delay, ..Way::default() }, ..Weather::default() }
}

#[tokio::test(start_paused = true)]
async fn a_borrow_answered_after_its_deadline_leaves_no_slot() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let kept = pool.borrow(stream("kept")).await.unwrap();
        world.proxy.set(answers_after(8 * SECOND));
        let start = Instant::now();
        let borrows = (0..5).map(|number| pool.borrow(stream(number)));
        let workers = (0..5).map(|_| kept.borrow_worker("t2w", 10));
        let (sessions, workers) = tokio::join!(join_all(borrows), join_all(workers));
        for error in sessions.into_iter().map(Result::unwrap_err) {
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        }
        for error in workers.into_iter().map(Result::unwrap_err) {
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        }
        assert!(start.elapsed() <= 6 * SECOND, "{:?}", start.elapsed());
        // The return by borrow id needs no answer to free the slot.
        world.until_held((1, 0)).await;
        assert!(start.elapsed() <= 7 * SECOND, "{:?}", start.elapsed());
        sleep(20 * SECOND).await;
        assert_eq!((world.held().await, kept.end_reason()), ((1, 0), None));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn slow_answers_to_keep_alives_before_the_deadline_end_no_session() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        let keys = streams.keys();
        world.proxy.set(answers_after(3 * SECOND));
        sleep(10 * TTL).await;
        streams.assert_alive();
        assert_eq!((world.held().await, streams.keys()), (streams.slots(), keys));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn keep_alives_answered_after_their_deadline_count_as_failed_and_end_the_session() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        world.proxy.set(answers_after(30 * SECOND));
        let start = Instant::now();
        let (_, lost) = streams.lost().await;
        assert!(lost - start <= LOST, "{:?}", lost - start);
        // The server received every keep-alive, so it still counts the leases. Their returns free
        // the slots.
        assert_eq!(world.held().await, streams.slots());
        let (sessions, _) = streams.slots();
        drop(streams);
        let took = world.until_held((sessions, 0)).await;
        assert!(took <= SECOND, "{took:?}");
        // The return of a session waits only for a short time for the answers to the returns of its
        // workers.
        let took = world.until_held((0, 0)).await;
        assert!(took <= 2 * SECOND, "{took:?}");
        world.proxy.clear();
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn leases_borrowed_again_with_late_answers_take_one_slot_each() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        world.kill_server();
        world.start_server(POLICY).await;
        // Answers now come after the deadline of their calls. A borrow that is tried again has the
        // same borrow id, so it takes no second slot.
        world.proxy.set(answers_after(7 * SECOND));
        sleep(25 * SECOND).await;
        let (sessions, workers) = world.held().await;
        assert!(sessions <= 3 && workers <= 6, "{sessions} {workers}");
        world.proxy.clear();
        world.until_held(streams.slots()).await;
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, streams.slots());
        streams.assert_alive();
        drop(streams);
        world.until_held((0, 0)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_release_with_late_answers_frees_its_slot_at_once() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let session = pool.borrow(stream(1)).await.unwrap();
        world.proxy.set(answers_after(4 * SECOND));
        let start = Instant::now();
        let release = tokio::spawn(session.release());
        world.until_held((0, 0)).await;
        assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
        assert_eq!(release.await.unwrap(), Ok(Released::Returned));
        assert!((4..6).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_of_the_network_every_call_succeeds_and_no_session_ends() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("borrow-timeout=1m");
        let streams = Streams::begin(&pool, 3).await;
        let keys = streams.keys();
        for _ in 0..5 {
            let held = Weather::answers(Flow::Held);
            world.proxy.set(Weather { to_server: held.to_client, ..held });
            let (borrowed, ()) = tokio::join!(pool.borrow(stream("through")), async {
                sleep(9 * SECOND).await;
                world.proxy.clear();
            });
            drop(borrowed.unwrap());
            sleep(30 * SECOND).await;
            assert_eq!(world.held().await, streams.slots());
        }
        streams.assert_alive();
        assert_eq!(streams.keys(), keys);
    })
    .await;
}
