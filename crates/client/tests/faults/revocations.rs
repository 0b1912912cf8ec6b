//! Revocations by an operator. A bad network may delay them, but they are never lost.

use std::time::Duration;

use tgm_session::{Error, Pool, Session};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep};

use crate::proxy::{Arrival, Flow, Weather};
use crate::world::{SECOND, TTL, World, stream};

/// A session, and the reasons that its `on_error` callback gets.
async fn watched(pool: &Pool) -> (Session, UnboundedReceiver<Error>) {
    let (sender, calls) = unbounded_channel();
    let request = stream("watched").on_error(move |reason| sender.send(reason).unwrap());
    (pool.borrow(request).await.unwrap(), calls)
}

/// Waits until the session ends because an operator disabled its organization, and returns how long
/// that took. Checks that the callback is called exactly once.
async fn revoked(session: &Session, calls: &mut UnboundedReceiver<Error>) -> Duration {
    let start = Instant::now();
    let reason = session.ended().await;
    assert!(matches!(reason, Error::PermissionDenied { .. }), "{reason:?}");
    let took = start.elapsed();
    sleep(2 * TTL).await;
    assert_eq!((calls.recv().await, calls.recv().await), (Some(reason), None));
    took
}

#[tokio::test(start_paused = true)]
async fn a_revocation_arrives_at_once_over_a_stream_or_else_with_the_next_keep_alive() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let (session, mut calls) = watched(&pool).await;
        sleep(SECOND).await;
        world.disable().await;
        assert_eq!(world.held().await, (0, 0));
        let took = revoked(&session, &mut calls).await;
        let within = if world.has_stream() { SECOND / 5 } else { 21 * SECOND };
        assert!(took <= within, "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_revocation_during_an_outage_arrives_when_the_server_is_reachable_again() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let (session, mut calls) = watched(&pool).await;
        sleep(SECOND).await;
        world.proxy.set(Weather::refusing());
        world.proxy.cut();
        world.disable().await;
        sleep(25 * SECOND).await;
        assert_eq!(session.end_reason(), None);
        world.proxy.clear();
        let took = revoked(&session, &mut calls).await;
        assert!(took <= 3 * SECOND, "{took:?}");
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_revocation_whose_push_is_dropped_arrives_before_the_session_would_be_lost() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("");
        let (session, mut calls) = watched(&pool).await;
        sleep(TTL).await;
        // Open connections carry no more answers to the client. New connections work.
        let deaf = Weather { arrival: Arrival::Carried, ..Weather::answers(Flow::BlackHole) };
        world.proxy.set(deaf);
        world.disable().await;
        sleep(SECOND).await;
        world.proxy.clear();
        assert_eq!(session.end_reason(), None);
        let took = revoked(&session, &mut calls).await;
        assert!(took < TTL, "{took:?}");
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_revocation_reaches_a_pool_that_fails_open_and_ends_its_sessions() {
    World::each(async |world| {
        let (pool, _plugin) = world.pool("on-unavailable=allow&borrow-timeout=1s");
        let (session, mut calls) = watched(&pool).await;
        sleep(SECOND).await;
        world.proxy.set(Weather::refusing());
        world.proxy.cut();
        world.disable().await;
        let admitted = pool.borrow(stream("admitted")).await.unwrap();
        sleep(2 * TTL).await;
        assert_eq!((session.end_reason(), admitted.end_reason()), (None, None));
        world.proxy.clear();
        let took = revoked(&session, &mut calls).await;
        assert!(took <= 21 * SECOND, "{took:?}");
        let reason = admitted.ended().await;
        assert!(matches!(reason, Error::PermissionDenied { .. }), "{reason:?}");
        assert_eq!(world.held().await, (0, 0));
    })
    .await;
}
