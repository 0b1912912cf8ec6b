use std::time::Duration;

use tgm_session::{CloseReport, Error, Released};
use tokio::time::{Instant, timeout};
use tonic::Status;
use wire::worker::return_worker_response::Status as Said;

use crate::scripted::{Call, Script};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_returns_its_lease_and_workers_go_before_their_session() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let (one, two) = (script.worker(&session, "w1").await, script.worker(&session, "w2").await);
    drop(one);
    let back = script.give_back().await;
    assert_eq!(back.message.worker_key, "w1");
    assert_eq!(back.message.minimal_worker_life_duration, None);
    // The session waits for the first try of both workers, also for the try that began earlier.
    drop(session);
    assert_eq!(two.ended().await, Error::SessionNotFound);
    let second = script.give_back().await;
    assert_eq!(second.message.worker_key, "w2");
    back.take();
    script.hears_nothing_for(SECOND).await;
    second.take();
    let last = script.give_back().await;
    assert_eq!(last.message.worker_key, "s");
    last.take();
    drop(two);
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn guards_dropped_in_any_order_return_workers_first() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let worker = script.worker(&session, "w").await;
    drop((worker, session));
    for key in ["w", "s"] {
        let back = script.give_back().await;
        assert_eq!(back.message.worker_key, key);
        back.take();
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_resolves_with_the_servers_answer() {
    let mut script = Script::new();
    let pool = script.pool("");
    for (said, released) in [
        (Said::Returned, Released::Returned),
        (Said::TtlUpdated, Released::Lingers),
        (Said::MissingKey, Released::Missing),
    ] {
        let session = script.session(&pool, "s").await;
        let (outcome, ()) = tokio::join!(session.release(), async {
            script.give_back().await.say(said);
        });
        assert_eq!(outcome, Ok(released));
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_future_is_dropped_goes_on() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    drop(session.release());
    assert_eq!(script.give_back().await.message.worker_key, "s");
}

#[tokio::test(start_paused = true)]
async fn a_minimal_life_goes_over_the_wire_to_the_nanosecond() {
    let mut script = Script::new();
    let pool = script.pool("minimal-worker-life-duration=1500ms");
    let session = script.session(&pool, "s").await;
    let worker = script.worker(&session, "w").await;
    drop(worker.release_after(Duration::new(2, 345_678_901)));
    let back = script.give_back().await;
    let life = back.message.minimal_worker_life_duration.unwrap();
    assert_eq!((life.seconds, life.nanos), (2, 345_678_901));
    back.take();
    drop(session);
    let life = script.give_back().await.message.minimal_worker_life_duration.unwrap();
    assert_eq!((life.seconds, life.nanos), (1, 500_000_000));
}

#[tokio::test(start_paused = true)]
async fn a_lost_return_is_repeated_until_it_is_answered() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let release = session.release();
    let (outcome, ()) = tokio::join!(release, async {
        // The first try is never answered, the second one is refused, and the third one fails.
        let silent = script.give_back().await;
        let second = script.give_back().await;
        assert!(!silent.is_waited_for() && second.at - silent.at >= 10 * SECOND);
        second.fail(Status::unavailable("draining"));
        script.give_back().await.say(Said::Failed);
        let last = script.give_back().await;
        assert_eq!(last.message.worker_key, "s");
        last.take();
    });
    assert_eq!(outcome, Ok(Released::Returned));
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_return_that_cannot_be_made_is_given_up_after_one_ttl_and_says_so() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    let mut release = Box::pin(session.release());
    let mut tries = 0;
    let outcome = loop {
        tokio::select! {
            outcome = &mut release => break outcome,
            back = script.give_back() => {
                tries += 1;
                back.fail(Status::unavailable("the store failed"));
            }
        }
    };
    assert!(matches!(outcome, Err(Error::Unavailable { .. })));
    assert_eq!(start.elapsed(), 60 * SECOND);
    assert!(tries > 10, "{tries}");
}

#[tokio::test(start_paused = true)]
async fn returns_and_a_close_end_with_the_ttl_however_many_leases_wait_for_a_server_that_is_away() {
    for policy in ["deny", "allow"] {
        let mut script = Script::new();
        let pool = script
            .pool(&format!("on-unavailable={policy}&default-max-request-per-organization=200"));
        let mut sessions = Vec::new();
        for number in 0..100 {
            sessions.push(script.session(&pool, &format!("s{number}")).await);
        }
        let worker = script.worker(&sessions[0], "w").await;
        let away = tokio::spawn(async move {
            loop {
                match script.call().await {
                    Call::Borrow(call) => call.fail(Status::unavailable("away")),
                    Call::KeepAlive(call) => call.fail(Status::unavailable("away")),
                    Call::Return(call) => call.fail(Status::unavailable("away")),
                }
            }
        });
        // Every lease is due for a retry each second, but the pool makes fewer calls while the
        // server is away.
        tokio::time::sleep(25 * SECOND).await;
        let start = Instant::now();
        let (worker, session) = (worker.release(), sessions.swap_remove(0).release());
        let last = sessions.swap_remove(0).release();
        let all = async { tokio::join!(worker, session, last) };
        let (worker, session, last) = timeout(3600 * SECOND, all).await.unwrap();
        for outcome in [worker, session, last] {
            assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{policy}: {outcome:?}");
        }
        assert_eq!(start.elapsed(), 60 * SECOND, "{policy}");

        let start = Instant::now();
        let report = pool.close(3600 * SECOND).await;
        assert_eq!(report, CloseReport { returned: 0, not_returned: 98 }, "{policy}");
        assert_eq!(start.elapsed(), 60 * SECOND, "{policy}");
        away.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_return_waits_for_the_keep_alive_in_flight_so_that_nothing_is_revived() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let beat = script.keep_alive().await;
    drop(session);
    script.hears_nothing_for(3 * SECOND).await;
    beat.extend();
    let back = script.give_back().await;
    assert_eq!(back.message.worker_key, "s");
    back.take();
    // No keep-alive follows the return.
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn after_the_last_handle_is_dropped_the_task_returns_everything_and_ends() {
    let mut script = Script::new();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut alive = Vec::new();
    for _ in 0..2 {
        let pool = script.pool("");
        let session = script.session(&pool, "s").await;
        let worker = script.worker(&session, "w").await;
        drop(pool);
        // The guards keep the task of the pool running, so both leases are kept alive.
        for _ in 0..2 {
            script.keep_alive().await.extend();
        }
        drop((session, worker));
        for key in ["w", "s"] {
            let back = script.give_back().await;
            assert_eq!(back.message.worker_key, key);
            back.take();
        }
        script.hears_nothing_for(120 * SECOND).await;
        alive.push(tasks());
    }
    // The second pool left no task behind. The tasks of the script stay.
    assert_eq!(alive[0], alive[1]);
}
