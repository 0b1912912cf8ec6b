use std::collections::BTreeMap;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tgm_session::{Denied, PoolStats};
use tonic::Status;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Said;
use wire::worker::return_worker_response;

use crate::scripted::{Call, Script, answer_with_status, stream};

const SECOND: Duration = Duration::from_secs(1);

/// Stats with the fields that `set` changes. `PoolStats` is `#[non_exhaustive]`, so a struct
/// literal is not possible here.
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
    let beat = script.keep_alive().await;
    assert_eq!(beat.message.worker_key, "s");
    beat.extend();
    let worker = script.worker(&session, "w").await;
    let mut expected = stats(|stats| {
        (stats.sessions_held, stats.sessions_borrowed) = (1, 1);
        (stats.workers_held, stats.workers_borrowed) = (1, 1);
        stats.kept_alive = 1;
    });
    assert_eq!(pool.stats(), expected);

    // The return is tried again long before the next keep-alive of the session is due.
    drop(worker);
    script.give_back().await.fail(Status::unavailable("draining"));
    script.give_back().await.say(return_worker_response::Status::MissingKey);
    script.keep_alive().await.fail(Status::internal("a bug"));
    script.keep_alive().await.say(Said::Failed);
    script.borrow().await.grant("again");
    let beat = script.keep_alive().await;
    expected.workers_held = 0;
    (expected.returned, expected.retried) = (1, 1);
    (expected.keep_alives_failed, expected.borrowed_again) = (1, 1);
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

/// The values of a recorder, by name and label.
fn recorded(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let values = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
        let key = key.key();
        let labels: Vec<&str> = key.labels().map(metrics::Label::value).collect();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(gauge) => gauge.into_inner(),
            DebugValue::Histogram(_) => panic!("there are none"),
        };
        (format!("{} {}", key.name(), labels.join(" ")).trim_end().to_owned(), value)
    });
    values.collect()
}

#[tokio::test(start_paused = true)]
async fn the_recorder_of_the_application_gets_the_same_numbers_summed_over_all_pools() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _here = metrics::set_default_local_recorder(&recorder);
    let mut script = Script::new();
    let pools = [script.pool(""), script.pool("")];
    let sessions = [script.session(&pools[0], "s1").await, script.session(&pools[1], "s2").await];
    let worker = script.worker(&sessions[0], "w").await;
    let (refused, ()) = tokio::join!(pools[0].borrow(stream()), async {
        script.borrow().await.fail(Status::resource_exhausted("spent"));
    });
    assert!(refused.is_err());
    tokio::time::sleep(SECOND / 100).await;
    script.hears_nothing_for(Duration::ZERO).await;
    let mut total = BTreeMap::new();
    let mut hear = || {
        for (name, value) in recorded(&snapshotter) {
            // A snapshot resets the values that it reads.
            *total.entry(name).or_insert(0.0) += value;
        }
        total.clone()
    };
    hear();
    while pools.iter().map(|pool| pool.stats().kept_alive).sum::<u64>() < 3 {
        script.keep_alive().await.extend();
    }
    tokio::time::sleep(SECOND).await;
    let heard = hear();
    let value = |name: &str| heard.get(&format!("tgm_session_pool_{name}")).copied();
    assert_eq!((value("held session"), value("held worker")), (Some(2.0), Some(1.0)));
    let borrowed = (value("borrowed_total session"), value("borrowed_total worker"));
    assert_eq!(borrowed, (Some(2.0), Some(1.0)));
    assert_eq!(value("denied_total quota_exceeded"), Some(1.0));
    let kept_alive = pools.iter().map(|pool| pool.stats().kept_alive).sum::<u64>();
    assert_eq!(value("keep_alives_total extended"), Some(kept_alive as f64));
    drop((worker, sessions));
    let mut returned = 0;
    while returned < 3 {
        match script.call().await {
            Call::Return(back) => back.take(),
            // The return of a lease waits for its keep-alive in flight.
            Call::KeepAlive(beat) => {
                beat.extend();
                continue;
            }
            call => panic!("an unexpected {}", call.name()),
        }
        returned += 1;
    }
    drop(pools);
    script.hears_nothing_for(SECOND).await;
    let heard = hear();
    let value = |name: &str| heard.get(&format!("tgm_session_pool_{name}")).copied();
    assert_eq!((value("held session"), value("held worker")), (Some(0.0), Some(0.0)));
    assert_eq!(value("returned_total"), Some(3.0));
}
