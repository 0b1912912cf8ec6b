use std::time::Duration;

use tgm_session::{Denied, PoolStats};
use tonic::Status;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Said;
use wire::worker::return_worker_response;

use crate::scripted::{Script, answer_with_status, stream};

const SECOND: Duration = Duration::from_secs(1);

/// Numbers of which most are zero: only crates that know all fields may write them out.
fn stats(set: impl FnOnce(&mut PoolStats)) -> PoolStats {
    let mut stats = PoolStats::default();
    set(&mut stats);
    stats
}

#[tokio::test(start_paused = true)]
async fn what_is_held_kept_alive_forgotten_and_returned_is_counted() {
    let mut script = Script::new();
    let pool = script.pool("");
    assert_eq!(pool.stats(), PoolStats::default());
    let session = script.session(&pool, "s").await;
    let worker = script.worker(&session, "w").await;
    let mut expected = stats(|stats| {
        (stats.sessions_held, stats.sessions_borrowed) = (1, 1);
        (stats.workers_held, stats.workers_borrowed) = (1, 1);
    });
    assert_eq!(pool.stats(), expected);

    drop(worker);
    script.give_back().await.fail(Status::unavailable("draining"));
    script.give_back().await.say(return_worker_response::Status::MissingKey);
    let beat = script.keep_alive().await;
    assert_eq!(beat.message.worker_key, "s");
    beat.extend();
    script.keep_alive().await.fail(Status::internal("a bug"));
    script.keep_alive().await.say(Said::Failed);
    script.borrow().await.grant("again");
    let beat = script.keep_alive().await;
    expected.workers_held = 0;
    (expected.returned, expected.retried) = (1, 1);
    (expected.kept_alive, expected.keep_alives_failed, expected.borrowed_again) = (1, 1, 1);
    assert_eq!(pool.stats(), expected);

    beat.fail(Status::permission_denied("disabled"));
    session.ended().await;
    (expected.revoked, expected.sessions_held) = (1, 1);
    assert_eq!(pool.stats(), expected);
    drop(session);
    script.give_back().await.fail(Status::invalid_argument("no such key"));
    script.hears_nothing_for(SECOND).await;
    (expected.sessions_held, expected.not_returned) = (0, 1);
    assert_eq!(pool.stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_counted_by_kind_and_lost_leases_apart_from_revoked_ones() {
    let mut script = Script::new();
    let pool = script.pool("borrow-timeout=1s");
    for status in [
        Status::unauthenticated(""),
        Status::permission_denied(""),
        Status::resource_exhausted(""),
        Status::invalid_argument(""),
    ] {
        let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
            script.borrow().await.fail(status);
        });
        assert!(refused.is_err());
    }
    let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
        let full = answer_with_status(BorrowStatus::ResourceExhausted, "");
        script.borrow().await.answer(Ok(full));
    });
    assert!(refused.is_err());
    let session = script.session(&pool, "s").await;
    assert!(session.borrow_worker("t2w", 0).await.is_err());
    script.set_reachable(false);
    let lost = tokio::select! {
        reason = session.ended() => reason,
        () = async {
            loop {
                script.keep_alive().await.fail(Status::unavailable("gone"));
            }
        } => unreachable!(),
    };
    assert!(lost.to_string().starts_with("lost"), "{lost}");
    let counted = pool.stats();
    let mut denied = Denied::default();
    (denied.unauthenticated, denied.permission_denied, denied.quota_exceeded) = (1, 1, 1);
    (denied.sessions_limit, denied.workers_limit, denied.other) = (1, 1, 1);
    assert_eq!(counted.denied, denied);
    assert_eq!((counted.revoked, counted.lost), (0, 1));
    assert!(counted.keep_alives_failed > 30, "{counted:?}");
    assert_eq!(denied.by_kind().map(|(_, count)| count), [0, 1, 1, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_shows_in_the_numbers() {
    let (mut script, mut streams) = Script::attachable();
    let pool = script.pool("");
    let _session = script.session(&pool, "s").await;
    let mut attached = streams.recv().await.unwrap();
    let batch = attached.batch().await.unwrap();
    assert!(pool.stats().attached);
    attached.extend(&batch);
    attached.fail(Status::unavailable("going away"));
    script.hears_nothing_for(SECOND / 10).await;
    let counted = pool.stats();
    assert_eq!((counted.kept_alive, counted.attached), (1, false));
}
