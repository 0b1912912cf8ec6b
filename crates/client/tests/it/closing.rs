use std::time::Duration;

use tgm_session::{CloseReport, Error};
use tokio::time::Instant;
use tonic::Status;

use crate::scripted::{Call, Script, stream};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_close_returns_everything_held_with_no_minimal_life_workers_first() {
    let mut script = Script::new();
    let pool = script.pool("minimal-worker-life-duration=1m");
    let session = script.session(&pool, "s").await;
    let worker = script.worker(&session, "w").await;
    let other = script.session(&pool, "s2").await;
    let (report, order) = tokio::join!(pool.close(10 * SECOND), async {
        let mut order = Vec::new();
        for _ in 0..3 {
            let back = script.give_back().await;
            let life = back.message.minimal_worker_life_duration.unwrap_or_default();
            assert_eq!((life.seconds, life.nanos), (0, 0));
            order.push(back.message.worker_key.clone());
            back.take();
        }
        order
    });
    assert_eq!(report, CloseReport { returned: 3, not_returned: 0 });
    let place = |key: &str| order.iter().position(|known| known == key).unwrap();
    assert!(place("w") < place("s"), "{order:?}");
    for reason in [session.ended().await, worker.ended().await, other.ended().await] {
        assert_eq!(reason, Error::Closed);
    }
    assert_eq!(pool.borrow(stream()).await.unwrap_err(), Error::Closed);
    assert_eq!(session.borrow_worker("t2w", 1).await.unwrap_err(), Error::Closed);
    drop((session, worker, other));
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_close_waits_for_a_borrow_in_flight_and_returns_it() {
    let mut script = Script::new();
    let pool = script.pool("");
    let (refused, report, ()) = tokio::join!(
        pool.borrow(stream()),
        async {
            // The borrow is in flight when the close begins.
            tokio::task::yield_now().await;
            pool.close(10 * SECOND).await
        },
        async {
            let borrow = script.borrow().await;
            script.hears_nothing_for(2 * SECOND).await;
            borrow.grant("late");
            let back = script.give_back().await;
            assert_eq!(back.message.worker_key, "late");
            back.take();
        }
    );
    assert_eq!(refused.unwrap_err(), Error::Closed);
    assert_eq!(report, CloseReport { returned: 1, not_returned: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_close_keeps_its_deadline_and_counts_what_could_not_be_returned() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let _worker = script.worker(&session, "w").await;
    let start = Instant::now();
    let close = pool.close(7 * SECOND);
    let refuse = async {
        loop {
            match script.call().await {
                Call::Return(back) => back.fail(Status::unavailable("draining")),
                call => panic!("an unexpected {}", call.name()),
            }
        }
    };
    let report = tokio::select! {
        report = close => report,
        () = refuse => unreachable!(),
    };
    assert_eq!(report, CloseReport { returned: 0, not_returned: 2 });
    assert_eq!(start.elapsed(), 7 * SECOND);
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_close_whose_future_is_dropped_goes_on() {
    let mut script = Script::new();
    let pool = script.pool("");
    let _session = script.session(&pool, "s").await;
    tokio::select! {
        biased;
        _ = pool.close(10 * SECOND) => panic!("nothing was returned yet"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(script.give_back().await.message.worker_key, "s");
    assert_eq!(pool.borrow(stream()).await.unwrap_err(), Error::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_empty_pool_closes_at_once_and_twice() {
    let script = Script::new();
    let pool = script.pool("");
    let start = Instant::now();
    assert_eq!(pool.close(SECOND).await, CloseReport::default());
    assert_eq!(pool.close(SECOND).await, CloseReport::default());
    assert_eq!(start.elapsed(), Duration::ZERO);
}
