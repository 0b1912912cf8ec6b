//! Outages: the server is killed and loses its leases, or it cannot be reached for a while.

use std::time::Duration;

use tgm_session::{CloseReport, Error, Released};
use tokio::time::{Instant, sleep};

use crate::proxy::Weather;
use crate::world::{LOST, POLICY, SECOND, Streams, TTL, World, stream};

/// How long the server is away in the longest outages.
const TWO_MINUTES: Duration = Duration::from_secs(120);

#[tokio::test(start_paused = true)]
async fn a_server_that_restarts_and_forgets_everything_holds_the_same_sessions_again() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        let keys = streams.keys();
        for _ in 0..3 {
            world.kill_server();
            sleep(3 * SECOND).await;
            world.start_server(POLICY).await;
            assert_eq!(world.held().await, (0, 0));
            // The next keep-alive comes within one interval. Borrowing all leases again takes up to
            // another one.
            let took = world.until_held(streams.slots()).await;
            assert!(took <= 45 * SECOND, "{took:?}");
            streams.assert_alive();
        }
        assert!(
            streams.keys().iter().all(|key| !keys.contains(key)),
            "the new server made new keys"
        );
        // Fifteen minutes later, no lease was borrowed twice or lost.
        for _ in 0..10 {
            sleep(90 * SECOND).await;
            assert_eq!(world.held().await, streams.slots());
        }
        streams.assert_alive();
        drop(streams);
        world.until_held((0, 0)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_gone_for_two_minutes_ends_every_session_as_lost_before_its_ttl_is_over() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        sleep(TWO_MINUTES).await;
        streams.assert_alive();
        world.kill_server();
        let gone = Instant::now();
        // A session is lost after 95 % of its TTL, and its last keep-alive may be as old as one interval.
        let (first, last) = streams.lost().await;
        let (first, last) = (first - gone, last - gone);
        assert!(first >= TTL * 19 / 20 - 21 * SECOND && last <= LOST, "{first:?} {last:?}");

        let refused = pool.borrow(stream("new")).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");

        sleep(TWO_MINUTES - gone.elapsed()).await;
        world.start_server(POLICY).await;
        // Sessions that ended are not borrowed again, and a new session is counted.
        let session = pool.borrow(stream("new")).await.unwrap();
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (1, 0));
        drop(streams);
        assert_eq!(session.release().await, Ok(Released::Returned));
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_out_of_reach_for_two_minutes_frees_every_slot_while_its_sessions_end() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        world.proxy.set(Weather::refusing());
        world.proxy.cut();
        let gone = Instant::now();
        let (_, lost) = streams.lost().await;
        let freed = gone.elapsed() + world.until_held((0, 0)).await;
        // A session ends first in the client: there its TTL starts when a keep-alive is sent, and
        // in the server when the keep-alive is received.
        assert!(lost - gone <= freed && freed <= TTL + SECOND, "{:?} {freed:?}", lost - gone);

        sleep(TWO_MINUTES - gone.elapsed()).await;
        world.proxy.clear();
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (0, 0), "what has ended is not borrowed again");
        drop(streams);
        let again = Streams::begin(&pool, 10).await;
        assert_eq!(world.held().await, again.slots());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_ttl_ends_no_session_and_changes_no_key() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        let keys = streams.keys();
        for _ in 0..5 {
            world.proxy.set(Weather::refusing());
            world.proxy.cut();
            sleep(35 * SECOND).await;
            world.proxy.clear();
            sleep(25 * SECOND).await;
            assert_eq!(world.held().await, streams.slots());
        }
        streams.assert_alive();
        assert_eq!(streams.keys(), keys, "the server never forgot them");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_released_during_an_outage_is_returned_after_it() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let mut streams = Streams::begin(&pool, 5).await;
        world.proxy.set(Weather::refusing());
        world.proxy.cut();
        drop(streams.0.split_off(3));
        let (session, workers) = streams.0.pop().unwrap();
        let release = tokio::spawn(session.release());
        sleep(30 * SECOND).await;
        assert_eq!(world.held().await, (5, 10));
        world.proxy.clear();
        let took = world.until_held((2, 4)).await;
        assert!(took <= 10 * SECOND, "{took:?}");
        assert_eq!(release.await.unwrap(), Ok(Released::Returned));
        drop(workers);
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, streams.slots());
        streams.assert_alive();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_close_that_cannot_reach_the_server_says_so_and_the_ttl_frees_the_slots() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 3).await;
        world.proxy.set(Weather::refusing());
        world.proxy.cut();
        let start = Instant::now();
        let report = pool.close(5 * SECOND).await;
        assert_eq!(report, CloseReport { returned: 0, not_returned: 9 });
        assert_eq!(start.elapsed().as_secs(), 5, "it waits no longer than it was told to");
        for (session, _) in &streams.0 {
            assert_eq!(session.end_reason(), Some(&Error::Closed));
        }
        assert_eq!(world.held().await, (3, 6));
        world.until_held((0, 0)).await;
        assert!(start.elapsed() <= TTL + SECOND, "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_with_room_for_fewer_ends_the_rest_as_lost() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let streams = Streams::begin(&pool, 5).await;
        world.kill_server();
        let smaller = POLICY.replace("max_per_organization = 10", "max_per_organization = 2");
        assert_ne!(smaller, POLICY);
        world.start_server(&smaller).await;
        world.until_held((2, 4)).await;
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (2, 4));
        let mut alive = 0;
        for (session, workers) in &streams.0 {
            match session.end_reason() {
                None => {
                    alive += 1;
                    assert!(workers.iter().all(|worker| worker.end_reason().is_none()));
                }
                Some(Error::Lost { cause }) => {
                    let refused = matches!(
                        **cause,
                        Error::ConcurrentStreamLimitExceeded { active: 2, max: 2, .. }
                    );
                    assert!(refused, "{cause}");
                    assert!(workers.iter().all(|worker| worker.end_reason().is_some()));
                }
                Some(reason) => panic!("{reason}"),
            }
        }
        assert_eq!(alive, 2);
    })
    .await;
}
