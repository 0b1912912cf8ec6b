//! Pools that fail open: `on-unavailable=allow` while the server is away.

use std::time::Duration;

use tgm_session::{Error, Released, Scope};
use tokio::time::{Instant, sleep};

use crate::proxy::{Flow, Weather};
use crate::world::{POLICY, SECOND, Streams, TTL, World, stream};

const TWO_MINUTES: Duration = Duration::from_secs(120);

/// A pool that fails open, with its own limit of eight sessions per organization.
const OPEN: &str = "on-unavailable=allow&default-max-request-per-organization=8&borrow-timeout=1s";

#[tokio::test(start_paused = true)]
async fn two_minutes_without_a_server_end_no_stream_and_the_next_server_counts_all_streams() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool(OPEN);
        let streams = Streams::begin(&pool, 5).await;
        world.kill_server();
        sleep(10 * SECOND).await;
        let more = Streams::begin(&pool, 3).await;
        let (active, max, scope) = (8, 8, Scope::Pool);
        assert_eq!(
            pool.borrow(stream("one too many")).await.unwrap_err(),
            Error::ConcurrentStreamLimitExceeded { active, max, scope }
        );
        sleep(TWO_MINUTES).await;
        streams.assert_alive();
        more.assert_alive();

        world.start_server(POLICY).await;
        let took = world.until_held((8, 16)).await;
        assert!(took <= 45 * SECOND, "{took:?}");
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (8, 16));
        streams.assert_alive();
        more.assert_alive();
        drop((streams, more));
        world.until_held((0, 0)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_out_of_reach_for_two_minutes_counts_the_same_streams_again() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool(OPEN);
        let streams = Streams::begin(&pool, 5).await;
        for weather in
            [Weather::refusing(), Weather::half_open(), Weather::answers(Flow::BlackHole)]
        {
            world.proxy.set(weather);
            world.proxy.cut();
            sleep(TWO_MINUTES).await;
            streams.assert_alive();
            world.proxy.clear();
            sleep(TTL).await;
            assert_eq!(world.held().await, streams.slots());
        }
        streams.assert_alive();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_a_server_has_no_room_for_end_by_its_limit_when_it_is_back() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool(OPEN);
        world.kill_server();
        let streams = Streams::begin(&pool, 6).await;
        let smaller = POLICY.replace("max_per_organization = 10", "max_per_organization = 2");
        world.start_server(&smaller).await;
        world.until_held((2, 4)).await;
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, (2, 4));
        let mut alive = 0;
        for (session, workers) in &streams.0 {
            let Some(reason) = session.end_reason() else {
                alive += 1;
                assert!(workers.iter().all(|worker| worker.end_reason().is_none()));
                continue;
            };
            let (active, max, scope) = (2, 2, Scope::Organization);
            assert_eq!(*reason, Error::ConcurrentStreamLimitExceeded { active, max, scope });
            assert!(workers.iter().all(|worker| worker.end_reason().is_some()));
        }
        assert_eq!(alive, 2);
        drop(streams);
        world.until_held((0, 0)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_began_and_ended_without_a_server_are_never_counted() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool(OPEN);
        let kept = Streams::begin(&pool, 2).await;
        world.proxy.set(Weather::refusing());
        world.proxy.cut();
        let start = Instant::now();
        for _ in 0..10 {
            let passing = Streams::begin(&pool, 6).await;
            sleep(SECOND).await;
            drop(passing);
        }
        let session = pool.borrow(stream("released")).await.unwrap();
        let released = session.release().await;
        assert!(matches!(released, Ok(Released::Missing | Released::Returned)), "{released:?}");
        assert!(start.elapsed() < TTL / 2, "{:?}", start.elapsed());
        world.proxy.clear();
        sleep(2 * TTL).await;
        assert_eq!(world.held().await, kept.slots());
        kept.assert_alive();
        assert_eq!(pool.close(TTL).await.not_returned, 0);
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}
